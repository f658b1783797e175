"""A process that was forked while polars had threads hears so, where it would wait without end."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import os
import sys
import traitmill
from pathlib import Path
from traitmill.engine.errors import UsageError
from traitmill.engine.outputs.audit import _table
from traitmill.engine.vectors.table_file import read_table
import polars

if sys.argv[1] == "used":
    polars.DataFrame({"a": [2, 1]}).filter(polars.col("a") > 1)
child = os.fork()
if not child:
    for needs in (lambda: read_table(Path("evaluation.parquet"), ["a"], None), lambda: _table(None)):
        try:
            needs()
        except (UsageError, AttributeError) as error:
            print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing forks by itself")
@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("used", ("to read evaluation.parquet needs polars", "a table of responses needs polars")),
        ("unused", ("evaluation.parquet is missing", "'NoneType' object")),
    ],
)
def test_a_table_in_a_forked_process_is_refused_where_polars_had_threads(before, said, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, before],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd=tmp_path,
    )
    lines = done.stdout.splitlines()
    assert [line.startswith(words) for line, words in zip(lines, said, strict=True)] == [True, True]
    assert all(("was forked" in line) == (before == "used") for line in lines)
