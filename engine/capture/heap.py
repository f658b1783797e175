"""What a process that computes on a CPU keeps of the memory it frees."""

from __future__ import annotations

import ctypes
import os

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""Parameters of glibc's mallopt (malloc.h)."""
_LARGEST = 1 << 30


def keep_freed_memory() -> None:
    """Let glibc hand out again what was freed, rather than give it back to the kernel.

    A forward makes and frees hundreds of tensors of some megabytes, and each page of a new one is a
    fault of its own; tests/capture/test_heap.py counts them. A batch's highest is what is kept.
    Nothing is done where the user has tuned malloc, or where there is no glibc.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_TRIM_THRESHOLD, _LARGEST)
    except (OSError, AttributeError):
        return
