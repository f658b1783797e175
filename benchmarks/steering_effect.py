"""Does the demo's vector do anything? Over seeds of the steered answers.

    python -m benchmarks.steering_effect                 # seeds 1, 2 and 3
    python -m benchmarks.steering_effect --reruns        # each with a trait run of its own seed
    python -m benchmarks.steering_effect --folder DIR    # keeps everything, goes on where it was

The demo's trait is run as the demo runs it (seed 0), its vector fitted, and `traitmill steer` asked
for each seed, with the method and layer that it takes by default, at all positions. The judge is the local one: the
135M model itself. Beside its scores stands a meter of form, which is no model and no judge, and
takes no part in what the command says: the share of answers set as verse, by counting lines and
words.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ROOT, machine, parser, record, table
from traitmill.engine.models import EMBEDDED
from traitmill.engine.statistics import Estimate, grouped_mean
from traitmill.engine.steering import read_study
from traitmill.engine.storage import TraitFolder

NAME, TRAIT = "steering_effect", "poem"
SEEDS = (1, 2, 3)
COEFFICIENTS, POSITIONS = (0.25, 0.45, 0.6), "all"
"""Chosen in a pilot of 8 answers a condition under another seed (9), as the page says."""
N_EXAMPLES, MAX_NEW_TOKENS, STEERED = 50, 64, 20
LINES, WORDS = 4, 9
"""An answer is set as verse that has so many lines, of so many words at most on average."""
_MARKS = ("-", "*", "#", "•")
Row = Mapping[str, str]


def is_verse(text: str) -> bool:
    """Whether an answer has the form of verse: some short lines, none of them an item of a list.

    The last line is left out where it may have been cut off.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    items = [line for line in lines if line.startswith(_MARKS) or line[:1].isdigit()]
    if len(lines) < LINES or items:
        return False
    return float(np.mean([len(line.split()) for line in lines[:-1]])) <= WORDS


def run(folder: Path, *words: str) -> None:
    """Run a command of traitmill on a seed's folder; what it says goes to a file beside it."""
    place = ["--experiments_dir", str(folder.parent), "--experiment", folder.name, "--trait", TRAIT]
    name, *options = words
    command = [sys.executable, "-m", "traitmill", name, *place, *options]
    with (folder / f"{name}.txt").open("a") as said:
        subprocess.run(command, cwd=ROOT, check=True, stdout=said, stderr=said)


def make_trait(folder: Path, seed: int) -> Path:
    """Run the trait and fit its vectors, where that is not done yet; return the folder."""
    if (folder / TRAIT / "vectors").exists():
        return folder
    made = folder / TRAIT / "trait_definition.json"
    if not made.exists():
        made.parent.mkdir(parents=True)
        shutil.copy(ROOT / "experiments" / "demo" / TRAIT / made.name, made)
    sampling = ["--gen_model", EMBEDDED, "--max_new_tokens", str(MAX_NEW_TOKENS)]
    judged = ["--judge_model", "local", "--n_examples", str(N_EXAMPLES), "--seed", str(seed)]
    run(folder, "generate", *sampling, *judged)
    run(folder, "vectors", "--methods", "mean_diff")
    return folder


def measure(folder: Path, seed: int, how: Sequence[str]) -> dict[str, Any]:
    """Steer under a seed, or what is left of it; return its figures."""
    run(folder, "steer", "--seed", str(seed), *how)
    run(folder, "report")
    return {"seed": seed, **figures(TraitFolder(folder / TRAIT))}


def figures(folder: TraitFolder) -> dict[str, Any]:
    """What a study came to: its claim, its figures of score and coherence, and the form of texts."""
    rows, facts = read_study(folder)
    kept = rows.drop("method", "positions").to_dicts()
    with (folder.steering.path / "responses.csv").open(newline="") as file:
        texts = list(csv.DictReader(file))
    claim = facts["claim"]
    found = {"claim": claim, "n_questions": facts["n_questions"], "rows": kept}
    own = [text for text in texts if (text["layer"] or "-1") in ("-1", str(claim["layer"]))]
    return {**found, "form": form(own)}


def form(texts: Sequence[Row]) -> list[dict[str, Any]]:
    """The share of answers set as verse by condition, and its rise above unsteered, in points."""
    by: dict[tuple[str, float], dict[str, list[bool]]] = {}
    for text in texts:
        mine = by.setdefault((text["kind"], float(text["coefficient"])), {})
        mine.setdefault(text["question"], []).append(is_verse(text["response"]))
    plain = shares(by["unsteered", 0.0])
    found = []
    for (kind, coefficient), answers in by.items():
        own = shares(answers)
        gaps = np.array([own[question] - plain[question] for question in own])
        found.append(
            {
                "kind": kind,
                "coefficient": coefficient,
                "share": float(np.mean(list(own.values()))),
                "over_unsteered": list(grouped_mean(gaps, np.arange(len(gaps)))),
            }
        )
    return found


def shares(answers: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    return {question: 100 * float(np.mean(each)) for question, each in answers.items()}


# --- the page ---


def markdown(result: Mapping[str, Any]) -> str:
    """A line a seed, then the curve of each."""
    header = ["seed", "vector", "coefficient", "unsteered", "steered", "above unsteered"]
    header += ["above random", "pos instruction", "coherence"]
    claims = table(header, (_claim(run) for run in result["runs"]))
    header = ["seed", "coefficient", "score", "above unsteered", "coherence", "as verse, %"]
    header += ["verse above unsteered", "random: verse above unsteered"]
    curves = table(header, (c for run in result["runs"] for c in _curve(run)))
    shown = sum(run["claim"]["has_effect"] for run in result["runs"])
    return (
        f'{_runs(result)} "The vector steers" is what the command said of {shown} of {len(result["runs"])} seeds. '
        f"Each at the largest coefficient whose coherence holds, with 95 % intervals:\n\n{claims}\n\n"
        "The curves. `as verse` is the meter of form: the share of answers, in %, of at least "
        f"{LINES} lines, of at most {WORDS} words on average, none of them an item of a list. It "
        f"counts; it judges nothing.\n\n{curves}"
    )


def _runs(result: Mapping[str, Any]) -> str:
    if result["reruns"]:
        return "Each seed has a trait run and a vector of its own."
    return "One trait run and one vector (seed 0); the seeds are of the steered answers."


def _claim(run: Mapping[str, Any]) -> list[str]:
    claim, at = run["claim"], _measures(run, run["claim"]["coefficient"])
    cells = [str(run["seed"]), f"{claim['method']} at layer {claim['layer']}"]
    if claim["coefficient"] is None:
        return [*cells, "none holds", *["-"] * 6]
    others = [_measures(run, 0.0, kind)["trait_score"] for kind in ("unsteered", "prompt")]
    return [
        *cells,
        f"{claim['coefficient']:g}",
        f"{others[0]['value']:.1f}",
        f"{at['trait_score']['value']:.1f}",
        _ranged(at["over_unsteered"]),
        _ranged(at["over_random"]),
        f"{others[1]['value']:.1f}",
        f"{at['coherence']['value']:.0f}",
    ]


def _curve(run: Mapping[str, Any]) -> list[list[str]]:
    verse = {(each["kind"], each["coefficient"]): each for each in run["form"]}
    baselines = [("unsteered", "nothing"), ("prompt", "pos instruction")]
    cases = [(kind, 0.0, said) for kind, said in baselines]
    own = sorted({row["coefficient"] for row in run["rows"] if row["kind"] == "steered"})
    cases += [("steered", coefficient, f"{coefficient:g}") for coefficient in own]
    lines = []
    for kind, coefficient, said in cases:
        at = _measures(run, coefficient, kind)
        over = _ranged(at["over_unsteered"]) if kind != "unsteered" else ""
        form, beside = verse[kind, coefficient], verse.get(("random", coefficient))
        score, coherence = at["trait_score"]["value"], at["coherence"]["value"]
        cells = [f"{score:.1f}", over, f"{coherence:.0f}", f"{form['share']:.0f}"]
        cells += [_gap(form) if kind != "unsteered" else ""]
        cells += [_gap(beside) if beside and kind == "steered" else ""]
        lines.append([str(run["seed"]), said, *cells])
    return lines


def _gap(form: Mapping[str, Any]) -> str:
    value, low, high = form["over_unsteered"]
    return f"{value:+.0f} ({low:+.0f} to {high:+.0f})"


def _measures(run: Mapping[str, Any], coefficient: float | None, kind: str = "steered") -> Any:
    layers = (-1, run["claim"]["layer"])
    return {
        row["measure"]: row
        for row in run["rows"]
        if row["kind"] == kind and row["coefficient"] == coefficient and row["layer"] in layers
    }


def _ranged(row: Mapping[str, float]) -> str:
    value, low, high = (row[name] for name in Estimate._fields)
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def main() -> None:
    options = parser(NAME, __doc__)
    options.add_argument("--folder", type=Path, help="of the experiments; kept, and gone on with")
    options.add_argument("--seeds", type=json.loads, default=list(SEEDS), help="as [1,2,3]")
    options.add_argument("--reruns", action="store_true", help="a trait run for each seed")
    chosen = options.parse_args()
    grid = ",".join(f"{each:g}" for each in COEFFICIENTS)
    how = ["--coefficients", grid, "--positions", POSITIONS, "--n_examples", str(STEERED)]
    how += ["--max_new_tokens", str(MAX_NEW_TOKENS)]
    facts, root = machine(), chosen.folder or Path(tempfile.mkdtemp(prefix=f"{NAME}-"))
    runs = []
    for seed in chosen.seeds:
        folder = root / f"seed{seed}"
        if not folder.exists() and not chosen.reruns:
            shutil.copytree(make_trait(root / "seed0", 0), folder)
        runs.append(measure(make_trait(folder, seed), seed, how))
        found = {"coefficients": COEFFICIENTS, "reruns": chosen.reruns, "runs": runs}
        record(chosen.out, NAME, facts, found)
    print(markdown(found))


if __name__ == "__main__":
    main()
