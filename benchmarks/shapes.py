"""Models whose weights are not at hand: a config with random weights runs at the same speed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.plans import MODELS, config
from traitmill.engine.generation import VllmEngine
from traitmill.engine.models import ModelRef, Shape, find_model
from traitmill.engine.models.machine import free_host_memory

if TYPE_CHECKING:
    from vllm import AsyncEngineArgs

SHAPES = MODELS
"""Names in benchmarks/configs/, the models' published sizes."""


class ForcedEngine(VllmEngine):
    """Every response runs to its limit: the end tokens of random weights mean nothing."""

    async def _run(self, prompt_token_ids: Any, parameters: Any, **more: Any) -> Any:
        parameters.ignore_eos = True
        return await super()._run(prompt_token_ids, parameters, **more)


class DummyEngine(ForcedEngine):
    """vLLM's own random weights, with no file to load."""

    def _arguments(self) -> AsyncEngineArgs:
        arguments = super()._arguments()
        arguments.load_format = "dummy"
        return arguments


def gpu_memory() -> int:
    """Bytes of the first GPU, 0 where there is none."""
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else 0


def check_fits(name: str, gpu_bytes: int) -> None:
    """Raise SystemExit where a shape's weights do not fit: `gpu_bytes` of GPU memory, 0 where there
    is no GPU."""
    need = Shape.from_config(config(name)).weight_bytes(2)
    have = gpu_bytes or free_host_memory()
    if 1.2 * need > have:
        where = "GPU memory" if gpu_bytes else "memory (and no GPU)"
        raise SystemExit(
            f"{name} needs {need >> 30} GiB for its weights; here is {have >> 30} GiB of {where}"
        )


@contextmanager
def dummy_model(name: str, *, weights: bool = False) -> Iterator[ModelRef]:
    """A model folder with a shape's config and the embedded model's tokenizer (its ids are in
    range).

    Without `weights` vLLM alone can make up a model of it; with them random ones are written, which
    capture reads too.
    """
    from traitmill.engine.models.demo import embedded_folder

    with TemporaryDirectory() as temp:
        folder = Path(temp) / name
        folder.mkdir()
        ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
        (folder / "config.json").write_text(json.dumps({**config(name), **ids}))
        if weights:
            _write_weights(folder)
        for path in embedded_folder().iterdir():
            if "token" in path.name or path.suffix == ".jinja":
                (folder / path.name).symlink_to(path)
        yield find_model(str(folder))


def _write_weights(folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder), dtype=torch.bfloat16
        )
    model.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()
