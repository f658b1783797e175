"""docs/benchmarks.md, its pictures, the marked blocks of the README and of docs/: a pure function
of the JSON files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import baselines, batch_size, memory, methods, overlap, plots, roofline, tuning
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


@dataclass(frozen=True, slots=True)
class Block:
    """A result that stands between two marks of a page of docs/, under its command."""

    name: str
    """Of the result and in the marks. `capture-flat` also stands in the section `capture` of
    docs/benchmarks.md."""
    page: str
    command: str
    """The default; a stored result brings its own."""
    body: Callable[[Result], str]
    apart: bool = False
    """Whether it takes longer than `make bench` may, and so stands on its own page alone."""


def _by(module: str, function: str = "markdown") -> Callable[[Result], str]:
    """The benchmark's own writing, imported when it is needed: some import torch."""

    def write_body(result: Result) -> str:
        body: str = getattr(import_module(f"benchmarks.{module}"), function)(result)
        return body

    return write_body


BLOCKS = (
    Block("capture", "capture.md", "python -m benchmarks.capture", _by("capture")),
    Block(
        "capture-budgets",
        "capture.md",
        "python -m benchmarks.capture --budgets",
        _by("capture", "budgets_markdown"),
    ),
    Block(
        "capture-flat",
        "capture.md",
        "python -m benchmarks.capture --flat 100000",
        _by("capture", "flat_markdown"),
    ),
    Block("waiting", "capture.md", "python -m benchmarks.waiting", _by("waiting"), apart=True),
    Block("selfcheck", "capture.md", "python -m benchmarks.selfcheck", _by("selfcheck")),
    Block("judge", "judge.md", "python -m benchmarks.judge", _by("judge")),
    Block(
        "judge-memory", "judge.md", "python -m benchmarks.judge --memory", _by("judge"), apart=True
    ),
    Block("vectors", "vectors.md", "python -m benchmarks.vectors", _by("vectors")),
    Block(
        "vectors-large",
        "vectors.md",
        "python -m benchmarks.vectors --large",
        _by("vectors", "large_markdown"),
        apart=True,
    ),
    Block(
        "vectors-coverage",
        "vectors.md",
        "python -m benchmarks.vectors --coverage",
        _by("vectors", "coverage_markdown"),
        apart=True,
    ),
    Block(
        "tuning-compiled",
        "decisions/009-eager-on-cpu.md",
        "python -m benchmarks.tuning --compiled",
        _by("tuning"),
        apart=True,
    ),
    Block("soak", "reliability.md", "python -m benchmarks.soak", _by("soak")),
    Block("soak-real", "reliability.md", "python -m benchmarks.soak", _by("soak", "real_markdown")),
    Block("scale", "reliability.md", "python -m benchmarks.scale", _by("scale")),
    Block(
        "soak_replicas",
        "scaling.md",
        "python -m benchmarks.soak_replicas",
        _by("soak_replicas"),
        apart=True,
    ),
    Block("cluster", "scaling.md", "python -m benchmarks.cluster", _by("cluster"), apart=True),
)
_BLOCKS = {block.name: block for block in BLOCKS}


def _section_of(name: str, title: str) -> Section:
    """A section whose body is the block's."""
    block = _BLOCKS[name]
    return Section(name, title, block.command, lambda results: block.body(results[name]))


_SPEEDUP_ALT = "Speedup over one sequence at a time by sequences in flight: generation, whole job, the guide's claim."
SECTIONS = (
    Section(
        "batch_size",
        "The guide's batch-size table",
        "python -m benchmarks.batch_size",
        lambda results: batch_size.markdown(results["batch_size"]),
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
        "Records done over time in generation, judging and capture, for an instant judge and for "
        "one of 1 s.",
    ),
    Section(
        "memory",
        "Memory, predicted and measured",
        "python -m benchmarks.memory",
        lambda results: memory.markdown(results["memory"]),
    ),
    Section(
        "tuning",
        "What holds generation back",
        "python -m benchmarks.tuning",
        lambda results: tuning.markdown(results["tuning"]),
    ),
    _section_of("capture", "Capture"),
    Section(
        "roofline",
        "How far from the hardware's limit",
        "python -m benchmarks.roofline",
        lambda results: roofline.markdown(results["roofline"]),
    ),
    _section_of("judge", "The remote judge"),
    _section_of("vectors", "Vectors"),
    _section_of("scale", "Many records"),
)

GPU_COMMANDS = (
    ("gpu", "python -m benchmarks.gpu"),
    (
        "batch_size",
        "python -m benchmarks.batch_size --gen_model google/gemma-2-2b-it --n_examples 200 "
        "--rounds 1",
    ),
    (
        "batch_size-gemma-2-2b",
        "python -m benchmarks.batch_size --shape gemma-2-2b --n_examples 2000 --rows 64,256,auto "
        "--rounds 1",
    ),
    ("roofline-gemma-2-2b", "python -m benchmarks.roofline --shape gemma-2-2b"),
    (
        "batch_size-gemma-2-9b",
        "python -m benchmarks.batch_size --shape gemma-2-9b --capture --n_examples 2000 --rows "
        "64,auto --rounds 1",
    ),
    ("roofline-gemma-2-9b", "python -m benchmarks.roofline --shape gemma-2-9b"),
    (
        "baselines",
        "python -m benchmarks.baselines --gen_model google/gemma-2-2b-it --n_examples 400 --rounds "
        "1 --limit 240",
    ),
    (
        "overlap",
        "python -m benchmarks.overlap --gen_model google/gemma-2-2b-it --n_examples 2000 --rounds "
        "2",
    ),
    ("memory", "python -m benchmarks.memory --gen_model google/gemma-2-2b-it"),
)
"""What fills the GPU's tables, in order: a roofline looks at the batch sizes before it. A shape's
result carries the shape's name."""


def load(folder: Path = RESULTS) -> dict[str, Result]:
    """Stored results by name."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*.json"))
    }


# --- the page ---


def docs_page(folder: Path = RESULTS) -> str:
    """docs/benchmarks.md."""
    cpu, gpu = load(folder), load(folder / "gpu")
    parts = [
        "# Benchmarks",
        (
            "Written by `python -m benchmarks.all` (`make bench`), which runs every command of "
            "this page but the "
            "GPU's and stores its figures in `benchmarks/results/`; `python -m benchmarks.all "
            "--render-only` writes "
            "the page again from them. Do not edit it. Each table stands under the command that "
            "made it. Where times "
            "are compared, methods take turns round by round. Unless its section says otherwise, "
            "the judge is a "
            "stand-in that waits for a set time and then answers."
        ),
        "## Goals and what was reached",
        _goals(cpu),
        *(_section(section, cpu) for section in SECTIONS),
    ]
    if NOTES.exists():
        parts.append(NOTES.read_text(encoding="utf-8").strip())
    parts += [
        "## On a GPU",
        "`make bench-gpu` runs these commands, each for up to 10 minutes; an empty cell was never "
        "measured.",
        *(_gpu(name, line, gpu) for name, line in GPU_COMMANDS),
    ]
    return "\n\n".join(parts) + "\n"


def _section(section: Section, results: Results, picture: str = "") -> str:
    parts = [f"## {section.title}"]
    if section.name not in results:
        parts += [_command(section.command), "Not measured yet."]
    else:
        result = results[section.name]
        parts += [*_head(result, section.command), section.body(results)]
        if section.draw is not None:
            parts.append(f"![{section.alt}]({picture or f'{PICTURES}/{section.name}'}.svg)")
    parts += [
        _block(block, results)
        for block in BLOCKS
        if block.name.startswith(f"{section.name}-") and not block.apart
    ]
    return "\n\n".join(parts)


def _head(result: Result, command: str) -> list[str]:
    """The command, and the machine where the result names one."""
    machine = [machine_line(result["machine"])] if "machine" in result else []
    return [_command(result.get("command", command)), *machine]


def _block(block: Block, results: Results) -> str:
    if block.name not in results:
        return f"{_command(block.command)}\n\nNot measured yet."
    return "\n\n".join(
        [*_head(results[block.name], block.command), block.body(results[block.name])]
    )


def _command(line: str) -> str:
    return f"```bash\n{line}\n```"


def _gpu(name: str, command: str, results: Results) -> str:
    base = name.partition("-")[0]
    if name == "gpu":
        return _gpu_shapes(command, results)
    section = next(section for section in SECTIONS if section.name == base)
    if shape := name.removeprefix(base).removeprefix("-"):
        section = replace(section, title=f"{section.title}: {shape}")
    if name in results:
        # A shape's result is written by the same code as the model's.
        shown = {**results, base: results[name]}
        return _section(section, shown, f"{PICTURES}/gpu/{name}").replace("## ", "### ", 1)
    return "\n\n".join([f"### {section.title}", _command(command), _EMPTY[base]])


def _gpu_shapes(command: str, results: Results) -> str:
    parts = ["### Capture and generation, random weights", _command(command)]
    if "gpu" not in results:
        header = [
            "attention",
            "batch budget",
            "rows/s",
            "tokens/s",
            "of the matrix rate",
            "peak beside weights",
        ]
        return "\n\n".join([*parts, _empty(header, ["Gemma-2-2B", "Gemma-2-9B"])])
    from benchmarks.gpu import markdown

    return "\n\n".join([*parts, markdown(dict(results["gpu"])).strip()])


def _empty(header: list[str], labels: list[str]) -> str:
    return table(header, ([label, *[" "] * (len(header) - 1)] for label in labels))


_EMPTY = {
    "batch_size": _empty(
        ["batch", "tokens/s", "speedup", "whole job, s", "speedup", "memory, GiB"],
        batch_size.ROWS.split(","),
    ),
    "baselines": _empty(
        ["method", "tokens/s", "makespan, s", "process, s", "memory, GiB"], list(methods.METHODS)
    ),
    "overlap": _empty(
        ["judge", "makespan, s", "later than instant, s", "share of no judge"],
        [c.name for c in overlap.CONDITIONS],
    ),
    "memory": _empty(
        ["batch", "weights, GiB", "KV predicted, GiB", "KV allocated, GiB", "peak, GiB"],
        memory.ROWS.split(","),
    ),
    "roofline": _empty(
        ["sequences", "limit, tokens/s", "reached, tokens/s", "share"],
        [str(c) for c in roofline.CONCURRENCY],
    ),
}


def _goals(results: Results) -> str:
    """The goals for two cores, and the medians that were reached."""
    batches = {
        row["batch"]: row["speedup"][0] for row in results.get("batch_size", {"rows": []})["rows"]
    }
    ratios = results.get("baselines", {"goals": {}})["goals"]
    later = results["overlap"]["goals"] if "overlap" in results else {}
    lines: list[tuple[str, str, float | None]] = [
        (
            "generation in the pipeline over bare vLLM",
            "0.95 or more",
            ratios.get("generation over bare"),
        ),
        (
            "generation in the pipeline over bare vLLM tuned alike",
            "0.95 or more",
            ratios.get("generation over bare-tuned"),
        ),
        *(
            (f"generation, batch {batch} over batch 1", f"{goal} or more", batches.get(batch))
            for batch, goal in (("4", 2.2), ("8", 4.2), ("16", 6), ("auto", 11))
        ),
        (
            "generation over transformers' batch 8",
            "3.5 or more",
            ratios.get("generation over guide"),
        ),
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
        *_stage_goals(results),
    ]
    return table(
        ["", "goal", "reached"],
        ([n, goal, "-" if v is None else f"{v:.2f}"] for n, goal, v in lines),
    )


def _stage_goals(results: Results) -> list[tuple[str, str, float | None]]:
    """Goals of capture and vectors."""
    capture: dict[str, float | None] = dict.fromkeys(("guide, batch 8", "stack kept, batch 16"))
    vectors = None
    if "capture" in results:
        times_ours = import_module("benchmarks.capture").times_ours
        capture = {name: (times_ours(results["capture"], name) or [None])[0] for name in capture}
    if "vectors" in results:
        vectors = import_module("benchmarks.vectors").times_less(results["vectors"])[0]
    return [
        ("capture over the guide's batch 8", "2 or more", capture["guide, batch 8"]),
        ("capture over a kept stack, batch 16", "2 or more", capture["stack kept, batch 16"]),
        ("vectors over a loop over layers", "20 or more", vectors),
    ]


# --- files ---


def readme_with_table(readme: str, folder: Path = RESULTS) -> str:
    """The README with its table renewed. Raises ValueError where the markers are missing."""
    if START not in readme or END not in readme:
        raise ValueError(
            f"README.md lacks the markers {START} and {END}; put them where the table belongs"
        )
    results = load(folder)
    block = ""
    if "batch_size" in results:
        block = batch_size.readme_table(results["batch_size"]) + "\n"
    pattern = re.compile(re.escape(START) + ".*?" + re.escape(END), re.DOTALL)
    return pattern.sub(lambda _: f"{START}\n{block}{END}", readme, count=1)


def with_blocks(page: str, text: str, folder: Path = RESULTS) -> str:
    """A page of docs/ with its marked blocks renewed. Raises ValueError where marks are missing."""
    results = load(folder)
    for block in BLOCKS:
        if block.page != page:
            continue
        start, end = f"<!-- bench:{block.name}:start -->", f"<!-- bench:{block.name}:end -->"
        if start not in text or end not in text:
            raise ValueError(
                f"docs/{page} lacks the marks {start} and {end}; put them where the figures belong"
            )
        pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
        body = f"{start}\n{_block(block, results)}\n{end}"
        text = pattern.sub(lambda _, body=body: body, text, count=1)
    return text


def draw_pictures(target: Path, folder: Path = RESULTS) -> None:
    """Draw the pictures of all stored results into `target`."""
    for results, place in ((load(folder), target), (load(folder / "gpu"), target / "gpu")):
        for section in SECTIONS:
            for name in results:
                if section.draw is not None and name.partition("-")[0] == section.name:
                    section.draw(results[name], place, name)


def write(folder: Path = RESULTS) -> None:
    """Write docs/benchmarks.md, the pictures, and the marked blocks of docs/ and the README."""
    (DOCS / "benchmarks.md").write_text(docs_page(folder), encoding="utf-8")
    draw_pictures(DOCS / PICTURES, folder)
    for name in sorted({block.page for block in BLOCKS}):
        page = DOCS / name
        page.write_text(
            with_blocks(name, page.read_text(encoding="utf-8"), folder), encoding="utf-8"
        )
    readme = ROOT / "README.md"
    if readme.exists():
        readme.write_text(
            readme_with_table(readme.read_text(encoding="utf-8"), folder), encoding="utf-8"
        )
