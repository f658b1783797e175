"""Whether a model's weights are all there, whole, and of the shapes its config says.

Both engines make up what a checkpoint lacks, and so agree with each other: nothing later would
tell. Headers are read, no weight is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from ..errors import AccessError
from .config import loading_class, read_config
from .hub import ModelRef
from .quiet import quiet_libraries
from .support import quantised

_NAMED = 3
_UNLOADABLE: tuple[type[Exception], ...] = (OSError, ValueError, LookupError, ImportError)
_UNLOADABLE += (RuntimeError, AttributeError, TypeError, UnpicklingError)
_WHOLE_NUMBERS = {"I8", "U8", "I16", "I32", "I64"}
_EXPERT = re.compile(r"(.*\.experts\.)(\d+)(\..*)")
_HARMLESS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "lm_head.weight")
"""Ends of what older versions saved: computed buffers, and a head tied to the embedding."""


def check_weights(ref: ModelRef, look: Callable[[Any], None] = lambda _: None) -> None:
    """Raise AccessError for weights that are missing, cut off, or not those of the config.

    A hub model that is not in the cache is fetched, and checked, by what loads it. What is left of
    the model without its weights, on the meta device, is shown to `look`.
    """
    quantisation = quantised(ref.config)
    if ref.is_local:
        _check_files(Path(ref.source), quantisation)
    if quantisation:  # its tensors have names of their own
        return
    loaded = _loaded(ref)
    if loaded is not None:
        refuse_faulty(ref.name, read_config(ref.config), *loaded)
        look(loaded[0])


def refuse_faulty(name: str, config: Any, model: Any, info: Mapping[str, Any]) -> None:
    """Raise AccessError where transformers' loading info tells that weights are not the model's.

    `config` is the folder's, which may be of more than the model.
    Source: `output_loading_info` of transformers' `from_pretrained`.
    """
    faults = {
        "lack": sorted(info["missing_keys"]),
        "have, against config.json,": sorted(
            f"{key} of shape {'x'.join(map(str, found))} for {'x'.join(map(str, wanted))}"
            for key, found, wanted in info["mismatched_keys"]
        ),
        "hold, for no part of this model,": sorted(
            key
            for key in info["unexpected_keys"]
            if not key.endswith(_HARMLESS) and not _is_beside(key, config, model)
        ),
    }
    for fault, found in faults.items():
        _refuse(fault, found, name)


def _is_beside(key: str, config: Any, model: Any) -> bool:
    """Return whether a weight belongs to what a model of text alone leaves out of a folder of more:
    in Llama-4 what sees pictures."""
    text_alone = isinstance(model.config, type(config.get_text_config()))
    if not text_alone or isinstance(model.config, type(config)):
        return False
    parts = {*dict(model.named_children()), model.base_model_prefix}
    return key.partition(".")[0] not in parts


def _refuse(fault: str, found: Sequence[str], name: str) -> None:
    if not found:
        return
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    raise AccessError(
        f"the weights of model {name} {fault} {', '.join(found[:_NAMED])}{more}; copy the model "
        "again, weights and config.json together"
    )


def _loaded(ref: ModelRef) -> tuple[Any, dict[str, Any]] | None:
    """Load the model without storage; return it, and what was missing, too much or of another
    shape.

    None where transformers has no such model, or the hub's is not in the cache. Raise AccessError.
    """
    found = loading_class(read_config(ref.config))
    if found is None:
        return None
    try:
        with quiet_libraries():
            model, info = found[0].from_pretrained(
                ref.source,
                revision=ref.hub_revision,
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                local_files_only=True,
                trust_remote_code=False,
            )
    except _UNLOADABLE as error:
        if not ref.is_local:
            return None
        said = f"the weights of model {ref.name} cannot be loaded: {_reason(error)}"
        raise AccessError(said) from None
    return model, dict(info)


def _reason(error: Exception) -> str:
    if isinstance(error, UnpicklingError):
        return (
            "pytorch_model*.bin holds more than tensors, and code from a model's folder is never "
            "run here; take a copy in safetensors"
        )
    reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    if isinstance(error, KeyError):
        return f"config.json names {reason}, which transformers does not know"
    return reason


def _check_files(folder: Path, quantisation: str) -> None:
    from safetensors import SafetensorError, safe_open

    if (folder / "adapter_config.json").exists():
        raise AccessError(
            f"model folder {folder} holds a LoRA adapter (adapter_config.json), which the two "
            "engines would treat differently; move it into a folder of its own, and name that with "
            "`adapter`"
        )
    names: set[str] = set()
    for path in _files(folder):
        try:
            with safe_open(path, "np") as file:  # looks at the header and at the file's length
                names.update(file.keys())
                if not quantisation:
                    _refuse("hold whole numbers in", _quantised_in(file), folder.name)
        except (SafetensorError, OSError) as error:
            raise AccessError(f"{path} is cut off or damaged ({error}); copy it again") from None
    _refuse("lack", _missing_experts(names), folder.name)


def _quantised_in(file: Any) -> list[str]:
    """Return the matrices of whole numbers in a safetensors file: loaders take them as they are."""
    slices = ((name, file.get_slice(name)) for name in file.keys())  # noqa: SIM118
    return [
        name
        for name, found in slices
        if found.get_dtype() in _WHOLE_NUMBERS and name.endswith(".weight")
    ]


def _missing_experts(names: Iterable[str]) -> list[str]:
    """Return the tensors that some experts of a layer have and others have not.

    transformers stacks experts, and does not say which one was not there.
    """
    found = [match for match in map(_EXPERT.fullmatch, names) if match]
    there = {match[0] for match in found}
    count = 1 + max((int(match[2]) for match in found), default=0)
    parts = {(match[1], match[3]) for match in found}
    wanted = {f"{layer}{index}{part}" for layer, part in parts for index in range(count)}
    return sorted(wanted - there)


def _files(folder: Path) -> list[Path]:
    """Return the safetensors files that both engines read."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    named = sorted(folder.glob("*.safetensors"))
    found = [path for path in named if path.is_file()]
    if not found and not any(folder.glob("pytorch_model*.bin")):
        raise AccessError(
            f"model folder {folder} holds no weights (*.safetensors); copy them there"
        )
    if single.is_file():
        _refuse_second(folder, single, index, named)
        return [single]
    if not index.exists():
        return found
    listed = _listed(index)
    missing = sorted(name for name in listed if not (folder / name).is_file())
    if missing:
        raise AccessError(f"model folder {folder} lacks {', '.join(missing)}; copy what is missing")
    return sorted(folder / name for name in listed)


def _listed(index: Path) -> set[str]:
    try:
        return {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise AccessError(f"{index} is damaged; copy it again") from None


def _refuse_second(folder: Path, single: Path, index: Path, named: Iterable[Path]) -> None:
    """Raise AccessError for weights beside model.safetensors, which transformers takes alone.

    vLLM takes what an index lists, and without one every file.
    """
    if index.exists():
        others = _listed(index) - {single.name}
    else:
        others = {path.name for path in named} - {single.name}
    if others:
        raise AccessError(
            f"model folder {folder} holds model.safetensors and, "
            f"{f'by {index.name}' if index.exists() else 'beside it'}, "
            f"{', '.join(sorted(others)[:_NAMED])}: transformers would read the one and vLLM the "
            "other; move away what is not the model's"
        )
