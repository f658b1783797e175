"""`traitmill activations --per_token`: every token's state at chosen layers, streamed to safetensors shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from traitmill.engine.errors import ExitCode, UsageError
from traitmill.engine.settings import CaptureSettings, Execution

ASK_ABOVE = 10 << 30
"""Bytes from which a person is asked first."""


def write_states(
    folders: Mapping[str, Path],
    capture: CaptureSettings,
    execution: Execution,
    *,
    rows: str,
    yes: bool,
    blocks: str | None,
    force_unlock: bool,
) -> None:
    """Estimate, ask above a limit, then write `activations/per_token/` in each trait's folder; resumable.

    Ends the process with FAILED_SAMPLES where a row could not be written.
    """
    from traitmill.cli.session import check_capture, leave
    from traitmill.cli.stored import generating_model
    from traitmill.engine.capture.decoder import choose_device
    from traitmill.engine.capture.per_token import estimate_bytes
    from traitmill.engine.models.attention import choose_dtype, computes_bfloat16, read_config
    from traitmill.engine.models.machine import Shape
    from traitmill.engine.storage.lock import lock_traits
    from traitmill.engine.storage.run_record import need_manifest
    from traitmill.engine.storage.state import load_view

    if capture.layers is None:
        raise UsageError(
            "--per_token needs --layers (such as 10-12): all tokens at all layers are rarely wanted"
        )
    ref = generating_model(need_manifest(folder) for folder in folders.values())
    check_capture(ref, capture, execution)
    config = read_config(ref.config)
    device = choose_device(execution.capture_device).partition(":")[0]
    dtype = choose_dtype(config, capture.dtype, bfloat16=computes_bfloat16(device))
    with lock_traits(list(folders.values()), force_unlock=force_unlock):
        views = [load_view(folder) for folder in folders.values()]
        chosen = [
            np.flatnonzero(view.passing() if rows == "kept" else view.responses.having("ok"))
            for view in views
        ]
        tokens = sum(
            _tokens(view, positions) for view, positions in zip(views, chosen, strict=True)
        )
        n_layers = len(capture.layers) + capture.include_embeddings
        size = estimate_bytes(
            tokens, n_layers, Shape.from_config(config).hidden, 4 if dtype == "float32" else 2
        )
        click.echo(
            f"{sum(map(len, chosen)):,} responses, {tokens:,} tokens, {n_layers} layers: about {size / 2**30:.2f} GiB"
        )
        if size > ASK_ABOVE and not yes and not click.confirm("write that much?"):
            raise UsageError("nothing was written; name fewer --layers, or give --yes")
        faults = _write(views, chosen, capture, execution, ref, blocks)
    leave(ExitCode.FAILED_SAMPLES if faults else ExitCode.OK)


def _tokens(view: Any, positions: np.ndarray) -> int:
    import pyarrow.compute as pc

    columns = ["prompt_token_ids", "response_token_ids"]
    tables = view.store.tables(view.responses, positions, columns)
    return sum(
        pc.sum(pc.list_value_length(table[name])).as_py() for table in tables for name in columns
    )


def _write(
    views: list[Any],
    chosen: list[np.ndarray],
    capture: CaptureSettings,
    execution: Execution,
    ref: Any,
    blocks: str | None,
) -> int:
    """The number of rows that could not be written; each is named."""
    from traitmill.engine.capture.model import CaptureModel
    from traitmill.engine.capture.per_token import write_per_token
    from traitmill.engine.capture.process import capture_row

    model = CaptureModel(
        ref.source,
        capture,
        device=execution.capture_device,
        revision=ref.hub_revision,
        self_check="off",
        max_rows=execution.batch_size,
        blocks=blocks,
    )
    faults: list[str] = []

    def fault(line: str) -> None:
        faults.append(line)
        click.echo(line, err=True)

    for view, positions in zip(views, chosen, strict=True):
        target = view.folder / "activations" / "per_token"
        responses = view.store.responses(view.name, view.responses, positions)
        rows = [capture_row(response) for response in responses]
        written = write_per_token(model, rows, target, revision=ref.revision, fault=fault)
        click.echo(f"{view.name}: {written:,} responses written to {target}")
    return len(faults)
