"""Whether a LoRA adapter is there, and fits its base model and both engines. Loads no weights."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import AccessError, UsageError
from .config import loading_class, read_config
from .fingerprint import fingerprint
from .hub import RANKS, Adapter, ModelRef, fetch_files

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_SUFFIXES = (".lora_A.weight", ".lora_B.weight")
_UNUSUAL: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "alora_invocation_tokens": (None, []),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "fan_in_fan_out": (False, None),
}
"""Options of peft that one of the engines lacks, with the values that leave them unused."""
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base's weights as they are."""


def find_adapter(name: str, revision: str | None = None) -> Adapter:
    """Find an adapter in a local folder, or on the hub (cached or online).

    `revision` is the commit that is wanted of a hub repository, None the newest. Raise AccessError.
    """
    path, source = os.path.expanduser(name), name  # noqa: PTH111 - raises for no name
    if os.path.isdir(path):  # noqa: PTH112
        folder = Path(path).resolve()
        name, source, revision = folder.name, str(folder), fingerprint(folder)
    else:
        folder = fetch_files(name, (CONFIG, WEIGHTS), revision, "adapter")
        revision = folder.name
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise AccessError(
                f"`adapter` {name} has no {file}; give a folder that peft's save_pretrained wrote"
            )
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise AccessError(f"{CONFIG} of `adapter` {name} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise AccessError(f"{CONFIG} of `adapter` {name} is not a JSON object")
    return Adapter(name, str(folder), source, revision, config, _shapes(folder / WEIGHTS))


def adapter_here(adapter: Adapter) -> Adapter:
    """Return an adapter that another machine found, as this one has it.

    A hub's is fetched into this machine's own cache. Raise UsageError where a local folder is not
    here or has other files, AccessError as `find_adapter` does.
    """
    folder = Path(adapter.folder)
    if adapter.source != adapter.folder:
        return adapter if folder.is_dir() else find_adapter(adapter.source, adapter.revision)
    if not folder.is_dir() or fingerprint(folder) != adapter.revision:
        fault = "has other files" if folder.is_dir() else "is not there"
        raise UsageError(
            f"`adapter` {folder} {fault} on {socket.gethostname()}; copy it there under the same "
            "path, or name one of the hub"
        )
    return adapter


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            names = file.keys()
            found = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise AccessError(f"{path} is cut off or damaged ({error}); copy it again") from None
    if not found:
        raise AccessError(f"{path} holds no weights; copy it again")
    return found


def check_adapter(ref: ModelRef) -> None:
    """Raise UsageError for an adapter that is not its model's, or that an engine cannot use.

    The model is built without storage.
    """
    if ref.adapter is None:
        return
    said = f"`adapter` {ref.adapter.name}"
    _check_kind(said, ref.adapter.config)
    if ref.adapter.rank > RANKS[-1]:
        raise UsageError(f"{said} has rank {ref.adapter.rank}, above vLLM's {RANKS[-1]}")
    _check_base(said, ref)
    _check_shapes(said, ref)


def _check_kind(said: str, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise UsageError(f"{said} is of kind {config.get('peft_type')}; only LORA can be used")
    rank = config.get("r")
    if not isinstance(rank, int) or rank < 1:
        raise UsageError(f"{said} has no rank: r is {rank!r} in {CONFIG}")
    odd = [name for name, plain in _UNUSUAL.items() if config.get(name) not in plain]
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        odd.append("init_lora_weights")
    if odd:
        raise UsageError(
            f"{said} uses {', '.join(odd)} ({CONFIG}), which vLLM does not compute as peft does; "
            "merge it into its base with peft's merge_and_unload, and name the result with "
            "`gen_model`"
        )


_PACKED = re.compile(r"^meta-(?=llama)|(-unsloth)?-(bnb-)?[48]bit$|-(gptq|awq|fp8)(-.*)?$")
"""In a name: what the hub's older one began with, and how the weights were packed for training."""


def same_model(one: str, other: str) -> bool:
    """Return whether two hub names are of one model, whoever offers it and however packed."""
    bare = [_PACKED.sub("", name.rpartition("/")[2].lower()) for name in (one, other)]
    return bare[0] == bare[1]


def _check_base(said: str, ref: ModelRef) -> None:
    """Compare hub names only: a folder's name says nothing of what is in it."""
    base = str((ref.adapter and ref.adapter.config.get("base_model_name_or_path")) or "")
    if any(name.count("/") != 1 or name.startswith((".", "/", "~")) for name in (base, ref.name)):
        return
    if not same_model(base, ref.name):
        raise UsageError(
            f"{said} was made for {base}, not for {ref.name}; give its base with `gen_model`"
        )


def _check_shapes(said: str, ref: ModelRef) -> None:
    assert ref.adapter is not None  # noqa: S101 - its caller has looked
    linear, shapes = _linear_shapes(ref), ref.adapter.shapes
    for key, shape in sorted(shapes.items()):
        module = key.removeprefix(_PREFIX)
        ending = next((end for end in _SUFFIXES if module.endswith(end)), None)
        module = module.removesuffix(ending or "")
        if ending is None or module not in linear:
            raise UsageError(
                f"{said} changes {module}, which is no linear part of a block of {ref.name}; take "
                "another `gen_model`, or merge it into its base with peft's merge_and_unload"
            )
        out_features, in_features = linear[module]
        mine, wanted = (1, in_features) if ending == _SUFFIXES[0] else (0, out_features)
        if len(shape) != 2 or shape[mine] != wanted:
            raise UsageError(
                f"{said} is for another model than {ref.name}: {module} takes "
                f"{in_features} to {out_features}, and {key.rpartition('lora_')[2]} is "
                f"{'x'.join(map(str, shape))}; give its base with `gen_model`"
            )
        if shape[1 - mine] > ref.adapter.rank:
            raise UsageError(
                f"{said} says rank {ref.adapter.rank} in {CONFIG}, and its weights for {module} "
                f"have {shape[1 - mine]}; copy its files again, together"
            )


def _linear_shapes(ref: ModelRef) -> dict[str, tuple[int, int]]:
    """Return (out, in) of each linear module in the decoder's blocks, by name.

    Raise UsageError where transformers has no such causal model.
    """
    import torch

    config = read_config(ref.config)
    found = loading_class(config)
    if found is None:
        raise UsageError(
            f"`adapter` cannot be used with {ref.name}: it is not a causal language model alone"
        )
    with torch.device("meta"):
        model = found[0].from_config(config)
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and any(part.isdigit() for part in name.split("."))
    }
