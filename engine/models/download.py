"""A hub model's files on this machine, fetched once for all processes that load them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from ..errors import AccessError, ResourceError
from .hub import ModelRef
from .machine import GIB

_COMMIT = re.compile("[0-9a-f]{40}")
_PATIENCE_S = 10.0
"""A hub that lists no files in so many seconds is left to its loaders."""
_SIDE_BY_SIDE = 4
"""Files: each is fetched in several parts already."""
_WEIGHTS = ("*.safetensors", "*.bin")
"""What loaders take, the first kind that there is."""
_NEVER = (
    "*.pt",
    "*.pth",
    "*.ot",
    "*.gguf",
    "*.onnx",
    "*.h5",
    "*.msgpack",
    "*.md",
    "*.png",
    "*.jpg",
)
_COPIES = "consolidated*"
"""The same weights again, in their maker's own format."""


def fetch_weights(ref: ModelRef, notice: Callable[[str], None]) -> ModelRef:
    """Return the model as a local folder; download what is not in the cache, and say how far it is.

    A model that is local stays as it is, and one that the hub does not answer for is left to its
    loaders. Raise AccessError where a file cannot be had, ResourceError where the disk is full.
    """
    sizes = hub_sizes(ref) or {}
    wanted = {name: sizes[name] for name in wanted_files(list(sizes))}
    return replace(ref, source=str(_fetch(ref, wanted, notice))) if wanted else ref


def hub_sizes(ref: ModelRef) -> dict[str, int] | None:
    """Return the bytes of a hub model's files by name; None of a local one, or unanswered."""
    if ref.is_local or not _COMMIT.fullmatch(ref.revision):
        return None
    from httpx2 import RequestError
    from huggingface_hub import HfApi, errors

    try:
        found = HfApi().model_info(
            ref.source, revision=ref.revision, files_metadata=True, timeout=_PATIENCE_S
        )
    except (errors.OfflineModeIsEnabled, errors.HfHubHTTPError, RequestError, ValueError):
        return None  # ValueError: a page that is no JSON, as of a hotel's network
    return {each.rfilename: int(each.size or 0) for each in found.siblings or ()}


def wanted_files(names: Sequence[str]) -> list[str]:
    """Return the files of a repository that loading the model reads, in order."""
    others = [n for n in _top(names) if not _is_any(n, _WEIGHTS) and not _is_any(n, _NEVER)]
    return [*others, *weight_files(names)]


def weight_files(names: Sequence[str]) -> list[str]:
    """Return those of its files that hold the weights that are loaded, in order."""
    chosen: list[str] = []
    for kind in _WEIGHTS:
        of_kind = fnmatch.filter(_top(names), kind)
        chosen = chosen or [n for n in of_kind if not fnmatch.fnmatch(n, _COPIES)] or of_kind
    return chosen


def _top(names: Sequence[str]) -> list[str]:
    return [name for name in sorted(names) if "/" not in name and not name.startswith(".")]


def _is_any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _fetch(ref: ModelRef, sizes: dict[str, int], notice: Callable[[str], None]) -> Path:
    from httpx2 import TransportError
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    def cached(name: str) -> bool:
        found = try_to_load_from_cache(ref.source, name, revision=ref.revision)
        return isinstance(found, str)

    missing = [name for name in sizes if not cached(name)]
    total, done, folder = sum(sizes[name] for name in missing), 0, Path()
    if total:
        notice(f"downloading {ref.name}: {len(missing)} files, {total / GIB:.1f} GiB")
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:

        def get(name: str) -> Path:
            return Path(hf_hub_download(ref.source, name, revision=ref.revision))

        under_way = {pool.submit(get, name): name for name in sizes}
        try:
            for finished in as_completed(under_way):
                folder = finished.result().parent
                name = under_way[finished]
                if name in missing and sizes[name] >= GIB // 10:
                    done += sizes[name]
                    notice(f"downloading {ref.name}: {done / GIB:.1f} of {total / GIB:.1f} GiB")
        except (
            errors.HfHubHTTPError,
            errors.LocalEntryNotFoundError,
            TransportError,
        ) as error:
            pool.shutdown(cancel_futures=True)
            raise AccessError(
                f"model {ref.name} cannot be downloaded: {error}; run the command again to go on"
            ) from None
        except OSError as error:
            pool.shutdown(cancel_futures=True)
            raise ResourceError(
                f"model {ref.name} cannot be downloaded: {error.strerror or error}; it takes "
                f"{total / GIB:.1f} GiB of disk where HF_HOME is"
            ) from error
    return folder
