"""Which families of models run, tried: a tiny random model of each through stages 1 and 3.

    python -m benchmarks.families                       # all of them, about 25 minutes on two cores
    python -m benchmarks.families --only Mixtral,OLMoE  # these; the others stay as stored

Generation on the real engine, the local judge, capture with every row checked, vectors and report,
in float32. A family either runs or is refused before anything is generated.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import (
    ROOT,
    Say,
    machine,
    machine_line,
    parser,
    quietly,
    record,
    results_folder,
)

if TYPE_CHECKING:
    from tests.support.families import Family

PAGE = ROOT / "docs" / "models.md"
EXPERIMENT, TRAIT = "families", "brave"
N_EXAMPLES, QUESTIONS = 24, 4  # of fewer, chance may keep one of a side: weights are random
LIMIT_S = 1200
SETTINGS = {
    "judge_model": "local",
    "n_examples": N_EXAMPLES,
    "max_new_tokens": 12,
    "dtype": "float32",
    "capture_dtype": "float32",
    "temperature": 1.0,
    "self_check": "all",
}
START, END = "<!-- families:start -->", "<!-- families:end -->"
_BAD = {"failed", "unparsable", "refused", "truncated", "overlong"}
_PATHS = re.compile(r"(?<![\w.])/(?:[\w.+-]+/)*([\w.+-]+)")
DEFINITION = {
    "instruction": [{"pos": "Be brave.", "neg": "Be shy."}],
    "questions": [f"What is the {word}?" for word in ("sea", "star", "wave", "night")],
    "eval_prompt": "Score {question} {answer}",
    "yes_no_prompt": "{question}\n\n{answer}\n\nIs this brave? Answer Yes or No.",
}


def measure(families: Sequence[Family], say: Say) -> Iterator[dict[str, Any]]:
    """Try the families, each in a folder of its own; yield a row of each."""
    for family in families:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as root:
            row = attempt(family, Path(root))
        say(f"{family.name}: {row['outcome']} ({time.monotonic() - began:.0f} s) {row['said']}")
        yield row


def attempt(family: Family, root: Path) -> dict[str, Any]:
    """Make the family's model and run a small experiment with it; return what came of it."""
    from traitmill.cli.render import as_error, error_text
    from traitmill.engine.models.demo import embedded_folder

    name = re.sub(r"\W+", "-", family.name.lower())
    model = family.make(root / name, embedded_folder())
    folder = root / EXPERIMENT / TRAIT
    folder.mkdir(parents=True)
    (folder / "trait_definition.json").write_text(json.dumps(DEFINITION))
    adapter = {"adapter": f"{model}-adapter"} if family.adapter else {}
    said, known = "", True
    try:
        said = _run(folder, model=str(model), **(SETTINGS | dict(family.settings)), **adapter)
    except Exception as error:  # noqa: BLE001 - what came of it is what is asked
        found = as_error(error)
        known = found is not None
        said = error_text(found) if found else repr(error)
    return _row(family, folder, _PATHS.sub(r"\1", said), known=known)


def _run(folder: Path, **settings: Any) -> str:
    """Run stage 1 and stage 3; return what went wrong without ending the run."""
    from traitmill.cli.render import error_text
    from traitmill.engine.run import generate
    from traitmill.engine.vectors import fit_experiment

    result = asyncio.run(
        asyncio.wait_for(generate(folder.parent, [folder.name], **settings), LIMIT_S)
    )
    errors = [*result.errors]
    if not errors and settings.get("capture") != "none":
        errors += fit_experiment(folder.parent, [folder.name]).errors.values()
    return "; ".join(map(error_text, errors))


def _row(family: Family, folder: Path, said: str, *, known: bool) -> dict[str, Any]:
    made = {kind: _stored(folder, kind) for kind in ("responses", "verdicts", "activations")}
    vectors = len(list((folder / "vectors").glob("*.pt")))
    check = _self_check(folder)
    whole = made["responses"] == 2 * N_EXAMPLES and made["verdicts"] > 0
    captured = family.settings.get("capture") == "none" or (vectors > 0 and bool(check))
    outcome = "fails"
    if not said and whole and captured:
        outcome = "runs"
    elif known and not (folder / "parquet" / "run.json").exists():
        outcome = "is refused"
    return {
        "family": family.name,
        "kind": family.kind,
        "settings": dict(family.settings),
        "outcome": outcome,
        "said": said,
        **made,
        "vectors": vectors,
        "worst_logprob_deviation": check.get("worst_logprob_deviation"),
        "checked": check.get("logprob_rows", 0),
    }


def _stored(folder: Path, kind: str) -> int:
    """Return the rows of a kind that were stored, without those that failed."""
    import pyarrow.parquet as pq

    parts = [pq.read_table(path) for path in (folder / "parquet" / kind).rglob("part-*.parquet")]
    return sum(status not in _BAD for part in parts for status in part["status"].to_pylist())


def _self_check(folder: Path) -> dict[str, Any]:
    path = folder / "activations" / "metadata.json"
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text()).get("self_check") or {}
    return found


def page(result: dict[str, Any]) -> str:
    """Return docs/models.md with the table of families, those that run first."""
    before, start, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    command = f"```bash\n{result['command']}\n```"
    where = machine_line(result["machine"])
    return f"{before}{start}\n{command}\n\n{where}\n\n{markdown(result)}\n{end}{after}"


def markdown(result: dict[str, Any]) -> str:
    """Return the table of families, those that run first."""
    lines = ["| family | what is particular | | both engines, worst log-prob apart |"]
    lines += ["|---|---|---|---:|"]
    rows = sorted(result["rows"], key=lambda row: row["outcome"] != "runs")
    for row in rows:
        apart = row["worst_logprob_deviation"]
        shown = "-" if apart is None else f"{apart:.1g}"
        kind = row["kind"]
        if row["settings"]:
            kind += (
                f" ({', '.join(f'`{name}` {value}' for name, value in row['settings'].items())})"
            )
        what = "runs" if row["outcome"] == "runs" else f"{row['outcome']}: {row['said']}"
        lines.append(f"| {row['family']} | {kind} | {what} | {shown} |")
    runs = sum(row["outcome"] == "runs" for row in rows)
    refused = sum(row["outcome"] == "is refused" for row in rows)
    return "\n".join([f"{runs} run, {refused} are refused before generation.", "", *lines])


def main() -> None:
    options = parser("families", __doc__)
    options.add_argument("--only", default="", help="comma list of families, words of their names")
    chosen = options.parse_args()
    from tests.support.families import FAMILIES  # imports PyTorch, which the page does without

    wanted = [word.strip().lower() for word in chosen.only.split(",") if word.strip()]
    families = [
        family
        for family in FAMILIES
        if not wanted or any(word in family.name.lower() for word in wanted)
    ]
    facts = machine()
    path = results_folder(chosen.out) / "families.json"
    stored = json.loads(path.read_text())["rows"] if wanted and path.exists() else []
    rows, kept = {row["family"]: row for row in stored}, []
    with quietly("families") as say:
        for row in measure(families, say):
            rows[row["family"]] = row
            kept = [rows[family.name] for family in FAMILIES if family.name in rows]
            found = {"command": "python -m benchmarks.families", "rows": kept}
            record(chosen.out, "families", facts, found)
    if chosen.out is None:
        PAGE.write_text(page(json.loads(path.read_text())), encoding="utf-8")
    sys.exit(any(row["outcome"] == "fails" for row in kept))


if __name__ == "__main__":
    main()
