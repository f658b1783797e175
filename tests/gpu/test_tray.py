"""G10: what capture hands over never passes through a pickle, and is the same to the bit."""

from __future__ import annotations

import pickle
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.oracle import build
from tests.support.rows import response_row
from traitmill.engine.capture import CaptureProcess, process
from traitmill.engine.capture.model import CaptureModel
from traitmill.engine.capture.process import Place, Result, Tray
from traitmill.engine.errors import EngineDiedError
from traitmill.engine.records import Activation
from traitmill.engine.settings import CaptureSettings, Execution

POOLS = ("response_mean", "prompt_last")
SETTINGS = CaptureSettings(dtype="float32", pools=POOLS, include_embeddings=True)


def trays() -> int:
    """Trays that this process still holds."""
    held = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum("traitmill-capture" in target for target in held)


def fill(place: Place, values: np.ndarray) -> list[Result]:
    """In another process: every row but the second has pools."""
    rows = [
        Activation("t", f"s{row}", dict(zip(POOLS, values[row], strict=True))) for row in (0, 1, 2)
    ]
    rows[1] = Activation("t", "s1", error="NaN")
    return place.put(rows)


def test_g10_a_childs_arrays_are_seen_and_outlive_both_sides() -> None:
    values = np.random.default_rng(0).standard_normal((3, 2, 5, 7)).astype(np.float32)
    with Tray(3, POOLS, 5, 7) as tray, get_context("spawn").Pool(1) as pool:
        results = pool.apply(fill, (tray.place, values))
        found = tray.take(results)
    assert trays() == 1
    assert [(each.sample_id, each.error) for each in found] == [
        ("s0", ""),
        ("s1", "NaN"),
        ("s2", ""),
    ]
    assert found[1].pools == {}
    for row in (0, 2):
        assert list(found[row].pools) == list(POOLS)
        for pool_index, name in enumerate(POOLS):
            np.testing.assert_array_equal(found[row].pools[name], values[row, pool_index])
    del found
    assert trays() == 0


def test_g10_a_container_with_little_shared_memory_is_no_matter() -> None:
    """Docker gives /dev/shm 64 MiB; a write beyond it would kill the worker."""
    with Tray(64, POOLS, 64, 4096) as tray:
        assert "/dev/shm" not in str(Path(tray.place.path).readlink())
        assert Path(tray.place.path).stat().st_size == 64 * 2 * 64 * 4096 * 4


@pytest.mark.slow
async def test_g10_results_are_the_models_and_only_their_names_are_pickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build("llama", tmp_path)
    rows = [response_row(f"row{i}", range(3, 9 + i), range(3, 20), 17) for i in range(40)]
    answers: list[Any] = []

    async def call(self: CaptureProcess, function: Any, *arguments: Any) -> Any:
        answers.append(await right(self, function, *arguments))
        return answers[-1]

    right = CaptureProcess._call
    monkeypatch.setattr(process.CaptureProcess, "_call", call)
    worker = CaptureProcess(path, None, SETTINGS, Execution(self_check="off"))
    try:
        await worker.start()
        found = await worker.capture(rows)
        again = await worker.capture(rows[:1])
    finally:
        await worker.close()
    tensors = sum(array.nbytes for each in found for array in each.pools.values())
    assert tensors == 40 * 2 * 4 * 32 * 4
    assert len(pickle.dumps(answers[1])) < tensors / 4
    direct = CaptureModel(path, SETTINGS, self_check="off").capture(rows)
    for ours, theirs in zip(found, direct, strict=True):
        assert (ours.sample_id, ours.error) == (theirs.sample_id, theirs.error)
        for name in POOLS:
            np.testing.assert_allclose(ours.pools[name], theirs.pools[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        again[0].pools["prompt_last"], found[0].pools["prompt_last"], rtol=1e-5, atol=1e-6
    )


async def test_g10_a_process_that_was_not_started_says_so(tmp_path: Path) -> None:
    worker = CaptureProcess(str(tmp_path), None, SETTINGS, Execution())
    with pytest.raises(EngineDiedError, match="has not been started"):
        await worker.capture([response_row("row", (1, 2), (3,), 1)])
