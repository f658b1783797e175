"""The wheel, installed beside the project's packages, used from a folder elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: building leaves folders beside the sources."""
    copy = tmp_path_factory.mktemp("source") / "traitmill"
    wanted = ("engine", "cli", "traitmill", "pyproject.toml", "README.md", "LICENSE")
    copy.mkdir()
    for name in wanted:
        source, own = ROOT / name, copy / name
        if source.is_dir():
            # Compiled files come and go while other tests run.
            left_out = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, own, symlinks=True, ignore=left_out)
        else:
            shutil.copy(source, own)
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(target), str(copy)]
    subprocess.run(command, check=True)
    [built] = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a clean environment that sees the project's packages and holds the wheel."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    [site] = folder.glob("lib/python*/site-packages")
    # An editable install of the project is a .pth file, which is not read behind this one.
    (site / "project.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = str(folder / "bin/python")
    command = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed"]
    subprocess.run([python, *command, "--prefix", folder, wheel], check=True, env=clean())
    return folder / "bin"


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(command: list[str | Path], folder: Path) -> str:
    result = subprocess.run(command, cwd=folder, env=clean(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_wheel_holds_one_package_whole(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"traitmill"}
    for name in ("engine", "cli"):
        expected = {
            f"traitmill/{path.relative_to(ROOT)}"
            for path in (ROOT / name).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert expected <= set(names)
    assert "traitmill/py.typed" in names


def test_the_command_runs_from_a_folder_elsewhere(bin_folder: Path, tmp_path: Path) -> None:
    assert "Turn trait definitions into" in run([bin_folder / "traitmill", "--help"], tmp_path)
    assert "0.1.0" in run([bin_folder / "traitmill", "--version"], tmp_path)


def test_python_users_import_traitmill_from_a_folder_elsewhere(
    bin_folder: Path, tmp_path: Path
) -> None:
    program = """
import asyncio, traitmill
from traitmill import UsageError, fit_vectors, generate, load_activations
print(traitmill.__file__)
try:
    asyncio.run(generate("experiments/none"))
except UsageError as error:
    print(error)"""
    said = run([bin_folder / "python", "-c", program], tmp_path)
    assert str(bin_folder.parent) in said.splitlines()[0]
    assert "experiments/none does not exist" in said


def test_nothing_else_of_ours_is_installed(bin_folder: Path, tmp_path: Path) -> None:
    program = """
from importlib.util import find_spec
print([name for name in ("engine", "cli", "tests", "benchmarks") if find_spec(name)])"""
    assert run([bin_folder / "python", "-c", program], tmp_path).strip() == "[]"
    assert shutil.which("traitmill", path=str(bin_folder))
