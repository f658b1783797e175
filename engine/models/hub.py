"""Which model: its name, access to it, its config and revision. Nothing here loads weights."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AccessError
from .demo import COMPLETE, EMBEDDED, embedded_folder

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

DEFAULT_MODEL = "google/gemma-2-2b-it"
_INFERRED = (
    (re.compile(r"gemma_2b"), DEFAULT_MODEL),
    (re.compile(r"gemma_9b"), "google/gemma-2-9b-it"),
    (re.compile(r"llama_8b"), "meta-llama/Llama-3.1-8B-Instruct"),
    (re.compile(r"^demo($|_)"), EMBEDDED),
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_BLOCKS_READ = 16
_BLOCK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model found and readable: `source` is what loaders take (a folder, or a hub name with
    `revision`)."""

    name: str
    source: str
    revision: str
    """Commit of a hub model; fingerprint of a local folder's files."""
    config: dict[str, Any]
    """config.json as it stands (nested text configs stay nested)."""

    @property
    def is_local(self) -> bool:
        return Path(self.source).is_dir()

    @property
    def hub_revision(self) -> str | None:
        """What loaders take as `revision`."""
        return None if self.is_local else self.revision

    @property
    def text_config(self) -> dict[str, Any]:
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config

    @property
    def context_length(self) -> int:
        """Tokens the model was made for, 0 when its config does not say."""
        return int(self.text_config.get("max_position_embeddings") or 0)


def infer_model(experiment: str) -> str:
    """The generation model an experiment's name implies (gemma_2b, gemma_9b, llama_8b, demo), else
    Gemma-2-2B."""
    return next(
        (model for pattern, model in _INFERRED if pattern.search(experiment)), DEFAULT_MODEL
    )


def find_model(name: str) -> ModelRef:
    """Find a model's config and revision without loading weights.

    `name` is a local folder, the embedded model's name, or a hub name (cached or online; HF_TOKEN
    is used). Raises AccessError, within seconds, with the remedy.
    """
    if name == EMBEDDED:
        folder = embedded_folder()
        return ModelRef(
            name, str(folder), fingerprint(folder), _read_config(folder / "config.json", name)
        )
    folder = Path(name).expanduser()
    if folder.is_dir():
        folder = folder.resolve()
        return ModelRef(
            folder.name,
            str(folder),
            fingerprint(folder),
            _read_config(folder / "config.json", name),
        )
    if not _HUB_NAME.fullmatch(name) or name.startswith((".", "/", "~")):
        raise _no_model(name)
    return _find_on_hub(name)


def _no_model(name: str) -> AccessError:
    return AccessError(
        f"model {name!r} is neither a folder here nor a hub name; check `gen_model`, or "
        f"`judge_model` local:MODEL"
    )


def _refused(name: str, page: str, error: HfHubHTTPError) -> AccessError:
    status = error.response.status_code
    return AccessError(
        f"the hub refused model {name} ({status}): check HF_TOKEN in .env and access at {page}"
    )


def _find_on_hub(name: str) -> ModelRef:
    from httpx2 import TransportError
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )
    from huggingface_hub.utils import validate_repo_id

    page = f"https://huggingface.co/{name}"
    token = os.environ.get("HF_TOKEN", "").strip()
    if not (token.isascii() and token.isprintable()):
        raise AccessError(
            "HF_TOKEN holds characters no token has (a quote mark, an accent): copy it again"
        )
    try:
        validate_repo_id(name)
        HfApi().auth_check(
            name
        )  # one request, no retries: an unreachable hub must not cost half a minute
        offline = False
    except HFValidationError:
        raise _no_model(name) from None
    except GatedRepoError:
        raise AccessError(
            f"model {name} is gated: accept its licence at {page}, create a token with read "
            f"permission, "
            "and put HF_TOKEN=hf_... into .env"
        ) from None
    except RepositoryNotFoundError:
        raise AccessError(
            f"model {name} was not found on the hub: check its spelling; if it is private, "
            "put HF_TOKEN=hf_... into .env"
        ) from None
    except HfHubHTTPError as error:
        if error.response.status_code < 500:
            raise _refused(name, page, error) from None
        offline = True
    except (TransportError, OfflineModeIsEnabled):
        offline = True
    try:
        path = Path(hf_hub_download(name, "config.json", local_files_only=offline))
    except LocalEntryNotFoundError:
        raise AccessError(
            f"model {name} is not in the local cache and the hub cannot be reached: go online "
            f"once, "
            f"or give a local folder with `gen_model` (without any hub: `gen_model` {EMBEDDED})"
        ) from None
    except EntryNotFoundError:
        raise AccessError(
            f"{page} has no config.json: it is not a model in transformers' format"
        ) from None
    except HfHubHTTPError as error:
        raise _refused(name, page, error) from None
    return ModelRef(name, name, path.parent.name, _read_config(path, name))


def _read_config(path: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AccessError(
            f"model folder {name} has no config.json; give a folder in Hugging Face format"
        ) from None
    except (OSError, ValueError) as error:
        raise AccessError(f"config.json of model {name} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise AccessError(f"config.json of model {name} is not a JSON object")
    return config


def fingerprint(folder: Path) -> str:
    """16 hex digits that change when a local model's files do.

    Small files are read whole; of each weight file the size and 16 evenly spaced blocks of 64 KiB,
    so that two fine-tunes of one base differ although their shapes do not, without reading hundreds
    of gigabytes.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.name != COMPLETE):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}\n".encode())
        with path.open("rb") as file:
            if size <= _BLOCKS_READ * _BLOCK_BYTES:
                digest.update(file.read())
                continue
            for index in range(_BLOCKS_READ):
                file.seek((size - _BLOCK_BYTES) * index // (_BLOCKS_READ - 1))
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()[:16]
