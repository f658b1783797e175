"""Trait vectors: every method at every layer, fitted in one pass over the activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray

from ..errors import UsageError
from ..outputs import Activations
from ..settings import plain_arguments
from . import rows
from .few import Rows, Sides, Sums
from .methods import DEFAULT_METHODS, METHODS, Method, check_methods
from .rows import LayerRows, OnLayer, cells_of, map_layers, unheard
from .tall_methods import fit_tall

SCHEMA_VERSION = 2
NAMED = 5
"""Layers that an error names; of more it says how many."""


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """Fitted vectors of one trait, with what is known of each."""

    trait: str
    pool: str
    methods: tuple[str, ...]
    layers: tuple[int, ...]
    values: ndarray = field(repr=False)
    """float32 `[n_methods, n_layers, hidden_dim]`; a method's units stand in its metadata."""
    metadata: dict[tuple[str, int], dict[str, Any]] = field(repr=False)
    """By method and layer: norm, bias, midpoint, spread, accuracy, separation, settings, source."""

    def __repr__(self) -> str:
        of = f"{', '.join(self.methods)} at layers {_span(self.layers)}"
        return f"Vectors({self.trait}: {of}, {self.values.shape[2]} wide, {self.pool})"

    @plain_arguments
    def vector(self, method: str, layer: int) -> ndarray:
        """Return float32 `[hidden_dim]`. Raise UsageError for what was not fitted."""
        if method not in self.methods or layer not in self.layers:
            available = dict.fromkeys(self.methods, self.layers)
            raise UsageError(absent(self.trait, available, method, layer))
        i, j = self.methods.index(method), self.layers.index(layer)
        return np.asarray(self.values[i, j])


@plain_arguments
def fit_vectors(
    activations: Activations,
    methods: Sequence[str] = DEFAULT_METHODS,
    layers: Sequence[int] | None = None,
    on_layer: OnLayer = unheard,
) -> Vectors:
    """Fit each method at each layer (None: all that were captured).

    Time and memory of a layer grow with n^2 up to 0.7 times as many rows as hidden dimensions, and
    with n above that. The same input gives the same vectors. Raise UsageError for an unknown
    method or a layer that was not captured.
    """
    names, chosen = check_methods(methods), check_layers(activations, layers)
    cells = cells_of(activations)

    labels = activations.labels

    def fit(block: Sequence[LayerRows]) -> list[list[tuple[ndarray, dict[str, Any]]]]:
        fit_block = _fit_tall if block[0].tall else _fit_few
        found = fit_block(block, labels, cells, names)
        return [
            [_described(METHODS[name], at, labels, each) for name, each in by_method.items()]
            for at, by_method in zip(block, found, strict=True)
        ]

    fitted = map_layers(fit, activations, chosen, rows.FIT_TALL, on_layer)
    general = {
        "trait": activations.trait,
        "model": activations.metadata.model,
        "revision": activations.metadata.revision,
        **_adapter(activations.metadata.sampling),
        "pool": activations.pool,
        "n_pos": activations.n_pos,
        "n_neg": activations.n_neg,
        "activations_sha256": activations.sha256,
        "date": activations.metadata.extraction_date,
        "schema_version": SCHEMA_VERSION,
    }
    dim = activations.values.shape[2]
    values = np.empty((len(names), len(chosen), dim), np.float32)
    metadata = {}
    for j, (layer, by_method) in enumerate(zip(chosen, fitted, strict=True)):
        for i, (name, (vector, facts)) in enumerate(zip(names, by_method, strict=True)):
            values[i, j] = vector
            metadata[name, layer] = {"method": name, "layer": layer, **general, **facts}
    return Vectors(activations.trait, activations.pool, names, chosen, values, metadata)


def _adapter(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return the LoRA adapter that was over the model, nothing where there was none."""
    names = ("adapter", "adapter_revision")
    return {name: sampling[name] for name in names} if sampling.get("adapter") else {}


class _Found(NamedTuple):
    vector: ndarray
    """float64 `[hidden_dim]`."""
    intercept: float | None
    """Of the probe, for centred rows."""
    facts: Mapping[str, Any]


def _fit_tall(
    block: Sequence[LayerRows], labels: ndarray, cells: ndarray, names: Sequence[str]
) -> list[dict[str, _Found]]:
    """Return what each method finds at each layer."""
    found = [fit_tall(at, labels, cells, names) for at in block]
    return [
        {
            name: _Found(each.vectors[:, 0], each.intercepts[0], each.facts[0])
            for name, each in by_method.items()
        }
        for by_method in found
    ]


def _fit_few(
    block: Sequence[LayerRows], labels: ndarray, cells: ndarray, names: Sequence[str]
) -> list[dict[str, _Found]]:
    """Return the same where rows are few."""
    every = np.ones((len(block), len(labels)), bool)
    rows = Rows(np.stack([at.gram for at in block]), every, block[0].centred.shape[1])
    sides = Sides(rows, np.arange(len(block)), every & labels, every * cells)
    sums = {name: METHODS[name].fit(sides) for name in names}

    def found(sums: Sums, place: int) -> _Found:
        vector = sums.weights[place] @ block[place].centred
        return _Found(vector, sums.intercepts[place], sums.facts[place])

    return [{name: found(sums[name], place) for name in names} for place in range(len(block))]


def _described(
    method: Method, at: LayerRows, labels: ndarray, found: _Found
) -> tuple[ndarray, dict[str, Any]]:
    """Return a vector, float32 `[hidden_dim]`, and what is known of it."""
    vector, intercept = found.vector, found.intercept
    norm = float(np.linalg.norm(vector))
    stored = vector.astype(np.float32)
    projected = at.centred @ stored.astype(np.float64)
    pos, neg = projected[labels], projected[~labels]
    middle = (pos.mean() + neg.mean()) / 2
    if intercept is None:
        intercept = -middle
    right = (projected + intercept > 0) == labels
    hits = right[labels].mean() + right[~labels].mean()
    separation = 0.0
    if norm:
        separation = float((pos.mean() - neg.mean()) / norm)
    return stored, {
        "norm": norm,
        "bias": float(intercept - vector @ at.mean),
        "bias_meaning": "vector . activation + bias > 0 says pos",
        "midpoint": float(middle + stored.astype(np.float64) @ at.mean),
        "spread": float(np.sqrt((pos.var() + neg.var()) / 2)),
        "scale_meaning": "(vector . activation - midpoint) / spread is 0 between the means of the "
        "two sides it was fitted to, and 1 a standard deviation of a side towards pos",
        "accuracy": float(hits / 2),
        "separation": separation,
        "measured_on": "the rows the vector was fitted to: accuracy is the mean of both sides' "
        "share of right calls, separation the distance of the means along the vector in "
        "activation units; see held_out for unseen rows",
        "settings": dict(found.facts),
        "objective": method.objective,
        "units": method.units,
        "source": method.source,
    }


def check_layers(activations: Activations, layers: Sequence[int] | None) -> tuple[int, ...]:
    """Return the layers in ascending order, each once; all for None.

    Raise UsageError for one that was not captured.
    """
    if layers is None:
        return activations.layers
    missing = sorted(set(layers) - set(activations.layers))
    held = f"the activations of {activations.trait} hold layers {_span(activations.layers)}"
    if not layers:
        raise UsageError(f"`layers` names none: {held}")
    if missing:
        named = ", ".join(map(str, missing[:NAMED]))
        if len(missing) > NAMED:
            named += f" and {len(missing) - NAMED} more"
        verb = "was" if len(missing) == 1 else "were"
        raise UsageError(f"`layers` {named} {verb} not captured: {held}; name others, or all")
    return tuple(sorted(set(layers)))


def absent(trait: str, available: Mapping[str, Sequence[int]], method: str, layer: int) -> str:
    """Return in words that there is no such vector, and which there are.

    Raise UsageError where no method has that name.
    """
    check_methods([method])
    methods_by_layers: dict[str, list[str]] = {}
    for name, layers in available.items():
        methods_by_layers.setdefault(_span(layers), []).append(name)
    there = "; ".join(f"{', '.join(n)} at layers {s}" for s, n in methods_by_layers.items())
    return f"{trait} has no {method} vector at layer {layer}: it has {there}"


def _span(layers: Sequence[int]) -> str:
    """Return `0 to 25`, or every layer where some between are lacking."""
    if len(layers) == layers[-1] - layers[0] + 1:
        return f"{layers[0]} to {layers[-1]}"
    return ", ".join(map(str, layers))
