"""Freed memory that is used again costs no page faults."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

COUNT = """
import resource, sys
import numpy as np
from traitmill.engine.capture.heap import keep_freed_memory
if sys.argv[1] == "keeps":
    keep_freed_memory()

def forward():
    for _ in range(8):
        a = np.ones(1 << 20)
        b = a + 1.0
        del a, b

forward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    forward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", COUNT, how],
        env={k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
        | {"PYTHONPATH": str(ROOT)}
        | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.slow
def test_what_a_forward_freed_is_used_again() -> None:
    kept, given_back = faults("keeps"), faults("gives back")
    assert given_back > 1000, "without it each new array is faulted in again"
    assert kept < given_back / 10


@pytest.mark.slow
def test_a_malloc_that_the_user_has_tuned_is_left_alone() -> None:
    assert faults("keeps", MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072") > 1000
