"""How much of a judge's time is hidden: makespan against the same run with an instant judge, on
real vLLM.

    python -m benchmarks.overlap

One engine and one capture worker. The judge is the product's own, the real openai client over
loopback HTTP, before a server that answers as gpt-5-mini does, after a fixed latency; where a rate
is given it is the judge's `--judge_rpm`. After a run that does not count, no judge, an instant one
and one of 1 s alternate over the rounds, in turned order; the other conditions are run in the
first. Differences and shares are taken within a round. Model loads are apart.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.common import (
    JUDGE_PERSONA,
    Say,
    machine,
    paragraphs,
    parser,
    quietly,
    record,
    serving,
    shown,
    spread,
    table,
    turned,
)
from benchmarks.stand import Run, Stand, whole
from traitmill.engine.judging import EndpointJudge
from traitmill.engine.models import EMBEDDED, find_model
from traitmill.engine.settings import JudgeLimits, JudgeSettings

NAME = "overlap"
_NO_LIMIT = 60_000.0
GOAL_SHARE, GOAL_SECONDS = 0.97, 2.0
"""Of a 1 s judge: generation at least this share of the rate without one; the end at most latency +
this later."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A judge to run under."""

    name: str
    latency: float | None
    rpm: float = 0.0
    every_round: bool = False


NONE = Condition("no judge", None, every_round=True)
INSTANT = Condition("instant", 0.0, every_round=True)
SECOND = Condition("1 s", 1.0, every_round=True)
CONDITIONS = (
    NONE,
    INSTANT,
    SECOND,
    Condition("0.1 s", 0.1),
    Condition("5 s", 5.0),
    Condition("1 s, 1200/min", 1.0, 1200),
    Condition("1 s, 600/min", 1.0, 600),
)


def least_seconds(condition: Condition, samples: int) -> float:
    """What judging alone takes at least: the last request can leave when the rate allows it, and is
    answered then."""
    sent = 60 * (samples - 1) / condition.rpm if condition.rpm else 0.0
    return sent + (condition.latency or 0.0)


def figures(rounds: Sequence[Mapping[str, Run]], samples: int) -> dict[str, Any]:
    """What the page shows, from the rounds so far."""
    rows: list[dict[str, Any]] = []
    for condition in CONDITIONS:
        runs = [(runs[condition.name], runs) for runs in rounds if condition.name in runs]
        if not runs:
            continue
        rows.append({
            "name": condition.name,
            "latency_s": condition.latency,
            "rpm": condition.rpm,
            "rounds": len(runs),
            "least_s": least_seconds(condition, samples),
            "makespan_s": spread(run.makespan for run, _ in runs),
            "later_s": spread(run.makespan - beside[INSTANT.name].makespan for run, beside in runs),
            "tokens_per_s": spread(run.tokens_per_s for run, _ in runs),
            "share": spread(run.tokens_per_s / beside[NONE.name].tokens_per_s for run, beside in runs),
        })  # fmt: skip
    by_name = {row["name"]: row for row in rows}
    second = by_name[SECOND.name]
    timelines = {
        f"judge: {name}": {
            stage: [round(t, 2) for t in times] for stage, times in rounds[0][name].times.items()
        }
        for name in (INSTANT.name, SECOND.name)
    }
    return {
        "conditions": rows,
        "goals": {
            "generation_share": [second["share"][0], GOAL_SHARE],
            "later_s": [second["later_s"][0], 1.0 + GOAL_SECONDS],
        },
        "timelines": timelines,
    }


def markdown(result: Mapping[str, Any]) -> str:
    """The table and the two goals."""
    rows = []
    for row in result["conditions"]:
        share = "-"
        if row["rounds"] == result["rounds"]:
            share = shown([100 * each for each in row["share"]], 1, " %")
        rows.append(
            f"{row['name']} | {row['least_s']:.1f} | {shown(row['makespan_s'])} | "
            f"{shown(row['later_s'])} | {shown(row['tokens_per_s'])} | {share}"
        )
    share, later = result["goals"]["generation_share"], result["goals"]["later_s"]
    note = (
        f"{result['model']}, {result['samples']} responses of up to {result['max_new_tokens']} "
        f"tokens, judged by the product's own client over loopback HTTP; {result['rounds']} rounds "
        "of the first three, one of the others; medians (least to most). Under a 1 s judge "
        f"generation runs at {share[0]:.1%} of its rate without one (goal: at least "
        f"{share[1]:.0%}), and the run ends {later[0]:.1f} s after the one with an instant judge "
        f"(goal: at most {later[1]:.0f} s). On a CPU capture follows generation, so a judge is "
        "beside one or the other until the end; with a slow one it is the number of calls under "
        "way, which starts at 16 and grows with success, that holds the end back."
    )
    header = "judge | judging at least, s | makespan, s | later than instant, s"
    return paragraphs(note, table(f"{header} | generation, tokens/s | share of no judge", rows))


async def _run(stand: Stand, n: int, condition: Condition) -> Run:
    if condition.latency is None:
        return await stand.run(n, None)
    rpm = condition.rpm or _NO_LIMIT
    with serving(persona=JUDGE_PERSONA, latency=condition.latency) as url:
        limits = JudgeLimits(base_url=url, rpm=rpm)
        judge = EndpointJudge(JudgeSettings(model=JUDGE_PERSONA), limits)
        await judge.open()
        try:
            return await stand.run(n, judge, judge_model=JUDGE_PERSONA, judge_base_url=url)
        finally:
            await judge.close()


async def measure(options: argparse.Namespace, say: Say) -> None:
    facts, ref, n = machine(), find_model(options.gen_model), whole(options.n_examples)
    stand = Stand(ref, options.max_new_tokens)
    rounds: list[dict[str, Run]] = []
    try:
        await stand.open()
        await _run(stand, n, NONE)  # the first full run is slower than those after it
        for number in range(options.rounds):
            runs: dict[str, Run] = {}
            for condition in turned(CONDITIONS, number):
                if number and not condition.every_round:
                    continue
                run = await _run(stand, n, condition)
                runs[condition.name] = run
                say(
                    f"round {number + 1}, {condition.name}: {run.makespan:.1f} s, "
                    f"{run.tokens_per_s:.1f} tokens/s"
                )
            rounds.append(runs)
            setting = {
                "model": ref.name,
                "samples": n,
                "max_new_tokens": options.max_new_tokens,
                "rounds": len(rounds),
            }
            result = setting | figures(rounds, n)
            record(options.out, NAME, facts, result)
        say(markdown(result))
    finally:
        await stand.close()


def main() -> None:
    options = parser(NAME, __doc__)
    options.add_argument("--gen_model", default=EMBEDDED)
    options.add_argument("--n_examples", type=int, default=200, help="all sides together")
    options.add_argument("--max_new_tokens", type=int, default=32)
    options.add_argument("--rounds", type=int, default=5)
    chosen = options.parse_args()
    with quietly(NAME) as say:
        asyncio.run(measure(chosen, say))


if __name__ == "__main__":
    main()
