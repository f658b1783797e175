"""What vLLM makes of our arguments on cards that are not here: a snapshot that people have read.

The snapshot is held twice: against vLLM's CUDA build (`make test-cuda-dry`), and, everywhere,
against what placement and sizes say now. Where either fails because something was meant to change:
`make snapshot-cuda-dry`, and read the difference.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.plans import config
from tests.conftest import ROOT
from tests.gpu.dry.page import PAGE, SNAPSHOT, page
from tests.gpu.dry.resolve import CARD_NAMES, MODELS, NO_CACHE, SPLITS
from traitmill.engine.errors import ResourceError
from traitmill.engine.generation.sizing import GPU_SEQUENCES
from traitmill.engine.models import Shape, choose_placement
from traitmill.engine.planning import parse_gpus, typical_job
from traitmill.engine.planning.layout import layout
from traitmill.engine.settings import apply

FOUND: dict[str, dict[str, dict[str, Any]]] = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
ROWS = [
    (card, model, split, FOUND[card][f"{model} x{split}"])
    for card in CARD_NAMES
    for split in SPLITS
    for model in MODELS
]
FITTING = [row for row in ROWS if "refused" not in row[3]]


@pytest.mark.skipif(
    Path(sys.prefix).name != ".venv-cuda",
    reason="needs vLLM's CUDA build and the stand-in driver: make test-cuda-dry",
)
def test_vllms_cuda_build_makes_of_our_arguments_what_the_snapshot_says(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    command = [sys.executable, "-m", "tests.gpu.dry.resolve", str(path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=1400, capture_output=True)
    assert json.loads(path.read_text()) == FOUND


def said_now(card: str, model: str, split: int) -> dict[str, Any]:
    """What placement and sizes say, in the snapshot's words."""
    settings, raw = apply({"tensor_parallel_size": split}), config(model)
    job = typical_job(1, settings)
    try:
        placement = choose_placement(
            raw,
            settings,
            gpu=True,
            engine=True,
            sequences=GPU_SEQUENCES,
            tokens_per_sequence=job.tokens_per_sequence,
            cards=parse_gpus(f"{split}x{card}"),
        )
    except ResourceError as error:
        return {"refused": error.message}
    found = layout(raw, placement, settings, job, split)
    assert placement.limits is not None
    if not found.sequences:
        return {"refused": NO_CACHE}
    return {
        "placement": placement.mode,
        "weights_gib": round(found.weights / 2**30, 1),
        "cache_gib": round(found.cache / 2**30, 1),
        "sequences": placement.limits.sequences,
        "batched_tokens": placement.limits.batched_tokens,
    }


def test_placement_and_sizes_are_those_of_the_snapshot() -> None:
    """Without vLLM: a change of placement shows in every run of the tests."""
    for card, model, split, row in ROWS:
        said = said_now(card, model, split)
        assert said == {name: row.get(name) for name in said}, (card, model, split)


def test_vllm_takes_the_bytes_we_count_for_a_token() -> None:
    """Its own code cut the cache into blocks; a card of more than there are heads has one head."""
    for _, model, split, row in FITTING:
        shape = Shape.from_config(config(model))
        itemsize = 4 if row["dtype"] == "float32" else 2
        per_token = (
            shape.kv_width // shape.kv_heads * 2 * itemsize * max(1, shape.kv_heads // split)
        )
        tokens = row["cache_gib"] * 2**30 / per_token
        assert row["cached_tokens"] == pytest.approx(tokens, rel=0.03, abs=400 * 2**20 / per_token)
        assert row["cached_tokens"] >= row["length"]


def test_every_configuration_is_one_that_we_know() -> None:
    """Another runner, attention or executor is another engine, and was never looked at."""
    for card, model, split, row in FITTING:
        where = (card, model, split)
        assert row["executor"] == ("uni" if split == 1 else "mp"), where
        assert row["asynchronous"], where
        assert row["logits_processors"] == 0, where
        assert row["sequences"] <= 512, where
        assert row["share"] <= 0.92, where
        if card == "T4":
            assert row["dtype"] == ("float32" if model.startswith("gemma") else "float16"), where
        else:
            assert (row["dtype"], row["runner"]) == ("bfloat16", "V2"), where


def test_the_page_shows_the_snapshot() -> None:
    """Where this fails: python -m tests.gpu.dry.page."""
    assert PAGE.read_text(encoding="utf-8") == page()
