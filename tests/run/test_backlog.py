"""What waits in the store for a stage comes to it, whole and once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support import fakes
from traitmill.engine.run.backlog import Backlog
from traitmill.engine.run.writer import Writer


@pytest.mark.parametrize("patience", [0.0, 0.001])
def test_a_read_that_patience_cuts_off_loses_no_response(tmp_path: Path, patience: float) -> None:
    folders = [fakes.make_trait(tmp_path, name) for name in ("one", "two", "three")]
    settings = fakes.settings(20)
    runs = fakes.open_runs(folders, settings)
    owed = []

    async def drained() -> list[str]:
        await fakes.pipeline(runs, settings, judge=None, capturer=None).run()
        backlog = Backlog(Writer(1.0, lambda _, error: pytest.fail(str(error))))
        for run in runs:
            ids = run.state.plan.ids
            owed.extend(ids.tolist())
            backlog.owe(run, ids.tolist())
        taken: list[str] = []
        async with asyncio.timeout(30):
            while any(backlog.waiting.values()):
                items = await backlog.take_in_plan_order(1000, patience)
                taken += [response.sample.id for _, response in items]
        return taken

    taken = asyncio.run(drained())
    assert sorted(taken) == sorted(sample_id.decode() for sample_id in owed)


def test_a_trait_dropped_while_more_is_gathered_ends_no_run(tmp_path: Path) -> None:
    folders = [fakes.make_trait(tmp_path, name) for name in ("one", "two")]
    settings = fakes.settings(20)
    runs = fakes.open_runs(folders, settings)

    async def taken() -> list[list[str]]:
        await fakes.pipeline(runs, settings, judge=None, capturer=None).run()
        backlog = Backlog(Writer(1.0, lambda _, error: pytest.fail(str(error))))
        backlog.owe(runs[0], runs[0].state.plan.ids.tolist())
        gathering = asyncio.ensure_future(backlog.take_in_plan_order(1000, 0.5))
        while not backlog._live:
            await asyncio.sleep(0.001)
        backlog.drop(runs[0])
        found = [await gathering]
        backlog.owe(runs[1], runs[1].state.plan.ids.tolist())
        found.append(await backlog.take_in_plan_order(1000, 0.0))
        return [[response.sample.trait for _, response in items] for items in found]

    dropped, next_ones = asyncio.run(taken())
    assert dropped == []
    assert next_ones == ["two"] * 40
