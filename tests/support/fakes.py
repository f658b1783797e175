"""Deterministic backends behind the pipeline's interfaces: what they answer depends on the sample's
id alone."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from traitmill.engine.capture.process import CaptureFacts
from traitmill.engine.judging.capabilities import judge_key
from traitmill.engine.models.hub import ModelRef
from traitmill.engine.outputs import Exported
from traitmill.engine.records import Activation, Response, Sample, Verdict
from traitmill.engine.run import Backends, export
from traitmill.engine.run.pipeline import Pipeline
from traitmill.engine.run.prepare import look_at
from traitmill.engine.run.trait_run import TraitRun
from traitmill.engine.run.wanted import Wanted
from traitmill.engine.settings import (
    CaptureSettings,
    Execution,
    JudgeSettings,
    RunSettings,
    SampleCounts,
    Sampling,
)
from traitmill.engine.storage import TraitFolder, TraitState, load_state
from traitmill.engine.traits.definition import Trait, load_traits

N_LAYERS, HIDDEN_DIM = 3, 8
HEADS = {"num_attention_heads": 1, "head_dim": 32}
CONFIG = {"model_type": "llama", "hidden_size": HIDDEN_DIM, **HEADS}
REF = ModelRef("fake", "fake", "r0", CONFIG)
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


def tokenize(*parts: str) -> tuple[int, ...]:
    return tuple("\n\n".join(parts).encode())


tokenize.remark = ""  # type: ignore[attr-defined]
tokenize.thought = None  # type: ignore[attr-defined]
tokenize.ends = ()  # type: ignore[attr-defined]


def tokenizers(_moment: str, _sampling: Sampling) -> Callable[..., tuple[int, ...]]:
    return tokenize


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
    """About 2 % of the answers are unparsable; every call is noted in `log` when given (one id a
    line, synced)."""

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

    beside_generation = True
    calls = 2
    placement = "alone"

    def __init__(
        self, capture: CaptureSettings, delay: float = 0.0, bad: frozenset[str] = frozenset()
    ) -> None:
        self.capture_settings = capture
        self.delay = delay
        self.bad = bad
        self.rows: list[Response] = []

    async def open(self) -> CaptureFacts:
        return FACTS

    async def capture(self, responses: Sequence[Response]) -> list[Activation]:
        self.rows += responses
        await asyncio.sleep(self.delay * 2 * random.random())
        return [self._one(response.sample) for response in responses]

    def _one(self, sample: Sample) -> Activation:
        if sample.id in self.bad:
            return Activation(sample.trait, sample.id, error=f"sample {sample.id}: NaN at layer 1")
        pools = self.capture_settings.pools
        values = {pool: expected_values(sample.id, pool) for pool in pools}
        return Activation(sample.trait, sample.id, values)

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
        "sampling": Sampling(model="fake", revision="r0"),
        "counts": SampleCounts(n_examples=n_examples),
        "judge": JudgeSettings(model="fake-judge"),
        "execution": Execution(flush_seconds=0.2),
    }
    return RunSettings(**(base | changes))  # type: ignore[arg-type]


def open_runs(
    folders: Sequence[Path],
    run: RunSettings,
    notices: list[str] | None = None,
    *,
    generates: bool = True,
    judges: bool = True,
    new_run: bool = False,
    asked: Mapping[str, object] | None = None,
) -> list[TraitRun]:
    """Open trait folders for a run, as the front door does."""
    traits = load_traits({folder.name: folder for folder in folders})
    notice = (notices if notices is not None else []).append
    return [
        open_run(
            Wanted(
                trait=trait,
                folder=TraitFolder(folder),
                settings=run,
                generates=generates,
                judges=judges,
                new_run=new_run,
                asked=asked or {},
            ),
            REF,
            tokenizers,
            notice,
        )
        for trait, folder in zip(traits, folders, strict=True)
    ]


def open_run(wanted: Wanted, ref: ModelRef, tokenizers: Any, notice: Any) -> TraitRun:
    """Open one folder, as a run whose models are there does."""
    opening = look_at(wanted, ref, tokenizers, notice)
    run = opening.open(notice)
    opening.save(run.state.plan)
    return run


def pipeline(runs: Sequence[TraitRun], run: RunSettings, **backends: object) -> Pipeline:
    """A pipeline over deterministic backends; keyword arguments replace some. Build it in the loop."""
    parts: dict[str, object] = {
        "generator": FakeGenerator(),
        "judge": FakeJudge(run.judge),
        "capturer": FakeCapture(run.capture),
    }
    notices: list[str] = []
    return Pipeline(runs, run, Backends(**(parts | backends)), notices.append)  # type: ignore[arg-type]


def state(folder: Path) -> TraitState:
    """What a folder's records amount to, read as `status` reads them."""
    return load_state(TraitFolder(folder))


def export_again(folder: Path, **changes: object) -> Exported:
    """Export one trait as the command does; its error is raised."""
    result = export(folder.parent, [folder.name], **changes)  # type: ignore[arg-type]
    for error in result.errors.values():
        raise error
    return result.exported[folder.name]


def part_files(folder: Path, kind: str) -> list[Path]:
    """The part files of a kind, of all its sets, in the order they were written."""
    return sorted((folder / "parquet" / kind).rglob("part-*.parquet"))
