"""docs/benchmarks.md, its pictures, the marked blocks of the README and of docs/: a pure function
of the JSON files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT, machine_line, paragraphs, table

DOCS = ROOT / "docs"
PICTURES = "benchmarks"
"""Folder of the pictures, inside docs/."""
NOTES = ROOT / "benchmarks" / "notes.md"
"""What no run can write: findings, and what was measured before and after a change."""
README_BLOCK = "<!-- bench:start -->", "<!-- bench:end -->"
Result = Mapping[str, Any]
Results = Mapping[str, Result]


@dataclass(frozen=True, slots=True)
class Bench:
    """A benchmark's command, and where its result is shown."""

    name: str
    """Of the result."""
    arguments: str = ""
    title: str = ""
    """Of its section in docs/benchmarks.md; none: it stands on `page` alone."""
    minutes: float = 0.0
    """What the parts before it leave it in `make bench`; 0: it is no part of that."""
    page: str = ""
    """A page of docs/ that shows it between two marks."""
    picture: str = ""
    """A function of `plots`."""
    alt: str = ""
    writer: str = "markdown"
    """The module's function that writes the result."""

    @property
    def module(self) -> str:
        return self.name.partition("-")[0]

    @property
    def command(self) -> str:
        return f"python -m benchmarks.{self.module} {self.arguments}".strip()

    def body(self, result: Result) -> str:
        """The benchmark's own writing, imported when it is needed: some import torch."""
        found: str = getattr(import_module(f"benchmarks.{self.module}"), self.writer)(result)
        return found

    def shown(self, result: Result | None) -> str:
        """The command, the machine and the figures, or that there are none."""
        if result is None:
            return paragraphs(_code(self.command), "Not measured yet.")
        where = machine_line(result["machine"]) if "machine" in result else ""
        return paragraphs(_code(result.get("command", self.command)), where, self.body(result))


BENCHES = (
    Bench(
        "batch_size",
        title="The guide's batch-size table",
        minutes=8.5,
        picture="speedup",
        alt="Speedup over one sequence at a time by sequences in flight: generation, whole job, "
        "the guide's claim.",
    ),
    Bench("baselines", title="What one would run instead", minutes=8.8),
    Bench(
        "overlap",
        title="How much of the judge's time is hidden",
        minutes=6.0,
        picture="timeline",
        alt="Records done over time in generation, judging and capture, for an instant judge and "
        "for one of 1 s.",
    ),
    Bench("memory", title="Memory, predicted and measured", minutes=2.6),
    Bench("tuning", title="What holds generation back", minutes=6.2),
    Bench(
        "capture",
        "--budgets 256,512,2048,4096",
        title="Capture",
        minutes=2.0,
        page="capture.md",
    ),
    Bench("roofline", title="How far from the hardware's limit", minutes=0.4),
    Bench(
        "judge",
        "--seconds 24 --verdicts 10000",
        title="The remote judge",
        minutes=2.2,
        page="judge.md",
    ),
    Bench("vectors", "--rounds 2", title="Vectors", minutes=1.0, page="vectors.md"),
    Bench("scale", title="Many records", minutes=1.2, page="reliability.md"),
    Bench("waiting", page="capture.md"),
    Bench("judge-memory", "--memory", page="judge.md"),
    Bench("vectors-large", "--large", page="vectors.md", writer="large_markdown"),
    Bench("vectors-many", "--many", page="vectors.md", writer="many_markdown"),
    Bench("vectors-coverage", "--coverage", page="vectors.md", writer="coverage_markdown"),
    Bench("tuning-compiled", "--compiled", page="decisions/009-eager-on-cpu.md"),
    Bench("soak", page="reliability.md"),
    Bench("soak-real", page="reliability.md", writer="real_markdown"),
    Bench("soak_replicas", page="scaling.md"),
    Bench(
        "soak-real-split-2",
        "--kills 0 --real_kills 5 --tensor_parallel_size 2",
        page="scaling.md",
        writer="real_markdown",
    ),
    Bench("cluster", page="scaling.md"),
    Bench("steering", page="steering.md"),
    Bench("steering_effect", page="steering.md"),
)
SECTIONS = tuple(bench for bench in BENCHES if bench.title)
BLOCKS = tuple(bench for bench in BENCHES if bench.page)
_GEMMA = "--gen_model google/gemma-2-2b-it"


def _on_gpu(name: str, arguments: str) -> Bench:
    """What a section is on a GPU. A shape's result carries the shape's name."""
    module, _, shape = name.partition("-")
    section = next(section for section in SECTIONS if section.name == module)
    title = f"{section.title}: {shape}" if shape else section.title
    return Bench(name, arguments, title, picture=section.picture, alt=section.alt)


GPU_BENCHES = (
    _on_gpu(
        "capture-gemma-2-2b",
        "--shape gemma-2-2b --rows 512 --budgets 4096,8192,16384,32768 --rounds 2",
    ),
    _on_gpu(
        "capture-gemma-2-9b",
        "--shape gemma-2-9b --rows 512 --budgets 4096,8192,16384,32768 --rounds 2",
    ),
    _on_gpu("batch_size", f"{_GEMMA} --n_examples 200 --rounds 1"),
    _on_gpu(
        "batch_size-gemma-2-2b",
        "--shape gemma-2-2b --n_examples 2000 --rows 64,256,auto --rounds 1",
    ),
    _on_gpu("roofline-gemma-2-2b", "--shape gemma-2-2b"),
    _on_gpu(
        "batch_size-gemma-2-9b",
        "--shape gemma-2-9b --capture --n_examples 2000 --rows 64,auto --rounds 1",
    ),
    _on_gpu("roofline-gemma-2-9b", "--shape gemma-2-9b"),
    _on_gpu("baselines", f"{_GEMMA} --n_examples 400 --rounds 1 --limit 240"),
    _on_gpu("overlap", f"{_GEMMA} --n_examples 2000 --rounds 2"),
    _on_gpu("memory", _GEMMA),
)
"""What fills the GPU's tables, in order: a roofline looks at what was measured before it."""


def load(folder: Path = RESULTS) -> dict[str, Result]:
    """Stored results by name."""
    return {
        path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))
    }


# --- the page ---


def docs_page(folder: Path = RESULTS) -> str:
    """docs/benchmarks.md."""
    cpu, gpu = load(folder), load(folder / "gpu")
    notes = NOTES.read_text("utf-8").strip() if NOTES.exists() else ""
    return paragraphs(
        "# Benchmarks",
        "Written by `python -m benchmarks.all` (`make bench`), which runs every command of this "
        "page but the GPU's and stores its figures in `benchmarks/results/`; `python -m "
        "benchmarks.all --render-only` writes the page again from them. Do not edit it. Each table "
        "stands under the command that made it. Where times are compared, methods take turns round "
        "by round. Unless its section says otherwise, the judge is a stand-in that waits for a set "
        "time and then answers.",
        "## Goals and what was reached",
        _goals(cpu),
        *(_section("##", bench, cpu, PICTURES) for bench in SECTIONS),
        notes,
        "## On a GPU",
        "`make bench-gpu` runs these commands, each for up to 10 minutes.",
        *(_section("###", bench, gpu, f"{PICTURES}/gpu") for bench in GPU_BENCHES),
    ) + "\n"  # fmt: skip


def _section(level: str, bench: Bench, results: Results, pictures: str) -> str:
    result = results.get(bench.name)
    picture = ""
    if bench.picture and result is not None:
        picture = f"![{bench.alt}]({pictures}/{bench.name}.svg)"
    return paragraphs(f"{level} {bench.title}", bench.shown(result), picture)


def _code(line: str) -> str:
    return f"```bash\n{line}\n```"


def _goals(results: Results) -> str:
    """The goals for two cores, and the medians that were reached."""
    found: dict[str, float] = {}
    for row in results.get("batch_size", {"rows": []})["rows"]:
        found[f"generation, batch {row['batch']} over batch 1"] = row["speedup"][0]
    found |= results.get("baselines", {"goals": {}})["goals"]
    for name, (reached, _) in results.get("overlap", {"goals": {}})["goals"].items():
        found[name] = reached
    if "capture" in results:
        times_ours = import_module("benchmarks.capture").times_ours
        for name in ("guide, batch 8", "stack kept, batch 16"):
            found[name] = times_ours(results["capture"], name)[0]
    if "vectors" in results:
        found["vectors"] = import_module("benchmarks.vectors").times_less(results["vectors"])[0]
    by_batch = {"4": 2.2, "8": 4.2, "16": 6, "auto": 11}
    names = {f"generation, batch {batch} over batch 1": goal for batch, goal in by_batch.items()}
    alike = "generation in the pipeline over bare vLLM tuned alike"
    lines = (
        ("generation in the pipeline over bare vLLM", "0.95 or more", "generation over bare"),
        (alike, "0.95 or more", "generation over bare-tuned"),
        *((name, f"{goal} or more", name) for name, goal in names.items()),
        ("generation over transformers' batch 8", "3.5 or more", "generation over guide"),
        ("whole job over the guide's method", "2.5 or more", "whole job over guide"),
        ("whole job over a peer's method", "1.2 or more", "whole job over peer"),
        ("generation under a 1 s judge, share of no judge", "0.97 or more", "generation_share"),
        ("end under a 1 s judge after an instant one's, s", "3 or less", "later_s"),
        ("capture over the guide's batch 8", "2 or more", "guide, batch 8"),
        ("capture over a kept stack, batch 16", "2 or more", "stack kept, batch 16"),
        ("vectors over a loop over layers", "20 or more", "vectors"),
    )
    reached = {name: f"{value:.2f}" for name, value in found.items()}
    rows = (f"{name} | {goal} | {reached.get(key, '-')}" for name, goal, key in lines)
    return table(" | goal | reached", rows)


# --- files ---


def readme_with_table(readme: str, folder: Path = RESULTS) -> str:
    """The README with its table renewed. Raises ValueError where the markers are missing."""
    results, block = load(folder), ""
    if "batch_size" in results:
        block = import_module("benchmarks.batch_size").readme_table(results["batch_size"]) + "\n"
    return _between("README.md", readme, README_BLOCK, block)


def with_blocks(page: str, text: str, folder: Path = RESULTS) -> str:
    """A page of docs/ with its marked blocks renewed. Raises ValueError where marks are missing."""
    results = load(folder)
    for block in BLOCKS:
        if block.page == page:
            marks = f"<!-- bench:{block.name}:start -->", f"<!-- bench:{block.name}:end -->"
            text = _between(
                f"docs/{page}", text, marks, block.shown(results.get(block.name)) + "\n"
            )
    return text


def _between(page: str, text: str, marks: tuple[str, str], body: str) -> str:
    start, end = marks
    if start not in text or end not in text:
        raise ValueError(f"{page} lacks the marks {start} and {end}; put them where figures belong")
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    return pattern.sub(lambda _: f"{start}\n{body}{end}", text, count=1)


def draw_pictures(target: Path, folder: Path = RESULTS) -> None:
    """Draw the pictures of all stored results into `target`."""
    from benchmarks import plots

    places = ((SECTIONS, folder, target), (GPU_BENCHES, folder / "gpu", target / "gpu"))
    for benches, stored, place in places:
        results = load(stored)
        for bench in benches:
            if bench.picture and bench.name in results:
                getattr(plots, bench.picture)(results[bench.name], place, bench.name)


def write(folder: Path = RESULTS) -> None:
    """Write docs/benchmarks.md, the pictures, and the marked blocks of docs/ and the README."""
    (DOCS / "benchmarks.md").write_text(docs_page(folder), encoding="utf-8")
    draw_pictures(DOCS / PICTURES, folder)
    for name in sorted({block.page for block in BLOCKS}):
        page = DOCS / name
        page.write_text(with_blocks(name, page.read_text("utf-8"), folder), encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(readme_with_table(readme.read_text("utf-8"), folder), encoding="utf-8")
