"""`traitmill project` as it is typed."""

from __future__ import annotations

import json

import pytest

from tests.conftest import Traitmill
from tests.support import planted, talkers
from tests.vectors.helpers import evaluated


@pytest.mark.slow
def test_the_command_projects_and_says_what_it_found(tmp_path, traitmill: Traitmill):
    folder = planted.write_trait(tmp_path / "experiments" / "exp" / "poem", n_layers=3, dim=32)
    evaluated(folder, ("mean_diff",))
    models = [talkers.build_talker(tmp_path / name, seed=n) for n, name in enumerate("ab")]
    texts = tmp_path / "t.jsonl"
    texts.write_text(json.dumps({"prompt": "Say.", "response": "The rain."}) + "\n")
    to, where = tmp_path / "out", str(tmp_path / "experiments")
    on = ["--texts", str(texts), "--experiments_dir", where, "--to", str(to)]
    code, said = traitmill(
        "project", *on, "--vectors", "exp/poem", "--gen_model", models[0], "--gen_model", models[1]
    )
    assert code == 0, said
    assert ", assistant: " in said
    assert "(1 turn)" in said
    assert "b is " in said
    for name in ("projections.parquet", "projections.csv", "comparison.csv", "index.html"):
        assert (to / name).is_file()
        assert str(to / name) in said
    code, said = traitmill("project", *on, "--vectors", "exp/poem", "--texts", "nowhere.csv")
    assert code == 2
    assert "--texts nowhere.csv does not exist: give a .jsonl or .csv file" in said
    for wrong, told in (
        ("exp", "write EXPERIMENT/TRAIT"),
        ("experiments/exp/trait", "is given with --experiments_dir"),
        ("exp/none", "does not exist; traits of exp: poem"),
        ("../exp/poem", "experiment name '..' is refused"),
    ):
        code, said = traitmill("project", *on, "--vectors", wrong)
        assert (code, told in said) == (2, True), said
