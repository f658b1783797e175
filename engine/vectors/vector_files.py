"""The files of vectors: one a vector (`.pt`), or one a method (`.safetensors`)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy import ndarray

from ..errors import Step, UsageError
from ..files import write_atomic
from ..outputs import load_tensor
from ..settings import DEFAULT_POOL, check_pool, plain_arguments
from ..storage import TraitFolder, pool_suffix
from .fit import Vectors
from .methods import METHODS, check_methods

Format = Literal["pt", "safetensors"]
Facts = dict[str, Any]
"""What is known of a vector."""
WRITERS = 8
"""Files written side by side."""


def write_vectors(
    folder: TraitFolder,
    vectors: Vectors,
    format: Format = "pt",  # noqa: A002 - the option's name
    held_out: Mapping[tuple[str, int], Facts] | None = None,
) -> list[Path]:
    """Write `vectors/<method>_layer<i>.pt` (float32 `[hidden_dim]`) with its `_metadata.json`.

    Or one `<method>.safetensors` of the layers: tensors `layer<i>`, metadata in the header. Names
    of pools other than response_mean end in `.<pool>`. `held_out` adds an evaluation's figures by
    method and layer. Files of vectors fitted to other activations than these are removed, since
    nothing would tell them apart. Return the paths written.
    """
    _remove_stale(folder.vectors, vectors)
    made: list[tuple[Path, bytes]] = []
    for method in vectors.methods:
        described = {}
        for layer in vectors.layers:
            figures = (held_out or {}).get((method, layer))
            described[layer] = {**vectors.metadata[method, layer], "held_out": figures}
        files = _packed if format == "safetensors" else _separate
        made += files(folder.vectors, vectors, method, described)
    paths, contents = zip(*made, strict=True)
    # Each file waits for the disk; side by side they share its commits.
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write_atomic, paths, contents))
    _remove_other_format(folder.vectors, vectors, format)
    return list(paths)


def _separate(
    folder: Path, vectors: Vectors, method: str, described: Mapping[int, Facts]
) -> Iterator[tuple[Path, bytes]]:
    import torch

    for layer, facts in described.items():
        path, beside = _pt_paths(folder, method, layer, vectors.pool)
        buffer = BytesIO()  # a path's stem would get into the archive
        torch.save(torch.from_numpy(vectors.vector(method, layer).copy()), buffer)
        yield path, buffer.getvalue()
        yield beside, json.dumps(facts, indent=1).encode()


def _packed(
    folder: Path, vectors: Vectors, method: str, described: Mapping[int, Facts]
) -> Iterator[tuple[Path, bytes]]:
    from safetensors.numpy import save

    tensors, header = {}, {"format": "pt"}
    for layer, facts in described.items():
        tensors[f"layer{layer}"] = vectors.vector(method, layer).copy()
        header[f"layer{layer}"] = json.dumps(facts)
    yield _packed_path(folder, method, vectors.pool), save(tensors, metadata=header)


def _pt_paths(folder: Path, method: str, layer: int, pool: str) -> tuple[Path, Path]:
    stem = f"{method}_layer{layer}{pool_suffix(pool)}"
    return folder / f"{stem}.pt", folder / f"{stem}_metadata.json"


def _pt_files(folder: Path, pool: str) -> list[tuple[str, int, Path, Path]]:
    """Return method, layer and both paths of each `.pt` of a pool that has a name of ours."""
    named = re.compile(rf"([a-z_]+)_layer(-?[0-9]+){re.escape(pool_suffix(pool))}\.pt")
    found = []
    for path in sorted(folder.glob("*.pt")):
        match = named.fullmatch(path.name)
        if match and match[1] in METHODS:
            method, layer = match[1], int(match[2])
            found.append((method, layer, *_pt_paths(folder, method, layer, pool)))
    return found


def _packed_path(folder: Path, method: str, pool: str) -> Path:
    return folder / f"{method}{pool_suffix(pool)}.safetensors"


def _remove_stale(folder: Path, vectors: Vectors) -> None:
    """Remove the files of this pool's vectors that were fitted to other activations."""
    current = next(iter(vectors.metadata.values()))["activations_sha256"]
    for beside in folder.glob("*_layer*_metadata.json"):
        facts = _read_facts(beside)
        # A file without these keys is not ours, whatever its name.
        made_from = facts.get("activations_sha256", current)
        if facts.get("pool") == vectors.pool and made_from != current:
            tensor = beside.with_name(beside.name.replace("_metadata.json", ".pt"))
            tensor.unlink(missing_ok=True)
            beside.unlink()
    for method in METHODS:
        path = _packed_path(folder, method, vectors.pool)
        found = _read_packed(path).values()
        if any(facts.get("activations_sha256") != current for _, facts in found):
            path.unlink()


def _remove_other_format(folder: Path, vectors: Vectors, written: Format) -> None:
    """Remove what the same vectors stood in before: two files of one vector may differ."""
    for method in vectors.methods:
        if written == "safetensors":
            for layer in vectors.layers:
                for path in _pt_paths(folder, method, layer, vectors.pool):
                    path.unlink(missing_ok=True)
        elif set(packed_facts(folder, method, vectors.pool)) <= set(vectors.layers):
            _packed_path(folder, method, vectors.pool).unlink(missing_ok=True)


def _read_facts(path: Path) -> Facts:
    """Return a JSON object; an empty one where there is none that can be read."""
    try:
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _read_packed(path: Path) -> dict[int, tuple[ndarray, Facts]]:
    """Return a `.safetensors` file's vectors by layer; none where it is missing or not ours."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            facts = _packed_facts(file)
            return {layer: (file.get_tensor(f"layer{layer}"), facts[layer]) for layer in facts}
    except (OSError, SafetensorError, ValueError, TypeError, KeyError):
        return {}


def _packed_facts(file: Any) -> dict[int, Facts]:
    header, found = file.metadata(), {}
    for name in file.keys():  # noqa: SIM118 - this object is not a mapping
        found[int(name.removeprefix("layer"))] = dict(json.loads(header[name]))
    return found


def packed_facts(folder: Path, method: str, pool: str) -> dict[int, Facts]:
    """Return what is known by layer of a method's `.safetensors` file, from its header alone."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(_packed_path(folder, method, pool), "np") as file:
            return _packed_facts(file)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError):
        return {}


def stored_facts(folder: Path, pool: str) -> dict[tuple[str, int], Facts]:
    """Return what is known of each vector in a folder, by method and layer, ascending.

    One of which nothing can be read is none: it cannot be told what it was fitted to.
    """
    found: dict[tuple[str, int], Facts] = {}
    for method in METHODS:
        for layer, facts in packed_facts(folder, method, pool).items():
            found[method, layer] = facts
    for method, layer, _, beside in _pt_files(folder, pool):
        if facts := _read_facts(beside):
            found[method, layer] = facts
    order = list(METHODS)
    return dict(sorted(found.items(), key=lambda each: (order.index(each[0][0]), each[0][1])))


@plain_arguments
def load_vector(
    folder: TraitFolder | Path | str, method: str, layer: int, pool: str = DEFAULT_POOL
) -> tuple[ndarray, Facts]:
    """Return one stored vector, float32 `[hidden_dim]`, and its metadata.

    Raise UsageError where there is none.
    """
    if not isinstance(folder, TraitFolder):
        folder = TraitFolder(Path(folder))
    check_pool(pool)
    check_methods([method])
    step = folder.step("vectors", pool=pool)
    path, beside = _pt_paths(folder.vectors, method, layer, pool)
    facts = _read_facts(beside)
    if path.is_file() and facts:
        return _finite(path, load_tensor(path).numpy(), step), facts
    packed_path = _packed_path(folder.vectors, method, pool)
    packed = _read_packed(packed_path)
    if layer in packed:
        return _finite(packed_path, packed[layer][0], step), packed[layer][1]
    if path.is_file():
        raise UsageError(f"{beside} is missing or damaged; make it anew", step)
    if stored := list(stored_facts(folder.vectors, pool)):
        methods = ", ".join(dict.fromkeys(name for name, _ in stored))
        layers = ", ".join(map(str, sorted({each for _, each in stored})))
        raise UsageError(
            f"{path} is missing: there are vectors of {methods} at layers {layers}; load one of "
            "these, or fit again with `methods` and `layers` that name it too"
        )
    raise UsageError(f"{path} is missing; make it", step)


def _finite(path: Path, vector: ndarray, step: Step) -> ndarray:
    """Return a vector. Raise UsageError where it is none, or holds NaN."""
    if vector.ndim != 1 or not np.isfinite(vector).all():
        raise UsageError(f"{path} holds NaN or infinity, or no vector; make it anew", step)
    return vector


def stored_format(folder: TraitFolder, method: str, layer: int, pool: str) -> Format:
    """Return the kind of file from which `load_vector` takes a vector."""
    path, beside = _pt_paths(folder.vectors, method, layer, pool)
    return "pt" if path.is_file() and _read_facts(beside) else "safetensors"
