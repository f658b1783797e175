"""What tests of vectors share: fitted planted traits, and figures looked up or computed anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from sklearn.metrics import roc_auc_score

from traitmill.engine.outputs import load_activations
from traitmill.engine.storage import TraitFolder
from traitmill.engine.vectors import (
    Evaluation,
    evaluate_vectors,
    fit_vectors,
    write_evaluation,
    write_vectors,
)

FAST = ("mean_diff", "gradient")


def evaluated(folder: Path, methods=FAST, layers=None) -> Evaluation:
    """Fit, evaluate and write one trait."""
    activations = load_activations(folder)
    vectors = fit_vectors(activations, methods, layers)
    evaluation = evaluate_vectors(activations, vectors)
    write_vectors(TraitFolder(folder), vectors)
    write_evaluation(TraitFolder(folder), evaluation)
    return evaluation


def row(evaluation: Evaluation, measure: str, **where: object) -> dict:
    """The one row of a figure."""
    (found,) = evaluation.table.filter(pl.col("measure") == measure, **where).iter_rows(named=True)
    return found


def within_folds(scores, labels, folds) -> float:
    """AUROC over pairs of one fold, from scikit-learn's per-fold AUROC."""
    parts = [(labels[f == folds], scores[f == folds]) for f in np.unique(folds)]
    pairs = [y.sum() * (~y).sum() for y, _ in parts]
    return float(np.average([roc_auc_score(y, s) for y, s in parts], weights=pairs))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(float), b.astype(float)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def rows_of(activations, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows at a layer in float64, and labels."""
    return activations.values[:, layer].astype(np.float64), activations.labels
