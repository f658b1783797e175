"""A trait's pages, self-contained HTML files, and its pictures: the report, and all responses to
search, sort, filter and mark."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_atomic
from ..outputs import (
    PAGE_MARK,
    Metadata,
    exported_table,
    note_stale,
    says_yes,
    stale_files,
    text_mark,
)
from ..settings import DEFAULT_POOL
from ..storage import TraitFolder, pool_suffix
from .numbers import (
    TraitFigures,
    audit,
    choice,
    dollars,
    judge_name,
    method_rows,
    moment,
    settings,
    yields,
)
from .picture import NAMES, Picture
from .plots import trait_pictures
from .render import inline_script, render
from .steering import steered

if TYPE_CHECKING:
    import polars as pl


def write_trait_report(folder: TraitFolder, pool: str = DEFAULT_POOL) -> Path:
    """Write `report.html` and `plots/` in a trait's folder from its evaluation and records.

    Pages and pictures of other pools than response_mean have the pool in their names. The same
    files give the same page. Raise UsageError, with nothing written, where an input is missing or
    stale, or the records hold more than the files.
    """
    figures = TraitFigures(folder, pool)
    metadata = figures.metadata
    responses = exported_table(folder)
    pictures = trait_pictures(figures, responses)
    steering = steered(folder, metadata, pool)
    if steering is not None:
        pictures.append(steering.picture)
    page = render(
        "trait.html",
        experiment=folder.experiment.name,
        pool=pool,
        pictures={picture.name: picture for picture in pictures},
        figures=figures,
        metadata=metadata,
        captured=moment(metadata.extraction_date),
        judge_name=judge_name,
        best=figures.best,
        choice=choice(figures),
        methods=method_rows(figures),
        yields=yields(metadata),
        dollars=dollars(metadata),
        audit=audit(responses),
        steering=steering,
        old_steering=folder.steering_table.name in stale_files(folder),
        settings=dict(settings(metadata.model_dump())),
        mark=PAGE_MARK,
        made_from=metadata.sha256,
    )
    path = write_page(folder, page, pictures, pool)
    write_responses(folder, responses, metadata, pool)
    note_stale(folder)
    return path


def write_page(folder: TraitFolder, page: str, pictures: Sequence[Picture], pool: str) -> Path:
    """Write a page and its pictures; remove those of an earlier page, which no longer hold."""
    drawn = {picture.name: picture for picture in pictures}
    for name in NAMES:
        stem = f"{name}{pool_suffix(pool)}"
        svg = folder.plots / f"{stem}.svg"
        png = folder.plots / f"{stem}.png"
        if name in drawn:
            write_atomic(svg, drawn[name].svg)
            write_atomic(png, drawn[name].png)
        else:
            svg.unlink(missing_ok=True)
            png.unlink(missing_ok=True)
    path = folder.report(pool)
    write_atomic(path, page.encode("utf-8", "backslashreplace"))
    return path


ROWS_A_FILE = 2000
"""Responses in one page of them: a browser filters so many at once without a pause."""

_OURS = re.compile(r"responses(?:-\d+)?\.html")


def write_responses(
    folder: TraitFolder, responses: pl.DataFrame, metadata: Metadata, pool: str
) -> list[Path]:
    """Write `responses.html`: every response, to search, sort, filter and mark.

    It links to the report of a pool.
    Beyond `ROWS_A_FILE` rows there are several files. They need no network; what is marked stays in
    the browser until it is saved as CSV, which `agree` reads.
    """
    rows = readable(responses)
    starts = range(0, max(1, len(rows)), ROWS_A_FILE)
    paths = [folder.responses_page(number) for number in range(len(starts))]
    script, digest = inline_script("responses.js")
    for number, (path, start) in enumerate(zip(paths, starts, strict=True)):
        suffix = f"-{number + 1}" if number else ""
        page = render(
            "responses.html",
            experiment=folder.experiment.name,
            trait=folder.name,
            judge=judge_name(metadata.judge.get("model"), metadata.model),
            judge_key=metadata.judge.get("key") or "",
            where=folder.experiment.resolve().parent.name,
            metadata=metadata,
            marks_file=f"{folder.name}-marks{suffix}.csv",
            files=[each.name for each in paths],
            number=number,
            report=folder.report(pool).name,
            mark=PAGE_MARK,
            made_from=metadata.sha256,
            n_rows=len(rows),
            statuses=sorted({row["status"] for row in rows}),
            instructions=sorted({row["instruction_index"] for row in rows}),
            data=in_script(rows[start : start + ROWS_A_FILE]),
            script=script,
            script_hash=digest,
        )
        write_atomic(path, page.encode("utf-8", "backslashreplace"))
    for old in folder.path.glob("responses*.html"):
        if old not in paths and _OURS.fullmatch(old.name):
            old.unlink()
    return paths


def readable(responses: pl.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of `exported_table` as the page shows them, each with one status."""
    shown = (
        *("sample_id", "polarity", "instruction_index", "instruction", "question", "response"),
        *("finish_reason", "score", "kept", "left_out"),
    )
    found = []
    for row in responses.iter_rows(named=True):
        status = row["response_status"]
        if status == "ok":
            status = row["verdict_status"] or "unjudged"
        said = {"yes": says_yes(row)} if row["score"] is not None else {}
        rest = {name: row[name] for name in shown}
        found.append({**rest, "status": status, "text": text_mark(row["response"]), **said})
    return found


def in_script(value: object) -> str:
    """Return JSON that stays data inside a script element, whatever a response says."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text
