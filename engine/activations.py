"""A trait's activations as stage 3 reads them: checked against metadata and CSVs, mapped, with labels and groups."""

from __future__ import annotations

import csv
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import NothingKeptError, UsageError
from .export import METADATA, tensor_path
from .files import sha256_of
from .records import POLARITIES
from .settings import POOLS
from .traits import DEFINITION_FILE, Trait, parse_definition

if TYPE_CHECKING:
    import torch

DEFAULT_POOL = "response_mean"
MIN_ROWS = 2
"""Rows a side needs: with one there is no spread to set a gap against."""
_NEEDED = (
    "model",
    "n_examples_pos",
    "n_examples_neg",
    "layers",
    "hidden_dim",
    "files_sha256",
    "sample_ids",
    "extraction_date",
)


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """Activations of one trait's kept responses. Rows are those of pos.csv, then of neg.csv."""

    trait: str
    values: np.ndarray
    """float32 `[n, n_layers, hidden_dim]`, residual stream units; mapped from the file, read-only."""
    labels: np.ndarray
    """bool `[n]`: True is pos."""
    questions: np.ndarray
    """int `[n]`: index of the row's question among those kept."""
    instructions: np.ndarray
    """int `[n]`: the instruction pair, as numbered in the definition."""
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
        raise UsageError(f"{path} is missing; make it with: {_capture_command(folder)} --pool {pool}")
    for name, digest in metadata["files_sha256"].items():
        wanted = name == str(tensor_path(pool)) or name.endswith(".csv")
        if wanted and (not (folder / name).is_file() or sha256_of(folder / name) != digest):
            raise UsageError(
                f"{folder / name} is not the file that {METADATA} describes; write both anew with: "
                f"{_capture_command(folder)}"
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
            f"({counts[0]} pos, {counts[1]} neg); write them anew with: {_capture_command(folder)}"
        )
    _check_finite(path, values, metadata)
    rows = [row for side in sides for row in side]
    questions: dict[str, int] = {}
    return Activations(
        trait=folder.name,
        values=values,
        labels=np.repeat([True, False], [len(side) for side in sides]),
        questions=np.array([questions.setdefault(row["question"], len(questions)) for row in rows]),
        instructions=_instruction_pairs(folder, sides),
        layers=tuple(metadata["layers"]),
        pool=pool,
        metadata=metadata,
    )


def read_metadata(folder: Path) -> dict[str, Any]:
    """metadata.json with the keys stage 3 needs. Raises UsageError, naming the command that makes it."""
    path = folder / METADATA
    try:
        metadata = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{folder} has no activations; make them with: {_capture_command(folder)}") from None
    except ValueError:
        raise UsageError(f"{path} is not valid JSON; write it anew with: {_capture_command(folder)}") from None
    lacking = [key for key in _NEEDED if not isinstance(metadata, dict) or key not in metadata]
    if lacking:
        raise UsageError(f"{path} lacks {', '.join(lacking)}; write it anew with: {_capture_command(folder)}")
    return dict(metadata)


def load_tensor(path: Path) -> torch.Tensor:
    """A float32 tensor from a `.pt` file, mapped, never unpickling code. Raises UsageError for anything else."""
    import torch

    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError, OSError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0][:100] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"{path} is not a plain tensor file ({reason}); it was not opened: move it away and write it anew"
        ) from None
    if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float32:
        found = f"a {tensor.dtype} tensor" if isinstance(tensor, torch.Tensor) else f"a {type(tensor).__name__}"
        raise UsageError(f"{path} holds {found} where a float32 tensor is expected; move it away and write it anew")
    return tensor


def _capture_command(folder: Path) -> str:
    return f"traitmill activations --experiment {folder.parent.name} --trait {folder.name}"


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
                f"{metadata['sample_ids'][row]}) at layer {layer}; capture again with --dtype float32"
            )


def _read_csv(path: Path) -> list[dict[str, str]]:
    csv.field_size_limit(2**31 - 1)  # a cell may be long; the default stops at 128 kB
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _instruction_pairs(folder: Path, sides: list[list[dict[str, str]]]) -> np.ndarray:
    path = folder / DEFINITION_FILE
    if not path.is_file():
        raise UsageError(f"{path} is missing, and it says which instructions belong together; put it back")
    trait = parse_definition(folder.name, path.read_bytes(), str(path))
    return np.concatenate([_pairs_of_side(trait, path, polarity, rows) for polarity, rows in enumerate(sides)])


def _pairs_of_side(trait: Trait, path: Path, side: int, rows: list[dict[str, str]]) -> np.ndarray:
    # --csv_safe puts an apostrophe before cells that a spreadsheet would run.
    known = {prefix + pair[side]: index for index, pair in enumerate(trait.instructions) for prefix in ("'", "")}
    unknown = next((row["instruction"] for row in rows if row["instruction"] not in known), None)
    if unknown is not None:
        raise UsageError(
            f"{path} lacks the {POLARITIES[side]} instruction {unknown[:60]!r} of the kept responses; put back the "
            "definition they were made with"
        )
    return np.array([known[row["instruction"]] for row in rows])
