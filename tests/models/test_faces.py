"""Faces are light: importing one loads no heavy library."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

HEAVY = {"torch", "transformers", "vllm", "pyarrow", "polars", "openai", "huggingface_hub"}


@pytest.mark.parametrize("package", ["models", "traits", "generation"])
def test_a_face_loads_nothing_heavy_and_has_what_it_names(package: str) -> None:
    program = (
        f"import sys, traitmill.engine.{package} as face\n"
        "assert all(hasattr(face, name) for name in face.__all__)\n"
        f"print(sorted(set(sys.modules) & set({sorted(HEAVY)!r})))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert result.stdout.strip() == "[]"
