"""Which model a run takes, and what it says of it."""

from __future__ import annotations

import pytest

from traitmill.engine.run.selection import model_of


@pytest.mark.parametrize(
    ("experiment", "why"), [("llama_8b_x", "by the experiment's name"), ("mine", "the default")]
)
def test_it_is_said_where_a_model_comes_from(experiment: str, why: str) -> None:
    assert why in model_of({}, None, experiment)[2]
