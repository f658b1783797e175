"""Bad input met by the commands themselves: one clear message, the right exit code, nothing
written."""

from __future__ import annotations

import ast
import http.server
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import ROOT, TRAITMILL, Traitmill, clean_environment
from tests.support import fakes, lab, oracle
from tests.support.finished import copy_of, finish, on
from tests.support.misbehaving_server import MisbehavingServer
from traitmill.cli import session
from traitmill.cli.session import ending_signals
from traitmill.engine import run
from traitmill.engine.errors import AccessError, ExitCode, UsageError
from traitmill.engine.models.hub import find_model
from traitmill.engine.models.weights import check_weights
from traitmill.engine.run import Backends, Work
from traitmill.engine.settings import CaptureSettings
from traitmill.engine.storage import TraitFolder, lock_traits


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> lab.Work:
    """A finished run; tests that change it take a copy."""
    return finish(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def copy(finished: lab.Work, tmp_path: Path) -> lab.Work:
    return copy_of(finished, tmp_path / "copy")


def everything(root: Path) -> dict[str, bytes | None]:
    """All below a folder, locks apart."""
    paths = (path for path in root.rglob("*") if path.name != ".lock")
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


JUDGED_BY_FAKE = ["--judge_model", "fake-judge", "--judge_base_url", "http://127.0.0.1:9/v1"]


# --- 14: definitions ---


def test_f14_all_faults_of_all_files_are_reported_before_anything_else(
    traitmill: Traitmill, tmp_path: Path
) -> None:
    fakes.make_trait(
        tmp_path, "one", {"instruction": [], "questions": [], "eval_prompt": "{question}"}
    )
    (fakes.make_trait(tmp_path, "two") / "trait_definition.json").write_text("{,}")
    before = everything(tmp_path)
    code, said = traitmill(
        "generate",
        "--experiment",
        "exp",
        "--traits",
        "one,two",
        "--experiments_dir",
        tmp_path,
        "--gen_model",
        "/none",
    )
    assert code == ExitCode.USAGE
    assert said.count("one/trait_definition.json: ") == 3
    assert said.count("two/trait_definition.json: line 1") == 1
    assert "/none" not in said
    assert everything(tmp_path) == before


# --- 23: access ---


def test_f23_an_unknown_model_folder_is_named(traitmill: Traitmill, tmp_path: Path) -> None:
    fakes.make_trait(tmp_path, "trait")
    where = (*on(lab.Work(tmp_path)), "--judge_model", "local")
    code, said = traitmill("generate", *where, "--gen_model", "./no/such/folder")
    assert code == ExitCode.ACCESS
    assert "check --gen_model" in said


def test_f23_a_missing_judge_key_is_found_before_the_model(
    traitmill: Traitmill, tmp_path: Path
) -> None:
    fakes.make_trait(tmp_path, "trait")
    where = ("--experiment", "exp", "--trait", "trait", "--experiments_dir", tmp_path)
    code, said = traitmill("generate", *where, "--gen_model", "/none")
    assert code == ExitCode.ACCESS
    assert "OPENAI_API_KEY" in said
    assert ".env" in said
    assert "--judge_model local" in said


class Hub(http.server.BaseHTTPRequestHandler):
    """The hub's answers for a gated model, for one that does not exist, and where it is down."""

    def do_HEAD(self) -> None:
        if "down" in self.path:
            self.send_error(503)
            return
        gated = "gated" in self.path
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD  # noqa: N815 - http.server's name

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("someone/gated", ("is gated", "accept its licence", "HF_TOKEN=hf_...")),
        ("someone/unknown", ("not found on the hub", "spelling", "HF_TOKEN=hf_...")),
    ],
)
def test_f23_the_hubs_refusal_comes_with_its_remedy(
    tmp_path: Path, hub: str, model: str, words: tuple[str, ...]
) -> None:
    fakes.make_trait(tmp_path, "trait")
    environment = clean_environment(
        HF_ENDPOINT=hub, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path / "hf"), HF_TOKEN="hf_verysecret"
    )
    command = [
        TRAITMILL,
        "generate",
        "--experiment",
        "exp",
        "--trait",
        "trait",
        "--experiments_dir",
        str(tmp_path),
    ]
    command += ["--gen_model", model, "--judge_model", "local"]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert result.returncode == ExitCode.ACCESS, result.stderr
    said = " ".join(result.stderr.split())
    assert all(word in said for word in words), said
    assert "hf_verysecret" not in result.stdout + result.stderr
    assert not (tmp_path / "exp/trait/parquet").exists()


def test_f23_a_hub_that_is_down_is_no_refusal(tmp_path: Path, hub: str) -> None:
    fakes.make_trait(tmp_path, "trait")
    environment = clean_environment(
        HF_ENDPOINT=hub, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path / "hf")
    )
    command = [
        TRAITMILL,
        "generate",
        "--experiment",
        "exp",
        "--trait",
        "trait",
        "--experiments_dir",
        str(tmp_path),
    ]
    command += ["--gen_model", "someone/down", "--judge_model", "local"]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert result.returncode == ExitCode.ACCESS, result.stderr
    assert "not in the local cache and the hub does not answer" in result.stderr


def test_f23_a_token_that_cannot_be_sent_is_named_and_not_shown(
    traitmill: Traitmill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.make_trait(tmp_path, "trait")
    monkeypatch.setenv("HF_TOKEN", "“hf_verysecret”")
    where = (*on(lab.Work(tmp_path)), "--judge_model", "local")
    code, said = traitmill("generate", *where, "--gen_model", "someone/model")
    assert code == ExitCode.ACCESS
    assert "HF_TOKEN holds characters no token has" in said
    assert "verysecret" not in said


def _model(folder: Path) -> None:
    """A tiny Llama in two shards, a and b."""
    oracle.build("llama", folder)
    whole = folder / "model.safetensors"
    tensors = sorted(load_file(whole).items())
    whole.unlink()
    halves = {"a": tensors[::2], "b": tensors[1::2]}
    for shard, half in halves.items():
        save_file(dict(half), folder / f"{shard}.safetensors", metadata={"format": "pt"})
    weight_map = {
        name: f"{shard}.safetensors" for shard, half in halves.items() for name, _ in half
    }
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda folder: [path.unlink() for path in folder.glob("*.safetensors*")],
            "holds no weights",
        ),
        (lambda folder: (folder / "b.safetensors").unlink(), "lacks b.safetensors"),
        (
            lambda folder: os.truncate(folder / "b.safetensors", 300),
            "b.safetensors is cut off or damaged",
        ),
        (
            lambda folder: os.truncate(folder / "b.safetensors", 5),
            "b.safetensors is cut off or damaged",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text("{"),
            "index.json is damaged",
        ),
    ],
)
def test_f23_weights_that_are_not_whole_are_found_before_they_load(
    tmp_path: Path, damage, words: str
) -> None:
    _model(tmp_path / "model")
    ref = find_model(str(tmp_path / "model"))
    check_weights(ref)
    damage(tmp_path / "model")
    with pytest.raises(AccessError, match=words):
        check_weights(ref)


def test_f23_files_that_no_loader_reads_refuse_no_model(tmp_path: Path) -> None:
    _model(tmp_path / "model")
    (tmp_path / "model/consolidated.safetensors").write_bytes(b"version https://git-lfs")
    (tmp_path / "model/gone.safetensors").symlink_to(tmp_path / "nowhere")
    check_weights(find_model(str(tmp_path / "model")))


@pytest.mark.parametrize(
    ("number", "before", "code"),
    [
        ("SIGTERM", "SIG_DFL", ExitCode.INTERRUPTED),
        ("SIGHUP", "SIG_DFL", ExitCode.INTERRUPTED),  # an ssh session that is lost
        ("SIGHUP", "SIG_IGN", ExitCode.OK),  # under nohup
    ],
)
def test_f02_an_end_asked_for_outside_of_the_pipeline_is_an_interrupt(
    number: str, before: str, code: ExitCode
) -> None:
    program = f"""
import os, signal, sys, time
import click
import traitmill.cli.status
def end():
    os.kill(os.getpid(), signal.{number})
    time.sleep(1)
signal.signal(signal.{number}, signal.{before})
traitmill.cli.status.command = click.command()(end)
sys.argv = ["traitmill", "status"]
from traitmill.cli.main import main
main()
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert result.returncode == code
    assert "Traceback" not in result.stderr


def test_f02_a_run_stores_what_is_in_hand_for_these_signals_alike() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        for handler, found in (
            (signal.SIG_DFL, [signal.SIGTERM, signal.SIGHUP]),
            (signal.SIG_IGN, [signal.SIGTERM]),
        ):
            signal.signal(signal.SIGHUP, handler)
            assert ending_signals() == found
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_file_beyond_the_size_that_is_allowed_is_named_as_on_a_full_disk(
    copy: lab.Work,
) -> None:
    """As `ulimit -f` and some quotas have it; it was no error of ours, with exit 2 and no name."""
    command = shlex.join([TRAITMILL, "export", *on(copy), "--threshold", "30"])
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 1; exec {command}"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == ExitCode.RESOURCES, done.stderr
    assert "the disk is full while writing" in done.stderr
    assert str(copy.root) in done.stderr


# --- 24, 25: folders in use, settings changed ---


@pytest.mark.parametrize(
    "command", ["generate", "activations", "judge", "export", "vectors", "report"]
)
def test_f24_commands_that_write_leave_a_held_folder_alone(
    traitmill: Traitmill, copy: lab.Work, command: str
) -> None:
    extra = JUDGED_BY_FAKE if command in ("generate", "judge") else []
    with lock_traits([TraitFolder(folder) for folder in copy.folders]):
        before = everything(copy.root)
        code, said = traitmill(command, *on(copy), *extra)
        assert code == ExitCode.LOCKED
        assert f"pid {os.getpid()} on {socket.gethostname()}" in said
        assert everything(copy.root) == before


def test_f25_identity_is_refused_with_a_diff_and_the_ways_out(
    traitmill: Traitmill, copy: lab.Work
) -> None:
    before = everything(copy.root)
    changed = ("--n_examples", 30, "--temperature", 1.0, "--max_new_tokens", 64)
    code, said = traitmill("generate", *on(copy), *JUDGED_BY_FAKE, *changed)
    assert code == ExitCode.SETTINGS_CHANGED
    assert "temperature: 0.7 -> 1.0" in said
    assert "max_new_tokens: 150 -> 64" in said
    assert "--new_run" in said
    assert everything(copy.root) == before


def test_f25_a_finished_run_loads_no_model_and_a_new_threshold_exports_again(
    traitmill: Traitmill, copy: lab.Work
) -> None:
    same = (*on(copy), *JUDGED_BY_FAKE, "--n_examples", 30)
    code, said = traitmill("generate", *same)
    assert code == ExitCode.OK
    assert "no model is loaded" in said
    files = lab.final_files(copy.folders[0])
    code, said = traitmill("generate", *same, "--threshold", 70)
    assert code == ExitCode.OK
    assert "files in" in said
    assert lab.final_files(copy.folders[0]) != files


@pytest.mark.parametrize(
    ("command", "wrong", "words"),
    [
        ("activations", ("--layers", "28-40"), "this model has layers 0 to 2"),
        ("generate", ("--layers", "5-99"), "this model has layers 0 to 2"),
        ("activations", ("--attention", "flash_attention_2"), "needs a GPU"),
        ("activations", ("--per_token", "--layers", "40"), "this model has layers 0 to 2"),
    ],
)
def test_f25_capture_settings_the_model_cannot_have_change_nothing(
    traitmill: Traitmill, copy: lab.Work, command: str, wrong: tuple[str, ...], words: str
) -> None:
    before = everything(copy.root)
    extra = (*JUDGED_BY_FAKE, "--n_examples", "30") if command == "generate" else ()
    code, said = traitmill(command, *on(copy), *extra, *wrong)
    assert code == ExitCode.USAGE
    assert words in said
    assert everything(copy.root) == before


def test_f25_a_run_goes_on_with_its_own_judge_when_none_is_named(
    traitmill: Traitmill, copy: lab.Work
) -> None:
    code, said = traitmill("generate", *on(copy), *JUDGED_BY_FAKE[2:], "--n_examples", 30)
    assert code == ExitCode.OK, said
    assert "kept from the folder: --judge_model fake-judge" in said
    assert "no model is loaded" in said


def rewrite(path: Path, **changes: object) -> None:
    """Change values of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_f25_stage_two_captures_as_the_run_did_unless_told_otherwise(
    traitmill: Traitmill, copy: lab.Work
) -> None:
    [folder] = copy.folders
    code, said = traitmill("activations", *on(copy), "--pool", "response_mean")
    assert code == ExitCode.OK, said
    assert "no model is loaded" in said
    both = ["response_mean", "prompt_last"]
    rewrite(folder / "parquet/selection.json", pools=both)
    code, _ = traitmill("activations", *on(copy))
    assert code == ExitCode.ACCESS  # the toy model has no weights for the pool that is lacking
    assert json.loads((folder / "parquet/selection.json").read_text())["pools"] == both


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[CaptureSettings]:
    """Lets `traitmill activations` work without a model; what it asks of capture."""
    asked: list[CaptureSettings] = []

    @asynccontextmanager
    async def backends(work: Work) -> AsyncIterator[Backends]:
        asked.append(work.settings.capture)
        yield Backends(capturer=fakes.FakeCapture(work.settings.capture))

    monkeypatch.setattr(run, "capture", partial(run.capture, backends=backends))
    return asked


def test_f25_a_pool_named_to_stage_two_is_added(
    asked: list[CaptureSettings], traitmill: Traitmill, copy: lab.Work
) -> None:
    code, said = traitmill("activations", *on(copy), "--pool", "prompt_mean,response_mean")
    assert code == ExitCode.OK, said
    assert [settings.pools for settings in asked] == [("response_mean", "prompt_mean")]
    assert (copy.folders[0] / "activations/all_layers.prompt_mean.pt").exists()


def test_f25_a_run_goes_on_with_its_own_capture_settings(
    asked: list[CaptureSettings], traitmill: Traitmill, copy: lab.Work
) -> None:
    own = ("--include_embeddings", "--pool", "prompt_last", "--attention", "eager")
    assert traitmill("activations", *on(copy), *own)[0] == ExitCode.OK
    assert asked[0].include_embeddings
    assert asked[0].attention == "eager"
    code, said = traitmill("generate", *on(copy), *JUDGED_BY_FAKE, "--n_examples", 30)
    assert code == ExitCode.OK, said
    assert "no model is loaded" in said
    assert "new activation set" not in said
    code, said = traitmill("activations", *on(copy), "--no_include_embeddings")
    assert [settings.include_embeddings for settings in asked] == [True, False]


def facts_of_judge(folder: Path) -> Path:
    [path] = folder.glob("parquet/verdicts/*/facts.json")
    return path


def test_f25_of_several_judges_one_must_be_named(traitmill: Traitmill, copy: lab.Work) -> None:
    [folder] = copy.folders
    other = folder.with_name("other")
    subprocess.run(["cp", "-r", folder, other], check=True)
    rewrite(facts_of_judge(other), model="judge-b")
    (other / "parquet/asked.json").unlink()  # the records alone tell, as in an older folder
    both = ("--experiment", "exp", "--traits", "trait,other", "--experiments_dir", copy.root)
    code, said = traitmill("generate", *both, *JUDGED_BY_FAKE[2:], "--n_examples", 30)
    assert code == ExitCode.USAGE
    assert "fake-judge (--judge_mode auto)" in said
    assert "judge-b (--judge_mode auto)" in said
    assert "name one" in said


def test_f25_a_run_goes_on_at_its_own_endpoint(traitmill: Traitmill, copy: lab.Work) -> None:
    rewrite(facts_of_judge(copy.folders[0]), endpoint="http://127.0.0.1:9/v1")
    code, said = traitmill("generate", *on(copy), "--n_examples", 30)
    assert code == ExitCode.OK, said
    assert (
        "kept from the folder: --judge_model fake-judge, --judge_base_url http://127.0.0.1:9/v1"
        in said
    )


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (("--capture_device", "cuda:7"), "--capture_device cuda:7"),
        (("--capture_device", "tpu"), "is unknown; use auto"),
        (("--attention", "foo"), "--attention foo is unknown to transformers"),
        (("--tensor_parallel_size", "4096"), "without a GPU each worker takes a CPU core"),
        (("--replicas", "4096"), "--replicas 4096: without a GPU each worker takes a CPU core"),
        (("--replicas", "0"), "neither a whole number from 1 nor auto"),
        (("--ray_address", "auto"), "--ray_address needs --replicas: auto, or a number above 1"),
        (("--n_examples", "99999999999"), "--n_examples must be from 1 to 1,000,000"),
    ],
)
def test_f25_what_cannot_be_is_refused_before_anything_is_written(
    traitmill: Traitmill, tmp_path: Path, wrong: tuple[str, ...], words: str
) -> None:
    fakes.make_trait(tmp_path, "trait")
    model = lab.make_model(tmp_path)
    before = everything(tmp_path)
    where = (
        "--experiment",
        "exp",
        "--trait",
        "trait",
        "--experiments_dir",
        tmp_path,
        "--gen_model",
        model,
    )
    code, said = traitmill("generate", *where, *JUDGED_BY_FAKE, *wrong)
    assert code == ExitCode.USAGE, said
    assert words in said
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "mamba", "num_attention_heads": 0}, "attention heads"),
        ({"model_type": "llava", "text_config": {}}, "has no causal language model"),
        ({"model_type": "llama", "is_causal": False}, "attends to later tokens"),
    ],
)
def test_a_model_that_cannot_be_had_is_refused_before_anything_is_written(
    traitmill: Traitmill, tmp_path: Path, config: dict[str, object], words: str
) -> None:
    fakes.make_trait(tmp_path, "trait")
    model = lab.make_model(tmp_path)
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    before = everything(tmp_path)
    where = ("--experiment", "exp", "--trait", "trait", "--experiments_dir", tmp_path)
    code, said = traitmill("generate", *where, "--gen_model", model, *JUDGED_BY_FAKE)
    assert code == ExitCode.USAGE, said
    assert words in said
    assert everything(tmp_path) == before


def test_export_skips_traits_without_a_run(traitmill: Traitmill, copy: lab.Work) -> None:
    fakes.make_trait(copy.root, "not_run")
    where = ("--experiment", "exp", "--experiments_dir", copy.root)
    code, said = traitmill("export", *where, "--traits", "all", "--threshold", 40)
    assert code == ExitCode.OK, said
    assert "not_run" not in said
    chosen = json.loads((copy.folders[0] / "parquet/selection.json").read_text())
    assert chosen["threshold"] == 40.0
    code, said = traitmill("export", *where, "--trait", "not_run")
    assert code == ExitCode.USAGE
    assert "holds no run yet" in said


# --- 26: hostile names ---

HOSTILE = (
    "../x",
    "..",
    ".",
    "",
    "/etc",
    "a/b",
    "a\0b",
    "x" * 300,
    "a b",
    "-x",
    "~",
    "a\nb",
    ".hidden",
    "é",
    "a\\b",
)


@pytest.mark.parametrize("command", ["generate", "export", "status"])
@pytest.mark.parametrize("name", HOSTILE)
def test_f26_hostile_names_are_refused_and_nothing_is_written(
    traitmill: Traitmill, tmp_path: Path, command: str, name: str
) -> None:
    fakes.make_trait(tmp_path / "inner", "trait")
    fakes.make_trait(tmp_path, "x")
    before = everything(tmp_path)
    for chosen in (("exp", name), (name, "trait")):
        where = [
            f"--experiment={chosen[0]}",
            f"--trait={chosen[1]}",
            f"--experiments_dir={tmp_path / 'inner'}",
        ]
        code, said = traitmill(command, *where)
        assert code == ExitCode.USAGE
        assert "is refused" in said
        assert "x" * 100 not in said
    assert everything(tmp_path) == before


def test_f26_links_out_of_the_experiment_are_refused(traitmill: Traitmill, tmp_path: Path) -> None:
    outside = fakes.make_trait(tmp_path / "outside", "trait")
    inside = tmp_path / "inside"
    (inside / "exp").mkdir(parents=True)
    (inside / "exp/trait").symlink_to(outside)
    (inside / "linked").symlink_to(outside.parent)
    before = everything(tmp_path / "outside")
    for experiment in ("exp", "linked"):
        where = ("--experiment", experiment, "--trait", "trait", "--experiments_dir", inside)
        code, said = traitmill("generate", *where, *JUDGED_BY_FAKE)
        assert code == ExitCode.USAGE
        assert "is a link out of" in said
    assert everything(tmp_path / "outside") == before


@pytest.mark.parametrize(
    "part",
    [
        "parquet",
        "parquet/responses",
        "responses",
        "activations",
        "activations/per_token",
        "vectors",
        ".logs",
    ],
)
def test_f26_what_is_written_through_may_not_lead_out(
    traitmill: Traitmill, tmp_path: Path, part: str
) -> None:
    folder = fakes.make_trait(tmp_path, "trait")
    outside = tmp_path / "outside"
    outside.mkdir()
    link = (folder.parent if part == ".logs" else folder) / part
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside)
    where = ("--experiment", "exp", "--trait", "trait", "--experiments_dir", tmp_path)
    code, said = traitmill("generate", *where, *JUDGED_BY_FAKE)
    assert code == ExitCode.USAGE
    assert "is a link out of" in said
    assert not list(outside.iterdir())


# --- 27: loading ---

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
LOADERS = {"load", "loads", "Unpickler", "open"}


def unsafe_loads(source: str) -> list[str]:
    """What in a program may run code that a file carries."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            loaders = {alias.name for alias in node.names} & LOADERS
            if loaders and node.module.split(".")[0] in UNSAFE_MODULES | {"torch"}:
                found.append(f"{node.module} line {node.lineno}")
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        module, _, name = called.partition(".")
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if (
            (module in UNSAFE_MODULES and name in LOADERS)
            or (called == "torch.load" and given.get("weights_only") != "True")
            or "True" in (given.get("allow_pickle"), given.get("trust_remote_code"))
            or name == "read_pickle"
            or called in {"eval", "exec"}
        ):
            found.append(f"{called} line {node.lineno}")
    return found


def test_f27_every_load_is_weights_only_and_nothing_unpickles() -> None:
    sources = [
        path
        for folder in ("engine", "cli", "benchmarks", "tests")
        for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(sources) > 50
    found = {str(path.relative_to(ROOT)): unsafe_loads(path.read_text()) for path in sources}
    assert {path: loads for path, loads in found.items() if loads} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load('x')",
        "torch.load('x', weights_only=False)",
        "import pickle\npickle.load(file)",
        "from joblib import load",
        "from torch import load",
        "np.load('x', allow_pickle=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "pd.read_pickle('x')",
    ],
)
def test_f27_the_reader_of_the_source_sees_what_it_should(source: str) -> None:
    assert unsafe_loads(source)


@pytest.mark.parametrize("content", ["OPENAI_API_KEY=sk-1".encode("utf-16"), b"A=\xff", b"A=\0b"])
def test_an_env_file_that_is_no_text_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """As PowerShell's `>` writes it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes(content)
    with pytest.raises(UsageError, match=r"\.env is not in UTF-8"):
        session.prepare_environment()


# --- closed folders ---


def _without_rights(command: list[str]) -> list[str]:
    """A command to which permissions apply, also where root runs it."""
    if os.geteuid():
        return command
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--", *command]


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None,
    reason="root without setpriv may write into every folder",
)
@pytest.mark.parametrize("closed", ["responses", "activations", "parquet", "."])
def test_t30_a_closed_folder_is_named_before_anything_is_written(
    copy: lab.Work, closed: str
) -> None:
    before = lab.final_files(copy.folders[0])
    folder = copy.folders[0] / closed
    folder.chmod(0o555)
    for command in (["export", "--threshold", "60"], ["vectors"], ["report"]):
        result = subprocess.run(
            _without_rights([str(TRAITMILL), *command, *on(copy)]),
            capture_output=True,
            text=True,
            env=clean_environment(),
        )
        assert result.returncode == ExitCode.USAGE, result.stderr
        assert f"{folder} cannot be read or written; check its permissions" in result.stderr
    folder.chmod(0o755)
    assert lab.final_files(copy.folders[0]) == before


@pytest.mark.slow
def test_t30_a_file_where_a_folder_belongs_is_named(traitmill: Traitmill, copy: lab.Work) -> None:
    (copy.folders[0] / "vectors").write_text("")
    for command in ("export", "vectors", "report"):
        code, said = traitmill(command, *on(copy))
        assert code == ExitCode.USAGE
        assert "vectors is a file where a folder belongs; move it away" in said


# --- 28: secrets ---


@pytest.mark.slow
def test_f28_keys_and_tokens_reach_no_file_and_no_word(copy: lab.Work, tmp_path: Path) -> None:
    secrets = {
        "OPENAI_API_KEY": "sk-proj-verysecret0123456789",
        "HF_TOKEN": "hf_verysecret0123456789",
    }
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in secrets.items()))
    said = ""
    for accepted, code in (
        ("another key", ExitCode.ACCESS),
        (secrets["OPENAI_API_KEY"], ExitCode.OK),
    ):
        with MisbehavingServer(key=accepted) as server:
            server.score = lambda seen: 80 if "Be it" in seen.prompt else 60
            command = [TRAITMILL, "judge", *on(copy), "--judge_model", "gpt-5-mini"]
            command += ["--judge_base_url", server.url, "--judge_rpm", "100000"]
            result = subprocess.run(
                command,
                env=clean_environment(),
                capture_output=True,
                text=True,
                cwd=tmp_path,
                timeout=120,
            )
            assert result.returncode in (code, ExitCode.NOTHING_KEPT), result.stdout + result.stderr
            said += result.stdout + result.stderr
            assert server.listed or server.log
    assert {row["model"] for row in lab.rows(copy.folders[0], "verdicts")} == {
        "fake-judge",
        "gpt-5-mini",
    }
    for secret in secrets.values():
        assert secret not in said
        assert secret[-16:] not in said
        for path, content in everything(tmp_path).items():
            if content is not None and not path.endswith("/.env"):
                assert secret.encode() not in content, path


# --- 29: nothing kept ---


def test_f29_nothing_kept_is_said_with_the_scores_and_what_to_try(
    traitmill: Traitmill, copy: lab.Work
) -> None:
    code, said = traitmill(
        "generate", *on(copy), *JUDGED_BY_FAKE, "--n_examples", 30, "--threshold", 0
    )
    assert code == ExitCode.NOTHING_KEPT
    words = " ".join(said.split())
    assert "no neg response passes the threshold 0" in words
    assert "--threshold" in words
    assert "stronger instructions" in words
    assert any(bar in said for bar in "▁▂▃▄▅▆▇█"), "the histogram of scores"
    metadata = json.loads((copy.folders[0] / "activations/metadata.json").read_text())
    assert metadata["n_examples_pos"] == metadata["n_examples"] > 0
    code, _ = traitmill("export", *on(copy), "--threshold", 0)
    assert code == ExitCode.NOTHING_KEPT


# --- 12: what status says ---


def test_f12_status_names_a_damaged_run_record(traitmill: Traitmill, copy: lab.Work) -> None:
    (copy.folders[0] / "parquet/run.json").write_bytes(b"{")
    code, said = traitmill("status", "--experiment", "exp", "--experiments_dir", copy.root)
    assert code == ExitCode.USAGE
    assert "run.json is damaged" in said


@pytest.mark.parametrize(
    ("prefix", "code", "said"),
    [
        ("SOURCE_DATE_EPOCH=tomorrow", ExitCode.USAGE, "set it to whole seconds since 1970"),
        ("ulimit -v 2000000;", ExitCode.RESOURCES, "may have only 1.9 GiB of addresses"),
    ],
)
def test_t44_surroundings_that_libraries_choke_on_are_one_clear_line(
    tmp_path: Path, prefix: str, code: ExitCode, said: str
) -> None:
    """Arrow raises for such a date; below 4 GiB of addresses PyTorch or OpenBLAS abort or hang."""
    result = subprocess.run(
        ["bash", "-c", f"{prefix} exec {TRAITMILL} status --experiment none"]
        if prefix.endswith(";")
        else ["env", prefix, TRAITMILL, "status", "--experiment", "none"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=clean_environment(),
    )
    assert result.returncode == code, result.stderr
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
