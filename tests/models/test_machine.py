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


def group(folder, limit, taken, inactive=0, version=2):
    """A control group's memory files."""
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{taken}\n")
    (folder / "memory.stat").write_text(f"anon 100\n{names[2]} {inactive}\nactive_file 5\n")


def belongs_to(root, *lines):
    """What the kernel says of the groups of this process."""
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))
    return root / "sys/fs/cgroup"


def test_free_memory_honours_a_container(tmp_path):
    assert devices.free_host_memory(tmp_path) > 0
    top = belongs_to(tmp_path, "0::/")
    group(top, 1_000_000, 400_000, 250_000)
    assert devices.free_host_memory(tmp_path) == 850_000
    group(top, "max", 400_000, 250_000)
    assert devices.free_host_memory(tmp_path) > 850_000
    group(top, 100, 400_000)
    assert devices.free_host_memory(tmp_path) == 0


def test_t48_a_nested_groups_limit_holds_and_its_parents_too(tmp_path):
    top = belongs_to(tmp_path, "0::/system.slice/job.scope/step")
    group(top / "system.slice/job.scope/step", "max", 100)
    group(top / "system.slice/job.scope", 900_000, 200_000)
    group(top / "system.slice", 5_000_000, 100)
    assert devices.free_host_memory(tmp_path) == 700_000
    group(top / "system.slice", 500_000, 100_000, 50_000)
    assert devices.free_host_memory(tmp_path) == 450_000


def test_t48_a_limit_of_version_1_holds(tmp_path):
    top = belongs_to(tmp_path, "12:cpu,cpuacct:/job", "7:memory:/slurm/job", "0::/")
    unlimited = 9223372036854771712
    group(top / "memory", unlimited, 100, version=1)
    group(top / "memory/slurm/job", 800_000, 300_000, 100_000, version=1)
    assert devices.free_host_memory(tmp_path) == 600_000


@pytest.mark.parametrize("name", ["/docker/0123", "/../../docker/0123"])
def test_t48_a_container_whose_group_has_the_hosts_name_is_limited_too(tmp_path, name):
    """Its group is mounted as the top, and the name it is told leads nowhere."""
    top = belongs_to(tmp_path, f"7:memory:{name}")
    group(top / "memory", 800_000, 300_000, version=1)
    assert devices.free_host_memory(tmp_path) == 500_000


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
