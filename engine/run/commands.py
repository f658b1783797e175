"""The front door: generate, judge and capture, each one call on an experiment's folder."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import storage
from ..errors import DefinitionError, UsageError
from ..models import ModelRef, find_model
from ..settings import RunSettings, apply, plain_arguments
from ..storage import TraitFolder, select
from ..traits import DEFINITION_FILE, coherence_of, definition_errors, load_traits
from . import remembered
from .folder_settings import addressed, check_judge, recorded_trait, resolve, scale_remarks
from .loading import open_backends
from .progress import Listener, RunResult
from .running import OpenBackends, run_through
from .selection import (
    adapter_of,
    begun,
    check_machine,
    generating_model,
    model_of,
)
from .wanted import Wanted


@plain_arguments
async def generate(
    experiment: Path | str,
    traits: Sequence[str] | str | None = None,
    *,
    model: str | None = None,
    adapter: str | None = None,
    new_run: bool = False,
    force_unlock: bool = False,
    listener: Listener | None = None,
    stop: asyncio.Event | None = None,
    backends: OpenBackends = open_backends,
    **given: Any,
) -> RunResult:
    """Generate responses, judge each as it is finished, capture activations, write the files.

    A coroutine: await it, or `asyncio.run` it under `if __name__ == "__main__":`.
    `experiment` is the folder `experiments/<name>`, `traits` names in it (None: all). `given` are
    settings by name (see `settings.NAMES`); what is not given on a folder with a run is that run's.
    `adapter` is a LoRA adapter over the model, a folder or a hub name.
    Run again, it goes on where it was. `stop`, when set, ends the run early; the result says so.

    Raise UsageError, DefinitionError, AccessError, LockedError or SettingsChangedError before
    anything loads or is written. What goes wrong later stands in the result.
    """
    listener = listener or Listener()
    folders = select(experiment, traits)
    definitions = {trait.name: trait for trait in load_traits(_paths(folders))}
    faults = definition_errors(_paths(folders))
    if faults:
        raise DefinitionError(faults)
    settings, remarks = resolve(folders, given, names_model=model is not None)
    check_machine(folders, _any(settings))
    check_judge(_any(settings), given)
    ref = chosen_model(folders, model, adapter, experiment, listener)
    if not new_run:
        settings = _with_own_pools(settings, folders, given)
    for line in [*remarks, *scale_remarks(definitions.values(), given.get("threshold"))]:
        listener.notice(line)
    wanted = [
        Wanted(
            trait=definitions[name],
            folder=folders[name],
            settings=with_model(settings[name], ref),
            generates=True,
            judges=True,
            new_run=new_run,
            asked=remembered.values(settings[name], remembered.ALL),
        )
        for name in folders
    ]
    return await run_through(wanted, ref, listener, stop, backends, force_unlock=force_unlock)


@plain_arguments
async def judge(
    experiment: Path | str,
    traits: Sequence[str] | str | None = None,
    *,
    ask: storage.Question = "trait",
    force_unlock: bool = False,
    listener: Listener | None = None,
    stop: asyncio.Event | None = None,
    backends: OpenBackends = open_backends,
    **given: Any,
) -> RunResult:
    """Judge stored responses: another judge or an edited prompt adds a verdict set beside the old.

    A coroutine: await it.
    Nothing is generated, and no verdict is paid for twice. The files are written from the new set;
    `export(use_judge=...)` goes back to another. Without a judge given, the folder's own is asked.
    `ask` "coherence" asks how coherent each response is, in a set of its own, and writes no files:
    `export(coherence=...)` does. Parameters and errors as `generate` has them.
    """
    listener = listener or Listener()
    folders = begun(select(experiment, traits), traits, listener.notice)
    edited = {trait.name: trait for trait in load_traits(_paths(folders))}
    records = {name: storage.need_record(folder) for name, folder in folders.items()}
    settings, remarks = resolve(folders, {**given, "capture": "none"}, remembered.JUDGE)
    check_machine(folders, _any(settings))
    check_judge(_any(settings), given)
    for line in [*remarks, *scale_remarks(edited.values())]:
        listener.notice(line)
    first = _any(settings)
    judged = {name: recorded_trait(name, records[name], edited[name]) for name in folders}
    if ask == "coherence":
        if first.judge.is_local:
            raise UsageError(
                f"`judge_model` {first.judge.model} places a response between the two sides of its "
                "trait, so it cannot say how coherent it is; name a judge at an endpoint"
            )
        judged = {name: coherence_of(trait) for name, trait in judged.items()}
    if first.judge.is_local:
        ref = generating_model(records)
    else:  # a remote judge reads texts: the model that wrote them may be gone
        sampling = first.sampling
        ref = ModelRef(sampling.model, sampling.model, sampling.revision, {})
    wanted = [
        Wanted(
            trait=judged[name],
            folder=folders[name],
            settings=settings[name],
            generates=False,
            judges=True,
            question=ask,
            asked=remembered.values(settings[name], remembered.JUDGE) if ask == "trait" else {},
        )
        for name in folders
    ]
    return await run_through(wanted, ref, listener, stop, backends, force_unlock=force_unlock)


@plain_arguments
async def capture(
    experiment: Path | str,
    traits: Sequence[str] | str | None = None,
    *,
    force_unlock: bool = False,
    listener: Listener | None = None,
    stop: asyncio.Event | None = None,
    backends: OpenBackends = open_backends,
    **given: Any,
) -> RunResult:
    """Capture activations of stored responses, and write the files. Nothing is generated or judged.

    A coroutine: await it.
    `pool` adds to the pools that are there, but one of thoughts goes where it is not named; another
    filter exports anew. Parameters and errors as `generate` has them.
    """
    listener = listener or Listener()
    folders = begun(select(experiment, traits), traits, listener.notice)
    records = {name: storage.need_record(folder) for name, folder in folders.items()}
    used = ("capture", *remembered.CAPTURE, *remembered.FILTERS)
    settings, remarks = resolve(folders, _capturing(folders, given), used)
    settings = _with_own_pools(settings, folders, given)
    check_machine(folders, _any(settings))
    for line in remarks:
        listener.notice(line)
    ref = generating_model(records)
    wanted = [
        Wanted(
            trait=recorded_trait(name, records[name]),
            folder=folders[name],
            settings=settings[name],
            generates=False,
            judges=False,
            asked=remembered.values(settings[name], used),
        )
        for name in folders
    ]
    return await run_through(wanted, ref, listener, stop, backends, force_unlock=force_unlock)


def _capturing(folders: Mapping[str, TraitFolder], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Capture all responses of runs that were told to leave that to a command like this one."""
    before = {remembered.wanted_before(folder).get("capture") for folder in folders.values()}
    if "capture" not in given and "none" in before and "kept" not in before:
        return {**given, "capture": "all"}
    return given


def settings_of(
    experiment: Path | None, model: str | None, given: Mapping[str, Any]
) -> tuple[RunSettings, str]:
    """Return the settings and the name of the model that a run would go on with, loading nothing.

    Without an experiment, or where it holds no trait yet, these are the given ones and the
    defaults. Raise UsageError where its traits' runs differ.
    """
    folders = _begun(experiment)
    name, _, _ = model_of(folders, model, experiment.name if experiment else "")
    if not folders:
        return addressed(apply(given)), name
    return _any(resolve(folders, given)[0]), name


def model_to_be(experiment: Path | None, model: str | None, adapter: str | None = None) -> ModelRef:
    """Return the model, with its adapter, that a run would go on with, loading nothing.

    Raise UsageError as `settings_of` does, AccessError where one of them is not found.
    """
    folders = _begun(experiment)
    name, _, _ = model_of(folders, model, experiment.name if experiment else "")
    added = adapter_of(folders, adapter, model_named=model is not None)
    return replace(find_model(name), adapter=added)


def _begun(experiment: Path | None) -> dict[str, TraitFolder]:
    """Return the folders of an experiment's traits, none where it has no trait yet."""
    if experiment is None or not any(experiment.glob(f"*/{DEFINITION_FILE}")):
        return {}
    return select(experiment, None)


def _any(settings: Mapping[str, RunSettings]) -> RunSettings:
    return next(iter(settings.values()))


def _paths(folders: Mapping[str, TraitFolder]) -> dict[str, Path]:
    return {name: folder.path for name, folder in folders.items()}


def chosen_model(
    folders: Mapping[str, TraitFolder],
    model: str | None,
    adapter: str | None,
    experiment: Path | str,
    listener: Listener,
) -> ModelRef:
    """Return the model to generate with and its adapter, said to the listener."""
    name, revision, said = model_of(folders, model, Path(experiment).name)
    listener.notice(f"model: {name}{said}")
    ref = replace(
        find_model(name, revision),
        adapter=adapter_of(folders, adapter, model_named=model is not None),
    )
    if ref.adapter is not None:
        listener.notice(f"adapter: {ref.adapter.name}, rank {ref.adapter.rank}")
    return ref


def with_model(settings: RunSettings, ref: ModelRef) -> RunSettings:
    sampling = replace(
        settings.sampling,
        model=ref.name,
        revision=ref.revision,
        adapter=ref.adapter.name if ref.adapter else "",
        adapter_revision=ref.adapter.revision if ref.adapter else "",
    )
    return replace(settings, sampling=sampling)


def _with_own_pools(
    settings: Mapping[str, RunSettings],
    folders: Mapping[str, TraitFolder],
    given: Mapping[str, Any],
) -> dict[str, RunSettings]:
    """Let a pool stand beside those that the runs have: no file of theirs goes.

    But one of thoughts, which takes responses without a thought out of every file, goes where pools
    are named and it is not. One pass captures all traits, so each has the pools of all.
    """
    own = [pool for folder in folders.values() for pool in storage.chosen(folder).pools]
    if "pool" in given:
        own = [pool for pool in own if not pool.startswith("thought")]
    found = {}
    for name, each in settings.items():
        pools = tuple(dict.fromkeys([*own, *each.capture.pools]))
        found[name] = replace(each, capture=replace(each.capture, pools=pools))
    return found
