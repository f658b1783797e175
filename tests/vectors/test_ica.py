"""FastICA is scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest

from traitmill.engine.vectors.ica import fast_ica


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_fast_ica_is_that_of_scikit_learn():
    from sklearn.decomposition import FastICA

    rng = np.random.default_rng(2)
    white = np.linalg.svd(rng.laplace(size=(150, 6)), full_matrices=False)[0] * np.sqrt(150)
    start = rng.standard_normal((6, 6))
    oracle = FastICA(whiten=False, w_init=start).fit_transform(white)
    (unmixing,), _ = fast_ica(white.T[None], start, np.array([150]))
    np.testing.assert_allclose(white @ unmixing.T, oracle, atol=1e-8)
