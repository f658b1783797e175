"""The two spaces in which stage 3 fits: their results are the same."""

from __future__ import annotations

import math

import pytest

from traitmill.engine.vectors import rows


@pytest.fixture(params=["rows", "width"])
def space(request, monkeypatch) -> str:
    """Fit from the rows' Gram matrix, or from sums in the width, whatever the shape."""
    for border in ("FIT_TALL", "FOLDS_TALL"):
        monkeypatch.setattr(rows, border, math.inf if request.param == "rows" else 0)
    return str(request.param)
