"""Vectors: methods against independent solutions, planted directions, files, bad input."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import fakes, planted
from traitmill.cli.options import parse_layers
from traitmill.engine.errors import NothingKeptError, UsageError
from traitmill.engine.outputs.load import Activations, load_activations
from traitmill.engine.vectors.fit import fit_vectors, load_vector, write_vectors
from traitmill.engine.vectors.methods import (
    METHODS,
    Rows,
    check_methods,
    fast_ica,
    ledoit_wolf,
    random_directions,
)

FITTED = [name for name, method in METHODS.items() if method.fit is not None]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(float), b.astype(float)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.fixture
def folder(tmp_path):
    return planted.write_trait(tmp_path / "exp" / "poem", signal=2.0)


def rows_of(activations: Activations, layer: int) -> tuple[np.ndarray, np.ndarray]:
    return activations.values[:, layer].astype(np.float64), activations.labels


@pytest.mark.parametrize("method", FITTED)
def test_a_planted_direction_is_recovered(tmp_path, method):
    folder = planted.write_trait(
        tmp_path / "exp" / "poem", signal=60, n_per_side=60, question_spread=0
    )
    vectors = fit_vectors(load_activations(folder), [method])
    for layer in vectors.layers:
        assert cosine(vectors.vector(method, layer), planted.planted_direction(48, layer)) >= 0.99
        assert vectors.metadata[method, layer]["accuracy"] == 1.0


@pytest.mark.parametrize("scale", [1.0, 30000.0])
def test_probe_is_the_optimum_of_logistic_regression(folder, scale):
    from sklearn.linear_model import LogisticRegression

    activations = load_activations(folder)
    values = np.array(activations.values)
    values[:, :, 7] *= scale  # one massive dimension, as large models have
    activations = _with_values(activations, values)
    vectors = fit_vectors(activations, ["probe"])
    for layer in vectors.layers:
        x, y = rows_of(activations, layer)
        oracle = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000, solver="newton-cholesky").fit(
            x, y
        )
        assert cosine(vectors.vector("probe", layer), oracle.coef_[0]) >= 0.999999
        assert np.linalg.norm(oracle.coef_[0]) == pytest.approx(
            vectors.metadata["probe", layer]["norm"], rel=1e-5
        )
        assert vectors.metadata["probe", layer]["bias"] == pytest.approx(
            oracle.intercept_[0], rel=1e-4, abs=1e-5
        )
        assert vectors.metadata["probe", layer]["settings"]["converged"]


def test_probe_of_more_rows_than_dimensions(tmp_path):
    from sklearn.linear_model import LogisticRegression

    folder = planted.write_trait(
        tmp_path / "exp" / "poem", signal=1.0, dim=10, n_per_side=60, n_layers=1
    )
    activations = load_activations(folder)
    x, y = rows_of(activations, 0)
    oracle = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000, solver="newton-cholesky").fit(x, y)
    assert (
        cosine(fit_vectors(activations, ["probe"]).vector("probe", 0), oracle.coef_[0]) >= 0.999999
    )


def test_gradient_is_the_maximum_that_ascent_reaches_from_any_start(folder):
    from scipy.optimize import minimize
    from sklearn.covariance import ledoit_wolf as oracle

    activations = load_activations(folder)
    x, y = rows_of(activations, 1)
    residuals = x - np.where(y[:, None], x[y].mean(axis=0), x[~y].mean(axis=0))
    covariance, _ = oracle(residuals, assume_centered=True)
    gap = x[y].mean(axis=0) - x[~y].mean(axis=0)
    found = fit_vectors(activations, ["gradient"]).vector("gradient", 1)
    assert np.linalg.norm(found) == pytest.approx(1)

    def objective(w):
        spread, reach = w @ covariance @ w, w @ gap
        return -(reach**2) / spread, -2 * reach * gap / spread + 2 * reach**2 * (
            covariance @ w
        ) / spread**2

    for seed in range(3):
        start = np.random.default_rng(seed).standard_normal(len(gap))
        end = minimize(
            objective,
            start,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 5000, "ftol": 0, "gtol": 1e-10},
        )
        assert abs(cosine(end.x, found)) >= 0.9999
    assert found @ gap > 0


def test_shrinkage_is_that_of_scikit_learn():
    from sklearn.covariance import ledoit_wolf as oracle

    x = np.random.default_rng(3).standard_normal((30, 50)) * np.linspace(0.1, 3, 50)
    assert ledoit_wolf(x @ x.T, 50) == pytest.approx(oracle(x, assume_centered=True)[1], rel=1e-9)


def test_mean_diff_and_pca_are_their_formulas(folder):
    activations = load_activations(folder)
    vectors = fit_vectors(activations, ["mean_diff", "pca"])
    for layer in vectors.layers:
        x, y = rows_of(activations, layer)
        np.testing.assert_allclose(
            vectors.vector("mean_diff", layer), x[y].mean(0) - x[~y].mean(0), rtol=1e-4, atol=1e-5
        )
        pairs = list(zip(activations.instructions, activations.questions, strict=True))
        differences = [
            x[[p == q and s for q, s in zip(pairs, y, strict=True)]].mean(0)
            - x[[p == q and not s for q, s in zip(pairs, y, strict=True)]].mean(0)
            for p in sorted(set(pairs))
        ]
        assert (
            abs(cosine(np.linalg.svd(np.array(differences))[2][0], vectors.vector("pca", layer)))
            >= 0.99999
        )


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_fast_ica_is_that_of_scikit_learn():
    from sklearn.decomposition import FastICA

    rng = np.random.default_rng(2)
    white = np.linalg.svd(rng.laplace(size=(150, 6)), full_matrices=False)[0] * np.sqrt(150)
    start = rng.standard_normal((6, 6))
    oracle = FastICA(whiten=False, w_init=start).fit_transform(white)
    np.testing.assert_allclose(fast_ica(white, start)[0], oracle, atol=1e-8)


def test_ica_picks_the_component_that_carries_the_trait_and_points_it_to_pos():
    rng = np.random.default_rng(0)
    n, dim = 300, 40
    y = np.repeat([True, False], n // 2)
    mixing = np.linalg.qr(rng.standard_normal((dim, 3)))[0].T
    sources = np.column_stack(
        [
            rng.uniform(-9, 9, n),
            rng.laplace(0, 4, n),
            np.where(y, 3.0, -3.0) + rng.uniform(-1, 1, n),
        ]
    )
    x = sources @ mixing + 0.05 * rng.standard_normal((n, dim))
    direction = METHODS["ica"].fit(
        Rows((x - x.mean(0)) @ (x - x.mean(0)).T, dim), y, np.zeros(n, int)
    )
    assert cosine(direction.weights @ x, mixing[2]) >= 0.99


@pytest.mark.parametrize("seed", range(12))
def test_every_stored_vector_points_to_pos_where_a_few_dimensions_dominate(tmp_path, seed):
    activations = load_activations(
        planted.write_trait(tmp_path / "exp" / "poem", signal=1.0, seed=seed)
    )
    values = np.array(activations.values)
    values[:, :, :3] *= 30
    activations = _with_values(activations, values)
    vectors = fit_vectors(activations, FITTED)
    for (method, layer), metadata in vectors.metadata.items():
        x, y = rows_of(activations, layer)
        along = x @ vectors.vector(method, layer).astype(float)
        assert along[y].mean() >= along[~y].mean(), method
        assert metadata["separation"] >= 0


@pytest.mark.parametrize("method", FITTED)
def test_swapping_the_sides_turns_the_vector_round(folder, method):
    activations = load_activations(folder)
    turned = _with_labels(activations, ~activations.labels)
    one, other = fit_vectors(activations, [method]), fit_vectors(turned, [method])
    np.testing.assert_allclose(one.values, -other.values, rtol=1e-4, atol=1e-6)


def test_random_vectors_are_unit_and_fixed_by_layer():
    some, more = random_directions(32, 5, 1), random_directions(32, 5, 4)
    np.testing.assert_array_equal(some[0], more[0])
    np.testing.assert_allclose(np.linalg.norm(more, axis=1), 1)
    assert abs(cosine(more[0], random_directions(32, 6, 1)[0])) < 0.9


def test_constant_activations_give_finite_vectors(tmp_path):
    folder = planted.write_trait(tmp_path / "exp" / "flat", n_layers=1)
    activations = _with_values(load_activations(folder), np.ones((80, 1, 48), np.float32))
    vectors = fit_vectors(activations, FITTED)
    assert np.isfinite(vectors.values).all()


def test_files_are_as_documented_and_equal_on_a_second_run(folder):
    activations = load_activations(folder)
    first = write_vectors(folder, fit_vectors(activations))
    assert len(first) == 4 * 4 * 2
    held = {path: path.read_bytes() for path in first}
    write_vectors(folder, fit_vectors(load_activations(folder)))
    assert held == {path: path.read_bytes() for path in first}
    tensor = torch.load(folder / "vectors" / "probe_layer2.pt", weights_only=True)
    assert tensor.shape == (48,)
    assert tensor.dtype == torch.float32
    metadata = json.loads((folder / "vectors" / "probe_layer2_metadata.json").read_bytes())
    expected = {
        "trait": "poem",
        "method": "probe",
        "layer": 2,
        "model": planted.MODEL,
        "date": "2026-01-02T03:04:05Z",
    }
    assert expected.items() <= metadata.items()
    assert {
        "norm",
        "accuracy",
        "separation",
        "settings",
        "bias",
        "objective",
        "units",
        "source",
    } <= metadata.keys()
    assert metadata["norm"] == pytest.approx(float(tensor.norm()), rel=1e-5)


def test_accuracy_and_separation_are_those_of_the_stored_vector(folder):
    activations = load_activations(folder)
    write_vectors(folder, fit_vectors(activations))
    for method in ("mean_diff", "probe", "ica", "gradient"):
        vector, metadata = load_vector(folder, method, 1)
        x, y = rows_of(activations, 1)
        calls = x @ vector + metadata["bias"] > 0
        assert metadata["accuracy"] == pytest.approx((calls[y].mean() + (~calls[~y]).mean()) / 2)
        along = x @ vector / np.linalg.norm(vector)
        assert metadata["separation"] == pytest.approx(along[y].mean() - along[~y].mean(), rel=1e-4)


def test_safetensors_hold_what_pt_files_hold(folder):
    vectors = fit_vectors(load_activations(folder), ["probe"], [1, 3])
    (path,) = write_vectors(folder, vectors, "safetensors")
    assert path == folder / "vectors" / "probe.safetensors"
    packed = [load_vector(folder, "probe", layer) for layer in (1, 3)]
    write_vectors(folder, vectors)
    for (values, metadata), layer in zip(packed, (1, 3), strict=True):
        stored, described = load_vector(folder, "probe", layer)
        np.testing.assert_array_equal(values, stored)
        assert metadata == described


def test_vectors_of_other_activations_do_not_stay(folder):
    write_vectors(folder, fit_vectors(load_activations(folder)))
    for name, content in (
        ("mine_layer2_metadata.json", b'{"norm": 1}'),
        ("odd_layer2_metadata.json", b"[1]"),
    ):
        (folder / "vectors" / name).write_bytes(content)  # somebody's own
    planted.write_trait(folder, signal=2.0, seed=9)
    write_vectors(folder, fit_vectors(load_activations(folder), ["probe"], [2]))
    left = sorted(path.name for path in (folder / "vectors").iterdir())
    own = ["mine_layer2_metadata.json", "odd_layer2_metadata.json"]
    assert left == [*own, "probe_layer2.pt", "probe_layer2_metadata.json"]


def test_packed_vectors_of_other_activations_do_not_stay_and_layers_of_these_do(folder):
    one = fit_vectors(load_activations(folder), ["probe", "pca"])
    write_vectors(folder, one, "safetensors")
    write_vectors(folder, fit_vectors(load_activations(folder), ["probe"], [1]), "safetensors")
    for layer in range(4):
        values, metadata = load_vector(folder, "probe", layer)
        np.testing.assert_array_equal(values, one.vector("probe", layer))
        assert metadata["layer"] == layer
    other = folder / "vectors" / "mean_diff.prompt_last.safetensors"
    other.write_bytes((folder / "vectors" / "pca.safetensors").read_bytes())
    planted.write_trait(folder, signal=2.0, seed=9)
    write_vectors(folder, fit_vectors(load_activations(folder), ["probe"], [1]), "safetensors")
    assert {path.name for path in (folder / "vectors").iterdir()} == {
        "probe.safetensors",
        other.name,
    }
    with pytest.raises(UsageError, match=r"probe_layer2\.pt is missing; make it with"):
        load_vector(folder, "probe", 2)


@pytest.mark.parametrize("content", [None, b"{", b"[1]"])
def test_a_vector_without_its_metadata_is_one_clear_line(folder, content):
    write_vectors(folder, fit_vectors(load_activations(folder), ["probe"], [1]))
    beside = folder / "vectors" / "probe_layer1_metadata.json"
    beside.unlink() if content is None else beside.write_bytes(content)
    with pytest.raises(
        UsageError,
        match=r"probe_layer1_metadata\.json is missing or damaged; make it with: traitmill v",
    ):
        load_vector(folder, "probe", 1)


def test_pools_have_files_of_their_own(tmp_path):
    folder = planted.write_trait(tmp_path / "exp" / "poem", pools=("response_mean", "prompt_last"))
    write_vectors(folder, fit_vectors(load_activations(folder), ["mean_diff"], [0]))
    write_vectors(folder, fit_vectors(load_activations(folder, "prompt_last"), ["mean_diff"], [0]))
    names = {path.name for path in (folder / "vectors").glob("*.pt")}
    assert names == {"mean_diff_layer0.pt", "mean_diff_layer0.prompt_last.pt"}
    assert load_vector(folder, "mean_diff", 0, "prompt_last")[1]["pool"] == "prompt_last"


def test_rows_carry_their_question_and_instruction_pair(folder):
    activations = load_activations(folder)
    assert activations.labels.tolist() == [True] * 40 + [False] * 40
    np.testing.assert_array_equal(activations.instructions[:8], [0, 1, 2, 3, 0, 1, 2, 3])
    np.testing.assert_array_equal(activations.questions[:40], activations.questions[40:])
    assert len(set(activations.questions)) == 10


def test_a_runs_metadata_numbers_each_rows_texts(tmp_path):
    folder, settings = fakes.make_trait(tmp_path), fakes.settings(60)
    asyncio.run(fakes.pipeline(fakes.open_jobs([folder], settings), settings).run())
    definition = json.loads((folder / "trait_definition.json").read_text())
    metadata = planted.read_metadata(folder)
    numbers = iter(zip(metadata["instruction_index"], metadata["question_index"], strict=True))
    for side in ("pos", "neg"):
        with (folder / "responses" / f"{side}.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                pair, question = next(numbers)
                assert row["instruction"] == definition["instruction"][pair][side]
                assert row["question"] == definition["questions"][question]
    assert next(numbers, None) is None
    assert len(load_activations(folder).labels) == metadata["n_examples"] > 0


def test_earlier_metadata_gives_the_same_groups(folder):
    now = load_activations(folder)
    _without_indices(folder)
    before = load_activations(folder)
    np.testing.assert_array_equal(now.instructions, before.instructions)
    np.testing.assert_array_equal(now.questions, before.questions)


@pytest.mark.parametrize("numbered", [True, False])
def test_pairs_that_share_a_text_are_one_group(tmp_path, numbered):
    """Pairs 0 and 2 share their neg text, 2 and 3 their pos text: held out apart, they would meet
    again."""
    folder = planted.write_trait(tmp_path / "exp" / "poem")
    metadata = planted.read_metadata(folder)
    for name, old, new in (
        ("neg", "Do not, way 2.", "Do not, way 0."),
        ("pos", "Do it, way 3.", "Do it, way 2."),
    ):
        for path in (folder / "trait_definition.json", folder / "responses" / f"{name}.csv"):
            path.write_text(path.read_text().replace(old, new))
    planted.write_metadata(folder, metadata)
    if not numbered:
        _without_indices(folder)
    groups = load_activations(folder).instructions
    assert groups[:8].tolist() == [0, 1, 0, 0, 0, 1, 0, 0]
    np.testing.assert_array_equal(groups[:40], groups[40:])


# --- bad input ---


def _with_values(activations: Activations, values: np.ndarray) -> Activations:
    return Activations(
        activations.trait,
        values,
        activations.labels,
        activations.questions,
        activations.instructions,
        activations.layers,
        activations.pool,
        activations.metadata,
    )


def _with_labels(activations: Activations, labels: np.ndarray) -> Activations:
    return Activations(
        activations.trait,
        activations.values,
        labels,
        activations.questions,
        activations.instructions,
        activations.layers,
        activations.pool,
        activations.metadata,
    )


def _save(folder: Path, tensor: object) -> None:
    torch.save(tensor, folder / "activations" / "all_layers.pt")
    planted.write_metadata(folder, planted.read_metadata(folder))


def _no_activations(folder: Path) -> None:
    (folder / "activations" / "metadata.json").unlink()


def _damaged_metadata(folder: Path) -> None:
    (folder / "activations" / "metadata.json").write_text("{")


def _old_metadata(folder: Path) -> None:
    metadata = planted.read_metadata(folder)
    del metadata["sample_ids"]
    planted.write_metadata(folder, metadata)


def _edited_csv(folder: Path) -> None:
    path = folder / "responses" / "pos.csv"
    path.write_bytes(path.read_bytes().replace(b"Answer, 3", b"Answer, 4"))


def _missing_row(folder: Path) -> None:
    values = torch.load(folder / "activations" / "all_layers.pt", weights_only=True)
    _save(folder, values[:-1].clone())


def _half_precision(folder: Path) -> None:
    values = torch.load(folder / "activations" / "all_layers.pt", weights_only=True)
    _save(folder, values.half())


def _not_a_tensor(folder: Path) -> None:
    _save(folder, {"a": torch.zeros(2)})


def _truncated(folder: Path) -> None:
    path = folder / "activations" / "all_layers.pt"
    path.write_bytes(path.read_bytes()[:5000])
    planted.write_metadata(folder, planted.read_metadata(folder))


def _without_indices(folder: Path) -> None:
    """As files of earlier versions are."""
    metadata = planted.read_metadata(folder)
    del metadata["instruction_index"], metadata["question_index"]
    planted.write_metadata(folder, metadata)


def _other_definition(folder: Path) -> None:
    _without_indices(folder)
    path = folder / "trait_definition.json"
    path.write_text(path.read_text().replace("way 2", "manner 2"))


def _no_definition(folder: Path) -> None:
    _without_indices(folder)
    (folder / "trait_definition.json").unlink()


def _set(**changes: object):
    return lambda folder: planted.write_metadata(folder, planted.read_metadata(folder) | changes)


def _drop(key: str):
    def spoil(folder: Path) -> None:
        metadata = planted.read_metadata(folder)
        del metadata[key]
        planted.write_metadata(folder, metadata)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            _set(layers=3),
            "something else than it should under layers; write it anew with: traitmill export",
        ),
        (_set(layers=["a"]), "something else than it should under layers"),
        (_set(sample_ids=5), "something else than it should under sample_ids"),
        (_set(counts=[1], threshold="50"), "something else than it should under threshold, counts"),
        (_set(instruction_index=[0, 1]), "does not say for every kept response which question"),
        (_drop("counts"), "lacks counts"),
        (_drop("threshold"), "lacks threshold"),
        (
            _no_activations,
            "make them with: traitmill generate --experiment exp --trait poem --experiments_dir ",
        ),
        (_damaged_metadata, "not valid JSON"),
        (_old_metadata, "lacks sample_ids"),
        (_edited_csv, "pos.csv is not the file that activations/metadata.json describes"),
        (_missing_row, r"has shape \[79, 4, 48\].*say \[80, 4, 48\]"),
        (_half_precision, "torch.float16 tensor where a float32"),
        (_not_a_tensor, "a dict where a float32 tensor"),
        (_truncated, "not a plain tensor file"),
        (_other_definition, "lacks the pos instruction 'Do it, way 2.'"),
        (_no_definition, "trait_definition.json is missing"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UsageError, match=message) as caught:
        load_activations(folder)
    assert "\n" not in str(caught.value)


def test_f27_a_pickled_tensor_file_is_refused_and_not_run(folder, tmp_path):
    target = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (target,))

    buffer = io.BytesIO()
    pickle.dump(Evil(), buffer)
    for content in (buffer.getvalue(), _zip_with(Evil())):
        (folder / "activations" / "all_layers.pt").write_bytes(content)
        planted.write_metadata(folder, planted.read_metadata(folder))
        with pytest.raises(UsageError, match="not a plain tensor file"):
            load_activations(folder)
    assert not target.exists()


def _zip_with(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("count", [0, 1])
def test_f29_a_side_without_rows_is_named(tmp_path, count):
    folder = planted.write_trait(tmp_path / "exp" / "poem")
    metadata = planted.read_metadata(folder)
    path = folder / "responses" / "neg.csv"
    path.write_text("question,instruction,prompt,response,trait_score\n" + 'q,i,p,"r",1\n' * count)
    planted.write_metadata(folder, metadata)
    with pytest.raises(NothingKeptError, match=f"the neg side kept {count} response"):
        load_activations(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_f30_nan_is_named_by_sample_and_layer(folder, bad):
    values = torch.load(folder / "activations" / "all_layers.pt", weights_only=True)
    values[5, 2, 11] = bad
    _save(folder, values)
    sample = planted.read_metadata(folder)["sample_ids"][5]
    with pytest.raises(UsageError, match=f"row 5 \\(sample {sample}\\) at layer 2"):
        load_activations(folder)


def test_a_pool_that_was_not_captured_names_the_command(folder):
    with pytest.raises(
        UsageError, match=r"all_layers.prompt_last.pt is missing.*--pool prompt_last"
    ):
        load_activations(folder, "prompt_last")
    with pytest.raises(UsageError, match="unknown; choose from response_mean"):
        load_activations(folder, "mean")


def test_layers_out_of_range_and_unknown_methods(folder):
    activations = load_activations(folder)
    with pytest.raises(
        UsageError, match="4, 9 were not captured: the activations of poem hold layers 0 to 3"
    ):
        fit_vectors(activations, layers=[1, 9, 4])
    with pytest.raises(UsageError, match="4, 5, 6, 7, 8 and 493 more were not captured"):
        fit_vectors(activations, layers=range(502))
    with pytest.raises(UsageError, match="'prob' is unknown; did you mean probe"):
        check_methods(["mean_diff", "prob"])
    with pytest.raises(UsageError, match="names none"):
        check_methods([])
    with pytest.raises(UsageError, match=r"mean_diff_layer0\.pt is missing"):
        load_vector(folder, "mean_diff", 0)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        (None, None),
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
