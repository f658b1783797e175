"""The files of a study: steering.parquet with its figures, responses.csv with its texts."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from ..files import csv_line, write_atomic
from ..storage import SCHEMA_VERSION, TraitFolder
from ..vectors import read_table, write_table
from .claim import Claim, make_claim
from .conditions import UNSTEERED, Condition
from .figures import COLUMNS, Answers, furthest, read_answers, rows
from .study import Study

if TYPE_CHECKING:
    import polars as pl

CSV_COLUMNS = (
    "kind",
    "method",
    "layer",
    "positions",
    "coefficient",
    "question",
    "instruction",
    "response",
    "trait_score",
    "coherence",
)
Samples = tuple[tuple[str, tuple[str, ...]], ...]
_SHOWN = 4
"""Questions whose answers are shown side by side."""


def write_study(study: Study) -> tuple[Claim, Samples]:
    """Write a study's figures and texts; return what it says, and answers side by side."""
    answers = read_answers(study)
    claim = make_claim(study, answers)
    texts = _texts(study)
    write_atomic(study.folder.path / "responses.csv", _csv(study, answers, texts))
    samples = _side_by_side(study, answers, texts)
    facts = {
        "claim": asdict(claim),
        "samples": samples,
        "columns": [str(c) for c in _shown_conditions(study, answers)],
        "pool": study.pool,
        "activations_sha256": study.activations_sha256,
        "model": study.record.sampling.model,
        "judge": study.settings.judge.model,
        "coherence_by": "likelihood" if study.settings.judge.is_local else "judge",
        "coherence_least": study.asked.coherence,
        "n_examples": study.asked.n_examples,
        "n_random": study.asked.n_random,
        "n_questions": len(study.trait.questions),
        "norms": {f"{t.method} {t.layer}": t.norm for t in study.vectors.targets},
        "schema_version": SCHEMA_VERSION,
    }
    write_table(study.owner.steering_table, _table(study, answers), facts)
    return claim, samples


def _table(study: Study, answers: Answers) -> pl.DataFrame:
    import polars as pl

    schema = dict.fromkeys(COLUMNS, pl.String)
    schema |= dict.fromkeys(("coefficient", "value", "low", "high"), pl.Float64)
    schema |= dict.fromkeys(("layer", "n"), pl.Int32)
    return pl.DataFrame(list(rows(study, answers)), schema=schema).fill_nan(None)


def read_study(folder: TraitFolder) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return a trait's figures of steering, in `COLUMNS`, and the facts beside them.

    Raise UsageError where there are none, or the file was changed.
    """
    return read_table(folder.steering_table, COLUMNS, folder.step("steer"))


def _texts(study: Study) -> dict[int, str]:
    """Return the responses by their position in the plan."""
    state = study.state
    places = np.flatnonzero(~state.responses.pending())
    found = state.read_responses(places)
    return {int(p): r.response for p, r in zip(places, found, strict=True)}


def _csv(study: Study, answers: Answers, texts: dict[int, str]) -> bytes:
    plan, lines = study.plan, [csv_line(CSV_COLUMNS)]
    for place, text in texts.items():
        condition = plan.condition(place)
        sample = plan.sample(place, study.trait, study.prompts)
        head = [condition.kind, condition.method, condition.layer, condition.positions]
        if condition.layer < 0:
            head[2] = ""
        known = [answers.scores[place], answers.coherence[place]]
        said = ["" if np.isnan(value) else f"{value:.2f}" for value in known]
        cells = [f"{condition.coefficient:g}", sample.question, sample.instruction, text, *said]
        lines.append(csv_line([*head, *cells]))
    return "".join(lines).encode("utf-8", "backslashreplace")


def _shown_conditions(study: Study, answers: Answers) -> list[Condition]:
    """Return unsteered, the furthest coherent coefficient, one half way, and the next beyond."""
    target = study.vectors.targets[0]
    place = (target.method, target.layer)
    mine = [
        c for c in study.plan.conditions if c.kind == "steered" and (c.method, c.layer) == place
    ]
    positive = [c for c in mine if c.coefficient > 0]
    best = furthest(answers, place, study.asked.coherence)
    index = positive.index(best) if best in positive else -1
    chosen = {max(index - 1, 0), max(index, 0), min(index + 1, len(positive) - 1)}
    return [UNSTEERED, *(positive[i] for i in sorted(chosen) if positive)]


def _side_by_side(study: Study, answers: Answers, texts: dict[int, str]) -> Samples:
    """Return answers to a few questions, spread over the study's, under the shown conditions."""
    plan, found = study.plan, []
    count = min(_SHOWN, len(study.trait.questions), study.asked.n_examples)
    spread = np.linspace(0, min(len(study.trait.questions), study.asked.n_examples) - 1, count)
    shown = _shown_conditions(study, answers)
    for k in spread.round().astype(int).tolist():
        beside = tuple(texts.get(int(plan.of(c)[k]), "") for c in shown)
        found.append((study.trait.questions[k % len(study.trait.questions)], beside))
    return tuple(found)


def steered(folder: TraitFolder) -> bool:
    """Return whether a trait has figures of steering that can be read."""
    try:
        read_study(folder)
    except UsageError:
        return False
    return True
