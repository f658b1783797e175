"""The benchmarks' arithmetic and pages: what stands in README and docs is what is stored, under its
command."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from benchmarks import all as everything
from benchmarks import (
    baselines,
    batch_size,
    common,
    methods,
    overlap,
    pages,
    roofline,
    scale,
    tuning,
)
from benchmarks.shapes import SHAPES, check_fits, dummy_model
from benchmarks.stand import Run, SleepingJudge, whole
from tests.conftest import ROOT
from traitmill.engine.models.shape import Shape
from traitmill.engine.records import Response, Sample
from traitmill.engine.traits.definition import Trait

MACHINE = {
    "cpu": "Abacus 9",
    "cores": 2,
    "memory_gib": 23.5,
    "gpu": "",
    "python": "3.11.7",
    "versions": {"torch": "2.13.0"},
    "date": "2026-01-02",
    "load_at_start": 0.1,
}

CAPTURE = {
    "model": "m",
    "dtype": "bfloat16",
    "device": "cpu",
    "threads": 2,
    "clock": "wall",
    "rows": 24,
    "tokens": 1200,
    "budget": 1024,
    "lengths_command": "python -m benchmarks.capture --lengths",
    "padding": {"arrival": 0.25, "sorted": 0.05},
    "seconds": {
        "traitmill": [2.0, 4.0],
        "guide, batch 8": [5.0, 9.0],
        "no LM head": [4.0, 6.0],
        "stack kept, batch 16": [6.0],
        "traitmill, one thread": [3.0, 6.0],
        "matrix products alone": [1.0, 2.0],
    },
    "held_bytes": {"traitmill": 1 << 20, "stack kept, batch 16": 64 << 20},
    "forward_s": [1.8, 3.6],
}
"""One that was stopped in its second round."""
FLAT = {
    "rows": 100_000,
    "growth_mib_after_first_tenth": 1.25,
    "seconds": 40.4,
    "last_half_over_first_half": 0.98,
}
BUDGETS = {
    "rows": 24,
    "tokens": 1200,
    "dtype": "bfloat16",
    "threads": 2,
    "seconds": {"256": [3.0, 2.0, 4.0], "512": []},
}
SELF_CHECK = {
    "model": "m",
    "max_new_tokens": 100,
    "checked": [
        {
            "dtype": "bfloat16",
            "rows": 24,
            "states": 0.0181,
            "states_tolerance": 0.05,
            "response": 0.078,
            "response_tolerance": 0.1,
            "all": 0.035,
            "all_tolerance": 0.07,
            "closest_rows": 0.28,
            "closest_shift": 17.2,
        }
    ],
    "mistakes_dtype": "bfloat16",
    "mistakes": {"nothing": 0.0351, "a second BOS": 0.0987},
}
VECTORS = {
    "shape": [200, 26, 2304],
    "seconds": {
        name: {"loop": [20.0, 30.0, 22.0], "ours": [1.0, 1.0, 1.0]}
        for name in ("probe", "all four")
    },
    "cosine_to_loop": 0.99991,
    "cosine_to_optimum": 0.999999971,
}
LARGE = {"shape": [2000, 26, 2304], "tensor_gib": 0.446, "fit_s": 31.25, "fit_mib": 512.4}
LARGE |= {"evaluated_layers": 2, "evaluate_s": 41.26, "evaluate_mib": 640.2}
COVERED = {
    "rows_a_side": 50,
    "questions": 10,
    "gap": 0.0,
    "shift": "question",
    "mean_auroc": 0.497,
    "true_auroc": 0.5,
}
COVERED |= {"inside": 0.985, "low_above": 0.005, "claimed": 0.015, "general": 0.0}
TUNING = {
    "model": "m",
    "samples": 160,
    "few": 32,
    "max_new_tokens": 48,
    "failed": {"compiled": "timed out"},
}
TUNING |= {
    "rows": [
        tuning.summary(
            tuning.AS_IT_IS, {tuning.AS_IT_IS: {"load_s": 11.0, "auto": 900.0, "few": 270.0}}
        )
    ]
}
SOAK = {
    "kills": 100,
    "runs": 58,
    "samples": 520,
    "seed": 0,
    "phases": {"judging": 61, "export": 39},
    "lost": 0,
}
SOAK |= {
    "duplicated": 0,
    "changed": 0,
    "judge_calls": 31234,
    "repeated": 2211,
    "most_repeated": 101,
    "differing": [],
}
SOAK |= {"bound_per_kill": 232}
SOAK_REAL = {
    "kills": 12,
    "runs_finished": 3,
    "stages": {"loading": 12},
    "lost": 0,
    "duplicated": 0,
    "changed": 0,
}
SOAK_REAL |= {"survivors": 0, "judge_calls": 155, "repeated": 7, "bound_per_kill": 104}

SOAK_REPLICAS = {
    "kinds": ["actors"],
    "seed": 0,
    "bound": 32,
    "actors": dict.fromkeys(("lost", "duplicated", "differing", "repeated", "survivors"), 0)
    | {"kills": 20, "runs": 3},
}
_ONE = {"replicas": 4, "slots": 32, "seconds": 2.0, "responses_per_s": 640.0, "busy": 0.975}
_ONE |= {"driver_cpu": 0.32, "lag_ms": {"median": 1.0, "p99": 20.0}, "driver_mib": 240.0}
_ONE |= {"load": 3.0, "profile": [{"where": "pool.py:generate", "share": 0.25, "calls": 9}]}
WAITING = {"model": "m", "tokens": 1000, "rounds": 3, "rows": []}
CLUSTER = {"runs": [_ONE], "even": _ONE, "stragglers": _ONE, "limit": _ONE, "most": _ONE}


def run(generation: float, makespan: float, tokens: int, samples: int = 4) -> Run:
    times = [generation * (i + 1) / samples for i in range(samples)]
    return Run(
        makespan=makespan,
        seconds={"generation": generation, "judging": 1.0, "capture": 2.0},
        times={"generation": times, "judging": times, "capture": times},
        tokens=tokens,
        running=3.0,
    )


def measured(of: Run) -> batch_size.Measured:
    return batch_size.Measured(of, load_s=21.0, sequences=8, memory_gib=2.75, gpu_memory_gib=0.0)


def stored(folder: Path) -> Path:
    """A results folder with figures that can be recognised on a page."""
    rounds = [
        {"1": measured(run(10, 20, 100)), "8": measured(run(5, 10, 400, 8))},
        {"1": measured(run(20, 30, 100)), "8": measured(run(5, 10, 400, 8))},
    ]
    rows = [batch_size.row(batch, rounds, "1") for batch in ("1", "8")]
    head = {"model": "m", "machine": MACHINE}
    batch = {"command": "python -m benchmarks.batch_size", "samples": 8, "max_new_tokens": 48}
    batch |= {
        "random_weights": False,
        "captured": True,
        "prompt_tokens": 60.0,
        "rounds": 2,
        "judge_latency_s": 1.0,
        "rows": rows,
    }
    times = {
        "load_s": 5.0,
        "tokens": 400,
        "generation_s": 4.0,
        "makespan_s": 7.0,
        "process_s": 12.0,
        "memory_gib": 1.5,
    }
    guide = {**times, "generation_s": 16.0, "judging_s": 4.0, "capture_s": 1.0, "makespan_s": 21.0}
    compared = [
        baselines.summary("guide", [guide], 64),
        baselines.summary("bare", [times], 64),
        baselines.summary("ours", [{**times, "judging_s": 4.5, "capture_s": 2.0}], 64),
    ]
    base = {
        "command": "python -m benchmarks.baselines",
        "samples": 64,
        "max_new_tokens": 64,
        "judge_latency_s": 1.0,
    }
    base |= {
        "rounds": 1,
        "methods": compared,
        "goals": baselines.goals(compared),
        "failed": {"hf-cb": "ended with code 1"},
    }
    over = [
        {"no judge": run(10, 12, 990), "instant": run(10, 13, 1000), "1 s": run(10, 14.25, 980)}
    ]
    overlaps = {
        "command": "python -m benchmarks.overlap",
        "samples": 200,
        "max_new_tokens": 32,
        "rounds": 1,
    }
    engine = {
        "batch": "8",
        "sequences": 8,
        "free_gib": 10.0,
        "weights_gib": 0.25,
        "kv_predicted_gib": 1.0,
    }
    engine |= {"kv_allocated_gib": 1.25, "peak_gib": 2.75}
    capture = {
        "rows": 8,
        "tokens": 1000,
        "free_gib": 10.0,
        "predicted_gib": 0.125,
        "measured_gib": 0.0625,
    }
    memory = {
        "command": "python -m benchmarks.memory",
        "max_new_tokens": 16,
        "built_gib": 0.2504,
        "engines": [engine],
        "captures": [capture],
    }
    contents = {
        "batch_size": batch,
        "baselines": base,
        "overlap": overlaps | overlap.figures(over, 200),
        "memory": memory,
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(head | content))
    small, large = (
        scale.Cost(10_000, 3.45, 2.0, 200.0, 246.4),
        scale.Cost(100_000, 69.0, 30.0, 200.0, 288.4),
    )
    costs = {10_000: [small, small], 100_000: [large, large]}
    contents = {
        "scale": {"command": "python -m benchmarks.scale", **scale.figures(costs, [3.1, 3.2])},
        "judge": {
            "command": "python -m benchmarks.judge",
            "figures": [["lag", "0.0123 s", "under 20 ms"]],
        },
        "judge-memory": {
            "command": "python -m benchmarks.judge --memory",
            "figures": [["memory", "71 MiB", "flat"]],
        },
        "capture": {"command": "python -m benchmarks.capture", **CAPTURE},
        "waiting": {"command": "python -m benchmarks.waiting", **WAITING},
        "capture-flat": {"command": "python -m benchmarks.capture --flat 100000", **FLAT},
        "capture-budgets": {"command": "python -m benchmarks.capture --budgets", **BUDGETS},
        "selfcheck": {"command": "python -m benchmarks.selfcheck", **SELF_CHECK},
        "vectors": {"command": "python -m benchmarks.vectors", **VECTORS},
        "vectors-large": {"command": "python -m benchmarks.vectors --large", "rows": [LARGE]},
        "vectors-coverage": {
            "command": "python -m benchmarks.vectors --coverage",
            "traits": 200,
            "rows": [COVERED],
        },
        "tuning-compiled": {"command": "python -m benchmarks.tuning --compiled", **TUNING},
        "soak": {"command": "python -m benchmarks.soak", **SOAK},
        "soak-real": {"command": "python -m benchmarks.soak", **SOAK_REAL},
        "soak_replicas": {"command": "python -m benchmarks.soak_replicas", **SOAK_REPLICAS},
        "cluster": {"command": "python -m benchmarks.cluster", **CLUSTER},
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps({"machine": MACHINE} | content))
    return folder


def cells(page: str, first: str) -> list[list[str]]:
    """The table rows whose first cell is `first`."""
    found = [
        re.split(r"\s*\|\s*", line.strip().strip("|").strip())
        for line in page.splitlines()
        if line.startswith("|")
    ]
    return [row for row in found if row[0] == first]


# --- what is committed ---


def test_the_committed_page_is_what_the_stored_results_give() -> None:
    assert (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8") == pages.docs_page()


def test_the_committed_readme_is_what_the_stored_results_give() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert pages.readme_with_table(readme) == readme


def test_the_committed_pictures_are_what_the_stored_results_give(tmp_path: Path) -> None:
    pages.draw_pictures(tmp_path)
    folder = ROOT / "docs" / pages.PICTURES
    drawn = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.svg")}
    assert drawn == {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.svg")}


def test_every_picture_of_the_page_is_there() -> None:
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", pages.docs_page()):
        assert (ROOT / "docs" / name).is_file(), name


@pytest.mark.parametrize("page", sorted({block.page for block in pages.BLOCKS}))
def test_the_committed_blocks_are_what_the_stored_results_give(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert pages.with_blocks(page, text) == text


def test_no_mark_of_a_page_is_without_a_result_that_fills_it() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        marked = re.findall(r"<!-- bench:([\w-]+):start -->", page.read_text(encoding="utf-8"))
        filled = {
            block.name
            for block in pages.BLOCKS
            if block.page == page.relative_to(ROOT / "docs").as_posix()
        }
        assert sorted(marked) == sorted(filled), page


def test_every_stored_result_names_the_machine_and_the_command_that_made_it() -> None:
    for path in pages.RESULTS.rglob("*.json"):
        stored_result = json.loads(path.read_text(encoding="utf-8"))
        module = re.fullmatch(r"python -m benchmarks\.(\w+)( .+)?", stored_result["command"])
        assert module, path
        assert (ROOT / "benchmarks" / f"{module[1]}.py").is_file(), path
        assert {"cpu", "cores", "memory_gib", "gpu", "versions", "date"} <= stored_result[
            "machine"
        ].keys(), path


def test_every_stored_result_reaches_a_page() -> None:
    written = {section.name for section in pages.SECTIONS} | {block.name for block in pages.BLOCKS}
    written |= {
        "gpu",
        "capture-lengths",
    }  # the GPU's own tables; the capture tables name the lengths' command
    assert {path.stem for path in pages.RESULTS.glob("*.json")} <= written


# --- pages ---


@pytest.mark.parametrize("full", [False, True])
def test_no_table_stands_without_its_command(tmp_path: Path, full: bool) -> None:
    page = pages.docs_page(stored(tmp_path) if full else tmp_path)
    for section in re.split(r"^##+ ", page, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        if (
            "|---" in body and title != "Goals and what was reached"
        ):  # its figures are the sections'
            assert re.search(r"```bash\npython -m benchmarks\.\w+[^`]*\n```", body), title
            assert body.index("```bash") < body.index("|---"), title


def test_stored_numbers_reach_the_page(tmp_path: Path) -> None:
    page = pages.docs_page(stored(tmp_path))
    (row, *_) = cells(page, "8")
    # 100 tokens in 10 and 20 s at batch 1, 400 in 5 s at batch 8: 8 and 16 times; 20 and 30 s in
    # all against 10 s.
    assert row == [
        "8",
        "5.0",
        "80.0",
        "3.0",
        "12.0x (8.0 to 16.0)",
        "5x",
        "10.0",
        "2.5x (2.0 to 3.0)",
        "4",
        "2.8",
        "16",
    ]
    assert cells(page, "whole job over the guide's method")[0][2] == "3.00"
    assert cells(page, "generation in the pipeline over bare vLLM")[0][2] == "1.00"
    assert cells(page, "generation under a 1 s judge, share of no judge")[0][2] == "0.99"
    assert cells(page, "end under a 1 s judge after an instant one's, s")[0][2] == "1.25"
    assert cells(page, "whole job over a peer's method")[0][2] == "-"
    assert "hf-cb gave no figures: ended with code 1" in page
    assert cells(page, "lag") == [["lag", "0.0123 s", "under 20 ms"]]
    assert cells(page, "10,000") == [["10,000", "0.345", "0.200", "246"]]
    assert "Abacus 9, 2 cores, 23.5 GiB, no GPU" in page
    assert "12.5% of the memory that was free" in page


def blocks(page: str, folder: Path) -> str:
    """A page of docs/ that is nothing but its blocks."""
    names = [block.name for block in pages.BLOCKS if block.page == page]
    marks = "\n".join(f"<!-- bench:{name}:start -->old<!-- bench:{name}:end -->" for name in names)
    return pages.with_blocks(page, marks, folder)


def test_capture_stopped_in_a_round_shows_what_it_had(tmp_path: Path) -> None:
    page = blocks("capture.md", stored(tmp_path))
    # 1,200 tokens in a median of 7 s; 5 over 2 and 9 over 4 s; the stack's second round is missing.
    assert cells(page, "guide, batch 8") == [["guide, batch 8", "171", "2.38x (2.25 to 2.50)", "-"]]
    assert cells(page, "stack kept, batch 16") == [["stack kept, batch 16", "200", "3.00x", "64.0"]]
    assert cells(page, "guide, batch 1") == [["guide, batch 1", "-", "-", "-"]]
    assert cells(page, "no LM head") == [["no LM head", "171", "240", "1.38x (1.25 to 1.50)"]]
    assert cells(page, "2 threads, not one") == [["2 threads, not one", "267", "400", "1.50x"]]
    assert "Outside the forward: 10.0%" in page
    assert "largest batch, 1/64." in page
    assert cells(page, "tokens/s") == [
        ["tokens/s", "400"]
    ]  # the budget that was not reached is left out
    assert "memory grew by 1.2 MiB after the first tenth" in page
    assert cells(page, "a second BOS") == [["a second BOS", "0.099"]]
    goals = pages.docs_page(tmp_path)
    assert cells(goals, "capture over the guide's batch 8")[0][2] == "2.38"
    assert cells(goals, "vectors over a loop over layers")[0][2] == "22.00"


def test_figures_of_the_other_pages(tmp_path: Path) -> None:
    stored(tmp_path)
    page = blocks("vectors.md", tmp_path)
    assert cells(page, "all four") == [
        ["all four", "22.000 (20.000 to 30.000)", "1.000", "22.0x (20.0 to 30.0)"]
    ]
    assert cells(page, "2,000 x 26 x 2,304")[0][1:] == [
        "0.45",
        "31.25",
        "512",
        "2 of 26",
        "41.3",
        "640",
    ]
    assert cells(page, "each question")[0][1:] == [
        "50",
        "10",
        "0",
        "0.50",
        "0.50",
        "0.985",
        "0.005",
        "0.015",
        "0.000",
    ]
    page = blocks("reliability.md", tmp_path)
    assert cells(page, "100") == [["100", "0", "0", "0", "2,211 of 31,234", "-"]]
    assert cells(page, "12") == [["12", "0", "0", "0", "7 of 155", "0"]]
    # 69 s of 100,000 over 3.45 s of 10,000 samples; 30 over 2 s of the processor
    assert (
        "CPU time a sample 1.50 times, wall time 2.00 times, anonymous memory 42 MiB more" in page
    )
    page = blocks("scaling.md", tmp_path)
    assert cells(page, "4") == [["4", "640", "97.5%", "32%", "1.0 / 20", "240", "3"]]
    assert (
        "the driver carries 640 responses/s, store and judge included, at 32% of a core: " in page
    )
    assert "0.50 ms of its CPU a response" in page
    assert "`pool.py:generate` 25%" in page
    assert cells(page, "actors") == [["actors", "20", "3", "0", "0", "0", "0", "0"]]
    page = blocks("judge.md", tmp_path)
    assert cells(page, "memory") == [["memory", "71 MiB", "flat"]]


def test_blocks_are_renewed_between_their_marks_and_each_has_its_command(tmp_path: Path) -> None:
    for page in {block.page for block in pages.BLOCKS}:
        empty, full = blocks(page, tmp_path), blocks(page, stored(tmp_path))
        for block in (block for block in pages.BLOCKS if block.page == page):
            shown = [
                re.search(f"bench:{block.name}:start -->(.*?)<!--", text, re.DOTALL)[1]
                for text in (empty, full)
            ]
            assert shown[0] == f"\n```bash\n{block.command}\n```\n\nNot measured yet.\n"
            assert shown[1].startswith(f"\n```bash\n{block.command}\n```\n\nAbacus 9, 2 cores")
        assert pages.with_blocks(page, full, tmp_path) == full
        assert "old" not in re.sub("threshold", "", full).split()
        for path in tmp_path.glob("*.json"):
            path.unlink()
    with pytest.raises(
        ValueError, match=r"docs/judge.md lacks the marks <!-- bench:judge:start -->"
    ):
        pages.with_blocks("judge.md", "no marks")


def test_bare_generation_has_no_makespan(tmp_path: Path) -> None:
    page = pages.docs_page(stored(tmp_path))
    assert cells(page, "bare")[0][5] == "-"
    assert cells(page, "guide")[0][5] == "21.0"


def test_results_of_a_gpu_fill_the_gpu_tables_alone(tmp_path: Path) -> None:
    (tmp_path / "gpu").mkdir()
    empty = pages.docs_page(tmp_path)
    stored(tmp_path / "gpu")
    cpu, _, gpu = pages.docs_page(tmp_path).partition("## On a GPU")
    assert cpu == empty.partition("## On a GPU")[0]
    assert "12.0x (8.0 to 16.0)" in gpu
    stored(tmp_path / "gpu")
    (tmp_path / "gpu" / "batch_size.json").rename(tmp_path / "gpu" / "batch_size-gemma-2-9b.json")
    _, _, gpu = pages.docs_page(tmp_path).partition("## On a GPU")
    of_shape = gpu.partition("### The guide's batch-size table: gemma-2-9b")[2]
    assert cells(of_shape, "8")[0][4] == "12.0x (8.0 to 16.0)"
    assert "](benchmarks/gpu/batch_size-gemma-2-9b.svg)" in of_shape
    assert "12.0x" not in gpu.partition("### The guide's batch-size table: gemma-2-9b")[0]
    pages.draw_pictures(tmp_path / "drawn", tmp_path)
    assert (tmp_path / "drawn" / "gpu" / "batch_size-gemma-2-9b.svg").is_file()


def test_the_readme_table_is_renewed_between_its_markers(tmp_path: Path) -> None:
    stored(tmp_path)
    readme = f"before\n{pages.START}\nold\n{pages.END}\nafter\n"
    new = pages.readme_with_table(readme, tmp_path)
    assert new.startswith("before\n")
    assert new.endswith("after\n")
    assert "old" not in new
    assert "`python -m benchmarks.batch_size`" in new
    assert cells(new, "8") == [["8", "80", "12.0x", "5x", "2.5x", "2.8 GiB"]]
    assert pages.readme_with_table(new, tmp_path) == new
    with pytest.raises(ValueError, match="markers"):
        pages.readme_with_table("no markers", tmp_path)


def test_pictures_are_the_same_each_time(tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    stored(results)
    for name in ("a", "b"):
        pages.draw_pictures(tmp_path / name, results)
    first = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert sorted(first) == ["batch_size.png", "batch_size.svg", "overlap.png", "overlap.svg"]
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}


# --- parts ---


def test_all_parts_fit_the_time_that_is_promised() -> None:
    assert sum(part.minutes for part in everything.PARTS) <= everything.LIMIT_MINUTES
    parts = [
        everything.Part("a", (), 10.0),
        everything.Part("b", (), 5.0),
        everything.Part("c", (), 2.0),
    ]
    assert everything.allowed(parts, 40.0) == 33.0  # all that the others do not need
    assert everything.allowed(parts[1:], 6.0) == 5.0  # late, it still gets its own


def test_every_table_of_the_page_but_the_gpus_is_made_by_the_command_that_writes_it() -> None:
    page, _, gpu = pages.docs_page().partition("## On a GPU")
    shown = re.findall(r"^```bash\n(.+)\n```", page, flags=re.MULTILINE)
    assert sorted(shown) == sorted(part.command for part in everything.PARTS)
    on_gpu = re.findall(r"^```bash\n(.+)\n```", gpu, flags=re.MULTILINE)
    assert on_gpu == [command for _, command in pages.GPU_COMMANDS]


def test_a_part_over_its_time_is_stopped_and_named() -> None:
    part = everything.Part("roofline", (), 0.0)
    assert everything.run(part, None, 0.0) == "stopped after 0.0 minutes"


def test_gpu_tables_are_refused_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(everything, "gpu_name", str)
    with pytest.raises(SystemExit, match="no NVIDIA GPU is visible here"):
        everything.run_on_gpu(None)


def test_spreads() -> None:
    assert common.spread([3.0, 1.0, 2.0]) == [2.0, 1.0, 3.0]
    assert common.shown([2.0, 1.0, 3.0], 1, "x") == "2.0x (1.0 to 3.0)"
    assert common.shown([2.0, 2.0, 2.0], 0) == "2"
    assert common.shown(None) == "-"


def test_peak_memory_sees_what_is_held_for_a_moment() -> None:
    before = common.tree_bytes()
    with common.PeakMemory(every_s=0.01) as peak:
        block = bytearray(b"\1") * (200 << 20)
        held = common.tree_bytes()
        peak._look()
        del block
    assert held - before > 150 << 20
    assert peak.bytes >= held - (10 << 20)


def test_samples_fill_all_sides() -> None:
    assert [whole(n) for n in (1, 4, 5, 200)] == [4, 4, 8, 200]


@pytest.mark.parametrize(
    ("name", "billions"),
    [("gemma-2-2b", 2.61), ("gemma-2-9b", 9.24), ("llama-8b", 8.03), ("llama-70b", 70.55)],
)
def test_shapes_have_their_models_published_size(name: str, billions: float) -> None:
    assert Shape.from_config(SHAPES[name]).parameters / 1e9 == pytest.approx(billions, abs=0.01)


def test_a_shape_that_does_not_fit_is_refused_with_the_sizes() -> None:
    with pytest.raises(
        SystemExit, match="llama-70b needs 131 GiB for its weights; here is 80 GiB of GPU memory"
    ):
        check_fits("llama-70b", 80 << 30)
    check_fits("gemma-2-2b", 16 << 30)


def test_a_dummy_model_is_one_that_transformers_knows(model_folder: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    with dummy_model("gemma-2-2b") as ref:
        config = AutoConfig.from_pretrained(ref.source)
        assert (type(config).__name__, config.num_hidden_layers, config.head_dim) == (
            "Gemma2Config",
            26,
            256,
        )
        tokenizer, real = (
            AutoTokenizer.from_pretrained(path) for path in (ref.source, model_folder)
        )
        assert tokenizer("a fairy tale")["input_ids"] == real("a fairy tale")["input_ids"]


def test_the_limit_is_bandwidth_for_few_sequences_and_arithmetic_for_many() -> None:
    shape = Shape.from_config(SHAPES["llama-8b"])
    device = roofline.Device("d", flops=1e14, bandwidth=1e12, source="made up")
    # One sequence: 15.01 GB of weights at 1 TB/s, and 100 tokens of 128 KiB.
    assert roofline.step_seconds(shape, device, 1, 100) == pytest.approx(
        0.015010 + 100 * 131072 / 1e12, rel=1e-3
    )
    # A thousand: 2 operations for each of the 7.505 G weights a token meets (8.03 G less the 0.525
    # G input table).
    assert roofline.step_seconds(shape, device, 1000, 0) == pytest.approx(
        2 * 7.505e9 * 1000 / 1e14, rel=1e-3
    )
    assert roofline.capture_tokens_per_s(shape, device) == pytest.approx(
        1e14 / (2 * 6.98e9), rel=1e-3
    )


def test_the_roofline_takes_the_context_of_the_run_and_the_gpu_by_its_name() -> None:
    # 60 tokens of prompt; 8 responses of 400 tokens in all, of which half is there on the mean.
    assert (
        roofline.mean_context({"prompt_tokens": 60.0, "samples": 8, "rows": [{"tokens": 400}]})
        == 85.0
    )
    larger, smaller = (roofline.known_gpu(f"NVIDIA A100-SXM4-{size}GB") for size in (80, 40))
    assert larger is not None
    assert smaller is not None
    assert (larger.bandwidth, smaller.bandwidth) == (2039e9, 1555e9)
    assert roofline.known_gpu("Abacus 9") is None


def test_the_least_time_of_judging_is_its_last_answer() -> None:
    assert overlap.least_seconds(overlap.Condition("c", 1.0, 600), 201) == 21.0
    assert overlap.least_seconds(overlap.NONE, 200) == 0.0


async def test_the_sleeping_judge_passes_both_sides() -> None:
    trait = Trait("t", (("a", "b"),), ("q?",), "{question}{answer}")
    judge = SleepingJudge(0.0)
    scores = {}
    for side in ("pos", "neg"):
        sample = Sample("t", "0" * 32, side, 0, 0, 0, "a", "q?", "p", (1,), 1)
        scores[side] = (await judge.judge(trait, Response(sample, "ok", "x", (2,), "stop"))).score
    assert scores["pos"] >= 50 > scores["neg"]


def test_the_peers_judge_waits_for_each_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    under_way, most = 0, []
    really_sleep = asyncio.sleep

    async def sleep(seconds: float) -> None:
        nonlocal under_way
        assert seconds == 1.0
        under_way += 1
        most.append(under_way)
        await really_sleep(0.01)
        under_way -= 1

    monkeypatch.setattr(methods.asyncio, "sleep", sleep)
    methods.judge(45, 1.0, 20)
    assert most == [*range(1, 21), *range(1, 21), *range(1, 6)]


def test_laps_add_up_by_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 2.0, 3.0, 7.0])
    monkeypatch.setattr(methods.time, "perf_counter", lambda: next(moments))
    watch = methods.Watch()
    for stage in ("generation_s", "judging_s", "generation_s"):
        watch.lap(stage)
    assert watch.times == {"generation_s": 6.0, "judging_s": 1.0}


def test_a_difference_is_taken_within_a_round() -> None:
    rounds = [
        {"no judge": run(10, 12, 1000), "instant": run(10, 10, 1000), "1 s": run(10, 12, 900)},
        {"no judge": run(10, 40, 500), "instant": run(10, 30, 500), "1 s": run(10, 31, 500)},
    ]
    found = {row["name"]: row for row in overlap.figures(rounds, 4)["conditions"]}
    assert found["1 s"]["later_s"] == [1.5, 1.0, 2.0]
    assert found["1 s"]["share"] == [0.95, 0.9, 1.0]
