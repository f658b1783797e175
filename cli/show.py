"""`traitmill show`: responses to read, kept or not, with their scores."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import click

from traitmill.engine.errors import ExitCode, UsageError

from . import options
from .options import Option
from .render import say
from .values import Words

if TYPE_CHECKING:
    import polars as pl

_WIDE = 100
"""Columns that texts are wrapped at on a wider terminal: longer lines are hard to read."""
_KEPT = {"kept": True, "rejected": False}
PARAMS = (
    *options.SELECTION[:2],
    options.EXPERIMENTS_DIR,
    Option("side", "One side.  [both]", "Which", common=True, type=click.Choice(["pos", "neg"])),
    Option("kept", "Only those in the files.", "Which", common=True, is_flag=True),
    Option("rejected", "Only those that are not.", "Which", common=True, is_flag=True),
    Option(
        "status",
        "Of the verdict (scored, refused, unparsable, truncated, failed, unjudged), or of the "
        "response (empty, overlong, failed).",
        "Which",
    ),
    Option("min_score", "With at least this score.", "Which", type=float),
    Option("max_score", "With at most this score.", "Which", type=float),
    Option("question", "Its number, or words of it.", "Which"),
    Option(
        "sort",
        "plan, score (lowest first), or -score (highest first).",
        "How",
        common=True,
        type=Words(["plan", "score", "-score"]),
        default="plan",
        show_default=True,
    ),
    Option(
        "limit",
        "At most so many; 0 is all.",
        "How",
        common=True,
        type=click.IntRange(min=0),
        default=10,
        show_default=True,
    ),
)


@click.command(cls=options.GroupedCommand, params=PARAMS)
def command(**given: Any) -> int:
    """Read a trait's responses: score, status, instruction, question and text of each.

    Which ones did the judge get wrong? Look at --side neg --rejected --sort -score, and at --side
    pos --rejected --sort score. Takes no lock and changes nothing.
    """
    from traitmill.engine.outputs import audit_table
    from traitmill.engine.storage import check_name, select_traits

    if given["trait"] is None:
        raise UsageError("give `trait` NAME")
    if given["kept"] and given["rejected"]:
        raise UsageError("give one of --kept and --rejected")
    experiment = check_name(given["experiment"], "experiment")
    folders = select_traits(given["experiments_dir"], experiment, [given["trait"]])
    whole = audit_table(folders[given["trait"]])
    _check(whole, given)
    found = _chosen(whole, given)
    rows = found.head(given["limit"] or len(found))
    for row in rows.iter_rows(named=True):
        _print(row)
    more = f"; --limit 0 shows all {len(found):,}" if len(rows) < len(found) else ""
    say(f"{len(rows):,} shown of {len(found):,} that match, of {len(whole):,} responses{more}")
    return ExitCode.OK


def _check(table: pl.DataFrame, given: dict[str, Any]) -> None:
    """Raise UsageError for a status or a question that there is none of."""
    from traitmill.engine.records import RESPONSE_STATUSES, VERDICT_STATUSES

    known = [*VERDICT_STATUSES, "unjudged", *(each for each in RESPONSE_STATUSES if each != "ok")]
    if given["status"] and given["status"] not in known:
        listed = ", ".join(dict.fromkeys(known))
        raise UsageError(f"--status {given['status']!r} is none; choose from {listed}")
    question, last = given["question"] or "", table["question_index"].max()
    if question.isdecimal() and isinstance(last, int) and int(question) > last:
        raise UsageError(f"--question {question}: the questions are numbered 0 to {last}")


def _chosen(table: pl.DataFrame, given: dict[str, Any]) -> pl.DataFrame:
    """Return the rows that are asked for, in the order that is asked for."""
    import polars as pl

    status = pl.coalesce(
        pl.when(pl.col("response_status") != "ok").then(pl.col("response_status")),
        pl.col("verdict_status"),
        pl.lit("unjudged"),
    )
    table = table.with_columns(status.alias("shown_status"))
    if given["side"]:
        table = table.filter(pl.col("polarity") == given["side"])
    for name, kept in _KEPT.items():
        if given[name]:
            table = table.filter(pl.col("kept") == kept)
    if given["status"]:
        table = table.filter(pl.col("shown_status") == given["status"])
    if given["min_score"] is not None:
        table = table.filter(pl.col("score") >= given["min_score"])
    if given["max_score"] is not None:
        table = table.filter(pl.col("score") <= given["max_score"])
    question = given["question"]
    if question and question.isdecimal():
        table = table.filter(pl.col("question_index") == int(question))
    elif question:
        words = pl.col("question").str.to_lowercase()
        table = table.filter(words.str.contains(question.lower(), literal=True))
    if given["sort"] != "plan":
        downwards = given["sort"] == "-score"
        table = table.sort("score", descending=downwards, nulls_last=True, maintain_order=True)
    return table


def _print(row: dict[str, Any]) -> None:
    score = "no score" if row["score"] is None else f"score {row['score']:g}"
    parts = [row["polarity"], score, _kept(row)]
    if row["shown_status"] != "scored":
        parts.append(row["shown_status"])
    parts.append(f"question {row['question_index']}, instruction {row['instruction_index']}")
    if row["finish_reason"] == "length":
        parts.append("cut off")
    click.echo(f"{' · '.join(parts)} · {row['sample_id'][:8]}")
    for name in ("instruction", "question", "thought", "response"):
        if row[name] or name != "thought":
            click.echo(_wrapped(f"  {name}: ", row[name]))
    click.echo()


def _kept(row: dict[str, Any]) -> str:
    if row["kept"]:
        return "kept"
    return f"not kept: {row['left_out']}" if row["left_out"] else "not kept"


def _wrapped(head: str, text: str) -> str:
    """Return a text behind its name, wrapped on a terminal; control characters are shown, not
    obeyed."""
    safe = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    indent = " " * len(head)
    lines = []
    for line in safe.split("\n"):
        if not sys.stdout.isatty():
            lines.append(line)
            continue
        width = min(_WIDE, shutil.get_terminal_size().columns) - len(head)
        lines += textwrap.wrap(line, max(20, width)) or [""]
    return head + f"\n{indent}".join(lines)
