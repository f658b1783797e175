"""What several test files share: the real small model, and processes that are gone when a test
ends."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.device import serve_arguments
from traitmill.cli.main import main
from traitmill.engine.generation import on_gpu
from traitmill.engine.threads import wait_briefly

LONGEST = ("real", "generation", "replicas", "faults")
Traitmill = Callable[..., tuple[int, str]]
ROOT = Path(__file__).resolve().parents[1]
TRAITMILL = str(Path(sys.executable).with_name("traitmill"))


def pytest_configure() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    wait_briefly()  # as the command does: two test processes share the cores
    # Names of models that tests make up are not looked for: each would be asked for with patience.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # As in an activated environment: what is said to be run is `traitmill`.
    os.environ["PATH"] = f"{Path(TRAITMILL).parent}{os.pathsep}{os.environ['PATH']}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the tests that need a card to machines that have one; begin with the longest files.

    A worker that comes to a file of real engines last would keep the others waiting.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: not set(LONGEST) & set(item.path.parts))
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if wanting and not on_gpu():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU is visible to PyTorch"))


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The embedded SmolLM2-135M-Instruct as a local folder."""
    from traitmill.engine.models.demo import embedded_folder

    return embedded_folder()


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """For models that are a name alone: offline, vLLM looks for their files."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def vllm_server(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of a real `vllm serve` of the small model, served under the name `judge`."""
    port = free_port()
    log = tmp_path_factory.mktemp("serve") / "log"
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    # `vllm serve` by its module: the command's own front end does not start in the CPU
    # distribution, which is named vllm-cpu, since it looks for the metadata of one named vllm.
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(model_folder),
    ]
    command += ["--served-model-name", "judge"]
    command += [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--enforce-eager",
        "--max-model-len",
        "2048",
    ]
    command += ["--max-num-seqs", "32"]
    command += serve_arguments(gpu=on_gpu())
    with log.open("wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        for _ in range(600):
            assert server.poll() is None, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail(f"vllm serve did not come up:\n{log.read_text()[-3000:]}")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        alive = server.poll() is None
        family = psutil.Process(server.pid).children(recursive=True) if alive else []
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
        for process in psutil.wait_procs(family, timeout=10)[1]:
            process.kill()


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment without keys or endpoints of whoever runs the tests.

    Nor with the libraries that vLLM, once it ran in this process, has every later one load first.
    """
    hidden = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HF_TOKEN", "LD_PRELOAD")
    return (
        {name: value for name, value in os.environ.items() if name not in hidden}
        | {"HF_HUB_OFFLINE": "1"}
        | extra
    )


@pytest.fixture
def traitmill(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Traitmill:
    """The command line, in this process and a folder of its own: arguments in, exit code and
    everything said out."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["traitmill", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        said = capfd.readouterr()
        return int(left.value.code or 0), said.out + said.err

    return call
