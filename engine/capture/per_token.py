"""Token-level activations on request: safetensors shards and an index, written as they are
computed."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ..errors import UsageError
from ..files import write_atomic
from ..records import Response
from . import decoder
from .batching import Batch, Budget, run_batches
from .model import CaptureModel
from .pooling import padded_ids
from .spread import events_of

INDEX = "index.json"
SHARD_BYTES = 256 << 20
"""Most a shard holds, and about what is in memory at a time (twice while it is written)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a row's states are: tensor `key` of `shard`, `[layers, tokens, dim]`: prompt, thought,
    response."""

    shard: str
    key: str
    prompt_tokens: int
    response_tokens: int
    """As sampled, a closing end token included."""
    thought_tokens: int = 0
    """Between prompt and response, tags included."""
    digest: str = ""
    """Of all its token ids: a sample that was lost is made anew, in other words."""


def write_per_token(
    model: CaptureModel,
    rows: Sequence[Response],
    folder: Path,
    *,
    revision: str,
    blocks: str | None = None,
    fault: Callable[[str], None],
) -> int:
    """Append the token states of `rows` to `folder`, at the layers `model` captures; return the
    rows written.

    Rows whose tokens the folder holds are not computed again, whatever trait had them. States
    are in the model's dtype, unpooled, layer convention as in CaptureModel; `revision` is the
    model's, `blocks` as it was given. A row that is not finite is left out, and `fault` is told
    which, and at what layer. A shard appears whole and the index names it afterwards, so a run cut
    off at any moment loses what was in memory and nothing else. Raises ResourceError (memory,
    disk), UsageError (the folder holds other layers).
    """
    folder.mkdir(parents=True, exist_ok=True)
    layout = _layout(model, revision, blocks)
    known = _known_rows(folder, layout)
    todo = _still_to_do(rows, known)
    numbers = itertools.count(
        1 + max((_number(each["shard"]) for each in known.values()), default=-1)
    )
    shard: dict[str, torch.Tensor] = {}
    entries: dict[str, Entry] = {}
    held = written = 0

    def flush() -> None:
        name = f"states-{next(numbers):05d}.safetensors"
        if shard:
            write_atomic(folder / name, save(shard))
        known.update({key: {**asdict(entry), "shard": name} for key, entry in entries.items()})
        write_atomic(folder / INDEX, json.dumps({**layout, "rows": known}).encode())
        shard.clear()
        entries.clear()

    for row, states in _states(model, todo):
        finite = states.isfinite().all(dim=2).all(dim=1)
        if not finite.all():
            layer = model.layers[int((~finite).nonzero()[0])]
            fault(
                f"sample {row.sample.id}: NaN or infinity at layer {layer} ({model.dtype}, "
                f"{model.attention})"
            )
            continue
        if shard and held + states.nbytes > SHARD_BYTES:
            flush()
            held = 0
        shard[_name(row)] = states
        entries[_name(row)] = _entry(row)
        held += states.nbytes
        written += 1
    if shard or read_index(folder).get("rows", {}) != known:
        flush()
    return written


def _still_to_do(rows: Sequence[Response], known: dict[str, dict[str, Any]]) -> list[Response]:
    """Return the rows whose tokens are not held; name those in `known` that are, by another name:
    of a trait whose folder was renamed."""
    held = {entry["digest"]: entry for entry in known.values() if entry.get("digest")}
    todo = []
    for row in rows:
        there = held.get(_digest(row))
        if there is None:
            todo.append(row)
        elif known.get(_name(row), {}).get("digest") != there["digest"]:
            place = {"shard": there["shard"], "key": there["key"]}
            known[_name(row)] = {**asdict(_entry(row)), **place}
    return todo


def _layout(model: CaptureModel, revision: str, blocks: str | None) -> dict[str, Any]:
    """Return what all rows of a folder have in common."""
    return {
        "layers": list(model.layers),
        "dim": model.hidden_dim,
        "dtype": model.dtype,
        "attention": model.attention,
        "revision": revision,
        "blocks": blocks,
    }


def _known_rows(folder: Path, layout: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows that a folder holds, without those whose shard is gone or damaged.

    Raises UsageError where they are of another layout.
    """
    index = read_index(folder)
    if index and {name: index.get(name) for name in layout} != layout:
        raise UsageError(
            f"{folder} holds token states of other layers or settings; move it away or choose "
            "another"
        )
    rows: dict[str, dict[str, Any]] = index.get("rows", {})
    held = {shard: _keys(folder / shard) for shard in {row["shard"] for row in rows.values()}}
    return {key: row for key, row in rows.items() if row["key"] in held[row["shard"]]}


def _keys(shard: Path) -> set[str]:
    """Return the tensors of a shard; none where it is gone, cut off or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(shard, "numpy") as file:
            return set(file.keys())
    except (OSError, SafetensorError):
        return set()


def read_index(folder: Path) -> dict[str, Any]:
    """The folder's index: layers, dim, dtype, attention, the model's revision, and rows
    (`trait/sample_id` to Entry's fields); {} if none."""
    try:
        found: dict[str, Any] = json.loads((folder / INDEX).read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        raise UsageError(
            f"{folder / INDEX} is damaged; move {folder} away to have its states captured again"
        ) from None
    return found


def _entry(row: Response) -> Entry:
    """Return where a row's states will be; the shard is known once it is written."""
    prompt, thought = len(row.sample.prompt_token_ids), len(row.thought_token_ids)
    return Entry("", _name(row), prompt, len(row.response_token_ids), thought, _digest(row))


def _number(shard: str) -> int:
    return int(shard.removesuffix(".safetensors").rpartition("-")[2])


def _digest(row: Response) -> str:
    return hashlib.sha256(repr(row.token_ids).encode()).hexdigest()[:16]


def _name(row: Response) -> str:
    return f"{row.sample.trait}/{row.sample.id}"


def _states(
    model: CaptureModel, rows: Sequence[Response]
) -> Iterator[tuple[Response, torch.Tensor]]:
    """Each row with its states `[layers, tokens, dim]` on the CPU.

    Batches of states are held in at most a shard's size. Those of a GPU travel while it runs: into
    pinned memory, which it writes to by itself, and one batch is read here while the next is under
    way.
    """
    per_token = len(model.layers) * model.hidden_dim * getattr(torch, model.dtype).itemsize
    gpu = model.input_device.type == "cuda"
    at_once = 2 if gpu else 1
    limit = max(1, min(model.budget.limit, SHARD_BYTES // at_once // per_token))
    budget = Budget(limit, max_rows=model.budget.max_rows, growth=model.budget.growth)
    lengths = [len(row.token_ids) for row in rows]

    def run(batch: Batch) -> tuple[torch.Tensor, list[Any]]:
        chosen = [rows[index] for index in batch.indices]
        ids = padded_ids([row.token_ids for row in chosen], batch.width)
        held = torch.empty(
            len(model.layers),  # first, since only what lies in one piece travels by itself
            len(chosen),
            batch.width,
            model.hidden_dim,
            dtype=getattr(torch, model.dtype),
            pin_memory=gpu,
        )
        model.forward(
            ids,
            model.layers,
            lambda slot, hidden: held[slot].copy_(hidden, non_blocking=True),
        )
        return held, events_of(model.devices)

    under_way: deque[tuple[Batch, torch.Tensor, list[Any]]] = deque()
    batches = run_batches(lengths, budget, run, decoder.is_out_of_memory, together=model.together)
    for batch, (held, events) in batches:
        under_way.append((batch, held, events))
        if len(under_way) == at_once:
            yield from _arrived(rows, lengths, *under_way.popleft())
    while under_way:
        yield from _arrived(rows, lengths, *under_way.popleft())


def _arrived(
    rows: Sequence[Response],
    lengths: Sequence[int],
    batch: Batch,
    held: torch.Tensor,
    events: Sequence[Any],
) -> Iterator[tuple[Response, torch.Tensor]]:
    """Wait for a batch's states, then yield each row's."""
    for event in events:
        event.synchronize()
    for place, index in enumerate(batch.indices):
        yield rows[index], held[:, place, : lengths[index]].clone()
