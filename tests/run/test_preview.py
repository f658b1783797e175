"""A preview: both sides of the first questions with their scores, and nothing left behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.support import fakes, lab
from traitmill.engine.errors import DefinitionError, UsageError
from traitmill.engine.run import Backends, Work, preview


@asynccontextmanager
async def backends(wanted: Work) -> AsyncIterator[Backends]:
    yield Backends(generator=fakes.FakeGenerator(), judge=fakes.FakeJudge(wanted.settings.judge))


async def shown(experiment: Path, **how: object) -> list[tuple[str, str]]:
    with patch("traitmill.engine.run.running.lazy_tokenizer", lambda _: fakes.tokenizers):
        found = await preview(
            experiment,
            "trait",
            model=str(lab.make_model(experiment.parent)),
            judge_model="fake-judge",
            judge_base_url="http://127.0.0.1:9/v1",
            backends=backends,
            **how,
        )
    assert found.instruction == {"pos": "Be it, 0.", "neg": "Do not be it, 0."}
    assert all(row.response for row in found.rows)
    assert all((row.score is None) == (row.status != "scored") for row in found.rows)
    return [(row.question, row.polarity) for row in found.rows]


def everything(root: Path) -> list[Path]:
    return sorted(root.rglob("*"))


async def test_both_sides_of_the_first_questions_are_shown_and_nothing_is_kept(
    tmp_path: Path,
) -> None:
    folder = fakes.make_trait(tmp_path)
    lab.make_model(tmp_path)
    before = everything(tmp_path)
    assert await shown(folder.parent) == [
        (f"Question {index}?", side) for index in range(3) for side in ("pos", "neg")
    ]
    assert await shown(folder.parent, questions=1) == [
        ("Question 0?", "pos"),
        ("Question 0?", "neg"),
    ]
    assert len(await shown(folder.parent, questions=99)) == 10
    assert everything(tmp_path) == before


async def test_a_preview_is_refused_as_a_run_is(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path, content={**fakes.definition(), "yes_no_promt": "x"})
    with pytest.raises(DefinitionError, match="yes_no_prompt"):
        await preview(folder.parent, "trait")
    with pytest.raises(UsageError, match="at least 1"):
        await preview(folder.parent, "trait", questions=0)
