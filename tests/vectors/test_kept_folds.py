"""What folds scored is not fitted again: the same figures, from what is there and the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support import planted
from traitmill.engine.outputs import load_activations
from traitmill.engine.storage import TraitFolder
from traitmill.engine.vectors import fit_trait, held_out, read_evaluation

Fits = list[tuple[int, tuple[str, ...]]]


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Fits:
    """Every layer and the methods that are refitted there."""
    seen: Fits = []

    def spied(fit: Callable[..., Any]) -> Callable[..., Any]:
        def spy(block: Any, vectors: Any, methods: Any, *rest: Any) -> Any:
            seen.extend((at.layer, tuple(methods)) for at in block)
            return fit(block, vectors, methods, *rest)

        return spy

    for name in ("fit_few", "fit_tall"):
        monkeypatch.setattr(held_out, name, spied(getattr(held_out, name)))
    return seen


def make(folder: Any, *, dim: int = 24, n_per_side: int = 250, seed: int = 0) -> TraitFolder:
    return TraitFolder(
        planted.write_trait(folder, n_per_side=n_per_side, n_layers=3, dim=dim, seed=seed)
    )


def table(folder: TraitFolder) -> Any:
    activations = load_activations(folder)
    return read_evaluation(folder, activations.metadata).table


@pytest.mark.parametrize("dim", [24, 1200])  # many rows for the width, and few
def test_more_methods_and_layers_fit_the_rest(tmp_path, fits, dim):
    folder = make(tmp_path / "grown" / "poem", dim=dim)
    fit_trait(folder, ["mean_diff"], [1])
    assert fits == [(1, ("mean_diff",))]
    fits.clear()
    fit_trait(folder, ["gradient", "mean_diff"], [0, 1])
    assert sorted(fits) in (
        [(0, ("gradient", "mean_diff")), (1, ("gradient",))],
        [(0, ("gradient", "mean_diff")), (1, ("gradient", "mean_diff"))],  # one block of layers
    )
    fits.clear()
    fit_trait(folder, ["mean_diff"])
    assert fits == [(2, ("mean_diff",))]
    fit_trait(folder, ["gradient", "mean_diff"])
    fresh = make(tmp_path / "fresh" / "poem", dim=dim)
    fit_trait(fresh, ["gradient", "mean_diff"])
    assert table(folder).equals(table(fresh))


def test_what_an_interrupted_command_had_done_is_there(tmp_path, fits):
    folder = make(tmp_path / "exp" / "poem")

    def interrupt(step: str, done: int, _total: int) -> None:
        if step == "evaluating" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_trait(folder, ["mean_diff", "gradient"], on_layer=interrupt)
    assert not list(folder.vectors.glob("*.pt"))
    fits.clear()
    fit_trait(folder, ["mean_diff", "gradient"])
    assert {layer for layer, _ in fits} <= {2}
    fresh = make(tmp_path / "fresh" / "poem")
    fit_trait(fresh, ["mean_diff", "gradient"])
    assert table(folder).equals(table(fresh))


def test_what_was_kept_of_other_rows_or_is_damaged_is_not_read(tmp_path, fits):
    folder = make(tmp_path / "exp" / "poem")
    fit_trait(folder, ["mean_diff"])
    before = table(folder)
    kept = sorted((folder.vectors / ".folds").iterdir())
    assert [path.name for path in kept] == ["layer0.npz", "layer1.npz", "layer2.npz"]
    kept[0].write_bytes(kept[0].read_bytes()[:-40])
    kept[1].write_bytes(b"no zip")
    folder.evaluation().unlink()
    fits.clear()
    fit_trait(folder, ["mean_diff"])
    assert sorted(layer for layer, _ in fits) == [0, 1]
    assert table(folder).equals(before)
    make(folder.path, seed=1)  # other rows in the same folder
    fits.clear()
    fit_trait(folder, ["mean_diff"])
    assert sorted(layer for layer, _ in fits) == [0, 1, 2]
    assert not table(folder).equals(before)


def test_few_rows_leave_no_files(tmp_path):
    folder = make(tmp_path / "exp" / "poem", n_per_side=20)
    assert held_out.KEPT_FROM > 2 * 20
    fit_trait(folder, ["mean_diff"])
    assert not (folder.vectors / ".folds").exists()
