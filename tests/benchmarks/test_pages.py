"""What stands in README and docs is what is stored, under its command."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from benchmarks import all as everything
from benchmarks import pages
from benchmarks.all import Bench
from benchmarks.pages import BLOCKS, RESULTS, SECTIONS
from tests.conftest import ROOT

DOCS = ROOT / "docs"


def test_the_committed_pages_are_what_the_stored_results_give() -> None:
    """Else: python -m benchmarks.all --render-only."""
    assert (DOCS / "benchmarks.md").read_text(encoding="utf-8") == pages.docs_page()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert pages.readme_with_table(readme) == readme
    for page in sorted({block.page for block in BLOCKS}):
        text = (DOCS / page).read_text(encoding="utf-8")
        assert pages.with_blocks(page, text) == text, page


def test_the_committed_pictures_are_what_the_stored_results_give(tmp_path: Path) -> None:
    pages.draw_pictures(tmp_path)
    folder = DOCS / pages.PICTURES
    drawn = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.svg")}
    assert drawn == {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.svg")}
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", pages.docs_page()):
        assert (DOCS / name).is_file(), name


def test_no_mark_of_a_page_is_without_a_result_that_fills_it() -> None:
    for page in DOCS.rglob("*.md"):
        marked = re.findall(r"<!-- bench:([\w-]+):start -->", page.read_text(encoding="utf-8"))
        name = page.relative_to(DOCS).as_posix()
        assert sorted(marked) == sorted(each.name for each in BLOCKS if each.page == name), page


def test_every_stored_result_names_its_machine_and_command_and_reaches_a_page() -> None:
    written = {bench.name for bench in pages.BENCHES} | {"families"}  # that one writes its own page
    for path in RESULTS.rglob("*.json"):
        stored = json.loads(path.read_text(encoding="utf-8"))
        module = re.fullmatch(r"python -m benchmarks\.(\w+)( .+)?", stored["command"])
        assert module, path
        assert (ROOT / "benchmarks" / f"{module[1]}.py").is_file(), path
        facts = {"cpu", "cores", "memory_gib", "gpu", "versions", "date"}
        assert facts <= stored["machine"].keys(), path
        assert path.stem in written or path.parent.name == "gpu", path


def test_without_results_each_table_has_its_command_and_says_so(tmp_path: Path) -> None:
    page, _, gpu = pages.docs_page(tmp_path).partition("## On a GPU")
    shown = re.findall(r"```bash\n(.+)\n```\n\nNot measured yet\.", page)
    assert shown == [bench.command for bench in SECTIONS]
    shown = re.findall(r"```bash\n(.+)\n```\n\nNot measured yet\.", gpu)
    assert shown == [bench.command for bench in pages.GPU_BENCHES]
    assert "| whole job over a peer's method | 1.2 or more | - |" in page
    for block in BLOCKS:
        marks = [f"<!-- bench:{each.name}:{end} -->" for each in BLOCKS for end in ("start", "end")]
        filled = pages.with_blocks(block.page, "".join(marks), tmp_path)
        assert f"```bash\n{block.command}\n```\n\nNot measured yet." in filled
    with pytest.raises(ValueError, match=r"judge.md lacks the marks <!-- bench:judge:start -->"):
        pages.with_blocks("judge.md", "no marks")
    with pytest.raises(ValueError, match=r"README.md lacks the marks"):
        pages.readme_with_table("no marks")


def test_results_of_a_gpu_fill_the_gpu_tables_alone(tmp_path: Path) -> None:
    (tmp_path / "gpu").mkdir()
    empty = pages.docs_page(tmp_path)
    for name in ("baselines", "batch_size-gemma-2-9b"):
        source = RESULTS / f"{name.partition('-')[0]}.json"
        shutil.copy(source, tmp_path / "gpu" / f"{name}.json")
    cpu, _, gpu = pages.docs_page(tmp_path).partition("## On a GPU")
    assert cpu == empty.partition("## On a GPU")[0]
    before, _, of_shape = gpu.partition("### The guide's batch-size table: gemma-2-9b")
    assert "| auto |" in of_shape.partition("###")[0]
    assert "| auto |" not in before
    assert "](benchmarks/gpu/batch_size-gemma-2-9b.svg)" in of_shape
    assert "| generation over bare |" in gpu.partition("### What one would run instead")[2]
    pages.draw_pictures(tmp_path / "drawn", tmp_path)
    assert (tmp_path / "drawn" / "gpu" / "batch_size-gemma-2-9b.svg").is_file()


# --- make bench ---


def test_all_parts_fit_the_time_that_is_promised() -> None:
    assert sum(part.minutes for part in everything.PARTS) <= everything.LIMIT_MINUTES
    assert set(everything.PARTS) == set(SECTIONS), "a table that nothing fills, or the reverse"
    parts = [Bench("a", minutes=10.0), Bench("b", minutes=5.0), Bench("c", minutes=2.0)]
    assert everything.allowed(parts, 40.0) == 33.0  # all that the others do not need
    assert everything.allowed(parts[1:], 6.0) == 5.0  # late, it still gets its own


def test_a_part_over_its_time_is_stopped_and_named() -> None:
    assert everything.run(Bench("roofline"), None, 0.0) == "stopped after 0.0 minutes"


def test_gpu_tables_are_refused_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(everything, "gpu_name", str)
    with pytest.raises(SystemExit, match="no NVIDIA GPU is visible here"):
        everything.run_on_gpu(None)
