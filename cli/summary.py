"""The end of a run on screen: one table, what is remarkable, what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from traitmill.engine.errors import ExitCode
from traitmill.engine.outputs import judge_summary
from traitmill.engine.records import MOST_TRIES, POLARITIES, Polarity
from traitmill.engine.run import RunResult, TraitResult
from traitmill.engine.settings import DEFAULT_POOL, DEFAULTS
from traitmill.engine.vectors import MIN_CLAIM_ROWS

from .many import listed, total
from .render import command, command_of, error_text, fitted, options_in

_LEVELS = " ▁▂▃▄▅▆▇█"
_COLUMNS = (
    "trait",
    "side",
    "generated",
    "judged",
    "kept",
    "0 scores 100",
    "judge AUROC",
    "activations",
)
_ROOM = 100
"""Columns of a terminal below which the last column makes room for the names."""
_NUMBERS = ("generated", "judged", "kept")


def print_summary(console: Console, result: RunResult, *, goes_on: bool = False) -> None:
    """Write what came out of each trait, time, cost, errors and the next command.

    `goes_on`: the caller does what comes next by itself.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    columns: Sequence[str] = _COLUMNS
    if console.is_terminal and console.width < _ROOM:
        columns = _COLUMNS[:-1]
    for column in columns:
        justify: Any = "right" if column in _NUMBERS else "left"
        table.add_column(column, justify=justify, no_wrap=column != "trait", overflow="fold")
    shown = listed(result)
    for trait in shown:
        for row in _rows(trait):
            table.add_row(*map(Text, row[: len(columns)]))
    width = console.width if console.is_terminal else None

    def write(line: str) -> None:
        console.print(fitted(line, width), markup=False, soft_wrap=True)

    if len(result.traits) > 1:
        write(total(result, shown))
    if shown:
        console.print(table)
    for line in (*_lines(result, shown), *_next_steps(result, goes_on=goes_on)):
        write(line)


def _lines(result: RunResult, shown: Sequence[TraitResult]) -> Iterator[str]:
    yield from _time(result)
    yield from _cost(result)
    for trait in shown:
        yield from _remarks(trait)
    for error in result.errors:
        yield f"stopped: {error_text(error)}"
    if result.log is not None and result.log.exists():
        yield f"log: {result.log}"


def _cost(result: RunResult) -> Iterator[str]:
    """Yield what a remote judge has used, and what all of it will cost by that."""
    if result.usage is None:
        return
    left = sum(int(trait.state.unjudged().sum()) for trait in result.traits.values())
    dollars = result.usage.projected(left)
    said = f"judge: {result.usage}"
    if left and dollars is not None:
        said += f", ${dollars:.4f} expected in all"
    yield said


def _time(result: RunResult) -> Iterator[str]:
    parts = []
    for stage, clock in result.clocks.items():
        if clock.records:
            part = f"{stage} {clock.seconds:.1f} s"
            if stage == "generation" and clock.seconds:
                part += f" ({clock.tokens / clock.seconds:,.0f} tokens/s)"
            parts.append(part)
    if parts:
        yield f"time: {', '.join(parts)}; {result.seconds:.1f} s in all"


def _rows(trait: TraitResult) -> Iterator[tuple[str, ...]]:
    counts, judge = trait.state.counts(), judge_summary(trait.state)
    auroc = {"pos": "-", "neg": ""}
    if judge["auroc"] is not None:
        low, high = judge["auroc_interval"]
        auroc = {"pos": f"{judge['auroc']:.2f}", "neg": f"({low:.2f}-{high:.2f})"}
    heads = {"pos": (trait.name, _shape(trait)), "neg": ("", "")}
    for polarity in POLARITIES:
        side, (name, shape) = counts[polarity], heads[polarity]
        generated = side["planned"] - side["responses"]["pending"]
        yield (
            name,
            polarity,
            f"{generated}/{side['planned']}",
            str(side["verdicts"]["scored"]),
            str(side["kept"]) if trait.exports else "-",
            " " + _bars(judge["histogram"][polarity]),
            auroc[polarity],
            shape,
        )


def _shape(trait: TraitResult) -> str:
    facts, state = trait.state.capture, trait.state
    if facts is None or not state.any_captured():
        return "not captured"
    kept = int((state.exportable() & state.captured()).sum())
    return f"[{kept}, {len(facts.layers)}, {facts.hidden_dim}]"


def _bars(histogram: list[int]) -> str:
    top = max(histogram) or 1
    return "".join(_LEVELS[-(-count * (len(_LEVELS) - 1) // top)] for count in histogram)


def _remarks(trait: TraitResult) -> Iterator[str]:
    counts = trait.state.counts()
    if not trait.exports:
        scored = sum(counts[polarity]["verdicts"]["scored"] for polarity in POLARITIES)
        yield f"{trait.name}: {scored} responses have a score for coherence; no file has changed"
        return
    unknown = trait.state.coherence_unknown()
    if unknown:
        yield (
            f"{trait.name}: {unknown} responses pass but for a score of their coherence; judge it "
            f"and export again: {command(trait.folder.step('judge', ask='coherence'))}"
        )
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
    yield (
        f"{trait.name}: WARNING: this judge cannot tell the two sides apart (AUROC "
        f"{judge['auroc']:.2f}, interval {low:.2f} to {high:.2f}); what it keeps means little"
    )
    yield f"  read what it left out: {command_of('show', folder, rejected=True)}"
    yield (
        "  then mend its prompt in the definition, or name another with --judge_model: "
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
    if found["unfinished"]:
        allowance = trait.state.record.sampling.max_thinking_tokens
        yield (
            f"{trait.name}: {found['unfinished']} {polarity} thoughts did not end within "
            f"{allowance} tokens and have no response; allow more with --max_thinking_tokens in "
            "another experiment, or with --new_run"
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
    if min(kept) < wanted.min_kept:
        end = "traitmill generate adds rounds"
        if max(planned) >= wanted.limit:
            end = f"the limit of {wanted.limit} a side is reached"
    yield (
        f"{trait.name}: {kept[0]} pos + {kept[1]} neg kept of {planned[0]} + {planned[1]}, "
        f"--min_kept {wanted.min_kept}: {end}"
    )


def _next_steps(result: RunResult, *, goes_on: bool) -> Iterator[str]:
    """Yield what to do next, nothing where the caller does that itself."""
    done = [trait for trait in result.traits.values() if trait.finished]
    if result.exit_code == ExitCode.INTERRUPTED:
        yield "interrupted; everything above is stored. Run the same command again to go on"
        return
    if result.errors or not done:
        yield "what is stored is safe; run the same command again to go on"
        return
    if result.exit_code == ExitCode.FAILED_SAMPLES:
        yield "samples that failed are tried once more when the same command is run again"
    names, folder = [trait.name for trait in done], done[0].folder
    if not done[0].exports:
        yield f"next: {command(folder.step('export', coherence=50), names)}"
        return
    if all(map(is_trial, done)):
        yield from _after_trial(done, goes_on=goes_on)
        return
    uncaptured = any(trait.exported and trait.exported.uncaptured for trait in done)
    if uncaptured or not all(trait.state.any_captured() for trait in done):
        yield f"next: {command(folder.step('activations'), names)}"
        return
    if goes_on or result.exit_code == ExitCode.NOTHING_KEPT:
        return
    pools = done[0].state.choice.pools
    pool = DEFAULT_POOL if DEFAULT_POOL in pools else pools[0]
    yield f"next: {command(folder.step('vectors', pool=pool), names)}"


def is_trial(trait: TraitResult) -> bool:
    """Return whether so few are planned that nothing can be claimed of them, nor of the judge."""
    planned = trait.state.plan.n_planned.values()
    return max(planned, default=0) < MIN_CLAIM_ROWS


def _after_trial(done: Sequence[TraitResult], *, goes_on: bool) -> Iterator[str]:
    """Yield what a first look at a few responses is for, and how to go on."""
    planned = max(max(trait.state.plan.n_planned.values()) for trait in done)
    names, folder = [trait.name for trait in done], done[0].folder
    yield (
        f"a trial of {planned} a side: too few for a figure of the judge or of a vector "
        f"({MIN_CLAIM_ROWS} a side are needed). If the responses read well, go on with more; none "
        "is made twice"
    )
    step = folder.step("run" if goes_on else "generate", n_examples=DEFAULTS.counts.n_examples)
    yield f"next: {command(step, names)}"
