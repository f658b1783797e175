"""What the texts of a readable definition leave to be mended: sides, questions, judge prompts."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import combinations
from typing import Literal

from ..records import POLARITIES
from .definition import Trait
from .places import NEARLY, doubled
from .scaffold import is_scaffold
from .scale import FULL, other_scale

FEW_QUESTIONS = 10
"""Below it no recommendation is a claim: folds go by question (`vectors.recommendation`)."""
FEW_STEERING = 5
"""As `steering.findings` has it."""
FEW_PAIRS = 3
LENGTH_RATIO = 1.5
"""Words of one side's instructions to the other's, from which a vector may be one of length."""
ALIKE = 0.9
"""Share of equal characters in equal order, from which two texts are near-copies."""
_MOST_COMPARED = 300
"""Texts of a list that are compared with each other; a longer list is compared as far."""
_RUN = 4
"""Words in a row in every instruction of a side that give the side away."""
_SHORT = 5
"""Words up to which two texts of one build are two: Write about a cat, write about a bat."""
_STEM = 5
"""Letters that find a word's other forms: `uncer` finds uncertain and uncertainty."""
_COMMON_WORDS = re.compile(
    "and|the|for|not|non|pro|out|off|low|all|any|use|with|from|self|over|high|based|being|model"
    "|please"
)
_FILLED = ("{question}", "{answer}")
_SPECIAL = re.compile(
    r"<\|[^<>|\s]{1,40}\|>|</?s>|<(?:bos|eos|pad|start_of_turn|end_of_turn)>|\[/?INST\]"
    r"|<<SYS>>|</?think>"
)
"""What chat models mark their turns with."""
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\u200b-\u200f\u2028-\u202e\u2060\ufeff]")
_ENDS_OPEN = re.compile(r"[,;:(]\s*$")


def text_findings(trait: Trait) -> Iterator[Finding]:
    """Yield what is found in a definition's texts, in its own order."""
    unwritten = [key for key, value in trait.as_json().items() if is_scaffold(value)]
    if unwritten:
        # What else there is to say would be said of our words.
        said = f"still holds the scaffold's own text, in [[ ]], under {', '.join(unwritten)}"
        yield error("scaffold", "", said, "write yours in its place")
        return
    instructions = {
        f"instruction[{index}].{side}": text
        for index, pair in enumerate(trait.instructions)
        for side, text in zip(POLARITIES, pair, strict=True)
        if text
    }
    questions = {f"questions[{i}]": text for i, text in enumerate(trait.questions) if text}
    steering = {f"steering_questions[{i}]": t for i, t in enumerate(trait.steering_questions)}
    asked = {**questions, **{where: text for where, text in steering.items() if text}}
    prompts = {
        name: text
        for name in ("eval_prompt", "yes_no_prompt", "coherence_prompt")
        if (text := getattr(trait, name)) is not None
    }
    for where, text in {**instructions, **asked, **prompts}.items():
        yield from _text(where, text, asked=where not in prompts)
    yield from _pairs(trait)
    yield from _sides(trait)
    yield from _twice("questions", asked)
    for side in POLARITIES:
        own = {where: text for where, text in instructions.items() if where.endswith(side)}
        yield from _twice(f"the {side} instructions", own)
    yield from _named(trait.name, asked)
    yield from _counts(trait)
    yield from _judge_prompts(trait, prompts)


def _text(where: str, text: str, *, asked: bool) -> Iterator[Finding]:
    found = _SPECIAL.search(text)
    if found:
        said = f"holds {found[0]!r}, which chat models mark turns with"
        yield warning("special-token", where, said, "take it out, or spell it in words")
    if _INVISIBLE.search(text):
        yield warning("invisible", where, "holds an invisible character", "type it again")
    if not asked:
        if braced := doubled(text):
            said = f"holds {braced}, whose outer braces the judge would read"
            yield warning("placeholder", where, said, f"write {braced[1:-1]}")
        return
    if text != text.strip():
        yield warning("blanks", where, "begins or ends with blanks", "take them off")
    braces = NEARLY.search(text)
    if braces:
        said = f"holds {braces[0]}, which is filled in judge prompts only"
        yield warning("placeholder", where, said, "write the text itself")
    if _ENDS_OPEN.search(text):
        yield warning("unfinished", where, "ends in the middle of a sentence", "finish it")


def _pairs(trait: Trait) -> Iterator[Finding]:
    for index, (pos, neg) in enumerate(trait.instructions):
        where = f"instruction[{index}]"
        if _plain(pos) == _plain(neg):
            said = "`pos` and `neg` say the same"
            yield error("equal-sides", where, said, "let `neg` ask for the opposite")
        elif pos and neg and _words(pos, neg) > 2 * LENGTH_RATIO:
            said = f"`pos` has {len(pos.split())} words and `neg` {len(neg.split())}"
            yield warning("length", where, said, "write both sides equally long")
    positive = {_plain(pos) for pos, _ in trait.instructions}
    for index, (pos, neg) in enumerate(trait.instructions):
        if _plain(neg) in positive and _plain(pos) != _plain(neg):
            said = "`neg` is the `pos` of another pair"
            yield warning("swapped", f"instruction[{index}].neg", said, "sort the sides")


def _sides(trait: Trait) -> Iterator[Finding]:
    sides = [" ".join(pair[side] for pair in trait.instructions) for side in (0, 1)]
    if not all(side.strip() for side in sides):  # a side without instructions is meant so
        return
    if _words(*sides) > LENGTH_RATIO:
        counts = " and ".join(str(len(side.split())) for side in sides)
        said = f"the sides have {counts} words"
        yield warning("length", "instruction", said, "a vector may be one of length: match them")
    if len(trait.instructions) < FEW_PAIRS:
        return
    runs = [[_runs(pair[side]) for pair in trait.instructions] for side in (0, 1)]
    for side, own, other in zip(POLARITIES, runs, reversed(runs), strict=True):
        everywhere = [each for each in own[0] if all(each in texts for texts in own)]
        only = [each for each in everywhere if not any(each in texts for texts in other)]
        if only:
            said = f"every `{side}` says {only[0]!r}, and the other side never does"
            yield warning(
                "shared-wording", "instruction", said, "say it in other words in each pair"
            )


def _runs(text: str) -> dict[str, None]:
    """Return a text's runs of so many words that they give its side away, in order."""
    words = _plain(text).split()
    return {" ".join(words[at : at + _RUN]): None for at in range(len(words) - _RUN + 1)}


def _twice(what: str, texts: Mapping[str, str]) -> Iterator[Finding]:
    """Find copies and near-copies in a list."""
    plain = {where: _plain(text) for where, text in list(texts.items())[:_MOST_COMPARED]}
    told: set[str] = set()
    for (one, text), (other, copy) in combinations(plain.items(), 2):
        if other in told:
            continue
        if text == copy:
            told.add(other)
            remedy = "one of them adds nothing: replace it"
            yield warning("duplicate", other, f"repeats {one}", remedy)
        elif _near(text, copy):
            told.add(other)
            said = f"is nearly {one}"
            yield warning("near-duplicate", other, said, f"{what} should differ: vary it")


def _near(one: str, other: str) -> bool:
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    bounds = (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)
    # Short texts of one build, "Write about a cat." and "Write about a bat.", are two questions.
    if max(len(one.split()), len(other.split())) <= _SHORT:
        return False
    return all(bound() >= ALIKE for bound in bounds) or _adds_a_word(one, other)


def _adds_a_word(one: str, other: str) -> bool:
    """Return whether a text is the other, of five words and more, with one word put in."""
    fewer, more = sorted((one.split(), other.split()), key=len)
    if len(more) != len(fewer) + 1 or len(fewer) < _SHORT:
        return False
    return any(more[:at] + more[at + 1 :] == fewer for at in range(len(more)))


def _named(name: str, questions: Mapping[str, str]) -> Iterator[Finding]:
    words = [
        word for word in re.findall("[a-z]{3,}", name.lower()) if not _COMMON_WORDS.fullmatch(word)
    ]
    forms = [rf"{word[:_STEM]}\w*" if len(word) > 3 else word for word in words]
    named = re.compile(rf"\b(?:{'|'.join(forms)})\b") if forms else None
    for where, question in questions.items():
        found = named.findall(question.lower()) if named else []
        telling = [word for word in found if not _COMMON_WORDS.fullmatch(word)]
        if telling:
            said = f"names the trait ({telling[0]!r})"
            yield warning("names-trait", where, said, "ask so that either side could answer")


def _counts(trait: Trait) -> Iterator[Finding]:
    n_questions, n_pairs = len(set(map(_plain, trait.questions))), len(trait.instructions)
    if any(trait.questions) and n_questions < FEW_QUESTIONS:
        said = f"{n_questions} different questions are too few for a claim"
        remedy = f"held-out rows go by question: {FEW_QUESTIONS} or more, 20 are good"
        yield warning("few-questions", "questions", said, remedy)
    if n_pairs < FEW_PAIRS:
        said = f"{n_pairs} instruction pair{'s' if n_pairs > 1 else ''}"
        remedy = "a vector may be one of their wording: five, said in five ways, are good"
        yield warning("few-pairs", "instruction", said, remedy)
    n_steering = len(set(map(_plain, trait.steering_questions)))
    if 0 < n_steering < FEW_STEERING:
        said = f"{n_steering} different questions are too few for a claim about steering"
        yield warning("few-questions", "steering_questions", said, f"ask {FEW_STEERING} or more")


# --- prompts of the judge ---


def _judge_prompts(trait: Trait, prompts: Mapping[str, str]) -> Iterator[Finding]:
    for where, text in prompts.items():
        for name in _FILLED:
            if text.count(name) > 1:
                said = f"holds {name} {text.count(name)} times"
                yield warning("placeholder-twice", where, said, "the judge reads it as often")
        odd = [found for found in NEARLY.findall(text) if found not in _FILLED]
        if odd:
            said = f"holds {odd[0]}, which is not filled"
            yield warning("placeholder", where, said, "only {question} and {answer} are")
    asked = other_scale(trait.eval_prompt, trait.scale)
    ends = [rf"\b{end}\b" for end in (trait.scale.low, trait.scale.high)]
    if asked is not None:
        said = f"asks for {asked}, and scores are read as {trait.scale}"
        remedy = f"write `score_min`: {asked.low}, `score_max`: {asked.high}"
        yield warning("other-scale", "eval_prompt", said, remedy)
    elif not all(re.search(end, trait.eval_prompt) for end in ends):
        said = "names no scale"
        remedy = f"end with: Answer with a single integer from {trait.scale}."
        yield warning("no-scale", "eval_prompt", said, remedy)
    asked = other_scale(trait.coherence_prompt or "", FULL)
    if asked is not None:
        said = f"asks for {asked}, and coherence is read as {FULL}"
        yield warning("other-scale", "coherence_prompt", said, f"ask for {FULL}")
    local = trait.yes_no_prompt
    if local is not None and not re.search(
        r"\byes\b.{0,20}\bno\b", local[-80:], re.IGNORECASE | re.DOTALL
    ):
        remedy = "end with: Answer Yes or No."
        yield warning("no-yes-no", "yes_no_prompt", "does not ask for Yes or No", remedy)


# --- words ---

_NO_MARKS = str.maketrans("", "", string.punctuation)


def _plain(text: str) -> str:
    """Return a text in lower case, without punctuation or repeated blanks."""
    return " ".join(text.lower().translate(_NO_MARKS).split())


def _words(one: str, other: str) -> float:
    """Return how many times as many words the longer text has."""
    fewer, more = sorted((len(one.split()), len(other.split())))
    return more / max(fewer, 1)


Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to mend. `where` is a key such as `questions[3]`, empty for the file itself."""

    severity: Severity
    rule: str
    where: str
    said: str
    remedy: str
    meant: str = ""
    """The key that is meant, such as `instruction[1].pos`, where a mistyped one stands."""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.said}; {self.remedy}"


def error(rule: str, where: str, said: str, remedy: str, meant: str = "") -> Finding:
    return Finding("error", rule, where, said, remedy, meant)


def warning(rule: str, where: str, said: str, remedy: str) -> Finding:
    return Finding("warning", rule, where, said, remedy)
