"""Kill runs at random moments, resume each, and count what is lost: `make soak`, or `python -m
benchmarks.soak`.

(a) Deterministic backends: SIGKILL at seeded random moments, then ids, verdicts, CSVs and tensors
byte for byte against an undisturbed run. (b) The real command on real vLLM with an HTTP judge and
real capture: SIGKILL in every stage in turn, then exact ids, no row twice, stored rows unchanged,
and no process of the run left 10 seconds after the kill. With `--tensor_parallel_size 2` its model
is split over two worker processes; then it is a tiny one, since the embedded one's heads cannot be.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import (
    JUDGE_PERSONA,
    ROOT,
    machine,
    parser,
    record,
    served,
    serving,
    table,
)
from tests.support import lab
from tests.support.tiny import tiny_qwen3
from traitmill.engine.models import EMBEDDED
from traitmill.engine.models.demo import embedded_folder
from traitmill.engine.run.watchdog import marked_pids

TRAITMILL = str(Path(sys.executable).with_name("traitmill"))
TRAITS = ("poem", "fairy_tale")
N_EXAMPLES = 12
STAGES = ("loading", "generation", "judging", "capture")
CONCURRENCY = 4
GRACE_S = 10.0
_JUDGE_S = 0.6


@dataclass
class Real:
    """What the kills of real runs left behind."""

    kills: int = 0
    runs_finished: int = 0
    stages: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    duplicated: int = 0
    changed: int = 0
    survivors: int = 0
    """Processes of a killed run that were alive 10 seconds later."""
    judge_calls: int = 0
    repeated: int = 0
    """Judge calls beyond one a verdict and the first run's probes."""


def answered(url: str) -> int:
    """How many judge calls the server answered."""
    return sum(status == 200 for _, status in served(url))


@dataclass(frozen=True)
class Model:
    """What real runs generate with."""

    name: str
    workers: int
    """Processes that it is split over."""


WHOLE = Model(EMBEDDED, 1)


def start(root: Path, url: str, model: Model = WHOLE) -> subprocess.Popen[bytes]:
    command: list[object] = [TRAITMILL, "generate", "--experiment", "exp"]
    command += ["--traits", ",".join(TRAITS)]
    command += ["--experiments_dir", root, "--gen_model", model.name, "--judge_base_url", url]
    command += ["--tensor_parallel_size", model.workers]
    command += ["--n_examples", N_EXAMPLES, "--judge_concurrency", CONCURRENCY]
    command += ["--judge_rpm", 6000, "--max_new_tokens", 32, "--batch_size", 4]
    with (root / "out").open("ab") as out:
        words = list(map(str, command))
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out)


def count(root: Path, kind: str) -> int:
    """Rows of a kind that are stored now, in parts and journals, while the run may be at work."""
    return sum(lab.count(root / "exp" / name, kind) for name in TRAITS)


def stage_of(root: Path) -> str:
    """The stage a run is in, by its rows: loading until there are any, then the slowest that has
    begun."""
    planned = 2 * N_EXAMPLES * len(TRAITS)
    responses, activations = count(root, "responses"), count(root, "activations")
    if not responses:
        return "loading"
    if activations:
        return "capture" if activations < planned else "export"
    return "generation" if responses < planned else "judging"


def kill_in(root: Path, stage: str, url: str, model: Model = WHOLE) -> tuple[str | None, int]:
    """Run until `stage` (not of an earlier run's rows), then SIGKILL. Returns the stage it was
    killed in (None: it ended first) and the survivors."""
    before = _stored(root)
    run = start(root, url, model)
    loading_since = time.monotonic()
    while run.poll() is None:
        now = stage_of(root)
        due = now == stage and _stored(root) > before
        if stage == "loading":
            due = time.monotonic() - loading_since > 8
        if due:
            family = psutil.Process(run.pid).children(recursive=True)
            tokens = {token for process in family if (token := _mark(process))}
            run.kill()
            run.wait()
            psutil.wait_procs(family, timeout=GRACE_S)
            left = {process.pid for process in family if process.is_running()}
            left |= {pid for token in tokens for pid in marked_pids(token)}
            return now, len(left)
        time.sleep(0.05)
    return None, 0


def _stored(root: Path) -> int:
    return sum(count(root, kind) for kind in lab.KINDS)


def _mark(process: psutil.Process) -> str:
    try:
        return str(process.environ().get("TRAITMILL_RUN", ""))
    except psutil.Error:
        return ""


def prepare(root: Path) -> list[Path]:
    folders = []
    for name in TRAITS:
        folder = root / "exp" / name
        folder.mkdir(parents=True)
        shutil.copy(ROOT / "experiments" / "demo" / name / "trait_definition.json", folder)
        folders.append(folder)
    return folders


def soak_real(root: Path, kills: int, model: Model, stages: tuple[str, ...] = STAGES) -> Real:
    """Kill real runs, each experiment once in every stage, until `kills` were done."""
    out = Real()
    with serving(persona=JUDGE_PERSONA, latency=_JUDGE_S) as url:
        calm = root / "calm"
        folders = prepare(calm)
        assert start(calm, url, model).wait() in (0, 7), (calm / "out").read_text()
        planned = {
            folder.name: {row["sample_id"] for row in lab.rows(folder, "responses")}
            for folder in folders
        }
        verdicts = count(calm, "verdicts")
        probes = answered(url) - verdicts
        before = answered(url)
        while out.kills < kills:
            work = root / f"run{out.runs_finished}"
            folders = prepare(work)
            stored: dict[str, dict[Any, str]] = {folder.name: {} for folder in folders}
            for stage in (*stages, "end"):
                if stage == "end":
                    code = start(work, url, model).wait()
                    assert code in (0, 7), (work / "out").read_text()
                elif out.kills < kills:
                    killed_in, survivors = kill_in(work, stage, url, model)
                    out.survivors += survivors
                    if killed_in is not None:
                        out.kills += 1
                        out.stages[killed_in] += 1
                        print(
                            f"kill {out.kills} in {killed_in}: {survivors} processes left",
                            flush=True,
                        )
                for folder in folders:
                    digests = lab.row_digests(folder)
                    out.changed += sum(
                        digests.get(key) != digest for key, digest in stored[folder.name].items()
                    )
                    stored[folder.name] = digests
            calls = answered(url) - before
            before += calls
            out.judge_calls += calls
            out.repeated += max(0, calls - probes - count(work, "verdicts"))
            out.runs_finished += 1
            for folder in folders:
                out.lost += _missing(folder, planned[folder.name])
                out.duplicated += lab.duplicates(folder)
    return out


def _missing(folder: Path, planned: set[str]) -> int:
    """Ids that are not as they must be: the planned responses, and of each `ok` one a verdict and
    an activation."""
    ids = {kind: {row["sample_id"] for row in lab.rows(folder, kind)} for kind in lab.KINDS}
    ok = {row["sample_id"] for row in lab.rows(folder, "responses") if row["status"] == "ok"}
    return (
        len(ids["responses"] ^ planned) + len(ids["verdicts"] ^ ok) + len(ids["activations"] ^ ok)
    )


_HEADER = "kills | lost | duplicated | changed | judge calls repeated | processes left"


def _counted(result: Mapping[str, Any], left: object) -> str:
    """The table of what kills left behind."""
    line = [str(result[name]) for name in ("kills", "lost", "duplicated", "changed")]
    line.append(f"{result['repeated']:,} of {result['judge_calls']:,}")
    return table(_HEADER, [[*line, str(left)]])


def markdown(result: Mapping[str, Any]) -> str:
    """Deterministic backends."""
    return (
        f"Deterministic backends, {result['samples']} samples a run, {result['runs']} runs, "
        f"SIGKILL at random moments of seed {result['seed']} ({_phases(result['phases'])}); "
        f"against an undisturbed run {len(result['differing'])} final files differ. Most judge "
        f"calls repeated by one kill: {result['most_repeated']}, bound "
        f"{result['bound_per_kill']}.\n\n{_counted(result, '-')}"
    )


def real_markdown(result: Mapping[str, Any]) -> str:
    """Real vLLM."""
    split = result.get("workers", 1)
    over = f", a tiny model split over {split} workers" if split > 1 else ""
    return (
        f"The command itself on real vLLM{over}, a judge over HTTP, real capture: "
        f"{result['runs_finished']} runs, SIGKILL in every stage in turn "
        f"({_phases(result['stages'])}). Processes left are those alive {GRACE_S:.0f} s after a "
        f"kill; a kill may repeat {result['bound_per_kill']} judge calls.\n\n"
        f"{_counted(result, result['survivors'])}"
    )


def _phases(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} in {name}" for name, count in counts.items())


def _model(root: Path, workers: int) -> Model:
    """Return the model of real runs, made under `root` where it is split."""
    if workers == 1:
        return WHOLE
    return Model(str(tiny_qwen3(root / "tiny", embedded_folder())), workers)


def main() -> None:
    options = parser("soak", __doc__)
    options.add_argument(
        "--kills", type=int, default=100, help="with deterministic backends; 0 leaves (a) out"
    )
    options.add_argument(
        "--real_kills", type=int, default=12, help="on real vLLM; 0 leaves (b) out"
    )
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--tensor_parallel_size", type=int, default=1, help="of the real runs")
    chosen = options.parse_args()
    facts = machine()
    ok = True
    if chosen.kills:
        with tempfile.TemporaryDirectory() as folder:
            fake = lab.soak(Path(folder), chosen.kills, chosen.seed)
        bound = lab.REPEATED_PER_KILL
        result = asdict(fake) | {
            "phases": dict(fake.phases),
            "bound_per_kill": bound,
            "seed": chosen.seed,
        }
        record(chosen.out, "soak", facts, result)
        print(f"(a) {markdown(result)}", flush=True)
        ok &= (
            not (fake.lost or fake.duplicated or fake.changed or fake.differing)
            and fake.most_repeated <= bound
        )
    if chosen.real_kills:
        with tempfile.TemporaryDirectory() as folder:
            model = _model(Path(folder), chosen.tensor_parallel_size)
            real = soak_real(Path(folder), chosen.real_kills, model)
        result = asdict(real) | {
            "stages": dict(real.stages),
            "bound_per_kill": CONCURRENCY + 50 * len(TRAITS),
            "workers": model.workers,
        }
        name = f"real-split-{model.workers}" if model.workers > 1 else "real"
        record(chosen.out, "soak", facts, result, name)
        print(f"(b) {real_markdown(result)}", flush=True)
        ok &= not (real.lost or real.duplicated or real.changed or real.survivors)
    sys.exit(not ok)


if __name__ == "__main__":
    os.environ.pop("OPENAI_API_KEY", None)
    main()
