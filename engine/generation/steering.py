"""A vector added to the residual stream, or taken out, while vLLM generates; a worker's own part.

Each request says in `extra_args` which vector, how much of it and at which positions, so that one
batch holds requests of many coefficients beside unsteered ones. A block of vLLM's returns a pair
`(hidden, residual)` whose sum is the stream, or the stream first: what is added to the first moves
the stream by as much. A vector is added where its own block ends; a direction is taken out of the
stream where any block ends, else the next would write it anew. Hooks do not run in compiled or
captured graphs, so the engine is eager.

Which rows of a step belong to which request is read where vLLM's runner has just decided it. Its V1
runner keeps that in `input_batch`; its V2 runner returns it from `prepare_inputs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from .stream import find_blocks, stream_is_sum

ASKED = "traitmill_steering"
"""The key in `SamplingParams.extra_args` of (name, vector, coefficient, first, end, ablates)."""
Asked = tuple[str, int, float, int, int, bool]
"""A request's own name, the vector's number, its coefficient, the positions first to end - 1 that
are steered, and whether the vector's direction is taken out at all blocks, not added at its own."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one request in a step: its tokens from a position on, one after the other."""

    asked: Asked
    start: int
    """The first of its rows in the batch."""
    count: int
    position: int
    """That row's position in the request's tokens, 0 being the prompt's first."""


@dataclass(frozen=True, slots=True)
class _Addition:
    """What is added at one layer in one step."""

    rows: torch.Tensor
    """int64 `[n]`, on the device."""
    which: torch.Tensor
    """int64 `[n]`: the number of each row's vector."""
    coefficients: torch.Tensor
    """float32 `[n, 1]`."""
    ablates: torch.Tensor | None
    """bool `[n, 1]`: of which rows the vector's direction is taken out; None of none."""
    spans: tuple[tuple[str, int, int], ...]
    """Name of a request, and the positions first to end - 1 of it that are moved."""


class Steering:
    """Vectors at some blocks of a model, and what has been added for which request."""

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self.blocks, self._device = blocks, device
        self._vectors = torch.empty(0)
        """float32 `[n_vectors, hidden_dim]`."""
        self._layers: list[int] = []
        """Of each vector: the block that it is added at."""
        self.sums = True
        """Whether the stream is the sum of a pair that blocks return; else it is the first."""
        self._step: dict[int, _Addition] = {}
        self._moved: dict[str, dict[int, tuple[int, int, int]]] = {}
        """Of each request by block: the first position moved, the end, how many different ones."""
        for layer, block in enumerate(blocks):
            block.register_forward_hook(self._hook(layer))

    def load(self, vectors: Sequence[tuple[int, np.ndarray]]) -> None:
        """Take the place of the vectors before: (layer, float32 `[hidden_dim]`), by number."""
        self._layers = [layer for layer, _ in vectors]
        self._vectors = torch.from_numpy(np.stack([v for _, v in vectors])).to(self._device)

    def begin(self, step: Iterable[Rows]) -> None:
        """Take what the next forward is to add."""
        parts: dict[int, list[tuple[np.ndarray, Asked, int, int]]] = {}
        for each in step:
            _, _, _, first, end, _ = each.asked
            low = max(first, each.position)
            high = min(end, each.position + each.count)
            if low < high:
                begin = each.start + low - each.position
                part = (np.arange(begin, begin + high - low), each.asked, low, high)
                for layer in self._where(each.asked):
                    parts.setdefault(layer, []).append(part)
        self._step = {layer: self._addition(found) for layer, found in parts.items()}

    def _where(self, asked: Asked) -> Sequence[int]:
        _, vector, _, _, _, ablates = asked
        return range(len(self.blocks)) if ablates else (self._layers[vector],)

    def _addition(self, found: list[tuple[np.ndarray, Asked, int, int]]) -> _Addition:
        counts = [len(rows) for rows, *_ in found]
        which = np.repeat([asked[1] for _, asked, *_ in found], counts)
        coefficients = np.repeat([asked[2] for _, asked, *_ in found], counts)
        ablates = np.repeat([asked[5] for _, asked, *_ in found], counts)[:, None]
        return _Addition(
            rows=self._on_device(np.concatenate([rows for rows, *_ in found])),
            which=self._on_device(which),
            coefficients=self._on_device(coefficients.astype(np.float32)[:, None]),
            ablates=self._on_device(ablates) if ablates.any() else None,
            spans=tuple((asked[0], low, high) for _, asked, low, high in found),
        )

    def _on_device(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device, non_blocking=True)

    def end(self) -> None:
        """Add nothing to what runs next: vLLM's own trial runs are no requests."""
        self._step = {}

    def _hook(self, layer: int) -> Callable[[nn.Module, Any, Any], Any]:
        def add(_block: nn.Module, _inputs: Any, output: Any) -> Any:
            addition = self._step.get(layer)
            if addition is None:
                return None
            pair = output if isinstance(output, tuple) else (output,)
            moved = self._added(pair[0], pair[1] if self.sums and pair[1:] else None, addition)
            for name, low, high in addition.spans:
                self._note(name, layer, low, high)
            return (moved, *pair[1:]) if isinstance(output, tuple) else moved

        return add

    def _added(
        self, hidden: torch.Tensor, residual: torch.Tensor | None, addition: _Addition
    ) -> torch.Tensor:
        """Return `[tokens, hidden_dim]` with c * v added in float32 to the rows of an addition.

        Where v's direction is taken out, c is minus the asked share of the stream along it.
        """
        vectors, weights = self._vectors[addition.which], addition.coefficients
        rows = hidden.index_select(0, addition.rows).float()
        if addition.ablates is not None:
            stream = rows
            if residual is not None:
                stream = rows + residual.index_select(0, addition.rows).float()
            along = (stream * vectors).sum(-1, keepdim=True) / (vectors**2).sum(-1, keepdim=True)
            weights = torch.where(addition.ablates, -weights * along, weights)
        rows = rows + weights * vectors
        return hidden.index_copy(0, addition.rows, rows.to(hidden.dtype))

    def _note(self, name: str, layer: int, low: int, high: int) -> None:
        moved = self._moved.setdefault(name, {})
        first, end, count = moved.get(layer, (low, low, 0))
        # A request that had to make room is computed again from its start.
        new = max(0, high - max(low, end))
        moved[layer] = (min(first, low), max(end, high), count + new)

    def take(self, name: str, *, ablates: bool) -> tuple[int, int, int]:
        """Return the first and the end of a request's positions that were moved, and how many.

        They are those moved at every block that was to move them; (0, 0, 0) where there is none.
        The request is forgotten.
        """
        moved = self._moved.pop(name, {})
        if not moved or (ablates and len(moved) < len(self.blocks)):
            return (0, 0, 0)
        firsts, ends, counts = zip(*moved.values(), strict=True)
        return max(firsts), min(ends), min(counts)


class SteeringExtension:
    """Mixed into vLLM's worker. What it offers is called on every worker by `collective_rpc`."""

    model_runner: Any
    execute_dummy_batch: Callable[[], None]

    def load_steering(self, vectors: list[tuple[int, bytes]]) -> str:
        """Take the vectors of the requests to come: (layer, float32 bytes), by their number.

        Return why they cannot be added here, in words; empty where they can.
        """
        steering = getattr(self, "_steering", None)
        if steering is None:
            runner = self.model_runner
            found = find_blocks(runner.get_model(), runner.model_config.hf_text_config)
            if isinstance(found, str):
                return found
            steering = Steering(found, runner.device)
            refused = _attach(runner, steering)
            if refused:
                return refused
            self._steering = steering
        steering.load([(layer, np.frombuffer(data, np.float32).copy()) for layer, data in vectors])
        return ""

    def learn_stream(self) -> str:
        """Find out what a direction is to be taken out of, in a trial run; no request may run.

        Return why it cannot be told, in words; empty where it can.
        """
        found = stream_is_sum(self._steering.blocks, self.execute_dummy_batch)
        if isinstance(found, str):
            return found
        self._steering.sums = found
        return ""

    def take_steered(self, name: str, ablates: bool) -> list[int]:
        """Return what `Steering.take` does."""
        return list(self._steering.take(name, ablates=ablates))


def _attach(runner: Any, steering: Steering) -> str:
    """Have a runner tell `steering` of each step. Return why that cannot be, in words."""
    if hasattr(runner, "_prepare_inputs") and hasattr(runner, "requests"):
        _before_forward(runner, steering, "_prepare_inputs", _rows_v1(runner))
    elif hasattr(runner, "prepare_inputs") and hasattr(runner, "add_requests"):
        _before_forward(runner, steering, "prepare_inputs", _rows_v2(runner))
    else:
        return f"vLLM's {type(runner).__module__} keeps its requests where they are not found"
    execute = runner.execute_model

    def execute_model(*arguments: Any, **named: Any) -> Any:
        try:
            return execute(*arguments, **named)
        finally:
            steering.end()

    runner.execute_model = execute_model
    return ""


def _before_forward(
    runner: Any, steering: Steering, name: str, rows: Callable[[Any], Iterable[Rows]]
) -> None:
    """After the method that decides a step's rows, tell `steering` which they are."""
    prepare = getattr(runner, name)

    def prepared(*arguments: Any, **named: Any) -> Any:
        found = prepare(*arguments, **named)
        steering.begin(rows(found))
        return found

    setattr(runner, name, prepared)


def _rows_v1(runner: Any) -> Callable[[Any], Iterator[Rows]]:
    def rows(_: Any) -> Iterator[Rows]:
        batch = runner.input_batch
        starts = runner.query_start_loc.np
        for index in range(batch.num_reqs):
            parameters = runner.requests[batch.req_ids[index]].sampling_params
            asked = _asked(parameters)
            if asked is not None:
                start = int(starts[index])
                position = int(batch.num_computed_tokens_cpu[index])
                yield Rows(asked, start, int(starts[index + 1]) - start, position)

    return rows


def _rows_v2(runner: Any) -> Callable[[Any], Iterator[Rows]]:
    known: dict[str, Asked] = {}
    """By the id that vLLM gives a request."""
    add = runner.add_requests

    def add_requests(scheduled: Any) -> None:
        for name in scheduled.finished_req_ids:
            known.pop(name, None)
        for request in scheduled.scheduled_new_reqs:
            asked = _asked(request.sampling_params)
            if asked is not None:
                known[request.req_id] = asked
        add(scheduled)

    runner.add_requests = add_requests

    def rows(batch: Any) -> Iterator[Rows]:
        starts = batch.query_start_loc_np
        for index, name in enumerate(batch.req_ids):
            asked = known.get(name)
            if asked is not None:
                start = int(starts[index])
                position = int(batch.num_computed_tokens_np[index])
                yield Rows(asked, start, int(starts[index + 1]) - start, position)

    return rows


def _asked(parameters: Any) -> Asked | None:
    found = ((parameters and parameters.extra_args) or {}).get(ASKED)
    if found is None:
        return None
    name, vector, coefficient, first, end, ablates = found
    return str(name), int(vector), float(coefficient), int(first), int(end), bool(ablates)
