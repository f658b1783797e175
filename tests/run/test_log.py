"""What a run's log names as the error that ended an engine."""

from __future__ import annotations

from pathlib import Path

from traitmill.engine.run.log import last_error

WRITTEN = """\
(EngineCore pid=7) INFO 11-27 01:31:33 [core.py:133] Initializing a V1 LLM engine
(EngineCore pid=7) ERROR 11-27 01:31:34 [core.py:1287] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-27 01:31:34 [core.py:1287] ValueError: Head size 24 is not supported
(MainProcess pid=3) ERROR 11-27 01:31:35 [core_client.py:9] RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
(MainProcess pid=3) ERROR 11-27 01:31:36 [x.py:1] EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.
"""


def test_the_error_itself_is_named_and_not_a_line_that_points_at_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(WRITTEN)
    assert last_error(log) == "ValueError: Head size 24 is not supported"
    log.write_text(WRITTEN.splitlines()[0])
    assert last_error(log) == last_error(tmp_path / "none") == ""


def test_t46_the_cause_stands_first_of_a_long_line(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    listed = ", ".join(f"model.layers.{layer}" for layer in range(200))
    log.write_text(f"ValueError: There is no parameter named 'lm_head'. There are {listed}\n")
    assert last_error(log).startswith("ValueError: There is no parameter named 'lm_head'")
    assert len(last_error(log)) == 300
