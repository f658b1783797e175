"""`doctor` looks at what a GPU run needs: card, compiler, headers, shared memory, free memory."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.models.test_placement import cards
from traitmill.cli.checks import check_compiler, check_shared_memory, describe_gpus
from traitmill.engine.errors import ResourceError, UsageError
from traitmill.engine.models import GIB


def test_g19_all_cards_are_named_with_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90a", "compute_90"])
    said = describe_gpus(cards(80, 40, taken=[30]))
    assert said == ("GPU 0 card, 50 of 80 GiB free; GPU 1 card, 40 of 40 GiB free, driver 580.1")


def test_g19_a_card_that_torch_has_no_code_for_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_100", "sm_120"])
    with pytest.raises(UsageError, match=r"capability 9\.0, and the installed PyTorch needs 10\.0"):
        describe_gpus(cards(80))


def test_g19_a_missing_compiler_or_header_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(UsageError, match=r"Python\.h is missing"):
        check_compiler()
    (tmp_path / "Python.h").touch()
    assert str(tmp_path / "Python.h") in check_compiler()
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UsageError, match="apt install gcc"):
        check_compiler()


def test_g19_dockers_shared_memory_is_too_little_for_two_cards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=64 << 20))
    with pytest.raises(ResourceError, match="--shm-size"):
        check_shared_memory(cards(80, 80))
    assert "0.1 GiB" in check_shared_memory(cards(80))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=8 * GIB))
    assert "8.0 GiB" in check_shared_memory(cards(80, 80))
