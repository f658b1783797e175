"""What is not named stays as the folder was last fitted, on every command of stage 3."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.conftest import Traitmill
from tests.report.pages import responses_of
from tests.support import planted
from traitmill.engine.errors import UsageError
from traitmill.engine.report import page as page_module
from traitmill.engine.report import write_report
from traitmill.engine.storage import TraitFolder
from traitmill.engine.vectors import fit_experiment, load_vectors


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two traits, as stage 1 leaves them."""
    for name in ("poem", "prose"):
        planted.write_trait(tmp_path / "exp" / name, n_layers=3, dim=16)
    return tmp_path / "exp"


def fitted(root: Path, trait: str = "poem") -> set[tuple[str, int]]:
    """Method and layer of each figure in a trait's evaluation, read without the program."""
    table = pl.read_parquet(root / trait / "evaluation.parquet").filter(measure="cosine")
    return set(table.select("method", "layer").rows())


def fit(root: Path, *traits: str, **how: object) -> list[str]:
    said: list[str] = []
    result = fit_experiment(root, traits or None, notice=said.append, **how)  # type: ignore[arg-type]
    assert not result.errors
    return [line for line in said if "kept" in line]


@pytest.mark.parametrize("layers", [np.arange(2), [np.int64(1), np.int64(0)], (0, 1)])
def test_layers_and_methods_are_taken_of_whatever_list(root, layers):
    fit(root, "poem", layers=layers, methods=np.array(["mean_diff"]))
    assert fitted(root) == {("mean_diff", 0), ("mean_diff", 1)}
    fit(root, "poem")
    assert fitted(root) == {("mean_diff", 0), ("mean_diff", 1)}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"layers": 1}, "`layers` takes a list, each of it a whole number or all or None, not 1"),
        ({"layers": [1.5]}, r"`layers` takes a list, each of it a whole number .*, not \[1.5\]"),
        ({"layers": "some"}, "`layers` takes a list, .*, not 'some'"),
        ({"layers": np.array([], int)}, "`layers` names none"),
        ({"methods": 3}, "`methods` takes a list, each of it text or None, not 3"),
        ({"format": "gguf"}, "`format` 'gguf' is unknown; choose from pt, safetensors"),
    ],
)
def test_what_is_asked_is_looked_at_before_anything_is_written(root, how, said):
    fit(root, "poem", methods=["mean_diff"], format="safetensors")
    files = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file() and p.name[0] != "."}
    with pytest.raises(UsageError, match=said):
        result = fit_experiment(root, ["poem"], **how)
        raise result.errors["poem"]
    assert files == {
        p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file() and p.name[0] != "."
    }


def test_methods_and_layers_that_are_not_named_are_the_folders(root: Path) -> None:
    assert fit(root, methods=["gradient"], layers=[0, 2]) == []
    assert fitted(root) == {("gradient", 0), ("gradient", 2)}
    assert fit(root) == [
        "kept from the folder: `methods` gradient, `layers` 0,2 (name one to change it)"
    ]
    assert fitted(root) == {("gradient", 0), ("gradient", 2)}
    assert fit(root, layers=[1]) == [
        "kept from the folder: `methods` gradient (name one to change it)"
    ]
    assert fitted(root) == {("gradient", 1)}


def test_all_layers_can_be_named_again(root: Path) -> None:
    fit(root, methods=["mean_diff"], layers=[1])
    fit(root, layers="all")
    assert {layer for _, layer in fitted(root)} == {0, 1, 2}
    assert fit(root) == ["kept from the folder: `methods` mean_diff (name one to change it)"]


def test_each_trait_keeps_its_own(root: Path) -> None:
    fit(root, "poem", methods=["gradient"], layers=[0])
    fit(root, "prose", methods=["mean_diff"], layers=[0])
    assert fit(root) == [
        "poem: kept from the folder: `methods` gradient, `layers` 0 (name one to change it)",
        "prose: kept from the folder: `methods` mean_diff, `layers` 0 (name one to change it)",
    ]
    assert (fitted(root), fitted(root, "prose")) == ({("gradient", 0)}, {("mean_diff", 0)})


def test_what_could_not_be_fitted_is_not_remembered(root: Path) -> None:
    fit(root, "poem", methods=["gradient"], layers=[0])
    result = fit_experiment(root, ["poem"], layers=[77])
    assert set(result.errors) == {"poem"}
    fit(root, "poem")
    assert fitted(root) == {("gradient", 0)}


def test_a_damaged_memory_stops_its_own_trait_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "exported_table", responses_of)
    fit(root, methods=["mean_diff"])
    TraitFolder(root / "poem").asked_vectors.write_text('{"methods": 3}')
    said = r"asked\.json is damaged.*remove it, and name `methods`"
    result = fit_experiment(root)
    assert list(result.fitted) == ["prose"]
    assert re.search(said, result.errors["poem"].message)
    written = write_report(root)
    assert written.pages == (root / "prose" / "report.html", root / "report.html")
    (error,) = written.errors
    assert re.search(said, error.message)


@pytest.fixture
def pooled(tmp_path: Path) -> Path:
    """A trait of two pools, whose vectors were fitted on the second."""
    folder = planted.write_trait(
        tmp_path / "exp" / "poem", n_layers=2, dim=16, pools=("response_mean", "prompt_last")
    )
    fit_experiment(folder.parent, methods=["gradient"], pool="prompt_last")
    return Path(folder)


def test_a_tensor_that_is_gone_is_missing_and_makes_no_other_pool_the_folders(
    pooled: Path,
) -> None:
    TraitFolder(pooled).tensor("prompt_last").unlink()
    result = fit_experiment(pooled.parent)
    assert "is missing; make it" in result.errors["poem"].message
    assert load_vectors(pooled).pool == "prompt_last"


def test_the_pool_that_is_not_named_is_that_of_the_last_fit(
    pooled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fit(pooled.parent) == [
        "kept from the folder: `methods` gradient, `pool` prompt_last (name one to change it)"
    ]
    assert load_vectors(pooled).pool == "prompt_last"
    assert load_vectors(pooled, "prompt_last").pool == "prompt_last"
    monkeypatch.setattr(page_module, "exported_table", responses_of)
    said: list[str] = []
    written = write_report(pooled.parent, notice=said.append)
    assert [path.name for path in written.pages] == 2 * ["report.prompt_last.html"]
    assert said == ["kept from the folder: `pool` prompt_last (name one to change it)"]
    fit(pooled.parent, pool="response_mean")
    assert load_vectors(pooled).pool == "response_mean"


def test_the_only_pool_that_was_captured_need_not_be_named(tmp_path: Path) -> None:
    folder = planted.write_trait(
        tmp_path / "exp" / "poem", n_layers=2, dim=16, pools=("prompt_last",)
    )
    fit_experiment(folder.parent, methods=["gradient"])
    assert (folder / "evaluation.prompt_last.parquet").is_file()


def test_the_command_says_what_it_kept(root: Path, traitmill: Traitmill) -> None:
    on = ["--experiment", "exp", "--trait", "poem", "--experiments_dir", str(root.parent)]
    code, said = traitmill("vectors", *on, "--methods", "gradient", "--layers", "0,2")
    assert (code, "kept from" in said) == (0, False), said
    code, said = traitmill("vectors", *on)
    assert "kept from the folder: --methods gradient, --layers 0,2 (name" in said
    assert "poem: fitted before, nothing has changed since" in said
    code, said = traitmill("vectors", *on, "--layers", "all")
    assert "1 methods x 3 layers" in said
