"""The page of a projection: a sample of turns with their tokens coloured. One file, no requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..files import write_atomic
from .directions import Directions
from .reading import Reader
from .summary import Summary
from .table import Layout

if TYPE_CHECKING:
    from numpy import ndarray

SHOWN = 24
"""Turns on the page, by model and vector."""
VECTORS = 4
"""Vectors on the page at most; the table has all."""
MOST_TOKENS = 400
"""Tokens of a turn on the page."""
STEPS = 8
"""Shades of a colour."""
_FULL = 90
"""Percentile of the shown tokens' distance from 0 that has the strongest colour."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token as the page shows it."""

    text: str
    score: float | None
    """None for a sequence's first token, which counts in no mean."""
    shade: str
    """`p1` to `p8` towards the trait, `n1` to `n8` away from it, empty in the middle."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A turn as the page shows it."""

    row: int
    turn: int
    role: str
    score: float
    tokens: tuple[Token, ...]
    cut: int
    """Tokens that are not shown."""


@dataclass(frozen=True, slots=True)
class Section:
    """One vector's turns, as one model reads them."""

    model: str
    vector: str
    full: float
    """The distance from 0 that has the strongest colour."""
    n: int
    """Turns there are."""
    role: str
    turns: tuple[Shown, ...]


def write_page(
    path: Path,
    table: Path,
    layout: Layout,
    readers: Sequence[Reader],
    directions: Directions,
    summary: Summary,
) -> None:
    """Write a self-contained page of turns spread evenly over the projections."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__package__ or ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("projection.html").render(
        sections=list(_sections(table, layout, readers, summary)),
        summary=summary,
        models=[reader.label for reader in readers],
        fitted_to=directions.model_name,
        hidden=len(layout.vectors) - VECTORS,
        steps=STEPS,
    )
    write_atomic(path, page.encode("utf-8", "backslashreplace"))


def _sections(
    table: Path, layout: Layout, readers: Sequence[Reader], summary: Summary
) -> Iterator[Section]:
    for reader in readers:
        for vector in layout.vectors[:VECTORS]:
            role, n = _role(summary, reader.label, vector)
            if not n:
                continue
            rows = _take(table, _spread(table, reader.label, vector, role), vector)
            scores = [np.abs(np.array(row["by_token"][:MOST_TOKENS], float)) for row in rows]
            full = max(1.0, float(np.nanpercentile(np.concatenate(scores), _FULL)))
            shown = tuple(_shown(row, full, reader.tokenizer) for row in rows)
            yield Section(reader.label, vector, full, n, role, shown)


def _role(summary: Summary, model: str, vector: str) -> tuple[str, int]:
    """Return whose turns are shown, and how many there are of them.

    They are of the assistant where it says anything, else of whoever says most.
    """
    counts = {
        each.role: each.n for each in summary.means if (each.model, each.vector) == (model, vector)
    }
    if not counts:
        return "", 0
    role = "assistant" if "assistant" in counts else max(counts, key=lambda each: counts[each])
    return role, counts[role]


def _spread(table: Path, model: str, vector: str, role: str) -> ndarray:
    """Return places of turns spread evenly over their projections, highest first."""
    places, values, start = [], [], 0
    with pq.ParquetFile(table, page_checksum_verification=True) as file:
        for group in range(file.metadata.num_row_groups):
            rows = file.read_row_group(group, columns=["model", "role", vector], use_threads=False)
            mine = pc.and_(pc.equal(rows["model"], model), pc.equal(rows["role"], role))
            mine = pc.fill_null(pc.and_(mine, pc.is_valid(rows[vector])), fill_value=False)
            inside = np.flatnonzero(mine.to_numpy())
            places.append(inside + start)
            values.append(rows[vector].take(pa.array(inside)).to_numpy())
            start += rows.num_rows
    order = np.concatenate(places)[np.argsort(-np.concatenate(values), kind="stable")]
    picks = np.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().astype(int)
    return np.asarray(order[picks])


def _take(table: Path, places: ndarray, vector: str) -> list[dict[str, Any]]:
    """Return the rows at some places of a table, reading only the row groups they stand in."""
    columns = ["row", "turn", "role", vector, "token_ids", f"{vector}.by_token"]
    found: dict[int, dict[str, Any]] = {}
    with pq.ParquetFile(table, page_checksum_verification=True) as file:
        start = 0
        for group in range(file.metadata.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            inside = places[(places >= start) & (places < stop)]
            if len(inside):
                rows = file.read_row_group(group, columns=columns, use_threads=False)
                rows = rows.take(pa.array(inside - start))
                found.update(zip(map(int, inside), rows.to_pylist(), strict=True))
            start = stop
    return [
        {**found[int(place)], "by_token": found[int(place)][f"{vector}.by_token"]}
        | {"score": found[int(place)][vector]}
        for place in places
    ]


def _shown(row: dict[str, Any], full: float, tokenizer: Any) -> Shown:
    ids, scores = row["token_ids"][:MOST_TOKENS], row["by_token"][:MOST_TOKENS]
    tokens = [
        Token(text, score, _shade(score, full))
        for text, score in zip(token_texts(tokenizer, ids), scores, strict=True)
    ]
    cut = len(row["token_ids"]) - len(ids)
    return Shown(row["row"], row["turn"], row["role"], row["score"], tuple(tokens), cut)


def _shade(score: float | None, full: float) -> str:
    if score is None:
        return ""
    step = min(STEPS, round(abs(score) / full * STEPS))
    if not step:
        return ""
    return f"{'p' if score > 0 else 'n'}{step}"


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return what each token adds to the text; of a character's several tokens the last has it."""
    texts: list[str] = []
    start = done = 0  # what stands before `done` is said; `start` gives it its context
    for end in range(1, len(ids) + 1):
        before = tokenizer.decode(ids[start:done])
        now = tokenizer.decode(ids[start:end])
        if end < len(ids) and now.endswith("\ufffd"):
            texts.append("")
            continue
        texts.append(now[len(before) :])
        start, done = done, end
    return texts
