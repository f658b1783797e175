"""`traitmill doctor`: what is wrong is said once."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from traitmill.cli.doctor import command


def test_a_fault_that_several_checks_meet_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    missing = str(tmp_path / "no-model")
    found = CliRunner().invoke(command, ["--gen_model", missing, "--judge_model", "local"])
    failures = [line for line in found.output.splitlines() if line.startswith("FAIL")]
    assert sum(missing in line for line in failures) == 1
    assert sum("for the same reason as model" in line for line in failures) >= 2
