"""One trait's study: what is planned and stored of it, and what is still to be done."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .. import storage
from ..errors import UsageError
from ..files import write_atomic
from ..models import Prompts
from ..records import Response
from ..run import Wanted, recovered
from ..settings import RunSettings
from ..statistics import grouped_mean
from ..storage import RunRecord, SamplingRecord, TraitFolder
from ..traits import Trait, coherence_of
from .conditions import (
    GRID,
    REFINEMENTS,
    UNSTEERED,
    Condition,
    Positions,
    conditions,
    digest,
    refined,
)
from .fluency import Scale, make_scale
from .plan import StudyPlan, Vectors, make_plan
from .study_run import StudyRun, refuse_moved

ANSWERS = 16
"""Unsteered answers whose log-probability is looked at under each condition, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a study is to show."""

    positions: Positions
    coefficients: tuple[float, ...] | None
    """None is the grid that looks for where coherence breaks."""
    n_random: int
    n_examples: int
    """Responses of each condition."""
    coherence: float
    """The least mean coherence that holds."""
    ablate: bool = False
    """Whether the vectors' directions are also taken out, under a pos instruction."""


@dataclass(slots=True, kw_only=True)
class Study:
    """A trait's study. The trait's lock is held."""

    trait: Trait
    """With the questions that are asked."""
    folder: TraitFolder
    """`<trait>/steering`, as a folder of records."""
    owner: TraitFolder
    settings: RunSettings
    record: RunRecord
    """The trait's own run."""
    own_judge: storage.JudgeFacts | None
    """The trait's own judge, where it is the one that is asked here too."""
    prompts: Prompts
    vectors: Vectors
    pool: str
    activations_sha256: str
    """Of the activations that the vectors were fitted to."""
    asked: Asked
    notice: Callable[[str], None]
    grid: dict[tuple[str, int], tuple[float, ...]] = field(default_factory=dict)
    shown: tuple[Condition, ...] = ()
    """Of what its plan is, where it is not of the grid."""
    rounds: int = 0
    state: Any = None
    _plans: dict[tuple[Condition, ...], StudyPlan] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    """What the engine alone can tell: the scale of fluency, and side effects by condition."""

    def __post_init__(self) -> None:
        first = self.asked.coefficients or tuple(sign * size for size in GRID for sign in (-1, 1))
        self.grid = {(each.method, each.layer): first for each in self.vectors.targets}
        if self._measured_path.is_file():
            try:
                self.measured = json.loads(self._measured_path.read_bytes())
            except ValueError:
                raise UsageError(
                    f"{self._measured_path} is damaged; delete it to have it measured again"
                ) from None

    @property
    def plan(self) -> StudyPlan:
        """The planned responses of all rounds so far."""
        wanted = self.shown or conditions(self.grid, self.asked.positions, ablate=self.asked.ablate)
        if wanted not in self._plans:
            how = (self.vectors, self.asked.n_examples, self.settings.sampling)
            self._plans[wanted] = make_plan(self.trait, wanted, *how, self.prompts)
        return self._plans[wanted]

    @property
    def first(self) -> np.ndarray:
        """The first question of the same text for each, int: copies of a question are one."""
        texts = self.trait.questions
        return np.array([texts.index(text) for text in texts])

    # --- the records ---

    def open(self) -> StudyRun:
        """Return the run of the round's responses and their verdicts on the trait."""
        return self._open("trait", self.trait)

    def open_coherence(self) -> StudyRun | None:
        """Return the run of the verdicts on coherence; None where fluency stands for them."""
        if self.settings.judge.is_local:
            return None
        return self._open("coherence", coherence_of(self.trait))

    def _open(self, question: storage.Question, trait: Trait) -> StudyRun:
        wanted = Wanted(
            trait=trait,
            folder=self.folder,
            settings=self.settings,
            generates=True,
            judges=True,
            question=question,
        )
        sampling = SamplingRecord(**asdict(self.settings.sampling))
        record = self.record.model_copy(update={"sampling": sampling})
        record.save(self.folder.run_record)
        state = recovered(wanted, record, self.plan, self.notice)
        run = StudyRun(
            trait=trait,
            folder=self.folder,
            settings=self.settings,
            tokenize=self.prompts,
            state=state,
            decided=True,
            exports=False,
        )
        own = self.own_judge
        if own is not None:
            refuse_moved(own, run)
        if own is not None and run.judge.profile is None and run.judge.offset is None:
            run.learn(
                profile=own.profile,
                endpoint=own.endpoint,
                offset=own.offset,
                revision=own.revision,
            )
        if question == "trait":
            self.state = state
        return run

    # --- how far it is ---

    def left(self) -> bool:
        """Whether the round lacks responses or verdicts. Opens the records."""
        run = self.open()
        coherence = self.open_coherence()
        judged = [run] if coherence is None else [run, coherence]
        return bool(run.ungenerated()) or any(len(each.unjudged()) for each in judged)

    def failed(self) -> str:
        """Return in words what of the round failed and is tried again; empty where nothing is."""
        run = self.open()
        coherence = self.open_coherence()
        judged = [run.state] if coherence is None else [run.state, coherence.state]
        counts = {
            "responses": len(run.ungenerated()),
            "verdicts": sum(int(state.unjudged().sum()) for state in judged),
        }
        return " and ".join(f"{n} {what}" for what, n in counts.items() if n)

    def given_up(self) -> dict[str, int]:
        """Return how many responses, and verdicts on what, are missing for good."""
        run = self.open()
        coherence = self.open_coherence()
        judged = {"on the trait": run, "on coherence": coherence}
        lost = {"responses are too long": int(run.state.responses.having("overlong").sum())}
        for what, each in judged.items():
            if each is not None:
                count = int(each.state.verdicts.having("failed").sum())
                lost[f"verdicts {what} are given up"] = count
        return {what: count for what, count in lost.items() if count}

    def refine(self) -> bool:
        """Add coefficients where coherence breaks; return whether there are any."""
        if self.asked.coefficients is not None or self.rounds >= REFINEMENTS:
            return False
        self.rounds += 1
        before = dict(self.grid)
        coherence = self.coherence()
        unsteered = self._mean_coherence(UNSTEERED, coherence)
        for place, coefficients in self.grid.items():
            found = {**self.mean_coherence(place, coherence), 0.0: unsteered}
            self.grid[place] = (*coefficients, *refined(found, self.asked.coherence))
        return self.grid != before

    def mean_coherence(self, place: tuple[str, int], scores: np.ndarray) -> dict[float, float]:
        """Return the mean coherence by coefficient of a target; NaN where there is none."""
        found = {}
        for coefficient in self.grid[place]:
            condition = Condition("steered", *place, coefficient, self.asked.positions)
            found[coefficient] = self._mean_coherence(condition, scores)
        return found

    def _mean_coherence(self, condition: Condition, scores: np.ndarray) -> float:
        mine = self.plan.of(condition)
        mine = mine[np.isfinite(scores[mine])]
        return grouped_mean(scores[mine], self.first[self.plan.question_index[mine]]).value

    def coherence(self) -> np.ndarray:
        """Return the coherence of each planned response, float64 `[n]`, 0 to 100.

        NaN where it is not known; 0 for a response of white space, or one that no thought came to.
        """
        run = self.open_coherence()
        state = self.open().state
        if run is not None:
            verdicts = run.state.verdicts
            scores = np.where(verdicts.having("scored"), verdicts.score, np.nan)
        else:
            scale = self.scale
            scores = np.full(len(state.plan), np.nan)
            ok = np.flatnonzero(state.responses.having("ok"))
            for place, response in zip(ok, state.read_responses(ok), strict=True):
                if response.logprobs and scale is not None:
                    ids = response.response_token_ids
                    scores[place] = scale.score(float(np.mean(response.logprobs)), ids)
        for status in ("empty", "unfinished"):
            scores[state.responses.having(status)] = 0.0
        return np.asarray(scores)

    # --- what the engine alone can tell ---

    def answers(self) -> list[Response]:
        """Return unsteered answers, evenly spread over the questions, that side effects are of."""
        state, plan = self.state, self.plan
        places = plan.of(UNSTEERED)
        places = places[state.responses.having("ok")[places]]
        chosen = np.linspace(0, len(places) - 1, min(ANSWERS, len(places))).round().astype(int)
        return list(state.read_responses(places[chosen]))

    @property
    def scale(self) -> Scale | None:
        """The scale of fluency; None while it is not measured."""
        found = self.measured.get(f"scale {self._answers_key()}")
        return Scale(**found) if found else None

    def note_scale(self, own: list[float], lost: list[float], texts: list[tuple[int, ...]]) -> None:
        """Note what 100 and 0 are."""
        self.measured[f"scale {self._answers_key()}"] = asdict(make_scale(own, lost, texts))
        self._save()

    def side_effects(self, condition: Condition) -> list[float | None] | None:
        """Return each answer's mean log-probability a token under a condition; None: not known."""
        found: list[float | None] | None = self.measured.get(self._side_key(condition))
        return found

    def note_side_effects(self, condition: Condition, found: list[float | None]) -> None:
        """Note them, on disk."""
        self.measured[self._side_key(condition)] = found
        self._save()

    def _answers_key(self) -> str:
        return digest([each.sample.id for each in self.answers()]).hex()[:16]

    def _side_key(self, condition: Condition) -> str:
        plan = self.plan
        ids = [each.decode() for each in plan.ids[plan.of(condition)].tolist()]
        return f"side {digest([self._answers_key(), ids]).hex()[:16]}"

    def _save(self) -> None:
        write_atomic(self._measured_path, json.dumps(self.measured, indent=1).encode())

    @property
    def _measured_path(self) -> Any:
        return self.folder.records / "measured.json"
