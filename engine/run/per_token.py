"""Every token's state at chosen layers of stored responses, streamed to safetensors shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import storage
from ..errors import UsageError
from ..models import (
    ModelRef,
    Shape,
    check_adapter,
    check_capture,
    check_support,
    choose_device,
    device_here,
    dtype_on,
    read_config,
)
from ..outputs import refuse_lost
from ..settings import RunSettings, check_thresholds
from ..storage import TraitFolder, TraitState, lock_traits, select
from ..threads import wait_briefly
from .folder_settings import resolve
from .remembered import CAPTURE, FILTERS
from .selection import generating_model

Notice = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TokenEstimate:
    """What a per-token capture will write."""

    responses: int
    tokens: int
    n_layers: int
    n_bytes: int


def capture_tokens(
    experiment: Path | str,
    traits: Sequence[str] | str | None = None,
    *,
    confirm: Callable[[TokenEstimate], bool] = lambda _: True,
    notice: Notice = lambda _: None,
    force_unlock: bool = False,
    **given: Any,
) -> list[str]:
    """Write `activations/per_token/` in each trait's folder; return a line for each row that
    failed.

    `given` are settings by name; `layers` is one of them. `confirm` is asked first. Run again, it
    goes on where it was. Raise UsageError with nothing written where `confirm` says no.
    """
    folders = select(experiment, traits)
    records = {name: storage.need_record(folder) for name, folder in folders.items()}
    settings, _ = resolve(folders, given, ("capture", *CAPTURE, *FILTERS))
    first = next(iter(settings.values()))
    layers = first.capture.layers
    if layers is None:
        raise UsageError(
            "states of every token need `layers` (such as 10-12): all tokens at all layers are "
            "rarely wanted"
        )
    ref = generating_model(records)
    device = choose_device(first.execution.capture_device).partition(":")[0]
    check_support(ref, captures=True, generates=False)
    check_adapter(ref)
    check_capture(ref.config, first.capture, device)
    config = read_config(ref.config)
    dtype = dtype_on(config, first.capture.dtype, device)
    for folder in folders.values():
        folder.check_writable()
    with lock_traits(list(folders.values()), force_unlock=force_unlock):
        chosen = [_chosen(folder, settings[name]) for name, folder in folders.items()]
        itemsize = 2
        if dtype == "float32":
            itemsize = 4
        n_layers = len(layers) + first.capture.include_embeddings
        tokens = sum(_tokens(state, positions) for state, positions in chosen)
        estimate = TokenEstimate(
            responses=sum(len(positions) for _, positions in chosen),
            tokens=tokens,
            n_layers=n_layers,
            n_bytes=tokens * n_layers * Shape.from_config(config).hidden * itemsize,
        )
        if not confirm(estimate):
            raise UsageError("nothing was written; name fewer `layers`")
        return _write(chosen, first, ref, folders, notice)


def _chosen(folder: TraitFolder, settings: RunSettings) -> tuple[TraitState, np.ndarray]:
    """Return which responses to capture. The folder's lock is held."""
    journaled = storage.load_state(folder).parts
    storage.replay(journaled["responses"])
    storage.replay(journaled["verdicts"])
    state = storage.load_state(folder)
    kept = settings.capture_rows == "kept"
    refuse_lost(state, {"activations"} if kept else {"activations", "verdicts", "coherence"})
    wanted = state.responses.having("ok")
    if kept:
        filters = {name: getattr(settings, name) for name in FILTERS}
        check_thresholds(settings.threshold, settings.neg_threshold)
        wanted = replace(state, choice=replace(state.choice, **filters)).passing()
    return state, np.flatnonzero(wanted)


def _tokens(state: TraitState, positions: np.ndarray) -> int:
    """Return the prompt, thought and response tokens of some responses."""
    import pyarrow.compute as pc

    columns = ["prompt_token_ids", "thought_token_ids", "response_token_ids"]
    total = 0
    for table in state.tables("responses", positions, columns):
        for name in columns:
            total += pc.sum(pc.list_value_length(table[name])).as_py() or 0
    return total


def _write(
    chosen: Sequence[tuple[TraitState, np.ndarray]],
    settings: RunSettings,
    ref: ModelRef,
    folders: Mapping[str, TraitFolder],
    notice: Notice,
) -> list[str]:
    wait_briefly()
    from ..capture.model import CaptureModel
    from ..capture.per_token import write_per_token

    model = CaptureModel(
        ref.source,
        settings.capture,
        device=device_here(ref, settings),
        revision=ref.hub_revision,
        adapter=ref.adapter.folder if ref.adapter else None,
        self_check="off",
        max_rows=settings.execution.batch_size,
        blocks=settings.execution.blocks,
    )
    faults: list[str] = []
    for folder, (state, positions) in zip(folders.values(), chosen, strict=True):
        written = write_per_token(
            model,
            list(state.read_responses(positions)),
            folder.per_token,
            revision=ref.revision,
            blocks=settings.execution.blocks,
            fault=faults.append,
        )
        notice(f"{folder.name}: {written:,} responses written to {folder.per_token}")
    return faults
