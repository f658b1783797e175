"""What a run says of its capture, and what only its log holds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from traitmill.engine.run.capturing import RunCapture


async def test_the_sizes_of_batches_stand_in_the_log_and_not_on_the_screen() -> None:
    sizes = "capture batches of 1,024 tokens: 25% of 19.1 GiB free would hold 109,717"
    facts = SimpleNamespace(device="cpu", dtype="float32", attention="sdpa", arithmetic=sizes)

    async def start() -> Any:
        return facts

    said: list[str] = []
    process: Any = SimpleNamespace(start=start)
    how: dict[str, Any] = {"beside_generation": True, "loads_now": True, "make_room": pytest.fail}
    noted: list[str] = []
    how |= {"notice": said.append, "note": noted.append}
    capture = RunCapture(process, placement="alone", **how)
    assert await capture.open() is facts
    assert said == ["capture on cpu, float32, sdpa attention"]
    assert noted == [sizes]
