"""How long a job takes on a layout, what its judge costs, and what it waits for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..judging import find_price
from ..models import has_soft_cap, read_config
from ..settings import RunSettings
from .cards import Card
from .job import JUDGE_OUTPUT, Job
from .layout import Layout
from .roofline import (
    EAGER_SHARE,
    MATRIX_SHARE,
    Device,
    capture_seconds,
    expected_step,
    prompt_seconds,
    step_seconds,
)

START_S = 75.0
"""Of an engine: compiling and capturing graphs took 60 to 90 s where others measured it."""
_READ = 2e9
"""Bytes of weights a second from disk. An assumption."""
_CPU_FLOPS = 1e12
"""Of a host that captures. An assumption."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds of each part of a run, all replicas working side by side."""

    start: float
    generation: float
    capture: float
    judging: float
    beside: bool
    """Whether capture has a card to itself, and so costs no time of generation's."""
    least: float
    """Of generation: what the data sheet's peaks allow."""
    dollars: float | None
    """None: the judge has no listed price. 0 where it is local."""

    @property
    def work(self) -> float:
        """Return the seconds that the cards are busy."""
        if self.beside:
            return max(self.generation, self.capture)
        return self.generation + self.capture

    @property
    def total(self) -> float:
        """Return the seconds from start to end: judging goes on beside the cards' work."""
        return self.start + max(self.work, self.judging)

    @property
    def bottleneck(self) -> str:
        """Return the name of the part that takes longest."""
        parts = {
            "judging": self.judging,
            "start": self.start,
            "generation": self.generation,
            "capture": self.capture,
        }
        if self.judging < self.work:
            del parts["judging"]
        return max(parts, key=lambda name: parts[name])


def estimate(
    layout: Layout, card: Card, settings: RunSettings, job: Job, config: Mapping[str, Any]
) -> Estimate:
    """Return what a job is expected to take. `config` is config.json, `card` the slowest kind."""
    split, shape = layout.tensor_parallel, layout.shape
    device = _device(card, split, layout.itemsize)
    samples = job.samples / layout.replicas
    running = max(1.0, min(layout.sequences, samples))
    context = job.prompt_tokens + job.generated_tokens / 2
    steps = samples * job.generated_tokens / running
    prompts = samples * job.prompt_tokens
    if settings.judge.is_local:
        prompts += samples * job.judge_tokens
    slowed = Device(device.flops * MATRIX_SHARE, device.bandwidth)
    generation = prompt_seconds(shape, slowed, prompts) + steps * expected_step(
        shape, device, running, context, layout.itemsize, split
    )
    least = prompt_seconds(shape, device, prompts)
    least += steps * step_seconds(shape, device, running, context, layout.itemsize)
    weights = shape.weight_bytes(layout.itemsize)
    start = START_S + weights / _READ
    if layout.placement.mode == "in turn":
        start += weights / _READ
    return Estimate(
        start=start,
        generation=generation,
        capture=_capture(layout, card, job, samples, config),
        judging=_judging(settings, job),
        beside=layout.placement.mode == "apart",
        least=least,
        dollars=judge_dollars(settings, job),
    )


def _device(card: Card, cards: int, itemsize: int) -> Device:
    flops = card.flops if itemsize == 2 else card.flops32
    return Device(flops * cards, card.bandwidth * cards)


def _capture(
    layout: Layout, card: Card, job: Job, samples: float, config: Mapping[str, Any]
) -> float:
    """Return the seconds of a replica's capture: a model that is spread uses a card at a time."""
    if not job.captures:
        return 0.0
    device = _device(card, 1, layout.capture_itemsize)
    if layout.placement.capture_device == "cpu":
        device = Device(_CPU_FLOPS, card.bandwidth)
    eager = has_soft_cap(read_config(config).get_text_config())
    reached = Device(device.flops * (EAGER_SHARE if eager else MATRIX_SHARE), device.bandwidth)
    return capture_seconds(layout.shape, reached, samples * job.sample_tokens)


def _judging(settings: RunSettings, job: Job) -> float:
    """Return the seconds that an endpoint's limits stretch the verdicts over; 0: a local judge."""
    if settings.judge.is_local or not job.judge_tokens:
        return 0.0
    minutes = job.verdicts / settings.limits.rpm
    if settings.limits.tpm:
        tokens = job.verdicts * (job.judge_tokens + JUDGE_OUTPUT)
        minutes = max(minutes, tokens / settings.limits.tpm)
    return 60 * minutes


def judge_dollars(settings: RunSettings, job: Job) -> float | None:
    """Return what the judge costs at list price, None where that is unknown, 0 where it is local.

    Hidden reasoning and tokens from an endpoint's cache are not foreseen.
    """
    if settings.judge.is_local or not job.judge_tokens:
        return 0.0
    price = find_price(settings.judge.model)
    if price is None:
        return None
    read, written = job.verdicts * job.judge_tokens, job.verdicts * JUDGE_OUTPUT
    return price.dollars(round(read), 0, round(written))
