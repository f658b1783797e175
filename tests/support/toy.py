"""A toy whose logits depend on one direction, steered: its curves are known."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from tests.support import fakes, lab
from traitmill.engine.errors import StoppedError
from traitmill.engine.generation import Shift
from traitmill.engine.judging.capabilities import judge_key
from traitmill.engine.records import Response, Sample, Verdict
from traitmill.engine.run import Backends, Work, generate
from traitmill.engine.settings import JudgeSettings
from traitmill.engine.steering import SteeringResult, steer
from traitmill.engine.traits import Trait
from traitmill.engine.vectors import fit_experiment, load_vector

LAYER, METHOD, TOKENS = 1, "mean_diff", 40
SLOPE, BASE = 2.0, -1.0
"""The logit of A against B: BASE + SLOPE * (what was added, along the direction, in norms)."""
BREAKS = 0.8
"""How much may be added, whatever its direction, before every token is noise."""
ASKING = 2.0
"""What a pos instruction adds to the logit."""
JUDGE_URL = "http://127.0.0.1:9/v1"


@dataclass
class ToyEngine:
    """Writes A and B by logits that read the direction; beyond BREAKS, C and D."""

    direction: np.ndarray
    """Unit."""
    norm: float
    """The layer's mean residual norm."""
    noise: float = 0.0
    """Spread of a logit by question."""
    calls: list[tuple[str, Shift | None]] = field(default_factory=list)
    scored: list[Shift | None] = field(default_factory=list)
    stop_after: int = 0
    stop: asyncio.Event | None = None
    max_in_flight: int = 8
    vectors: list[tuple[int, np.ndarray]] = field(default_factory=list)

    async def load_vectors(self, vectors: Sequence[tuple[int, np.ndarray]]) -> None:
        self.vectors = list(vectors)

    def logit(self, shift: Shift | None, question: int = 0) -> float:
        own = self.noise * np.random.default_rng(question).standard_normal()
        if shift is None:
            return BASE + float(own)
        _, vector = self.vectors[shift.vector]
        along = float(vector @ self.direction) / self.norm
        if shift.ablates:
            return BASE + float(own)
        return BASE + float(own) + SLOPE * shift.coefficient * along

    def taken_out(self, shift: Shift | None) -> float:
        """The share of the direction that a shift takes out."""
        if shift is None or not shift.ablates:
            return 0.0
        return float(self.vectors[shift.vector][1] @ self.direction / self.norm) ** 2

    def broken(self, shift: Shift | None) -> bool:
        return shift is not None and not shift.ablates and abs(shift.coefficient) > BREAKS

    async def steered(self, sample: Sample, shift: Shift | None) -> Response:
        self.calls.append((sample.id, shift))
        if self.stop is not None and len(self.calls) >= self.stop_after:
            self.stop.set()
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        rng = np.random.default_rng(sample.seed)
        logit = self.logit(shift, sample.question_index)
        if sample.instruction:  # it works by the direction alone
            logit += ASKING * (1 - self.taken_out(shift))
        chance = 1 / (1 + math.exp(-logit))
        words = np.where(rng.random(TOKENS) < chance, "A", "B")
        if self.broken(shift):
            words = np.where(rng.random(TOKENS) < 0.5, "C", "D")
        ids = tuple("ABCD".index(word) for word in words.tolist())
        return Response(sample, "ok", " ".join(words.tolist()), ids, "length")

    async def logprobs(
        self, prompt: Sequence[int], response: Sequence[int], shift: Shift | None
    ) -> tuple[float, ...]:
        self.scored.append(shift)
        logit = self.logit(shift)
        of_a = -math.log1p(math.exp(-logit))
        known = {0: of_a, 1: of_a - logit, 2: -9.0, 3: -9.0}
        return tuple(known[token] for token in response)


class ToyJudge:
    """Counts: the share of A, or of what is neither C nor D where it is asked for coherence."""

    def __init__(self, judging: JudgeSettings) -> None:
        self.judging, self.calls = judging, 0
        self.ends_after = 0

    async def judge(self, trait: Trait, response: Response) -> Verdict:
        self.calls += 1
        if self.ends_after and self.calls > self.ends_after:
            raise StoppedError("no quota")
        words = response.response.split()
        counted = "AB" if "coherent" in trait.eval_prompt else "A"
        score = 100 * sum(word in counted for word in words) / len(words)
        return Verdict(
            trait=trait.name,
            sample_id=response.sample.id,
            judge_key=judge_key(self.judging, trait),
            status="scored",
            score=score,
            mode="integer",
            model="toy",
            input_tokens=1,
            output_tokens=1,
        )


@dataclass
class Toy:
    """A trait with vectors, to be steered."""

    root: Path
    engine: ToyEngine
    judges: list[ToyJudge] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)
    ends_after: int = 0

    @property
    def folder(self) -> Path:
        return self.root / "exp" / "trait"

    @asynccontextmanager
    async def backends(self, work: Work) -> AsyncIterator[Backends]:
        judge = ToyJudge(work.settings.judge)
        judge.ends_after = self.ends_after
        self.judges.append(judge)
        self.works.append(work)
        yield Backends(generator=self.engine, judge=judge)  # type: ignore[arg-type]  # as a run has it

    async def steer(self, traits: Sequence[str] = ("trait",), **how: Any) -> SteeringResult:
        with patch("traitmill.engine.steering.commands.lazy_tokenizer", lambda _: fakes.tokenizers):
            return await steer(
                self.root / "exp",
                traits,
                backends=self.backends,
                judge_base_url=JUDGE_URL,
                **how,
            )


async def make_toy(
    root: Path, definition: dict[str, Any] | None = None, judge: str = "toy", **engine: Any
) -> Toy:
    """Run, fit and return a toy whose direction is its vector's."""
    lab.make_model(root)
    fakes.make_trait(root, content=definition or fakes.definition(n_questions=10))

    @asynccontextmanager
    async def made(work: Work) -> AsyncIterator[Backends]:
        if work.settings.judge.is_local:
            for run in work.runs:
                run.learn(offset=0.0)
        yield Backends(
            generator=fakes.FakeGenerator(),
            judge=fakes.FakeJudge(work.settings.judge),
            capturer=fakes.FakeCapture(work.settings.capture),
        )

    with patch("traitmill.engine.run.running.lazy_tokenizer", lambda _: fakes.tokenizers):
        await generate(
            root / "exp",
            ["trait"],
            model=str(root / "toy"),
            backends=made,
            judge_model=judge,
            judge_base_url=JUDGE_URL,
            n_examples=40,
        )
    fit_experiment(root / "exp", ["trait"], methods=[METHOD])
    vector, _ = load_vector(root / "exp" / "trait", METHOD, LAYER)
    from traitmill.engine.outputs import load_activations

    rows = load_activations(root / "exp" / "trait").rows_at(LAYER)
    norm = float(np.linalg.norm(rows, axis=1).mean())
    return Toy(root, ToyEngine(vector / np.linalg.norm(vector), norm, **engine))
