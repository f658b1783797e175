"""What is said of a judge rests on questions, not on rows."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.support import fakes
from traitmill.engine.judging.capabilities import judge_key
from traitmill.engine.records import Response, Verdict
from traitmill.engine.settings import JudgeSettings
from traitmill.engine.statistics import auroc_interval


class ByQuestion(fakes.FakeJudge):
    """On one question of five it has the sides the wrong way round."""

    async def judge(self, trait: Any, response: Response) -> Verdict:
        pos = 10.0 if response.sample.question_index == 0 else 90.0
        score = pos if response.sample.polarity == "pos" else 50.0
        key = judge_key(self.judging, trait)
        return Verdict(trait.name, response.sample.id, key, "scored", score, "integer", "m")


def test_the_interval_of_a_judge_takes_answers_to_one_question_as_alike(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path, content=fakes.definition(n_questions=5))
    settings = fakes.settings(100, judge=JudgeSettings(model="m"))
    runs = fakes.open_runs([folder], settings)

    async def work() -> None:
        made = fakes.pipeline(runs, settings, judge=ByQuestion(settings.judge))
        await made.run()

    asyncio.run(work())
    judge = json.loads((folder / "activations/metadata.json").read_bytes())["judge"]
    estimate, low, high = judge["auroc"], *judge["auroc_interval"]
    _, rows_low, rows_high = auroc_interval([90.0] * 80 + [10.0] * 20, [50.0] * 100)
    assert rows_low > 0.5  # of rows, it would tell the sides apart for certain
    assert low <= 0.5
    assert 0.75 < estimate < 0.85
    assert high >= rows_high - 0.02
