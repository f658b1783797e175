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
from traitmill.engine.records import POLARITIES
from traitmill.engine.run import RunResult, TraitResult
from traitmill.engine.settings import DEFAULT_POOL, DEFAULTS
from traitmill.engine.storage import TraitState
from traitmill.engine.vectors import MIN_CLAIM_ROWS

from .many import listed, total
from .remarks import is_trial, remarks
from .render import command, error_text, fitted

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
_NO_EDGE = 500
"""Columns where there is no terminal: whoever searches a log finds names whole."""
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
    if width is None:
        console.width = _NO_EDGE

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
        yield from remarks(trait)
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
    limit = max(trait.settings.limits.max_cost for trait in result.traits.values())
    if limit and (result.usage.dollars or 0.0) > limit:
        yield (
            f"that is beyond --max_cost ${limit:g}: answers were longer than the endpoint was "
            "told, or prompts have more tokens than one for four characters"
        )


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
    if not trait.exports:
        return "-"
    if facts is None or not state.any_captured():
        return "not captured"
    kept = int((state.exportable() & state.captured()).sum())
    return f"[{kept}, {len(facts.layers)}, {facts.hidden_dim}]"


def _bars(histogram: list[int]) -> str:
    top = max(histogram) or 1
    return "".join(_LEVELS[-(-count * (len(_LEVELS) - 1) // top)] for count in histogram)


def _next_steps(result: RunResult, *, goes_on: bool) -> Iterator[str]:
    """Yield what to do next, nothing where the caller does that itself."""
    done = [trait for trait in result.traits.values() if trait.finished]
    if result.exit_code == ExitCode.INTERRUPTED:
        yield "interrupted; everything above is stored. Run the same command again to go on"
        return
    if result.errors or not done:
        yield "what is stored is safe; run the same command again to go on"
        return
    if any(_tries_again(trait.state) for trait in done):
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


def _tries_again(state: TraitState) -> bool:
    """Return whether the same command has something to try once more."""
    verdicts = state.verdicts.having("failed") & ~state.verdicts.given_up()
    failed = state.responses.having("failed") | state.capture_failed() | verdicts
    return bool(failed.any())


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
