"""How much a model's weights are: by the headers of their files, else by the hub's list of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from .config import read_config, stored_itemsize
from .download import hub_sizes, weight_files
from .hub import ModelRef
from .shape import Shape
from .support import quantised

_NOT_LOADED = "mtp."
"""In the names of layers that guess tokens ahead, which neither engine takes (Qwen3-Next)."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What the files of a model's weights hold."""

    n_bytes: int
    """0 where neither the files nor a list of them is at hand."""
    values: int
    adapter: int = 0
    """Weights of a LoRA adapter, as engines make room for them."""


def count_weights(ref: ModelRef) -> Stored | None:
    """Return what a model's weights are, its adapter's among them; None where nothing is at hand.

    Of a hub's list, and of files that are not safetensors, the values are those of config.json's
    dtype.
    """
    sizes = hub_sizes(ref)
    folder = Path(ref.source) if ref.is_local else _cached(ref)
    if sizes is None and folder is not None:
        files = (path for path in folder.iterdir() if path.is_file())
        sizes = {path.name: path.stat().st_size for path in files}
    names = _indexed(folder, weight_files(list(sizes or ())))
    total = sum((sizes or {})[name] for name in names)
    adapter = ref.adapter.values if ref.adapter else 0
    if not total:
        return Stored(0, 0, adapter) if adapter else None
    values = _values([folder / name for name in names]) if folder is not None else 0
    return Stored(total, values or total // stored_itemsize(read_config(ref.config)), adapter)


def sized(config: Mapping[str, Any], stored: Stored | None) -> Shape:
    """Return the shape of config.json's model, its weights counted rather than estimated."""
    shape = Shape.from_config(config)
    if stored is None:
        return shape
    shape = replace(shape, adapter=stored.adapter)
    if not stored.n_bytes:
        return shape
    if quantised(config):
        return replace(shape, packed=stored.n_bytes)
    return replace(shape, values=stored.values)


def _indexed(folder: Path | None, names: list[str]) -> list[str]:
    """Return those files that the index beside them names, all where there is none: a folder may
    hold shards of an older split, or an optimiser's state."""
    if folder is not None:
        for index in sorted(folder.glob("*.index.json")):
            try:
                mapped = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            except (OSError, ValueError, KeyError, AttributeError, TypeError):
                continue
            if found := [name for name in names if name in mapped]:
                return found
    return [name for name in names if name.startswith("pytorch_model")] or names


def _cached(ref: ModelRef) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(ref.source, "config.json", revision=ref.revision)
    return Path(found).parent if isinstance(found, str) else None


def _values(paths: list[Path]) -> int:
    """Return the values in safetensors files; 0 where one is none, is not here or is damaged."""
    from safetensors import SafetensorError, safe_open

    count = 0
    for path in paths:
        try:
            with safe_open(path, "np") as file:
                names = [name for name in file.keys() if _NOT_LOADED not in name]  # noqa: SIM118
                count += sum(prod(file.get_slice(name).get_shape()) for name in names)
        except (SafetensorError, OSError):
            return 0
    return count
