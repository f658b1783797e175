"""docs/benchmarks.md, its pictures and the README's table, from stored results: a pure function of the JSON files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import baselines, batch_size, memory, methods, overlap, plots, roofline
from benchmarks.common import RESULTS, ROOT, machine_line, table

DOCS = ROOT / "docs"
PICTURES = "benchmarks"
"""Folder of the pictures, inside docs/."""
NOTES = ROOT / "benchmarks" / "notes.md"
"""What no run can write: findings, and what was measured before and after a change."""
START, END = "<!-- bench:start -->", "<!-- bench:end -->"
Result = Mapping[str, Any]
Results = Mapping[str, Result]
Draw = Callable[[Result, Path, str], None]


@dataclass(frozen=True, slots=True)
class Section:
    """A benchmark on the page: its result's name, how it is written, and its picture."""

    name: str
    title: str
    command: str
    """The default; a stored result brings its own."""
    body: Callable[[Results], str]
    draw: Draw | None = None
    alt: str = ""


def _text(name: str) -> Callable[[Results], str]:
    """A benchmark that prints its figures."""
    return lambda results: "```\n" + "\n".join(results[name]["lines"]) + "\n```"


def _capture(results: Results) -> str:
    from benchmarks.capture import markdown

    return markdown(dict(results["capture"])).strip()


def _scale(results: Results) -> str:
    result = results["scale"]
    lines = [
        [
            f"{int(size):,}",
            str(len(cost["runs"])),
            f"{cost['wall_ms_per_sample']:.3f}",
            f"{cost['cpu_ms_per_sample']:.3f}",
            f"{cost['peak_anonymous_mb']:,.0f}",
        ]
        for size, cost in result["per_size"].items()
    ]
    note = (
        f"Backends: {result['backends']}. From the smaller size to the larger, medians within a round: CPU time a "
        f"sample {result['cpu_per_sample_ratio']:.2f} times, wall time {result['wall_per_sample_ratio']:.2f} times, "
        f"anonymous memory {result['anonymous_growth_mb']:+.0f} MB. The finished large run started again ends in "
        f"{result['started_again_s']:.1f} s."
    )
    header = ["samples", "runs", "wall, ms a sample", "CPU, ms a sample", "peak anonymous memory, MB"]
    return f"{note}\n\n{table(header, lines)}"


_CAPTURE_COMMANDS = "python -m benchmarks.capture\npython -m benchmarks.capture --flat 100000"
_SPEEDUP_ALT = "Speedup over one sequence at a time by sequences in flight: generation, whole job, the guide's claim."
SECTIONS = (
    Section(
        "batch_size",
        "The guide's batch-size table",
        "python -m benchmarks.batch_size",
        lambda results: batch_size.markdown(results["batch_size"], results.get("memory")),
        plots.speedup,
        _SPEEDUP_ALT,
    ),
    Section(
        "baselines",
        "What one would run instead",
        "python -m benchmarks.baselines",
        lambda results: baselines.markdown(results["baselines"]),
    ),
    Section(
        "overlap",
        "How much of the judge's time is hidden",
        "python -m benchmarks.overlap",
        lambda results: overlap.markdown(results["overlap"]),
        plots.timeline,
        "Records done over time in generation, judging and capture, for an instant judge and for one of 1 s.",
    ),
    Section(
        "memory",
        "Memory, predicted and measured",
        "python -m benchmarks.memory",
        lambda results: memory.markdown(results["memory"]),
    ),
    Section(
        "roofline",
        "How far from the hardware's limit",
        "python -m benchmarks.roofline",
        lambda results: roofline.markdown(results["roofline"]),
    ),
    Section("capture", "Capture", _CAPTURE_COMMANDS, _capture),
    Section("judge", "The remote judge", "python -m benchmarks.judge", _text("judge")),
    Section("vectors", "Vectors", "python -m benchmarks.vectors", _text("vectors")),
    Section("scale", "Many records", "python -m benchmarks.scale", _scale),
)

_GPU_COMMANDS = (
    ("batch_size", "python -m benchmarks.batch_size --gen_model google/gemma-2-2b-it --n_examples 200"),
    ("batch_size-gemma-2-9b", "python -m benchmarks.batch_size --shape gemma-2-9b --n_examples 2000"),
    ("baselines", "python -m benchmarks.baselines --gen_model google/gemma-2-2b-it --n_examples 400"),
    ("overlap", "python -m benchmarks.overlap --gen_model google/gemma-2-2b-it --n_examples 2000"),
    ("memory", "python -m benchmarks.memory --gen_model google/gemma-2-2b-it"),
    ("roofline", "python -m benchmarks.roofline --gen_model google/gemma-2-2b-it"),
    ("roofline-gemma-2-9b", "python -m benchmarks.roofline --shape gemma-2-9b"),
)
"""What fills the GPU's tables. A shape's result carries the shape's name."""


def load(folder: Path = RESULTS) -> dict[str, Result]:
    """Stored results by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


# --- the page ------------------------------------------------------------------------------------------------


def docs_page(folder: Path = RESULTS) -> str:
    """docs/benchmarks.md."""
    cpu, gpu = load(folder), load(folder / "gpu")
    parts = [
        "# Benchmarks",
        (
            "Written by `python -m benchmarks.all` (`make bench`) from `benchmarks/results/*.json`; do not edit. "
            "`python -m benchmarks.all --render-only` writes it again from stored results. Each table stands under the "
            "command that made it. The judge is one that only takes time, so that no network is measured; where times "
            "are compared, methods take turns, and ratios are of medians or within a round."
        ),
        "## Goals and what was reached",
        _goals(cpu),
        *(_section(section, cpu) for section in SECTIONS),
    ]
    if NOTES.exists():
        parts.append(NOTES.read_text(encoding="utf-8").strip())
    parts += [
        "## On a GPU",
        "Run there, each command fills its table when the page is written again; an empty cell was never measured.",
        _gpu_shapes(cpu),
        *(_gpu(name, line, gpu) for name, line in _GPU_COMMANDS),
    ]
    return "\n\n".join(parts) + "\n"


def _section(section: Section, results: Results, folder: str = PICTURES) -> str:
    parts = [f"## {section.title}"]
    if section.name not in results:
        return "\n\n".join([*parts, _command(section.command), "Not measured yet."])
    result = results[section.name]
    parts.append(_command(result.get("command", section.command)))
    if isinstance(result.get("machine"), Mapping):  # the capture benchmark's table names its machine itself
        parts.append(machine_line(result["machine"]))
    parts.append(section.body(results))
    if section.draw is not None:
        parts.append(f"![{section.alt}]({folder}/{section.name}.svg)")
    return "\n\n".join(parts)


def _command(line: str) -> str:
    return f"```bash\n{line}\n```"


def _gpu(name: str, command: str, results: Results) -> str:
    base = name.partition("-")[0]
    section = next(section for section in SECTIONS if section.name == base)
    if name in results:
        # A shape's result is written by the same code as the model's.
        shown = {**results, base: results[name]}
        return _section(section, shown, f"{PICTURES}/gpu").replace("## ", "### ", 1)
    return "\n\n".join([f"### {section.title}", _command(command), _EMPTY[base]])


def _gpu_shapes(results: Results) -> str:
    parts = ["### Shapes with random weights (`make bench-gpu`)", _command("python -m benchmarks.gpu")]
    if "gpu" not in results:
        header = ["attention", "batch budget", "rows/s", "tokens/s", "of the matrix rate", "peak beside weights"]
        return "\n\n".join([*parts, _empty(header, ["Gemma-2-2B", "Gemma-2-9B"])])
    from benchmarks.gpu import markdown

    return "\n\n".join([*parts, markdown(dict(results["gpu"])).strip()])


def _empty(header: list[str], labels: list[str]) -> str:
    return table(header, ([label, *[" "] * (len(header) - 1)] for label in labels))


_EMPTY = {
    "batch_size": _empty(
        ["batch", "tokens/s", "speedup", "whole job, s", "speedup", "memory, GiB"], batch_size.ROWS.split(",")
    ),
    "baselines": _empty(["method", "tokens/s", "makespan, s", "process, s", "memory, GiB"], list(methods.METHODS)),
    "overlap": _empty(
        ["judge", "makespan, s", "later than instant, s", "share of no judge"], [c.name for c in overlap.CONDITIONS]
    ),
    "memory": _empty(
        ["batch", "weights, GiB", "KV predicted, GiB", "KV allocated, GiB", "peak, GiB"], memory.ROWS.split(",")
    ),
    "roofline": _empty(
        ["sequences", "limit, tokens/s", "reached, tokens/s", "share"], [str(c) for c in roofline.CONCURRENCY]
    ),
}


def _goals(results: Results) -> str:
    """The goals for two cores, and the medians that were reached."""
    batches = {row["batch"]: row["speedup"][0] for row in results.get("batch_size", {"rows": []})["rows"]}
    ratios = results.get("baselines", {"goals": {}})["goals"]
    later = results["overlap"]["goals"] if "overlap" in results else {}
    lines: list[tuple[str, str, float | None]] = [
        ("generation in the pipeline over bare vLLM", "0.95 or more", ratios.get("generation over bare")),
        *(
            (f"generation, batch {batch} over batch 1", f"{goal} or more", batches.get(batch))
            for batch, goal in (("4", 2.2), ("8", 4.2), ("16", 6), ("auto", 11))
        ),
        ("generation over transformers' batch 8", "3.5 or more", ratios.get("generation over guide")),
        ("whole job over the guide's method", "2.5 or more", ratios.get("whole job over guide")),
        ("whole job over a peer's method", "1.2 or more", ratios.get("whole job over peer")),
        (
            "generation under a 1 s judge, share of no judge",
            f"{overlap.GOAL_SHARE} or more",
            later.get("generation_share", [None])[0],
        ),
        (
            "end under a 1 s judge after an instant one's, s",
            f"{1 + overlap.GOAL_SECONDS:g} or less",
            later.get("later_s", [None])[0],
        ),
    ]
    return table(["", "goal", "reached"], ([n, goal, "-" if v is None else f"{v:.2f}"] for n, goal, v in lines))


# --- files ---------------------------------------------------------------------------------------------------


def readme_with_table(readme: str, folder: Path = RESULTS) -> str:
    """The README with its table renewed. Raises ValueError where the markers are missing."""
    if START not in readme or END not in readme:
        raise ValueError(f"README.md lacks the markers {START} and {END}; put them where the table belongs")
    results = load(folder)
    block = ""
    if "batch_size" in results:
        block = batch_size.readme_table(results["batch_size"], results.get("memory")) + "\n"
    pattern = re.compile(re.escape(START) + ".*?" + re.escape(END), re.DOTALL)
    return pattern.sub(lambda _: f"{START}\n{block}{END}", readme, count=1)


def draw_pictures(target: Path, folder: Path = RESULTS) -> None:
    """Draw the pictures of all stored results into `target`."""
    for results, place in ((load(folder), target), (load(folder / "gpu"), target / "gpu")):
        for section in SECTIONS:
            if section.draw is not None and section.name in results:
                section.draw(results[section.name], place, section.name)


def write(folder: Path = RESULTS) -> None:
    """Write docs/benchmarks.md, the pictures and, where there is one, the README's table."""
    (DOCS / "benchmarks.md").write_text(docs_page(folder), encoding="utf-8")
    draw_pictures(DOCS / PICTURES, folder)
    readme = ROOT / "README.md"
    if readme.exists():
        readme.write_text(readme_with_table(readme.read_text(encoding="utf-8"), folder), encoding="utf-8")
