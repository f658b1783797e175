"""Traits as other projects publish them, read as definitions of our own.

Every change and every omission is said, so that what runs here can be held against what ran there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..records import POLARITIES
from .definition import KEYS
from .scenarios import Asked, arranged, judge_prompt, read_scenarios
from .source_files import read_json, read_json_lines, read_text, text_of

KINDS = ("auto", "persona_vectors", "assistant_axis", "scenarios", "pairs")
_SHARED_QUESTIONS = "extraction_questions.jsonl"
_DEFAULT_ROLE = "default.json"
_OWN_NAME = "trait_definition.json"
"""In a folder that has the trait's name, as here."""
_MODEL_NAME = "{model_name}"
_ROLE_SCALE = {"score_min": 0, "score_max": 3}
_EXTRACTED = "trait_data_"
"""How the folders of persona_vectors that hold its traits begin."""
_SIDE_KEYS = (POLARITIES, ("positive", "negative"))


@dataclass(slots=True)
class Foreign:
    """A definition made of another project's files, and what became of them."""

    name: str
    definition: dict[str, Any]
    files: list[Path]
    """The originals."""
    took: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """What no definition can hold."""
    advice: list[str] = field(default_factory=list)
    """What to run it with."""


def read_foreign(
    source: Path, kind: str, questions: Path | None, model_name: str | None
) -> list[Foreign]:
    """Read a file or a folder of another project. Raise UsageError for what is none.

    `questions` is a file of shared questions, `model_name` stands for {model_name} in a role.
    """
    if source.is_dir():
        folders = _scenario_folders(source)
        if folders and kind in ("auto", "scenarios"):
            return [_scenarios(folder) for folder in folders]
        files = sorted(path for path in source.glob("*.json") if path.name != _DEFAULT_ROLE)
        files = files or sorted(source.glob(f"*/{_OWN_NAME}"))
        if files and kind not in ("scenarios", "pairs"):
            return [_definition(path, kind, questions, model_name) for path in files]
    elif source.suffix.lower() == ".jsonl" and kind in ("auto", "pairs"):
        return [_pairs(source)]
    elif source.suffix.lower() == ".json" and kind not in ("scenarios", "pairs"):
        return [_definition(source, kind, questions, model_name)]
    elif not source.exists():
        raise UsageError(f"{source} does not exist")
    raise UsageError(
        f"{source} is none of what can be imported ({', '.join(KINDS[1:])}): a JSON file with "
        "`instruction`, a folder of such, a folder with positive.txt and negative.txt (or .jsonl), "
        "or a .jsonl of pairs"
    )


# --- persona_vectors, assistant-axis ---


def _definition(path: Path, kind: str, questions: Path | None, model_name: str | None) -> Foreign:
    raw = read_json(path)
    pairs = raw.get("instruction")
    if not (isinstance(pairs, list) and pairs and all(isinstance(pair, dict) for pair in pairs)):
        raise UsageError(f"{path}: `instruction` must be a list of objects with `pos`")
    own = path.name == _OWN_NAME
    found = Foreign(path.resolve().parent.name if own else path.stem, {}, [path])
    is_role = not any("neg" in pair for pair in pairs)
    shared = questions or _shared_questions(path)
    if shared is not None and (is_role or questions is not None or not raw.get("questions")):
        asked = [text_of(row, "question", shared, line) for line, row in read_json_lines(shared)]
        found.files.append(shared)
        found.took.append(f"{len(asked)} shared questions from {shared.name}")
        if isinstance(raw.get("questions"), list):
            found.left.append(f"{len(raw['questions'])} questions of its own, for the shared ones")
    else:
        asked = raw.get("questions") or []
        if isinstance(asked, list):  # else the definition is refused
            found.took.append(f"{len(asked)} questions")
    known = {key: value for key, value in raw.items() if key in KEYS}
    found.definition = {**known, "questions": asked}
    unknown = sorted(raw.keys() - set(KEYS))
    if unknown:
        found.left.append(f"keys that no run reads: {', '.join(unknown)}")
    if is_role:
        _as_role(found, path, model_name)
    else:
        found.took.append(f"{len(pairs)} instruction pairs as they are")
        _named_as_there(found, path, kind)
    return found


def _as_role(found: Foreign, path: Path, model_name: str | None) -> None:
    """Set the default assistant on the other side, and the scale of roles."""
    own = [pair.get("pos") for pair in found.definition["instruction"]]
    found.took.append(f"{len(own)} instructions of the role, as `pos`")
    default = path.with_name(_DEFAULT_ROLE)
    others: list[str | None] = [None]
    if default.is_file():
        found.files.append(default)
        try:
            texts = [pair["pos"] for pair in read_json(default)["instruction"]]
        except (KeyError, TypeError):
            texts = []
        if not (texts and all(isinstance(text, str) for text in texts)):
            raise UsageError(f"{default}: `instruction` must be a list of objects with `pos`")
        filled = [text.replace(_MODEL_NAME, model_name) if model_name else text for text in texts]
        usable = [text or None for text in filled if _MODEL_NAME not in text]
        if len(usable) < len(texts):
            found.left.append(
                f"{len(texts) - len(usable)} default instruction that names the model "
                f"({_MODEL_NAME}): give `model_name`"
            )
        others = usable or others
        found.changed.append(
            f"`neg` is the default assistant, {len(others)} instructions of {default.name} in turn "
            "(null asks without one)"
        )
    else:
        found.changed.append(
            f"`neg` is the default assistant without any instruction: there is no {default.name} "
            "beside the role"
        )
    found.definition["instruction"] = [
        {"pos": text, "neg": others[index % len(others)]} for index, text in enumerate(own)
    ]
    found.definition |= _ROLE_SCALE
    found.changed.append("scores 0 to 3 are read as 0 to 100: 2 is 66.67, 3 is 100")
    found.left.append("that there the default assistant's side is not scored: here both sides are")
    found.advice += ["--prompt_format system", "--threshold 100 keeps the full role alone (3)"]


def _named_as_there(found: Foreign, path: Path, kind: str) -> None:
    if kind == "persona_vectors" or (kind == "auto" and path.parent.name.startswith(_EXTRACTED)):
        found.definition["assistant_name"] = {"pos": path.stem, "neg": "helpful"}
        found.changed.append(
            f'`assistant_name` put in: "You are a(n) {path.stem} assistant." before `pos`, '
            '"helpful" before `neg`, as persona_vectors writes them'
        )
        found.advice += ["--prompt_format system", "--paired", "judge --ask coherence"]
    elif kind == "auto":
        found.advice.append(
            "of persona_vectors? `format` persona_vectors puts its sentence before each instruction"
        )


def _shared_questions(path: Path) -> Path | None:
    """Return the questions that a repository's roles share: beside them or up to two above."""
    folders = [path.resolve().parent, *list(path.resolve().parents)[1:3]]
    there = [folder / _SHARED_QUESTIONS for folder in folders]
    return next((file for file in there if file.is_file()), None)


# --- trait-interp ---


def _scenario_folders(source: Path) -> list[Path]:
    """Return the folder, or those in it, that hold scenarios of both sides."""
    candidates = [source, *sorted(path for path in source.iterdir() if path.is_dir())]
    return [
        folder
        for folder in candidates
        if any(folder.glob("positive.*")) and any(folder.glob("negative.*"))
    ]


def _scenarios(folder: Path) -> Foreign:
    found = Foreign(folder.name, {}, sorted(path for path in folder.iterdir() if path.is_file()))
    read: set[str] = set()
    sides = [read_scenarios(folder, side, read) for side in ("positive", "negative")]
    _arrange(found, sides, str(folder))
    meaning = folder / "definition.txt"
    if meaning.is_file():
        read.add(meaning.name)
        found.definition["eval_prompt"] = judge_prompt(folder.name, read_text(meaning).strip())
        found.changed.append("definition.txt became part of a judge's prompt, 0 to 100")
    else:
        _without_prompt(found)
    unread = [path.name for path in found.files if path.name not in read]
    if unread:
        found.left.append(f"{', '.join(unread)}: no part of a definition")
    return found


# --- pairs ---


def _pairs(path: Path) -> Foreign:
    """Read lines of `pos`, `neg` (or `positive`, `negative`) and, where given, `question`."""
    found = Foreign(path.stem, {}, [path])
    sides: list[list[Asked]] = [[], []]
    for line, row in read_json_lines(path):
        keys = next((keys for keys in _SIDE_KEYS if all(key in row for key in keys)), POLARITIES)
        asked = row.get("question") not in (None, "")
        question = text_of(row, "question", path, line) if asked else None
        for side, key in zip(sides, keys, strict=True):
            text = text_of(row, key, path, line)
            side.append(("", text) if question is None else (text, question))
    try:
        _arrange(found, sides, str(path))
    except UsageError:  # each line with a question of its own
        joined = [[("", "\n\n".join(filter(None, asked))) for asked in side] for side in sides]
        _arrange(found, joined, str(path))
        found.changed.append("each line's instruction and question are one prompt, a blank between")
    _without_prompt(found)
    return found


def _arrange(found: Foreign, sides: list[list[Asked]], where: str) -> None:
    pairs, questions, said = arranged(sides, where)
    found.definition |= {
        "instruction": [{"pos": pos or None, "neg": neg or None} for pos, neg in pairs],
        "questions": questions,
    }
    if questions is None:
        found.took.append(f"{len(pairs)} pairs of whole prompts (`questions` is null)")
        found.advice.append("--prompt_format raw for a base model")
    else:
        found.took.append(f"{len(pairs)} instruction pairs, {len(questions)} questions")
        found.advice.append("--prompt_format system")
    found.left += said


def _without_prompt(found: Foreign) -> None:
    found.definition["eval_prompt"] = judge_prompt(
        found.name, "[[write: what the trait is, and what it is not]]"
    )
    found.left.append(
        "a judge's prompt, which the source has not: write it into eval_prompt, in place of [[ ]]"
    )


def definition_bytes(foreign: Foreign) -> bytes:
    """Return the definition as its file holds it."""
    return (json.dumps(foreign.definition, indent=2, ensure_ascii=False) + "\n").encode()
