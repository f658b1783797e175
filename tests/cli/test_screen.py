"""What a person sees: on a terminal of 80 columns, in a pipe, in the log, and what to run next."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import math
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tests.conftest import TRAITMILL, Traitmill, clean_environment
from tests.support import fakes, lab
from tests.support.finished import copy_of, finish, on
from tests.support.misbehaving_server import MisbehavingServer
from traitmill.cli import display, judge, remarks, render, run, show, summary, waiting
from traitmill.cli.output import passing
from traitmill.cli.steer import say_result
from traitmill.engine.errors import ExitCode, TraitmillError, UsageError
from traitmill.engine.records import MOST_TRIES
from traitmill.engine.run import Progress, RunResult
from traitmill.engine.run.trait_run import TraitRun
from traitmill.engine.settings import DEFAULTS, NAMES, apply, value_of
from traitmill.engine.steering.commands import SteeredTrait, SteeringResult
from traitmill.engine.steering.findings import Claim
from traitmill.engine.storage import TraitFolder
from traitmill.engine.storage.schemas import STATUSES

COMMANDS = {"judge": judge.command, "show": show.command}
ESCAPE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")


class Screen:
    """What a terminal of some columns shows after all that was written to it."""

    def __init__(self, written: str, columns: int) -> None:
        self.rows: list[list[str]] = [[]]
        self.row = self.column = 0
        place = 0
        while place < len(written):
            found = ESCAPE.match(written, place)
            if found:
                self._control(found[1], found[2])
                place = found.end()
                continue
            self._put(written[place], columns)
            place += 1

    def _control(self, number: str, letter: str) -> None:
        count = int(number) if number.isdecimal() else 1
        if letter == "A":
            self.row = max(0, self.row - count)
        elif letter == "K" and number == "2":
            self.rows[self.row] = []
        elif letter not in "mhl":
            raise AssertionError(f"a control that this terminal does not know: {number}{letter}")

    def _put(self, character: str, columns: int) -> None:
        if character == "\r":
            self.column = 0
            return
        if character == "\n" or self.column >= columns:
            self.row, self.column = self.row + 1, 0
            while len(self.rows) <= self.row:
                self.rows.append([])
            if character == "\n":
                return
        row = self.rows[self.row]
        row.extend(" " * (self.column + 1 - len(row)))
        row[self.column] = character
        self.column += 1

    @property
    def lines(self) -> list[str]:
        return ["".join(row).rstrip() for row in self.rows]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> lab.Work:
    """A finished run; tests that change it take a copy."""
    return finish(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def work(made: lab.Work, tmp_path: Path) -> lab.Work:
    return copy_of(made, tmp_path / "work")


def in_terminal(
    arguments: list[str], cwd: Path, columns: int, *, interrupt_at: str = ""
) -> tuple[int, str]:
    """Run the command on a terminal of its own; Ctrl-C once it has written what `interrupt_at`
    matches."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        environment = clean_environment(COLUMNS=str(columns), LINES="40", TERM="xterm-256color")
        os.execve(TRAITMILL, [TRAITMILL, *arguments], environment)
    written, deadline = b"", time.monotonic() + lab.WAIT_S
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                data = os.read(terminal, 1 << 16)
            except OSError:  # the terminal is closed: the command has ended
                break
            if not data:
                break
            written += data
        if interrupt_at and re.search(interrupt_at, written.decode("utf-8", "replace")):
            os.kill(pid, signal.SIGINT)
            interrupt_at = ""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), written.decode("utf-8", "replace")


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 140])
def test_t03_no_markup_is_shown_and_ctrl_c_leaves_no_frame(work: lab.Work, columns: int) -> None:
    with MisbehavingServer("gpt-4.1-mini", latency=0.7) as server:
        judge = ["--judge_model", "m", "--judge_base_url", server.url, "--judge_concurrency", "2"]
        code, written = in_terminal(
            ["judge", *on(work), *judge],
            work.root,
            columns,
            interrupt_at=r"\b([6-9]|[12]\d)/\d\d\b(?!/)",
        )
    assert code == ExitCode.INTERRUPTED, written
    assert "━" in written, "progress was shown"
    assert "stopping: storing what is in hand" in written
    screen = Screen(written, columns).lines
    assert not re.search(r"\[/?(dim|bold|red|green)\]", written)
    # Bars begin after a name; the summary's rule has a line of its own.
    assert not [line for line in screen if re.match(r"(generation|judging|capture) +[━─]", line)]
    assert "━" not in "".join(screen)
    assert any(line.startswith("interrupted; everything above is stored") for line in screen)
    assert max(map(len, screen)) <= columns


def test_t03_a_terminal_is_read_as_one() -> None:
    """The reading itself: a frame of two lines is drawn, wiped, and a line takes its place."""
    drawn = "━━ 1/2\r\n━━ 3/4\r\x1b[2K\x1b[1A\x1b[2Kdone\r\n"
    assert Screen(drawn, 80).lines == ["done", ""]
    assert "━━ 1/2" in Screen("━━ 1/2\r\n", 80).lines


@pytest.mark.slow
@pytest.mark.parametrize("capture", ["all", "kept", "none"])
def test_t04_a_resumed_run_begins_with_what_is_stored(tmp_path: Path, capture: str) -> None:
    folder = fakes.make_trait(tmp_path)
    settings = fakes.settings(20, capture_rows=capture)
    runs = fakes.open_runs([folder], settings)

    async def cut_off() -> None:
        stop = asyncio.Event()
        pipeline = fakes.pipeline(runs, settings, generator=fakes.FakeGenerator(0.05, 4))
        running = asyncio.create_task(pipeline.run(stop))
        while pipeline.clocks["generation"].records < 15:
            await asyncio.sleep(0.01)
        stop.set()
        await running

    asyncio.run(cut_off())
    stored = {kind: {row["sample_id"] for row in lab.rows(folder, kind)} for kind in lab.KINDS}
    assert 0 < len(stored["responses"]) < 40
    again = fakes.open_runs([folder], settings)
    progress = Progress(tmp_path / "log", capture != "none", again)
    counts = progress.counts()
    assert counts["generation"] == (len(stored["responses"]), 40)
    assert counts["judging"][0] == len(stored["verdicts"])
    assert counts["capture"][0] == len(stored["activations"])
    seen = [counts["capture"][0]]
    pipeline = fakes.pipeline(again, settings)
    asyncio.run(pipeline.run(asyncio.Event()))
    counts = progress.counts()
    seen.append(counts["capture"][0])
    assert seen == sorted(seen)
    if capture == "kept":
        assert counts["capture"] == (sum(progress.kept().values()),) * 2
    elif capture == "all":
        assert counts["capture"][0] == counts["capture"][1]


def test_what_is_asked_of_coherence_counts_nothing_as_kept(tmp_path: Path) -> None:
    """Its scores were counted as if they were the trait's."""
    folder = fakes.make_trait(tmp_path)
    finished(folder, 30)
    runs = fakes.open_runs([folder], fakes.settings(30))
    progress = Progress(tmp_path / "log", captures=False, runs=runs, loads=False)
    assert re.search(r"; kept \d+ pos \+ \d+ neg$", display._line(progress))
    assert display._loading(progress) == "waiting for the judge"
    runs[0].exports = False
    assert "kept" not in display._line(progress)
    assert display._loading(replace(progress, loads=True)) == "loading"


def test_a_name_is_whole_where_there_is_no_terminal(tmp_path: Path) -> None:
    name = "a_name_of_" + 80 * "x"
    said = StringIO()
    summary.print_summary(
        display.open_console(said), finished(fakes.make_trait(tmp_path, name), 30)
    )
    assert f"{name} " in said.getvalue()


# --- 07: hints ---


@pytest.mark.slow
@pytest.mark.parametrize("path", ["with", "without"])
def test_t07_a_hint_is_found_where_it_is_pasted(work: lab.Work, path: str) -> None:
    """The shell that ran the command by its full path may not find its name."""
    environment = clean_environment()
    if path == "without":
        folders = environment["PATH"].split(os.pathsep)
        bare = [folder for folder in folders if not (Path(folder) / "traitmill").exists()]
        environment["PATH"] = os.pathsep.join(bare)
    command = [TRAITMILL, "generate", *on(work)]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=work.root, timeout=120
    )
    [hint] = re.findall(r"^next: (.*)$", result.stdout, re.MULTILINE)
    assert (hint.split()[0] == "traitmill") == (path == "with")
    beside = Path(TRAITMILL).parents[1]  # where an environment's folder is as short as can be
    if path == "without":
        again = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=beside)
        assert f"\nnext: bin/{Path(TRAITMILL).name} vectors" in again.stdout
    assert hint.split()[1] == "vectors"
    pasted = subprocess.run(
        ["/bin/sh", "-c", f"{hint} --help"], env=environment, capture_output=True, text=True
    )
    assert pasted.returncode == 0, pasted.stderr
    assert "Fit trait vectors" in pasted.stdout


def test_t07_a_module_is_named_where_there_is_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "argv", ["/some/package/__main__.py"])
    assert shlex.split(render.program()) == [sys.executable, "-m", "traitmill"]
    said = subprocess.run(
        [*shlex.split(render.program()), "--version"], capture_output=True, text=True
    )
    assert said.returncode == 0


def finished(folder: Path, n: int) -> RunResult:
    """A result as a run of `n` a side ends with it."""
    from traitmill.engine.run.progress import trait_results

    settings = fakes.settings(n)
    runs: list[TraitRun] = fakes.open_runs([folder], settings)
    pipeline = fakes.pipeline(runs, settings)
    asyncio.run(pipeline.run(asyncio.Event()))
    return RunResult(
        traits=trait_results(runs),
        stage_errors={},
        interrupted=False,
        clocks=pipeline.clocks,
        seconds=1.0,
        usage=None,
        log=None,
    )


def printed(result: RunResult, *, goes_on: bool, capfd: pytest.CaptureFixture[str]) -> str:
    summary.print_summary(Console(soft_wrap=True), result, goes_on=goes_on)
    return capfd.readouterr().out


def test_what_is_given_up_is_not_said_to_be_tried_once_more(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = finished(fakes.make_trait(tmp_path), 4)
    [trait] = result.traits.values()
    verdicts = trait.state.verdicts
    verdicts.status[0] = STATUSES["verdicts"].index("failed")
    for tries, again in ((1, True), (MOST_TRIES, False)):
        verdicts.facts["tries"][0] = tries
        said = printed(result, goes_on=False, capfd=capfd)
        assert ("tried once more when the same command is run again" in said) == again
        assert ("1 verdicts are given up" in said) != again


def test_t08_a_first_trial_ends_in_what_to_run_next(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = finished(fakes.make_trait(tmp_path), 4)
    for goes_on, name in ((False, "generate"), (True, "run")):
        said = printed(result, goes_on=goes_on, capfd=capfd)
        assert "WARNING" not in said
        last = said.strip().splitlines()[-1]
        assert re.match(rf"next: traitmill {name} .*--n_examples 100$", last)
        assert "a trial of 4 a side: too few" in said


def test_t07_run_does_not_name_the_step_that_it_does_itself(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = finished(fakes.make_trait(tmp_path), 30)
    assert "next: traitmill vectors" in printed(result, goes_on=False, capfd=capfd)
    assert "next:" not in printed(result, goes_on=True, capfd=capfd)


@pytest.mark.parametrize(
    ("claim", "n", "blind", "said"),
    [
        (True, 30, False, ["next: traitmill steer --experiment exp --trait trait"]),
        (
            False,
            30,
            False,
            ["for a claim: traitmill run --experiment exp --trait trait --n_examples 100"],
        ),
        (False, 100, False, []),
        (True, 30, True, []),
    ],
)
def test_t07_run_ends_in_what_to_do_with_its_vectors(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    claim: bool,
    n: int,
    blind: bool,
    said: list[str],
) -> None:
    """Steer what is claimed, go on with what is too little, and mend a judge before either."""
    result = finished(fakes.make_trait(tmp_path), n)
    if blind:
        blinded(monkeypatch)
    best = SimpleNamespace(claim=claim)
    fitted = SimpleNamespace(evaluation=SimpleNamespace(recommendation=best))
    lines = run._next_steps(list(result.traits.values()), {"trait": fitted})  # type: ignore[dict-item]
    where = f" --experiments_dir {tmp_path}"
    assert [line.replace(where, "") for line in lines] == said


def blinded(
    monkeypatch: pytest.MonkeyPatch, auroc: float = 0.54, low: float = 0.37, high: float = 0.7
) -> None:
    """Let every judge be no better than chance, or as is given."""
    found = {"auroc": auroc, "auroc_interval": [low, high]}
    chance = {**found, "histogram": {"pos": [1], "neg": [1]}}
    for module in (summary, remarks):
        monkeypatch.setattr(module, "judge_summary", lambda _state: chance)


def test_a_judge_that_scores_the_other_way_round_is_said_to(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells the sides apart, so what is wrong is which is which."""
    result = finished(fakes.make_trait(tmp_path), 30)
    blinded(monkeypatch, 0.2, 0.05, 0.46)
    said = printed(result, goes_on=True, capfd=capfd)
    assert "this judge scores neg above pos (AUROC 0.20, interval 0.05 to 0.46)" in said
    assert "cannot tell" not in said


def test_t07_a_judge_that_tells_nothing_apart_is_said_with_what_to_do(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = finished(fakes.make_trait(tmp_path), 30)
    assert "WARNING" not in printed(result, goes_on=True, capfd=capfd)
    blinded(monkeypatch)
    said = printed(result, goes_on=True, capfd=capfd)
    where = f"--experiment exp --trait trait --experiments_dir {tmp_path}"
    assert "cannot tell the two sides apart (AUROC 0.54" in said
    assert f": traitmill show {where} --rejected\n" in said
    assert f"with --judge_model: traitmill judge {where}\n" in said
    for command in re.findall(r"traitmill (?:show|judge) .*", said):
        name, *given = shlex.split(command)[1:]
        COMMANDS[name].make_context(name, given)  # every option is one that it has


# --- lines at 80 columns ---


def test_lines_are_broken_between_words_and_commands_can_be_pasted() -> None:
    said = (
        "  - random vectors reach 0.56 on average (0.15 less, -0.15 to 0.25) and 0.79 at their top"
    )
    assert render.fitted(said, 80).splitlines() == [said[:80].rpartition(" ")[0], "    their top"]
    assert render.fitted(said, None) == said
    words = ["--experiment", "mine", "--traits", ",".join("abcdef"), "--pool", "prompt_last"]
    words += ["--experiments_dir", "a folder with words in its very long name"]
    pasted = shlex.join(["traitmill", "vectors", *words])
    for before in ("next: ", "the judge's files show others; to renew them and all the rest: "):
        text = render.fitted(f"{before}{pasted}", 80)
        assert max(map(len, text.splitlines())) <= 80
        echoed = text[text.index("traitmill") :].replace("traitmill", "printf '%s\\n'", 1)
        shown = subprocess.run(["/bin/sh", "-c", echoed], capture_output=True, text=True)
        assert shown.stdout.splitlines() == ["vectors", *words]
    path = f"/{'x' * 90}.html"
    assert path in render.fitted(f"report: {path}", 80), "a path stays whole"


def test_on_a_terminal_no_word_is_cut(work: lab.Work) -> None:
    """Stage 3 writes long lines: a terminal of 80 columns would break them anywhere."""
    command = [TRAITMILL, "vectors", *on(work)]
    how: dict[str, Any] = {"capture_output": True, "text": True, "cwd": work.root}
    for _ in range(2):  # the second time it has nothing to fit and shows no progress
        piped = subprocess.run(command, env=clean_environment(), **how).stdout
    code, written = in_terminal(command[1:], work.root, 80)
    assert code == ExitCode.OK, written
    assert any(len(line) > 80 for line in piped.splitlines())
    drawn = "\n".join(Screen(written.replace("\x1b[K", ""), 80).lines).split()
    # A path stays whole, for pasting, where it leaves no room for what stands before it.
    assert [word for word in piped.split() if word not in drawn and len(word) < 64] == []


# --- 11: the log ---


@pytest.mark.slow
def test_t11_the_log_of_a_judging_holds_command_versions_notices_and_summary(
    work: lab.Work,
) -> None:
    with MisbehavingServer("gpt-4.1-mini") as server:
        url = server.url
        judge = ["--judge_model", "m", "--judge_base_url", url, "--judge_rpm", "100000"]
        result = subprocess.run(
            [TRAITMILL, "judge", *on(work), *judge],
            env=clean_environment(OPENAI_API_KEY="sk-verysecret0123456789"),
            capture_output=True,
            text=True,
            cwd=work.root,
            timeout=120,
        )
    assert result.returncode == ExitCode.NOTHING_KEPT, result.stdout + result.stderr
    [name] = re.findall(r"^log: (.*)$", result.stdout, re.MULTILINE)
    log = Path(name).read_text()
    assert f"judge --experiment exp --trait trait --experiments_dir {work.root}" in log
    assert re.search(r"python 3\.\d+\.\d+, .*torch 2\.", log)
    assert f"judge m at {url}: 1 judge prompt" in log
    for line in result.stdout.splitlines()[1:]:  # the first says the command again
        if not line.startswith("loading"):
            assert line.strip() in log
    assert "verysecret" not in log


def test_t11_the_log_of_steering_ends_with_what_it_came_to(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    log.write_text("traitmill: begun\n")
    claim = Claim(
        *("mean_diff", 1, 0.5), has_effect=True, sentence="The vector steers.", why=("it does",)
    )
    trait = SteeredTrait("poem", TraitFolder(tmp_path / "poem"), claim, ())
    errors = {"prose": UsageError("give `n_random` less")}
    say_result(SteeringResult({"poem": trait}, errors, interrupted=False, seconds=7.0, log=log))
    out, err = capfd.readouterr()
    assert "traitmill: give --n_random less" in err
    written = log.read_text().splitlines()
    assert written[:2] == ["traitmill: begun", "stopped: give --n_random less"]
    assert written[2:] == out.splitlines()
    assert written[2:4] == ["poem: The vector steers.", "  - it does"]


# --- 12: an endpoint that has no such model, or is none ---


class OnlyV1(http.server.BaseHTTPRequestHandler):
    """An endpoint below /v1, as a server of one's own has it; elsewhere is nothing."""

    def do_GET(self) -> None:
        models = {"object": "list", "data": [{"id": "right-model", "object": "model"}]}
        self._answer(models if self.path == "/v1/models" else None)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self._answer(None)

    def _answer(self, body: object) -> None:
        data = json.dumps(body or {"detail": "Not Found"}).encode()
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def only_v1() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), OnlyV1)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_t12_an_address_without_v1_is_told_where_it_may_be(
    traitmill: Traitmill, work: lab.Work, only_v1: str
) -> None:
    judge = ["--judge_model", "right-model", "--judge_base_url"]
    code, said = traitmill("judge", *on(work), *judge, only_v1)
    assert code == ExitCode.ACCESS
    assert f"try --judge_base_url {only_v1}/v1" in said


def test_t12_a_mistyped_model_is_told_what_the_endpoint_offers(
    traitmill: Traitmill, work: lab.Work, only_v1: str
) -> None:
    judge = ["--judge_base_url", f"{only_v1}/v1", "--judge_model"]
    code, said = traitmill("judge", *on(work), *judge, "rihgt-model")
    assert code == ExitCode.ACCESS
    assert "has no model rihgt-model; it offers right-model: name one with --judge_model" in said
    kept = TraitFolder(work.folders[0]).asked.read_text()
    assert "rihgt-model" not in kept, "a judge that is not there is not remembered"


# --- 51: numbers ---

NUMBERS = [name for name in NAMES if isinstance(value_of(DEFAULTS, name), float)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [*NUMBERS, "neg_threshold"])
def test_t51_no_numeric_option_takes_nan_or_infinity(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"`{name}`"):
        apply({name: value})


def test_t51_the_numeric_options_are_found() -> None:
    assert {"judge_tpm", "judge_rpm", "judge_patience", "max_cost", "flush_seconds"} < set(NUMBERS)


# --- the first sign of life ---

LONG = ("run", "generate", "activations", "judge", "preview", "steer", "vectors", "project", "demo")
HEAVY = {"numpy", "pyarrow", "torch", "transformers", "vllm", "openai", "polars"}


GIVEN = {"demo": [], "project": ["--texts", "x", "--vectors", "v", "--to", "o"]}
SAYS = {"demo": "demo", "project": "project"}


@pytest.mark.parametrize("name", LONG)
def test_what_takes_long_says_at_once_what_was_asked(name: str, tmp_path: Path) -> None:
    """Before any library that takes a second is imported, and on the first line."""
    given = GIVEN.get(name, ["--experiment", "e", "--trait", "t"])
    code = (
        "import sys\n"
        "from traitmill.cli import main, waiting\n"
        "def say(line):\n"
        f"    print(line, sorted({HEAVY} & set(sys.modules)), flush=True)\n"
        "    raise SystemExit\n"
        "waiting.click.echo = say\n"
        f"sys.argv = ['traitmill', {name!r}, *{given}]\n"
        "main.main()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    said = SAYS.get(name, f"{name}, experiment e, trait t")
    assert result.stdout.strip() == f"{said} []", result


def test_a_child_forked_while_something_is_written_can_write() -> None:
    with passing.lock:
        pid = os.fork()
        if pid == 0:
            os._exit(0 if passing.lock.acquire(timeout=5) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_what_was_typed_is_said_again_short_and_harmless(
    capfd: pytest.CaptureFixture[str],
) -> None:
    waiting.greet("run", {"experiment": "a\x1b[2Jb", "traits": ",".join(["poem"] * 240)})
    waiting.waiting.stop()
    said = capfd.readouterr().out
    assert said.startswith("run, experiment a?[2Jb, traits poem,poem,")
    assert len(said) < 80


def test_something_moves_until_there_is_something_to_see(tmp_path: Path) -> None:
    """On a terminal a figure turns while nothing is written, and is gone before the next line."""
    code = (
        "import sys, time\n"
        "from traitmill.cli.output import safe_streams\n"
        "from traitmill.cli import waiting\n"
        "drawn, turning = [], waiting.turning\n"
        "def noted(seconds):\n"
        "    drawn.append(turning(seconds))\n"
        "    return drawn[-1]\n"
        "waiting.turning = noted\n"
        "def until(count):\n"  # as one is noted, all before it are drawn
        "    while len({line[0] for line in drawn}) <= count: time.sleep(0.02)\n"
        "with safe_streams():\n"
        "    waiting.greet('run', {'experiment': 'e', 'traits': 'a,b'})\n"
        "    until(3)\n"
        "    print('model: m')\n"
        "    until(len({line[0] for line in drawn}) + 1)\n"
        "    print('no such model', file=sys.stderr)\n"
        "    waiting.waiting.stop()\n"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(Path(__file__).parents[2])
        os.execv(sys.executable, [sys.executable, "-c", code])
    written = b""
    with contextlib.suppress(OSError):  # the terminal is closed: the program has ended
        while data := os.read(terminal, 1 << 16):
            written += data
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    text = written.decode()
    assert len(set(re.findall("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]", text))) >= 3
    assert [line for line in Screen(text, 80).lines if line] == [
        "run, experiment e, traits a,b",
        "model: m",
        "no such model",
    ]


# --- 20: doctor ---


def test_t20_doctors_first_line_waits_for_no_library() -> None:
    """What takes seconds to import on a busy machine comes after something was said."""
    code = (
        "import sys\n"
        "from traitmill.cli import doctor\n"
        "def say(line):\n"
        "    heavy = {'numpy', 'pyarrow', 'torch', 'transformers', 'vllm', 'openai', 'polars'}\n"
        "    print(line, sorted(heavy & set(sys.modules)), flush=True)\n"
        "    raise SystemExit\n"
        "doctor.say = say\n"
        "doctor.command(['--judge_model', 'local'])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert re.match(r"ok    packages: .* \[\]$", result.stdout.strip()), result


# --- 19: the embedded model ---


@pytest.mark.slow
def test_t19_the_embedded_models_conversion_is_one_line_of_ours(tmp_path: Path) -> None:
    code = "from traitmill.engine.models.demo import embedded_folder; print(embedded_folder())"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environment(XDG_CACHE_HOME=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    assert (Path(result.stdout.strip()) / "model.safetensors").exists()
    [line] = [line for line in re.split(r"[\r\n]+", result.stderr) if line.strip()]
    assert line.startswith("preparing the embedded model, once")


# --- 17: the summary of many traits ---


def test_t17_the_summary_of_240_traits_is_one_screen(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = finished(fakes.make_trait(tmp_path), 30)
    [one] = result.traits.values()
    traits = {f"trait_{i:03d}": replace(one, name=f"trait_{i:03d}") for i in range(240)}
    traits["trait_100"] = replace(traits["trait_100"], finished=False)
    stopped = TraitmillError("the disk is full")
    traits["trait_200"] = replace(traits["trait_200"], finished=False, error=stopped)
    console = Console(width=80, highlight=False, force_terminal=True, color_system=None)
    summary.print_summary(console, replace(result, traits=traits), goes_on=True)
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) < 40
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 80
    said = " ".join(" ".join(lines).split())
    kept = {side: 240 * n["kept"] for side, n in one.state.counts().items()}
    assert said.startswith(f"240 traits, 238 finished: {240 * 60:,} of {240 * 60:,} generated")
    assert f"kept {kept['pos']:,} pos + {kept['neg']:,} neg; 2 to see to" in said
    shown = [line.split()[0] for line in lines if re.match(r"trait_\d", line)]
    assert shown[:2] == ["trait_200", "trait_100"]
    assert "trait_000" not in said
