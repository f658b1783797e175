"""G19: doctor says whether the weights have room, and what a run would do with the cards."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest

from tests.conftest import Traitmill
from tests.models.test_placement import GEMMA_2B, LLAMA_70B, cards
from tests.support import fakes
from traitmill.cli.checks import check_weight_disk, foretell
from traitmill.engine.errors import ResourceError
from traitmill.engine.models import GIB, ModelRef
from traitmill.engine.planning import typical_job

REF = ModelRef("some/model", "some/model", "r0", GEMMA_2B)


def test_g19_weights_that_have_no_room_are_told_before_they_are_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """2.61 G values of two bytes are 4.9 GiB."""
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4 * GIB))
    with pytest.raises(ResourceError, match=r"4\.9 GiB of weights to download, 4\.0 GiB free"):
        check_weight_disk(REF)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5 * GIB))
    assert "5.0 GiB free" in check_weight_disk(REF)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: "/a/file")
    assert "are in" in check_weight_disk(REF)


def test_g19_what_a_run_would_do_is_said_with_the_cards_it_would_take() -> None:
    """The emptiest first, by the driver's numbers."""
    settings = fakes.settings(n_examples=20)
    job = typical_job(1, settings)
    here = cards(80, 80, 80, taken=[60, 30, 0])
    said = foretell(REF, settings, here, job)
    assert said.startswith("generation on GPU 2, capture on GPU 1 beside it, 1 GPU idle; ")
    assert "of 80 used a GPU" in said
    assert "this card's peaks are not known" in said
    with pytest.raises(ResourceError, match="generation does not fit"):
        foretell(ModelRef("m", "m", "r", LLAMA_70B), settings, here, job)
    assert foretell(REF, settings, [], job).startswith("generation on all cores first")


@pytest.mark.slow
def test_g19_doctor_says_both(traitmill: Traitmill) -> None:
    _, said = traitmill(
        "doctor", "--gen_model", "embedded/SmolLM2-135M-Instruct", "--judge_model", "local"
    )
    assert "ok    weights: " in said
    assert "ok    run: " in said
