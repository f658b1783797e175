"""The table of figures: what is in it, what is said to be missing, and its file."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from tests.support import planted
from tests.vectors.helpers import FAST, evaluated, row
from traitmill.engine.errors import UsageError
from traitmill.engine.outputs import Metadata, load_activations
from traitmill.engine.storage import TraitFolder
from traitmill.engine.vectors import evaluate_vectors, fit_vectors, read_evaluation


def test_cosines_are_those_of_the_vectors(tmp_path):
    folder = planted.write_trait(tmp_path / "exp" / "poem", signal=2.0)
    evaluation, vectors = evaluated(folder), fit_vectors(load_activations(folder), FAST)
    a, b = (vectors.vector(method, 1).astype(float) for method in FAST)
    expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert row(evaluation, "cosine", method=FAST[0], layer=1, other=FAST[1])[
        "value"
    ] == pytest.approx(expected)
    following = vectors.vector(FAST[0], 2).astype(float)
    expected = a @ following / np.linalg.norm(a) / np.linalg.norm(following)
    assert row(evaluation, "cosine_next_layer", method=FAST[0], layer=1)["value"] == pytest.approx(
        expected
    )


def test_one_instruction_pair_is_said(tmp_path):
    evaluation = evaluated(planted.write_trait(tmp_path / "exp" / "poem", n_pairs=1))
    assert evaluation.notes == (
        "held-out figures by instruction are not given: the kept rows have only one instruction",
    )
    assert "- unseen instructions not tested\n" in evaluation.recommendation.text
    assert evaluation.recommendation.reason.endswith(", for these instructions only.")
    assert not evaluation.recommendation.general
    assert set(evaluation.table.filter(pl.col("measure") == "auroc")["split"]) == {"question"}


def test_two_instruction_pairs_claim_no_more_than_five(tmp_path):
    evaluation = evaluated(planted.write_trait(tmp_path / "exp" / "poem", n_pairs=2))
    assert evaluation.recommendation.claim
    assert not evaluation.recommendation.general
    assert evaluation.recommendation.reason.endswith(", for these instructions only.")
    said = "- unseen instructions not tested so that the choice could be corrected\n"
    assert said in evaluation.recommendation.text
    assert "instruction" in set(evaluation.table.filter(pl.col("measure") == "auroc")["split"])


def test_one_question_and_one_instruction_leave_nothing_to_hold_out(tmp_path):
    evaluation = evaluated(planted.write_trait(tmp_path / "exp" / "poem", n_pairs=1, n_questions=1))
    assert evaluation.recommendation is None
    assert len(evaluation.notes) == 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n_per_side", [2, 3, 4, 5])
def test_very_few_rows_give_nulls_and_no_nan(tmp_path, n_per_side):
    folder = planted.write_trait(
        tmp_path / "exp" / "poem", n_per_side=n_per_side, n_pairs=2, n_questions=3, n_layers=1
    )
    evaluation = evaluated(folder)
    for column in ("value", "low", "high"):
        assert not evaluation.table[column].is_nan().any()
    missing = evaluation.table.filter(pl.col("measure") == "shuffled_auroc")["value"].null_count()
    assert bool(missing) == any(
        note.startswith("shuffled labels are not measured") for note in evaluation.notes
    )


def read(folder):
    return read_evaluation(TraitFolder(folder), Metadata.read(TraitFolder(folder)))


def test_an_evaluation_survives_its_file_and_is_the_same_again(tmp_path):
    folder = planted.write_trait(tmp_path / "exp" / "poem")
    evaluation = evaluated(folder)
    path = folder / "evaluation.parquet"
    content = path.read_bytes()
    again = read(folder)
    assert again.table.equals(evaluation.table)
    assert again.table.schema == evaluation.table.schema
    assert again.recommendation == evaluation.recommendation
    assert again.notes == evaluation.notes
    assert pl.read_parquet(path).equals(evaluation.table)  # as documented, without our reader
    facts = json.loads(pl.read_parquet_metadata(path)["traitmill"])
    assert facts["recommendation"]["reason"] == evaluation.recommendation.reason
    assert tuple(facts["recommendation"]["why"]) == evaluation.recommendation.why
    assert facts["activations_sha256"] == load_activations(folder).sha256
    evaluated(folder)
    assert path.read_bytes() == content


def test_stale_missing_and_damaged_evaluations_name_the_step(tmp_path):
    folder = planted.write_trait(tmp_path / "exp" / "poem")
    step = TraitFolder(folder).step("vectors", pool="response_mean")
    with pytest.raises(UsageError, match="is missing; make it") as caught:
        read(folder)
    assert caught.value.step == step
    evaluated(folder)
    planted.write_trait(folder, seed=5)
    with pytest.raises(UsageError, match="is of other activations than") as caught:
        read(folder)
    assert caught.value.step == step
    (folder / "evaluation.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UsageError, match="cannot be read") as caught:
        read(folder)
    assert caught.value.step == step


def test_what_a_narrower_evaluation_no_longer_covers_is_said(tmp_path):
    folder = planted.write_trait(tmp_path / "exp" / "poem")
    evaluation, activations = evaluated(folder), load_activations(folder)
    assert evaluation.beyond(fit_vectors(activations, FAST)) == ""
    assert evaluation.beyond(fit_vectors(activations, ["gradient"])) == "mean_diff"
    narrow = fit_vectors(activations, ["gradient"], [1, 2])
    assert evaluation.beyond(narrow) == "mean_diff, 2 layers"
    assert evaluation.beyond(fit_vectors(activations, FAST, [1, 2, 3])) == "1 layer"


def test_vectors_of_other_rows_are_not_evaluated(tmp_path):
    """Cosines were those given and AUROCs of the other rows, under one trait's name."""
    folders = [planted.write_trait(tmp_path / "exp" / name, seed=i) for i, name in enumerate("ab")]
    a, b = map(load_activations, folders)
    vectors = fit_vectors(a, FAST, [1])
    evaluate_vectors(a, vectors)
    with pytest.raises(
        UsageError, match="vectors of a .* were fitted to other rows than these of b"
    ):
        evaluate_vectors(b, vectors)
    for wrong in ((a, None), (None, vectors), (a, folders[0])):
        with pytest.raises(UsageError, match=r"takes what (fit|load)_\w+\(\w+\) returns, not"):
            evaluate_vectors(*wrong)
    with pytest.raises(UsageError, match="`seed` must be a whole number from 0, not -1"):
        evaluate_vectors(a, vectors, seed=-1)
