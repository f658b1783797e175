"""A model folder's own code is never run, and nobody is asked whether it may be."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import TRAITMILL, clean_environment
from traitmill.engine.errors import AccessError
from traitmill.engine.models import ModelRef, check_support, find_model, load_tokenizer

OWN = """\
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizer
Path({marker!r}).touch()
class OwnConfig(LlamaConfig): model_type = {kind!r}
class OwnModel(LlamaForCausalLM): config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizer): pass
"""


@pytest.fixture(params=["owned", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, model_folder: Path) -> Path:
    """The embedded model with code of its own beside: of a kind of its own, or with a tokenizer."""
    made = tmp_path / "model"
    shutil.copytree(model_folder, made)
    config = json.loads((made / "config.json").read_text())
    if request.param == "owned":
        config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    config["model_type"] = request.param
    (made / "config.json").write_text(json.dumps(config))
    (made / "tokenizer.json").unlink()
    described = {
        "tokenizer_class": "OwnTokenizer",
        "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]},
    }
    (made / "tokenizer_config.json").write_text(json.dumps(described))
    text = OWN.format(marker=str(tmp_path / "ran"), kind=request.param)
    (made / "own.py").write_text(text)
    return made


@pytest.mark.slow
def test_t42_a_folders_code_never_runs_and_stdin_is_not_read(folder: Path, tmp_path: Path) -> None:
    """Yes to every question, as `yes |` says it."""
    result = subprocess.run(
        [TRAITMILL, "doctor", "--gen_model", str(folder), "--judge_model", "local"],
        input="y\n" * 1000,
        env=clean_environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = result.stdout + result.stderr
    assert "auto_map" in said
    assert "[y/N]" not in said
    assert result.returncode == 3, said
    assert not (tmp_path / "ran").exists()


def test_t42_what_a_folder_brings_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    ref: ModelRef = find_model(str(folder))
    with pytest.raises(AccessError, match="brings code of its own"):
        load_tokenizer(ref)
    if ref.config["model_type"] == "owned":
        with pytest.raises(AccessError, match="brings code of its own"):
            check_support(ref, captures=True)
    assert not (tmp_path / "ran").exists()
