"""What callers give as settings is made plain, or refused in a line that names the setting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from traitmill.engine.errors import UsageError
from traitmill.engine.settings import apply, value_of


@pytest.mark.parametrize(
    ("name", "given", "plain"),
    [
        ("n_examples", np.int64(12), 12),
        ("n_examples", 12.0, 12),
        ("temperature", np.float32(0.5), 0.5),
        ("temperature", 1, 1.0),
        ("paired", np.bool_(True), True),
        ("layers", [0, 1], (0, 1)),
        ("layers", range(2), (0, 1)),
        ("layers", np.arange(2), (0, 1)),
        ("layers", "0-1,5", (0, 1, 5)),
        ("layers", "all", None),
        ("pool", ["response_mean"], ("response_mean",)),
        ("pool", "response_mean, prompt_last", ("response_mean", "prompt_last")),
        ("batch_size", "auto", None),
        ("judge_concurrency", "auto", 0),
        ("replicas", "auto", 0),
        ("neg_threshold", "off", None),
        ("chat_template_kwargs", {"enable_thinking": False}, '{"enable_thinking": false}'),
    ],
)
def test_ordinary_values_are_made_plain(name: str, given: Any, plain: Any) -> None:
    found = value_of(apply({name: given}), name)
    assert (found, type(found)) == (plain, type(plain))


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("capture", "keep"),
        ("capture", False),
        ("capture", ["all"]),
        ("judge_mode", "x"),
        ("self_check", "never"),
        ("self_check", None),
        ("judge_retry", "x"),
        ("include_embeddings", "no"),
        ("paired", "off"),
        ("paired", 2),
        ("threshold", True),
        ("threshold", "60"),
        ("threshold", None),
        ("threshold", 10**400),
        ("temperature", float("nan")),
        ("n_examples", True),
        ("n_examples", 5.5),
        ("n_examples", float("inf")),
        ("layers", 2),
        ("layers", [True]),
        ("pool", None),
        ("pool", 5),
        ("prefill", None),
        ("chat_template_kwargs", {"x": object()}),
    ],
)
def test_other_values_are_refused_by_the_settings_name(name: str, given: Any) -> None:
    with pytest.raises(UsageError, match=f"`{name}`"):
        apply({name: given})


def test_what_older_folders_remember_is_taken() -> None:
    assert apply({"paired": 1, "include_embeddings": 0}).paired is True
    assert apply({"chat_template_kwargs": {}}) == apply({"chat_template_kwargs": ""})
    assert apply({"layers": (np.int64(1), np.int64(3))}).capture.layers == (1, 3)


def test_the_command_lines_other_names_are_told() -> None:
    with pytest.raises(UsageError, match="it is `model` here"):
        apply({"gen_model": "x"})
    with pytest.raises(UsageError, match="it is `capture` here"):
        apply({"extract_activations": False})
