"""What a run's log says of models being loaded, from lines that libraries wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from traitmill.engine.run import loading_phase

WRITTEN = """\
traitmill: 01:28:25 loading embedded/SmolLM2-135M-Instruct: 128 sequences of up to 256 tokens
Triton is installed, but doesn't include CPU backend. Disabling Triton.
"""
SAID = [
    ("", ""),
    (
        "model.safetensors:  35%|███▌      | 94.4M/269M [00:01<00:02, 78MB/s]",
        "downloading model.safetensors, 35 %",
    ),
    (
        "Fetching 4 files:  25%|██▌       | 1/4 [00:09<00:27,  9.1s/it]",
        "downloading, 1 of 4 files",
    ),
    (
        "\rLoading weights:  94%|█████████▍| 255/272 [00:03<00:00, 55.71it/s]",
        "weights of the capture model, 94 %",
    ),
    (
        "Loading weights:  94%|███▍| 255/272 [00:03<00:00]Loading weights: 100%|████| 272/272 [00:03<00:00]",
        "the capture model is there; vLLM starts",
    ),
    (
        "(MainProcess pid=1) INFO 11-27 01:30:25 [model.py:733] Resolved architecture: LlamaForCausalLM",
        "vLLM has read the config (LlamaForCausalLM)",
    ),
    (
        "(EngineCore pid=2) INFO 11-27 01:31:33 [core.py:133] Initializing a V1 LLM engine (v0.32.0)",
        "vLLM's engine process is up",
    ),
    (
        "(EngineCore pid=2) INFO 11-27 01:31:39 [cpu_model_runner.py:68] Starting to load model /m...",
        "vLLM loads the weights",
    ),
    (
        "Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:02<00:02,  2.68s/it]",
        "vLLM loads the weights, 1 of 2 files",
    ),
    (
        "(EngineCore pid=2) INFO [default_loader.py:501] Loading weights took 2.70 seconds",
        "vLLM has the weights, and sizes its cache",
    ),
    ("(EngineCore pid=2) INFO [x.py:1] CPU KV cache size: 36,864 tokens", "vLLM warms up"),
    (
        "Capturing CUDA graphs (decode, FULL):  40%|████      | 2/5 [00:01<00:01]",
        "vLLM captures CUDA graphs, 2 of 5",
    ),
    ("(EngineCore) INFO init engine (profile, create kv cache) took 5.55 s", "vLLM is ready"),
]


@pytest.mark.parametrize(("line", "said"), SAID)
def test_the_last_line_that_is_known_is_the_phase(tmp_path: Path, line: str, said: str) -> None:
    log = tmp_path / "log"
    later = "\nWARNING something else\ntraitmill: 01:29:00 loading, 9 s: vLLM loads the weights\n"
    log.write_text(f"{WRITTEN}{line}{later}")
    assert loading_phase(log) == said


def test_a_log_that_is_not_there_yet_is_no_error(tmp_path: Path) -> None:
    assert loading_phase(tmp_path / "none") == ""
