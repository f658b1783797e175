"""The walls: who imports whom, what loads when, what is declared, and what the README promises."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.conftest import ROOT
from traitmill.cli.main import COMMANDS
from traitmill.engine.errors import ExitCode

HEAVY = {
    *("vllm", "torch", "transformers", "openai", "polars", "pyarrow"),
    *("matplotlib", "scipy", "sklearn"),
}
SOURCES = [path for folder in ("engine", "cli") for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(dots before it, module) of each import in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )


# --- walls ---


def tree(target: Path) -> Path:
    """A copy of all that the import contracts speak of."""
    shutil.copytree(ROOT / "traitmill", target / "traitmill")  # links are followed
    for name in ("benchmarks", "tests"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("*.json"))
    shutil.copy(ROOT / "pyproject.toml", target)
    return target


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("capture/batching.py", "from ..storage import TraitFolder", "Stages are below the run"),
        ("judging/cost.py", "from ..generation import on_gpu", "Stages are below the run"),
        ("errors.py", "from .settings import NAMES", "Stages are below the run"),
        ("outputs/load.py", "from tests import support", "neither its benchmarks nor its tests"),
        ("storage/folder.py", "from .state import TraitState", "in circles"),
    ],
)
def test_an_import_against_the_walls_fails_the_check(
    tmp_path: Path, module: str, line: str, contract: str
) -> None:
    folder = tree(tmp_path)
    path = folder / "traitmill/engine" / module
    path.write_text(path.read_text() + f"\n\ndef against_the_walls() -> None:\n    {line}\n")
    result = lint(folder)
    assert result.returncode == 1
    broken = re.findall(r"^(.*) BROKEN$", result.stdout, re.MULTILINE)
    assert any(contract in name for name in broken), result.stdout


def test_packages_are_used_by_their_faces() -> None:
    """`from ..judging import X`, never `from ..judging.client import X`."""
    past = set()
    for path in SOURCES:
        for level, module in imports(path):
            parts = module.split(".")
            if level == 0 and parts[:2] == ["traitmill", "engine"]:
                parts = parts[2:]
            elif level != 2 or path.parent.parent != ROOT / "engine":
                continue
            if len(parts) > 1:
                past.add(f"{path.relative_to(ROOT)} -> {'.'.join(parts)}")
    # The face of capture loads no torch; these are imported where the model is loaded anyhow.
    allowed = {f"engine/run/per_token.py -> capture.{name}" for name in ("model", "per_token")}
    allowed |= {f"engine/projection/reading.py -> capture.{n}" for n in ("model", "projecting")}
    assert past - allowed == set()


# --- what loads when ---


def loaded(program: str) -> set[str]:
    result = run_python(f"import sys\n{program}\nprint(*sys.modules, file=sys.stderr)")
    return set(result.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_heavy(command: str) -> None:
    program = f"""
from traitmill.cli.main import main
sys.argv = {["traitmill", *command.split(), "--help"]!r}
try:
    main()
except SystemExit as left:
    assert left.code == 0"""
    assert loaded(program) & HEAVY == set()


@pytest.mark.parametrize(
    "program",
    ["import traitmill", "from traitmill import UsageError, RunSettings", "import traitmill.cli"],
)
def test_importing_traitmill_loads_nothing_heavy(program: str) -> None:
    assert loaded(program) & HEAVY == set()


def test_every_name_that_traitmill_offers_is_there() -> None:
    program = "import traitmill\nprint(*(n for n in traitmill.__all__ if getattr(traitmill, n)))"
    offered = set(run_python(program).stdout.split())
    wanted = "generate judge capture export load_activations fit_vectors evaluate_vectors"
    assert offered >= {*wanted.split(), "write_report", "Listener", "RunSettings", "UsageError"}


# --- what is declared ---


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for extra in project["optional-dependencies"].values() for name in extra]
    declared = {distribution(name) for name in project["dependencies"]}
    known = packages_distributions()
    used = {
        module.split(".")[0] for path in SOURCES for level, module in imports(path) if not level
    }
    used -= sys.stdlib_module_names | {"traitmill"}
    imported = {distribution(name) for module in used for name in known[module]}
    by_transformers = {"accelerate", "peft"}
    assert imported - {distribution(name) for name in extras} == declared - by_transformers


def distribution(requirement: str) -> str:
    """The name of a package as pip compares it."""
    name = re.split(r"[=<>\[; ]", requirement)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


# --- what the README promises ---


def test_the_exit_codes_of_the_readme_are_those_of_the_code() -> None:
    section = (ROOT / "README.md").read_text().partition("## Exit codes")[2]
    rows = re.findall(r"^\| (\d+) \| ", section, re.MULTILINE)
    assert [int(row) for row in rows] == [int(code) for code in ExitCode]


def test_every_command_of_the_guide_has_its_form_here() -> None:
    assert "docs/coming_from_the_guide.md" in (ROOT / "README.md").read_text()
    page = (ROOT / "docs/coming_from_the_guide.md").read_text()
    for number, name in enumerate(("generate_batched_simple", "extract_activations"), 1):
        assert f"{number}_{name}.py" in page
    assert "3_extract_vectors.py" in page
    options = """--batch_size 8|--extract_activations False|--gen_model|--judge_model
        |--n_examples 200|--threshold 60|--max_new_tokens 200
        |--traits refusal,uncertainty,verbosity"""
    for option in options.split("|"):
        assert option.strip() in page
