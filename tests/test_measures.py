"""Modules and functions stay short enough to be read in one go: `make measures` has the limits."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import ROOT
from tools import measures


def test_no_module_or_function_is_longer_than_the_limits() -> None:
    paths = [path for folder in ("engine", "cli") for path in (ROOT / folder).rglob("*.py")]
    assert measures.measure(paths).large == []


def test_a_module_and_a_function_over_the_limits_are_found(tmp_path: Path) -> None:
    path = tmp_path / "long.py"
    body = "    pass\n" * measures.FUNCTION_LINES
    path.write_text(f"def long() -> None:\n{body}" + "\n" * measures.MODULE_LINES)
    module, function = measures.measure([path]).large
    assert module == f"{path}: {1 + measures.FUNCTION_LINES + measures.MODULE_LINES} lines"
    assert function == f"{path}:1 long: {1 + measures.FUNCTION_LINES} lines"
