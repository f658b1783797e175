"""Which kind of texts a path holds, and responses of a run as texts, with the token ids that were
generated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray

from ..errors import UsageError
from ..models import Turn
from ..outputs import refuse_lost
from ..storage import TraitFolder, has_run, load_state
from .text_files import CsvFile, JsonLines, TextFiles
from .texts import StoredIds, Text, Texts

_TOKENS = ("thought_token_ids", "response_token_ids")


def trait_folders(path: Path) -> list[TraitFolder]:
    """Return a trait's folder, or those of an experiment, that hold a run; none for others."""
    one = TraitFolder(path)
    if has_run(one):
        return [one]
    below = (TraitFolder(each) for each in sorted(path.iterdir()) if each.is_dir())
    return [each for each in below if has_run(each)]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A trait's responses as they were looked at, in the order of its plan."""

    folder: TraitFolder
    ids: ndarray
    scores: ndarray
    kept: ndarray


class StoredTexts:
    """The responses of some traits, kept or not, in the order of their plans."""

    unread = ()
    columns = ("trait", "sample_id", "polarity", "instruction", "question", "trait_score", "kept")

    def __init__(self, folders: Sequence[TraitFolder]) -> None:
        """Look at what there is. Raise UsageError where there is no response."""
        self._chosen: list[_Chosen] = []
        digest, count = hashlib.sha256(), 0
        self.models: set[str] = set()
        """Whose token ids they are: names and revisions."""
        for folder in folders:
            state = load_state(folder)
            sampling = state.record.sampling
            self.models.add(f"{sampling.model}@{sampling.revision}")
            refuse_lost(state, {"activations"})
            ok = np.flatnonzero(state.responses.having("ok"))
            chosen = _Chosen(
                folder, state.plan.ids[ok], state.verdicts.score[ok], state.passing()[ok]
            )
            self._chosen.append(chosen)
            count += len(ok)
            digest.update(folder.name.encode())
            for part in (chosen.ids, chosen.scores, chosen.kept):
                digest.update(np.ascontiguousarray(part).tobytes())
            for table in state.tables("responses", ok, list(_TOKENS)):  # a lost text made anew
                for name in _TOKENS:
                    digest.update(json.dumps(table[name].to_pylist()).encode())
        if not count:
            raise UsageError(f"{folders[0].path} holds no response yet")
        self.digest = digest.hexdigest()[:16]

    def __iter__(self) -> Iterator[Text]:
        """Yield the texts that were there at first: a run may add more between two models."""
        row = 0
        for chosen in self._chosen:
            state = load_state(chosen.folder)
            sampling = state.record.sampling
            place = {sample_id: at for at, sample_id in enumerate(state.plan.ids.tolist())}
            positions = np.array([place.get(each, -1) for each in chosen.ids.tolist()])
            if (positions < 0).any() or not state.responses.having("ok")[positions].all():
                raise UsageError(f"{chosen.folder.path} lost responses meanwhile; project anew")
            responses = state.read_responses(positions)
            for response, score, kept in zip(responses, chosen.scores, chosen.kept, strict=True):
                row += 1
                sample = response.sample
                columns = {
                    "trait": chosen.folder.name,
                    "sample_id": sample.id,
                    "polarity": sample.polarity,
                    "instruction": sample.instruction,
                    "question": sample.question,
                    "trait_score": None if np.isnan(score) else f"{score:g}",
                    "kept": str(bool(kept)).lower(),
                }
                yield Text(
                    row,
                    (Turn("user", sample.prompt), Turn("assistant", response.response)),
                    columns,
                    StoredIds(
                        f"{sampling.model}@{sampling.revision}",
                        sample.prompt_token_ids,
                        response.thought_token_ids,
                        response.response_token_ids[: response.n_pooled],
                    ),
                )


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
        if path.name == "steering" and has_run(TraitFolder(path)):
            raise UsageError(
                f"`texts` {path} holds a study of steering; its answers are in responses.csv there"
            )
        if traits := trait_folders(path):
            return StoredTexts(traits)
        if files := sorted(path.glob("*.txt")):
            return TextFiles(files)
    there = "is none of these" if path.exists() else "does not exist"
    raise UsageError(f"`texts` {path} {there}: give {_FORMS}")
