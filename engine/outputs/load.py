"""A trait's activations as stage 3 reads them: checked, mapped, with labels and groups."""

from __future__ import annotations

import csv
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import NothingKeptError, UsageError
from ..files import sha256_of
from ..records import POLARITIES
from ..settings import DEFAULT_POOL, check_pool, plain_arguments
from ..storage import TraitFolder
from .metadata import Metadata

if TYPE_CHECKING:
    import torch

MIN_ROWS = 2
"""Rows a side needs: with one there is no spread to set a gap against."""


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """Activations of one trait's kept responses. Rows are those of pos.csv, then of neg.csv."""

    trait: str
    values: np.ndarray
    """float32 `[n, n_layers, hidden_dim]`, residual stream units; mapped from the file."""
    labels: np.ndarray
    """bool `[n]`: True is pos."""
    questions: np.ndarray
    """int `[n]`: the question, as numbered in the definition; questions of one text are one."""
    instructions: np.ndarray
    """int `[n]`: the instruction pair, numbered likewise; pairs that share a text are one."""
    layers: tuple[int, ...]
    """The block index of each layer of `values`; -1 is the embedding output."""
    pool: str
    metadata: Metadata

    @property
    def sample_ids(self) -> list[str]:
        return self.metadata.sample_ids

    @property
    def sha256(self) -> str:
        """Of the tensor's file: what vectors and evaluations are tied to."""
        return self.metadata.tensor_sha256(self.pool) or ""

    @property
    def n_pos(self) -> int:
        return int(self.labels.sum())

    @property
    def n_neg(self) -> int:
        return len(self.labels) - self.n_pos

    def __repr__(self) -> str:
        rows = f"{self.n_pos} pos + {self.n_neg} neg"
        shape = f"{len(self.layers)} layers x {self.values.shape[2]}"
        return f"Activations({self.trait}: {rows}, {shape}, {self.pool})"

    @plain_arguments
    def rows_at(self, layer: int) -> np.ndarray:
        """Return float64 `[n, hidden_dim]`, a copy."""
        rows: np.ndarray = self.values[:, self.layers.index(layer)].astype(np.float64)
        return rows


@plain_arguments
def load_activations(folder: Path | str | TraitFolder, pool: str = DEFAULT_POOL) -> Activations:
    """Load one trait's folder, `experiments/<experiment>/<trait>`.

    The tensor is mapped, not read into memory. Raise UsageError where files are missing, foreign or
    do not fit each other, or a value is not finite; NothingKeptError where a side has fewer than 2
    rows.
    """
    if not isinstance(folder, TraitFolder):
        folder = TraitFolder(Path(folder))
    check_pool(pool)
    metadata = Metadata.read(folder)
    _check_files(folder, metadata, pool)
    sides = [_read_csv(folder.responses_csv(polarity)) for polarity in POLARITIES]
    _check_sides(folder, [len(side) for side in sides])
    values = load_tensor(folder.tensor(pool)).numpy()
    _check_shape(folder, pool, values, metadata, [len(side) for side in sides])
    _check_finite(folder.tensor(pool), values, metadata)
    rows = [row for side in sides for row in side]
    return Activations(
        trait=folder.name,
        values=values,
        labels=np.repeat([True, False], [len(side) for side in sides]),
        questions=_groups(metadata.question_index, [row["question"] for row in rows]),
        # A whole prompt, which has no instruction, stands as the question.
        instructions=_groups(
            metadata.instruction_index, [row["instruction"] or row["question"] for row in rows]
        ),
        layers=tuple(metadata.layers),
        pool=pool,
        metadata=metadata,
    )


def load_tensor(path: Path) -> torch.Tensor:
    """Return a float32 tensor from a `.pt` file, mapped. Raise UsageError; never unpickle code."""
    import torch

    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError, OSError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:100]
        raise UsageError(
            f"{path} is not a plain tensor file ({reason}); it was not opened: move it away and "
            "write it anew"
        ) from None
    found = f"a {type(tensor).__name__}"
    if isinstance(tensor, torch.Tensor):
        found = f"a {tensor.dtype} tensor"
    if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float32:
        raise UsageError(
            f"{path} holds {found} where a float32 tensor is expected; move it away and write it "
            "anew"
        )
    return tensor


def _check_files(folder: TraitFolder, metadata: Metadata, pool: str) -> None:
    """Raise UsageError where the tensor is missing, or a file is not the one described."""
    tensor = folder.tensor(pool)
    name = str(tensor.relative_to(folder.path))
    if name not in metadata.files_sha256 or not tensor.is_file():
        raise UsageError(f"{tensor} is missing; make it", folder.step("activations", pool=pool))
    for other, digest in metadata.files_sha256.items():
        path = folder.path / other
        if other != name and not other.endswith(".csv"):
            continue
        if not path.is_file() or sha256_of(path) != digest:
            raise UsageError(
                f"{path} is not the file that metadata.json describes; write both anew",
                folder.step("export"),
            )


def _check_sides(folder: TraitFolder, counts: list[int]) -> None:
    for polarity, count in zip(POLARITIES, counts, strict=True):
        if count < MIN_ROWS:
            plural = "" if count == 1 else "s"
            raise NothingKeptError(
                f"{folder.path}: the {polarity} side kept {count} response{plural}, and vectors "
                f"need at least {MIN_ROWS} a side; generate more (`n_examples`), move `threshold` "
                "or mend the definition"
            )


def _check_shape(
    folder: TraitFolder, pool: str, values: np.ndarray, metadata: Metadata, counts: list[int]
) -> None:
    """Raise UsageError where tensor, tables and metadata are not of the same rows."""
    expected = (sum(counts), len(metadata.layers), metadata.hidden_dim)
    said = [metadata.n_examples_pos, metadata.n_examples_neg]
    if values.shape != expected or counts != said:
        raise UsageError(
            f"{folder.tensor(pool)} has shape {list(values.shape)}, but metadata.json and the CSVs "
            f"say {list(expected)} ({said[0]} pos, {said[1]} neg); write them anew",
            folder.step("export"),
        )
    for name in ("sample_ids", "instruction_index", "question_index"):
        if len(getattr(metadata, name)) != len(values):
            raise UsageError(
                f"{folder.metadata} does not give the {name} of every kept response; write it anew",
                folder.step("export"),
            )


def _check_finite(path: Path, values: np.ndarray, metadata: Metadata) -> None:
    for index, layer in enumerate(metadata.layers):
        bad = ~np.isfinite(values[:, index]).all(axis=1)
        if bad.any():
            row = int(bad.argmax())
            raise UsageError(
                f"{path} holds NaN or infinity in {int(bad.sum())} of {len(bad)} rows, first in "
                f"row {row} (sample {metadata.sample_ids[row]}) at layer {layer}; capture again "
                "with `capture_dtype` float32"
            )


def _read_csv(path: Path) -> list[dict[str, str]]:
    csv.field_size_limit(2**31 - 1)  # a cell may be long; the default stops at 128 kB
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _groups(indices: Iterable[int], texts: list[str]) -> np.ndarray:
    """Return the group of each row, int `[n]`: indices that share a text are one group.

    Held out apart, the two would put the same words on both sides; blanks, capitals and a closing
    mark make no other words. A group is numbered as the first of its indices.
    """
    texts = [" ".join(text.casefold().split()).rstrip(" .?!") for text in texts]
    group_of: dict[str, int] = {}
    members: dict[int, int] = {}
    for index, text in dict.fromkeys(zip(indices, texts, strict=True)):
        one = members.setdefault(index, index)
        other = group_of.setdefault(text, one)
        if other != one:
            low, high = sorted((one, other))
            members = {i: _moved(group, high, low) for i, group in members.items()}
            group_of = {t: _moved(group, high, low) for t, group in group_of.items()}
    return np.array([group_of[text] for text in texts])


def _moved(group: int, old: int, new: int) -> int:
    if group == old:
        return new
    return group
