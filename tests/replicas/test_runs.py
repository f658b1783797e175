"""Whole runs over deterministic models in actors of a real Ray, against the same in one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import fakes, lab
from traitmill.engine.errors import ExitCode

pytestmark = pytest.mark.slow


def prepared(root: Path, replicas: int) -> lab.Work:
    for name in ("one", "two"):
        fakes.make_trait(root, name, fakes.definition(2, 7))
    return lab.Work(root, ("one", "two"), n=40, replicas=replicas, judge_log=root / "calls")


@pytest.mark.parametrize("replicas", [2, 5])
def test_files_of_several_replicas_are_those_of_one_byte_for_byte(
    tmp_path: Path, replicas: int
) -> None:
    one, several = prepared(tmp_path / "one", 1), prepared(tmp_path / "several", replicas)
    for work in (one, replace(several, generation_delay=0.01, capture_delay=0.05)):
        assert lab.run_to_end(work) == ExitCode.OK, work.out.read_text()
    for own, other in zip(one.folders, several.folders, strict=True):
        assert lab.final_files(own) == lab.final_files(other)
        assert lab.row_digests(own) == lab.row_digests(other)
        assert not lab.duplicates(other)
    calls = [work.judge_log.read_text().split() for work in (one, several) if work.judge_log]
    assert sorted(calls[0]) == sorted(calls[1])
    pids = {(several.root / f"replica{index}").read_text() for index in range(replicas)}
    assert len(pids) == replicas
