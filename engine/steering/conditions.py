"""What a study compares: a vector at some coefficients, and the baselines beside it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import UsageError

Kind = Literal["unsteered", "prompt", "steered", "random", "ablated"]
Positions = Literal["response", "prompt", "all"]
POSITIONS: tuple[Positions, ...] = ("response", "prompt", "all")
GRID = (0.125, 0.25, 0.5, 1.0)
"""Coefficients to begin with, of both signs, in units of the layer's mean residual norm."""
REFINEMENTS = 2
"""Rounds that halve the gap in which coherence breaks, on each side."""
_LARGEST = 100.0


@dataclass(frozen=True, slots=True)
class Target:
    """A trait's vector at one layer."""

    method: str
    layer: int
    vector: np.ndarray
    """float32 `[hidden_dim]`: its direction, `norm` long."""
    norm: float
    """The layer's mean residual norm. A rounded vector's own differs from method to method in the
    last bit, and random vectors as long as that would be others for each."""


def make_target(method: str, layer: int, vector: np.ndarray, norm: float) -> Target:
    """Return a vector's direction as long as a layer's mean residual norm."""
    length = float(np.linalg.norm(vector))
    return Target(method, layer, (vector * (norm / length)).astype(np.float32), norm)


@dataclass(frozen=True, slots=True)
class Condition:
    """Under what responses are generated."""

    kind: Kind
    method: str = ""
    """Of what is added or taken out: `random` are random vectors."""
    layer: int = -1
    coefficient: float = 0.0
    """In units of the layer's mean residual norm."""
    positions: Positions | Literal[""] = ""

    def __str__(self) -> str:
        if self.kind in ("unsteered", "prompt"):
            return self.kind
        if self.kind == "ablated":
            return f"prompt, without {self.method} at layer {self.layer}"
        return f"{self.kind} {self.coefficient:+g} at layer {self.layer}"


UNSTEERED, PROMPT = Condition("unsteered"), Condition("prompt")
RANDOM = "random"
"""The method of random vectors."""


def conditions(
    grid: Mapping[tuple[str, int], Sequence[float]], positions: Positions, *, ablate: bool
) -> tuple[Condition, ...]:
    """Return what is compared, for the coefficients of each method and layer.

    Random vectors stand beside the positive coefficients of each layer, once a layer. With
    `ablate`, each direction is also taken out of every state under a pos instruction.
    """
    found: dict[Condition, None] = {UNSTEERED: None, PROMPT: None}
    for (method, layer), coefficients in grid.items():
        for coefficient in sorted(coefficients):
            found[Condition("steered", method, layer, coefficient, positions)] = None
    for (_, layer), coefficients in grid.items():
        for coefficient in sorted(coefficients):
            if coefficient > 0:
                found[Condition("random", RANDOM, layer, coefficient, positions)] = None
    if ablate:
        found |= dict.fromkeys(ablated(method, layer) for method, layer in grid)
        found |= dict.fromkeys(ablated(RANDOM, layer) for _, layer in grid)
    return tuple(found)


def ablated(method: str, layer: int) -> Condition:
    """Return the condition in which a vector's direction is taken out of every state."""
    return Condition("ablated", method, layer, 1.0, "all")


def refined(coherence: Mapping[float, float], least: float) -> list[float]:
    """Return the coefficients to try next: on each side, the middle of where coherence breaks.

    `coherence` is the mean by coefficient, NaN where it is not known. A side on which it never
    breaks, or is not known where it may, is left as it is; so is one where nothing holds, if the
    unsteered answers (coefficient 0) do not hold either: no coefficient would.
    """
    hopeless = coherence.get(0.0, math.nan) < least
    found = []
    for sign in (-1, 1):
        side = sorted(abs(c) for c in coherence if c * sign > 0)
        holds = largest_coherent(coherence, least, sign)
        beyond = [size for size in side if size > abs(holds)]
        if hopeless and not holds:
            continue
        if beyond and math.isfinite(coherence[sign * beyond[0]]):
            found.append(sign * round((abs(holds) + beyond[0]) / 2, 4))
    return [coefficient for coefficient in found if coefficient not in coherence]


def largest_coherent(coherence: Mapping[float, float], least: float, sign: int = 1) -> float:
    """Return the coefficient furthest out on a side up to which the coherence holds; 0 is none.

    A coefficient counts only where every smaller one on its side holds too.
    """
    holds = 0.0
    for size in sorted(abs(c) for c in coherence if c * sign > 0):
        if not coherence[sign * size] >= least:
            break
        holds = sign * size
    return holds


def random_vectors(norm: float, dim: int, layer: int, count: int) -> list[np.ndarray]:
    """Return vectors of random direction and one norm, float32 `[dim]` each; ever the same."""
    found = []
    for draw in range(count):
        vector = np.random.default_rng([2026, layer, draw]).standard_normal(dim)
        found.append((norm * vector / np.linalg.norm(vector)).astype(np.float32))
    return found


def digest(content: object) -> bytes:
    """Return the sha256 of canonical JSON."""
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).digest()


def check_coefficients(given: Sequence[float]) -> tuple[float, ...]:
    """Return coefficients in ascending order, 0 left out. Raise UsageError."""
    try:
        found = sorted({float(each) for each in given} - {0.0})
    except (TypeError, ValueError):
        found = []
    if not found or not all(abs(each) <= _LARGEST for each in found):
        raise UsageError(
            "`coefficients` must be a list of numbers other than 0, in units of the mean residual "
            f"norm, from -{_LARGEST:g} to {_LARGEST:g}; 0.5 adds a vector half as long as the "
            "layer's mean kept activation"
        )
    return tuple(found)
