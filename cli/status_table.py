"""What `traitmill status` shows of an experiment: totals, then one line a trait, trouble first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from traitmill.engine.records import POLARITIES

Facts = Mapping[str, Any]
_COUNTS = ("planned", "generated", "judged", "captured", "pos", "neg")
_COLUMNS = ("trait", "generated", "judged", "captured", "kept", "to see to")
_LEFT = ("trait", "to see to")
_WORDS = 14
"""Columns of what is to be seen to: names of traits need the room."""


def shown(experiment: str, found: Mapping[str, Facts | None]) -> Iterator[RenderableType]:
    """Yield the totals, the table and what all traits share.

    `found` is each trait's facts by name, None where no run has begun.
    """
    begun = {name: facts for name, facts in found.items() if facts is not None}
    sums = {name: _sums(facts) for name, facts in begun.items()}
    trouble = {name: _trouble(facts) for name, facts in begun.items()}
    yield Text(f"{experiment}: {_totals(found, sums, trouble, begun)}")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    calm = len(begun) == len(found) and not any(trouble.values())
    columns = _COLUMNS[:-1] if calm else _COLUMNS
    for column in columns:
        justify: Any = "left" if column in _LEFT else "right"
        fixed = column not in _LEFT
        most = _WORDS if column == _LEFT[1] else None
        table.add_column(column, justify=justify, no_wrap=fixed, overflow="fold", max_width=most)
    for name in sorted(begun, key=lambda name: _order(sums[name], trouble[name])):
        each = sums[name]
        cells = [
            f"{each['generated']}/{each['planned']}",
            str(each["judged"]),
            str(each["captured"]),
            f"{each['pos']} + {each['neg']}",
        ]
        table.add_row(*map(Text, [name, *cells, ", ".join(trouble[name])][: len(columns)]))
    for name, facts in found.items():
        if facts is None:
            table.add_row(Text(name), *[""] * 4, Text("no run yet"))
    yield table
    for what, values in (
        ("model", {facts["run"]["sampling"]["model"] for facts in begun.values()}),
        ("judge", {facts["judge"]["model"] or "none yet" for facts in begun.values()}),
        ("kept by", {_filters(facts) for facts in begun.values()}),
    ):
        if values:
            yield Text(f"{what}: {', '.join(sorted(values))}")


def _sums(facts: Facts) -> dict[str, int]:
    """Return one trait's counts over both sides, and what is kept of each."""
    sides = [facts["counts"][polarity] for polarity in POLARITIES]
    done = sum(side["planned"] - side["responses"]["pending"] for side in sides)
    return {
        "planned": sum(side["planned"] for side in sides),
        "generated": done,
        "judged": sum(side["verdicts"]["scored"] for side in sides),
        "captured": sum(side["captured"] for side in sides),
        "pos": facts["counts"]["pos"]["kept"],
        "neg": facts["counts"]["neg"]["kept"],
        "judgeable": sum(side["responses"]["ok"] for side in sides),
    }


def _trouble(facts: Facts) -> list[str]:
    """Return what is neither generated, scored nor to be expected, most serious first."""
    found = ["see below"] if facts["faults"] else []
    counts: dict[str, int] = {}
    for polarity in POLARITIES:
        side = facts["counts"][polarity]
        for kind, good in (("responses", ("ok", "pending")), ("verdicts", ("scored",))):
            for name, n in side[kind].items():
                if n and name not in good:
                    counts[name] = counts.get(name, 0) + n
        if side["kept"] == 0 and side["verdicts"]["scored"]:
            found.append(f"no {polarity} kept")
    ranked = sorted(counts.items(), key=lambda item: (item[0] != "failed", -item[1]))
    return found + [f"{n} {name}" for name, n in ranked]


def _order(sums: Mapping[str, int], trouble: list[str]) -> tuple[int, float]:
    """Return the place of a trait: damaged and failed first, then the least far, then the rest."""
    bad = any(word == "see below" or "failed" in word or "kept" in word for word in trouble)
    return (not bad, _progress(sums))


def _progress(sums: Mapping[str, int]) -> float:
    return (sums["generated"] + sums["judged"]) / max(1, 2 * sums["planned"])


def _totals(
    found: Mapping[str, Facts | None],
    sums: Mapping[str, Mapping[str, int]],
    trouble: Mapping[str, list[str]],
    begun: Mapping[str, Facts],
) -> str:
    total = {key: sum(each[key] for each in sums.values()) for key in _COUNTS}
    done = sum(each["generated"] == each["planned"] for each in sums.values())
    n_bytes = sum(sum(facts["bytes"].values()) for facts in begun.values())
    failing = sum(any("failed" in word for word in words) for words in trouble.values())
    traits = "1 trait" if len(found) == 1 else f"{len(found):,} traits"
    parts = [
        f"{traits}, {done:,} generated in full",
        f"{total['generated']:,} of {total['planned']:,} responses",
        f"{total['judged']:,} judged",
        f"{total['captured']:,} captured",
        f"kept {total['pos']:,} pos + {total['neg']:,} neg",
        f"{n_bytes / 1e6:,.1f} MB",
    ]
    if failing:
        parts.append(f"{failing:,} with failures")
    return "; ".join(parts)


def _filters(facts: Facts) -> str:
    """Return which filters decide what is kept."""
    said = [f"--threshold {facts['threshold']:g}"]
    if facts["neg_threshold"] != facts["threshold"]:
        said.append(f"--neg_threshold {facts['neg_threshold']:g}")
    if facts["paired"]:
        said.append("--paired")
    if facts["coherence"] is not None:
        said.append(f"--coherence {facts['coherence']:g}")
    return " ".join(said)
