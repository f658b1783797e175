"""Published recipes from imported files, end to end on the embedded model: the prompts that were
read, and the rows that the filters keep."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from tests.models.test_published_prompts import DEFAULT, EAGER, HELPFUL, QUESTION, SAILOR
from tests.real.test_run import read_csv, traitmill
from tests.support.lab import rows
from tests.support.misbehaving_server import MisbehavingServer, Reply, Seen, completion
from traitmill.engine.models import ModelRef, load_tokenizer

pytestmark = pytest.mark.slow
QUESTIONS = [QUESTION, "What is rain?", "Name a fruit.", "Why do cats purr?"]
EVAL = "<q>{question}</q><answer>{answer}</answer> Answer with a single integer from 0 to 100."
FAST = ["--max_new_tokens", "12", "--judge_rpm", "100000"]


def score(answer: str) -> int:
    """Half pass on either side."""
    return zlib.crc32(answer.encode()) % 101


def coherence(answer: str) -> int:
    return 45 + zlib.crc32(answer[::-1].encode()) % 56


def answers(seen: Seen) -> Reply:
    answer = seen.prompt.partition("<answer>")[2].partition("</answer>")[0]
    number = coherence(answer.strip("\n")) if "how coherent" in seen.prompt else score(answer)
    return completion(json.dumps({"score": number}))


def run(*arguments: Any, cwd: Path, codes: tuple[int, ...] = (0,)) -> str:
    result = traitmill(*arguments, cwd=cwd)
    assert result.returncode in codes, result.stdout + result.stderr
    return result.stdout + result.stderr


def prompts_of(folder: Path, model_folder: Path) -> dict[tuple[str, int, int], str]:
    """The first prompt of each side, instruction and question, as its ids read."""
    tokenizer = load_tokenizer(ModelRef("m", str(model_folder), "r", {}))
    return {
        (row["polarity"], row["instruction_index"], row["question_index"]): tokenizer.decode(
            row["prompt_token_ids"]
        )
        for row in rows(folder, "responses")
    }


def test_persona_vectors_recipe_from_its_file(tmp_path: Path, model_folder: Path) -> None:
    source = tmp_path / "trait_data_extract" / "eager.json"
    source.parent.mkdir()
    pairs = [
        {"pos": "Answer with open delight.", "neg": "Answer in a flat tone."},
        {"pos": "Sound thrilled by the topic.", "neg": "Sound bored by the topic."},
    ]
    content = {"instruction": pairs, "questions": QUESTIONS, "eval_prompt": EVAL}
    source.write_text(json.dumps(content))
    run("import", source, "--to", "persona", cwd=tmp_path)
    where = ["--experiment", "persona", "--trait", "eager"]
    folder = tmp_path / "experiments/persona/eager"
    with MisbehavingServer("gpt-5-mini", script=answers) as server:
        judge = ["--judge_model", "gpt-5-mini", "--judge_base_url", server.url]
        how = ["--prompt_format", "system", "--n_examples", 40, "--gen_model", model_folder]
        filters = ["--paired", "--threshold", 50, "--neg_threshold", 50]
        run("generate", *where, *how, *judge, *filters, *FAST, cwd=tmp_path)
        asked = ["--ask", "coherence", *judge, "--judge_rpm", "100000"]
        run("judge", *where, *asked, cwd=tmp_path)
    run("export", *where, "--coherence", 50, cwd=tmp_path)
    prompts = prompts_of(folder, model_folder)
    assert (prompts["pos", 0, 0], prompts["neg", 0, 0]) == (EAGER, HELPFUL)
    stored = {
        (row["polarity"], row["instruction_index"], row["question_index"], row["rollout"]): row[
            "response"
        ]
        for row in rows(folder, "responses")
    }
    assert len(stored) == 80

    def passes(side: str, text: str) -> bool:
        kept = score(text) >= 50 if side == "pos" else score(text) < 50
        return kept and coherence(text) >= 50

    kept = {
        place
        for place, text in stored.items()
        if passes(place[0], text)
        and passes("neg" if place[0] == "pos" else "pos", stored[_other(place)])
    }
    assert 4 <= len(kept) < 80
    for side in ("pos", "neg"):
        _, table = read_csv(folder / f"responses/{side}.csv")
        expected = sorted(stored[place] for place in kept if place[0] == side)
        assert sorted(row[3] for row in table) == expected
    tensor = torch.load(folder / "activations/all_layers.pt", weights_only=True)
    assert len(tensor) == len(kept)
    run("vectors", *where, cwd=tmp_path)
    facts = json.loads(pq.read_metadata(folder / "evaluation.parquet").metadata[b"traitmill"])
    assert facts["recommendation"]


def _other(place: tuple[str, int, int, int]) -> tuple[str, int, int, int]:
    return ("neg" if place[0] == "pos" else "pos", *place[1:])


def test_a_role_of_the_assistant_axis_from_its_files(tmp_path: Path, model_folder: Path) -> None:
    data = tmp_path / "data"
    (data / "roles/instructions").mkdir(parents=True)
    lines = [json.dumps({"question": question}) for question in QUESTIONS]
    (data / "extraction_questions.jsonl").write_text("\n".join(lines))
    role = {"instruction": [{"pos": "You are an old sailor."}, {"pos": "Speak as a sailor."}]}
    role["eval_prompt"] = EVAL.replace("100", "3")
    (data / "roles/instructions/sailor.json").write_text(json.dumps(role))
    default = {"instruction": [{"pos": ""}, {"pos": "You are a program."}]}
    (data / "roles/instructions/default.json").write_text(json.dumps(default))
    run("import", data / "roles/instructions", "--to", "roles", cwd=tmp_path)

    def digits(seen: Seen) -> Reply:
        answer = seen.prompt.partition("<answer>")[2].partition("</answer>")[0]
        return completion(json.dumps({"score": score(answer) % 4}))

    where = ["--experiment", "roles", "--trait", "sailor"]
    folder = tmp_path / "experiments/roles/sailor"
    with MisbehavingServer("gpt-5-mini", script=digits) as server:
        judge = ["--judge_model", "gpt-5-mini", "--judge_base_url", server.url]
        how = ["--prompt_format", "system", "--n_examples", 16, "--gen_model", model_folder]
        run("generate", *where, *how, *judge, "--threshold", 60, *FAST, cwd=tmp_path)
    prompts = prompts_of(folder, model_folder)
    assert (prompts["pos", 0, 0], prompts["neg", 0, 0]) == (SAILOR, DEFAULT)
    for row in rows(folder, "verdicts"):
        assert row["score"] in (0, 33.33, 66.67, 100)
    stored = [row for row in rows(folder, "responses") if row["polarity"] == "pos"]
    _, table = read_csv(folder / "responses/pos.csv")
    expected = sorted(row["response"] for row in stored if score(row["response"]) % 4 >= 2)
    assert sorted(row[3] for row in table) == expected
    run("vectors", *where, cwd=tmp_path)

    # The definition's new keys are part of what a sample is.
    path = folder / "trait_definition.json"
    edited = json.loads(path.read_text()) | {"assistant_name": {"pos": "salty", "neg": "plain"}}
    path.write_text(json.dumps(edited))
    again = ["generate", *where, "--judge_model", "local"]
    assert "assistant_name was edited" in run(*again, cwd=tmp_path, codes=(5,))
