"""What a tokenizer's chat template writes, and how its thought is turned off.

A template that asks for the time gets a run's own moment, in every later run of its folder too: its
prompts, and so its samples' ids, do not change with the day.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from ..errors import AccessError
from .thought import FINAL, has_channels, open_tags, written_tags
from .tokenizer import is_mistral, marked, marked_ids, refusals, spells_special

_PROBE = "a turn, tried"
_WORDS = f"{_PROBE}: <words> & signs,\n\nand more of them" + " and more" * 40
"""What a template must show as it is: prompts have paragraphs, signs and length."""
_CHANCE = re.compile(r"\|\s*random\b|\blipsum\b")
_TRIES = 8
THOUGHT_SWITCHES = ("enable_thinking", "thinking")
"""Variables that turn thought on and off: the first in Qwen-3, GLM and SmolLM-3, the second in
DeepSeek and Granite."""


def templated(tokenizer: Any, turns: list[dict[str, str]], moment: str, **variables: Any) -> Any:
    """Return the token ids of a conversation up to the model's turn; with `tokenize` False its
    text.

    Raise AccessError where the template fails, refuses such turns, leaves words out or writes
    something else each time.
    """
    shown: list[Any] = turns
    if not is_mistral(tokenizer) and _wants_parts(tokenizer, str(tokenizer.chat_template), moment):
        shown = [turn | {"content": _in_parts(turn["content"])} for turn in turns]
    return _applied(tokenizer, shown, moment, **variables)


def _in_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


@lru_cache(maxsize=8)
def _wants_parts(tokenizer: Any, template: str, moment: str) -> bool:
    """Return whether a template shows what is said only where it comes in parts, as those made for
    pictures may. One that fails now may still take other turns."""

    def shown(content: Any) -> str:
        turns = [*opening_turns(tokenizer, moment), {"role": "user", "content": content}]
        return str(_applied(tokenizer, turns, moment, tokenize=False))

    try:
        text = shown(_WORDS)
    except AccessError:
        return False
    if _CHANCE.search(template) and any(shown(_WORDS) != text for _ in range(_TRIES)):
        raise _refused(tokenizer, "writes something else each time")
    if _WORDS in text.lower():
        return False
    try:
        text = shown(_in_parts(_WORDS)).lower()
        if _WORDS in text and "'text'" not in text and '"text"' not in text:  # no list as it is
            return True
    except AccessError:
        pass
    left_out = "leaves out what the user says"
    raise _refused(tokenizer, left_out if _PROBE not in text.lower() else f"changes or {left_out}")


def _refused(tokenizer: Any, fault: str) -> AccessError:
    return AccessError(
        f"the chat template of {tokenizer.name_or_path} {fault}; mend the template "
        "(chat_template.jinja or tokenizer_config.json), or take another model"
    )


def _applied(tokenizer: Any, turns: list[dict[str, Any]], moment: str, **variables: Any) -> Any:
    from jinja2 import TemplateError

    clock = datetime.fromisoformat(moment).astimezone(UTC)
    # The clock stands before transformers' own of this name.
    how = {"tokenize": True, "return_dict": False, "strftime_now": clock.strftime}
    how |= {"add_generation_prompt": True, **variables}
    as_text = is_mistral(tokenizer) and not how["tokenize"]
    if is_mistral(tokenizer):  # it has no clock
        how |= {"tokenize": True}
        del how["strftime_now"]
    faults: tuple[type[Exception], ...] = (TemplateError, TypeError, ValueError, RecursionError)
    faults += (ArithmeticError, LookupError, *refusals(tokenizer))
    try:
        found = tokenizer.apply_chat_template(turns, **how)
        return tokenizer.decode(found) if as_text else found
    except faults as error:
        # What a template's own code raises, for one that is broken or that refuses such turns.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _refused(tokenizer, f"fails: {reason}") from None


def opening_turns(tokenizer: Any, moment: str) -> list[dict[str, str]]:
    """Return what has to stand before a user's turn: an empty system turn, for few templates."""
    wanted = _wants_system(tokenizer, str(tokenizer.chat_template), moment)
    return [{"role": "system", "content": ""}] if wanted else []


@lru_cache(maxsize=8)
def _wants_system(tokenizer: Any, template: str, moment: str) -> bool:  # noqa: ARG001
    """Return whether a template takes a user's turn only behind a system turn."""
    user = [{"role": "user", "content": _PROBE}]
    try:
        _applied(tokenizer, user, moment, tokenize=False)
    except AccessError:
        try:
            _applied(tokenizer, [{"role": "system", "content": ""}, *user], moment, tokenize=False)
        except AccessError:
            return False
        return True
    return False


@lru_cache(maxsize=8)
def _unopened(tokenizer: Any, template: str, moment: str) -> str:  # noqa: ARG001
    """Return what opens the model's turn in a template that does not write it where the model is to
    go on, since it has no use for `add_generation_prompt`; empty for all others."""
    turns = [*opening_turns(tokenizer, moment), {"role": "user", "content": _WORDS}]
    said = [*turns, {"role": "assistant", "content": _PROBE}]
    try:
        asked, bare, whole = (
            str(templated(tokenizer, each, moment, tokenize=False, add_generation_prompt=reply))
            for each, reply in ((turns, True), (turns, False), (said, False))
        )
    except AccessError:
        return ""
    before, shown, _ = whole.rpartition(_PROBE)
    if asked != bare or not shown or not before.startswith(asked):
        return ""
    return before.removeprefix(asked).strip()


def _check_opened(tokenizer: Any, moment: str, prefill: str = "") -> None:
    """Raise AccessError where the model would write the beginning of its turn itself, as the first
    words of its response."""
    if is_mistral(tokenizer) or has_channels(tokenizer):  # no template, or turns of several parts
        return
    missing = _unopened(tokenizer, str(tokenizer.chat_template), moment)
    if missing and missing not in prefill:
        raise _refused(
            tokenizer,
            f"ignores `add_generation_prompt`, so the model would have to write {missing!r} itself "
            "before it responds",
        )


def template_text(
    tokenizer: Any, turns: list[dict[str, str]], moment: str, *, reply: bool, **variables: Any
) -> str:
    """Return a conversation as the template writes it, with `reply` up to the model's turn.

    Raise AccessError where the template fails or refuses such turns.
    """
    if reply:
        _check_opened(tokenizer, moment)
    how = {"tokenize": False, "add_generation_prompt": reply, **variables}
    return str(templated(tokenizer, turns, moment, **how))


def turn_opening(
    tokenizer: Any, moment: str, system: str | None = None, /, **variables: Any
) -> str:
    """Return the text that follows the user's turn, up to where the model goes on.

    `system` is a turn before it, whose words may turn thought on and off.
    """
    turns = _probed(tokenizer, moment, system)
    text = templated(tokenizer, turns, moment, tokenize=False, **variables)
    return str(text).rpartition(_PROBE)[2]


def _probed(tokenizer: Any, moment: str, system: str | None) -> list[dict[str, str]]:
    """Return a user's turn to try a template with, behind the system turn where there is one."""
    first = opening_turns(tokenizer, moment)
    if system is not None:
        first = [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": _PROBE}]


def thought_switches(tokenizer: Any, moment: str, system: str | None = None) -> list[str]:
    """Return the variables that turn thought on and off in a tokenizer's template.

    `system` is a turn before the user's: where its words decide, no variable does.
    """
    turns = _probed(tokenizer, moment, system)

    def told(name: str, value: bool) -> Any:
        return templated(tokenizer, turns, moment, tokenize=False, **{name: value})

    # Some only speak of thinking, to the model.
    return [name for name in _named_switches(tokenizer) if told(name, True) != told(name, False)]


def _named_switches(tokenizer: Any) -> list[str]:
    template = str(tokenizer.chat_template)
    return [name for name in THOUGHT_SWITCHES if re.search(rf"\b{name}\b", template)]


def thoughtless(tokenizer: Any) -> dict[str, Any]:
    """Return the variables that turn thought off in a tokenizer's chat template, if it can."""
    return dict.fromkeys(_named_switches(tokenizer), False)


@lru_cache(maxsize=8)
def silenced(tokenizer: Any, template: str, moment: str) -> tuple[dict[str, Any], str]:
    """Return the variables and the text after a prompt that keep a model from thinking."""
    off: dict[str, Any] = dict.fromkeys(thought_switches(tokenizer, moment), False)
    if has_channels(tokenizer):
        return off, FINAL
    written = written_tags(template) or open_tags(template)
    if written is None:
        return off, ""
    opening = turn_opening(tokenizer, moment, **off)
    if tags := open_tags(opening):
        return off, f"\n{tags.closing}\n\n"
    if off or written_tags(opening):
        return off, ""
    return off, written.empty  # else the model would begin a thought itself


def turn_ids(
    tokenizer: Any, turns: list[dict[str, str]], moment: str, prefill: str = "", **variables: Any
) -> Any:
    """Return the token ids of a conversation and what follows it; a special token in a turn is
    words. Raise AccessError where the template fails or leaves the model's turn unopened."""
    _check_opened(tokenizer, moment, prefill)
    typed = spells_special(tokenizer, *(turn["content"] for turn in turns))
    if is_mistral(tokenizer) or not (typed or prefill):
        # By mistral_common the text of a conversation does not give its ids again.
        ids = templated(tokenizer, turns, moment, **variables)
        return ids + tokenizer(prefill, add_special_tokens=False)["input_ids"] if prefill else ids
    if typed:
        turns = [turn | {"content": marked(tokenizer, turn["content"])} for turn in turns]
    text = templated(tokenizer, turns, moment, tokenize=False, **variables) + prefill
    if typed:
        return marked_ids(tokenizer, text, add_special_tokens=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]
