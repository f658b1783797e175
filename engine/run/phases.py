"""What libraries are doing while models are loaded, read from what they write to a run's log."""

from __future__ import annotations

import re
from pathlib import Path

from .log import tail

_PHASES = (
    (r"([^\s/]+\.(?:safetensors|bin)): +(\d+)%\|", "downloading {0}, {1} %"),
    (r"Fetching \d+ files: +\d+%.*\| (\d+)/(\d+)", "downloading, {0} of {1} files"),
    (r"Loading weights: +100%", "the capture model is there; vLLM starts"),
    (r"Loading weights: +(\d+)%", "weights of the capture model, {0} %"),
    (r"Resolved architecture: (\w+)", "vLLM has read the config ({0})"),
    (r"Initializing a V1 LLM engine", "vLLM's engine process is up"),
    (r"Starting to load model", "vLLM loads the weights"),
    (
        r"Loading safetensors checkpoint shards: +\d+% Completed \| (\d+)/(\d+)",
        "vLLM loads the weights, {0} of {1} files",
    ),
    (r"Loading weights took", "vLLM has the weights, and sizes its cache"),
    (r"[Dd]ynamo bytecode transform|Compiling a graph", "vLLM compiles the model"),
    (r"KV cache size", "vLLM warms up"),
    (r"Capturing CUDA graphs?.*?(\d+)/(\d+)", "vLLM captures CUDA graphs, {0} of {1}"),
    (r"init engine .* took", "vLLM is ready"),
)
"""As the libraries say it, and as we do."""


def loading_phase(log: Path) -> str:
    """Return the last that a log says of models being loaded, in a few words; empty for nothing."""
    for line in reversed(re.split(r"[\r\n]+", tail(log))):
        if line.startswith("traitmill: "):
            continue
        for pattern, said in _PHASES:
            if found := re.search(pattern, line):
                return said.format(*found.groups())
    return ""
