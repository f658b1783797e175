"""What callers give as settings is made plain, or refused in a line that names the setting."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import traitmill
from traitmill.engine.errors import UsageError
from traitmill.engine.settings import apply, plain_arguments, value_of


@pytest.mark.parametrize(
    ("name", "given", "plain"),
    [
        ("n_examples", np.int64(12), 12),
        ("n_examples", 12.0, 12),
        ("temperature", np.float32(0.5), 0.5),
        ("temperature", 1, 1.0),
        ("paired", np.bool_(True), True),
        ("layers", [0, 1], (0, 1)),
        ("layers", range(2), (0, 1)),
        ("layers", np.arange(2), (0, 1)),
        ("layers", "0-1,5", (0, 1, 5)),
        ("layers", "all", None),
        ("pool", ["response_mean"], ("response_mean",)),
        ("pool", "response_mean, prompt_last", ("response_mean", "prompt_last")),
        ("batch_size", "auto", None),
        ("judge_concurrency", "auto", 0),
        ("replicas", "auto", 0),
        ("neg_threshold", "off", None),
        ("chat_template_kwargs", {"enable_thinking": False}, '{"enable_thinking": false}'),
    ],
)
def test_ordinary_values_are_made_plain(name: str, given: Any, plain: Any) -> None:
    found = value_of(apply({name: given}), name)
    assert (found, type(found)) == (plain, type(plain))


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("capture", "keep"),
        ("capture", False),
        ("capture", ["all"]),
        ("judge_mode", "x"),
        ("self_check", "never"),
        ("self_check", None),
        ("judge_retry", "x"),
        ("include_embeddings", "no"),
        ("paired", "off"),
        ("paired", 2),
        ("threshold", True),
        ("threshold", "60"),
        ("threshold", None),
        ("threshold", 10**400),
        ("temperature", float("nan")),
        ("n_examples", True),
        ("n_examples", 5.5),
        ("n_examples", float("inf")),
        ("layers", 2),
        ("layers", [True]),
        ("pool", None),
        ("pool", 5),
        ("prefill", None),
        ("chat_template_kwargs", {"x": object()}),
    ],
)
def test_other_values_are_refused_by_the_settings_name(name: str, given: Any) -> None:
    with pytest.raises(UsageError, match=f"`{name}`"):
        apply({name: given})


def test_what_older_folders_remember_is_taken() -> None:
    assert apply({"paired": 1, "include_embeddings": 0}).paired is True
    assert apply({"chat_template_kwargs": {}}) == apply({"chat_template_kwargs": ""})
    assert apply({"layers": (np.int64(1), np.int64(3))}).capture.layers == (1, 3)


def test_the_command_lines_other_names_are_told() -> None:
    with pytest.raises(UsageError, match="it is `model` here"):
        apply({"gen_model": "x"})
    with pytest.raises(UsageError, match="it is `capture` here"):
        apply({"extract_activations": False})


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda e: traitmill.generate(e, traits=5), "`traits` takes a list, .* or None, not 5"),
        (lambda e: traitmill.judge(e, traits=[5]), r"`traits` takes .*, not \[5\]"),
        (lambda e: traitmill.capture(e, force_unlock="no"), "`force_unlock` takes True or False"),
        (lambda e: traitmill.generate(None), "`experiment` takes a path, not None"),
        (lambda e: traitmill.generate(e, listener=5), "`listener` takes an object of Listener or"),
        (lambda e: traitmill.generate(e, traits=[]), "`traits` names none; leave it out for all"),
        (lambda e: traitmill.preview(e, ["t"]), "`trait` takes text, not"),
        (lambda e: traitmill.preview(e, "t", questions="x"), "`questions` takes a whole number"),
        (lambda e: traitmill.preview(e, "t", questions=1.5), "`questions` takes a whole number"),
        (lambda e: traitmill.new_trait(e, 5), "`trait` takes text, not 5"),
        (lambda e: traitmill.check_traits(e, 5), "`traits` takes"),
        (lambda e: traitmill.import_traits(e, 5), "`experiment` takes a path, not 5"),
        (
            lambda e: traitmill.export(e, neg_threshold="of"),
            "`neg_threshold` takes a number or off",
        ),
        (lambda e: traitmill.export(e, paired="yes"), "`paired` takes True or False or None"),
        (
            lambda e: traitmill.project(e, 5, e),
            "`vectors` takes a list, each of it a path or a path",
        ),
        (lambda e: traitmill.project(e, e, e, models=5), "`models` takes"),
        (lambda e: traitmill.steer(e, ablate="no"), "`ablate` takes True or False, not 'no'"),
        (lambda e: traitmill.write_report(e, [5]), "`traits` takes"),
        (
            lambda e: traitmill.load_state(5),
            "`folder` takes an object of TraitFolder or a path, not",
        ),
        (lambda e: traitmill.load_vectors(None), "`folder` takes"),
        (lambda e: traitmill.load_activations(5), "`folder` takes"),
        (lambda e: traitmill.load_vector(e, "probe", "0"), "`layer` takes a whole number, not '0'"),
        (lambda e: traitmill.load_vector(e, "probe", 0, "foo"), "`pool` 'foo' is unknown; choose"),
        (lambda e: traitmill.export_vectors(e, e, "gguf", method=["p"]), "`method` takes text or"),
        (
            lambda e: traitmill.export_vectors(e, e, "guff"),
            "`format` 'guff' is unknown; choose from",
        ),
        (traitmill.fit_vectors, "`activations` takes what load_activations"),
        (lambda e: traitmill.fit_experiment(e, format="gguf"), "`format` .*choose from pt"),
    ],
)
async def test_arguments_of_another_type_are_refused_in_one_line(
    call: Callable[[Path], Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        found = call(tmp_path)
        if inspect.isawaitable(found):
            await found
    assert "\n" not in str(refused.value)


@plain_arguments
def _called(
    folder: Path | str,
    traits: Sequence[str] | str | None = None,
    *,
    layers: Sequence[int] | Literal["all"] | None = None,
    seed: int = 0,
    hear: Callable[[str], None] = print,
    **given: Any,
) -> tuple[Any, ...]:
    return folder, traits, layers, seed, hear, given


def test_arguments_are_made_plain() -> None:
    """Numpy's, and whatever can be listed; one name stands for a list of one."""
    path = Path("e")
    for given, expected in [
        ({"layers": np.arange(2), "seed": np.int64(3)}, (path, None, (0, 1), 3, print, {})),
        ({"layers": {1: "a"}.keys(), "seed": 4.0}, (path, None, (1,), 4, print, {})),
        ({"layers": "all", "traits": "all"}, (path, "all", "all", 0, print, {})),
        ({"traits": np.array(["t"]), "other": "5"}, (path, ("t",), None, 0, print, {"other": "5"})),
    ]:
        found = _called(path, **given)
        assert found == expected
        assert type(found[3]) is int
        assert found[2] == "all" or all(type(each) is int for each in found[2] or ())
    with pytest.raises(TypeError, match="missing"):
        _called()  # type: ignore[call-arg]  # as Python says it


def test_a_script_without_a_main_guard_is_told_of_it(tmp_path: Path) -> None:
    """The processes that a run starts read the script once more, and would begin the run anew."""
    script = tmp_path / "script.py"
    script.write_text(
        "import asyncio, multiprocessing\n"
        "import traitmill\n"
        "from traitmill.engine.errors import UsageError\n"
        "try:\n"
        "    asyncio.run(traitmill.generate('none'))\n"
        "except UsageError as error:\n"
        "    print(error, flush=True)\n"
        "if __name__ == '__main__':\n"
        "    child = multiprocessing.get_context('spawn').Process(target=print)\n"
        "    child.start()\n"
        "    child.join()\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    own, childs, _ = done.stdout.split("\n", 2)
    assert "__main__" not in own
    assert 'put the script\'s calls under if __name__ == "__main__":' in childs


@pytest.mark.parametrize(
    ("function", "name", "said"),
    [
        (traitmill.steer, "coeficients", "did you mean `coefficients`?"),
        (traitmill.generate, "gen_model", "did you mean `model`?"),
        (traitmill.load_vectors, "metod", "it takes folder, pool"),
    ],
)
def test_an_argument_that_no_function_has_is_named_with_the_nearest(function, name, said):
    with pytest.raises(UsageError, match="takes no argument") as found:
        result = function("experiment", **{name: 1})
        if inspect.isawaitable(result):
            asyncio.run(result)
    assert said in str(found.value)
    assert name in str(found.value)
