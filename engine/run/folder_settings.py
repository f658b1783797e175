"""The settings of a run: what is given, then what the folders were made with, then the defaults."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from .. import storage
from ..errors import AccessError, UsageError
from ..judging import OPENAI, authorizes, read_base_url, read_headers
from ..models import ModelRef
from ..settings import DEFAULTS, CaptureSettings, JudgeSettings, RunSettings, Sampling, apply
from ..storage import RunRecord, TraitFolder
from ..traits import FULL, Scale, Trait, other_scale


def resolve(
    folders: Mapping[str, TraitFolder], given: Mapping[str, Any]
) -> tuple[dict[str, RunSettings], list[str]]:
    """Return each trait's settings, and a line for each thing that was taken from a folder.

    What is not given is the folder's own; a folder without a run takes what the first folder with
    one has. Raise UsageError where folders of one command differ in what they must share.
    """
    own = {name: _recorded(folder) for name, folder in folders.items()}
    known = {name: settings for name, settings in own.items() if settings is not None}
    base = next(iter(known.values()), DEFAULTS)
    settings = {
        name: apply(given, _without_extra(known.get(name, base), given)) for name in folders
    }
    settings = {name: _addressed(each, given) for name, each in settings.items()}
    _refuse_differing(settings)
    remarks = []
    first = next(iter(settings.values()))
    if known and "judge_model" not in given and first.judge.model != DEFAULTS.judge.model:
        where = ""
        if first.limits.base_url and not first.judge.is_local:
            where = f" at {first.limits.base_url}"
        remarks.append(
            f"judge: {first.judge.model}{where} (from the run's record; `judge_model` overrides)"
        )
    return settings, remarks


def _without_extra(own: RunSettings, given: Mapping[str, Any]) -> RunSettings:
    """Leave what was added to another judge's requests behind."""
    if given.get("judge_model", own.judge.model) == own.judge.model:
        return own
    return replace(own, judge=replace(own.judge, extra=""))


def _recorded(folder: TraitFolder) -> RunSettings | None:
    """Return the settings that a folder was made with, None where no run has been."""
    record = RunRecord.load(folder.run_record)
    if record is None:
        return None
    chosen = storage.chosen(folder)
    settings = replace(
        DEFAULTS,
        sampling=Sampling(**record.sampling.model_dump()),
        counts=replace(
            DEFAULTS.counts,
            n_examples=record.n_examples,
            min_kept=record.min_kept,
            max_examples=record.max_examples,
        ),
        threshold=chosen.threshold,
        neg_threshold=chosen.neg_threshold,
        paired=chosen.paired,
    )
    if chosen.judge is not None:
        judge: Any = chosen.judge.model_dump(include={"model", "mode", "extra"})
        settings = replace(settings, judge=JudgeSettings(**judge))
        endpoint = chosen.judge.endpoint
        if endpoint and endpoint != OPENAI:
            settings = replace(settings, limits=replace(settings.limits, base_url=endpoint))
    if chosen.capture is not None:
        asked = dict(chosen.capture.asked)
        if asked["layers"] is not None:
            asked["layers"] = tuple(asked["layers"])
        pools = chosen.pools or DEFAULTS.capture.pools
        settings = replace(settings, capture=CaptureSettings(pools=pools, **asked))
    return settings


def _addressed(settings: RunSettings, given: Mapping[str, Any]) -> RunSettings:
    """Take the judge's address from the environment, where neither caller nor folder names one.

    A judge that is named now is not looked for at the address of another one.
    """
    base_url = settings.limits.base_url
    if "judge_base_url" not in given and "judge_model" in given:
        base_url = None
    if base_url is None:
        base_url = os.environ.get("OPENAI_BASE_URL") or None
    return replace(settings, limits=replace(settings.limits, base_url=base_url))


def _refuse_differing(settings: Mapping[str, RunSettings]) -> None:
    """Raise UsageError where one engine, one judge and one capture pass cannot serve all traits."""
    names = {
        "sampling": "models or sampling settings",
        "judge": "judges",
        "capture": "capture settings",
    }
    for group, words in names.items():
        found = {name: getattr(each, group) for name, each in settings.items()}
        if len(set(found.values())) > 1:
            listed = "; ".join(f"{name}: {_short(value)}" for name, value in found.items())
            raise UsageError(
                f"the traits were made with different {words} ({listed}): name one, or run them "
                "one by one"
            )


def _short(value: Any) -> str:
    if isinstance(value, JudgeSettings):
        added = f", `judge_extra` {value.extra}" if value.extra else ""
        return f"{value.model} (`judge_mode` {value.mode}{added})"
    text = str(value)
    return text.partition("(")[2].removesuffix(")")


def recorded_trait(name: str, record: RunRecord, edited: Trait | None = None) -> Trait:
    """Return the definition that a folder was made with; judge prompts as they are in `edited`."""
    definition = record.definition
    prompts = edited.as_json() if edited is not None else definition
    return Trait(
        name=name,
        instructions=tuple((pair["pos"], pair["neg"]) for pair in definition["instruction"]),
        questions=tuple(definition["questions"]),
        eval_prompt=prompts["eval_prompt"],
        yes_no_prompt=prompts.get("yes_no_prompt"),
        scale=Scale(prompts.get("score_min", FULL.low), prompts.get("score_max", FULL.high)),
    )


def scale_remarks(traits: Iterable[Trait], threshold: float | None = None) -> list[str]:
    """Return a line for each definition whose scale is not what it seems.

    `threshold` is the one given now: it is always one of 0 to 100.
    """
    lines = []
    for trait in traits:
        scale = trait.scale
        if asked := other_scale(trait.eval_prompt, scale):
            lines.append(
                f"{trait.name}: eval_prompt asks for {asked}, and its answers are read on a scale "
                f'of {scale}: put "score_min": {asked.low}, "score_max": {asked.high} into the '
                "definition, or ask for the other"
            )
        if threshold and scale.high < FULL.high and threshold <= scale.high:
            lines.append(
                f"{trait.name}: `threshold` {threshold:g} is one of 0 to 100; on the trait's own "
                f"scale of {scale}, {threshold:g} is {scale.percent(threshold):g}"
            )
    return lines


def check_judge(settings: RunSettings) -> None:
    """Raise AccessError where a judge cannot be had, UsageError for a malformed address.

    Before anything loads.
    """
    judge, base_url = settings.judge, settings.limits.base_url
    if judge.model.startswith("local:"):
        from .loading import find_judge

        find_judge(judge.model, ModelRef("", "", "", {}))
    if judge.is_local:
        return
    headers = read_headers()
    if base_url is not None:
        read_base_url(base_url)
    elif not os.environ.get("OPENAI_API_KEY") and not authorizes(headers):
        raise AccessError(
            f"judge {judge.model} needs a key: put OPENAI_API_KEY=sk-... into .env, or name your "
            "own endpoint with `judge_base_url`, or judge without one: `judge_model` local"
        )
