"""Trait vectors: every method at every layer, fitted in one pass over the activations, and their
files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from ..errors import UsageError
from ..files import write_atomic
from ..outputs import Activations, load_tensor
from ..settings import DEFAULT_POOL
from ..storage import TraitFolder, pool_suffix
from .methods import (
    DEFAULT_METHODS,
    METHODS,
    Direction,
    Rows,
    check_methods,
    contrast,
    random_directions,
)

SCHEMA_VERSION = 1
Format = Literal["pt", "safetensors"]
NAMED = 5
"""Layers that an error names; of more it says how many."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """Fitted vectors of one trait, with what is known of each."""

    trait: str
    pool: str
    methods: tuple[str, ...]
    layers: tuple[int, ...]
    values: np.ndarray
    """float32 `[n_methods, n_layers, hidden_dim]`; a method's units stand in its metadata."""
    metadata: dict[tuple[str, int], dict[str, Any]]
    """By method and layer: norm, bias, accuracy, separation, settings, source."""

    def vector(self, method: str, layer: int) -> np.ndarray:
        """float32 `[hidden_dim]`."""
        return np.asarray(self.values[self.methods.index(method), self.layers.index(layer)])


@dataclass(frozen=True, slots=True, eq=False)
class LayerRows:
    """The rows at one layer, as fits and evaluations take them."""

    centred: np.ndarray
    """float64 `[n, hidden_dim]`."""
    mean: np.ndarray
    """float64 `[hidden_dim]`."""
    gram: np.ndarray
    """float64 `[n, n]`, of the centred rows."""


def fit_vectors(
    activations: Activations,
    methods: Sequence[str] = DEFAULT_METHODS,
    layers: Sequence[int] | None = None,
) -> Vectors:
    """Fit each method at each layer (None: all that were captured).

    Time grows with n^2 (hidden_dim + n) a layer, memory with n (hidden_dim + n) a thread. The same
    input gives the same vectors. Raises UsageError for an unknown method or a layer that was not
    captured.
    """
    names = check_methods(methods)
    chosen = check_layers(activations, layers)
    cells = cells_of(activations)

    def fit(layer: int, at: LayerRows) -> tuple[np.ndarray, list[dict[str, Any]]]:
        rows = Rows(at.gram, at.centred.shape[1])
        fits = [_fit_one(name, layer, at, rows, activations.labels, cells) for name in names]
        return np.stack([vector for vector, _ in fits]), [metadata for _, metadata in fits]

    fitted = map_layers(fit, activations, chosen)
    general = {
        "trait": activations.trait,
        "model": activations.metadata.model,
        "pool": activations.pool,
        "n_pos": activations.n_pos,
        "n_neg": activations.n_neg,
        "activations_sha256": activations.sha256,
        "date": activations.metadata.extraction_date,
        "schema_version": SCHEMA_VERSION,
    }
    metadata = {
        (name, layer): {"method": name, "layer": layer, **general, **facts}
        for layer, (_, each) in zip(chosen, fitted, strict=True)
        for name, facts in zip(names, each, strict=True)
    }
    values = np.stack([vectors for vectors, _ in fitted], axis=1)
    return Vectors(activations.trait, activations.pool, names, chosen, values, metadata)


def _fit_one(
    name: str, layer: int, at: LayerRows, rows: Rows, labels: np.ndarray, cells: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    method = METHODS[name]
    if method.fit is None:
        direction = Direction(np.zeros(rows.n))
        exact = random_directions(rows.dim, layer, 1)[0]
        exact = exact if contrast(labels) @ (at.centred @ exact) >= 0 else -exact
    else:
        direction = method.fit(rows, labels, cells)
        exact = direction.weights @ at.centred
    vector = exact.astype(np.float32)
    norm = float(np.linalg.norm(exact))
    projected = at.centred @ exact
    middle = (projected[labels].mean() + projected[~labels].mean()) / 2
    intercept = -middle if direction.intercept is None else direction.intercept
    right = (projected + intercept > 0) == labels
    return vector, {
        "norm": norm,
        "bias": float(intercept - exact @ at.mean),
        "bias_meaning": "vector . activation + bias > 0 says pos",
        "accuracy": float((right[labels].mean() + right[~labels].mean()) / 2),
        "separation": float(contrast(labels) @ projected / norm) if norm else 0.0,
        "measured_on": "the rows the vector was fitted to: accuracy is the mean of both sides' share of right calls, "
        "separation the distance of the means along the vector in activation units; see held_out "
        "for unseen rows",
        "settings": direction.facts,
        "objective": method.objective,
        "units": method.units,
        "source": method.source,
    }


def cells_of(activations: Activations) -> np.ndarray:
    """int `[n]`: one number per instruction pair and question."""
    return np.asarray(
        activations.instructions * (activations.questions.max() + 1) + activations.questions
    )


def check_layers(activations: Activations, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers in ascending order, each once; all for None. Raises UsageError for one that was
    not captured."""
    if layers is None:
        return activations.layers
    missing = sorted(set(layers) - set(activations.layers))
    if missing or not layers:
        held = activations.layers
        span = (
            f"{held[0]} to {held[-1]}"
            if len(held) == held[-1] - held[0] + 1
            else ", ".join(map(str, held))
        )
        named = ", ".join(map(str, missing[:NAMED])) + (
            f" and {len(missing) - NAMED} more" * (len(missing) > NAMED)
        )
        what = (
            f"{named} {'was' if len(missing) == 1 else 'were'} not captured"
            if missing
            else "names none"
        )
        raise UsageError(
            f"`layers` {what}: the activations of {activations.trait} hold layers {span}"
        )
    return tuple(sorted(set(layers)))


def map_layers(
    function: Callable[[int, LayerRows], T], activations: Activations, layers: Sequence[int]
) -> list[T]:
    """`function(layer, rows)` for every layer, in order, one layer a core.

    Linear algebra is held to one thread each: many small problems side by side beat one at a time
    on all cores.
    """
    # Loaded here, since the limit below only reaches libraries that are loaded already.
    import scipy.linalg  # noqa: F401 - see above
    from threadpoolctl import threadpool_limits

    def one(layer: int) -> T:
        centred = activations.values[:, activations.layers.index(layer)].astype(np.float64)
        mean = centred.mean(axis=0)
        centred -= mean
        return function(layer, LayerRows(centred, mean, centred @ centred.T))

    workers = len(os.sched_getaffinity(0))
    with threadpool_limits(1), ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, layers))


# --- files ---


def write_vectors(
    folder: TraitFolder,
    vectors: Vectors,
    format_: Format = "pt",
    held_out: Mapping[tuple[str, int], dict[str, Any]] | None = None,
) -> list[Path]:
    """Write `vectors/<method>_layer<i>.pt` (float32 `[hidden_dim]`) with its `_metadata.json`, or
    one `<method>.safetensors` of all layers (tensors `layer<i>`, metadata in the header). Names of
    pools other than response_mean end in `.<pool>`.

    `held_out` adds an evaluation's figures by method and layer. Files of vectors fitted to other
    activations than these are removed, since nothing would tell them apart; layers that a
    `.safetensors` file holds of these activations stay in it. Returns the paths written.
    """
    _remove_stale(folder.vectors, vectors)
    content = {
        key: {**metadata, "held_out": (held_out or {}).get(key)}
        for key, metadata in vectors.metadata.items()
    }
    write = _write_safetensors if format_ == "safetensors" else _write_pt
    return [
        path
        for method in vectors.methods
        for path in write(folder.vectors, vectors, method, content)
    ]


def _write_pt(
    folder: Path, vectors: Vectors, method: str, content: dict[tuple[str, int], dict[str, Any]]
) -> list[Path]:
    import torch

    paths = []
    for layer in vectors.layers:
        stem = f"{method}_layer{layer}{pool_suffix(vectors.pool)}"
        buffer = BytesIO()  # a path's stem would get into the archive
        torch.save(torch.from_numpy(vectors.vector(method, layer).copy()), buffer)
        write_atomic(folder / f"{stem}.pt", buffer.getvalue())
        write_atomic(
            folder / f"{stem}_metadata.json", json.dumps(content[method, layer], indent=1).encode()
        )
        paths += [folder / f"{stem}.pt", folder / f"{stem}_metadata.json"]
    return paths


def _write_safetensors(
    folder: Path, vectors: Vectors, method: str, content: dict[tuple[str, int], dict[str, Any]]
) -> list[Path]:
    from safetensors.numpy import save

    path = folder / f"{method}{pool_suffix(vectors.pool)}.safetensors"
    held = _packed(path) | {
        layer: (vectors.vector(method, layer).copy(), content[method, layer])
        for layer in vectors.layers
    }
    tensors = {f"layer{layer}": held[layer][0] for layer in sorted(held)}
    header = {f"layer{layer}": json.dumps(held[layer][1]) for layer in sorted(held)}
    write_atomic(path, save(tensors, metadata={"format": "pt", **header}))
    return [path]


def _packed(path: Path) -> dict[int, tuple[np.ndarray, dict[str, Any]]]:
    """The vectors of a `.safetensors` file with their metadata, by layer; none where it cannot be
    read."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return {}
    try:
        with safe_open(path, "np") as file:
            header = file.metadata()
            return {
                int(name.removeprefix("layer")): (
                    file.get_tensor(name),
                    dict(json.loads(header[name])),
                )
                for name in file.keys()  # noqa: SIM118 - this object is not a mapping
            }
    except (SafetensorError, ValueError, TypeError, KeyError):
        return {}


def _remove_stale(folder: Path, vectors: Vectors) -> None:
    current = next(iter(vectors.metadata.values()))["activations_sha256"]
    for path in folder.glob(f"*_layer*{pool_suffix(vectors.pool)}_metadata.json"):
        try:
            metadata = json.loads(path.read_bytes())
        except ValueError:
            metadata = {}
        # A file without that key is not ours, whatever its name.
        ours = (
            "activations_sha256" in metadata and metadata.get("pool", vectors.pool) == vectors.pool
        )
        if ours and metadata["activations_sha256"] != current:
            path.with_name(path.name.replace("_metadata.json", ".pt")).unlink(missing_ok=True)
            path.unlink()

    for method in METHODS:
        path = folder / f"{method}{pool_suffix(vectors.pool)}.safetensors"
        if any(
            metadata.get("activations_sha256") != current for _, metadata in _packed(path).values()
        ):
            path.unlink()


def load_vector(
    folder: TraitFolder, method: str, layer: int, pool: str = DEFAULT_POOL
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return one stored vector, float32 `[hidden_dim]`, and its metadata.

    Raise UsageError where there is none.
    """
    path = folder.vectors / f"{method}_layer{layer}{pool_suffix(pool)}.pt"
    beside = path.with_name(path.name.replace(".pt", "_metadata.json"))
    step = folder.step("vectors", pool=pool)
    if path.is_file():
        try:
            return load_tensor(path).numpy(), dict(json.loads(beside.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            raise UsageError(f"{beside} is missing or damaged; make it anew", step) from None
    packed = _packed(path.with_name(f"{method}{pool_suffix(pool)}.safetensors"))
    if layer not in packed:
        raise UsageError(f"{path} is missing; make it", step)
    return packed[layer]
