"""The plan of a run: the fastest layout, what it takes, and the words for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ResourceError, UsageError
from ..models import GIB, Gpu, Placement, Stored
from ..settings import RunSettings
from .cards import Card, slowest
from .estimate import Estimate, estimate
from .job import Job
from .layout import SPLITS, Layout, layout, layouts

_MINUTE, _HOUR = 60.0, 3600.0


@dataclass(frozen=True, slots=True)
class Plan:
    """A layout and, where the cards' peaks are known, what the job takes on it."""

    model: str
    job: Job
    settings: RunSettings
    layout: Layout
    estimate: Estimate | None
    idle: int
    """Cards that no replica uses."""
    machines: int = 1

    def __str__(self) -> str:
        """Return the plan as one paragraph."""
        return f"plan: {self.work()}; {self.where()}; {self.memory()}; {self.time()}"

    def lines(self) -> list[str]:
        """Return the plan with its arithmetic, a line a part."""
        found = self.layout
        sums = (
            f"{found.weights / GIB:.1f} GiB weights + {found.overhead / GIB:.1f} engine + "
            f"{found.cache / GIB:.1f} cache"
        )
        if found.capture:
            sums += f"; capture {found.capture / GIB:.1f} with its weights"
        said = [
            f"job         {work_words(self.model, self.job)}",
            f"placement   {found.placement.mode}: {self.where()}",
            f"memory      {self.memory()}: {sums}",
            f"time        {self.time()}",
        ]
        if self.estimate is not None:
            least = duration(self.estimate.least)
            said.insert(3, f"roofline    generation takes at least {least}")
        if options := self._options():
            said.append(f"options     {', '.join(options)}")
        return said

    def _options(self) -> list[str]:
        """Return the options of a run that uses the cards so."""
        options = []
        if self.layout.tensor_parallel > 1:
            options.append(f"`tensor_parallel_size` {self.layout.tensor_parallel}")
        if self.layout.replicas > 1:
            options.append("`replicas` auto")
        if self.machines > 1:
            options.append("`ray_address` auto")
        return options

    def work(self) -> str:
        """Say what is to be done."""
        return work_words(self.model, self.job)

    def where(self) -> str:
        """Say which cards do what."""
        found = self.layout
        numbers = [str(gpu.index) for gpu in found.gpus[: found.tensor_parallel]]
        cards = f"GPU{'s' * (len(numbers) > 1)} {', '.join(numbers)}"
        said = f"generation on {cards}"
        if found.replicas > 1:
            said = (
                f"{found.replicas} replicas of {found.tensor_parallel} "
                f"GPU{'s' * (found.tensor_parallel > 1)}"
            )
            said += f" on {self.machines} machines" * (self.machines > 1)
            said += f", the first on {cards}"
        if self.job.captures:
            said += f", {_capture_words(found)}"
        if self.idle:
            said += f", {self.idle} GPU{'s' * (self.idle > 1)} idle"
        return said

    def memory(self) -> str:
        """Say what a card holds."""
        found = self.layout
        total = min(gpu.total for gpu in found.gpus)
        return (
            f"{found.sequences} sequences at once, {found.taken / GIB:.0f} GiB of "
            f"{total / GIB:.0f} used a GPU"
        )

    def time(self) -> str:
        """Say how long it takes, what the judge costs, and what would be faster."""
        if self.estimate is None:
            return "no time is estimated, since this card's peaks are not known; untested on GPU"
        found = self.estimate
        parts = [f"start {duration(found.start)}", f"generation {duration(found.generation)}"]
        if self.job.captures:
            parts.append(f"capture {duration(found.capture)}")
        if found.judging:
            parts.append(f"judging {duration(found.judging)} beside them")
        said = f"about {duration(found.total)} ({', '.join(parts)})"
        if found.dollars:
            said += f", judge about ${found.dollars:,.2f}"
        elif found.dollars is None:
            said += f", price of {self.settings.judge.model} unknown"
        return f"{said}; {self.advice()}; expected from data sheets, untested on GPU"

    def advice(self) -> str:
        """Name the part that the run waits for, and what would move it."""
        assert self.estimate is not None  # noqa: S101 - asked where there is one
        found, slow = self.estimate, self.estimate.bottleneck
        if slow == "judging":
            enough = self.settings.limits.rpm * found.judging / max(1.0, found.work)
            return (
                f"it waits for the judge: `judge_rpm` {_up(enough):,} would let the GPUs decide, "
                "where the endpoint allows it"
            )
        if slow == "start":
            return "it waits for the start, which more samples a run would share"
        if slow == "capture":
            return f"it waits for capture: {self._capture_advice()}"
        return f"it waits for generation{self._generation_advice()}"

    def _capture_advice(self) -> str:
        if self.layout.placement.capture_device == "cpu":
            return "a GPU with room for it would be many times faster"
        if self.settings.capture_rows == "all":
            return "`capture` kept would leave out what is not kept"
        return "more GPUs would divide it"

    def _generation_advice(self) -> str:
        limits, running = self.layout.placement.limits, self.layout.sequences
        if limits is None or running >= limits.sequences:
            return ": twice the GPUs would halve it"
        return (
            f", whose cache holds {running} of {limits.sequences} sequences: GPUs with more "
            "memory, or more of them, would move it most"
        )


def work_words(model: str, job: Job) -> str:
    """Return what is to be done."""
    traits = f"{job.traits:,} trait{'s' * (job.traits != 1)}"
    tokens = job.samples * job.sample_tokens
    thought = f" after {job.thought_tokens} of thought" * bool(job.thought_tokens)
    return (
        f"{traits}, {job.samples:,} samples of up to {job.new_tokens} new tokens{thought}, "
        f"{_short(tokens)} tokens with their prompts, on {model}"
    )


def make_plan(
    model: str,
    config: Mapping[str, Any],
    settings: RunSettings,
    gpus: Sequence[Gpu],
    job: Job,
    *,
    sequences: int,
    splits: Sequence[int] = SPLITS,
    machines: int = 1,
    stored: Stored | None = None,
) -> Plan:
    """Return the plan that ends first, of all ways to use machines that have `gpus` each.

    `config` is config.json, `stored` its weights where they are known; `sequences` are wanted at
    once in an engine. Raise ResourceError where none fits, with the words of the largest split,
    UsageError for a model or dtype that cannot work.
    """
    plans, refusals = [], []
    kind = slowest(gpus)
    for found in layouts(config, settings, gpus, job, sequences, splits, machines, stored):
        if isinstance(found, ResourceError):
            refusals.append(found)
        else:
            made = _plan(model, config, settings, found, job, len(gpus) * machines, kind)
            plans.append(replace(made, machines=machines))
    if not plans and not refusals:
        raise UsageError(
            f"`tensor_parallel_size` {' or '.join(map(str, splits))} is more than there are GPUs, "
            f"{len(gpus)}, or does not divide {model}; leave it out"
        )
    if not plans:
        raise refusals[-1]
    return min(plans, key=_order)


def plan_run(
    model: str,
    config: Mapping[str, Any],
    settings: RunSettings,
    placement: Placement,
    job: Job,
    replicas: int = 1,
) -> Plan:
    """Return the plan of a run whose placement, that of each replica, is decided already."""
    split = settings.execution.tensor_parallel_size
    found = layout(config, placement, settings, job, split, replicas)
    cards = len(placement.gpus) * replicas
    return _plan(model, config, settings, found, job, cards, slowest(placement.gpus))


def _plan(
    model: str,
    config: Mapping[str, Any],
    settings: RunSettings,
    found: Layout,
    job: Job,
    cards: int,
    kind: Card | None,
) -> Plan:
    used = found.replicas * found.tensor_parallel
    device = found.placement.capture_device
    if found.replicas == 1 and job.captures and device.startswith("cuda"):
        used = cards if device == "cuda" else used + (int(device[5:]) >= found.tensor_parallel)
    guessed = None if kind is None else estimate(found, kind, settings, job, config)
    return Plan(model, job, settings, found, guessed, cards - used)


def _order(plan: Plan) -> tuple[float, int]:
    seconds = plan.estimate.total if plan.estimate is not None else 0.0
    # Of plans that take as long, the one that talks least between cards.
    return round(seconds), plan.layout.tensor_parallel


def _capture_words(found: Layout) -> str:
    device = found.placement.capture_device
    if device == "cpu":
        return "capture on the CPU beside it"
    where = "all of them"
    if found.replicas > 1 or len(found.gpus) == 1:
        where = "the same"
    elif ":" in device:
        where = f"GPU {found.gpus[int(device[5:])].index}"
    if found.placement.mode == "in turn":
        return f"capture on {where} after it"
    return f"capture on {where} beside it"


def duration(seconds: float) -> str:
    """Return a time as a person says it."""
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds / _HOUR:.1f} h"


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.0f}"


def _up(number: float) -> int:
    """Return a number rounded up to two digits."""
    whole = math.ceil(number)
    step: int = 10 ** max(0, len(str(whole)) - 2)
    return -(-whole // step) * step
