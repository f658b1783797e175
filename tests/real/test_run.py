"""The commands themselves on real vLLM: a real HTTP judge, real capture, the documented files, no
process left."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import torch

from tests.conftest import ROOT, TRAITMILL, clean_environment
from tests.support.device import same_batch_tolerance
from traitmill.engine.generation import on_gpu
from traitmill.engine.storage.journal import read_journal

pytestmark = pytest.mark.slow
EACH = 10
"""Responses a side of a run with two traits."""
COLUMNS = ["question", "instruction", "prompt", "response", "trait_score"]


def traitmill(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [TRAITMILL, *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=cwd,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )


def rows_of(folder: Path, kind: str) -> int:
    total = 0
    for path in (folder / "parquet" / kind).rglob("part-*.parquet"):
        try:
            total += pq.read_metadata(path).num_rows
        except FileNotFoundError:  # merged into another just now
            continue
    return total


def saved(folder: Path, kind: str) -> set[str]:
    """Return the ids of the samples with a row in a part file or, before that, in the journal."""
    ids: set[str] = set()
    # journals first: a row that moves in between is then in the part file that is read after
    for path in (folder / "parquet" / kind).glob(".journal-*.jsonl"):
        with suppress(FileNotFoundError):
            ids |= {row["sample_id"] for row in read_journal(path)}
    for path in (folder / "parquet" / kind).rglob("part-*.parquet"):
        with suppress(FileNotFoundError):  # merged into another just now
            ids |= set(pq.read_table(path, columns=["sample_id"])["sample_id"].to_pylist())
    return ids


def read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return header, rows


def check_files(folder: Path, n_layers: int = 30, hidden_dim: int = 576) -> torch.Tensor:
    header, pos = read_csv(folder / "responses/pos.csv")
    assert header == COLUMNS
    header, neg = read_csv(folder / "responses/neg.csv")
    assert header == COLUMNS
    tensor = torch.load(folder / "activations/all_layers.pt", weights_only=True)
    assert tensor.shape == (len(pos) + len(neg), n_layers, hidden_dim)
    assert tensor.dtype == torch.float32
    assert torch.isfinite(tensor).all()
    metadata = json.loads((folder / "activations/metadata.json").read_text())
    assert (metadata["n_examples_pos"], metadata["n_examples_neg"]) == (len(pos), len(neg))
    return tensor


def test_two_traits_over_an_http_judge_share_one_engine_and_overlap(
    tmp_path: Path, model_folder: Path, vllm_server: str
) -> None:
    names = ["fairy_tale", "poem"]
    for name in names:
        shutil.copytree(
            ROOT / "experiments/demo" / name,
            tmp_path / "experiments/demo" / name,
            ignore=lambda *_: {
                "parquet",
                "responses",
                "activations",
                "vectors",
                "plots",
                "report.html",
            },
        )
    command = [
        TRAITMILL,
        "generate",
        "--experiment",
        "demo",
        "--traits",
        ",".join(names),
        "--gen_model",
        model_folder,
    ]
    command += [
        "--judge_base_url",
        vllm_server,
        "--judge_model",
        "judge",
        "--n_examples",
        str(EACH),
    ]
    command += ["--max_new_tokens", "32", "--batch_size", "8", "--judge_rpm", "6000"]
    command = [str(part) for part in command]
    folders = [tmp_path / "experiments/demo" / name for name in names]
    waited = engines = 0
    family: dict[int, psutil.Process] = {}
    output = (tmp_path / "out").open("w+")
    with subprocess.Popen(
        command, cwd=tmp_path, env=clean_environment(), stdout=output, stderr=output
    ) as process:
        while process.poll() is None:
            try:
                family |= {
                    child.pid: child
                    for child in psutil.Process(process.pid).children(recursive=True)
                }
            except psutil.NoSuchProcess:
                break
            cores = [c for c in family.values() if c.is_running() and "EngineCore" in _name(c)]
            engines = max(engines, len(cores))
            generated = sum(len(saved(folder, "responses")) for folder in folders)
            if cores and not waited and generated:
                assert generated < 4 * EACH, "it was not looked at in time"
                waited = _wait_for_a_verdict(cores, folders)
            time.sleep(0.05)
    output.seek(0)
    said = output.read()
    # 7: the tiny judge may keep nothing on a side, which is no fault of the machinery
    assert process.returncode in (0, 7), said
    assert said.count("loading ") == 1, said
    assert engines == 1
    assert waited, said
    assert not psutil.wait_procs(list(family.values()), timeout=10)[1]
    for name in names:
        folder = tmp_path / "experiments/demo" / name
        assert rows_of(folder, "responses") == 2 * EACH
        assert rows_of(folder, "verdicts") == 2 * EACH
        check_files(folder)
        paths = (folder / "parquet/verdicts").rglob("part-*.parquet")
        table = [
            row for path in paths for row in pq.read_table(path, partitioning=None).to_pylist()
        ]
        assert {row["mode"] for row in table} <= {"integer", "expected"}
        assert all((row["score"] is not None) == (row["status"] == "scored") for row in table)

    _stage_two_gives_the_same_tensor(tmp_path, names[0])


def _wait_for_a_verdict(cores: list[psutil.Process], folders: list[Path]) -> bool:
    """Hold the engine before its last response until a verdict is on disk, as fast as either is."""
    for core in cores:
        core.suspend()
    try:
        deadline = time.monotonic() + 240
        while not any(saved(folder, "verdicts") for folder in folders):
            assert time.monotonic() < deadline, "no verdict while responses were still to come"
            time.sleep(0.1)
        generated = sum(len(saved(folder, "responses")) for folder in folders)
        assert generated < 4 * EACH, "all responses were there before the engine was held"
    finally:
        for core in cores:
            core.resume()
    return True


def _stage_two_gives_the_same_tensor(tmp_path: Path, name: str) -> None:
    """The same stored rows without their activations, captured later by stage 2."""
    folder = tmp_path / "experiments/demo" / name
    twin = tmp_path / "experiments/demo" / f"{name}_later"
    shutil.copytree(folder, twin)
    shutil.rmtree(twin / "activations")
    shutil.rmtree(twin / "parquet/activations")
    # As in the first run: bfloat16 results move with the batch a row is in.
    result = traitmill(
        "activations",
        "--experiment",
        "demo",
        "--trait",
        twin.name,
        "--batch_size",
        "8",
        cwd=tmp_path,
    )
    assert result.returncode in (0, 7), result.stdout + result.stderr
    tolerance = same_batch_tolerance(gpu=on_gpu())
    torch.testing.assert_close(check_files(twin), check_files(folder), **tolerance)


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def check_recommendation(said: str, folder: Path) -> None:
    """The method and layer that the evaluation names are printed with their interval and what they
    are held against."""
    facts = json.loads(pq.read_metadata(folder / "evaluation.parquet").metadata[b"traitmill"])[
        "recommendation"
    ]
    assert facts["reason"] in said
    stated = f"{facts['auroc']:.2f}, 95 % interval {facts['low']:.2f} to {facts['high']:.2f}, for unseen questions"
    assert stated in "; ".join(facts["why"])
    assert re.search(
        r"shuffled labels give 0\.\d\d; random vectors reach [01]\.\d\d on average",
        "; ".join(facts["why"]),
    )
    measures = {
        (row["measure"], row["split"], row["method"], row["layer"]): row["value"]
        for row in pq.read_table(folder / "evaluation.parquet").to_pylist()
        if row["measure"] != "held_out_score"
    }
    where = ("question", facts["method"], facts["layer"])
    assert measures["selected_auroc", *where] == facts["auroc"]
    assert 0 <= measures["shuffled_auroc", *where] <= 1
    assert 0 <= measures["random_auroc", "question", "random", facts["layer"]] <= 1


def test_the_demo_from_nothing_to_a_report(tmp_path: Path) -> None:
    target = tmp_path / "experiments/demo/poem"
    target.mkdir(parents=True)
    shutil.copy(ROOT / "experiments/demo/poem/trait_definition.json", target)
    result = traitmill("demo", cwd=tmp_path)
    said = result.stdout + result.stderr
    assert result.returncode == 0, said
    tensor = check_files(target)
    metadata = json.loads((target / "activations/metadata.json").read_text())
    assert metadata["n_examples_pos"] >= 0.4 * 50
    assert metadata["n_examples_neg"] >= 0.4 * 50
    assert metadata["judge"]["auroc_interval"][0] > 0.5
    assert metadata["judge"]["kind"] == "local_relative"
    assert (
        metadata["self_check"]["rows"]
        if "rows" in metadata["self_check"]
        else metadata["self_check"]
    )
    for layer in range(tensor.shape[1]):
        for method in ("mean_diff", "probe"):
            vector = torch.load(target / f"vectors/{method}_layer{layer}.pt", weights_only=True)
            assert vector.shape == (576,)
            assert vector.dtype == torch.float32
    check_recommendation(said, target)
    assert (target / "report.html").stat().st_size > 10_000
    for word in ("generated", "judged", "kept", "AUROC", "[", "generation", "files", "look at"):
        assert word in said
    again = traitmill("demo", cwd=tmp_path)
    assert again.returncode == 0
    assert "no model is loaded" in again.stdout
