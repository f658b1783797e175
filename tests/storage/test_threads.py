"""Parquet is read without Arrow's threads: a command that ends at once after a read could abort."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.conftest import ROOT

READS = {"read", "read_row_group", "read_row_groups", "iter_batches"}


def parquet_reads(tree: ast.AST) -> Iterator[tuple[int, ast.Call]]:
    """Yield each call that reads rows, by line: of a ParquetFile's name, or `pq.read_table`."""
    opened = {
        item.optional_vars.id
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        for item in node.items
        if "ParquetFile(" in ast.unparse(item.context_expr)
        and isinstance(item.optional_vars, ast.Name)
    }
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner = ast.unparse(node.func.value)
        if (owner in opened and node.func.attr in READS) or ast.unparse(node.func) == (
            "pq.read_table"
        ):
            yield node.lineno, node


def test_no_read_starts_arrows_threads() -> None:
    """Their pool is torn down while its threads may still start: `terminate called`, exit 134, in
    one of ten readings of a small table on a busy machine."""
    reads, threaded = 0, []
    for path in sorted([*(ROOT / "engine").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]):
        for line, call in parquet_reads(ast.parse(path.read_text())):
            reads += 1
            given = {each.arg: ast.unparse(each.value) for each in call.keywords}
            if given.get("use_threads") != "False":
                threaded.append(f"{path.relative_to(ROOT)}:{line}")
    assert reads >= 10
    assert not threaded
