"""The rooms stay in order: imports go downward only, heavy packages are loaded late, secrets and
paths stay out."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, TRAITMILL

ENGINE = ROOT / "engine"
HEAVY = ("vllm", "torch", "transformers", "openai", "polars", "pyarrow")
# The flow, from the words at the top to the page at the end. A room imports only rooms above it.
ORDER = re.findall(
    r"^\| `(\w+)\.py` \|", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE
)


def module_imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Names of modules a file imports; with `top_level_only`, only those loaded when it is."""
    tree = ast.parse(path.read_text())
    skipped = (ast.FunctionDef, ast.AsyncFunctionDef)
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if top_level_only and isinstance(node, skipped):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found.update([base] if node.module else [f".{alias.name}" for alias in node.names])
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def test_every_room_stands_in_the_architecture_page() -> None:
    assert sorted(ORDER) == sorted(
        path.stem for path in ENGINE.glob("*.py") if path.stem != "__init__"
    )


@pytest.mark.parametrize("room", ORDER)
def test_rooms_import_only_rooms_above_them(room: str) -> None:
    inner = {
        name.removeprefix(".")
        for name in module_imports(ENGINE / f"{room}.py")
        if name.startswith(".")
    }
    assert inner <= set(ORDER), inner
    below = {name for name in inner if ORDER.index(name) >= ORDER.index(room)}
    assert not below, f"{room} imports {below}, which stand below it"


def test_the_engine_never_imports_the_command_line() -> None:
    for path in ENGINE.glob("*.py"):
        assert not {name for name in module_imports(path) if name.split(".")[0] == "cli"}, path


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["vectors", "--help"], ["status", "--help"]]
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom traitmill.cli.main import cli\n"
        f"try:\n    cli.main({arguments!r}, standalone_mode=False)\nexcept SystemExit:\n    pass\n"
        f"print(sorted(set(sys.modules) & set({HEAVY!r})), file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert result.stderr.strip().splitlines()[-1] == "[]"
    assert "Usage" in result.stdout


def test_importing_the_engine_loads_nothing_heavy() -> None:
    program = f"import sys, traitmill; print(sorted(set(sys.modules) & set({HEAVY!r})))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_exit_codes_of_the_readme_are_those_of_the_code() -> None:
    from traitmill.engine.errors import ExitCode

    section = (ROOT / "README.md").read_text().partition("## Exit codes")[2]
    rows = re.findall(r"^\| (\d+) \| ", section, re.MULTILINE)
    assert [int(row) for row in rows] == [int(code) for code in ExitCode]


def test_every_command_of_the_guide_has_its_form_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for script in (
        "1_generate_batched_simple.py",
        "2_extract_activations.py",
        "3_extract_vectors.py",
    ):
        assert script in readme
    options = (
        "--batch_size 8",
        "--extract_activations False",
        "--gen_model",
        "--judge_model",
        "--n_examples 200",
    )
    for option in (
        *options,
        "--threshold 60",
        "--max_new_tokens 200",
        "--traits refusal,uncertainty,verbosity",
    ):
        assert option in readme


def test_dashes_are_underscores() -> None:
    result = subprocess.run(
        [TRAITMILL, "generate", "--experiment", "nope", "--n-examples", "0"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert "No such option" not in result.stderr
    assert result.returncode == 2
