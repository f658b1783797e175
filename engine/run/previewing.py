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
from ..settings import SampleCounts, plain_arguments
from ..storage import TraitFolder, TraitState, load_state, select
from ..traits import DEFINITION_FILE, definition_errors, load_traits
from .commands import chosen_model, with_model
from .folder_settings import check_judge, resolve
from .loading import open_backends
from .progress import Listener, RunResult
from .running import OpenBackends, run_through
from .selection import check_machine
from .wanted import Wanted


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
        said = [
            f"{row.polarity} {row.status if row.score is None else row.score}"
            for row in self.rows[:6]
        ]
        return f"Preview({len(self.rows)} responses: {', '.join(said)})"


@plain_arguments
async def preview(
    experiment: Path | str,
    trait: str,
    *,
    questions: int = 3,
    model: str | None = None,
    adapter: str | None = None,
    listener: Listener | None = None,
    stop: asyncio.Event | None = None,
    backends: OpenBackends = open_backends,
    **given: Any,
) -> Preview:
    """Generate and judge the first questions under the first instruction pair; keep nothing.

    A coroutine: await it.
    `given` are settings by name, as for `generate`. Costs one judge's call a response. Raise what
    `generate` raises.
    """
    if questions < 1:
        raise UsageError(f"`questions` must be at least 1, not {questions}")
    listener = listener or Listener()
    folders = select(experiment, [trait])
    paths = {name: folder.path for name, folder in folders.items()}
    (found,) = load_traits(paths)
    faults = definition_errors(paths)
    if faults:
        raise DefinitionError(faults)
    # As a run of this folder would go on: its own model, and its own judge at its own address.
    own, _ = resolve(folders, given)
    check_machine({}, own[trait])  # the folder itself is only read
    check_judge(own[trait], given)
    ref = chosen_model(folders, model, adapter, experiment, listener)
    few = replace(found, instructions=found.instructions[:1], questions=found.questions[:questions])
    settings = replace(
        with_model(own[trait], ref),
        counts=SampleCounts(n_examples=len(few.questions)),
        capture_rows="none",
    )
    with TemporaryDirectory(prefix="traitmill-preview-") as scratch:
        folder = Path(scratch) / Path(experiment).name / trait
        folder.mkdir(parents=True)
        (folder / DEFINITION_FILE).write_text(json.dumps(few.as_json()))
        wanted = Wanted(
            trait=few,
            folder=TraitFolder(folder),
            settings=settings,
            generates=True,
            judges=True,
        )
        result = await run_through([wanted], ref, listener, stop, backends, force_unlock=False)
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
