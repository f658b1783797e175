"""What every command that works on models shares: environment, settings, locks, the run, its display and its end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traitmill.cli.options import parse_layers
from traitmill.engine.errors import AccessError, ExitCode, TraitmillError, UsageError
from traitmill.engine.settings import (
    POOLS,
    CaptureSettings,
    Sampling,
    JudgeSettings,
    JudgeLimits,
    SampleCounts,
    RunSettings,
    Execution,
    Selection,
)

if TYPE_CHECKING:
    from traitmill.engine.models.hub import ModelRef
    from traitmill.engine.run.job import TraitJob

Options = Mapping[str, Any]


def prepare_environment() -> None:
    """Read .env (HF_TOKEN, OPENAI_API_KEY, OPENAI_BASE_URL); turn telemetry off."""
    from dotenv import find_dotenv, load_dotenv

    load_dotenv(find_dotenv(usecwd=True))
    for name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "VLLM_NO_USAGE_STATS"):
        os.environ.setdefault(name, "1")


def read_settings(options: Options) -> RunSettings:
    """All settings but the model, validated. Raises UsageError."""
    return RunSettings(
        sampling=Sampling(
            model="",
            revision="",
            **{
                name: options[name]
                for name in ("dtype", "temperature", "top_p", "top_k", "max_new_tokens", "seed")
            },
        ),
        counts=SampleCounts(**{name: options[name] for name in ("n_examples", "min_kept", "max_examples")}),
        judge=JudgeSettings(model=options["judge_model"], mode=options["judge_mode"]),
        capture=read_capture(options),
        capture_rows=options["capture"] if options["extract_activations"] else "none",
        selection=Selection(threshold=options["threshold"], csv_safe=options["csv_safe"]),
        execution=replace(read_speed(options), limits=read_limits(options)),
    )


def read_limits(options: Options) -> JudgeLimits:
    """What a judge may use of its endpoint."""
    return JudgeLimits(
        base_url=options["judge_base_url"] or os.environ.get("OPENAI_BASE_URL") or None,
        rpm=options["judge_rpm"],
        tpm=options["judge_tpm"],
        concurrency=_at_least_one(options["judge_concurrency"]),
        patience=options["judge_patience"],
        max_cost=options["max_cost"],
    )


def read_capture(options: Options) -> CaptureSettings:
    """The capture class of settings."""
    return CaptureSettings(
        pools=tuple(pool.strip() for pool in options["pool"].split(",")),
        layers=parse_layers(options["layers"]),
        include_embeddings=options["include_embeddings"],
        dtype=options["capture_dtype"],
        attention=options["attention"],
    )


def read_speed(options: Options) -> Execution:
    """The speed class of settings, without a judge's limits."""
    names = ("batch_size", "tensor_parallel_size", "flush_seconds", "capture_device", "self_check")
    return Execution(**{name: options[name] for name in names})


def _at_least_one(concurrency: int | None) -> int:
    return 0 if concurrency is None else concurrency or -1


def check_judge(judging: JudgeSettings, limits: JudgeLimits) -> None:
    """Raise AccessError where a judge cannot be had, UsageError for a malformed address; before anything loads."""
    if judging.model.startswith("local:"):
        from traitmill.engine.models.hub import ModelRef
        from traitmill.engine.run.judges import find_judge

        find_judge(judging.model, ModelRef("", "", "", {}))
    if limits.base_url is not None and not judging.is_local:
        from traitmill.engine.judging.client import read_base_url

        read_base_url(limits.base_url)
    if not judging.is_local and limits.base_url is None and not os.environ.get("OPENAI_API_KEY"):
        raise AccessError(
            f"judge {judging.model} needs a key: put OPENAI_API_KEY=sk-... into .env, or name your own "
            "endpoint with --judge_base_url, or judge without one: --judge_model local"
        )


@dataclass(slots=True)
class Outcome:
    """How a run ended."""

    jobs: Sequence[TraitJob]
    errors: Sequence[TraitmillError]
    interrupted: bool

    @property
    def exit_code(self) -> ExitCode:
        if self.interrupted:
            return ExitCode.INTERRUPTED
        if self.errors:
            return max(self.errors, key=lambda error: error.exit_code).exit_code
        failed = any(
            job.view.responses.having("failed", "overlong").any()
            or job.view.verdicts.having("failed").any()
            or job.view.capture_failed().any()
            for job in self.jobs
        )
        if failed:
            return ExitCode.FAILED_SAMPLES
        nothing = any(
            not (job.view.passing() & job.view.side(side)).any()
            for job in self.jobs
            for side in ("pos", "neg")
        )
        return ExitCode.NOTHING_KEPT if nothing else ExitCode.OK


def check_capture(ref: ModelRef, capture: CaptureSettings, execution: Execution) -> None:
    """Raise UsageError for capture settings that do not suit the model or this machine; before anything loads."""
    from traitmill.engine.capture.decoder import choose_device
    from traitmill.engine.models import attention

    attention.check_capture(
        ref.config, capture, choose_device(execution.capture_device).partition(":")[0]
    )


def check_gpus(wanted: int) -> None:
    """Raise UsageError where a model is to be split over more GPUs than are here."""
    import torch

    if (here := torch.cuda.device_count()) < wanted:
        raise UsageError(f"--tensor_parallel_size {wanted}: this machine shows {here} NVIDIA GPUs")


def run_jobs(
    folders: Mapping[str, Path],
    open_jobs: Callable[[Callable[[str], None]], list[TraitJob]],
    settings: RunSettings,
    ref: ModelRef,
    *,
    generate: bool,
    judge: bool,
    blocks: str | None = None,
    force_unlock: bool = False,
) -> Outcome:
    """Lock the folders, open the jobs, run them with a display, print the summary."""
    from traitmill.cli.display import Display
    from traitmill.engine.run.launch import Launch
    from traitmill.engine.run.log import new_log, redirected
    from traitmill.engine.storage.lock import lock_traits

    defaults = (
        CaptureSettings(pools=POOLS),
        "auto",
    )  # which suit every model, and need not wait for the libraries that tell
    asked = (replace(settings.capture, pools=POOLS), settings.execution.capture_device)
    if settings.capture_rows != "none" and asked != defaults:
        check_capture(ref, settings.capture, settings.execution)
    if settings.execution.tensor_parallel_size > 1:
        check_gpus(settings.execution.tensor_parallel_size)
    log = new_log(next(iter(folders.values())).parent)
    with ExitStack() as stack:
        stack.enter_context(lock_traits(list(folders.values()), force_unlock=force_unlock))
        display = Display(sys.stdout)
        jobs = open_jobs(display.notice)
        launch = Launch(
            jobs, settings, ref, log, display.notice, generate=generate, judge=judge, blocks=blocks
        )
        if launch.idle:
            display.notice("everything is done already: no model is loaded")
        else:
            out, _ = stack.enter_context(redirected(log))
            display.attach(out)
        with display.watching(launch):
            asyncio.run(launch.run())
        signal.signal(
            signal.SIGTERM, signal.default_int_handler
        )  # asyncio puts back the system's own
        errors = [*launch.pipeline.errors.values(), *(job.error for job in jobs if job.error)]
        outcome = Outcome(jobs, errors, launch.pipeline.interrupted)
        display.summary(launch, outcome, log)
    return outcome


def leave(code: ExitCode) -> None:
    """End the process. An interrupted run does not wait for a thread that is still loading a model."""
    sys.stdout.flush()
    sys.stderr.flush()
    if code == ExitCode.INTERRUPTED:
        os._exit(code)
    sys.exit(int(code))
