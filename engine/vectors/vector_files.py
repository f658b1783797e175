"""The files of vectors: one a vector (`.pt`), or one a method (`.safetensors`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from numpy import ndarray

from ..errors import UsageError
from ..files import write_atomic
from ..outputs import load_tensor
from ..settings import DEFAULT_POOL
from ..storage import TraitFolder, pool_suffix
from .fit import Vectors
from .methods import METHODS

Format = Literal["pt", "safetensors"]
Content = dict[tuple[str, int], dict[str, Any]]
"""What is said of each vector, by method and layer."""


def write_vectors(
    folder: TraitFolder,
    vectors: Vectors,
    format: Format = "pt",  # noqa: A002 - the option's name
    held_out: Mapping[tuple[str, int], dict[str, Any]] | None = None,
) -> list[Path]:
    """Write `vectors/<method>_layer<i>.pt` (float32 `[hidden_dim]`) with its `_metadata.json`.

    Or one `<method>.safetensors` of all layers: tensors `layer<i>`, metadata in the header. Names of
    pools other than response_mean end in `.<pool>`. `held_out` adds an evaluation's figures by
    method and layer. Files of vectors fitted to other activations than these are removed, since
    nothing would tell them apart; those of other methods and layers of these stay. Return the paths
    written.
    """
    _remove_stale(folder.vectors, vectors)
    figures = held_out or {}
    content = {
        key: {**facts, "held_out": figures.get(key)} for key, facts in vectors.metadata.items()
    }
    paths: list[Path] = []
    for method in vectors.methods:
        if format == "safetensors":
            paths.append(_write_safetensors(folder.vectors, vectors, method, content))
        else:
            paths += _write_pt(folder.vectors, vectors, method, content)
    return paths


def _write_pt(folder: Path, vectors: Vectors, method: str, content: Content) -> list[Path]:
    import torch

    paths = []
    for layer in vectors.layers:
        path, beside = _pt_paths(folder, method, layer, vectors.pool)
        buffer = BytesIO()  # a path's stem would get into the archive
        torch.save(torch.from_numpy(vectors.vector(method, layer).copy()), buffer)
        write_atomic(path, buffer.getvalue())
        write_atomic(beside, json.dumps(content[method, layer], indent=1).encode())
        paths += [path, beside]
    return paths


def _write_safetensors(folder: Path, vectors: Vectors, method: str, content: Content) -> Path:
    from safetensors.numpy import save

    path = _packed_path(folder, method, vectors.pool)
    tensors, header = {}, {"format": "pt"}
    for layer in vectors.layers:
        tensors[f"layer{layer}"] = vectors.vector(method, layer).copy()
        header[f"layer{layer}"] = json.dumps(content[method, layer])
    write_atomic(path, save(tensors, metadata=header))
    return path


def _pt_paths(folder: Path, method: str, layer: int, pool: str) -> tuple[Path, Path]:
    """Return a vector's file and that of its metadata."""
    stem = f"{method}_layer{layer}{pool_suffix(pool)}"
    return folder / f"{stem}.pt", folder / f"{stem}_metadata.json"


def _packed_path(folder: Path, method: str, pool: str) -> Path:
    return folder / f"{method}{pool_suffix(pool)}.safetensors"


def _remove_stale(folder: Path, vectors: Vectors) -> None:
    """Remove the files of this pool's vectors that were fitted to other activations."""
    current = next(iter(vectors.metadata.values()))["activations_sha256"]

    def stale(facts: dict[str, Any]) -> bool:
        # A file without these keys is not ours, whatever its name.
        ours = "activations_sha256" in facts and facts.get("pool") == vectors.pool
        return ours and facts["activations_sha256"] != current

    for beside in folder.glob(f"*_layer*{pool_suffix(vectors.pool)}_metadata.json"):
        if stale(_read_facts(beside)):
            tensor = beside.with_name(beside.name.replace("_metadata.json", ".pt"))
            tensor.unlink(missing_ok=True)
            beside.unlink()
    for method in METHODS:
        packed = _packed_path(folder, method, vectors.pool)
        if any(stale(facts) for _, facts in _read_packed(packed).values()):
            packed.unlink()


def _read_facts(path: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one where there is none that can be read."""
    try:
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(facts, dict):
        return {}
    return facts


def _read_packed(path: Path) -> dict[int, tuple[ndarray, dict[str, Any]]]:
    """Return the vectors of a `.safetensors` file with what is said of them, by layer.

    There are none where the file is missing or not one of ours.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return {}
    found = {}
    try:
        with safe_open(path, "np") as file:
            header = file.metadata()
            for name in file.keys():  # noqa: SIM118 - this object is not a mapping
                layer = int(name.removeprefix("layer"))
                found[layer] = file.get_tensor(name), dict(json.loads(header[name]))
    except (SafetensorError, ValueError, TypeError, KeyError):
        return {}
    return found


def load_vector(
    folder: TraitFolder | Path | str, method: str, layer: int, pool: str = DEFAULT_POOL
) -> tuple[ndarray, dict[str, Any]]:
    """Return one stored vector, float32 `[hidden_dim]`, and its metadata.

    Raise UsageError where there is none.
    """
    if not isinstance(folder, TraitFolder):
        folder = TraitFolder(Path(folder))
    step = folder.step("vectors", pool=pool)
    path, beside = _pt_paths(folder.vectors, method, layer, pool)
    if path.is_file():
        facts = _read_facts(beside)
        if not facts:
            raise UsageError(f"{beside} is missing or damaged; make it anew", step)
        return load_tensor(path).numpy(), facts
    packed = _read_packed(_packed_path(folder.vectors, method, pool))
    if layer not in packed:
        raise UsageError(f"{path} is missing; make it", step)
    return packed[layer]
