"""The arithmetic of the benchmark of replicas."""

from __future__ import annotations

import random

import pytest

from benchmarks.cluster import LONGER, OF, Case, one_queue, seconds_of


def ids(count: int) -> list[str]:
    rng = random.Random(0)
    return [f"{rng.getrandbits(128):032x}" for _ in range(count)]


@pytest.mark.parametrize("stragglers", [False, True])
def test_rows_take_the_mean_whether_some_are_longer_or_not(*, stragglers: bool) -> None:
    case = Case(1, 1, 2.0, 0, stragglers)
    times = [seconds_of(case, each) for each in ids(40_000)]
    assert sum(times) / len(times) == pytest.approx(2.0, rel=0.02)
    assert (max(times) > 10 * 2.0 / 2) == stragglers
    longer = sum(time > 5 * 2.0 * 0.6 for time in times) / len(times)
    assert longer == pytest.approx(1 / OF if stragglers else 0, abs=0.005)
    assert LONGER * OF == 500


def test_one_queue_is_worked_off_by_whoever_is_free() -> None:
    case = Case(2, 1, 1.0, 0)
    rows = ["00000000" + "0" * 24, "ffffffff" + "0" * 24, "80000000" + "0" * 24]
    # Half a second and one and a half at once; the third, of one second, after the shorter.
    assert one_queue(case, rows) == pytest.approx(1.5)
    assert one_queue(Case(1, 1, 1.0, 0), rows) == pytest.approx(3.0)
    assert one_queue(Case(1, 3, 1.0, 0), rows) == pytest.approx(1.5)
