"""Which folders a command works on, and what must hold of them before anything loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from .. import storage
from ..errors import UsageError
from ..models import (
    DEFAULT_MODEL,
    Adapter,
    ModelRef,
    check_capture,
    choose_device,
    cores,
    find_adapter,
    find_model,
    infer_model,
)
from ..replicas import require_ray
from ..settings import DEFAULTS, Execution, RunSettings
from ..storage import TraitFolder


def begun(
    folders: Mapping[str, TraitFolder],
    traits: Sequence[str] | str | None,
    notice: Callable[[str], None] = lambda _: None,
) -> dict[str, TraitFolder]:
    """Return the folders that hold a run; where all traits are asked for, the others are left out.

    Raise UsageError where one that was named holds none, or all do.
    """
    found = {name: folder for name, folder in folders.items() if storage.has_run(folder)}
    if traits not in (None, "all") or not found:
        for folder in folders.values():
            if not storage.has_run(folder):  # one that is damaged stands in no other's way
                storage.need_record(folder)
        return dict(folders)
    if left := [name for name in folders if name not in found]:
        notice(f"left out, holding no run yet: {', '.join(left)}")
    return found


def check_machine(folders: Mapping[str, TraitFolder], settings: RunSettings) -> None:
    """Raise UsageError for folders that cannot be written, and for missing GPUs or cores."""
    storage.now()  # refuses a SOURCE_DATE_EPOCH that is no number
    for folder in folders.values():
        folder.check_writable()
    execution = settings.execution
    if execution.replicas != 1:
        require_ray()
    if execution.ray_address is None:  # what a cluster has is asked of the cluster
        _check_devices(execution)


def _check_devices(execution: Execution) -> None:
    workers, replicas = execution.tensor_parallel_size, max(1, execution.replicas)
    if workers * replicas == 1:
        return
    import torch

    here = torch.cuda.device_count()
    on_cpu = not here and torch.version.cuda is None
    if on_cpu:
        here = cores()
    if workers * replicas <= here:
        return
    said = f"this machine shows {here} NVIDIA GPUs"
    if on_cpu:
        said = f"without a GPU each worker takes a CPU core, and this program may use {here}"
    if replicas == 1:
        raise UsageError(f"`tensor_parallel_size` {workers}: {said}")
    each = f" of {workers} workers each" if workers > 1 else ""
    raise UsageError(
        f"`replicas` {replicas}{each}: {said}; take fewer, or name a Ray cluster with `ray_address`"
    )


def check_capture_settings(settings: RunSettings, ref: ModelRef, *, at_once: bool) -> None:
    """Raise UsageError for capture settings that do not suit the model or this machine.

    Without `at_once` the defaults need not wait for the libraries that tell: what loads the model
    asks as well.
    """
    capture, device = settings.capture, settings.execution.capture_device
    chosen = (capture.layers, capture.include_embeddings, capture.dtype, capture.attention)
    own = DEFAULTS.capture
    default = (own.layers, own.include_embeddings, own.dtype, own.attention)
    if settings.capture_rows == "none":
        return
    if at_once or chosen != default or device != DEFAULTS.execution.capture_device:
        check_capture(ref.config, capture, choose_device(device).partition(":")[0])


def model_of(
    folders: Mapping[str, TraitFolder], name: str | None, experiment: str
) -> tuple[str, str | None, str]:
    """Return the model to generate with, its revision where that is fixed, and in words where it
    comes from.

    It is the one named, the folders' own, the one that the experiment's name implies, or the
    default.
    """
    if name is not None:
        return name, None, ""
    runs = storage.runs_of(folders)
    for trait, folder in runs.items():
        record = storage.need_record(folder)
        own = "the folder's own" if trait in folders else f"as trait {trait} of this experiment"
        return (
            record.model_argument,
            record.sampling.revision,
            f" ({own}; `gen_model` names another)",
        )
    implied = infer_model(experiment)
    why = "by the experiment's name" if implied else "the default"
    return implied or DEFAULT_MODEL, None, f" ({why}; `gen_model` names another)"


def adapter_of(
    folders: Mapping[str, TraitFolder], name: str | None, *, model_named: bool
) -> Adapter | None:
    """Return the adapter to generate with: the one named, else the folders' own; "" is none.

    Beside a model that is named, none is taken from another trait's run.
    """
    if name is None:
        runs = storage.runs_of(folders)
        found = [
            storage.need_record(folder)
            for trait, folder in runs.items()
            if trait in folders or not model_named
        ]
        first = next(iter(found), None)
        if first is None or not first.adapter_source:
            return None
        return find_adapter(first.adapter_source, first.sampling.adapter_revision)
    return find_adapter(name) if name else None


def generating_model(records: Mapping[str, storage.RunRecord]) -> ModelRef:
    """Return the one model that generated all responses.

    Raise UsageError where there are several, or it has changed.
    """
    made_with = {
        (
            record.model_argument,
            record.sampling.revision,
            record.adapter_source,
            record.sampling.adapter_revision,
        )
        for record in records.values()
    }
    if len(made_with) > 1:
        names = ", ".join(
            sorted(
                f"{source} ({revision})" + (f" with {adapter} ({added})" if adapter else "")
                for source, revision, adapter, added in made_with
            )
        )
        raise UsageError(f"the traits were made with different models, {names}; run them apart")
    [(source, revision, adapter, added)] = made_with
    ref = find_model(source, revision)
    _refuse_changed("model", source, revision, ref.revision)
    if not adapter:
        return ref
    found = find_adapter(adapter, added)
    _refuse_changed("adapter", adapter, added, found.revision)
    return replace(ref, adapter=found)


def _refuse_changed(kind: str, source: str, before: str, now: str) -> None:
    if now != before:
        raise UsageError(
            f"{kind} {source} has changed since the responses were generated ({before} -> {now}); "
            "restore its files, or generate again with `new_run`"
        )
