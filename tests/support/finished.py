"""A finished run, of which tests of commands take copies, and the options that name its trait."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from tests.support import fakes, lab
from traitmill.engine.errors import ExitCode


def finish(root: Path, n: int = 30) -> lab.Work:
    """A run of `n` samples a side that came to its end."""
    work = lab.Work(root, n=n)
    fakes.make_trait(work.root, "trait")
    assert lab.run_to_end(work) == ExitCode.OK
    return work


def copy_of(work: lab.Work, target: Path) -> lab.Work:
    """The same run in a folder of its own."""
    shutil.copytree(work.root, target, symlinks=True)
    return replace(work, root=target)


def on(work: lab.Work) -> list[str]:
    """The options that name the run's trait."""
    return ["--experiment", "exp", "--trait", "trait", "--experiments_dir", str(work.root)]
