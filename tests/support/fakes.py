"""Deterministic backends behind the pipeline's interfaces: what they answer depends on the sample's id alone."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from traitmill.engine.capture.model import CaptureResult, CaptureRow
from traitmill.engine.capture.process import CaptureFacts
from traitmill.engine.judging.scoring import judge_key
from traitmill.engine.models.hub import ModelRef
from traitmill.engine.records import Response, Sample, Verdict
from traitmill.engine.run.backends import Backends
from traitmill.engine.run.job import TraitJob, open_job
from traitmill.engine.run.pipeline import Pipeline
from traitmill.engine.settings import CaptureSettings, Sampling, JudgeSettings, SampleCounts, RunSettings, Execution, Selection
from traitmill.engine.storage.lock import lock_traits
from traitmill.engine.traits.definition import Trait, load_traits

N_LAYERS, HIDDEN_DIM = 3, 8
REF = ModelRef("fake", "fake", "r0", {"hidden_size": HIDDEN_DIM})
TEXTS = (
    "plain",
    'comma, "quote"',
    "two\nlines",
    "carriage\rreturn",
    "=1+1",
    "null",
    "NaN",
    "\u2028 separator",
    "é漢🦙",
)


def tokenize(prompt: str) -> tuple[int, ...]:
    return tuple(prompt.encode())


def token_ids(sample_id: str) -> tuple[int, ...]:
    """1 to 12 tokens."""
    rng = random.Random(sample_id)
    return tuple(rng.randrange(1000) for _ in range(rng.randint(1, 12)))


def expected_score(sample_id: str, polarity: str) -> float:
    """pos mostly high, neg mostly low."""
    rng = random.Random("score" + sample_id)
    return round(min(100.0, max(0.0, rng.gauss(70 if polarity == "pos" else 30, 20))), 2)


def expected_values(sample_id: str, pool: str) -> np.ndarray:
    """float32 [N_LAYERS, HIDDEN_DIM]."""
    seed = int(sample_id[:12], 16) + sum(pool.encode())
    return np.random.default_rng(seed).standard_normal((N_LAYERS, HIDDEN_DIM)).astype(np.float32)


class FakeGenerator:
    """About 2 % of the responses are white space; `delay` is the mean time of one."""

    def __init__(self, delay: float = 0.0, max_in_flight: int = 64) -> None:
        self.delay = delay
        self.max_in_flight = max_in_flight
        self.calls: list[str] = []

    async def generate(self, sample: Sample) -> Response:
        self.calls.append(sample.id)
        await asyncio.sleep(self.delay * 2 * random.random())
        if int(sample.id[:4], 16) % 50 == 0:
            return Response(
                sample, "empty", response=" \n", response_token_ids=(5,), finish_reason="stop"
            )
        text = f"{TEXTS[int(sample.id[:4], 16) % len(TEXTS)]} {sample.id[:6]}"
        return Response(
            sample,
            "ok",
            text,
            token_ids(sample.id),
            "stop" if int(sample.id[4], 16) % 2 else "length",
        )


class FakeJudge:
    """About 2 % of the answers are unparsable; every call is noted in `log` when given (one id a line, synced)."""

    def __init__(self, judging: JudgeSettings, delay: float = 0.0, log: Path | None = None) -> None:
        self.judging = judging
        self.delay = delay
        self.log = log
        self.calls: list[str] = []

    async def judge(self, trait: Trait, response: Response) -> Verdict:
        sample = response.sample
        self.calls.append(sample.id)
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(sample.id + "\n")
        await asyncio.sleep(self.delay * 2 * random.random())
        unparsable = int(sample.id[4:8], 16) % 50 == 0
        return Verdict(
            trait=trait.name,
            sample_id=sample.id,
            judge_key=judge_key(self.judging, trait),
            status="unparsable" if unparsable else "scored",
            score=None if unparsable else expected_score(sample.id, sample.polarity),
            mode="integer",
            model="fake-judge",
            raw="prose" if unparsable else "a number",
            input_tokens=10,
            output_tokens=2,
        )


class FakeCapture:
    """`bad` names samples whose activation is not finite."""

    def __init__(
        self, capture: CaptureSettings, delay: float = 0.0, bad: frozenset[str] = frozenset()
    ) -> None:
        self.capture_settings = capture
        self.delay = delay
        self.bad = bad
        self.rows: list[CaptureRow] = []

    async def capture(self, rows: Sequence[CaptureRow]) -> list[CaptureResult]:
        self.rows += rows
        await asyncio.sleep(self.delay * 2 * random.random())
        return [
            CaptureResult(row.trait, row.sample_id, error=f"sample {row.sample_id}: NaN at layer 1")
            if row.sample_id in self.bad
            else CaptureResult(
                row.trait,
                row.sample_id,
                {
                    pool: expected_values(row.sample_id, pool)
                    for pool in self.capture_settings.pools
                },
            )
            for row in rows
        ]

    @property
    def self_check(self) -> dict[str, object]:
        return {"mode": "off"}


FACTS = CaptureFacts(
    N_LAYERS, tuple(range(N_LAYERS)), HIDDEN_DIM, "float32", "eager", "cpu", "fake"
)


def definition(n_instructions: int = 2, n_questions: int = 5) -> dict[str, object]:
    return {
        "instruction": [
            {"pos": f"Be it, {i}.", "neg": f"Do not be it, {i}."} for i in range(n_instructions)
        ],
        "questions": [f"Question {i}?" for i in range(n_questions)],
        "eval_prompt": "Score {question} {answer}",
    }


def make_trait(root: Path, name: str = "trait", content: dict[str, object] | None = None) -> Path:
    folder = root / "exp" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trait_definition.json").write_text(json.dumps(content or definition()))
    return folder


def settings(n_examples: int = 20, **changes: object) -> RunSettings:
    """Fast flushing, fake names; keyword arguments replace whole classes."""
    base: dict[str, object] = {
        "identity": Sampling(model="fake", revision="r0"),
        "plan": SampleCounts(n_examples=n_examples),
        "judging": JudgeSettings(model="fake-judge"),
        "view": Selection(),
        "speed": Execution(flush_seconds=0.2),
    }
    return RunSettings(**(base | changes))  # type: ignore[arg-type]


def open_jobs(
    folders: Sequence[Path], run: RunSettings, notices: list[str] | None = None, **how: bool
) -> list[TraitJob]:
    traits = load_traits({folder.name: folder for folder in folders})
    notice = (notices if notices is not None else []).append
    return [
        open_job(t, f, run, REF, tokenize, notice, **how)
        for t, f in zip(traits, folders, strict=True)
    ]


def pipeline(jobs: Sequence[TraitJob], run: RunSettings, **backends: object) -> Pipeline:
    parts: dict[str, object] = {
        "generator": FakeGenerator(),
        "judge": FakeJudge(run.judging),
        "capturer": FakeCapture(run.capture),
        "capture_facts": FACTS,
    }
    notices: list[str] = []
    return Pipeline(jobs, run, Backends(**(parts | backends)), notices.append)  # type: ignore[arg-type]


def main() -> None:
    """Run traits to the end in a process of its own, to be killed: `python -m tests.support.fakes ROOT --n 500`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--traits", default="trait")
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--min_kept", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--judge_log", type=Path)
    arguments = parser.parse_args()
    run = settings(counts=SampleCounts(n_examples=arguments.n, min_kept=arguments.min_kept))
    folders = [arguments.root / "exp" / name for name in arguments.traits.split(",")]
    with lock_traits(folders):
        jobs = open_jobs(folders, run)
        work = pipeline(
            jobs,
            run,
            generator=FakeGenerator(arguments.delay),
            judge=FakeJudge(run.judging, arguments.delay, arguments.judge_log),
            capturer=FakeCapture(run.capture, arguments.delay),
        )
        signal.signal(signal.SIGINT, lambda *_: work.stop())
        signal.signal(signal.SIGTERM, lambda *_: work.stop())
        print("ready", flush=True)
        asyncio.run(work.run())
    errors = [*work.errors.values(), *(job.error for job in jobs if job.error)]
    for error in errors:
        print(error, file=sys.stderr)
    sys.exit(130 if work.interrupted else int(max((e.exit_code for e in errors), default=0)))


if __name__ == "__main__":
    main()
