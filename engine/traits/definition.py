"""Trait definitions: load and check trait_definition.json, fill its prompts."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from ..errors import DefinitionError
from ..records import POLARITIES, Polarity
from .places import lacking
from .scale import FULL, LARGEST, Scale

DEFINITION_FILE = "trait_definition.json"
SCHEMA_KEY = "$schema"
"""Where an editor finds the schema of the file."""
DRAFT = "draft"
"""Marks a definition that a model wrote and no one has read."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a string",
    float: "a number",
    bool: "a boolean",
    type(None): "missing",
}
_SURROGATE = re.compile("[\ud800-\udfff]")
_PLACEHOLDER = re.compile(r"\{(question|answer)\}")


@dataclass(frozen=True, slots=True)
class Trait:
    """A checked definition. `instructions[i]` is the (pos, neg) pair i, empty where it has none.

    Where a definition has no questions, `questions` is one empty text.
    """

    name: str
    instructions: tuple[tuple[str, str], ...]
    questions: tuple[str, ...]
    eval_prompt: str
    yes_no_prompt: str | None = None
    scale: Scale = FULL
    """What `eval_prompt` asks for."""
    coherence_prompt: str | None = None
    """The second question to a judge, where it is not the usual one."""
    assistant_name: tuple[str, str] | None = None
    """What the assistant of each side is called before its instruction."""
    steering_questions: tuple[str, ...] = ()
    """What a steered model is asked, where it is not `questions`."""

    def asked(
        self, polarity: Polarity, instruction_index: int, question_index: int
    ) -> tuple[str, str]:
        """Return instruction and question of a sample; without questions the text is the latter."""
        side = POLARITIES.index(polarity)
        instruction = self.instructions[instruction_index][side]
        if self.assistant_name is not None:
            instruction = f"{_introduced(self.assistant_name[side])} {instruction}".strip()
        question = self.questions[question_index]
        return (instruction, question) if question else ("", instruction)

    def longest_question(self) -> str:
        """Return the longest text that a judge is shown as the question."""
        texts = self.questions
        if not any(texts):
            texts = tuple(text for pair in self.instructions for text in pair)
        return max(texts, key=len)

    def as_json(self) -> dict[str, Any]:
        """Return the definition as its file holds it."""
        found: dict[str, Any] = {
            "instruction": [
                {"pos": pos or None, "neg": neg or None} for pos, neg in self.instructions
            ],
            "eval_prompt": self.eval_prompt,
            "yes_no_prompt": self.yes_no_prompt,
            "coherence_prompt": self.coherence_prompt,
        }
        if self.steering_questions:
            found["steering_questions"] = list(self.steering_questions)
        if self.scale != FULL:
            found |= {"score_min": self.scale.low, "score_max": self.scale.high}
        if self.assistant_name is not None:
            found["assistant_name"] = dict(zip(POLARITIES, self.assistant_name, strict=True))
        written = {key: value for key, value in found.items() if value is not None}
        questions = list(self.questions) if any(self.questions) else None
        return {"instruction": written.pop("instruction"), "questions": questions, **written}


def fill(template: str, *, question: str, answer: str) -> str:
    """Fill `{question}` and `{answer}` in one pass; other braces stay."""
    values = {"question": question, "answer": answer}
    return _PLACEHOLDER.sub(lambda match: values[match.group(1)], template)


def build_prompt(instruction: str, question: str) -> str:
    """Return the user turn: instruction, blank line, question; one alone where the other lacks."""
    return "\n\n".join(filter(None, (instruction, question)))


def _introduced(name: str) -> str:
    """Return who the assistant is, as persona_vectors writes it before an instruction."""
    article = "an" if name[0].lower() in "aeiou" else "a"
    return f"You are {article} {name} assistant."


def _check_text(text: str, placeholders: tuple[str, ...] = ()) -> str:
    faults = [] if text.strip() else ["is empty"]
    if _SURROGATE.search(text):
        faults.append(
            "holds a lone surrogate (a broken \\ud... escape), which no text file can carry"
        )
    faults += lacking(text, placeholders)
    if faults:
        raise PydanticCustomError("text", "\n".join(faults))
    return text


def _check_end(number: float) -> float:
    if not (number.is_integer() and 0 <= number <= LARGEST):
        raise PydanticCustomError("text", f"must be a whole number from 0 to {LARGEST}")
    return number


_check_template = partial(_check_text, placeholders=("{question}", "{answer}"))
Text = Annotated[str, AfterValidator(_check_text)]
Template = Annotated[str, AfterValidator(_check_template)]
End = Annotated[float, AfterValidator(_check_end)]


class _Pair(BaseModel):
    """Instructions; null where a side is asked without one."""

    model_config = ConfigDict(strict=True)
    pos: Text | None
    neg: Text | None


class _Names(BaseModel):
    """What the assistant of each side is called."""

    model_config = ConfigDict(strict=True)
    pos: Text
    neg: Text


class _File(BaseModel):
    """trait_definition.json. Unknown keys are left alone here; `lint` names them."""

    model_config = ConfigDict(strict=True)
    instruction: Annotated[list[_Pair], Field(min_length=1)]
    questions: Annotated[list[Text], Field(min_length=1)] | None
    """Null where each text of `instruction` is a prompt of its own."""
    eval_prompt: Template
    yes_no_prompt: Template | None = None
    coherence_prompt: Template | None = None
    assistant_name: _Names | None = None
    steering_questions: Annotated[list[Text], Field(min_length=1)] | None = None
    score_min: End = float(FULL.low)
    score_max: End = float(FULL.high)

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.score_min >= self.score_max:
            raise PydanticCustomError("text", "score_min: must be below score_max")
        return self

    @model_validator(mode="after")
    def _asking(self) -> Self:
        for number, pair in enumerate(self.instruction):
            if self.questions is None and None in (pair.pos, pair.neg):
                said = f"instruction[{number}]: a null side, and null questions: nothing to ask it"
                raise PydanticCustomError("text", said)
        return self


KEYS = tuple(_File.model_fields)
"""What is read of a definition."""


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of trait_definition.json, for editors."""
    found = _File.model_json_schema()
    found |= {"title": "traitmill trait definition", "additionalProperties": False}
    found["properties"] |= {
        SCHEMA_KEY: {"type": "string"},
        DRAFT: {"type": "boolean", "description": "A model wrote it; remove the key once read."},
    }
    return found


def load_traits(folders: Mapping[str, Path]) -> list[Trait]:
    """Load `{name: folder}` in order.

    Raise DefinitionError with every fault of every file, before anything else is done.
    """
    traits: list[Trait] = []
    faults: list[str] = []
    for name, folder in folders.items():
        path = folder / DEFINITION_FILE
        try:
            traits.append(parse_definition(name, path.read_bytes(), str(path)))
        except FileNotFoundError:
            faults.append(
                f"{path}: missing; write it (see docs/creating_traits.md) or copy one from "
                "experiments/library"
            )
        except OSError as error:
            faults.append(f"{path}: cannot be read: {error.strerror}")
        except DefinitionError as error:
            faults.extend(error.faults)
    if faults:
        raise DefinitionError(faults)
    return traits


def parse_definition(name: str, data: bytes, path: str) -> Trait:
    """Check one file's bytes. Raise DefinitionError with each fault as `path: key: what`."""
    faults: list[str] = []
    if data.startswith(_BYTE_ORDER_MARK):
        faults.append("starts with a byte order mark; save it as plain UTF-8")
        data = data.removeprefix(_BYTE_ORDER_MARK)
    found = None
    try:
        # As floats, numbers of thousands of digits are read too, and refused by their size.
        raw = json.loads(data.decode(), object_pairs_hook=partial(_once, faults), parse_int=float)
        found = _File.model_validate(raw)
    except UnicodeDecodeError as error:
        faults.append(f"is not UTF-8 (byte {error.start})")
    except json.JSONDecodeError as error:
        faults.append(f"line {error.lineno} column {error.colno}: {error.msg}")
    except RecursionError:
        faults.append("is nested too deeply")
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            faults += _readable(fault)
    if faults or found is None:
        raise DefinitionError([f"{path}: {fault}" for fault in faults])
    pairs = tuple((pair.pos or "", pair.neg or "") for pair in found.instruction)
    names = found.assistant_name
    return Trait(
        name=name,
        instructions=pairs,
        questions=tuple(found.questions or [""]),
        eval_prompt=found.eval_prompt,
        yes_no_prompt=found.yes_no_prompt,
        coherence_prompt=found.coherence_prompt,
        steering_questions=tuple(found.steering_questions or ()),
        scale=Scale(int(found.score_min), int(found.score_max)),
        assistant_name=(names.pos, names.neg) if names is not None else None,
    )


def _once(faults: list[str], items: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's items as a dict; note the keys that are given twice."""
    keys = [key for key, _ in items]
    for key, count in Counter(keys).items():
        if count > 1:
            faults.append(f"{key}: appears {count} times in one object")
    return dict(items)


def _readable(fault: Any) -> list[str]:
    """Return one of pydantic's errors as lines of `key: what`."""
    where = fault["loc"]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    key = key.removeprefix(".")
    one, wanted = "one", "a string"
    match where:
        case () if fault["type"] == "text":
            return [fault["msg"]]
        case ():
            return ["must be a JSON object"]
        case ("score_min" | "score_max",):
            wanted = "a whole number"
        case ("questions" | "steering_questions",):
            wanted = "a list of strings"
        case ("instruction",):
            one, wanted = "one pair", 'a list of {"pos": ..., "neg": ...}'
        case ("instruction", _) | ("assistant_name",):
            wanted = '{"pos": ..., "neg": ...}'
    if fault["type"] == "text":
        return [f"{key}: {line}" for line in fault["msg"].splitlines()]
    if fault["type"] == "too_short":
        return [f"{key}: is empty; give at least {one}"]
    found = _KINDS[type(fault["input"])]
    if fault["type"] == "missing":
        found = "missing"
    return [f"{key}: must be {wanted}, not {found}"]
