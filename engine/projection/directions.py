"""The vectors that texts are projected on, with the scale that their projections are said in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from ..outputs import Metadata
from ..settings import DEFAULT_POOL, DEFAULTS, value_of
from ..storage import RunRecord, SamplingRecord, TraitFolder, chosen, made_by
from ..vectors import TraitVectors, check_methods, open_vectors


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """One vector to project on."""

    name: str
    """`<trait>.<method>.<layer>`: the column that holds its projections."""
    layer: int
    vector: np.ndarray
    """float32 `[hidden_dim]`."""
    midpoint: float
    spread: float

    @property
    def digest(self) -> str:
        """A hash of all that decides a projection."""
        scale = np.array([self.layer, self.midpoint, self.spread], np.float64)
        return sha256(self.vector.tobytes() + scale.tobytes()).hexdigest()[:16]

    def scaled(self, projections: np.ndarray) -> np.ndarray:
        """Return projections in training spreads, 0 at the midpoint of the training sides."""
        return np.asarray((projections - self.midpoint) / self.spread)


@dataclass(frozen=True, slots=True, eq=False)
class Directions:
    """Vectors of one model, by layer ascending."""

    chosen: tuple[Direction, ...]
    model: str
    """What loads the model that they were fitted to."""
    model_name: str
    revision: str | None
    """That model's commit, or the fingerprint of its folder; None where no run tells."""
    adapter: tuple[str, str] | None
    """What finds the LoRA adapter that was over it, and its revision; None where there was none."""
    moment: str
    """For chat templates that ask for the time: when the training responses were made."""
    capture: Mapping[str, Any]
    """Settings of the first vectors' run that decide what is computed, by name: a training response
    so has the score here that it has there."""
    prompted: tuple[str, ...]
    """Settings that the first vectors' run had for its prompts and that a text does not have."""
    remarks: tuple[str, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted({each.layer for each in self.chosen}))

    @property
    def hidden_dim(self) -> int:
        return len(self.chosen[0].vector)

    def by_layer(self) -> dict[int, np.ndarray]:
        """Return `[k_layer, hidden_dim]` by layer; all k in the order of `chosen`."""
        return {
            layer: np.stack([each.vector for each in self.chosen if each.layer == layer])
            for layer in self.layers
        }


def choose_directions(
    folders: Sequence[Path | str],
    methods: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
) -> Directions:
    """Return the vectors of some traits' folders that texts are to be projected on.

    Without `methods` and `layers` it is each trait's recommended vector; with one of the two, that
    and what is recommended of the other. Raise UsageError for vectors that are not there, or are of
    models of different widths.
    """
    if not folders:
        raise UsageError("`vectors` names none; give EXPERIMENT/TRAIT")
    names = check_methods(methods) if methods is not None else None
    layers = tuple(dict.fromkeys(layers)) if layers is not None else None
    # Of this pool alone: others' midpoint and spread are of another place than a turn's mean.
    opened = [open_vectors(folder, DEFAULT_POOL) for folder in folders]
    paths = [vectors.folder.path.resolve() for vectors in opened]
    for path in paths:
        if paths.count(path) > 1:
            raise UsageError(f"`vectors` names {path} twice")
    found: dict[str, Direction] = {}
    for vectors in opened:
        for method, layer in _wanted(vectors, names, layers):
            midpoint, spread = vectors.scale(method, layer)
            name = f"{vectors.trait}.{method}.{layer}"
            if name in found:
                name = f"{vectors.folder.experiment.name}.{name}"
            if name in found:
                raise UsageError(
                    f"`vectors` names {vectors.trait} of several experiments of one name; give a "
                    "folder another name, or project on them one by one"
                )
            vector = vectors.vector(method, layer)
            found[name] = Direction(name, layer, vector, midpoint, spread)
    widths = {len(each.vector) for each in found.values()}
    if len(widths) > 1:
        said = ", ".join(f"{each.trait}: {each.model}" for each in opened)
        raise UsageError(f"`vectors` are of models of different widths ({said}); run them apart")
    records = [RunRecord.load(each.folder.run_record) for each in opened]
    first, record = opened[0], records[0]
    adapter = None
    if record and record.adapter_source:
        adapter = record.adapter_source, record.sampling.adapter_revision
    made_by = [_model_of(*pair) for pair in zip(opened, records, strict=True)]
    return Directions(
        chosen=tuple(sorted(found.values(), key=lambda each: each.layer)),
        model=record.model_argument if record else first.model,
        model_name=first.model,
        revision=record.sampling.revision if record else None,
        adapter=adapter,
        moment=record.created if record else _date(first.folder),
        capture=_capture_of(first.folder),
        prompted=_prompted(record.sampling) if record else (),
        remarks=tuple(_remarks(opened, made_by)),
    )


def _remarks(opened: Sequence[TraitVectors], made_by: Sequence[str]) -> Iterator[str]:
    for each in opened:
        if each.stale:
            yield each.stale
        if each.doubt:
            yield f"{each.trait}: no claim is made of its vectors ({each.doubt})"
    if others := sorted(set(made_by) - {made_by[0]}):
        yield f"vectors of {', '.join(others)} are used on what {made_by[0]} computes"


def _prompted(sampling: SamplingRecord) -> tuple[str, ...]:
    """Return the settings by which a run's prompts were others than the chat template's own."""
    names = ("prompt_format", "system_prompt", "prefill", "chat_template_kwargs")
    found = [name for name in names if getattr(sampling, name) != value_of(DEFAULTS, name)]
    return (*found, *(["thinking"] if sampling.thinking == "on" else []))


def _capture_of(folder: TraitFolder) -> dict[str, Any]:
    """Return the settings that a folder's activations were captured with and are no defaults."""
    facts = chosen(folder).capture
    if facts is None:
        return {}
    asked = {"capture_dtype": facts.asked.get("dtype"), "attention": facts.asked.get("attention")}
    known = {**asked, "blocks": facts.blocks or None}
    return {
        name: value
        for name, value in known.items()
        if value is not None and value != value_of(DEFAULTS, name)
    }


def _model_of(vectors: TraitVectors, record: RunRecord | None) -> str:
    """Return what tells the model that vectors are of from others."""
    return made_by(record.sampling.model_dump()) if record else vectors.model


def _wanted(
    vectors: TraitVectors, methods: Sequence[str] | None, layers: Sequence[int] | None
) -> list[tuple[str, int]]:
    if (methods is None or layers is None) and vectors.recommended is None:
        raise UsageError(
            f"{vectors.folder.path} recommends no vector (it is not evaluated, or its evaluation "
            "is stale or could not choose, as `traitmill vectors` says); give `methods` and "
            f"`layers`: it has {', '.join(vectors.methods)}"
        )
    method, layer = vectors.recommended or ("", 0)
    return [
        (each, at)
        for each in (methods if methods is not None else [method])
        for at in (layers if layers is not None else [layer])
    ]


def _date(folder: TraitFolder) -> str:
    """Return when activations were captured, else a fixed day: prompts must not change by it."""
    try:
        return Metadata.read(folder).extraction_date
    except UsageError:
        return "2026-01-01T00:00:00Z"
