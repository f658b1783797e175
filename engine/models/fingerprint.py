"""What tells the files of a local model from others: 16 hex digits, as a commit does on a hub."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import BinaryIO

from .demo import COMPLETE

_BLOCKS_READ = 16
_BLOCK_BYTES = 1 << 16
_TENSOR_BYTES = 1 << 12
"""Read at the start, the middle and the end of each tensor."""
_MOST_HEADER = 100 << 20
"""Longest header that safetensors takes."""


def fingerprint(folder: Path) -> str:
    """Return 16 hex digits that change when a local model's files do.

    Small files are read whole. Of a large one the size counts, and blocks of each tensor
    (safetensors), else 16 of the file: so an edit of one layer shows, without reading hundreds of
    gigabytes.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.name == COMPLETE:
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}\n".encode())
        with path.open("rb") as file:
            if size <= _BLOCKS_READ * _BLOCK_BYTES:
                digest.update(file.read())
                continue
            for start, count in _blocks(file, path.suffix, size):
                file.seek(start)
                digest.update(file.read(count))
    return digest.hexdigest()[:16]


def _blocks(file: BinaryIO, suffix: str, size: int) -> list[tuple[int, int]]:
    """Return where to read a large file, and how many bytes."""
    tensors = _tensors(file, size) if suffix == ".safetensors" else []
    if not tensors:
        span, last = size - _BLOCK_BYTES, _BLOCKS_READ - 1
        return [(span * index // last, _BLOCK_BYTES) for index in range(_BLOCKS_READ)]
    first = tensors[0][0]
    found = [(0, min(first, _MOST_HEADER))]
    for start, end in tensors:
        last = max(start, end - _TENSOR_BYTES)
        places = sorted({start, (start + last) // 2, last})
        found += [(place, min(_TENSOR_BYTES, end - place)) for place in places]
    return found


def _tensors(file: BinaryIO, size: int) -> list[tuple[int, int]]:
    """Return first and end of each tensor in a safetensors file; none where it is damaged."""
    length = int.from_bytes(file.read(8), "little")
    if length > min(size, _MOST_HEADER):
        return []
    try:
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        places = [each["data_offsets"] for each in header.values()]
        return sorted((8 + length + int(a), 8 + length + int(b)) for a, b in places)
    except (ValueError, TypeError, KeyError, AttributeError):
        return []
