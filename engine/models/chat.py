"""Prompt → token ids, by the tokenizer and its chat template, with one BOS at most."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property, partial
from typing import Any

from ..errors import AccessError, UsageError
from ..settings import Sampling
from .hub import ModelRef
from .template import (
    THOUGHT_SWITCHES,
    opening_turns,
    silenced,
    templated,
    thought_switches,
    turn_ids,
    turn_opening,
)
from .thought import (
    ANALYSIS,
    FINAL,
    Tags,
    Thought,
    has_channels,
    names_channel,
    open_tags,
    token_tags,
    written_tags,
)
from .tokenizer import (
    is_chat,
    is_mistral,
    is_special,
    load_tokenizer,
    one_bos,
    raw_ids,
    typed_ids,
)

_PROBE, _ASKED = "a turn, tried", "and what is asked"


def lazy_tokenizer(ref: ModelRef) -> Callable[[str, Sampling], Prompts]:
    """Return what gives the prompts of a run, by its moment and sampling.

    The tokenizer is loaded, once, when the first prompt is asked for.
    """
    load = cache(partial(load_tokenizer, ref))
    return cache(lambda moment, sampling: Prompts(load, sampling, moment, ref.vocabulary))


class Prompts:
    """Turns instruction and question into token ids, in one way for a whole run."""

    def __init__(
        self, load: Callable[[], Any], sampling: Sampling, moment: str, vocabulary: int = 0
    ) -> None:
        """`moment`, in ISO 8601, is the time for a template that asks; `vocabulary` counts the
        tokens that the model knows, 0 where its config does not say."""
        self._load, self._sampling, self._moment = load, sampling, moment
        self._vocabulary = vocabulary
        self._known: dict[tuple[str, str], tuple[int, ...]] = {}

    def __call__(self, instruction: str, question: str) -> tuple[int, ...]:
        """Return the token ids of one prompt, with one BOS at most; without an instruction the
        question stands alone.

        Raise AccessError where the template fails or the model lacks a token, UsageError for a
        prompt without tokens.
        """
        asked = (instruction, question)
        if asked not in self._known:
            ids = self._tokenized(instruction, question)
            if self._vocabulary and max(ids) >= self._vocabulary:
                raise AccessError(
                    f"the tokenizer of {self._load().name_or_path} writes token {max(ids)}, and "
                    f"the model knows {self._vocabulary} (0 to {self._vocabulary - 1}): copy "
                    "tokenizer and weights together"
                )
            self._known[asked] = ids
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
        given = self._sampling.template_variables().keys() & set(THOUGHT_SWITCHES)
        if self._is_chat and (idle := given - set(self._switches)):
            named = ", ".join(sorted(idle))
            remarks.append(f"`chat_template_kwargs` {named} changes nothing in this chat template")
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
        elif self._is_chat and has_channels(self._load()) and not names_channel(self._opening):
            remarks.append(
                "the model writes its thought as a channel of what it says, which would be judged "
                "and pooled as the response; set it apart with `thinking` on"
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
                "passes it by); open one with `prefill` <think>\\n, take another model, or leave "
                "`thinking` out"
            )
        return None

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end the model's turn as its template writes it: its files may name another.

        Loads the tokenizer. Empty where the template shows none, or turns have several parts.
        """
        tokenizer = self._load() if self._is_chat else None
        if tokenizer is None or is_mistral(tokenizer) or has_channels(tokenizer):
            return ()
        turns = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _PROBE}]
        how = {"tokenize": False, "add_generation_prompt": False, **self._variables}
        try:
            turns = [*opening_turns(tokenizer, self._moment), *turns]
            _, shown, after = templated(tokenizer, turns, self._moment, **how).rpartition(_PROBE)
        except AccessError:
            return ()
        if not shown:  # in other words, or not at all
            return ()
        ids = tokenizer(after.lstrip(), add_special_tokens=False)["input_ids"][:1]
        return tuple(int(token) for token in ids if is_special(tokenizer, token))

    def _thought_tags(self) -> tuple[Tags | None, bool]:
        """Return the tags of the thought to come, and whether the prompt has opened it."""
        if tags := open_tags(self._opening):
            return tags, True
        if self._sampling.prefill or written_tags(self._opening):
            return None, False
        written = written_tags(str(self._load().chat_template))
        if is_mistral(self._load()):  # there is no template to read
            written = token_tags(self._load())
        told = [self._variables[name] for name in self._switches if name in self._variables]
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
            return one_bos(tokenizer, typed_ids(tokenizer, _joined(user) + how.prefill))
        if not self._has_template:
            return one_bos(tokenizer, raw_ids(tokenizer, _joined(user), how.prefill))
        if not turns and opening_turns(tokenizer, self._moment):
            raise UsageError(
                f"the chat template of {tokenizer.name_or_path} takes no user turn without a "
                "system turn before it: give `prompt_format` system, or `system_prompt`"
            )
        turns.append({"role": "user", "content": _joined(user)})
        ids = turn_ids(tokenizer, turns, self._moment, self._prefill, **self._variables)
        return one_bos(tokenizer, ids)

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
        if how.thinking == "template":
            return given
        if named := given.keys() & set(self._switches):
            if how.thinking == "off" and any(given[name] for name in named):
                raise UsageError(
                    f"`thinking` off, and `chat_template_kwargs` {', '.join(named)} turns it on; "
                    "leave one of them out"
                )
            return given
        template = str(self._load().chat_template)
        switches = self._switches
        tags = written_tags(template) or open_tags(template)
        closed = written_tags(turn_opening(self._load(), self._moment, self._system, **given))
        if how.thinking == "off" and not (switches or self._channel or closed) and tags:
            raise UsageError(
                "`thinking` off: this model's chat template has no switch for it "
                f"({', '.join(THOUGHT_SWITCHES)}); close the thought with `prefill` "
                f"\\n{tags.closing}\\n\\n, or take another model"
            )
        return given | dict.fromkeys(switches, how.thinking == "on")

    @cached_property
    def _switches(self) -> list[str]:
        """The template's variables that turn thought on and off, under the run's system turn."""
        return thought_switches(self._load(), self._moment, self._system)

    @cached_property
    def _system(self) -> str | None:
        """The system turn of every prompt, which may turn thought on and off; None without one."""
        return self._sampling.system_prompt if self._takes_system else None

    @cached_property
    def _opening(self) -> str:
        """What the model's turn begins with."""
        opening = turn_opening(self._load(), self._moment, self._system, **self._variables)
        return opening + self._prefill

    @property
    def _prefill(self) -> str:
        return self._channel + self._sampling.prefill

    @cached_property
    def _channel(self) -> str:
        """What opens the channel of the model's turn, where its turns have several (gpt-oss)."""
        how = self._sampling
        as_it_is = how.thinking == "template" or not how.max_thinking_tokens
        if as_it_is or not self._is_chat or not has_channels(self._load()):
            return ""
        if how.prefill:
            return "" if names_channel(how.prefill) else FINAL
        return FINAL if how.thinking == "off" else ANALYSIS

    @cached_property
    def _takes_system(self) -> bool:
        """Whether the template has a system turn of its own: some refuse it, some drop it."""
        if not self._has_template or self._sampling.prompt_format == "raw":
            return False
        turns = [{"role": "system", "content": _PROBE}, {"role": "user", "content": _ASKED}]
        how = {"tokenize": False, **self._sampling.template_variables()}
        try:
            text = templated(self._load(), turns, self._moment, **how)
        except AccessError:
            return False
        return _PROBE in text and _ASKED in text


def chat_token_ids(tokenizer: Any, prompt: str, moment: str) -> tuple[int, ...]:
    """Return the token ids of `prompt` as one user turn, raw for base models; one BOS at most.

    Thought is turned off where the template can, and closed where it cannot. `moment`, in ISO 8601,
    is the time for a template that asks. Raise AccessError where the template fails.
    """
    if not is_chat(tokenizer):
        return one_bos(tokenizer, raw_ids(tokenizer, prompt))
    turns = [*opening_turns(tokenizer, moment), {"role": "user", "content": prompt}]
    off, closed = silenced(tokenizer, str(tokenizer.chat_template), moment)
    return one_bos(tokenizer, turn_ids(tokenizer, turns, moment, closed, **off))


def _joined(parts: list[str]) -> str:
    return "\n\n".join(filter(None, parts))
