"""What a new run would replace in a trait's folder is moved aside, never overwritten."""

from __future__ import annotations

import shutil
from pathlib import Path


def outputs(folder: Path) -> list[Path]:
    """Tables, tensors and vectors, whoever wrote them."""
    return [
        path
        for name in ("responses", "activations", "vectors")
        for path in (folder / name).glob("[!.]*")
    ]


def move_aside(folder: Path, kind: str, moment: str) -> Path:
    """Move a run's files, or those of another program, into a folder `<kind>-<moment>` beside them; returns it."""
    stem = f"{kind}-{moment.replace(':', '').replace('-', '')}"
    target, number = folder / stem, 1
    # The records go last: cut off before that, the same command moves the rest into the same folder.
    pages = sorted(path.name for path in folder.glob("report*.html"))
    names = (
        "responses",
        "activations",
        "vectors",
        "plots",
        *pages,
        "evaluation.parquet",
        "parquet",
    )
    moved = [name for name in names if (folder / name).exists()]
    while any((target / name).exists() for name in moved):
        number += 1
        target = folder / f"{stem}_{number}"
    target.mkdir(exist_ok=True)
    for name in moved:
        shutil.move(folder / name, target / name)
    return target
