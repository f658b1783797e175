"""The pictures: they draw the figures of the evaluation, and are files that follow the page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from tests.report.pages import Evaluation, Page, metadata_of, responses_of, with_page
from traitmill.engine.report import write_trait_report
from traitmill.engine.report.heat_maps import transfer_picture
from traitmill.engine.report.numbers import TraitFigures
from traitmill.engine.report.plots import auroc_by_layer, score_histogram
from traitmill.engine.storage import TraitFolder
from traitmill.engine.vectors import fit_trait

NAMES = {"scores", "auroc", "projections", "cosines", "neighbours"}


@contextmanager
def drawn() -> Iterator[list[Figure]]:
    """Collect the figures that are saved as SVG."""
    figures: list[Figure] = []
    save = Figure.savefig

    def saving(figure: Figure, *arguments: object, **options: object) -> None:
        if options["format"] == "svg":
            figures.append(figure)
        save(figure, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", saving)
        yield figures


def test_words_for_pictures_have_the_figures_of_the_evaluation(experiment):
    folder = TraitFolder(experiment / "poem")
    found, images = Evaluation(folder), Page(folder.report()).images
    layer = found.best()[1]
    cosine = found.row("cosine", method="mean_diff", layer=layer, other="probe")["value"]
    assert f"mean_diff and probe {cosine:.2f}" in images["cosines"]["alt"]
    curve = found.table.filter(measure="auroc", split="question", method="probe").to_dicts()
    top = max(curve, key=lambda row: row["value"])
    peak = f"probe peaks at {top['value']:.2f} at layer {top['layer']}"
    assert peak in images["auroc"]["alt"]
    scores = np.array(found.table.filter(measure="held_out_score")["value"])
    n_pos = metadata_of(folder)["n_examples_pos"]
    means = scores[:n_pos].mean(), scores[n_pos:].mean()
    words = f"pos has mean {means[0]:.2f}, neg {means[1]:.2f}"
    assert words in images["projections"]["alt"]
    following = found.table.filter(measure="cosine_next_layer", method="pca")["value"].mean()
    assert f"pca {following:.2f}" in images["neighbours"]["alt"]
    assert "46 pos and 46 neg responses" in images["scores"]["alt"]


def test_each_method_has_a_panel_a_split_with_its_curve_and_bands(experiment):
    folder = TraitFolder(experiment / "poem")
    table = Evaluation(folder).table
    with drawn() as figures:
        auroc_by_layer(TraitFigures(folder, "response_mean"))
    panels = iter(figures[0].axes)
    for split in ("question", "instruction"):
        random = table.filter(measure="random_auroc", split=split)
        for method in ("mean_diff", "probe", "pca"):
            axes = next(panels)
            curve = table.filter(measure="auroc", split=split, method=method)
            (line,) = [line for line in axes.lines if line.get_marker() == "o"]
            assert list(line.get_xdata()) == list(curve["layer"])
            assert list(line.get_ydata()) == list(curve["value"])
            bands = [band.get_paths()[0].vertices for band in axes.collections]
            for band, rows in zip(bands, (random, curve), strict=True):
                assert band[:, 1].min() == pytest.approx(rows["low"].min())
                assert band[:, 1].max() == pytest.approx(rows["high"].max())
    assert next(panels, None) is None
    assert [axes.get_title() for axes in figures[0].axes[:3]] == ["mean_diff", "probe", "pca"]


def test_the_histogram_counts_every_score_once(experiment):
    responses = responses_of(TraitFolder(experiment / "poem"))
    with drawn() as figures:
        score_histogram(responses, 60.0)
    (axes,) = figures[0].axes
    heights = [bar.get_height() for bar in axes.patches]
    assert sum(heights) == responses["score"].count()
    pos = responses.filter(polarity="pos")["score"].drop_nulls().to_numpy()
    assert heights[:20] == np.histogram(pos, np.arange(0, 101, 5))[0].tolist()
    assert list(axes.lines[0].get_xdata()) == [60.0, 60.0]


def test_the_heat_map_has_each_pair_in_its_place():
    rows = [("a", "a", 0.9), ("a", "b", 0.2), ("b", "a", None), ("b", "b", 0.7)]
    table = pl.DataFrame(rows, ["trait", "target", "value"], orient="row")
    with drawn() as figures:
        transfer_picture(table)
    (axes,) = figures[0].axes
    places = {text.get_text(): text.get_position() for text in axes.texts}
    assert places == {"0.90": (0.5, 0.5), "0.20": (1.5, 0.5), "0.70": (1.5, 1.5)}
    assert axes.yaxis_inverted()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def blocks(n: int) -> pl.DataFrame:
    """Every second trait of n is of one kind: a vector tells rows of its own kind apart."""
    rows = [
        (f"t{i:03d}", f"t{j:03d}", None if i == 0 and j == 1 else 0.9 - 0.4 * ((i + j) % 2))
        for i in range(n)
        for j in range(n)
    ]
    return pl.DataFrame(rows, ["trait", "target", "value"], orient="row")


def test_of_many_traits_those_that_are_alike_stand_side_by_side():
    with drawn() as figures:
        picture = transfer_picture(blocks(60))
    axes = figures[0].axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [label.get_text() for label in axes.get_xticklabels()]
    kinds = [int(name[1:]) % 2 for name in names]
    assert sum(one != other for one, other in pairwise(kinds)) == 1
    shown = axes.images[0].get_array()
    for row, column in ((0, 0), (0, 59), (31, 7)):
        same = kinds[row] == kinds[column]
        assert shown[row, column] == pytest.approx(0.9 if same else 0.5)
    assert np.ma.filled(shown, np.nan).shape == (60, 60)
    assert not axes.texts
    assert len(picture.svg) < 1_000_000


def test_the_picture_of_240_traits_leaves_the_page_below_5_mb():
    picture = transfer_picture(blocks(240))
    assert len(picture.address) < 2_000_000


def test_every_picture_is_a_file_too(experiment):
    plots = experiment / "poem" / "plots"
    names = {path.name for path in plots.iterdir()}
    assert names == {f"{name}.{kind}" for name in NAMES for kind in ("svg", "png")}
    assert imread(plots / "auroc.png")[0, 0].tolist() == [1, 1, 1, 1]  # on white
    names = {path.name for path in (experiment / "plots").iterdir()}
    assert names == {"transfer.svg", "transfer.png"}


@pytest.mark.slow
def test_pictures_of_an_earlier_page_and_pages_of_another_pool(tmp_path):
    folder = with_page(tmp_path / "exp" / "poem", pools=("response_mean", "prompt_last"))
    page = folder.report().read_bytes()
    pictures = {path.name for path in folder.plots.iterdir()}
    fit_trait(folder, ["mean_diff"], pool="prompt_last")
    write_trait_report(folder, "prompt_last")
    assert folder.report().read_bytes() == page
    others = {name.replace(".", ".prompt_last.") for name in pictures}
    assert {path.name for path in folder.plots.iterdir()} == pictures | others
    fit_trait(folder, ["mean_diff"], [1])
    write_trait_report(folder)
    left = {path.name for path in folder.plots.iterdir()}
    assert "neighbours.svg" not in left  # of one layer there are none
    assert "neighbours.png" not in left
    assert "neighbours.prompt_last.svg" in left


def test_two_thresholds_are_both_marked(experiment):
    responses = responses_of(TraitFolder(experiment / "poem"))
    alt = score_histogram(responses, 60.0, 40.0).alt
    assert "the thresholds 60 of pos and 40 of neg" in alt
    assert "the threshold 60." in score_histogram(responses, 60.0, 60.0).alt
