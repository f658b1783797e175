"""`traitmill activations --per_token`: every token's state at chosen layers, streamed to safetensors shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from engine.errors import UsageError
from engine.settings import Capture, Speed

ASK_ABOVE = 10 << 30
"""Bytes from which a person is asked first."""


def write_states(
    folders: Mapping[str, Path],
    capture: Capture,
    speed: Speed,
    *,
    rows: str,
    yes: bool,
    blocks: str | None,
    force_unlock: bool,
) -> None:
    """Estimate, ask above a limit, then write `activations/per_token/` in each trait's folder; resumable."""
    from engine.devices import Shape
    from engine.lock import lock_traits
    from engine.manifest import need_manifest
    from engine.models import find_model
    from engine.per_token import estimate_bytes
    from engine.view import load_view

    if capture.layers is None:
        raise UsageError("--per_token needs --layers (such as 10-12): all tokens at all layers are rarely wanted")
    sources = {need_manifest(folder).source_name for folder in folders.values()}
    if len(sources) > 1:
        raise UsageError(f"the traits were made with different models ({', '.join(sorted(sources))}); run them apart")
    ref = find_model(sources.pop())
    with lock_traits(list(folders.values()), force_unlock=force_unlock):
        views = [load_view(folder) for folder in folders.values()]
        chosen = [np.flatnonzero(view.passing() if rows == "kept" else view.responses.having("ok")) for view in views]
        tokens = sum(_tokens(view, positions) for view, positions in zip(views, chosen, strict=True))
        itemsize = 4 if capture.dtype == "float32" else 2
        n_layers = len(capture.layers) + capture.include_embeddings
        size = estimate_bytes(tokens, n_layers, Shape.from_config(ref.text_config).hidden, itemsize)
        click.echo(
            f"{sum(map(len, chosen)):,} responses, {tokens:,} tokens, {n_layers} layers: about {size / 2**30:.2f} GiB"
        )
        if size > ASK_ABOVE and not yes and not click.confirm("write that much?"):
            raise UsageError("nothing was written; name fewer --layers, or give --yes")
        _write(views, chosen, capture, speed, ref, blocks)


def _tokens(view: Any, positions: np.ndarray) -> int:
    import pyarrow.compute as pc

    columns = ["prompt_token_ids", "response_token_ids"]
    tables = view.store.tables(view.responses, positions, columns)
    return sum(pc.sum(pc.list_value_length(table[name])).as_py() for table in tables for name in columns)


def _write(
    views: list[Any], chosen: list[np.ndarray], capture: Capture, speed: Speed, ref: Any, blocks: str | None
) -> None:
    from engine.capture import CaptureModel
    from engine.per_token import write_per_token
    from engine.worker import capture_row

    model = CaptureModel(
        ref.source,
        capture,
        device=speed.capture_device,
        revision=ref.hub_revision,
        self_check="off",
        max_rows=speed.batch_size,
        blocks=blocks,
    )
    for view, positions in zip(views, chosen, strict=True):
        target = view.folder / "activations" / "per_token"
        responses = view.store.responses(view.name, view.responses, positions)
        written = write_per_token(model, [capture_row(response) for response in responses], target)
        click.echo(f"{view.name}: {written:,} responses written to {target}")
