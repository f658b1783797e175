"""What commands on stored records share: their settings come from the folder's own record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from traitmill.cli.session import Outcome, run_jobs
from traitmill.engine.errors import UsageError
from traitmill.engine.models.hub import ModelRef, find_model, lazy_tokenizer
from traitmill.engine.settings import CaptureSettings, Sampling, JudgeSettings, SampleCounts, RunSettings, Execution, Selection
from traitmill.engine.storage.run_record import Manifest, need_manifest
from traitmill.engine.traits.definition import Trait


def recorded_settings(manifest: Manifest) -> RunSettings:
    """The settings a folder was made with, as classes."""
    recorded = manifest.settings

    def build(cls: Any, values: Mapping[str, Any]) -> Any:
        known = {field.name for field in fields(cls)}
        return cls(
            **{
                name: tuple(v) if isinstance(v, list) else v
                for name, v in values.items()
                if name in known
            }
        )

    return RunSettings(
        sampling=build(Sampling, recorded["identity"]),
        plan=build(SampleCounts, recorded["plan"]),
        judging=build(JudgeSettings, recorded["judging"]),
        capture=build(CaptureSettings, recorded["capture"]),
        view=build(Selection, recorded["view"]),
    )


def recorded_trait(name: str, manifest: Manifest) -> Trait:
    """The definition a folder was made with."""
    definition = manifest.definition
    pairs = tuple((pair["pos"], pair["neg"]) for pair in definition["instruction"])
    questions = tuple(definition["questions"])
    return Trait(name, pairs, questions, definition["eval_prompt"], definition.get("yes_no_prompt"))


def generating_model(manifests: Iterable[Manifest]) -> ModelRef:
    """The one model that generated all the responses. Raises UsageError where there are several, or it has changed."""
    made_with = {
        (manifest.source_name, str(manifest.settings["identity"]["revision"]))
        for manifest in manifests
    }
    if len(made_with) > 1:
        names = ", ".join(sorted(f"{source} ({revision})" for source, revision in made_with))
        raise UsageError(f"the traits were made with different models, {names}; run them apart")
    ((source, revision),) = made_with
    ref = find_model(source)
    if ref.revision != revision:
        raise UsageError(
            f"model {source} has changed since the responses were generated ({revision} -> {ref.revision}); restore "
            "its files, or generate again with --new_run"
        )
    return ref


def work_on_stored(
    folders: Mapping[str, Path],
    change: Callable[[RunSettings], RunSettings],
    execution: Execution,
    *,
    judge: bool,
    edited: Mapping[str, Trait] | None = None,
    blocks: str | None = None,
    force_unlock: bool = False,
) -> Outcome:
    """Judge or capture what is stored. All traits must share one model and one setting of how they are worked on.

    `edited` are definitions whose judge prompts are wanted now; without it the recorded ones stand.
    """
    manifests = {name: need_manifest(folder) for name, folder in folders.items()}
    settings = {
        name: replace(change(recorded_settings(m)), execution=execution) for name, m in manifests.items()
    }
    first = next(iter(settings.values()))
    for name, own in settings.items():
        same = (own.sampling, own.capture, own.judging) == (
            first.sampling,
            first.capture,
            first.judging,
        )
        if not same:
            raise UsageError(
                f"{name} was made with another model or other settings than the others; run it by itself"
            )
    # a remote judge reads texts: the model that wrote them may be gone
    remote = judge and first.capture_rows == "none" and not first.judging.is_local
    recorded = ModelRef(first.sampling.model, first.sampling.model, first.sampling.revision, {})
    ref = recorded if remote else generating_model(manifests.values())
    from traitmill.engine.run.job import reopen_job

    tokenize = lazy_tokenizer(ref)
    return run_jobs(
        folders,
        lambda notice: [
            reopen_job(
                (edited or {}).get(name) or recorded_trait(name, manifests[name]),
                folder,
                settings[name],
                tokenize,
                notice,
                judge=judge,
            )
            for name, folder in folders.items()
        ],
        first,
        ref,
        generate=False,
        judge=judge,
        blocks=blocks,
        force_unlock=force_unlock,
    )
