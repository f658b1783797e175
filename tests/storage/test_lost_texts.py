"""Texts that were lost and made anew: nothing that was said of the old ones passes for theirs."""

from __future__ import annotations

import asyncio
import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import fakes
from traitmill.engine.errors import ResourceError
from traitmill.engine.judging.capabilities import judge_key
from traitmill.engine.outputs import audit_table
from traitmill.engine.projection.stored import StoredTexts
from traitmill.engine.records import Activation, Response, Sample, Verdict
from traitmill.engine.settings import CaptureSettings, JudgeSettings
from traitmill.engine.storage import TraitFolder


@dataclass
class Writer(fakes.FakeGenerator):
    """Writes texts that say which run made them."""

    version: int

    def __post_init__(self) -> None:
        super().__init__()

    async def generate(self, sample: Sample) -> Response:
        ids = fakes.token_ids(f"{sample.id}{self.version}")
        return Response(sample, "ok", f"v{self.version} {sample.id[:6]}", ids, "length")


class Reader(fakes.FakeJudge):
    """Scores by the version of a text."""

    async def judge(self, trait: Any, response: Response) -> Verdict:
        score = 90.0 - 10 * int(response.response[1])
        score = score if response.sample.polarity == "pos" else 100 - score
        key = judge_key(self.judging, trait)
        return Verdict(trait.name, response.sample.id, key, "scored", score, "integer", "m")


class Versions(fakes.FakeCapture):
    """States that are the version of the text."""

    async def capture(self, responses: Any) -> list[Activation]:
        return [
            Activation(
                row.sample.trait,
                row.sample.id,
                {"response_mean": np.full((3, 8), float(row.response[1]), np.float32)},
            )
            for row in responses
        ]


def run(folder: Path, version: int, judge: str = "A", dtype: str = "auto") -> None:
    settings = fakes.settings(
        10, judge=JudgeSettings(model=judge), capture=CaptureSettings(dtype=dtype)
    )
    runs = fakes.open_runs([folder], settings)

    async def work() -> None:
        made = fakes.pipeline(
            runs,
            settings,
            generator=Writer(version),
            judge=Reader(settings.judge),
            capturer=Versions(settings.capture),
        )
        await made.run()
        assert not made.errors

    asyncio.run(work())


def rows(folder: Path) -> list[dict[str, str]]:
    found = []
    for side in ("pos", "neg"):
        with (folder / f"responses/{side}.csv").open(newline="") as file:
            found += list(csv.DictReader(file))
    return found


def lose_a_part(folder: Path) -> None:
    [part] = fakes.part_files(folder, "responses")
    part.write_bytes(b"PAR1 damaged")


@pytest.mark.parametrize("back", ["run", "export"])
def test_sets_that_are_not_in_use_forget_them_too(tmp_path: Path, back: str) -> None:
    folder = fakes.make_trait(tmp_path)
    run(folder, 1, "A", "auto")
    run(folder, 1, "B", "float16")
    lose_a_part(folder)
    run(folder, 2, "B", "float16")
    if back == "run":
        run(folder, 2, "A", "auto")
        states = torch.load(folder / "activations/all_layers.pt", weights_only=True)
        assert set(states.unique().tolist()) == {2.0}
        assert len(states) == 20
    else:
        fakes.export_again(folder, use_judge="A")
    for row in rows(folder):
        assert row["response"].startswith("v2")
        assert float(row["trait_score"]) in (70.0, 30.0)


def test_files_are_written_anew_though_all_scores_are_as_before(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)

    def through(version: int) -> None:
        settings = fakes.settings(10)
        runs = fakes.open_runs([folder], settings)

        async def work() -> None:
            made = fakes.pipeline(runs, settings, generator=Writer(version))
            await made.run()
            assert not made.errors

        asyncio.run(work())

    through(1)
    lose_a_part(folder)
    through(2)
    shown = {row["response"][:2] for row in rows(folder)}
    recorded = {text[:2] for text in audit_table(TraitFolder(folder))["response"]}
    assert shown == recorded == {"v2"}


def test_texts_and_verdicts_that_were_lost_together_leave_no_old_files(tmp_path: Path) -> None:
    """Nothing is left over that tells of the loss but that there are fewer rows than in the files."""
    folder = fakes.make_trait(tmp_path)

    def through(version: int) -> None:
        settings = fakes.settings(10, capture_rows="none")
        runs = fakes.open_runs([folder], settings)
        made = fakes.pipeline(runs, settings, generator=Writer(version), capturer=None)
        asyncio.run(made.run())
        assert not made.errors

    through(1)
    for kind in ("responses", "verdicts"):
        for part in fakes.part_files(folder, kind):
            part.write_bytes(b"PAR1 damaged")
    through(2)
    assert rows(folder)
    assert all(row["response"].startswith("v2") for row in rows(folder))


def test_stored_texts_are_those_that_were_there_at_first(tmp_path: Path) -> None:
    """A second model reads the same rows, whatever a run stored meanwhile."""
    folder = fakes.make_trait(tmp_path)

    class Half(Writer):
        async def generate(self, sample: Sample) -> Response:
            if int(sample.id[0], 16) % 3 == 0:
                return Response(sample, "failed", error="later")
            return await super().generate(sample)

    def through(generator: Writer) -> None:
        settings = fakes.settings(20, capture_rows="none")
        runs = fakes.open_runs([folder], settings)
        made = fakes.pipeline(runs, settings, generator=generator, capturer=None)
        asyncio.run(made.run())

    through(Half(1))
    texts = StoredTexts([TraitFolder(folder)])
    before = [text.columns["sample_id"] for text in texts]
    through(Writer(1))
    assert [text.columns["sample_id"] for text in texts] == before
    whole = StoredTexts([TraitFolder(folder)])
    assert len(list(whole)) == 40 > len(before)


def test_stored_texts_that_were_made_anew_are_others(tmp_path: Path) -> None:
    folder = fakes.make_trait(tmp_path)

    def through(version: int) -> None:
        settings = fakes.settings(10, capture_rows="none")
        runs = fakes.open_runs([folder], settings)
        made = fakes.pipeline(runs, settings, generator=Writer(version), capturer=None)
        asyncio.run(made.run())

    through(1)
    before = StoredTexts([TraitFolder(folder)]).digest
    assert StoredTexts([TraitFolder(folder)]).digest == before
    lose_a_part(folder)
    with pytest.raises(ResourceError, match="is damaged"):
        StoredTexts([TraitFolder(folder)])
    through(2)  # the scores are as before
    assert StoredTexts([TraitFolder(folder)]).digest != before
