"""Print how long and how dense code is, and what exceeds the limits: `make measures`.

    python tools/measures.py engine cli

Exit with 1 where a limit is exceeded.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MODULE_LINES = 300
FUNCTION_LINES = 60
LINE_LENGTH = 100
TOKENS_PER_LINE = 8.0
TERNARIES_PER_1000 = 15.0
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


@dataclass(slots=True)
class Measures:
    """Counts over some modules. A code line holds a token; docstrings and comments hold none."""

    lines: int = 0
    code_lines: int = 0
    tokens: int = 0
    ternaries: int = 0
    longest: int = 0
    """Characters of the longest line."""
    large: list[str] = field(default_factory=list)
    """Modules and functions above the limits, as `path:line what`."""

    def add(self, path: Path) -> None:
        """Count a module in."""
        source = path.read_text()
        tree = ast.parse(source)
        docs = set(_docstring_lines(tree))
        lines = source.splitlines()
        code = set()
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type not in _NO_CODE and token.start[0] not in docs:
                self.tokens += 1
                code.add(token.start[0])
        self.lines += len(lines)
        self.code_lines += len(code)
        self.ternaries += sum(isinstance(node, ast.IfExp) for node in ast.walk(tree))
        self.longest = max([self.longest, *map(len, lines)])
        if len(lines) > MODULE_LINES:
            self.large.append(f"{path}: {len(lines)} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES:
                    self.large.append(f"{path}:{node.lineno} {node.name}: {length} lines")

    @property
    def tokens_per_line(self) -> float:
        return self.tokens / max(self.code_lines, 1)

    @property
    def ternaries_per_1000(self) -> float:
        return 1000 * self.ternaries / max(self.lines, 1)

    def within(self) -> bool:
        """Return whether all limits hold."""
        return (
            not self.large
            and self.longest <= LINE_LENGTH
            and self.tokens_per_line <= TOKENS_PER_LINE
            and self.ternaries_per_1000 <= TERNARIES_PER_1000
        )


def _docstring_lines(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                yield from range(node.lineno, (node.end_lineno or node.lineno) + 1)


def measure(paths: list[Path]) -> Measures:
    """Return the measures over some modules."""
    measures = Measures()
    for path in paths:
        measures.add(path)
    return measures


def main() -> int:
    """Print a line for each folder inside the roots, one for each root, and what is too large."""
    print(f"{'':28}{'lines':>8}{'tokens/line':>13}{'ternaries/1000':>16}{'longest':>9}")
    fine = True
    for root in map(Path, sys.argv[1:] or ["engine"]):
        modules = sorted(root.rglob("*.py"))
        for folder in sorted({path.parent for path in modules} - {root}):
            _print(str(folder), measure([path for path in modules if path.parent == folder]))
        whole = measure(modules)
        _print(f"{root} in all", whole)
        for line in whole.large:
            print(f"  too large: {line}")
        fine &= whole.within()
    return int(not fine)


def _print(name: str, found: Measures) -> None:
    print(
        f"{name:28}{found.lines:8,}{found.tokens_per_line:13.2f}"
        f"{found.ternaries_per_1000:16.1f}{found.longest:9}"
    )


if __name__ == "__main__":
    sys.exit(main())
