"""What a person sees of a run: progress while it goes, one table when it ends. All numbers are counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from traitmill.engine.errors import ExitCode
from traitmill.engine.records import POLARITIES
from traitmill.engine.storage.experiment import command_on

if TYPE_CHECKING:
    from traitmill.cli.session import Outcome
    from traitmill.engine.run.job import TraitJob
    from traitmill.engine.run.launch import Launch

_PLAIN_EVERY_S = 10.0
_REDRAW_S = 0.5
_LEVELS = " ▁▂▃▄▅▆▇█"


class Display:
    """Progress, notices and the summary on a terminal; plain lines elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False, soft_wrap=not stream.isatty())
        self._started = time.monotonic()

    def attach(self, stream: TextIO) -> None:
        """Write to this stream from now on (file descriptors 1 and 2 belong to the log)."""
        self._console = Console(file=stream, highlight=False, soft_wrap=not stream.isatty())

    def notice(self, line: str) -> None:
        """One line above the progress."""
        self._console.print(line, markup=False)

    @contextmanager
    def watching(self, launch: Launch) -> Iterator[None]:
        """Show progress while the block runs, from a thread: the event loop never waits for a terminal."""
        if launch.idle:
            yield
            return
        ended = threading.Event()
        thread = threading.Thread(target=self._watch, args=(launch, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _watch(self, launch: Launch, ended: threading.Event) -> None:
        if not self._console.is_terminal:
            while not ended.wait(_PLAIN_EVERY_S):
                if launch.pipeline.elapsed:
                    self.notice(_line(launch))
            return
        # The process's own stdout belongs to the log; rich would bring it back to the screen.
        quiet = {"redirect_stdout": False, "redirect_stderr": False}
        with Live(console=self._console, auto_refresh=False, transient=True, **quiet) as live:
            while not ended.wait(_REDRAW_S):
                live.update(_progress(launch), refresh=True)

    # --- end -------------------------------------------------------------------------------------------------

    def summary(self, launch: Launch, outcome: Outcome, log: Path) -> None:
        """What came out of each trait, the seconds per stage, files, errors and what to do next."""
        console = self._console
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        for column in (
            "trait",
            "side",
            "generated",
            "judged",
            "kept",
            "0 scores 100",
            "judge AUROC",
            "activations",
        ):
            table.add_column(
                column,
                justify="right" if column in ("generated", "judged", "kept") else "left",
                no_wrap=column != "trait",
                overflow="fold",
            )
        for job in outcome.jobs:
            _add_rows(table, job)
        console.print(table)
        seconds = [
            f"{stage} {clock.seconds:.1f} s"
            for stage, clock in launch.pipeline.clocks.items()
            if clock.records
        ]
        if seconds:
            generation = launch.pipeline.clocks["generation"]
            rate = (
                f" ({generation.tokens / generation.seconds:,.0f} tokens/s)"
                if generation.seconds
                else ""
            )
            self.notice(
                f"time: {', '.join(seconds)}{rate}; {time.monotonic() - self._started:.1f} s in all"
            )
        if launch.usage is not None:
            self.notice(f"judge: {launch.usage}{_projected(launch)}")
        for job in outcome.jobs:
            for line in _remarks(job):
                self.notice(line)
        for error in outcome.errors:
            self.notice(f"stopped: {error}")
        if log.exists():
            self.notice(f"log: {log}")
        self.notice(_next_step(outcome))


def _add_rows(table: Table, job: TraitJob) -> None:
    counts = job.view.counts()
    from traitmill.engine.outputs.export import judge_summary

    judge = judge_summary(job.view)
    auroc = {"pos": "-", "neg": ""}
    if judge["auroc"] is not None:
        low, high = judge["auroc_interval"]
        auroc = {"pos": f"{judge['auroc']:.2f}", "neg": f"({low:.2f}-{high:.2f})"}
    for polarity in POLARITIES:
        side = counts[polarity]
        generated = sum(n for status, n in side["responses"].items() if status != "pending")
        first = polarity == "pos"
        table.add_row(
            job.name if first else "",
            polarity,
            f"{generated}/{side['planned']}",
            str(side["verdicts"]["scored"]),
            str(side["kept"]),
            " " + _bars(judge["histogram"][polarity]),
            auroc[polarity],
            _shape(job) if first else "",
        )


def _shape(job: TraitJob) -> str:
    facts = job.view.manifest.captures.get(job.view.manifest.capture_key)
    if facts is None or not job.view.any_captured():
        return "not captured"
    kept = int((job.view.passing() & job.view.captured()).sum())
    return f"[{kept}, {len(facts['layers'])}, {facts['hidden_dim']}]".replace("[", r"\[", 1)


def _bars(histogram: list[int]) -> str:
    top = max(histogram) or 1
    return "".join(_LEVELS[-(-count * (len(_LEVELS) - 1) // top)] for count in histogram)


def _remarks(job: TraitJob) -> Iterator[str]:
    from traitmill.engine.outputs.export import judge_summary

    view, counts = job.view, job.view.counts()
    for polarity in POLARITIES:
        side = counts[polarity]
        problems = {
            n: c for n, c in side["responses"].items() if c and n in ("empty", "overlong", "failed")
        }
        problems |= {n: c for n, c in side["verdicts"].items() if c and n != "scored"}
        if side["capture_failed"]:
            problems["capture failed"] = side["capture_failed"]
        if side["cut_off"]:
            problems["cut off at --max_new_tokens"] = side["cut_off"]
        if problems:
            yield f"{job.name} {polarity}: " + ", ".join(
                f"{count} {name}" for name, count in problems.items()
            )
        answered = any(
            side["verdicts"].get(status) for status in ("refused", "unparsable", "truncated")
        )
        if answered and not side["verdicts"]["scored"]:
            yield (
                f"{job.name}: no {polarity} response has a score: the judge answers, but gives no number. Read its "
                f"answers (column raw in {view.folder}/parquet/verdicts), and try another eval_prompt or judge"
            )
        if (
            side["planned"]
            and not side["kept"]
            and side["verdicts"]["scored"]
            and not side["verdicts"]["unjudged"]
        ):
            yield (
                f"{job.name}: no {polarity} response passes the threshold {view.threshold:g} (scores above). Try "
                "another --threshold with traitmill export, stronger instructions, or another judge"
            )
    plan = job.settings.counts
    if plan.min_kept and job.decided:
        kept = [counts[polarity]["kept"] for polarity in POLARITIES]
        planned = [counts[polarity]["planned"] for polarity in POLARITIES]
        end = "enough"
        if min(kept) < plan.min_kept:
            limit = max(planned) >= plan.limit
            end = (
                f"the limit of {plan.limit} a side is reached"
                if limit
                else "traitmill generate adds rounds"
            )
        yield (
            f"{job.name}: {kept[0]} pos + {kept[1]} neg kept of {planned[0]} + {planned[1]}, --min_kept "
            f"{plan.min_kept}: {end}"
        )
    judge = judge_summary(view)
    if judge["auroc"] is not None and judge["auroc_interval"][0] <= 0.5:
        yield (
            f"{job.name}: WARNING: this judge cannot tell the two sides apart (AUROC {judge['auroc']:.2f}, interval "
            f"{judge['auroc_interval'][0]:.2f} to {judge['auroc_interval'][1]:.2f}); what it keeps means little"
        )
    if job.exported and job.exported.uncaptured:
        yield (
            f"{job.name}: {job.exported.uncaptured} kept responses have no activations, so there is no tensor; capture "
            f"them with: {command_on('activations', job.folder)}"
        )
    if job.exported:
        yield f"{job.name}: files in {job.folder}/: " + ", ".join(
            str(path.relative_to(job.folder)) for path in job.exported.files
        )


def _next_step(outcome: Outcome) -> str:
    names = [job.name for job in outcome.jobs if job.finished]
    if outcome.exit_code == ExitCode.INTERRUPTED:
        return "interrupted; everything above is stored. Run the same command again to go on"
    if outcome.errors or not names:
        return "what is stored is safe; run the same command again to go on"
    folder = outcome.jobs[0].folder.parent / names[0]
    uncaptured = [job.exported is not None and job.exported.uncaptured for job in outcome.jobs]
    alone = [
        job.settings.capture_rows == "none" and not job.view.any_captured() for job in outcome.jobs
    ]
    if any(uncaptured) or any(alone):
        return f"next: {command_on('activations', folder, names)}"
    pools = outcome.jobs[0].settings.capture.pools
    pool = "" if "response_mean" in pools else f" --pool {pools[0]}"
    return f"next: {command_on('vectors', folder, names)}{pool}"


# --- progress ----------------------------------------------------------------------------------------------------


def _numbers(launch: Launch) -> dict[str, tuple[int, int]]:
    """Done and total of each stage, over all traits."""
    jobs = launch.pipeline.jobs
    planned = sum(len(job.view.plan) for job in jobs)
    generated = planned - sum(job.todo.generation for job in jobs)
    useless = sum(
        int(job.view.responses.having("empty", "overlong", "failed").sum()) for job in jobs
    )
    judgeable = planned - useless
    return {
        "generation": (generated, planned),
        "judging": (max(0, generated - useless - sum(job.todo.judging for job in jobs)), judgeable),
        "capture": (max(0, generated - useless - sum(job.todo.capture for job in jobs)), judgeable),
    }


def _kept(launch: Launch) -> str:
    sides = []
    for polarity in POLARITIES:
        kept = sum(
            int((job.view.passing() & job.view.side(polarity)).sum())
            for job in launch.pipeline.jobs
        )
        sides.append(f"{kept} {polarity}")
    return " + ".join(sides)


def _rate(launch: Launch, stage: str) -> str:
    clock = launch.pipeline.clocks[stage]  # type: ignore[index]
    if not clock.records or not clock.seconds:
        return ""
    if stage == "judging":
        return f"{60 * clock.records / clock.seconds:,.0f}/min"
    return f"{clock.tokens / clock.seconds:,.0f} tokens/s"


def _eta(launch: Launch, stage: str, done: int, total: int) -> str:
    clock = launch.pipeline.clocks[stage]  # type: ignore[index]
    if clock.records < 8 or not clock.seconds or done >= total:
        return ""
    seconds = (total - done) * clock.seconds / clock.records
    return f"{int(seconds // 60)}:{int(seconds % 60):02d} left"


def _progress(launch: Launch) -> Table:
    table = Table.grid(padding=(0, 2))
    for stage, (done, total) in _numbers(launch).items():
        if stage == "capture" and launch.pipeline.settings.capture_rows == "none":
            continue
        width = 24
        filled = width * done // total if total else 0
        bar = "━" * filled + "[dim]" + "─" * (width - filled) + "[/dim]"
        table.add_row(
            stage,
            bar,
            f"{done:,}/{total:,}",
            _rate(launch, stage),
            _eta(launch, stage, done, total),
        )
    table.add_row("kept", _kept(launch))
    if launch.usage is not None:
        table.add_row("judge", f"{launch.usage}{_projected(launch)}")
    return table


def _projected(launch: Launch) -> str:
    judged, judgeable = _numbers(launch)["judging"]
    dollars = launch.usage.projected(judgeable - judged)
    return "" if dollars is None or judged >= judgeable else f", ${dollars:.4f} expected in all"


def _line(launch: Launch) -> str:
    parts = [
        f"{stage} {done}/{total} {_rate(launch, stage)}".strip()
        for stage, (done, total) in _numbers(launch).items()
    ]
    if launch.usage is not None:
        parts.append(f"judge {launch.usage}{_projected(launch)}")
    return f"{'; '.join(parts)}; kept {_kept(launch)}"
