"""Trait definitions: load, validate (every fault at once), expand into samples, fill prompts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DefinitionError, UsageError
from ..records import POLARITIES, Polarity, Sample
from ..settings import Sampling

DEFINITION_FILE = "trait_definition.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PLACEHOLDER = re.compile(r"\{(question|answer)\}")


@dataclass(frozen=True, slots=True)
class Trait:
    """A validated definition. `instructions[i]` is the (pos, neg) pair i."""

    name: str
    instructions: tuple[tuple[str, str], ...]
    questions: tuple[str, ...]
    eval_prompt: str
    yes_no_prompt: str | None = None

    def instruction(self, polarity: Polarity, index: int) -> str:
        return self.instructions[index][POLARITIES.index(polarity)]

    def as_json(self) -> dict[str, Any]:
        """The definition as its file holds it."""
        out: dict[str, Any] = {
            "instruction": [{"pos": pos, "neg": neg} for pos, neg in self.instructions],
            "questions": list(self.questions),
            "eval_prompt": self.eval_prompt,
        }
        if self.yes_no_prompt is not None:
            out["yes_no_prompt"] = self.yes_no_prompt
        return out


def check_name(name: str, what: str) -> str:
    """Return `name` if it is safe as a folder's name, else raise UsageError."""
    if not _NAME.fullmatch(name):
        shown = repr(name if len(name) <= 60 else name[:57] + "...")
        raise UsageError(
            f"{what} name {shown} is refused: use 1 to 100 letters, digits, '.', '_' or '-', not starting with a sign"
        )
    return name


def fill(template: str, *, question: str, answer: str) -> str:
    """Fill `{question}` and `{answer}` in one pass: nothing inside either is expanded again, other braces stay."""
    values = {"question": question, "answer": answer}
    return _PLACEHOLDER.sub(lambda match: values[match.group(1)], template)


def build_prompt(instruction: str, question: str) -> str:
    """The user turn: instruction, blank line, question."""
    return f"{instruction}\n\n{question}"


def load_traits(folders: Mapping[str, Path]) -> list[Trait]:
    """Load `{name: folder}` in order.

    Raises DefinitionError with every fault of every file, before anything else is done.
    """
    traits: list[Trait] = []
    faults: list[str] = []
    for name, folder in folders.items():
        path = folder / DEFINITION_FILE
        try:
            traits.append(parse_definition(name, path.read_bytes(), str(path)))
        except FileNotFoundError:
            faults.append(
                f"{path}: missing; write it (see docs/creating_traits.md) or copy one from experiments/library"
            )
        except OSError as error:
            faults.append(f"{path}: cannot be read: {error.strerror}")
        except DefinitionError as error:
            faults.extend(error.faults)
    if faults:
        raise DefinitionError(faults)
    return traits


def parse_definition(name: str, data: bytes, path: str) -> Trait:
    """Validate one file's bytes. Raises DefinitionError with each fault as `path: key: what`."""
    faults: list[str] = []
    if data.startswith(b"\xef\xbb\xbf"):
        faults.append("starts with a byte order mark; save it as plain UTF-8")
        data = data[3:]
    try:
        # No number belongs here; as floats, thousands of digits are a number of the wrong type too.
        raw = json.loads(data.decode("utf-8"), object_pairs_hook=_pairs(faults), parse_int=float)
    except UnicodeDecodeError as error:
        raise DefinitionError(
            [f"{path}: {f}" for f in [*faults, f"is not UTF-8 (byte {error.start})"]]
        ) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}: {error.msg}"
        raise DefinitionError([f"{path}: {f}" for f in [*faults, where]]) from None
    except RecursionError:
        raise DefinitionError([f"{path}: is nested too deeply"]) from None
    if not isinstance(raw, dict):
        raise DefinitionError([f"{path}: {f}" for f in [*faults, "must be a JSON object"]])

    pairs = _instructions(raw.get("instruction"), faults)
    questions = _texts(raw.get("questions"), "questions", faults)
    eval_prompt = _template(raw.get("eval_prompt"), "eval_prompt", faults)
    yes_no = (
        _template(raw["yes_no_prompt"], "yes_no_prompt", faults)
        if raw.get("yes_no_prompt") is not None
        else None
    )
    if faults:
        raise DefinitionError([f"{path}: {fault}" for fault in faults])
    return Trait(name, tuple(pairs), tuple(questions), eval_prompt, yes_no)


def _pairs(faults: list[str]) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    def hook(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in items]
        repeated = [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
        faults.extend(f"{key}: appears {keys.count(key)} times in one object" for key in repeated)
        return dict(items)

    return hook


def _text(value: object, key: str, faults: list[str]) -> str:
    if not isinstance(value, str):
        faults.append(f"{key}: must be a string, not {_kind(value)}")
        return ""
    if not value.strip():
        faults.append(f"{key}: is empty")
    if any("\ud800" <= character <= "\udfff" for character in value):
        faults.append(
            f"{key}: holds a lone surrogate (a broken \\ud... escape), which no text file can carry"
        )
    return value


def _texts(value: object, key: str, faults: list[str]) -> list[str]:
    if not isinstance(value, list):
        faults.append(f"{key}: must be a list of strings, not {_kind(value)}")
        return []
    if not value:
        faults.append(f"{key}: is empty; give at least one")
    return [_text(item, f"{key}[{index}]", faults) for index, item in enumerate(value)]


def _instructions(value: object, faults: list[str]) -> list[tuple[str, str]]:
    if not isinstance(value, list):
        faults.append(
            f'instruction: must be a list of {{"pos": ..., "neg": ...}}, not {_kind(value)}'
        )
        return []
    if not value:
        faults.append("instruction: is empty; give at least one pair")
    pairs = []
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            faults.append(
                f'instruction[{index}]: must be {{"pos": ..., "neg": ...}}, not {_kind(item)}'
            )
            continue
        pos, neg = (
            _text(item.get(side), f"instruction[{index}].{side}", faults) for side in POLARITIES
        )
        pairs.append((pos, neg))
    return pairs


def _template(value: object, key: str, faults: list[str]) -> str:
    text = _text(value, key, faults)
    if isinstance(value, str):
        faults.extend(
            f"{key}: lacks the placeholder {{{name}}}"
            for name in ("question", "answer")
            if "{" + name + "}" not in text
        )
    return text


def _kind(value: object) -> str:
    if value is None:
        return "missing"
    return {dict: "an object", list: "a list", bool: "a boolean", str: "a string"}.get(
        type(value), "a number"
    )


# --- expansion ---------------------------------------------------------------------------------------------


def counts_per_instruction(n_examples: int, n_instructions: int) -> list[int]:
    """Share `n_examples` as evenly as possible; the first instructions take the remainder."""
    share, rest = divmod(n_examples, n_instructions)
    return [share + (index < rest) for index in range(n_instructions)]


def sample_id(
    polarity: Polarity, prompt_token_ids: Sequence[int], occurrence: int, sampling: Sampling
) -> tuple[str, int]:
    """The sample's id and its vLLM seed.

    id: first 16 bytes, as hex, of sha256 over canonical JSON of the identity; seed: first 8 bytes & (2^63 - 1).
    """
    content = [
        polarity,
        list(prompt_token_ids),
        occurrence,
        sampling.model,
        sampling.revision,
        float(sampling.temperature),
        float(sampling.top_p),
        sampling.top_k,
        sampling.max_new_tokens,
        sampling.seed,
    ]
    digest = hashlib.sha256(
        json.dumps(content, separators=(",", ":"), ensure_ascii=True).encode()
    ).digest()
    return digest[:16].hex(), int.from_bytes(digest[:8], "big") & (2**63 - 1)


def expand(
    trait: Trait,
    n_examples: Mapping[Polarity, int],
    sampling: Sampling,
    tokenize: Callable[[str], tuple[int, ...]],
) -> Iterator[Sample]:
    """The samples of a trait, ordered (polarity, instruction, k) with question = k mod number of questions.

    A larger `n_examples` yields a superset of a smaller one's ids. `tokenize` turns a prompt (user turn) into
    token ids; it is called once per distinct prompt.
    """
    tokens: dict[str, tuple[int, ...]] = {}
    for polarity in POLARITIES:
        seen: dict[tuple[int, ...], int] = {}
        for index, count in enumerate(
            counts_per_instruction(n_examples[polarity], len(trait.instructions))
        ):
            instruction = trait.instruction(polarity, index)
            for k in range(count):
                rollout, question_index = divmod(k, len(trait.questions))
                question = trait.questions[question_index]
                prompt = build_prompt(instruction, question)
                if prompt not in tokens:
                    tokens[prompt] = tokenize(prompt)
                prompt_token_ids = tokens[prompt]
                occurrence = seen.get(prompt_token_ids, 0)
                seen[prompt_token_ids] = occurrence + 1
                id_, seed = sample_id(polarity, prompt_token_ids, occurrence, sampling)
                yield Sample(
                    trait=trait.name,
                    id=id_,
                    polarity=polarity,
                    instruction_index=index,
                    question_index=question_index,
                    rollout=rollout,
                    instruction=instruction,
                    question=question,
                    prompt=prompt,
                    prompt_token_ids=prompt_token_ids,
                    seed=seed,
                )
