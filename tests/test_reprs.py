"""What Python users print is one short line, whatever it holds."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

import traitmill
from tests.support import fakes, lab
from traitmill.engine import run
from traitmill.engine.errors import ExitCode
from traitmill.engine.run import PreviewRow
from traitmill.engine.steering.commands import SteeredTrait, SteeringResult
from traitmill.engine.steering.findings import Claim
from traitmill.engine.storage import TraitFolder

LONGEST = 160


@pytest.mark.slow
def test_t09_every_object_of_the_face_prints_as_one_short_line(tmp_path):
    work = lab.Work(tmp_path, n=30)
    fakes.make_trait(work.root, "trait")
    assert lab.run_to_end(work) == ExitCode.OK
    experiment = tmp_path / "exp"
    folder = experiment / "trait"
    activations = traitmill.load_activations(folder)
    vectors = traitmill.fit_vectors(activations, ["mean_diff", "probe"])
    fitted = traitmill.fit_experiment(experiment, methods=["mean_diff"])
    exported = run.export(experiment)
    state = traitmill.load_state(TraitFolder(folder))
    shown = {
        "Activations": activations,
        "Metadata": activations.metadata,
        "Vectors": vectors,
        "Evaluation": traitmill.evaluate_vectors(activations, vectors),
        "FitResult": fitted,
        "FitResult of several": replace(fitted, fitted={**fitted.fitted, "more": 1}),
        "FittedTrait": fitted.fitted["trait"],
        "TraitVectors": traitmill.load_vectors(folder),
        "ExportResult": exported,
        "Exported": exported.exported["trait"],
        "ReportResult": traitmill.write_report(experiment),
        "TraitState": state,
    }
    for name, each in shown.items():
        text = repr(each)
        assert text.startswith(f"{name.split()[0]}("), text
        assert len(text) <= LONGEST, text
        assert "\n" not in text
        assert "array" not in text
        assert pickle.dumps(each), "a process of its own can be given it"
    lack = fitted.fitted["trait"].evaluation.recommendation.lack
    assert bool(lack)  # so few rows carry no claim
    assert lack in repr(fitted)
    assert "2 fitted" in repr(shown["FitResult of several"])


def test_t09_what_holds_texts_prints_none_of_them(tmp_path):
    claim = Claim(
        "mean_diff", 14, 0.25, has_effect=False, sentence="No effect is shown: " * 40, n_missing=3
    )
    steered = SteeredTrait("poem", TraitFolder(tmp_path), claim, (("Q?", ("long " * 99,)),))
    rows = tuple(PreviewRow("Q?", "pos", "long " * 99, "scored", 71.5) for _ in range(40))
    shown = {
        "SteeredTrait": (steered, "mean_diff at layer 14"),
        "SteeringResult": (
            SteeringResult({"poem": steered}, {}, False, 1.0, None),
            "No effect is shown, mean_diff at layer 14, coefficient 0.25, 3 missing",
        ),
        "Preview": (run.Preview({"pos": "long " * 99, "neg": ""}, rows, None), "pos 71.5"),
    }
    for name, (each, said) in shown.items():
        text = repr(each)
        assert text.startswith(f"{name}("), text
        assert said in text
        assert len(text) <= LONGEST, text
