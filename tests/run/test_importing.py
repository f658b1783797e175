"""Traits of other projects: what is taken, changed and left, and nothing half-written."""

from __future__ import annotations

import asyncio
import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Traitmill
from tests.support import fakes
from traitmill.engine.errors import TraitmillError
from traitmill.engine.outputs import load_activations
from traitmill.engine.run import import_traits
from traitmill.engine.storage import TraitFolder, select
from traitmill.engine.traits import load_traits

EVAL = "Asked: {question} Said: {answer} Answer with a number from 0 to 100."


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        path.write_text("".join(lines))
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def roles(root: Path, default: list[str] | None = None) -> Path:
    """As assistant-axis keeps them: roles in a folder, the questions of all two above."""
    write(root / "extraction_questions.jsonl", [{"question": "How is salt made?", "id": 1}])
    folder = root / "roles" / "instructions"
    if default is not None:
        write(folder / "default.json", {"instruction": [{"pos": text} for text in default]})
    content = {
        "description": "One who sails.",
        "instruction": [{"pos": "You are a sailor."}, {"pos": "Speak as a sailor would."}],
        "questions": ["What is on the horizon?"],
        "eval_prompt": EVAL.replace("100", "3"),
    }
    return write(folder / "sailor.json", content)


def definition(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "trait_definition.json").read_text())
    [trait] = load_traits({folder.name: folder})  # every one of them can be run
    assert trait.name == folder.name
    assert isinstance(found, dict)
    return found


def test_a_role_is_held_against_the_default_assistant(tmp_path: Path) -> None:
    source = roles(tmp_path / "data", ["", "You are a program.", "You are {model_name}."])
    [found] = import_traits(source, tmp_path / "exp")
    assert definition(found.path) == {
        "instruction": [
            {"pos": "You are a sailor.", "neg": None},
            {"pos": "Speak as a sailor would.", "neg": "You are a program."},
        ],
        "questions": ["How is salt made?"],
        "eval_prompt": EVAL.replace("100", "3"),
        "score_min": 0,
        "score_max": 3,
    }
    left = "\n".join(found.left)
    assert "description" in left
    assert "1 questions of its own" in left
    assert "{model_name}" in left
    for name in ("sailor.json", "default.json", "extraction_questions.jsonl"):
        kept = found.path / "imported" / name
        [original] = (tmp_path / "data").rglob(name)
        assert kept.read_bytes() == original.read_bytes()
    report = json.loads((found.path / "imported/import_report.json").read_text())
    assert (report["left"], report["changed"]) == (list(found.left), list(found.changed))


def test_a_model_that_is_named_takes_its_place_and_no_default_is_no_instruction(
    tmp_path: Path,
) -> None:
    source = roles(tmp_path / "a", ["You are {model_name}."])
    [named] = import_traits(source, tmp_path / "one", model_name="Ada")
    assert [pair["neg"] for pair in definition(named.path)["instruction"]] == ["You are Ada."] * 2
    [bare] = import_traits(roles(tmp_path / "b"), tmp_path / "two")
    assert [pair["neg"] for pair in definition(bare.path)["instruction"]] == [None, None]


def test_traits_load_as_they_are_and_persona_vectors_names_its_assistants(tmp_path: Path) -> None:
    content = {
        "instruction": [{"pos": "Be eager.", "neg": "Be calm."}],
        "questions": ["What now?"],
        "eval_prompt": EVAL,
    }
    plain = write(tmp_path / "traits/eager.json", content)
    theirs = write(tmp_path / "trait_data_extract/eager.json", content)
    [axis] = import_traits(plain, tmp_path / "one")
    assert definition(axis.path) == content
    assert not axis.changed
    for source, kind, experiment in (
        (theirs, "auto", "two"),
        (plain, "persona_vectors", "three"),
        (theirs.parent, "auto", "four"),
    ):
        [found] = import_traits(source, tmp_path / experiment, kind=kind)
        names = {"pos": "eager", "neg": "helpful"}
        assert definition(found.path) == content | {"assistant_name": names}


def test_scenarios_are_pairs_of_whole_prompts(tmp_path: Path) -> None:
    folder = tmp_path / "traits" / "mildness"
    write(folder / "positive.txt", "  Softly she said\n\nHe smiled and\nMore of\n")
    write(folder / "negative.txt", "Loudly she said\nHe frowned and\n")
    write(folder / "definition.txt", "Mild words. {answer} { x }\n")
    write(folder / "steering.json", {"questions": ["How was it?"]})
    [found] = import_traits(folder.parent, tmp_path / "exp")
    made = definition(found.path)
    assert made["instruction"] == [
        {"pos": "Softly she said", "neg": "Loudly she said"},
        {"pos": "He smiled and", "neg": "He frowned and"},
    ]
    assert made["questions"] is None
    assert made["eval_prompt"].count("{answer}") == made["eval_prompt"].count("{question}") == 1
    assert "Mild words. (answer) { x }" in made["eval_prompt"]
    left = "\n".join(found.left)
    assert "1 positive prompts" in left
    assert "steering.json" in left
    [trait] = load_traits({"mildness": found.path})
    assert trait.asked("neg", 1, 0) == ("", "He frowned and")


def test_scenarios_with_system_prompts_are_instructions_and_questions(tmp_path: Path) -> None:
    def table(systems: list[str], prompts: list[str]) -> list[dict[str, str]]:
        return [{"prompt": p, "system_prompt": s} for s in systems for p in prompts]

    folder = tmp_path / "calm"
    write(folder / "positive.jsonl", table(["Be calm.", "Stay calm."], ["a?", "b?"]))
    write(folder / "negative.jsonl", table(["Be wild.", "Stay wild."], ["a?", "b?"]))
    [found] = import_traits(folder, tmp_path / "exp")
    made = json.loads((found.path / "trait_definition.json").read_text())
    assert made["questions"] == ["a?", "b?"]
    assert made["instruction"][1] == {"pos": "Stay calm.", "neg": "Stay wild."}
    assert any("eval_prompt" in line for line in found.to_mend)
    write(folder / "negative.jsonl", table(["Be wild."], ["a?", "c?"]))
    with pytest.raises(TraitmillError, match="not combined each with each"):
        import_traits(folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("rows", "instructions", "questions"),
    [
        ([{"pos": "A", "neg": "B"}], [("A", "B")], None),
        ([{"positive": "A", "negative": "B"}], [("A", "B")], None),
        (
            [{"pos": "A", "neg": "B", "question": q} for q in ("a?", "b?")],
            [("A", "B")],
            ["a?", "b?"],
        ),
        (
            [
                {"pos": pos, "neg": neg, "question": q}
                for pos, neg in (("A", "X"), ("B", "X"), ("C", "Y"))
                for q in ("a?", "b?")
            ],
            [("A", "X"), ("B", "X"), ("C", "Y")],
            ["a?", "b?"],
        ),
        (
            [
                {"pos": "A", "neg": "B", "question": "a?"},
                {"pos": "C", "neg": "D", "question": "b?"},
            ],
            [("A\n\na?", "B\n\na?"), ("C\n\nb?", "D\n\nb?")],
            None,
        ),
        (
            [{"pos": "A\u2028", "neg": "B", "question": "a?"}, {"pos": "C", "neg": "D"}],
            [("A\u2028\n\na?", "B\n\na?"), ("C", "D")],
            None,
        ),
    ],
)
def test_pairs_a_line(
    tmp_path: Path,
    rows: list[dict[str, str]],
    instructions: list[tuple[str, str]],
    questions: list[str] | None,
) -> None:
    [found] = import_traits(write(tmp_path / "song.jsonl", rows), tmp_path / "exp")
    made = json.loads((found.path / "trait_definition.json").read_text())
    assert [(pair["pos"], pair["neg"]) for pair in made["instruction"]] == instructions
    assert made["questions"] == questions


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.json", "{", "x.json: line 1: "),
        ("x.json", "[]", "x.json: must be a JSON object"),
        ("x.json", {"questions": []}, "`instruction` must be a list of objects with `pos`"),
        ("x.json", {"instruction": [{"pos": 3}], "eval_prompt": EVAL}, "must be a string"),
        (
            "x.json",
            {"instruction": [{"pos": "a", "neg": "b"}], "questions": 3},
            "a list of strings",
        ),
        ("x.jsonl", "", "is empty"),
        ("x.jsonl", '{"pos": "a", "neg": "b"}\n{"pos": "a"}\n', "line 2: `neg` must be a text"),
        ("x.jsonl", '{"pos": "a", "neg": "b"}\n3\n', "line 2: must be a JSON object"),
        (
            "x.jsonl",
            '{"pos": "a", "neg": "b", "question": 5}\n',
            "line 1: `question` must be a text",
        ),
        ("x.jsonl", '{"pos": "a", "neg": "b\\ud83d"}\n', "line 1: holds a lone surrogate"),
        ("x.jsonl", "[" * 9000 + "\n", "line 1: "),
        (
            "x.json",
            '{"instruction": [], "instruction": []}',
            "`instruction` appears more than once",
        ),
        ("x.json", '{"score_max": ' + "9" * 5000 + "}", "x.json: Exceeds the limit"),
        ("x.csv", "pos,neg", "none of what can be imported"),
        ("!.jsonl", '{"pos": "a", "neg": "b"}\n', "trait name '!' is refused"),
    ],
)
def test_what_cannot_be_read_is_one_line_and_writes_nothing(
    tmp_path: Path, traitmill: Traitmill, name: str, content: Any, said: str
) -> None:
    source = tmp_path / name
    source.write_text(content if isinstance(content, str) else json.dumps(content))
    code, out = traitmill("import", source, "--to", "exp")
    assert code == 2
    assert said in out
    assert "Traceback" not in out
    assert not Path("experiments").exists()


def test_a_name_that_no_folder_can_have_is_made_one_that_can(tmp_path: Path) -> None:
    pairs = [{"pos": "a", "neg": "b"}]
    source = write(tmp_path / "data" / "Größe & mut (v2).jsonl", pairs)
    [found] = import_traits(source, tmp_path / "exp")
    assert (found.name, found.path) == ("Groe_mut_v2", tmp_path / "exp" / "Groe_mut_v2")
    assert found.changed[-1].startswith("named Groe_mut_v2: 'Größe & mut (v2)' cannot be")
    assert (found.path / "imported" / source.name).is_file()
    for name in ("a b.json", "a_b.json"):
        content = fakes.definition() | {"eval_prompt": EVAL}
        write(tmp_path / "two" / name, content)
    with pytest.raises(TraitmillError, match="2 of the traits would be a_b: rename"):
        import_traits(tmp_path / "two", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    folder = tmp_path / "warm"
    folder.mkdir()
    for name, text in (("positive", "hello"), ("negative", "bye"), ("definition", "warmth")):
        (folder / f"{name}.txt").write_text(text, encoding="utf-8-sig")
    [found] = import_traits(folder, tmp_path / "exp")
    assert "\ufeff" not in (found.path / "trait_definition.json").read_text()
    marked = tmp_path / "cold.JSONL"
    marked.write_text('{"pos": "a", "neg": "b"}\n', encoding="utf-8-sig")
    assert [each.path.name for each in import_traits(marked, tmp_path / "exp")] == ["cold"]


@pytest.mark.parametrize("default", [{"pos": None}, {"neg": "x"}, None])
def test_a_default_role_without_instructions_is_refused(tmp_path: Path, default: Any) -> None:
    source = roles(tmp_path / "data", ["You are a program."])
    [file] = (tmp_path / "data").rglob("default.json")
    file.write_text(json.dumps({"instruction": [default] if default else []}))
    with pytest.raises(TraitmillError, match="must be a list of objects with `pos`"):
        import_traits(source, tmp_path / "exp")


def test_a_system_prompt_that_is_no_text_is_refused(tmp_path: Path) -> None:
    for side in ("positive", "negative"):
        file = tmp_path / "warm" / f"{side}.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_text('{"prompt": "a", "system_prompt": ["x"]}\n')
    with pytest.raises(TraitmillError, match="line 1: `system_prompt` must be a text"):
        import_traits(tmp_path / "warm", tmp_path / "exp")


def test_traits_of_an_experiment_keep_the_names_of_their_folders(tmp_path: Path) -> None:
    content = {
        "instruction": [{"pos": "Be eager.", "neg": "Be calm."}],
        "questions": ["What now?"],
        "eval_prompt": EVAL,
    }
    for name in ("eager", "keen"):
        write(tmp_path / f"theirs/{name}/trait_definition.json", content)
    found = import_traits(tmp_path / "theirs", tmp_path / "exp")
    assert [each.path.name for each in found] == ["eager", "keen"]
    [one] = import_traits(tmp_path / "theirs/keen", tmp_path / "two")
    assert definition(one.path) == content


def test_a_trait_that_is_there_is_left_alone_and_none_beside_it_is_written(
    tmp_path: Path, traitmill: Traitmill
) -> None:
    folder = tmp_path / "traits"
    for name in ("one", "two"):
        content = {"instruction": [{"pos": "A", "neg": "B"}], "questions": ["q?"]}
        write(folder / f"{name}.json", content | {"eval_prompt": EVAL})
    there = Path("experiments/exp/two")
    there.mkdir(parents=True)
    code, out = traitmill("import", folder, "--to", "exp")
    assert code == 2
    assert "is there already" in out
    assert [path.name for path in there.parent.iterdir()] == ["two"]
    there.rmdir()
    code, out = traitmill("import", folder, "--to", "exp")
    assert code == 0
    assert "2 traits imported" in out
    assert sorted(path.name for path in there.parent.iterdir()) == ["one", "two"]


def test_an_import_that_was_killed_goes_on_and_leaves_no_trait_behind(
    tmp_path: Path, traitmill: Traitmill
) -> None:
    source, root = tmp_path / "traits", tmp_path / "exp"
    for name in ("one", "two"):
        content = {"instruction": [{"pos": "A", "neg": "B"}], "questions": ["q?"]}
        write(source / f"{name}.json", content | {"eval_prompt": EVAL})
    import_traits(source, root)
    (root / "two").rename(root / ".importing-two-99")  # killed before the last step
    assert list(select(root, None)) == ["one"]
    mended = root / "one" / "mine.txt"
    mended.write_text("kept")
    found = import_traits(source, root)
    assert [each.path for each in found] == [root / "one", root / "two"]
    assert list(select(root, None)) == ["one", "two"]
    assert mended.read_text() == "kept"
    definition_file = root / "one" / "trait_definition.json"
    definition_file.write_text(definition_file.read_text().replace("q?", "r?"))
    with pytest.raises(TraitmillError, match="one is there already"):
        import_traits(source, root)


def test_whole_prompts_run_and_are_held_out_by_pair(tmp_path: Path) -> None:
    pairs = [{"pos": f"Softly {i} she", "neg": f"Loudly {i} she"} for i in range(12)]
    content = {"instruction": pairs, "questions": None, "eval_prompt": EVAL}
    folder = fakes.make_trait(tmp_path, content=content)
    settings = fakes.settings(48)
    runs = fakes.open_runs([folder], settings)
    asyncio.run(fakes.pipeline(runs, settings).run())
    found = load_activations(TraitFolder(folder))
    assert set(found.instructions) <= set(range(12))
    assert len(set(found.instructions)) > 8
    with (folder / "responses/pos.csv").open(newline="") as file:
        [row, *_] = csv.DictReader(file)
    assert (row["instruction"], row["prompt"]) == ("", row["question"])
    assert row["question"].startswith("Softly ")
