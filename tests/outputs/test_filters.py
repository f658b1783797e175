"""Two thresholds and pairs: views that need no model, and what capture takes of them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.conftest import Traitmill
from tests.support import fakes, lab, planted
from traitmill.engine.errors import UsageError
from traitmill.engine.outputs import export_trait, load_activations
from traitmill.engine.run import export
from traitmill.engine.settings import RunSettings, SampleCounts, apply
from traitmill.engine.storage import Selection, TraitFolder, load_state


def run(folder: Path, settings: RunSettings, **backends: object) -> Any:
    runs = fakes.open_runs([folder], settings)
    work = fakes.pipeline(runs, settings, **backends)
    asyncio.run(work.run())
    assert runs[0].finished
    return work


def expected(folder: Path, threshold: float, neg: float, *, paired: bool) -> dict[str, set[str]]:
    """Ids kept on each side, from the stored rows alone."""
    scores = {row["sample_id"]: row["score"] for row in lab.rows(folder, "verdicts")}
    passed = {}
    for row in lab.rows(folder, "responses"):
        score = scores.get(row["sample_id"])
        if score is None:
            continue
        place = (row["instruction_index"], row["question_index"], row["rollout"])
        good = score >= threshold if row["polarity"] == "pos" else score < neg
        if good:
            passed[row["polarity"], place] = row["sample_id"]
    if paired:
        places = {place for side, place in passed if side == "pos"}
        places &= {place for side, place in passed if side == "neg"}
        passed = {key: id_ for key, id_ in passed.items() if key[1] in places}
    return {side: {id_ for key, id_ in passed.items() if key[0] == side} for side in ("pos", "neg")}


def shown(folder: Path) -> dict[str, set[str]]:
    """Ids that metadata.json names, which are the rows of the CSVs."""
    metadata = planted.read_metadata(folder)
    ids, n_pos = metadata["sample_ids"], metadata["n_examples_pos"]
    return {"pos": set(ids[:n_pos]), "neg": set(ids[n_pos:])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = fakes.make_trait(tmp_path_factory.mktemp("filters"))
    run(made, fakes.settings(60))
    return made


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(("threshold", "neg"), [(50.0, 50.0), (70.0, 30.0), (60.0, 0.0)])
def test_what_is_kept_follows_from_the_stored_rows(
    folder: Path, threshold: float, neg: float, paired: bool
) -> None:
    exported = fakes.export_again(folder, threshold=threshold, neg_threshold=neg, paired=paired)
    wanted = expected(folder, threshold, neg, paired=paired)
    assert shown(folder) == wanted
    assert exported.kept == {side: len(ids) for side, ids in wanted.items()}
    metadata = planted.read_metadata(folder)
    assert (metadata["threshold"], metadata["neg_threshold"]) == (threshold, neg)
    assert metadata["paired"] is paired
    if paired:
        n_pos = metadata["n_examples_pos"]
        places = list(zip(metadata["instruction_index"], metadata["question_index"], strict=True))
        assert sorted(places[:n_pos]) == sorted(places[n_pos:])


def test_a_run_with_filters_gives_the_files_of_an_export_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    one, other = fakes.make_trait(tmp_path / "one"), fakes.make_trait(tmp_path / "other")
    filters: dict[str, Any] = {"threshold": 65.0, "neg_threshold": 40.0, "paired": True}
    run(one, fakes.settings(60))
    plain = lab.final_files(one)
    run(other, fakes.settings(60, **filters))
    fakes.export_again(one, **filters)
    assert lab.final_files(one) == lab.final_files(other) != plain
    fakes.export_again(one, threshold=50.0, neg_threshold=50.0, paired=False)
    assert lab.final_files(one) == plain


def test_a_folder_remembers_its_filters_and_the_same_number_forgets_one(folder: Path) -> None:
    fakes.export_again(folder, threshold=60.0, neg_threshold=40.0, paired=True)
    before = shown(folder)
    fakes.export_again(folder)
    assert shown(folder) == before
    fakes.export_again(folder, neg_threshold=60.0, paired=False)
    selection = Selection.load(TraitFolder(folder).selection)
    assert selection is not None
    assert (selection.threshold, selection.neg_threshold) == (60.0, None)
    fakes.export_again(folder, threshold=50.0)
    assert planted.read_metadata(folder)["neg_threshold"] == 50.0


@pytest.mark.parametrize(
    "given",
    [{"paired": "off"}, {"paired": 2}, {"threshold": True}, {"coherence": "x"}, {"threshold": "9"}],
)
def test_an_export_refuses_what_is_no_such_value_and_writes_nothing(
    folder: Path, given: dict[str, Any]
) -> None:
    before = lab.final_files(folder)
    with pytest.raises(UsageError, match=f"`{next(iter(given))}`"):
        export(folder.parent, **given)
    assert lab.final_files(folder) == before


def test_an_export_takes_scalars_of_numpy(folder: Path) -> None:
    found = export(folder.parent, "all", threshold=np.int64(60), paired=np.bool_(True))
    assert not found.errors
    metadata = planted.read_metadata(folder)
    assert (metadata["threshold"], metadata["paired"]) == (60.0, True)


def test_what_cannot_be_described_leaves_the_files(folder: Path) -> None:
    before = lab.final_files(folder)
    state = load_state(str(folder))
    state.choose(paired="off")
    with pytest.raises(ValidationError):
        export_trait(state)
    assert lab.final_files(folder) == before


def test_a_remembered_threshold_of_neg_is_called_the_folders(folder: Path) -> None:
    export(folder.parent, neg_threshold=30)
    [error] = export(folder.parent, threshold=20).errors.values()
    assert "remembers `neg_threshold` 30" in str(error)
    assert "or off to end it" in str(error)
    assert not export(folder.parent, threshold=20, neg_threshold="off").errors


def test_a_folder_may_be_the_one_of_now(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert load_activations(".").trait == folder.name
    assert TraitFolder(Path()).name == folder.name
    assert not export("..").errors
    monkeypatch.chdir(folder.parent)
    assert not export(".").errors


@pytest.mark.parametrize("paired", [False, True])
def test_capture_of_kept_rows_takes_what_the_filters_keep(tmp_path: Path, paired: bool) -> None:
    folder = fakes.make_trait(tmp_path)
    settings = fakes.settings(
        60, capture_rows="kept", threshold=60.0, neg_threshold=40.0, paired=paired
    )
    capturer = fakes.FakeCapture(settings.capture)
    run(folder, settings, capturer=capturer)
    wanted = expected(folder, 60.0, 40.0, paired=paired)
    captured = [response.sample.id for response in capturer.rows]
    assert sorted(captured) == sorted(wanted["pos"] | wanted["neg"])
    assert shown(folder) == wanted


class Fails(fakes.FakeJudge):
    """Cannot judge the responses of one side yet."""

    async def judge(self, trait: Any, response: Any) -> Any:
        from traitmill.engine.records import Verdict

        verdict = await super().judge(trait, response)
        if response.sample.polarity == "pos":
            return verdict
        return Verdict(
            trait.name, verdict.sample_id, verdict.judge_key, "failed", None, "integer", ""
        )


def test_pairs_whose_halves_were_judged_in_two_runs_are_captured(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    settings = fakes.settings(40, capture_rows="kept", paired=True)
    first = fakes.FakeCapture(settings.capture)
    runs = fakes.open_runs([folder], settings)
    asyncio.run(fakes.pipeline(runs, settings, judge=Fails(settings.judge), capturer=first).run())
    assert first.rows == []
    second = fakes.FakeCapture(settings.capture)
    run(folder, settings, capturer=second)
    captured = [response.sample.id for response in second.rows]
    scores = {
        row["sample_id"]: row["score"]
        for row in lab.rows(folder, "verdicts")
        if row["score"] is not None
    }
    assert captured
    assert len(captured) == len(set(captured))
    assert {id_ for ids in shown(folder).values() for id_ in ids} == set(captured) <= set(scores)


def test_a_pair_goes_when_one_of_it_could_not_be_captured(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    settings = fakes.settings(60, paired=True)
    probe = fakes.make_trait(tmp_path / "probe")
    run(probe, settings)
    bad = min(shown(probe)["pos"])
    run(folder, settings, capturer=fakes.FakeCapture(settings.capture, bad=frozenset({bad})))
    kept, whole = shown(folder), shown(probe)
    assert {side: len(whole[side] - kept[side]) for side in whole} == {"pos": 1, "neg": 1}
    assert bad not in kept["pos"]
    assert planted.read_metadata(folder)["n_excluded"] == 2


def test_rounds_count_pairs(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    settings = fakes.settings(counts=SampleCounts(n_examples=10, min_kept=25), paired=True)
    work = run(folder, settings)
    kept = expected(folder, 50.0, 50.0, paired=True)
    assert len(kept["pos"]) == len(kept["neg"]) >= 25
    assert work.runs[0].state.plan.n_planned["pos"] < 100
    assert shown(folder) == kept


class Mild(fakes.FakeJudge):
    """Finds every response of pos right, and of neg each third."""

    async def judge(self, trait: Any, response: Any) -> Any:
        score = 90.0 if int(response.sample.id[:2], 16) % 3 else 10.0
        if response.sample.polarity == "pos":
            score = 90.0
        return replace(await super().judge(trait, response), status="scored", score=score)


def test_a_side_that_fell_behind_catches_up_before_pairs_grow(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)
    settings = fakes.settings(counts=SampleCounts(n_examples=20, min_kept=15, max_examples=200))
    alone = run(folder, settings, judge=Mild(settings.judge)).runs[0].state.plan.n_planned
    assert alone["pos"] == 20 < alone["neg"]
    settings = replace(settings, paired=True)
    work = run(folder, settings, judge=Mild(settings.judge))
    state = work.runs[0].state
    assert state.plan.n_planned["pos"] == state.plan.n_planned["neg"] == alone["neg"]
    assert state.counts()["pos"]["kept"] >= 15


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"neg_threshold": 60.0}, "`neg_threshold` 60 must not be above `threshold` 50"),
        ({"neg_threshold": -1.0}, "`neg_threshold` must lie between 0 and 100"),
        ({"neg_threshold": float("nan")}, "`neg_threshold` must lie between 0 and 100"),
        ({"threshold": 30.0, "neg_threshold": 31.0}, "must not be above"),
    ],
)
def test_thresholds_that_contradict_are_refused(
    folder: Path, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        apply(given)
    fakes.export_again(folder, threshold=50.0, neg_threshold=50.0, paired=False)
    before = lab.final_files(folder)
    with pytest.raises(UsageError, match=said):
        fakes.export_again(folder, **given)
    assert lab.final_files(folder) == before


def test_a_selection_of_before_is_read(folder: Path) -> None:
    """Without the keys of pairs and of a second threshold."""
    fakes.export_again(folder, threshold=50.0, neg_threshold=50.0, paired=False)
    path = TraitFolder(folder).selection
    content = json.loads(path.read_bytes())
    del content["neg_threshold"], content["paired"]
    path.write_text(json.dumps(content))
    choice = fakes.state(folder).choice
    assert (choice.thresholds, choice.paired) == ({"pos": 50.0, "neg": 50.0}, False)


def test_the_commands_know_the_filters(traitmill: Traitmill, folder: Path) -> None:
    where = ["--experiment", folder.parent.name, "--trait", folder.name]
    where += ["--experiments_dir", str(folder.parent.parent)]
    code, said = traitmill("export", *where, "--threshold", 70, "--neg_threshold", 30, "--paired")
    assert code == 0, said
    assert shown(folder) == expected(folder, 70.0, 30.0, paired=True)
    code, said = traitmill("status", *where, "--json")
    facts = json.loads(said)["traits"][folder.name]
    assert (facts["threshold"], facts["neg_threshold"], facts["paired"]) == (70.0, 30.0, True)
    code, said = traitmill("export", *where, "--neg_threshold", 80)
    assert code == 2
    assert "--neg_threshold 80 must not be above --threshold 70" in " ".join(said.split())
    code, said = traitmill("export", *where, "--no_paired")
    assert shown(folder) == expected(folder, 70.0, 30.0, paired=False)
    for command in ("generate", "activations"):
        code, said = traitmill(command, "--help_all")
        assert "--neg_threshold" in said
        assert "--paired / --no_paired" in said


def test_one_damaged_record_keeps_no_other_trait_from_being_exported(tmp_path: Path) -> None:
    folders = [fakes.make_trait(tmp_path, name) for name in ("a", "b")]
    settings = fakes.settings(20)
    asyncio.run(fakes.pipeline(fakes.open_runs(folders, settings), settings).run())
    (folders[0] / "parquet/run.json").write_text("{")
    result = export(folders[0].parent)
    assert list(result.exported) == ["b"]
    assert "run.json is damaged" in str(result.errors["a"])
