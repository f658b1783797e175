"""What only a card can show; `make gpu-check` runs it. Written without one, and never run on one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.capture.test_model import make_rows, relative
from tests.support.oracle import FAMILIES, Oracle, build
from traitmill.engine.capture.model import CaptureModel
from traitmill.engine.models import read_gpus
from traitmill.engine.settings import POOLS, CaptureSettings

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.mark.parametrize("family", FAMILIES)
def test_capture_on_a_card_equals_the_reference(family: str, tmp_path: Path) -> None:
    """In float32, whose matrix products may be TF32 in attention: hence 2e-2."""
    path = build(family, tmp_path)
    oracle, rows = Oracle(path), make_rows()
    settings = CaptureSettings(pools=POOLS, include_embeddings=True, dtype="float32")
    model = CaptureModel(path, settings, device="cuda:0", token_budget=64, self_check="off")
    for row, found in zip(rows, model.capture(rows), strict=True):
        ids = row.sample.prompt_token_ids
        expected = oracle.pools(ids, row.response_token_ids, row.n_pooled)
        for pool, values in found.pools.items():
            assert np.isfinite(values).all()
            assert relative(values, expected[pool]) < 2e-2, (pool, row.sample.id)


def test_g03_reading_the_cards_takes_no_context() -> None:
    import subprocess

    assert read_gpus()
    command = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert str(os.getpid()) not in said.split()
