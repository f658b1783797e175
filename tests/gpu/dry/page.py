"""docs/gpu_configurations.md: the snapshot, for reading.

python -m tests.gpu.dry.page
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, table

PAGE = ROOT / "docs" / "gpu_configurations.md"
SNAPSHOT = Path(__file__).with_name("snapshot.json")
_HEAD = """# What a run would be on each card

For {cards} cards, {models} models and splits over 1, 2, 4 and 8 cards: what placement says, or the refusal, and what vLLM 0.32's
CUDA build makes of the arguments. The driver was a stand-in and no kernel ran: configuration, choice of attention, cache
and loaders are vLLM's own, asked without a card.

```bash
make setup-cuda-dry     # the CUDA lock in .venv-cuda, 8.9 GB
make test-cuda-dry      # compares with tests/gpu/dry/snapshot.json
python -m tests.gpu.dry.page
```

Prompts of up to 98 tokens and responses of 150. Sizes are GiB of a card. All that is not refused runs with compilation
mode 3, as a plan of ten minutes and more has it; a split of 1 in the engine's own process, larger ones with a process a
card."""
_COLUMNS = (
    *("placement", "weights_gib", "overhead_gib", "cache_gib", "cached_tokens", "sequences"),
    *("batched_tokens", "share", "dtype", "runner", "attention", "graphs"),
)


def page() -> str:
    """Return the page."""
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    models = {name.partition(" ")[0] for name in next(iter(found.values()))}
    parts = [_HEAD.format(cards=len(found), models=len(models))]
    header = ["model and split", *(name.replace("_gib", "").replace("_", " ") for name in _COLUMNS)]
    for card, rows in found.items():
        lines = [[name, *_cells(row)] for name, row in rows.items()]
        parts += [f"## {card}", table(header, lines)]
    return "\n\n".join(parts) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    if "refused" in row:
        what, _, remedy = row["refused"].partition(": ")
        return [f"{what}: {remedy.rpartition('; ')[2]}", *[""] * (len(_COLUMNS) - 1)]
    return [f"{row[name]:,}" if isinstance(row[name], int) else str(row[name]) for name in _COLUMNS]


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
