"""Which kind of texts a path holds."""

from __future__ import annotations

from pathlib import Path

from ..errors import UsageError
from .stored import StoredTexts, trait_folders
from .text_files import CsvFile, JsonLines, TextFiles
from .texts import Texts

_FORMS = (
    "a .jsonl or .csv file whose rows have `messages` or `response` (and `prompt`), a .txt "
    "file or a folder of them, or a trait's or an experiment's folder"
)


def open_texts(source: Path | str) -> Texts:
    """Return the texts of a file or folder. Raise UsageError with every kind of fault by line."""
    path = Path(source)
    if path.is_file() and path.suffix in (".jsonl", ".ndjson"):
        return JsonLines(path)
    if path.is_file() and path.suffix == ".csv":
        return CsvFile(path)
    if path.is_file() and path.suffix == ".txt":
        return TextFiles([path])
    if path.is_dir():
        if traits := trait_folders(path):
            return StoredTexts(traits)
        if files := sorted(path.glob("*.txt")):
            return TextFiles(files)
    there = "is none of these" if path.exists() else "does not exist"
    raise UsageError(f"`texts` {path} {there}: give {_FORMS}")
