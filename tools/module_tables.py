"""Writes the tables of modules in docs/architecture.md from the modules' docstrings.

python tools/module_tables.py
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = (
    *("settings", "traits", "models", "planning", "generation", "judging", "capture", "storage"),
    *("outputs", "replicas", "run", "vectors", "steering", "projection", "report"),
)
"""In the order of the page: what comes first knows nothing of what comes after."""
START, END = "## Where things are\n", "### `cli/`\n"


def page(text: str) -> str:
    """Return the page with its tables renewed."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    parts = [_table(ROOT / "engine")]
    for name in PACKAGES:
        folder = ROOT / "engine" / name
        parts += [f"### `engine/{name}/`", f"{_first(folder / '__init__.py')}.", _table(folder)]
    return f"{before}{START}\n" + "\n\n".join(parts) + f"\n\n{END}{after}"


def _table(folder: Path) -> str:
    rows = [
        f"| `{path.name}` | {_first(path)} |"
        for path in sorted(folder.glob("*.py"))
        if path.stem != "__init__"
    ]
    return "\n".join(["| module | holds |", "|---|---|", *rows])


def _first(path: Path) -> str:
    """Return the first paragraph of a module's docstring, as one line without its full stop."""
    found = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(found.split("\n\n")[0].split()).rstrip(".").replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
