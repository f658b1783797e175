"""What set-up does on machines with a GPU: a stand-in for nvidia-smi answers on PATH."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from traitmill.engine.errors import UsageError
from traitmill.engine.generation import require_cpu_build


def machine(folder: Path, line: str, device: str = "/dev/null") -> dict[str, str]:
    """Return an environment with one card: its name, driver and compute capability."""
    folder.mkdir()
    script = folder / "nvidia-smi"
    script.write_text(
        f'#!/bin/sh\nif [ "$1" = -L ]; then echo "GPU 0: a card"; else echo "{line}"; fi\n'
    )
    script.chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if name not in ("FLAVOUR", "DRIVER")}
    # Nothing may be installed, whatever the Makefile does.
    shut = {"PIP_NO_INDEX": "1", "PIP_INDEX_URL": "http://127.0.0.1:9"}
    here = {"PATH": f"{folder}:{os.environ['PATH']}", "TRAITMILL_DEVICES": device}
    return clean | shut | here


def make(
    tmp_path: Path, line: str, *arguments: str, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run `make setup` there, with an environment of its own."""
    command = ["make", "setup", f"VENV={tmp_path / 'venv'}", f"PYTHON={sys.executable}", *arguments]
    environment = machine(tmp_path / "bin", line) | extra
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("NVIDIA A100-SXM4-80GB, 550.54.14, 8.0", "needs 580 or newer"),
        ("Tesla V100-SXM2-16GB, 580.95.05, 7.0", "compute capability 7.0"),
        ("ERROR: Field compute_cap is not a valid field to query.", "needs driver 580 or newer"),
    ],
)
def test_g02_an_old_driver_or_card_is_refused_before_anything_is_installed(
    line: str, said: str, tmp_path: Path
) -> None:
    done = make(tmp_path, line)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert "export FLAVOUR=cpu" in done.stderr
    assert "setting up" not in done.stdout
    assert not (tmp_path / "venv").exists()


def test_g02_the_flavour_that_is_asked_for_is_taken(tmp_path: Path) -> None:
    done = make(tmp_path, "NVIDIA A100-SXM4-80GB, 550.54.14, 8.0", "-n", FLAVOUR="cpu")
    assert "requirements/cpu.txt" in done.stdout
    assert "driver.py" not in done.stdout


@pytest.mark.parametrize(
    "line",
    [
        "NVIDIA H100 80GB HBM3, 580.95.05, 9.0",
        "NVIDIA A100-SXM4-80GB, 550.54.14, 8.0",
        "",
        "no such query",
    ],
)
def test_an_nvidia_smi_that_answers_makes_no_gpu(line: str, tmp_path: Path) -> None:
    done = make(tmp_path, line, "-n", TRAITMILL_DEVICES=str(tmp_path / "none"))
    assert "requirements/cpu.txt" in done.stdout, done.stderr
    assert "driver.py" not in done.stdout


def test_a_card_without_nvidia_smi_is_no_cpu_machine_and_set_up_says_what_to_do(
    tmp_path: Path,
) -> None:
    """As in a container without the driver's `utility`: the device is there, the program is not."""
    environment = machine(tmp_path / "bin", "")
    (tmp_path / "bin" / "nvidia-smi").unlink()
    without = environment | {"PATH": str(tmp_path / "bin")}
    command = [sys.executable, "tools/driver.py"]
    looked = subprocess.run(command, cwd=ROOT, env=without, capture_output=True, text=True)
    assert looked.returncode == 2
    assert looked.stderr.startswith("nvidia-smi cannot be run (No such file or directory)")
    assert "export FLAVOUR=cpu" in looked.stderr
    assert looked.stderr.count("\n") == 1
    nobody = without | {"TRAITMILL_DEVICES": str(tmp_path / "none")}
    for env, flavour in ((without, "cuda"), (nobody, "cpu")):
        asked = subprocess.run(
            [*command, "--flavour"], cwd=ROOT, env=env, capture_output=True, text=True
        )
        assert (asked.stdout.strip(), asked.stderr) == (flavour, "")
    planned = ["make", "setup", "-n", f"VENV={tmp_path / 'venv'}", f"PYTHON={sys.executable}"]
    done = subprocess.run(planned, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "requirements/cuda.txt" in done.stdout


def test_g02_a_machine_that_suits_goes_on_to_install(tmp_path: Path) -> None:
    line = "NVIDIA H100 80GB HBM3, 580.95.05, 9.0"
    environment = machine(tmp_path / "bin", line)
    looked = subprocess.run(
        [sys.executable, "tools/driver.py"], cwd=ROOT, env=environment, capture_output=True
    )
    assert (looked.returncode, looked.stderr) == (0, b"")


def test_g02_the_way_to_the_cpu_build_does_not_lead_back_to_cuda(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="export FLAVOUR=cpu, then make clean setup"):
        require_cpu_build()


def test_g06_the_cuda_lock_has_what_python_3_12_asks_for_and_set_up_checks_it(
    tmp_path: Path,
) -> None:
    lock = (ROOT / "requirements/cuda.txt").read_text()
    pins = re.findall(r"^([a-z0-9._-]+)==([0-9.]+)", lock, re.MULTILINE)
    locked = dict(pins)
    assert len(pins) == len(locked)
    assert "six" in locked
    # vLLM's bound, of Python 3.12 and newer alone.
    assert int(locked["setuptools"].partition(".")[0]) < 81
    # From 12.9 on it has no files of its own; before, it had those of cuda-bindings.
    assert locked["cuda-python"] == locked["cuda-bindings"]
    line = "NVIDIA H100 80GB HBM3, 580.95.05, 9.0"
    planned = make(tmp_path, line, "-n").stdout
    assert planned.index("pip check") > planned.index("requirements/cuda.txt")
    (tmp_path / "cpu").mkdir()
    assert "pip check" not in make(tmp_path / "cpu", line, "-n", FLAVOUR="cpu").stdout
