"""A few responses of both sides with their scores, before a run is paid."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..errors import DefinitionError, UsageError
from ..records import POLARITIES, VERDICT_STATUSES, Polarity
from ..storage import TraitFolder, TraitState, load_state
from ..traits import DEFINITION_FILE, definition_errors, load_traits
from . import remembered
from .commands import generate
from .folder_settings import resolve
from .loading import open_backends
from .progress import Listener, RunResult
from .running import OpenBackends
from .selection import model_of, select


@dataclass(frozen=True, slots=True)
class PreviewRow:
    """One response. `score` is None without one; `status` is the verdict's, else the response's."""

    question: str
    polarity: Polarity
    response: str
    status: str
    score: float | None
    cut_off: bool = False
    """Whether it reached the most tokens that it may have."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What a definition's first instruction pair makes of its first questions."""

    instruction: Mapping[Polarity, str]
    rows: tuple[PreviewRow, ...]
    """By question, pos before neg."""
    result: RunResult
    """How it went; its folder is gone."""

    def __repr__(self) -> str:
        said = [f"{row.polarity} {row.score or row.status}" for row in self.rows[:6]]
        return f"Preview({len(self.rows)} responses: {', '.join(said)})"


async def preview(
    experiment: Path | str,
    trait: str,
    *,
    questions: int = 3,
    model: str | None = None,
    listener: Listener | None = None,
    stop: asyncio.Event | None = None,
    backends: OpenBackends = open_backends,
    **given: Any,
) -> Preview:
    """Generate and judge the first questions under the first instruction pair; keep nothing.

    `given` are settings by name, as for `generate`. Costs one judge's call a response. Raise what
    `generate` raises.
    """
    if questions < 1:
        raise UsageError(f"`questions` must be at least 1, not {questions}")
    folders = select(experiment, trait)
    paths = {name: folder.path for name, folder in folders.items()}
    (found,) = load_traits(paths)
    faults = definition_errors(paths)
    if faults:
        raise DefinitionError(faults)
    own, _ = resolve(folders, given)
    name, _, _ = model_of(folders, model, Path(experiment).name)
    few = replace(found, instructions=found.instructions[:1], questions=found.questions[:questions])
    # As a run of this folder would go on: its own judge at its own address above all.
    kept = remembered.values(own[trait], (*remembered.SAMPLES, *remembered.ALL))
    settings = {
        **kept,
        "n_examples": len(few.questions),
        "min_kept": 0,
        "max_examples": 0,
        "capture": "none",
    }
    settings |= {name: value for name, value in given.items() if name not in settings}
    with TemporaryDirectory(prefix="traitmill-preview-") as scratch:
        folder = Path(scratch) / Path(experiment).name / trait
        folder.mkdir(parents=True)
        (folder / DEFINITION_FILE).write_text(json.dumps(few.as_json()))
        result = await generate(
            folder.parent,
            trait,
            model=name,
            listener=listener,
            stop=stop,
            backends=backends,
            **settings,
        )
        rows = _rows(load_state(TraitFolder(folder)))  # anew: the run has merged its parts
    first = dict(zip(POLARITIES, few.instructions[0], strict=True))
    return Preview(instruction=first, rows=rows, result=result)


def _rows(state: TraitState) -> tuple[PreviewRow, ...]:
    stored = np.flatnonzero(~state.responses.pending())
    verdicts = np.full(len(state.plan), "", object)
    for name in VERDICT_STATUSES:
        verdicts[state.verdicts.having(name)] = name
    found = []
    for place, response in zip(stored, state.read_responses(stored), strict=True):
        sample, said = response.sample, verdicts[place]
        row = PreviewRow(
            question=sample.question,
            polarity=sample.polarity,
            response=response.response,
            status=said or response.status,
            score=float(state.verdicts.score[place]) if said == "scored" else None,
            cut_off=response.finish_reason == "length",
        )
        found.append((sample.question_index, POLARITIES.index(sample.polarity), row))
    return tuple(row for *_, row in sorted(found, key=lambda each: each[:2]))
