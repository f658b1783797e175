"""What a folder holds against what a command wants of it: whose rows would join whose."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.conftest import Traitmill
from tests.support import fakes, lab
from traitmill.cli.remarks import remarks
from traitmill.engine.errors import ExitCode, UsageError
from traitmill.engine.records import Activation, Sample
from traitmill.engine.run import import_traits, new_trait
from traitmill.engine.run.progress import trait_results
from traitmill.engine.run.trait_run import TraitRun
from traitmill.engine.run.wanted import Wanted
from traitmill.engine.settings import CaptureSettings, JudgeSettings, RunSettings
from traitmill.engine.storage import TraitFolder
from traitmill.engine.storage.run_record import JudgeFacts
from traitmill.engine.storage.schemas import write_part
from traitmill.engine.traits import load_traits

TENSOR = "activations/all_layers.pt"
LOCAL = JudgeSettings(model="local")


def run(folder: Path, settings: RunSettings | None = None, **backends: object) -> TraitRun:
    settings = settings or fakes.settings(20)
    [made] = fakes.open_runs([folder], settings)
    asyncio.run(fakes.pipeline([made], settings, **backends).run())
    return made


def judging(folder: Path, settings: RunSettings) -> TraitRun:
    """Open the folder as `judge` does."""
    [trait] = load_traits({folder.name: folder})
    wanted = Wanted(
        trait=trait, folder=TraitFolder(folder), settings=settings, generates=False, judges=True
    )
    return fakes.open_run(wanted, fakes.REF, fakes.tokenizers, pytest.fail)


def test_a_local_judge_does_not_place_half_a_run(tmp_path: Path) -> None:
    """It took the mean of the one side that was there, and the next command kept that offset."""
    folder, settings = fakes.make_trait(tmp_path), fakes.settings(20, judge=LOCAL)
    run(folder)
    for path in fakes.part_files(folder, "responses"):
        table = pq.read_table(path, partitioning=None)
        sides = np.array(table["polarity"].to_pylist())
        write_part(path, "responses", table.filter(sides == "pos"))
    for name in ("verdicts", "activations", "selection.json"):
        left = folder / "parquet" / name
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    with pytest.raises(UsageError, match="16 of the 32 responses .* are not generated yet") as told:
        judging(folder, settings)
    assert told.value.step is not None
    assert told.value.step.name == "generate"
    judging(folder, fakes.settings(20))  # one at an endpoint places nothing
    run(folder)
    judging(folder, settings)


def test_a_local_judge_whose_offset_is_lost_is_not_placed_anew(tmp_path: Path) -> None:
    folder, settings = fakes.make_trait(tmp_path), fakes.settings(20, judge=LOCAL)
    made = run(folder, settings)
    made.learn(offset=0.25)
    made.save_judge()
    [facts] = (folder / "parquet/verdicts").glob("*/facts.json")
    assert JudgeFacts.load(facts).offset == 0.25
    assert judging(folder, settings).offset == 0.25
    facts.unlink()
    with pytest.raises(UsageError, match=r"facts\.json is gone, .* move its folder aside"):
        judging(folder, settings)
    shutil.move(facts.parent, tmp_path / "aside")
    assert judging(folder, settings).offset is None


def test_activations_without_their_facts_are_neither_exported_nor_added_to(
    tmp_path: Path, traitmill: Traitmill, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fakes.make_trait(tmp_path / "experiments")
    run(folder)
    before = lab.final_files(folder)
    [facts] = (folder / "parquet/activations").glob("*/facts.json")
    facts.unlink()
    monkeypatch.chdir(tmp_path)
    code, said = traitmill("export", "--experiment", "exp", "--trait", "trait")
    assert code == ExitCode.USAGE
    assert "facts.json is gone" in " ".join(said.split())
    assert lab.final_files(folder) == before
    with pytest.raises(UsageError, match=r"facts\.json is gone"):
        fakes.open_runs([folder], fakes.settings(30))
    assert lab.final_files(folder) == before


def test_a_damaged_selection_costs_nothing_but_itself(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    run(folder)
    before = lab.final_files(folder)
    path = folder / "parquet/selection.json"
    path.write_text("{")
    with pytest.raises(UsageError, match=r"selection\.json is damaged .* or remove it and name"):
        fakes.export_again(folder)
    path.unlink()
    fakes.export_again(folder)
    assert lab.final_files(folder) == before


class Thoughtless(fakes.FakeCapture):
    """Finds a thought in some responses alone."""

    def _one(self, sample: Sample) -> Activation:
        found = super()._one(sample)
        pools = {
            pool: values
            for pool, values in found.pools.items()
            if pool != "thought_mean" or thinks(sample.id)
        }
        return replace(found, pools=pools)


def thinks(sample_id: str) -> bool:
    return int(sample_id[8], 16) % 2 == 0


def test_a_pool_of_thoughts_takes_no_row_for_good(tmp_path: Path) -> None:
    """Every pool of a response without a thought failed, at each command again, and no command took
    the pool back."""
    folder = fakes.make_trait(tmp_path)
    run(folder)
    rows = torch.load(folder / "activations/all_layers.pt", weights_only=True)
    before = lab.final_files(folder)
    pools = ("response_mean", "prompt_last", "thought_mean")
    settings = fakes.settings(20, capture=CaptureSettings(pools=pools))
    record = folder / "parquet/run.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"thinks": True}))
    capturer = Thoughtless(settings.capture)
    made = run(folder, settings, capturer=capturer)
    passing = made.state.plan.ids[made.state.passing()].astype(str)
    kept = [id_ for id_ in passing if thinks(id_)]
    assert 0 < len(kept) < len(rows)
    for pool in pools:
        tensor = torch.load(made.folder.tensor(pool), weights_only=True)
        expected = np.stack([fakes.expected_values(id_, pool) for id_ in kept])
        np.testing.assert_array_equal(tensor.numpy(), expected)
    assert not made.state.capture_failed().any()
    [result] = trait_results([made]).values()
    said = " ".join(remarks(result))
    assert f"{len(rows) - len(kept)} responses that pass have nothing to pool" in said
    assert "--reset pool" in said
    assert len(capturer.rows) > 0
    again = Thoughtless(settings.capture)
    run(folder, settings, capturer=again)
    assert not again.rows  # what has no thought is not asked for one again
    own = fakes.settings(20)
    back = Thoughtless(own.capture)
    run(folder, own, capturer=back)
    assert not back.rows
    assert lab.final_files(folder)[TENSOR] == before[TENSOR]


async def test_naming_pools_leaves_those_of_thoughts_out(tmp_path: Path) -> None:
    from traitmill.engine.run.commands import _with_own_pools

    folder = fakes.make_trait(tmp_path)
    pools = ("prompt_last", "thought_mean")
    settings = fakes.settings(20, capture=CaptureSettings(pools=pools))
    [made] = fakes.open_runs([folder], fakes.settings(20))
    await fakes.pipeline([made], made.settings).run()
    selection = folder / "parquet/selection.json"
    selection.write_text(
        selection.read_text().replace('"response_mean"', '"prompt_last","thought_mean"')
    )
    folders, named = {"trait": TraitFolder(folder)}, {"trait": fakes.settings(20)}
    assert _with_own_pools(named, folders, {})["trait"].capture.pools == (*pools, "response_mean")
    given = {"pool": ("response_mean",)}
    [found] = _with_own_pools(named, folders, given).values()
    assert found.capture.pools == ("prompt_last", "response_mean")
    given = {"pool": pools}
    [found] = _with_own_pools({"trait": settings}, folders, given).values()
    assert found.capture.pools == pools


def test_capture_that_begins_while_a_round_is_added_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from traitmill.engine.settings import SampleCounts
    from traitmill.engine.storage.state import TraitState

    folder = fakes.make_trait(tmp_path)
    counts = SampleCounts(n_examples=10, min_kept=15)
    made = run(folder, fakes.settings(10))
    [made] = fakes.open_runs([folder], fakes.settings(10, counts=counts))
    indexed = TraitState.with_plan

    def slowly(state: TraitState, plan: object) -> TraitState:
        grown = indexed(state, plan)  # type: ignore[arg-type]
        state.choose(capture="begun meanwhile")
        return grown

    monkeypatch.setattr(TraitState, "with_plan", slowly)
    assert made.next_round()
    assert made.state.capture == "begun meanwhile"


def test_neither_a_new_trait_nor_an_imported_one_is_called_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'all' is refused"):
        asyncio.run(new_trait(tmp_path / "exp", "all"))
    source = tmp_path / "all.jsonl"
    source.write_text('{"pos": "a", "neg": "b"}\n')
    with pytest.raises(UsageError, match="'all' is refused"):
        import_traits(source, tmp_path / "exp")
    with pytest.raises(UsageError, match="sentence to draft from is empty"):
        asyncio.run(new_trait(tmp_path / "exp", "kind", sentence=" "))
    assert not (tmp_path / "exp").exists()
