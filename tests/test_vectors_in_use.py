"""The page "Using a vector": every block of it runs as it stands, on a tiny model."""

from __future__ import annotations

import json
import re
import runpy
import shlex

import pytest

from tests.conftest import ROOT, Traitmill
from tests.support import fakes, lab, planted, talkers
from tests.support.adapters import make_adapter
from tests.vectors.helpers import evaluated
from traitmill.engine.errors import ExitCode

PAGE = (ROOT / "docs" / "vectors_in_use.md").read_text()
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
LAYERS = 15
"""The page speaks of layers 12 to 14."""


@pytest.fixture
def workplace(tmp_path):
    """A folder with what the page takes for granted."""
    models = {
        name: talkers.build_talker(tmp_path / "models" / name, seed=seed, layers=LAYERS)
        for seed, name in enumerate(("base", "finetune"))
    }
    folder = planted.write_trait(
        tmp_path / "experiments" / "my_experiment" / "my_trait", n_layers=LAYERS, dim=32
    )
    planted.write_metadata(folder, {**planted.read_metadata(folder), "model": models["base"]})
    evaluated(folder, ("mean_diff", "probe"))
    make_adapter(tmp_path / "path" / "to" / "lora", models["base"])
    work = lab.Work(tmp_path / "lab", n=6)
    work.root.mkdir()
    fakes.make_trait(work.root, "trait")
    assert lab.run_to_end(work) == ExitCode.OK
    (tmp_path / "experiments" / "other").mkdir()
    (work.root / "exp" / "trait").rename(tmp_path / "experiments" / "other" / "my_trait")
    rows = ({"prompt": f"Say {i}.", "response": f"The rain, {i}."} for i in range(4))
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return models


@pytest.mark.slow
def test_every_block_of_the_page_runs(workplace, tmp_path, monkeypatch, traitmill: Traitmill):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for language, block in BLOCKS:
        if language == "python":
            program = tmp_path / "block.py"
            program.write_text(block)
            names = runpy.run_path(str(program), init_globals=names)
            continue
        for line in block.splitlines():
            for name, folder in workplace.items():
                line = line.replace(f"org/{name}", folder)  # noqa: PLW2901
            program, *words = shlex.split(line)
            assert program == "traitmill"
            code, said = traitmill(*words)
            assert code == 0, (line, said)
    assert {language for language, _ in BLOCKS} == {"python", "bash"}
    assert repr(names["vectors"]).startswith("TraitVectors(my_trait: 2 methods x 15 layers")
    written = ["my_trait.gguf", "my_trait.pt", "my_trait.safetensors.md"]
    written += ["projected/index.html", "other/projections.csv", "compared/comparison.csv"]
    written += ["finetuned/comparison.csv"]
    for name in written:
        assert (tmp_path / name).is_file(), name
