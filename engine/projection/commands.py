"""Project texts on trait vectors: a stream in, parts as it goes, a table and a page at the end."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import ExitCode
from ..files import write_atomic
from ..settings import RunSettings, apply, plain_arguments
from .directions import Directions, choose_directions
from .folder import held, take_up
from .models import choose_models, foreign, labels_of, name_of
from .page import write_page
from .reading import Reader, share_tokens
from .stored import StoredTexts, open_texts
from .summary import Difference, Summary, summarise
from .table import CSV, TABLE, Layout, compare, is_whole, merge, part_path, write_flat, write_rows
from .texts import Text, Texts

CHUNK = 256
"""Texts in memory at a time, and of a part."""
SCHEMA_VERSION = 3
PAGE, COMPARISON, SUMMARY = "index.html", "comparison.csv", "summary.json"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a projection has come."""

    model: str
    texts: int
    """Done, those of an earlier run included."""


@dataclass(frozen=True, slots=True)
class ProjectionResult:
    """What projecting some texts came to."""

    folder: Path
    summary: Summary
    compared: bool
    """Whether several models read the texts."""
    reused: bool
    """Whether all of it stood there from before."""

    def __repr__(self) -> str:
        rows, failed = self.summary.rows, self.summary.n_failed
        return f"ProjectionResult({rows} rows, {failed} failed, {self.folder})"

    @property
    def table(self) -> Path:
        """Parquet, with the projections of every token."""
        return self.folder / TABLE

    @property
    def csv(self) -> Path:
        return self.folder / CSV

    @property
    def page(self) -> Path:
        return self.folder / PAGE

    @property
    def comparison(self) -> Path | None:
        """Where several models read the texts: each turn's projections side by side."""
        return self.folder / COMPARISON if self.compared else None

    @property
    def exit_code(self) -> ExitCode:
        """The exit code that the command ends with."""
        return ExitCode.FAILED_SAMPLES if self.summary.n_failed else ExitCode.OK


@plain_arguments
def project(
    texts: Path | str,
    vectors: Sequence[Path | str] | Path | str,
    to: Path | str,
    *,
    methods: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    models: Sequence[Path | str] | Path | str | None = None,
    adapters: Sequence[Path | str] | Path | str | None = None,
    notice: Callable[[str], None] = lambda _: None,
    progress: Callable[[Progress], None] = lambda _: None,
    **given: Any,
) -> ProjectionResult:
    """Project texts on the vectors of traits' folders; write a table and a page into `to`.

    `texts` is a `.jsonl` or `.csv` file with `messages` or `prompt` and `response`, a `.txt` file
    or a folder of them, or a trait's or an experiment's folder, whose stored token ids are used.
    `methods` and `layers` choose among the vectors (None: the recommended one). `models` (None: the
    vectors' own, with the LoRA adapter that was over it) all read the same texts, and so does the
    one model with each of `adapters` over it; with several, comparison.csv says how far each is
    from the first.
    `given` are settings by name: `capture_dtype`, `attention`, `capture_device`, `batch_size`,
    `blocks`. Of these `capture_dtype`, `attention` and `blocks`, not given, are the vectors' run's.

    A projection is in training standard deviations of a side, 0 midway between the sides. Memory
    holds 256 texts at a time. Cut off, the same call goes on where it was. Raise UsageError or
    AccessError before a model loads.
    """
    apply(given)  # what is wrong is said before anything is read
    directions = choose_directions(_listed(vectors), methods, layers)
    kept = _kept(directions, given, own=models is None)
    settings = apply({**kept, **given})
    source = open_texts(texts)
    layout = Layout(tuple(source.columns), tuple(each.name for each in directions.chosen))
    refs = choose_models(directions, _listed(models), _listed(adapters))
    readers = [
        Reader(ref, label, directions, settings)
        for ref, label in zip(refs, labels_of(refs), strict=True)
    ]
    if isinstance(source, StoredTexts):
        share_tokens(readers)
    for remark in _remarks(source, directions, readers, kept):
        notice(remark)
    folder = Path(to)
    with held(folder):
        whole = is_whole(folder / TABLE, layout)
        take_up(folder, _facts(source, directions, readers, settings), whole=whole)
        outputs = [CSV, PAGE, SUMMARY] + [COMPARISON] * (len(readers) > 1)
        missing = [name for name in outputs if not (folder / name).is_file()]
        reused = not missing and whole
        if not whole:
            _write_parts(folder, source, readers, layout, notice, progress)
            _merge_parts(folder, layout, readers)
            missing = outputs
        summary = _finish(folder, missing, layout, readers, directions)
        shutil.rmtree(folder / "parts", ignore_errors=True)
    return ProjectionResult(folder, summary, len(readers) > 1, reused)


def _listed(given: Sequence[Path | str] | Path | str | None) -> list[str]:
    """Return one or several names or paths as a list, None as an empty one."""
    if given is None:
        return []
    return [str(each) for each in ([given] if isinstance(given, str | Path) else given)]


def _kept(directions: Directions, given: Mapping[str, Any], *, own: bool) -> dict[str, Any]:
    """Return the settings that are the vectors' run's, not given. `own` is its very model."""
    kept = {name: value for name, value in directions.capture.items() if name not in given}
    if not own:
        kept.pop("blocks", None)
    return kept


def _remarks(
    source: Texts, directions: Directions, readers: Sequence[Reader], kept: Mapping[str, Any]
) -> Iterator[str]:
    """Say what is the vectors' run's, and what is read otherwise than its responses were."""
    if kept:
        listed = ", ".join(f"`{name}` {value}" for name, value in kept.items())
        yield f"kept from the vectors' run: {listed} (name one to change it)"
    yield from directions.remarks
    for reader in readers:
        yield from foreign(directions, reader.ref)
    bare = [reader.label for reader in readers if not reader.tokenizer.chat_template]
    if 0 < len(bare) < len(readers):
        yield (
            f"{', '.join(bare)} has no chat template and reads turns bare, one below the other; "
            "its difference to the others is of that too"
        )
    if isinstance(source, StoredTexts):
        for reader in readers:
            for model in sorted(source.models - reader.reads):
                yield (
                    f"the responses of {model} are read anew by {reader.label}, by its own chat "
                    "template: what their run set for its prompts, and thoughts, are left out"
                )
    elif directions.prompted:
        yield (
            f"the vectors' run set {', '.join(f'`{each}`' for each in directions.prompted)} for "
            "its prompts, and these texts are read by the chat template alone: give `messages` "
            "that hold what it set, or the trait's folder"
        )
    if source.unread:
        yield f"turns of these texts hold {', '.join(source.unread)}, which no model is shown"


def _facts(
    source: Texts, directions: Directions, readers: Sequence[Reader], settings: RunSettings
) -> dict[str, Any]:
    """Return what a folder's parts are of: others cannot go on with them."""
    named = settings.execution.blocks
    blocks = {"blocks": named} if named else {}
    return blocks | {
        "schema_version": SCHEMA_VERSION,
        "texts": source.digest,
        "vectors": {each.name: each.digest for each in directions.chosen},
        "models": [name_of(reader.ref, revision=True) for reader in readers],
        "capture_dtype": settings.capture.dtype,
        "attention": settings.capture.attention,
        "computed": [reader.computes for reader in readers],
    }


def _chunks(source: Texts) -> Iterator[list[Text]]:
    texts = iter(source)
    while chunk := list(islice(texts, CHUNK)):
        yield chunk


def _write_parts(
    folder: Path,
    source: Texts,
    readers: Sequence[Reader],
    layout: Layout,
    notice: Callable[[str], None],
    progress: Callable[[Progress], None],
) -> None:
    """Write the parts that are not there, one model after the other."""
    for reader in readers:
        _ = reader.tokenizer  # the page needs it too: refused now, not after all the work
    for number, reader in enumerate(readers):
        texts = 0
        for index, chunk in enumerate(_chunks(source)):
            path = part_path(folder, number, index)
            if not is_whole(path, layout):
                write_rows(path, layout, reader.rows(chunk, layout))
            texts += len(chunk)
            progress(Progress(reader.label, texts))
        for remark in reader.remarks:
            notice(remark)
        reader.unload()


def _merge_parts(folder: Path, layout: Layout, readers: Sequence[Reader]) -> None:
    chunks = sorted(
        int(path.stem.partition("-")[2]) for path in (folder / "parts").glob("model0-*.parquet")
    )
    numbers = range(len(readers))
    merge(folder, layout, [part_path(folder, number, c) for number in numbers for c in chunks])


def _finish(
    folder: Path,
    missing: Sequence[str],
    layout: Layout,
    readers: Sequence[Reader],
    directions: Directions,
) -> Summary:
    """Make from the table what is missing beside it; say last that all is there."""
    table = folder / TABLE
    if CSV in missing:
        write_flat(folder, layout)
    differences: list[Difference] = []
    if len(readers) > 1 and {COMPARISON, SUMMARY} & set(missing):
        labels = [reader.label for reader in readers]
        gaps = compare(folder / COMPARISON, layout, labels, table)
        differences = [
            Difference(*key, value=gap.mean, half_width=gap.half_width, n=gap.n)
            for key, gap in gaps.items()
        ]
    if SUMMARY in missing:
        summary = summarise(table, layout, differences)
    else:
        summary = Summary.from_json((folder / SUMMARY).read_bytes())
    if PAGE in missing:
        write_page(folder / PAGE, table, layout, readers, directions, summary)
    if SUMMARY in missing:
        write_atomic(folder / SUMMARY, summary.to_json())
    return summary
