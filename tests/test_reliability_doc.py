"""Every row of docs/reliability.md is proven by tests that exist, and every fault test stands in
the page."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.conftest import ROOT

_, _, _AFTER = (
    (ROOT / "docs/reliability.md")
    .read_text(encoding="utf-8")
    .partition("## The faults and their tests\n")
)
PAGE = _AFTER.partition("\n## ")[0]
"""The section of the faults; other tables begin with numbers too."""
ROWS = {
    number: line
    for line in PAGE.splitlines()
    if (match := re.match(r"\| (\d\d) \|", line))
    for number in match.groups()
}
NUMBERS = [f"{number:02d}" for number in range(1, 31)]


@cache
def functions_by_file() -> dict[str, set[str]]:
    """Test functions by file, read from the source."""
    return {
        str(path.relative_to(ROOT / "tests")): {
            node.name
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.name.startswith("test_")
        }
        for path in (ROOT / "tests").rglob("test_*.py")
    }


def test_the_page_has_every_row_once() -> None:
    assert re.findall(r"^\| (\d\d) \|", PAGE, re.MULTILINE) == NUMBERS


@pytest.mark.parametrize("number", NUMBERS)
def test_every_row_is_proven_by_a_test_of_its_number_in_a_file_it_names(number: str) -> None:
    found = {
        name
        for name, tests in functions_by_file().items()
        if any(t.startswith(f"test_f{number}_") for t in tests)
    }
    named = set(re.findall(r"[\w/]+\.py", ROWS[number]))
    assert found, f"no test_f{number}_... exists"
    assert named == found
