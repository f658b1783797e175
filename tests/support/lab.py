"""Whole runs over deterministic backends in real processes, to be killed, interrupted, starved and
compared.

The processes come from a fork server that has everything imported, so that each starts in a
fraction of a second.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq

from tests.support import fakes
from traitmill.engine.errors import ExitCode, TraitmillError
from traitmill.engine.records import Response, Sample, Verdict
from traitmill.engine.replicas import (
    Cluster,
    Hosted,
    Needs,
    ReplicaPool,
    ReplicatedCapturer,
    Seat,
)
from traitmill.engine.run import pipeline
from traitmill.engine.run.backends import Backends
from traitmill.engine.run.commands import generate
from traitmill.engine.run.loading import Work as Wanted
from traitmill.engine.run.progress import Listener
from traitmill.engine.run.watchdog import tie_children
from traitmill.engine.settings import CaptureSettings
from traitmill.engine.traits.definition import Trait

_ROOT = str(Path(__file__).resolve().parents[2])
KINDS = ("responses", "verdicts", "activations")
FINAL_FILES = (
    "responses/pos.csv",
    "responses/neg.csv",
    "activations/all_layers.pt",
    "activations/metadata.json",
)
SOURCE_DATE_EPOCH = "1700000000"
WAIT_S = 400.0
"""Bounds a hang alone: what is waited for comes in seconds, on a busy machine in a minute or two."""


@dataclass(frozen=True)
class Work:
    """One run: what `traitmill generate` would be told, and how the backends behave."""

    root: Path
    traits: tuple[str, ...] = ("trait",)
    n: int = 20
    min_kept: int = 0
    threshold: float = 50.0
    flush_seconds: float = 0.5
    generation_delay: float = 0.0
    judge_delay: float = 0.0
    capture_delay: float = 0.0
    in_flight: int = 16
    judging: int = 32
    judge_log: Path | None = None
    hang: bool = False
    """The judge never answers."""
    drain: float = 0.0
    """Seconds an interrupt waits for answers in flight; 0 is the product's own."""
    wild: str = ""
    """Makes every text another one, as real sampling does."""
    replicas: int = 1
    """Above 1, the fakes of generation and capture run in so many actors of Ray's."""
    ray_address: str | None = None
    """Of a cluster for them, each taking one of its CPUs; None starts a Ray for the run."""
    generates: int = 0
    """Responses after which the model falls silent, so that work is left however late a kill comes;
    0 is never."""

    @property
    def folders(self) -> list[Path]:
        return [self.root / "exp" / name for name in self.traits]

    @property
    def out(self) -> Path:
        """What the processes say; beside the root, which may be a full disk."""
        return self.root.with_name(f"{self.root.name}.out")


def make_model(root: Path) -> Path:
    """A model as far as commands look before they load weights: a folder with a config."""
    folder = root / "toy"
    folder.mkdir(exist_ok=True)
    config = {
        "model_type": "llama",
        "hidden_size": fakes.HIDDEN_DIM,
        "num_hidden_layers": fakes.N_LAYERS,
        "head_dim": 32,
    }
    heads = {"num_attention_heads": 2, "head_dim": 32}  # as wide as vLLM takes on a CPU
    (folder / "config.json").write_text(json.dumps(config | heads))
    return folder


class Generator(fakes.FakeGenerator):
    def __init__(self, work: Work) -> None:
        super().__init__(work.generation_delay, work.in_flight)
        self._wild = work.wild
        self._generates = work.generates

    async def generate(self, sample: Sample) -> Response:
        if self._generates and len(self.calls) >= self._generates:
            await asyncio.Event().wait()
        response = await super().generate(sample)
        return (
            replace(response, response=response.response + self._wild)
            if response.status == "ok"
            else response
        )


class Judge(fakes.FakeJudge):
    """At most `judging` calls at once. What it says tells which text it saw."""

    def __init__(self, work: Work, wanted: Wanted) -> None:
        super().__init__(wanted.settings.judge, work.judge_delay, work.judge_log)
        self._slots = asyncio.Semaphore(work.judging)
        self._hang = work.hang

    async def judge(self, trait: Trait, response: Response) -> Verdict:
        async with self._slots:
            if self._hang:
                await asyncio.Event().wait()
            verdict = await super().judge(trait, response)
            return replace(verdict, raw=response.response)


@dataclass(frozen=True)
class OpenFakes:
    """Deterministic models in an actor; every one of them is noted by its pid."""

    work: Work
    capture: CaptureSettings

    @asynccontextmanager
    async def __call__(self, seat: Seat) -> AsyncIterator[Hosted]:
        tie_children()
        whole = self.work.root / f".replica{seat.index}"
        whole.write_text(str(os.getpid()))
        whole.rename(self.work.root / f"replica{seat.index}")
        yield Hosted(Generator(self.work), fakes.FakeCapture(self.capture, self.work.capture_delay))


@asynccontextmanager
async def replicated(work: Work, wanted: Wanted) -> AsyncIterator[tuple[Any, Any]]:
    """Fakes in actors, on a Ray of this run alone."""
    os.environ["PYTHONPATH"] = _ROOT  # where actors find this module
    tie_children()
    cluster = Cluster(work.ray_address)
    await cluster.connect(1, work.replicas)
    pool = ReplicaPool(
        cluster,
        OpenFakes(work, wanted.settings.capture),
        replicas=work.replicas,
        needs=Needs(cpus=0.1 if work.ray_address is None else 1.0),
        all_needed=True,
        notice=print,
    )
    await pool.start()
    try:
        yield pool, ReplicatedCapturer(pool, lambda _: None)
    finally:
        await pool.close()
        await cluster.close()


def run(work: Work, ready: Any = None) -> int:
    """Do the work in this process; return the exit code the command line would give."""
    if work.drain:
        pipeline._DRAIN_S = work.drain
    make_model(work.root)
    return asyncio.run(_run(work, ready))


async def _run(work: Work, ready: Any) -> int:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def press() -> None:
        if stop.is_set():
            os._exit(ExitCode.INTERRUPTED)
        print("stopping")
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, press)

    @asynccontextmanager
    async def backends(wanted: Wanted) -> AsyncIterator[Backends]:
        if ready:
            ready.send("ready")
        if work.replicas > 1:
            async with replicated(work, wanted) as (generator, capturer):
                yield Backends(generator=generator, judge=Judge(work, wanted), capturer=capturer)
            return
        yield Backends(
            generator=Generator(work),
            judge=Judge(work, wanted),
            capturer=fakes.FakeCapture(wanted.settings.capture, work.capture_delay),
        )

    class Printer(Listener):
        def notice(self, line: str) -> None:
            print(line)

    try:
        with patch("traitmill.engine.run.running.lazy_tokenizer", lambda _: fakes.tokenizers):
            result = await generate(
                work.root / "exp",
                work.traits,
                model=str(work.root / "toy"),
                listener=Printer(),
                stop=stop,
                backends=backends,
                judge_model="fake-judge",
                judge_base_url="http://127.0.0.1:9/v1",
                n_examples=work.n,
                min_kept=work.min_kept,
                threshold=work.threshold,
                flush_seconds=work.flush_seconds,
            )
    except TraitmillError as error:
        print(error)
        return int(error.exit_code)
    for error in result.errors:
        print(f"stopped: {error}")
    return int(result.exit_code)


def _child(work: Work, ready: Connection) -> None:
    with work.out.open("a", buffering=1) as out:
        sys.stdout = sys.stderr = out
        code = run(work, ready)
        out.flush()
        os._exit(code)


@cache
def _server() -> Any:
    os.environ["SOURCE_DATE_EPOCH"] = SOURCE_DATE_EPOCH  # inherited by every process started here
    context = multiprocessing.get_context("forkserver")
    # The last is what a look at a model's shape imports, for seconds.
    preloaded = ["tests.support.lab", "traitmill.engine.capture.model", "torch"]
    context.set_forkserver_preload([*preloaded, "transformers.models.llama.configuration_llama"])
    return context


class Running:
    """A run in a process of its own."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.ready, ready = _server().Pipe(duplex=False)
        # A daemon: one that a failed test leaves behind must not keep the tests from ending.
        self.process: BaseProcess = _server().Process(
            target=_child, args=(work, ready), daemon=True
        )
        self.process.start()
        ready.close()

    def wait_ready(self) -> None:
        """Until the pipeline is about to start (or the process has ended)."""
        if self.ready.poll(WAIT_S):
            try:
                self.ready.recv()
            except EOFError:
                return

    def wait(self, seconds: float = WAIT_S) -> int | None:
        """The exit code (negative: a signal), None when the process still runs after `seconds`."""
        self.process.join(seconds)
        return self.process.exitcode

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    @property
    def said(self) -> str:
        return self.work.out.read_text()


def run_to_end(work: Work) -> int | None:
    """Run in a process of its own, undisturbed."""
    return Running(work).wait()


# --- looking at what is on disk, with code of its own ---


def _read(folder: Path, kind: str, pattern: str, read: Callable[[Path], list[Any]]) -> list[Any]:
    """What `read` makes of files that a run at work may take away: those that took a file's place
    are looked for anew."""
    while True:
        paths = sorted((folder / "parquet" / kind).rglob(pattern))
        try:
            return [row for path in paths for row in read(path)]
        except FileNotFoundError:
            continue


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    """All stored rows of a kind, in the order they were written, repeats included."""

    def read(path: Path) -> list[Any]:
        return list(pq.read_table(path, partitioning=None).to_pylist())

    return _read(folder, kind, "part-*.parquet", read)


def journaled(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Rows of a kind that no part holds yet; a line that a kill cut off is none."""

    def read(path: Path) -> list[Any]:
        lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
        return [json.loads(line.partition(" ")[2]) for line in lines]

    return _read(folder, kind, ".journal-*", read)


def count(folder: Path, kind: str) -> int:
    """Rows of a kind in parts and journals, of a run that may be at work: one that is just being
    moved counts once or twice."""

    def read(path: Path) -> list[Any]:
        return [pq.read_metadata(path).num_rows]

    return len(journaled(folder, kind)) + sum(_read(folder, kind, "part-*.parquet", read))


def row_key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["sample_id"],
        row.get("judge_key", ""),
        row.get("capture_key", ""),
        row.get("pool", ""),
    )


def row_digests(folder: Path) -> dict[tuple[str, tuple[str, ...]], str]:
    """(kind, key) -> digest of the row's content. A key that stands twice, with different content,
    fails here."""
    out: dict[tuple[str, tuple[str, ...]], str] = {}
    for kind in KINDS:
        for row in rows(folder, kind):
            digest = hashlib.sha256(repr(sorted(row.items())).encode()).hexdigest()
            assert out.setdefault((kind, row_key(row)), digest) == digest, (
                f"{kind} {row_key(row)} stands twice"
            )
    return out


def duplicates(folder: Path) -> int:
    """Rows beyond the first of their key."""
    return sum(
        count - 1 for kind in KINDS for count in Counter(map(row_key, rows(folder, kind))).values()
    )


def final_files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FINAL_FILES}


def phase(folders: Sequence[Path], planned: int) -> str:
    """How far the slowest stage has come, by what is stored."""
    counts = {kind: {(f, row_key(row)) for f in folders for row in rows(f, kind)} for kind in KINDS}
    ok = sum(row["status"] == "ok" for f in folders for row in rows(f, "responses"))
    if not counts["responses"]:
        return "start"
    if len(counts["responses"]) < planned:
        return "generation"
    if len(counts["verdicts"]) < ok:
        return "judging"
    return "capture" if len(counts["activations"]) < ok else "export"


# --- the kill harness ---

SLOW = ((0.06, 0.02, 0.02), (0.01, 0.12, 0.02), (0.01, 0.02, 0.4))
"""Seconds of a generation, a judge call and a capture batch: each stage in turn is the one a kill
mostly meets."""
REPEATED_PER_KILL = 32
"""Judge calls one kill may repeat: those in flight."""


@dataclass
class Soaked:
    """What a soak counted."""

    kills: int = 0
    runs: int = 0
    samples: int = 0
    """Of one run."""
    phases: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    duplicated: int = 0
    changed: int = 0
    judge_calls: int = 0
    repeated: int = 0
    most_repeated: int = 0
    """By one kill."""
    differing: list[str] = field(default_factory=list)
    """Final files that are not the undisturbed run's, byte for byte."""


def soak(
    root: Path, kills: int, seed: int = 0, n: int = 130, traits: Sequence[str] = ("one", "two")
) -> Soaked:
    """Kill runs at `kills` seeded random moments, resume each, and compare all they leave with an
    undisturbed run.

    A moment is told by the rows that are stored, so that as much is done by then on any machine.
    """
    out = Soaked(samples=2 * n * len(traits))
    rng = random.Random(seed)
    template = Work(root, tuple(traits), n)
    calm = _prepare(template, root / "calm")
    assert run_to_end(calm) == 0, calm.out.read_text()
    expected = {folder.name: (final_files(folder), row_digests(folder)) for folder in calm.folders}
    while out.kills < kills:
        generation, judge, capture = SLOW[out.runs % len(SLOW)]
        delays = {"generation_delay": generation, "judge_delay": judge, "capture_delay": capture}
        work = replace(_prepare(template, root / f"run{out.runs}"), **delays)
        out.runs += 1
        stored: dict[str, dict[Any, str]] = {name: {} for name in traits}
        while True:
            asked = len(_asked(work))
            running = Running(work)
            if out.kills < kills and rng.random() < 0.95:
                if rng.random() < 0.9:
                    running.wait_ready()
                    _wait_for_rows(running, rng.uniform(0.0, 1.3) * _rows_to_come(work))
                code = running.wait(rng.uniform(0.0, 0.3))
            else:
                code = running.wait()
            if code is None:
                running.process.kill()
                running.process.join()
                out.kills += 1
                out.phases[phase(work.folders, 2 * n * len(traits))] += 1
            for folder in work.folders:
                digests = row_digests(folder)
                out.changed += sum(
                    digests.get(key) != digest for key, digest in stored[folder.name].items()
                )
                stored[folder.name] = digests
            if code is not None:
                break
            # What an earlier kill lost may wait to be asked for again: it is not this one's.
            answered = {
                row["sample_id"]
                for folder in work.folders
                for row in rows(folder, "verdicts") + journaled(folder, "verdicts")
            }
            lost = set(_asked(work)[asked:]) - answered
            out.most_repeated = max(out.most_repeated, len(lost))
        assert code == 0, running.said
        calls = _asked(work)
        out.judge_calls += len(calls)
        out.repeated += len(calls) - len(set(calls))
        for folder in work.folders:
            files, digests = expected[folder.name]
            out.lost += len(digests.keys() - stored[folder.name].keys())
            out.changed += sum(
                stored[folder.name].get(key) != digest for key, digest in digests.items()
            )
            out.duplicated += duplicates(folder) + len(stored[folder.name].keys() - digests.keys())
            now = final_files(folder)
            out.differing += [
                str(folder / name) for name, data in files.items() if now[name] != data
            ]
    return out


def _asked(work: Work) -> list[str]:
    """What the judge was asked for, in all starts so far."""
    assert work.judge_log is not None
    return work.judge_log.read_text().split() if work.judge_log.exists() else []


def _rows_to_come(work: Work) -> int:
    planned = len(KINDS) * 2 * work.n * len(work.traits)
    return planned - sum(count(folder, kind) for folder in work.folders for kind in KINDS)


def _wait_for_rows(running: Running, more: float) -> None:
    """Until so many rows more are stored than now, or the process has ended."""
    last = _rows_to_come(running.work) - more
    while running.wait(0.05) is None and _rows_to_come(running.work) > last:
        pass


def _prepare(template: Work, root: Path) -> Work:
    for name in template.traits:
        definition = fakes.definition(2, 7)
        definition["questions"] = [f"{question} On {name}." for question in definition["questions"]]
        fakes.make_trait(
            root, name, definition
        )  # other prompts, so other ids: the log of judge calls names ids alone
    return replace(template, root=root, judge_log=root / "calls")
