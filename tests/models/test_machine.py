"""Devices that are here, memory that is free, and the batches that fit it."""

import pytest
import torch

from tests.models.test_config import GEMMA_2B
from traitmill.engine.errors import UsageError
from traitmill.engine.models import machine as devices
from traitmill.engine.models.machine import GIB, choose_device, token_budget


def test_the_budget_says_its_arithmetic():
    small = token_budget(GEMMA_2B, 2, 1 * GIB, gpu=True)
    assert small.tokens == int(0.8 * GIB / GEMMA_2B.block_bytes_per_token(2))
    assert "all that fits" in small.line
    assert "untested on GPU" in small.line
    large = token_budget(GEMMA_2B, 2, 500 * GIB, gpu=False)
    assert large.tokens == devices.CPU_TOKENS
    assert "capped" in large.line
    assert "GPU" not in large.line
    none = token_budget(GEMMA_2B, 2, 0, gpu=False)
    assert none.tokens == 256
    assert "halved where they do not fit" in none.line


def test_free_memory_honours_a_container(tmp_path):
    machine = devices.free_host_memory(tmp_path)
    assert machine > 0
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    (tmp_path / "memory.stat").write_text(
        "anon 100000\nfile 300000\ninactive_file 250000\nactive_file 50000\n"
    )
    assert devices.free_host_memory(tmp_path) == 850_000
    (tmp_path / "memory.max").write_text("max\n")
    assert devices.free_host_memory(tmp_path) > 600_000
    (tmp_path / "memory.max").write_text("100\n")
    assert devices.free_host_memory(tmp_path) == 0


def test_a_device_is_one_that_is_here(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == "cuda"
    assert [choose_device(name) for name in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda:1"]
    with pytest.raises(UsageError, match="`capture_device` cuda:2: this machine shows 2 NVIDIA"):
        choose_device("cuda:2")
    with pytest.raises(UsageError, match="`capture_device` gpu is unknown"):
        choose_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == "cpu"
