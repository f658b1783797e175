"""Which models read the texts: those that are named, else the one that the vectors are of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..errors import UsageError
from ..models import ModelRef, find_adapter, find_model
from .directions import Directions


def choose_models(
    directions: Directions, models: Sequence[str], adapters: Sequence[str]
) -> list[ModelRef]:
    """Return what reads the texts: models, or one without and with adapters. Raise UsageError."""
    refs = [find_model(name) for name in dict.fromkeys(models)] or [_own(directions)]
    if adapters:
        if len(refs) > 1:
            raise UsageError("`adapter` goes over one model; give `gen_model` once, or not at all")
        found = [find_adapter(name) for name in dict.fromkeys(adapters)]
        return [*refs, *(replace(refs[0], adapter=each) for each in found)]
    if not models and directions.adapter:
        source, revision = directions.adapter
        adapter = find_adapter(source, revision)
        _refuse_changed(f"adapter {source}", "adapter", revision, adapter.revision)
        refs = [replace(refs[0], adapter=adapter)]
    return refs


def _own(directions: Directions) -> ModelRef:
    """Return the model that the vectors are of, as it was then. Raise UsageError."""
    ref = find_model(directions.model, directions.revision)
    if directions.revision is not None:
        _refuse_changed(f"model {directions.model}", "gen_model", directions.revision, ref.revision)
    return ref


def _refuse_changed(what: str, option: str, before: str, now: str) -> None:
    if now != before:
        raise UsageError(
            f"{what} has changed since the vectors were made ({before} -> {now}); restore its "
            f"files, or name it as `{option}` to read the texts with it as it is"
        )


def foreign(directions: Directions, ref: ModelRef) -> Iterator[str]:
    """Say where a model is not the one that the vectors are of."""
    if ref.name != directions.model_name:
        yield f"the vectors are of {directions.model_name}; the texts are read by {ref.name}"
    if directions.adapter and ref.adapter is None:
        yield (
            f"the vectors are of {directions.model_name} with the adapter {directions.adapter[0]}; "
            f"the texts are read by {ref.name} without it"
        )


def labels_of(refs: Sequence[ModelRef]) -> list[str]:
    """Return what each model is called in the table: its name, with its revision where shared."""
    names = [name_of(ref) for ref in refs]
    shared = [names.count(name) > 1 for name in names]
    return [name_of(ref, revision=both) for ref, both in zip(refs, shared, strict=True)]


def name_of(ref: ModelRef, *, revision: bool = False) -> str:
    parts = [(ref.name, ref.revision)]
    if ref.adapter is not None:
        parts.append((ref.adapter.name, ref.adapter.revision))
    return " + ".join(f"{name}@{at}" if revision else name for name, at in parts)
