"""A trait's activations as stage 3 reads them: checked against metadata and CSVs, mapped, with labels and groups."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import NothingKeptError, UsageError
from ..files import sha256_of
from ..records import POLARITIES
from ..settings import POOLS
from ..storage.experiment import command_on
from ..storage.run_record import MANIFEST
from ..traits.definition import DEFINITION_FILE, parse_definition
from .export import METADATA, tensor_path

if TYPE_CHECKING:
    import torch

DEFAULT_POOL = "response_mean"
MIN_ROWS = 2
"""Rows a side needs: with one there is no spread to set a gap against."""
_NEEDED: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "n_examples_pos": int,
    "n_examples_neg": int,
    "layers": list,
    "hidden_dim": int,
    "threshold": (int, float),
    "counts": dict,
    "files_sha256": dict,
    "sample_ids": list,
    "extraction_date": str,
}
_INDICES = ("instruction_index", "question_index")
"""Of each row in the definition; files of earlier versions lack them."""


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """Activations of one trait's kept responses. Rows are those of pos.csv, then of neg.csv."""

    trait: str
    values: np.ndarray
    """float32 `[n, n_layers, hidden_dim]`, residual stream units; mapped from the file, read-only."""
    labels: np.ndarray
    """bool `[n]`: True is pos."""
    questions: np.ndarray
    """int `[n]`: the row's question, as numbered in the definition; questions of one text are one."""
    instructions: np.ndarray
    """int `[n]`: the instruction pair, as numbered in the definition; pairs that share a text are one."""
    layers: tuple[int, ...]
    """The block index of each layer of `values`; -1 is the embedding output."""
    pool: str
    metadata: dict[str, Any]
    """metadata.json."""

    @property
    def sample_ids(self) -> list[str]:
        return [str(id_) for id_ in self.metadata["sample_ids"]]

    @property
    def sha256(self) -> str:
        """Of the tensor's file: what vectors and evaluations are tied to."""
        return str(self.metadata["files_sha256"][str(tensor_path(self.pool))])

    @property
    def n_pos(self) -> int:
        return int(self.labels.sum())

    @property
    def n_neg(self) -> int:
        return len(self.labels) - self.n_pos


def load_activations(folder: Path | str, pool: str = DEFAULT_POOL) -> Activations:
    """Load one trait's folder, `experiments/<experiment>/<trait>`.

    The tensor is mapped, not read into memory. Raises UsageError where files are missing, foreign or do not fit
    each other, or a value is not finite; NothingKeptError where a side has fewer than 2 rows.
    """
    folder = Path(folder)
    if pool not in POOLS:
        raise UsageError(f"--pool {pool!r} is unknown; choose from {', '.join(POOLS)}")
    metadata = read_metadata(folder)
    path = folder / tensor_path(pool)
    if str(tensor_path(pool)) not in metadata["files_sha256"] or not path.is_file():
        raise UsageError(
            f"{path} is missing; make it with: {command_on('activations', folder)} --pool {pool}"
        )
    for name, digest in metadata["files_sha256"].items():
        wanted = name == str(tensor_path(pool)) or name.endswith(".csv")
        if wanted and (not (folder / name).is_file() or sha256_of(folder / name) != digest):
            raise UsageError(
                f"{folder / name} is not the file that {METADATA} describes; write both anew with: "
                f"{command_on('export', folder)}"
            )
    sides = [_read_csv(folder / "responses" / f"{polarity}.csv") for polarity in POLARITIES]
    _check_sides(folder, [len(side) for side in sides])
    values = load_tensor(path).numpy()
    expected = (sum(map(len, sides)), len(metadata["layers"]), metadata["hidden_dim"])
    counts = [metadata["n_examples_pos"], metadata["n_examples_neg"]]
    if (
        values.shape != expected
        or [len(side) for side in sides] != counts
        or len(metadata["sample_ids"]) != len(values)
    ):
        raise UsageError(
            f"{path} has shape {list(values.shape)}, but {METADATA} and the CSVs say {list(expected)} "
            f"({counts[0]} pos, {counts[1]} neg); write them anew with: {command_on('export', folder)}"
        )
    _check_finite(path, values, metadata)
    questions, instructions = _groups(folder, metadata, sides)
    return Activations(
        trait=folder.name,
        values=values,
        labels=np.repeat([True, False], [len(side) for side in sides]),
        questions=questions,
        instructions=instructions,
        layers=tuple(metadata["layers"]),
        pool=pool,
        metadata=metadata,
    )


def pool_suffix(pool: str) -> str:
    """What the names of files made from a pool end in; nothing for response_mean."""
    return "" if pool == DEFAULT_POOL else f".{pool}"


def read_metadata(folder: Path) -> dict[str, Any]:
    """metadata.json with the keys stage 3 needs. Raises UsageError, naming the command that makes it."""
    path = folder / METADATA
    try:
        metadata = json.loads(path.read_bytes())
    except FileNotFoundError:
        stage = "activations" if (folder / MANIFEST).is_file() else "generate"
        raise UsageError(
            f"{folder} has no activations; make them with: {command_on(stage, folder)}"
        ) from None
    except ValueError:
        raise UsageError(
            f"{path} is not valid JSON; write it anew with: {command_on('export', folder)}"
        ) from None
    remedy = f"write it anew with: {command_on('export', folder)}"
    if not isinstance(metadata, dict):
        raise UsageError(f"{path} is not a JSON object; {remedy}")
    lacking = [key for key in _NEEDED if key not in metadata]
    if lacking:
        raise UsageError(f"{path} lacks {', '.join(lacking)}; {remedy}")
    wrong = [key for key, kind in _NEEDED.items() if not isinstance(metadata[key], kind)]
    members = {"layers": int, "sample_ids": str, **dict.fromkeys(_INDICES, int)}
    for key, kind in members.items():
        values = metadata.get(key, [])
        if key not in wrong and not (
            isinstance(values, list) and all(isinstance(value, kind) for value in values)
        ):
            wrong.append(key)
    if wrong:
        raise UsageError(
            f"{path} holds something else than it should under {', '.join(wrong)}; {remedy}"
        )
    return dict(metadata)


def load_tensor(path: Path) -> torch.Tensor:
    """A float32 tensor from a `.pt` file, mapped, never unpickling code. Raises UsageError for anything else."""
    import torch

    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError, OSError, EOFError, pickle.UnpicklingError) as error:
        reason = (
            str(error).strip().splitlines()[0][:100] if str(error).strip() else type(error).__name__
        )
        raise UsageError(
            f"{path} is not a plain tensor file ({reason}); it was not opened: move it away and write it anew"
        ) from None
    if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float32:
        found = (
            f"a {tensor.dtype} tensor"
            if isinstance(tensor, torch.Tensor)
            else f"a {type(tensor).__name__}"
        )
        raise UsageError(
            f"{path} holds {found} where a float32 tensor is expected; move it away and write it anew"
        )
    return tensor


def _check_sides(folder: Path, counts: list[int]) -> None:
    for polarity, count in zip(POLARITIES, counts, strict=True):
        if count < MIN_ROWS:
            raise NothingKeptError(
                f"{folder}: the {polarity} side kept {count} response{'s' * (count != 1)}, and vectors need at least "
                f"{MIN_ROWS} a side; generate more (--n_examples), move --threshold or mend the definition"
            )


def _check_finite(path: Path, values: np.ndarray, metadata: dict[str, Any]) -> None:
    for index, layer in enumerate(metadata["layers"]):
        bad = ~np.isfinite(values[:, index]).all(axis=1)
        if bad.any():
            row = int(bad.argmax())
            raise UsageError(
                f"{path} holds NaN or infinity in {int(bad.sum())} of {len(bad)} rows, first in row {row} (sample "
                f"{metadata['sample_ids'][row]}) at layer {layer}; capture again with --capture_dtype float32"
            )


def _read_csv(path: Path) -> list[dict[str, str]]:
    csv.field_size_limit(2**31 - 1)  # a cell may be long; the default stops at 128 kB
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _groups(
    folder: Path, metadata: dict[str, Any], sides: list[list[dict[str, str]]]
) -> tuple[np.ndarray, np.ndarray]:
    """Questions and instruction pairs of the rows, int `[n]` each."""
    texts = {
        name: [row[name] for side in sides for row in side] for name in ("question", "instruction")
    }
    if all(name in metadata for name in _INDICES):
        if any(len(metadata[name]) != len(texts["question"]) for name in _INDICES):
            raise UsageError(
                f"{folder / METADATA} does not say for every kept response which question and instruction it is of; "
                f"write it anew with: {command_on('export', folder)}"
            )
        pairs = _linked(zip(metadata["instruction_index"], texts["instruction"], strict=True))
        asked = _linked(zip(metadata["question_index"], texts["question"], strict=True))
    else:
        pairs = _linked(_defined_pairs(folder, sides))
        asked = {text: index for index, text in enumerate(dict.fromkeys(texts["question"]))}
    return (
        np.array([asked[text] for text in texts["question"]]),
        np.array([pairs[text] for text in texts["instruction"]]),
    )


def _linked(named: Iterable[tuple[int, str]]) -> dict[str, int]:
    """The group of each text: indices that share a text are one group, numbered as the first of them.

    Held out apart, the two would put the same words on both sides.
    """
    group_of: dict[str, int] = {}
    members: dict[int, int] = {}
    for index, text in dict.fromkeys(named):
        one = members.setdefault(index, index)
        other = group_of.setdefault(text, one)
        if other != one:
            low, high = sorted((one, other))
            members = {i: low if group == high else group for i, group in members.items()}
            group_of = {t: low if group == high else group for t, group in group_of.items()}
    return group_of


def _defined_pairs(folder: Path, sides: list[list[dict[str, str]]]) -> list[tuple[int, str]]:
    """Pairs with their texts by the definition, for metadata that does not number the rows' instructions."""
    path = folder / DEFINITION_FILE
    if not path.is_file():
        raise UsageError(
            f"{path} is missing, and it says which instructions belong together; put it back"
        )
    pairs = parse_definition(folder.name, path.read_bytes(), str(path)).instructions
    for side, rows in enumerate(sides):
        # --csv_safe puts an apostrophe before cells that a spreadsheet would run.
        known = {prefix + pair[side] for pair in pairs for prefix in ("'", "")}
        unknown = next(
            (row["instruction"] for row in rows if row["instruction"] not in known), None
        )
        if unknown is not None:
            raise UsageError(
                f"{path} lacks the {POLARITIES[side]} instruction {unknown[:60]!r} of the kept responses; put back the "
                "definition they were made with"
            )
    return [
        (index, prefix + text)
        for index, pair in enumerate(pairs)
        for text in pair
        for prefix in ("'", "")
    ]
