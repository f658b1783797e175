"""How `--layers` is read."""

from __future__ import annotations

import pytest

from traitmill.cli.values import parse_layers
from traitmill.engine.errors import UsageError


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("all", None),
        ("5", (5,)),
        ("12, 10-12,3", (3, 10, 11, 12)),
        ("-1", (-1,)),
        ("-1,2", (-1, 2)),
        ("-1-1", (-1, 0, 1)),
    ],
)
def test_layers_are_read(text, layers):
    assert parse_layers(text) == layers


@pytest.mark.parametrize(
    "text", ["²", "5-", "-", "", "5,", "-2", "1--1", "a", "0-2000000000", "1.5"]
)
def test_layers_that_are_none_are_one_clear_line(text):
    with pytest.raises(UsageError, match=r"write indices and ranges such as 5,10-15, or all$"):
        parse_layers(text)


def test_a_range_that_runs_backwards_is_said():
    with pytest.raises(UsageError, match="'3-1': 3-1 runs backwards; write 1-3"):
        parse_layers("3-1")
