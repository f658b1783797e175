"""What is remarkable about a trait at the end of a run, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from traitmill.engine.outputs import coherence_step, judge_summary
from traitmill.engine.records import MOST_TRIES, POLARITIES, Polarity
from traitmill.engine.run import TraitResult
from traitmill.engine.vectors import MIN_CLAIM_ROWS

from .render import command, command_of, options_in


def remarks(trait: TraitResult) -> Iterator[str]:
    counts = trait.state.counts()
    if not trait.exports:
        scored = sum(counts[polarity]["verdicts"]["scored"] for polarity in POLARITIES)
        yield f"{trait.name}: {scored} responses have a score for coherence; no file has changed"
        return
    unknown = trait.state.coherence_unknown()
    if unknown:
        yield (
            f"{trait.name}: {unknown} responses pass but for a score of their coherence; judge it "
            f"and export again: {command(coherence_step(trait.state))}"
        )
    least = trait.state.choice.coherence
    if least is not None:
        off = command(trait.folder.step("export", coherence="off"))
        yield f"{trait.name}: only what scores {least:g} for coherence is kept; to end that: {off}"
    for polarity in POLARITIES:
        yield from _side_remarks(trait, polarity, counts[polarity])
    yield from _rounds(trait, counts)
    given_up = int(trait.state.verdicts.given_up().sum())
    if given_up:
        yield (
            f"{trait.name}: {given_up} verdicts are given up: the endpoint refuses the text, or it "
            f"failed alone in {MOST_TRIES} runs (column error in {trait.folder.records}/verdicts). "
            "They are not asked for again, unless with --judge_retry"
        )
    if is_blind(trait):
        yield from _of_blind(trait)
    exported = trait.exported
    if exported is None:
        return
    if exported.uncaptured:
        step = command(trait.folder.step("activations"))
        yield (
            f"{trait.name}: {exported.uncaptured} kept responses have no activations, so there is "
            f"no tensor; capture them with: {step}"
        )
    lacking = int((trait.state.passing() & trait.state.unpoolable()).sum())
    if lacking:
        pools = ", ".join(pool for pool in trait.state.choice.pools if pool.startswith("thought"))
        yield (
            f"{trait.name}: {lacking} responses that pass have nothing to pool for {pools}, so no "
            "file holds them; to leave that pool out: "
            f"{command(trait.folder.step('activations', reset='pool'))}"
        )
    if exported.thinking:
        yield f"{trait.name}: {options_in(exported.thinking)}"
    root = trait.folder.path
    files = ", ".join(str(path.relative_to(root)) for path in exported.files)
    yield f"{trait.name}: files in {root}/: {files}"


def is_blind(trait: TraitResult) -> bool:
    """Return whether a trait's judge is not shown to tell its sides apart, by enough scores."""
    judge = judge_summary(trait.state)
    return judge["auroc"] is not None and judge["auroc_interval"][0] <= 0.5 and not is_trial(trait)


def _of_blind(trait: TraitResult) -> Iterator[str]:
    judge, folder = judge_summary(trait.state), trait.folder.path
    low, high = judge["auroc_interval"]
    figures = f"(AUROC {judge['auroc']:.2f}, interval {low:.2f} to {high:.2f})"
    if high < 0.5:
        yield (
            f"{trait.name}: WARNING: this judge scores neg above pos {figures}: the two sides, or "
            "the ends of its scale, look swapped; what it keeps are its exceptions"
        )
    else:
        yield (
            f"{trait.name}: WARNING: this judge cannot tell the two sides apart {figures}; what it "
            "keeps means little"
        )
    yield f"  read what it left out: {command_of('show', folder, rejected=True)}"
    # A local judge reads no eval_prompt.
    prompt = "yes_no_prompt" if trait.settings.judge.is_local else "eval_prompt"
    yield (
        f"  then mend {prompt} in the definition, or name another judge with --judge_model: "
        f"{command_of('judge', folder)}"
    )


def _side_remarks(trait: TraitResult, polarity: Polarity, side: dict[str, Any]) -> Iterator[str]:
    names = ("empty", "overlong", "failed", "unfinished")
    found = {name: side["responses"][name] for name in names}
    found |= {name: n for name, n in side["verdicts"].items() if name != "scored"}
    found |= {
        "capture failed": side["capture_failed"],
        "cut off at --max_new_tokens": side["cut_off"],
    }
    problems = [f"{count} {name}" for name, count in found.items() if count]
    if problems:
        yield f"{trait.name} {polarity}: {', '.join(problems)}"
    responses = trait.state.responses
    open_thoughts = trait.state.side(polarity) & responses.having("unfinished")
    if stopped := int((open_thoughts & responses.facts["cut_off"]).sum()):
        allowance = trait.state.record.sampling.max_thinking_tokens
        yield (
            f"{trait.name}: {stopped} {polarity} thoughts did not end within "
            f"{allowance} tokens and have no response; allow more with --max_thinking_tokens in "
            "another experiment, or with --new_run"
        )
    if ended := found["unfinished"] - stopped:
        yield (
            f"{trait.name}: in {ended} {polarity} samples the model ended its turn inside the "
            "thought, so they have no response; more tokens would not change that"
        )
    scored = side["verdicts"]["scored"]
    answered = sum(side["verdicts"][name] for name in ("refused", "unparsable", "truncated"))
    if answered and not scored:
        yield (
            f"{trait.name}: no {polarity} response has a score: the judge answers, but gives no "
            f"number. Read its answers (column raw in {trait.folder.records}/verdicts), and try "
            "another eval_prompt or judge"
        )
    if scored and not side["kept"] and not side["verdicts"]["unjudged"]:
        option = "--threshold"
        if trait.state.choice.neg_threshold is not None and polarity == "neg":
            option = "--neg_threshold"
        pairs = " together with its twin (--paired)" if trait.state.choice.paired else ""
        yield (
            f"{trait.name}: no {polarity} response passes the threshold "
            f"{trait.state.choice.thresholds[polarity]:g}{pairs} (scores above). Try another "
            f"{option} with traitmill export, stronger instructions, or another judge"
        )


def _rounds(trait: TraitResult, counts: dict[str, Any]) -> Iterator[str]:
    wanted = trait.settings.counts
    if not wanted.min_kept or not trait.decided:
        return
    kept = [counts[polarity]["kept"] for polarity in POLARITIES]
    planned = [counts[polarity]["planned"] for polarity in POLARITIES]
    end = "enough"
    if trait.state.coherence_unknown():
        end = "their coherence is to be judged first (above)"
    elif min(kept) < wanted.min_kept:
        end = "traitmill generate adds rounds"
        if max(planned) >= wanted.limit:
            end = f"the limit of {wanted.limit} a side is reached"
    yield (
        f"{trait.name}: {kept[0]} pos + {kept[1]} neg kept of {planned[0]} + {planned[1]}, "
        f"--min_kept {wanted.min_kept}: {end}"
    )


def is_trial(trait: TraitResult) -> bool:
    """Return whether so few are planned that nothing can be claimed of them, nor of the judge."""
    planned = trait.state.plan.n_planned.values()
    return max(planned, default=0) < MIN_CLAIM_ROWS
