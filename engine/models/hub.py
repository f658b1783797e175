"""Which model: its name, access to it, its config, revision and adapter. Loads no weights."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AccessError, UsageError
from .demo import EMBEDDED, embedded_folder
from .fingerprint import fingerprint

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

DEFAULT_MODEL = "google/gemma-2-2b-it"
_INFERRED = {
    "gemma_2b": DEFAULT_MODEL,
    "gemma_9b": "google/gemma-2-9b-it",
    "llama_8b": "meta-llama/Llama-3.1-8B-Instruct",
    "^demo($|_)": EMBEDDED,
}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_TOO_MANY, _SERVER_ERRORS = 429, 500


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model found and readable."""

    name: str
    source: str
    """What loaders take: a folder, or a hub name with `hub_revision`."""
    revision: str
    """Commit of a hub model; fingerprint of a local folder's files."""
    config: dict[str, Any]
    """config.json as it stands (nested text configs stay nested)."""
    adapter: Adapter | None = None
    """What is added to its weights."""

    @property
    def is_local(self) -> bool:
        return Path(self.source).is_dir()

    @property
    def hub_revision(self) -> str | None:
        """What loaders take as `revision`."""
        return None if self.is_local else self.revision

    @property
    def context_length(self) -> int:
        """Tokens the model was made for, 0 when its config does not say."""
        named = ("max_position_embeddings", "n_positions", "max_seq_len")  # GPT-2's, MPT's
        return next(filter(None, map(self._size, named)), 0)

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows, 0 when its config does not say."""
        return self._size("vocab_size")

    def _size(self, name: str) -> int:
        nested = self.config.get("text_config")
        text = nested if isinstance(nested, dict) else self.config
        if text is not self.config and name not in text and text.get("model_type"):
            # A nested config is written without what is its kind's default (Gemma-3's 131,072).
            from .config import read_config

            with suppress(UsageError):  # another kind: nothing is known of it
                return int(getattr(read_config(text), name, 0) or 0)
        return int(text.get(name) or 0)


def infer_model(experiment: str) -> str | None:
    """Return the generation model that an experiment's name implies, None where it implies none."""
    found = (model for pattern, model in _INFERRED.items() if re.search(pattern, experiment))
    return next(found, None)


def find_model(name: str, revision: str | None = None) -> ModelRef:
    """Find a model's config and revision.

    `name` is a local folder, the embedded model's name, or a hub name (cached or online; HF_TOKEN
    is used). `revision` is the commit of a hub model, None its newest; a local folder is as it
    stands. Raise AccessError, within seconds, with the remedy.
    """
    if name == EMBEDDED:
        return _in_folder(embedded_folder(), name)
    # os.path's own functions raise for no name, however odd or long.
    path = os.path.expanduser(name)  # noqa: PTH111
    if os.path.isdir(path):  # noqa: PTH112
        folder = Path(path).resolve()
        return _in_folder(folder, folder.name)
    return _find_on_hub(name, revision)


def _in_folder(folder: Path, name: str) -> ModelRef:
    config = _read_config(folder / "config.json", str(folder))
    return ModelRef(name, str(folder), fingerprint(folder), config)


def _find_on_hub(name: str, revision: str | None) -> ModelRef:
    folder = fetch_files(name, ("config.json",), revision)
    return ModelRef(name, name, folder.name, _read_config(folder / "config.json", name))


def fetch_files(name: str, files: Sequence[str], revision: str | None, kind: str = "model") -> Path:
    """Return the folder, named by its commit, of some files of a hub repository, cached or online.

    Raise AccessError with the remedy; `kind` is model or adapter.
    """
    from huggingface_hub import errors, hf_hub_download

    if not _HUB_NAME.fullmatch(name):
        raise _no_model(name, kind)
    offline = not _reach(name, kind)
    if offline:
        _stay_offline()
    commit = revision
    for file in files:
        try:
            path = Path(hf_hub_download(name, file, revision=commit, local_files_only=offline))
        except errors.LocalEntryNotFoundError:
            option = "gen_model" if kind == "model" else kind
            embedded = f" (without any hub: `gen_model` {EMBEDDED})" if kind == "model" else ""
            raise AccessError(
                f"{kind} {name} is not in the local cache and the hub does not answer: go online "
                f"once, or wait where it is overloaded (429, 503), or give a local folder with "
                f"`{option}`{embedded}"
            ) from None
        except errors.EntryNotFoundError:
            whose = "transformers" if kind == "model" else "peft"
            article = "a model" if kind == "model" else "an adapter"
            raise AccessError(
                f"{_page(name)} has no {file}: it is not {article} in {whose}' format"
            ) from None
        except errors.HfHubHTTPError as error:
            raise _refused(name, error) from None
        commit = path.parent.name
    return path.parent


def _reach(name: str, kind: str) -> bool:
    """Return whether the hub answers. Raise AccessError where it refuses the model."""
    from httpx2 import TransportError
    from huggingface_hub import HfApi, errors
    from huggingface_hub.utils import validate_repo_id

    token = os.environ.get("HF_TOKEN", "").strip()
    if not (token.isascii() and token.isprintable()):
        raise AccessError(
            "HF_TOKEN holds characters no token has (a quote mark, an accent): copy it again"
        )
    try:
        validate_repo_id(name)
        # One request without retries: a hub that is away must not cost half a minute.
        HfApi().auth_check(name)
    except errors.HFValidationError:
        raise _no_model(name, kind) from None
    except errors.GatedRepoError:
        raise AccessError(
            f"model {name} is gated: accept its licence at {_page(name)}, create a token with read "
            "permission, and put HF_TOKEN=hf_... into .env"
        ) from None
    except errors.RepositoryNotFoundError:
        raise AccessError(
            f"model {name} was not found on the hub: check its spelling; if it is private, put "
            "HF_TOKEN=hf_... into .env"
        ) from None
    except errors.HfHubHTTPError as error:
        if error.response.status_code < _SERVER_ERRORS and error.response.status_code != _TOO_MANY:
            raise _refused(name, error) from None
        return False
    except (TransportError, errors.OfflineModeIsEnabled):
        return False
    return True


def _stay_offline() -> None:
    """Tell every library of this process and its children: each would find out for minutes."""
    from huggingface_hub import constants

    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True


def _page(name: str) -> str:
    return f"https://huggingface.co/{name}"


def _no_model(name: str, kind: str) -> AccessError:
    if kind != "model":
        return AccessError(
            f"{kind} {name!r} is neither a folder here nor a hub name; check `{kind}`"
        )
    return AccessError(
        f"model {name!r} is neither a folder here nor a hub name; check `gen_model`, or "
        "`judge_model` local:MODEL"
    )


def _refused(name: str, error: HfHubHTTPError) -> AccessError:
    return AccessError(
        f"the hub refused model {name} ({error.response.status_code}): check HF_TOKEN in .env and "
        f"access at {_page(name)}"
    )


def _read_config(path: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"), object_hook=_with_floats)
    except FileNotFoundError:
        raise AccessError(
            f"model folder {name} has no config.json; give a folder in Hugging Face format"
        ) from None
    except (OSError, ValueError) as error:
        raise AccessError(f"config.json of model {name} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise AccessError(f"config.json of model {name} is not a JSON object")
    return config


def _with_floats(found: dict[str, Any]) -> Any:
    """Return a number that JSON has no word for, where transformers wrote one as an object."""
    if found.keys() == {"__float__"}:
        return float(found["__float__"])
    return found


RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM can be told as the largest rank: the source is vllm/config/lora.py."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter found and readable."""

    name: str
    folder: str
    source: str
    """What finds it again: a folder or a hub name."""
    revision: str
    """Commit of a hub repository; fingerprint of a local folder's files."""
    config: dict[str, Any]
    """adapter_config.json as it stands."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of its tensors, by name."""

    @property
    def targets(self) -> list[str]:
        """The kinds of module it changes, as q_proj."""
        return sorted({key.rpartition(".lora_")[0].rpartition(".")[2] for key in self.shapes})

    @property
    def rank(self) -> int:
        """The largest rank of its parts."""
        patterns = self.config.get("rank_pattern") or {}
        return max(int(self.config["r"]), *map(int, patterns.values()), 0)

    @property
    def slot(self) -> int:
        """What vLLM is told as the largest rank."""
        return next((rank for rank in RANKS if rank >= self.rank), self.rank)

    @property
    def values(self) -> int:
        """Weights that vLLM makes room for: each part as though it had the largest rank."""
        inner = sum(shape[-1] for name, shape in self.shapes.items() if ".lora_A." in name)
        outer = sum(shape[0] for name, shape in self.shapes.items() if ".lora_B." in name)
        return self.slot * (inner + outer)
