"""Prompt → token ids: the tokenizer and its chat template, with one BOS at most.

A template that asks for the time gets a run's own moment, in every later run of its folder too: its
prompts, and so its samples' ids, do not change with the day.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache, cached_property, lru_cache, partial
from typing import Any

from ..errors import AccessError, UsageError
from ..settings import Sampling
from .hub import ModelRef
from .mistral import is_mistral, refusals
from .support import own_code_refused
from .thought import Tags, Thought, open_tags, token_tags, written_tags
from .typed_tokens import marked, marked_ids, spells_special

_PROBE = "a turn, tried"
_THOUGHT_SWITCHES = ("enable_thinking", "thinking")
"""Variables that turn thought on and off: the first in Qwen-3, GLM and SmolLM-3, the second in
DeepSeek and Granite."""


def load_tokenizer(ref: ModelRef) -> Any:
    """Return the model's tokenizer. Raise AccessError where its files are missing."""
    from transformers import AutoTokenizer

    try:
        # Said outright: else transformers asks on the terminal whether to run a folder's own code.
        return AutoTokenizer.from_pretrained(
            ref.source, revision=ref.hub_revision, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise own_code_refused(ref) from None
        reason = str(error).strip().partition("\n")[0]
        raise AccessError(
            f"the tokenizer of model {ref.name} cannot be loaded: {reason or type(error).__name__}"
        ) from None


def lazy_tokenizer(ref: ModelRef) -> Callable[[str, Sampling], Prompts]:
    """Return what gives the prompts of a run, by its moment and sampling.

    The tokenizer is loaded, once, when the first prompt is asked for.
    """
    load = cache(partial(load_tokenizer, ref))
    return cache(lambda moment, sampling: Prompts(load, sampling, moment))


class Prompts:
    """Turns instruction and question into token ids, in one way for a whole run."""

    def __init__(self, load: Callable[[], Any], sampling: Sampling, moment: str) -> None:
        """`moment`, in ISO 8601, is the time for a template that asks."""
        self._load, self._sampling, self._moment = load, sampling, moment
        self._known: dict[tuple[str, str], tuple[int, ...]] = {}

    def __call__(self, instruction: str, question: str) -> tuple[int, ...]:
        """Return the token ids of one prompt, with one BOS at most; without an instruction the
        question stands alone.

        Raise AccessError where the template fails, UsageError for a prompt without tokens.
        """
        asked = (instruction, question)
        if asked not in self._known:
            self._known[asked] = self._tokenized(instruction, question)
        return self._known[asked]

    def text(self, instruction: str, question: str) -> str:
        """Return one prompt as the model reads it, special tokens and all."""
        return str(self._load().decode(self(instruction, question)))

    @cached_property
    def remark(self) -> str:
        """What stands elsewhere than was asked, empty where nothing does. Loads the tokenizer."""
        remarks = []
        if self._sampling.wants_system and not self._has_template:
            remarks.append("the model has no chat template: prompts go in raw, system text first")
        elif self._sampling.wants_system and not self._takes_system:
            remarks.append(
                "the chat template takes no system turn: what belongs there begins the user turn"
            )
        if self.thought is not None:
            remarks.append(
                f"the model thinks first, up to {self._sampling.max_thinking_tokens} tokens "
                "(`max_thinking_tokens`), and the thought is neither judged nor pooled"
            )
        elif self._is_chat and (tags := open_tags(self._opening)):
            remarks.append(
                "the prompt ends in an open thought, which would be judged and pooled as the "
                "response; set it apart with `thinking` on, or close it with `prefill` "
                f"\\n{tags.closing}\\n\\n"
            )
        return "; ".join(remarks)

    @cached_property
    def thought(self) -> Thought | None:
        """How the model thinks before it responds, its thought being a span of its own.

        None where it does not. Loads the tokenizer. Raise UsageError where it is to think and
        cannot.
        """
        how = self._sampling
        if how.thinking in ("off", "template") or not how.max_thinking_tokens:
            return None
        tags, opened = None, False
        if self._is_chat:
            tags, opened = self._thought_tags()
        if tags is not None:
            return Thought(self._load(), tags, opened=opened)
        if how.thinking == "on":
            raise UsageError(
                "`thinking` on: this model's prompt leaves no place for a thought (its chat "
                "template and tokens name no tags of one, or `prompt_format` raw or `prefill` "
                "passes it by); take another model, or leave `thinking` out"
            )
        return None

    def _thought_tags(self) -> tuple[Tags | None, bool]:
        """Return the tags of the thought to come, and whether the prompt has opened it."""
        if tags := open_tags(self._opening):
            return tags, True
        if self._sampling.prefill or written_tags(self._opening):
            return None, False
        written = written_tags(str(self._load().chat_template))
        told = [self._variables[name] for name in _THOUGHT_SWITCHES if name in self._variables]
        if self._sampling.thinking == "on" or any(told):
            return written or token_tags(self._load()), False
        if told:  # not to think
            return None, False
        return written, False

    def _tokenized(self, instruction: str, question: str) -> tuple[int, ...]:
        how, tokenizer = self._sampling, self._load()
        system, user = [how.system_prompt or ""], [instruction, question]
        if how.prompt_format == "system":
            system, user = [*system, instruction], [question]
        # Without an instruction the template's own system turn stands, unless one is given.
        wanted = how.system_prompt is not None or any(system)
        if self._takes_system and wanted:
            turns = [{"role": "system", "content": _joined(system)}]
        else:
            turns, user = [], [*system, *user]
        if how.prompt_format == "raw":  # as its author typed it, special tokens and all
            return _ids(tokenizer, tokenizer(_joined(user) + how.prefill)["input_ids"])
        if not self._has_template:
            return _ids(tokenizer, _raw_ids(tokenizer, _joined(user), how.prefill))
        turns.append({"role": "user", "content": _joined(user)})
        ids = _turn_ids(tokenizer, turns, self._moment, how.prefill, **self._variables)
        return _ids(tokenizer, ids)

    @cached_property
    def _has_template(self) -> bool:
        return is_chat(self._load())

    @property
    def _is_chat(self) -> bool:
        return self._has_template and self._sampling.prompt_format != "raw"

    @cached_property
    def _variables(self) -> dict[str, Any]:
        """Variables for the template; thought is on or off as was asked for, off where it can."""
        how = self._sampling
        given = how.template_variables()
        if how.thinking == "template" or set(_THOUGHT_SWITCHES) & given.keys():
            return given
        template, switches = str(self._load().chat_template), _switches(self._load(), self._moment)
        tags = written_tags(template) or open_tags(template)
        if how.thinking == "off" and not switches and tags:
            raise UsageError(
                "`thinking` off: this model's chat template has no switch for it "
                f"({', '.join(_THOUGHT_SWITCHES)}); close the thought with `prefill` "
                f"\\n{tags.closing}\\n\\n, or take another model"
            )
        return given | dict.fromkeys(switches, how.thinking == "on")

    @cached_property
    def _opening(self) -> str:
        """What the model's turn begins with."""
        variables = self._variables
        return _opening(self._load(), self._moment, **variables) + self._sampling.prefill

    @cached_property
    def _takes_system(self) -> bool:
        """Whether the template has a system turn of its own: some refuse it, some drop it."""
        if not self._has_template or self._sampling.prompt_format == "raw":
            return False
        turns = [{"role": "system", "content": _PROBE}, {"role": "user", "content": "?"}]
        try:
            text = _templated(self._load(), turns, self._moment, tokenize=False, **self._variables)
        except AccessError:
            return False
        return _PROBE in text


def chat_token_ids(tokenizer: Any, prompt: str, moment: str) -> tuple[int, ...]:
    """Return the token ids of `prompt` as one user turn, raw for base models; one BOS at most.

    Thought is turned off where the template can, and closed where it cannot. `moment`, in ISO 8601,
    is the time for a template that asks. Raise AccessError where the template fails.
    """
    if not is_chat(tokenizer):
        return _ids(tokenizer, _raw_ids(tokenizer, prompt))
    turns = [{"role": "user", "content": prompt}]
    off, closed = _silenced(tokenizer, str(tokenizer.chat_template), moment)
    return _ids(tokenizer, _turn_ids(tokenizer, turns, moment, closed, **off))


def is_chat(tokenizer: Any) -> bool:
    """Return whether a tokenizer writes turns, by a template or by code of its own."""
    return bool(tokenizer.chat_template) or is_mistral(tokenizer)


def thoughtless(tokenizer: Any) -> dict[str, Any]:
    """Return the variables that turn thought off in a tokenizer's chat template, if it can."""
    return dict.fromkeys(_named_switches(tokenizer), False)


def template_text(
    tokenizer: Any, turns: list[dict[str, str]], moment: str, *, reply: bool, **variables: Any
) -> str:
    """Return a conversation as the template writes it, with `reply` up to the model's turn.

    Raise AccessError where the template fails or refuses such turns.
    """
    how = {"tokenize": False, "add_generation_prompt": reply, **variables}
    return str(_templated(tokenizer, turns, moment, **how))


@lru_cache(maxsize=8)
def _silenced(tokenizer: Any, template: str, moment: str) -> tuple[dict[str, Any], str]:
    """Return the variables and the text after a prompt that keep a model from thinking."""
    off: dict[str, Any] = dict.fromkeys(_switches(tokenizer, moment), False)
    written = written_tags(template) or open_tags(template)
    if written is None:
        return off, ""
    opening = _opening(tokenizer, moment, **off)
    if tags := open_tags(opening):
        return off, f"\n{tags.closing}\n\n"
    if off or written_tags(opening):
        return off, ""
    return off, written.empty  # else the model would begin a thought itself


def _switches(tokenizer: Any, moment: str) -> list[str]:
    """Return the variables that turn thought on and off in a tokenizer's template."""
    turns = [{"role": "user", "content": _PROBE}]

    def told(name: str, value: bool) -> Any:
        return _templated(tokenizer, turns, moment, tokenize=False, **{name: value})

    # Some only speak of thinking, to the model.
    return [name for name in _named_switches(tokenizer) if told(name, True) != told(name, False)]


def _named_switches(tokenizer: Any) -> list[str]:
    template = str(tokenizer.chat_template)
    return [name for name in _THOUGHT_SWITCHES if re.search(rf"\b{name}\b", template)]


def _opening(tokenizer: Any, moment: str, **variables: Any) -> str:
    """Return the text that follows the user's turn, up to where the model goes on."""
    turns = [{"role": "user", "content": _PROBE}]
    text = _templated(tokenizer, turns, moment, tokenize=False, **variables)
    return str(text).rpartition(_PROBE)[2]


def _joined(parts: list[str]) -> str:
    return "\n\n".join(filter(None, parts))


def _raw_ids(tokenizer: Any, text: str, prefill: str = "") -> Any:
    """Return the token ids of words without a template; a special token in the text is words."""
    if spells_special(tokenizer, text):
        return marked_ids(tokenizer, marked(tokenizer, text) + prefill)
    return tokenizer(text + prefill)["input_ids"]


def _turn_ids(
    tokenizer: Any, turns: list[dict[str, str]], moment: str, prefill: str = "", **variables: Any
) -> Any:
    """Return the token ids of a conversation and what follows it; a special token in a turn is
    words."""
    typed = spells_special(tokenizer, *(turn["content"] for turn in turns))
    if is_mistral(tokenizer) or not (typed or prefill):
        # By mistral_common the text of a conversation does not give its ids again.
        ids = _templated(tokenizer, turns, moment, **variables)
        return ids + tokenizer(prefill, add_special_tokens=False)["input_ids"] if prefill else ids
    if typed:
        turns = [turn | {"content": marked(tokenizer, turn["content"])} for turn in turns]
    text = _templated(tokenizer, turns, moment, tokenize=False, **variables) + prefill
    if typed:
        return marked_ids(tokenizer, text, add_special_tokens=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _ids(tokenizer: Any, found: Any) -> tuple[int, ...]:
    ids = tuple(map(int, found))
    bos = tokenizer.bos_token_id
    # A template that writes BOS itself, tokenized by a tokenizer that adds one.
    while bos is not None and ids[:2] == (bos, bos):
        ids = ids[1:]
    if not ids:
        raise UsageError("a prompt has no tokens under this model's tokenizer")
    return ids


def _templated(tokenizer: Any, turns: list[dict[str, str]], moment: str, **variables: Any) -> Any:
    """Return the token ids of a conversation up to the model's turn; with `tokenize` False its
    text."""
    from jinja2 import TemplateError

    clock = datetime.fromisoformat(moment).astimezone(UTC)
    # The clock stands before transformers' own of this name.
    how = {"tokenize": True, "return_dict": False, "strftime_now": clock.strftime}
    how |= {"add_generation_prompt": True, **variables}
    as_text = is_mistral(tokenizer) and not how["tokenize"]
    if is_mistral(tokenizer):  # it has no clock
        how |= {"tokenize": True}
        del how["strftime_now"]
    faults: tuple[type[Exception], ...] = (TemplateError, TypeError, ValueError)
    faults += (ArithmeticError, LookupError, *refusals(tokenizer))
    try:
        found = tokenizer.apply_chat_template(turns, **how)
        return tokenizer.decode(found) if as_text else found
    except faults as error:
        # What a template's own code raises, for one that is broken or that refuses such turns.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise AccessError(
            f"the chat template of {tokenizer.name_or_path} fails: {reason}; mend the template "
            "(chat_template.jinja or tokenizer_config.json), or take another model"
        ) from None
