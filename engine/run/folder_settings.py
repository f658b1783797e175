"""The settings of a run: what is given, then what the folders were made with, then the defaults."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .. import storage
from ..errors import AccessError, UsageError
from ..judging import OPENAI, authorizes, header_secrets, is_near, read_base_url, read_headers
from ..models import ModelRef
from ..settings import DEFAULTS, CaptureSettings, JudgeSettings, RunSettings, Sampling, apply
from ..storage import RunRecord, TraitFolder, runs_of
from ..traits import FULL, Scale, Trait, other_scale
from . import remembered


def resolve(
    folders: Mapping[str, TraitFolder],
    given: Mapping[str, Any],
    used: Sequence[str] = remembered.RUN,
    *,
    resets: bool = True,
    names_model: bool = False,
) -> tuple[dict[str, RunSettings], list[str]]:
    """Return each trait's settings, and a line that says what was taken from the folders.

    What is not given is the folder's own; a folder without a run takes what the first folder with
    one has, or the experiment's latest run where none has. `used`: the settings that matter to the
    command; `resets`: it can give each its default; `names_model`: it names the model for all.
    Raise UsageError where folders of one command differ in what they must share.
    """
    own = {name: _recorded(folder) for name, folder in folders.items()}
    known = {name: settings for name, settings in own.items() if settings is not None}
    begun = {} if known else runs_of(folders)
    others = {name: found for name, each in begun.items() if (found := _recorded(each))}
    base = next(iter((known or others).values()), DEFAULTS)
    if others and names_model:
        base = _of_another_model(base)
    for name, each in known.items():
        _check_own_threshold(name, each, given)
    settings = {
        name: apply(given, _without_extra(known.get(name, base), given)) for name in folders
    }
    settings = {name: addressed(each) for name, each in settings.items()}
    compared = settings
    if names_model:
        compared = {name: _without_model(each) for name, each in settings.items()}
    _refuse_differing(compared, used)
    if not known and not others:
        return settings, []
    whose = f"trait {next(iter(others))}" if others else "the folder"
    first = settings[next(iter(known), next(iter(settings)))]
    matter = _that_matter(first, used)
    line = remembered.kept_line(first, given, matter, whose, resets=resets)
    return settings, [line] if line else []


def _check_own_threshold(name: str, own: RunSettings, given: Mapping[str, Any]) -> None:
    """Raise UsageError where a threshold is named that the one the folder has for neg is above."""
    threshold, low = given.get("threshold"), own.neg_threshold
    if "neg_threshold" in given or low is None or not isinstance(threshold, int | float):
        return
    if threshold < low:
        raise UsageError(
            f"{name} remembers `neg_threshold` {low:g}, which must not be above `threshold` "
            f"{threshold:g}: give a lower `neg_threshold`, or `neg_threshold` off"
        )


def _that_matter(settings: RunSettings, used: Iterable[str]) -> list[str]:
    """Leave the address of a judge out that has none."""
    return [name for name in used if name != "judge_base_url" or not settings.judge.is_local]


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
        if endpoint := chosen.judge.endpoint:
            settings = replace(settings, limits=replace(settings.limits, base_url=endpoint))
    if chosen.capture is not None:
        asked = dict(chosen.capture.asked)
        if asked["layers"] is not None:
            asked["layers"] = tuple(asked["layers"])
        pools = chosen.pools or DEFAULTS.capture.pools
        settings = replace(settings, capture=CaptureSettings(pools=pools, **asked))
    return apply(remembered.wanted_before(folder), settings)


def addressed(settings: RunSettings) -> RunSettings:
    """Name the judge's address: the one given or the folder's, else the environment's, else
    OpenAI's.

    A judge that is named now is asked at the folder's address too: no text goes to an address that
    nobody named.
    """
    limits = settings.limits
    if settings.judge.is_local or limits.base_url is not None:
        return settings
    base_url = os.environ.get("OPENAI_BASE_URL") or OPENAI
    return replace(settings, limits=replace(limits, base_url=base_url))


def _of_another_model(settings: RunSettings) -> RunSettings:
    """Leave out what suits the model that it was chosen for."""
    sampling, capture, execution = settings.sampling, settings.capture, settings.execution
    own = DEFAULTS.sampling
    sampling = replace(
        sampling,
        dtype=own.dtype,
        thinking=own.thinking,
        chat_template_kwargs=own.chat_template_kwargs,
    )
    capture = replace(DEFAULTS.capture, pools=capture.pools)
    execution = replace(execution, blocks=DEFAULTS.execution.blocks)
    return replace(settings, sampling=sampling, capture=capture, execution=execution)


def _without_model(settings: RunSettings) -> RunSettings:
    return replace(settings, sampling=replace(settings.sampling, model="", revision=""))


def _refuse_differing(settings: Mapping[str, RunSettings], used: Sequence[str]) -> None:
    """Raise UsageError where one engine, one judge and one capture pass cannot serve all traits.

    A judge that the command does not ask may differ.
    """
    judges = "judge_model" in used
    names = {
        "sampling": "models or sampling settings",
        "judge": "judges",
        "capture": "capture settings",
        "capture_rows": "choices of whose activations are captured",
    }
    for group, words in names.items():
        if group == "judge" and not judges:
            continue
        found = {name: getattr(each, group) for name, each in settings.items()}
        if len(set(found.values())) > 1:
            listed = "; ".join(f"{name}: {_short(value)}" for name, value in found.items())
            raise UsageError(
                f"the traits were made with different {words} ({listed}): name one, or run them "
                "one by one"
            )
    addresses = {name: each.limits.base_url for name, each in settings.items()}
    remote = judges and not next(iter(settings.values())).judge.is_local
    if remote and len(set(addresses.values())) > 1:
        listed = "; ".join(f"{name}: {address}" for name, address in addresses.items())
        raise UsageError(
            f"the traits were judged at different addresses ({listed}): name one with "
            "`judge_base_url`, or run them one by one"
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
    names = definition.get("assistant_name")
    return Trait(
        name=name,
        instructions=tuple(
            (pair["pos"] or "", pair["neg"] or "") for pair in definition["instruction"]
        ),
        questions=tuple(definition["questions"] or [""]),
        eval_prompt=prompts["eval_prompt"],
        yes_no_prompt=prompts.get("yes_no_prompt"),
        coherence_prompt=prompts.get("coherence_prompt"),
        steering_questions=tuple(prompts.get("steering_questions", ())),
        scale=Scale(prompts.get("score_min", FULL.low), prompts.get("score_max", FULL.high)),
        assistant_name=(names["pos"], names["neg"]) if names is not None else None,
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


def check_judge(settings: RunSettings, given: Mapping[str, Any]) -> None:
    """Raise AccessError where a judge cannot be had, UsageError for a malformed address.

    Before anything loads. `given` are the settings that the command was given: a key goes to no
    address that a folder alone names, which may be somebody else's.
    """
    judge, base_url = settings.judge, settings.limits.base_url
    if judge.model.startswith("local:"):
        from .loading import find_judge

        find_judge(judge.model, ModelRef("", "", "", {}))
    if judge.is_local:
        return
    headers = read_headers()
    if base_url not in (None, OPENAI):
        url = read_base_url(str(base_url))
        named = {given.get("judge_base_url"), os.environ.get("OPENAI_BASE_URL")}
        named = {each.rstrip("/") for each in named if each}
        has_key = os.environ.get("OPENAI_API_KEY") or header_secrets(headers)
        if has_key and url.rstrip("/") not in named and not is_near(url):
            raise AccessError(
                f"your key for the judge would go to {url}, which nobody named but the folder: add "
                f"`judge_base_url` {url} to the command, or put OPENAI_BASE_URL={url} into .env"
            )
    elif not os.environ.get("OPENAI_API_KEY") and not authorizes(headers):
        raise AccessError(
            f"judge {judge.model} needs a key: put OPENAI_API_KEY=sk-... into .env, or name your "
            "own endpoint with `judge_base_url`, or judge without one: `judge_model` local"
        )
