"""Stage 3 on folders, as the command and Python call it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support import planted
from traitmill.engine.errors import ExitCode, UsageError
from traitmill.engine.outputs import Metadata
from traitmill.engine.storage import TraitFolder
from traitmill.engine.vectors import commands as commands_module
from traitmill.engine.vectors import (
    evaluate_vectors,
    fit_experiment,
    fit_trait,
    load_vector,
    read_evaluation,
)

FAST = ("mean_diff", "gradient")


@pytest.fixture
def folder(tmp_path) -> TraitFolder:
    return TraitFolder(planted.write_trait(tmp_path / "exp" / "poem", n_layers=2))


def test_a_trait_is_fitted_evaluated_and_written(folder):
    fitted = fit_trait(folder, FAST, [1])
    assert (fitted.n_pos, fitted.n_neg, fitted.folder) == (40, 40, folder.vectors)
    assert fitted.vectors.methods == FAST
    assert fitted.dropped == ""
    stored = read_evaluation(folder, Metadata.read(folder))
    assert stored.table.equals(fitted.evaluation.table)
    held_out = load_vector(folder, "gradient", 1)[1]["held_out"]
    assert set(held_out) == {"question", "instruction"}
    figure = fitted.evaluation.table.filter(
        measure="auroc", split="question", method="gradient", layer=1
    )
    assert held_out["question"]["auroc"]["value"] == figure["value"].item()


def test_what_a_new_evaluation_no_longer_covers_is_said(folder):
    fit_trait(folder, FAST)
    assert fit_trait(folder, ["gradient"], [1]).dropped == "mean_diff, 1 layer"
    planted.write_trait(folder.path, n_layers=2, seed=3)
    anew = fit_trait(folder, ["gradient"])
    assert anew.dropped == ""  # that one was of other activations
    assert anew.removed == 2  # mean_diff of both layers, fitted to the rows before
    assert fit_trait(folder, ["gradient"]).removed == 0


def contents(folder: TraitFolder) -> dict:
    return {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_t13_what_was_fitted_is_not_fitted_again(folder, monkeypatch, kind):
    first = fit_trait(folder, FAST, format=kind)
    before = contents(folder)

    def fails(*_args: object, **_how: object) -> None:
        raise RuntimeError("fitted again")

    monkeypatch.setattr(commands_module, "fit_vectors", fails)
    again = fit_trait(folder, FAST, format=kind)
    assert (first.reused, again.reused) == (False, True)
    assert contents(folder) == before
    np.testing.assert_array_equal(again.vectors.values, first.vectors.values)
    assert again.evaluation.table.equals(first.evaluation.table)
    for other in (
        {"methods": ["gradient"]},
        {"layers": [1]},
        {"format": {"pt": "safetensors", "safetensors": "pt"}[kind]},
    ):
        with pytest.raises(RuntimeError, match="fitted again"):
            fit_trait(folder, **{"methods": FAST, "format": kind, **other})


@pytest.mark.parametrize("damage", ["vector", "facts", "gone", "rows", "figures"])
def test_t13_what_changed_is_fitted_again(folder, damage):
    first = fit_trait(folder, FAST)
    before = contents(folder)
    path = folder.vectors / "gradient_layer1.pt"
    beside = folder.vectors / "gradient_layer1_metadata.json"
    if damage == "vector":
        data = bytearray(path.read_bytes())
        place = data.index(first.vectors.vector("gradient", 1).tobytes())
        data[place] ^= 1  # the lowest bit of a number
        path.write_bytes(bytes(data))
    elif damage == "facts":
        beside.write_text(beside.read_text().replace('"layer": 1', '"layer": 0'))
    elif damage == "gone":
        path.unlink()
    elif damage == "rows":
        planted.write_trait(folder.path, n_layers=2, seed=3)
    else:
        folder.evaluation("response_mean").unlink()
    assert not fit_trait(folder, FAST).reused
    assert (contents(folder) == before) == (damage != "rows")
    assert fit_trait(folder, FAST).reused


def test_t52_leftovers_of_a_killed_command_go(folder):
    fit_trait(folder, ["mean_diff"])
    left = [folder.vectors / ".mean_diff_layer0.pt.1-2.tmp", folder.path / ".evaluation.1-2.tmp"]
    for path in left:
        path.write_bytes(b"half")
    fit_trait(folder, ["mean_diff"])
    assert not any(path.exists() for path in left)


def test_nothing_is_written_before_all_is_computed(folder, monkeypatch):
    fit_trait(folder, ["mean_diff"])
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}

    def fails(*_args: object, **_how: object) -> None:
        raise RuntimeError("in the evaluation")

    monkeypatch.setattr(commands_module, "evaluate_vectors", fails)
    assert commands_module.evaluate_vectors is not evaluate_vectors
    with pytest.raises(RuntimeError):
        fit_trait(folder, FAST)
    assert before == {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def test_one_traits_trouble_does_not_keep_the_others_from_being_fitted(folder):
    planted.write_trait(folder.experiment / "prose", n_layers=2, seed=1)
    planted.write_trait(folder.experiment / "verse", n_layers=2, seed=2)
    (folder.experiment / "prose" / "activations" / "metadata.json").unlink()
    told: list[str] = []
    result = fit_experiment(
        folder.experiment,
        ["poem", "prose", "verse"],
        methods=FAST,
        on_fitted=lambda name, fitted: told.append(f"{name} {fitted.n_pos}"),
        notice=pytest.fail,
    )
    assert told == ["poem 40", "verse 40"]
    assert list(result.fitted) == ["poem", "verse"]
    assert result.errors["prose"].step.name == "generate"
    assert result.exit_code == ExitCode.USAGE
    assert (folder.experiment / "evaluation.parquet").is_file()


def test_unknown_methods_stop_before_any_folder_is_looked_at(tmp_path):
    with pytest.raises(UsageError, match="'random' is unknown"):
        fit_experiment(tmp_path / "none", methods=["random"])
