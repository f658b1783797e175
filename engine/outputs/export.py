"""Parquet to the documented files: a pure function of the records and the view settings, byte for byte."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ..errors import UsageError
from ..files import TEMP_SUFFIX, atomic_file, naming_full_disk, sha256_of, write_atomic
from ..judging.scoring import auroc_interval, histogram
from ..records import POLARITIES, Polarity
from ..settings import POOLS
from ..storage.experiment import command_on
from ..storage.index import PENDING
from ..storage.run_record import SCHEMA_VERSION
from ..storage.state import TraitView

if TYPE_CHECKING:
    from collections.abc import Iterator

CSV_COLUMNS = ("question", "instruction", "prompt", "response", "trait_score")
METADATA = Path("activations") / "metadata.json"
LAYER_CONVENTION = (
    "index i is the residual stream leaving decoder block i (0-based), before the final norm; "
    "-1, where present, is the embedding output"
)
POOLING = {
    "response_mean": "mean over the response's tokens with the prompt as context, in float32; a closing end token does "
    "not count",
    "response_last": "the response's last token with the prompt as context; a closing end token does not count",
    "prompt_mean": "mean over the prompt's tokens, in float32",
    "prompt_last": "the prompt's last token",
}
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote."""

    kept: dict[Polarity, int]
    excluded: int
    """Passing responses left out because their capture failed."""
    uncaptured: int
    """Kept responses never captured; above 0 there are CSVs and no activations."""
    files: tuple[Path, ...]
    shape: tuple[int, ...] | None
    """Of all_layers.pt, None without activations."""


def tensor_path(pool: str) -> Path:
    """Where a pool's tensor stands in a trait's folder."""
    return Path("activations") / (
        "all_layers.pt" if pool == "response_mean" else f"all_layers.{pool}.pt"
    )


def require_captured(view: TraitView) -> None:
    """Raise UsageError when some kept responses' activations are stored and others were never captured."""
    missing = view.kept_uncaptured()
    if missing and view.any_captured():
        raise UsageError(
            f"{view.folder}: {missing} of {int(view.passing().sum())} kept responses have no activations yet; capture "
            f"them with: {command_on('activations', view.folder)}"
        )


def export_trait(view: TraitView, *, without_uncaptured: bool = False) -> Exported:
    """Write pos.csv, neg.csv and, where activations are captured, the tensors and then metadata.json.

    Raises UsageError, with nothing written, when kept responses were not captured yet (unless `without_uncaptured`:
    then the CSVs are written and activations of another selection removed); ResourceError when the disk is full.
    """
    uncaptured = view.kept_uncaptured() if view.any_captured() else 0
    if not without_uncaptured:
        require_captured(view)
    passing = view.passing()
    with_activations = view.any_captured() and not uncaptured
    kept = (
        np.flatnonzero(passing & ~view.capture_failed())
        if with_activations
        else np.flatnonzero(passing)
    )
    files = []
    counts: dict[Polarity, int] = {}
    for polarity in POLARITIES:
        side = kept[view.side(polarity)[kept]]
        counts[polarity] = len(side)
        path = Path("responses") / f"{polarity}.csv"
        with atomic_file(view.folder / path) as file:
            _write_csv(file, view, side)
        files.append(path)
    shape = None
    if with_activations:
        for pool in view.activations:
            files.append(tensor_path(pool))
            shape = _write_tensor(view, pool, kept)
        metadata = _metadata(view, kept, counts, shape or (), files)
        write_atomic(
            view.folder / METADATA, json.dumps(metadata, indent=1, ensure_ascii=False).encode()
        )
        files.append(METADATA)
    _remove_stale(view, files)
    excluded = int(passing.sum()) - len(kept)
    return Exported(
        counts, excluded, uncaptured, tuple(view.folder / path for path in files), shape
    )


def _remove_stale(view: TraitView, files: list[Path]) -> None:
    """Tensors of another capture setting would not fit the new CSVs."""
    for path in map(tensor_path, POOLS):
        if path not in files:
            (view.folder / path).unlink(missing_ok=True)
    if METADATA not in files:
        (view.folder / METADATA).unlink(missing_ok=True)


def _write_csv(file: BinaryIO, view: TraitView, positions: np.ndarray) -> None:
    safe = bool(view.manifest.settings["view"]["csv_safe"])
    file.write((",".join(CSV_COLUMNS) + "\n").encode())
    done = 0
    for table in view.store.tables(view.responses, positions, list(CSV_COLUMNS[:-1])):
        columns = [table[name].to_pylist() for name in CSV_COLUMNS[:-1]]
        scores = view.verdicts.score[positions[done : done + table.num_rows]]
        done += table.num_rows
        for *cells, score in zip(*columns, scores, strict=True):
            line = [*(_cell(cell, safe=safe) for cell in cells), format_score(score)]
            file.write((",".join(line) + "\n").encode())


def _cell(text: str, *, safe: bool) -> str:
    """Quote only where needed. Written here since csv.writer leaves a lone carriage return bare before Python 3.13."""
    if safe and text.startswith(_FORMULA_STARTS):
        text = "'" + text
    if any(character in text for character in ',"\n\r'):
        return '"' + text.replace('"', '""') + '"'
    return text


def format_score(score: float) -> str:
    """At most two decimals, no trailing zeros."""
    return f"{score:.2f}".rstrip("0").rstrip(".")


def _blocks(view: TraitView, pool: str, positions: np.ndarray) -> Iterator[np.ndarray]:
    index = view.activations[pool]
    for table in view.store.tables(index, positions, ["layers", "dim", "values"]):
        n_layers, dim = len(table["layers"][0]), table["dim"][0].as_py()
        values = table["values"].combine_chunks()
        width = values.type.byte_width
        flat = np.frombuffer(
            values.buffers()[1], "<f4", len(values) * width // 4, values.offset * width
        )
        yield flat.reshape(len(values), n_layers, dim)


def _write_tensor(view: TraitView, pool: str, positions: np.ndarray) -> tuple[int, ...]:
    """Assemble `[n_kept, n_layers, dim]` float32 through a mapped scratch file, so that it is never held in memory."""
    import torch

    facts = view.manifest.captures[view.manifest.capture_key]
    shape = (len(positions), len(facts["layers"]), int(facts["hidden_dim"]))
    path = view.folder / tensor_path(pool)
    path.parent.mkdir(exist_ok=True)
    scratch = path.with_name(f".{path.name}.raw{TEMP_SUFFIX}")
    try:
        with naming_full_disk(scratch), scratch.open("wb") as raw:
            for block in _blocks(view, pool, positions):
                raw.write(block.data)
        n = len(positions)
        mapped = np.memmap(scratch, "<f4", "r+", shape=shape) if n else np.zeros(shape, np.float32)
        with atomic_file(
            path
        ) as file:  # a file object: torch writes a path's stem into the archive
            torch.save(torch.from_numpy(mapped), file)
    finally:
        scratch.unlink(missing_ok=True)
    return shape


def _metadata(
    view: TraitView,
    kept: np.ndarray,
    counts: dict[Polarity, int],
    shape: tuple[int, ...],
    files: list[Path],
) -> dict[str, Any]:
    manifest = view.manifest
    facts = manifest.captures[manifest.capture_key]
    sampling, pools = manifest.settings["identity"], list(view.activations)
    return {
        "schema_version": SCHEMA_VERSION,
        "model": sampling["model"],
        "revision": sampling["revision"],
        "trait": view.name,
        "n_examples": len(kept),
        "n_examples_pos": counts["pos"],
        "n_examples_neg": counts["neg"],
        "n_excluded": int((view.passing() & view.capture_failed()).sum()),
        "n_layers": shape[1],
        "hidden_dim": shape[2],
        "layers": facts["layers"],
        "layer_convention": LAYER_CONVENTION,
        "storage_type": "token_averaged"
        if any(pool.endswith("_mean") for pool in pools)
        else "single_token",
        "pooling": POOLING[pools[0]]
        if len(pools) == 1
        else "; ".join(f"{pool}: {POOLING[pool]}" for pool in pools),
        "pools": pools,
        "threshold": view.threshold,
        "batch_size": facts.get("batch_size"),
        "dtype": facts.get("dtype"),
        "attention": facts.get("attention"),
        "placement": facts.get("placement"),
        "extraction_date": facts["date"],
        "sampling": {
            name: sampling[name]
            for name in ("temperature", "top_p", "top_k", "max_new_tokens", "seed", "dtype")
        },
        "judge": judge_summary(view),
        "counts": view.counts(),
        "cost": judge_usage(view),
        "self_check": facts.get("self_check"),
        "versions": manifest.versions | facts.get("versions", {}),
        "files_sha256": {str(path): sha256_of(view.folder / path) for path in files},
        "sample_ids": [view.plan.ids[position].decode() for position in kept],
        "instruction_index": view.plan.instruction_index[kept].tolist(),
        "question_index": view.plan.question_index[kept].tolist(),
    }


def judge_usage(view: TraitView) -> dict[str, int]:
    """What the verdicts in use took: calls and tokens, as their rows counted them. Dollars depend on a price list."""
    columns = {
        "attempts": "calls",
        "input_tokens": "input tokens",
        "output_tokens": "output tokens",
    }
    columns |= {"hidden_tokens": "of them hidden"}
    judged = np.flatnonzero(view.verdicts.status != PENDING)
    total = dict.fromkeys(columns.values(), 0)
    for table in view.store.tables(view.verdicts, judged, list(columns)):
        for column, name in columns.items():
            total[name] += int(table[column].to_numpy().sum())
    return total


def measurements(view: TraitView) -> list[str]:
    """How the scores in use were measured: `integer`, `expected` or `local_relative`. One, once there are scores."""
    import pyarrow.compute as pc

    found: set[str] = set()
    for table in view.store.columns("verdicts", ["judge_key", "status", "mode"]):
        used = pc.and_(
            pc.equal(table["judge_key"], view.manifest.judge_key),
            pc.equal(table["status"], "scored"),
        )
        found.update(table["mode"].filter(used).unique().to_pylist())
    return sorted(found)


def judge_summary(view: TraitView) -> dict[str, Any]:
    """Which judge and measurement, and how well its scores tell the sides apart (all scored responses, kept or not)."""
    facts = view.manifest.judges.get(view.manifest.judge_key, {})
    pos, neg = view.scores("pos"), view.scores("neg")
    out: dict[str, Any] = {
        "model": facts.get("model"),
        "mode": "+".join(measurements(view)) or None,
        "mode_asked": facts.get("mode"),
        "kind": facts.get("kind"),
        "offset": facts.get("offset"),
        "key": view.manifest.judge_key,
        "histogram": {"pos": histogram(pos.tolist()), "neg": histogram(neg.tolist())},
        "auroc": None,
        "auroc_interval": None,
    }
    if len(pos) and len(neg):
        estimate, low, high = auroc_interval(pos.tolist(), neg.tolist())
        out["auroc"], out["auroc_interval"] = round(estimate, 4), [round(low, 4), round(high, 4)]
    return out
