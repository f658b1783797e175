"""Texts of every kind, and rows that cannot be used named by line."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from traitmill.engine.errors import UsageError
from traitmill.engine.models import Turn
from traitmill.engine.projection import open_texts
from traitmill.engine.projection.table import Layout, merge, part_path, write_flat, write_rows


def test_jsonl_holds_conversations_or_responses(tmp_path):
    path = tmp_path / "t.jsonl"
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a\n"}]
    rows = [
        {"messages": messages, "id": 7, "tags": ["x"]},
        {"prompt": "p", "response": "r", "id": "é", "late": None},
        {"response": "alone", "prompt": None},
    ]
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    texts = open_texts(path)
    assert texts.columns == ("id", "tags", "late")
    first, second, third = texts
    assert (first.row, second.row, third.row) == (1, 3, 5)
    assert first.turns == (Turn("user", "q"), Turn("assistant", "a\n"))
    assert first.columns == {"id": "7", "tags": '["x"]'}
    assert second.turns == (Turn("user", "p"), Turn("assistant", "r"))
    assert second.columns == {"id": "é", "late": None}
    assert third.turns == (Turn("assistant", "alone"),)
    assert list(texts) == [first, second, third]


def test_csv_is_read_as_our_own_files_are_written(tmp_path):
    path = tmp_path / "pos.csv"
    said = json.dumps([{"role": "user", "content": "hello"}]).replace('"', '""')
    path.write_text(
        "\ufeffquestion,prompt,response,messages\n"
        'q,"two\nlines","r, with ""quotes""",\n'
        f'q2,,,"{said}"\n'
    )
    texts = open_texts(path)
    assert texts.columns == ("question",)
    first, second = texts
    assert (first.row, second.row) == (2, 4)
    assert first.turns == (Turn("user", "two\nlines"), Turn("assistant", 'r, with "quotes"'))
    assert second.turns == (Turn("user", "hello"),)


def test_columns_without_a_name_are_what_a_spreadsheet_leaves(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("prompt,response,,\nhi,hello,,\n")
    [text] = open_texts(path)
    assert text.turns[-1] == Turn("assistant", "hello")


def test_a_folder_of_responses_is_read_by_name(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(f"said by {name}")
    first, second = open_texts(tmp_path)
    assert (first.columns, second.columns) == ({"file": "a.txt"}, {"file": "b.txt"})
    assert first.turns == (Turn("assistant", "said by a"),)


def test_one_text_file_is_one_response(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("said by a")
    (tmp_path / "b.txt").write_text("said by b", encoding="utf-8-sig")
    assert next(iter(open_texts(tmp_path / "b.txt"))).turns == (Turn("assistant", "said by b"),)
    [text] = open_texts(path)
    assert (text.columns, text.turns) == ({"file": "a.txt"}, (Turn("assistant", "said by a"),))
    path.write_text("said by a\n")  # as every editor ends it
    [text] = open_texts(path)
    assert text.turns == (Turn("assistant", "said by a"),)
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"a\.txt: 1 of 1 rows cannot be used"):
        open_texts(path)


@pytest.mark.parametrize(
    "inputs",
    [
        ("model", "input.model"),
        ("input.model", "model", "input.input.model"),
        ("t.probe.1", "token_ids", "input.token_ids", "own"),
    ],
)
def test_columns_of_the_input_stand_under_names_of_their_own(tmp_path, inputs):
    layout = Layout(inputs, ("t.probe.1",))
    names = layout.schema.names
    assert len(set(names)) == len(names)
    kept = [name for name in inputs if name not in layout.vectors and name.startswith("input.")]
    assert set(kept) <= set(layout.carried), "a name that is free stays"
    row = dict(zip(layout.carried, inputs, strict=True)) | {"model": "m", "row": 1, "turn": 0}
    part = part_path(tmp_path, 0, 0)
    part.parent.mkdir()
    write_rows(part, layout, [row])
    merge(tmp_path, layout, [part])
    write_flat(tmp_path, layout)
    head, cells = (tmp_path / "projections.csv").read_text().splitlines()
    found = dict(zip(head.split(","), cells.split(","), strict=True))
    assert [found[name] for name in layout.carried] == list(inputs)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: it is no JSON"),
        ("[1]", "line 2: it is no object"),
        ('{"text": "x"}', "line 2: it has neither `messages` nor a text under `response`"),
        ('{"response": 3}', "line 2: it has neither"),
        ('"x"', "line 2: it is no object"),
        (
            '{"messages": [{"role": "user", "content": "x"}], "response": "y"}',
            "line 2: it has both `messages` and `response`",
        ),
        (
            '{"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}',
            "line 2: turn 1 of `messages` has parts under `content`",
        ),
        ('{"response": " "}', "line 2: `response` is empty"),
        ('{"response": "x", "prompt": 3}', "line 2: `prompt` is no text"),
        ('{"messages": []}', "line 2: `messages` is no list of turns"),
        ('{"messages": [{"role": "user"}]}', "line 2: turn 1 of `messages` lacks a text"),
        ('{"messages": [{"role": "user", "content": ["x"]}]}', "line 2: turn 1 of `messages`"),
        (
            '{"messages": [{"role": "User", "content": "x"}, {"role": "gpt", "content": "y"}]}',
            "line 2: turn 1 of `messages` has the role 'User': write 'user'",
        ),
        (
            '{"messages": [{"role": "user", "content": "x"}, {"role": "gpt", "content": "y"}]}',
            "line 2: turn 2 of `messages` has the role 'gpt': write 'assistant'",
        ),
        ('{"messages": [{"role": "user", "content": ""}]}', "line 2: every turn of `messages`"),
        ('{"response": "\\ud800"}', "line 2: it holds half of a surrogate pair"),
        ('{"response": "x", "name": "\\udc00"}', "line 2: it holds half of a surrogate pair"),
    ],
)
def test_rows_that_cannot_be_used_are_named_by_line(tmp_path, line, said):
    path = tmp_path / "t.jsonl"
    path.write_text(f'{{"response": "good"}}\n{line}\n{{"response": "good"}}\n')
    with pytest.raises(UsageError) as refused:
        open_texts(path)
    assert f"{path}: 1 of 3 rows cannot be used; mend or remove them:\n" in str(refused.value)
    assert said in str(refused.value)


def test_of_many_bad_rows_five_are_named(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("x\n" * 12)
    with pytest.raises(UsageError) as refused:
        open_texts(path)
    lines = str(refused.value).splitlines()
    assert len(lines) == 7
    assert lines[0].endswith("12 of 12 rows cannot be used; mend or remove them:")
    assert lines[-1] == "  and 7 more"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.jsonl", b"", "holds no text"),
        ("t.csv", b"prompt,response\n", "holds no text"),
        ("t.csv", b"response\na,b\n", "line 2: it has more cells than the header"),
        ("t.csv", b"response,response\na,b\n", "two columns are named 'response'"),
        ("t.jsonl", b"[" * 9000 + b"\n", "line 1: it is nested too deep"),
        ("t.csv", b"response\n\xff\n", "is no CSV in UTF-8"),
        ("t.csv", b"text\nx\n", "no column `response` or `messages`, but 'text'"),
        ("t.csv", b"prompt;response\nx;y\n", "apart by ';': save it with commas"),
        ("t.csv", b'response\na "word" here\n"b\nc\nd\n', "is no CSV in UTF-8: unexpected end"),
        ("t.csv", b'response\n"a" word\nb\n', "is no CSV in UTF-8"),
        ("t.csv", b"messages\n{\n", "line 2: `messages` is no list of turns"),
        ("t.json", b"{}", "is none of these: give a .jsonl or .csv file"),
    ],
)
def test_files_that_are_none_of_ours_are_refused(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=said):
        open_texts(path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is none of these"):
        open_texts(tmp_path)


def test_a_study_of_steering_is_no_trait(tmp_path):
    """Else the advice was to generate a trait of that name."""
    record = tmp_path / "steering" / "parquet" / "run.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    with pytest.raises(UsageError, match=r"holds a study of steering; its answers are in respon"):
        open_texts(tmp_path / "steering")


def test_files_are_read_as_a_stream(tmp_path):
    path = tmp_path / "t.jsonl"
    row = json.dumps({"response": "x" * 1000, "id": "y"}) + "\n"
    with path.open("w") as file:
        for _ in range(20_000):
            file.write(row)
    tracemalloc.start()
    try:
        assert sum(1 for _ in open_texts(path)) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 2 << 20  # of a file of 20 MB
    finally:
        tracemalloc.stop()


def test_what_no_model_is_shown_of_a_turn_is_known(tmp_path):
    path = tmp_path / "t.jsonl"
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    messages = [{"role": "user", "content": "q", "name": "ann"}, called]
    thought = {"role": "assistant", "content": "a", "reasoning_content": "hm", "refusal": None}
    path.write_text(json.dumps({"messages": [*messages, thought]}))
    assert open_texts(path).unread == ("tool_calls", "reasoning_content")
    path.write_text(json.dumps({"messages": messages[:1]}))
    assert open_texts(path).unread == ()
