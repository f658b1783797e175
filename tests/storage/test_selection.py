"""A command works on the traits that an experiment's folder has, each of them or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from traitmill.engine.errors import DefinitionError
from traitmill.engine.storage import select
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
