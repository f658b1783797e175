"""How long an engine's sequences may be, where two engines are to read them alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import fakes
from traitmill.engine.errors import UsageError
from traitmill.engine.run.loading import Work


def work(tmp_path: Path, *, new: int, judge: str, original: int) -> Work:
    folder = fakes.make_trait(tmp_path, content=fakes.definition(1, 3))
    settings = fakes.settings(3)
    settings = replace(
        settings,
        sampling=replace(settings.sampling, max_new_tokens=new),
        judge=replace(settings.judge, model=judge),
    )
    rope = {"type": "longrope", "original_max_position_embeddings": original}
    config = {"max_position_embeddings": 1 << 17, "rope_scaling": rope}
    return Work(
        ref=replace(fakes.REF, config=config),
        settings=settings,
        runs=fakes.open_runs([folder], settings),
        generates=True,
        judges=True,
        captures=True,
        log=tmp_path / "log",
        notice=print,
    )


def test_rows_beyond_the_short_factors_are_refused_before_they_are_generated(
    tmp_path: Path,
) -> None:
    fitting = work(tmp_path, new=150, judge="gpt-x", original=4096)
    longest = fitting.longest()
    assert 150 < longest < 4096
    exact = work(tmp_path / "exact", new=150, judge="gpt-x", original=longest)
    assert exact.longest() == longest
    over = work(tmp_path / "over", new=160, judge="gpt-x", original=longest)
    with pytest.raises(
        UsageError, match=rf"beyond {longest} .*`max_thinking_tokens`, by 10, or give"
    ):
        over.longest()
    unread = replace(over, settings=replace(over.settings, capture_rows="none"))
    assert unread.longest() == longest + 10
    assert replace(over, generates=False).longest() == longest + 10


def test_room_for_a_local_judges_longer_reading_never_changes_the_factors(tmp_path: Path) -> None:
    free = work(tmp_path, new=1500, judge="local", original=1 << 16).longest()
    assert free > 3000
    held = work(tmp_path / "held", new=1500, judge="local", original=free - 1000)
    assert held.longest() == free - 1000
    with pytest.raises(UsageError, match="longrope"):
        work(tmp_path / "over", new=1500, judge="local", original=free - 1501).longest()
