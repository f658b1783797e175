"""Trait definitions: load and check trait_definition.json, fill its prompts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from ..errors import DefinitionError
from ..records import POLARITIES, Polarity

DEFINITION_FILE = "trait_definition.json"
_PLACEHOLDER = re.compile(r"\{(question|answer)\}")


@dataclass(frozen=True, slots=True)
class Trait:
    """A checked definition. `instructions[i]` is the (pos, neg) pair i."""

    name: str
    instructions: tuple[tuple[str, str], ...]
    questions: tuple[str, ...]
    eval_prompt: str
    yes_no_prompt: str | None = None

    def instruction(self, polarity: Polarity, index: int) -> str:
        return self.instructions[index][POLARITIES.index(polarity)]

    def as_json(self) -> dict[str, Any]:
        """Return the definition as its file holds it."""
        out: dict[str, Any] = {
            "instruction": [{"pos": pos, "neg": neg} for pos, neg in self.instructions],
            "questions": list(self.questions),
            "eval_prompt": self.eval_prompt,
        }
        if self.yes_no_prompt is not None:
            out["yes_no_prompt"] = self.yes_no_prompt
        return out


def fill(template: str, *, question: str, answer: str) -> str:
    """Fill `{question}` and `{answer}` in one pass: nothing inside is expanded, other braces stay."""
    values = {"question": question, "answer": answer}
    return _PLACEHOLDER.sub(lambda match: values[match.group(1)], template)


def build_prompt(instruction: str, question: str) -> str:
    """Return the user turn: instruction, blank line, question."""
    return f"{instruction}\n\n{question}"


# --- the file ---


def _checked_text(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("empty", "is empty")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise PydanticCustomError(
            "surrogate",
            "holds a lone surrogate (a broken \\ud... escape), which no text file can carry",
        )
    return text


def _checked_template(text: str) -> str:
    lacking = [name for name in ("question", "answer") if "{" + name + "}" not in text]
    if lacking:
        raise PydanticCustomError("placeholder", ",".join(lacking))
    return text


Text = Annotated[str, AfterValidator(_checked_text)]
Template = Annotated[Text, AfterValidator(_checked_template)]


class _Pair(BaseModel):
    model_config = ConfigDict(strict=True)
    pos: Text
    neg: Text


class _File(BaseModel):
    """trait_definition.json. Unknown keys are left alone."""

    model_config = ConfigDict(strict=True)
    instruction: Annotated[list[_Pair], Field(min_length=1)]
    questions: Annotated[list[Text], Field(min_length=1)]
    eval_prompt: Template
    yes_no_prompt: Template | None = None


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
    if data.startswith(b"\xef\xbb\xbf"):
        faults.append("starts with a byte order mark; save it as plain UTF-8")
        data = data[3:]
    found = None
    try:
        # No number belongs here; as floats, thousands of digits are of the wrong type too.
        raw = json.loads(data.decode("utf-8"), object_pairs_hook=_pairs(faults), parse_int=float)
        if isinstance(raw, dict):
            found = _File.model_validate(raw)
        else:
            faults.append("must be a JSON object")
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
    pairs = tuple((pair.pos, pair.neg) for pair in found.instruction)
    return Trait(name, pairs, tuple(found.questions), found.eval_prompt, found.yes_no_prompt)


def _pairs(faults: list[str]) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """Return json's hook for objects that notes keys given twice."""

    def hook(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in items]
        for key in dict.fromkeys(keys):
            if keys.count(key) > 1:
                faults.append(f"{key}: appears {keys.count(key)} times in one object")
        return dict(items)

    return hook


_WANTED = {
    "string_type": "a string",
    "list_type": "a list",
    "model_type": 'an object {"pos": ..., "neg": ...}',
    "dict_type": 'an object {"pos": ..., "neg": ...}',
}


def _readable(fault: Any) -> list[str]:
    """Return one of pydantic's errors as `key: what`, a line for each placeholder that is missing."""
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"])
    key = key.removeprefix(".")
    kind = fault["type"]
    if kind == "placeholder":
        names = fault["msg"].split(",")
        return [f"{key}: lacks the placeholder {{{name}}}" for name in names]
    if kind == "too_short":
        return [f"{key}: is empty; give at least one"]
    if kind == "missing":
        wanted = _WANTED["string_type"]
        if key in ("instruction", "questions"):
            wanted = _WANTED["list_type"]
        return [f"{key}: must be {wanted}, not missing"]
    if kind in _WANTED:
        return [f"{key}: must be {_WANTED[kind]}, not {_kind(fault['input'])}"]
    return [f"{key}: {fault['msg']}"]


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", bool: "a boolean", str: "a string"}
    if value is None:
        return "missing"
    return names.get(type(value), "a number")
