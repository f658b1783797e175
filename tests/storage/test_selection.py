"""A command works on the traits that an experiment's folder has, each of them or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from traitmill.engine.errors import DefinitionError, UsageError
from traitmill.engine.storage import check_name, select
from traitmill.engine.traits import DEFINITION_FILE, load_traits


def test_a_trait_whose_definition_is_a_dead_link_is_refused(tmp_path: Path) -> None:
    for name in ("warm", "cold"):
        (tmp_path / "e" / name).mkdir(parents=True)
    (tmp_path / "e/notes.txt").write_text("no trait")
    (tmp_path / "e/empty").mkdir()
    (tmp_path / "e/warm" / DEFINITION_FILE).write_text("{}")
    (tmp_path / "e/cold" / DEFINITION_FILE).symlink_to(tmp_path / "moved.json")
    folders = select(tmp_path / "e", None)
    assert sorted(folders) == ["cold", "warm"]
    with pytest.raises(DefinitionError, match=r"cold/trait_definition\.json: missing"):
        load_traits({name: folder.path for name, folder in folders.items()})


def test_a_traits_own_folder_is_named_as_experiment_and_trait(tmp_path: Path) -> None:
    """It was told to have no traits, and to make one in it."""
    (tmp_path / "exp/one").mkdir(parents=True)
    (tmp_path / "exp/one" / DEFINITION_FILE).write_text("{}")
    with pytest.raises(
        UsageError, match=r"is a trait's own folder: give its experiment, "
    ) as found:
        select(tmp_path / "exp/one", None)
    assert str(found.value).endswith(f"{tmp_path / 'exp'}, and the trait, one, apart")
    with pytest.raises(UsageError, match="it is one name, no path"):
        check_name("exp/one", "experiment")


def test_a_link_to_another_trait_is_not_worked_on_beside_it(tmp_path: Path) -> None:
    """It was said to be in use by another run: this one."""
    (tmp_path / "e/warm").mkdir(parents=True)
    (tmp_path / "e/warm" / DEFINITION_FILE).write_text("{}")
    (tmp_path / "e/also").symlink_to("warm")
    with pytest.raises(UsageError, match="traits also and warm are one folder: name one of them"):
        select(tmp_path / "e", None)
    assert list(select(tmp_path / "e", "also")) == ["also"]
