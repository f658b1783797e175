"""The text of a finished response: what vLLM's detokenizer would have said of it, token by token.

vLLM decodes each token as it comes, on the event loop, for clients that read along. Nobody does
here, so requests ask for ids alone, and the text is made once: in two calls of the tokenizer
instead of two a token. A thread would cost the loop more than that takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

_UNDECODABLE = "\ufffd"
"""What bytes that are no character decode to."""


class Detokenizer:
    """Texts as vLLM's `IncrementalDetokenizer` has them, special tokens left out."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer` is the one that vLLM loaded."""
        self._tokenizer = tokenizer
        self._fast: Any = getattr(tokenizer, "_tokenizer", None)
        self._special: frozenset[int] = frozenset()
        if self._fast is not None:
            from vllm.v1.engine.detokenizer import uses_fast_detokenizer

            if not uses_fast_detokenizer(tokenizer):
                self._fast = None
                return
            added = self._fast.get_added_tokens_decoder()
            self._special = frozenset(token for token, each in added.items() if each.special)

    def text(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """Return the text of `ids` behind a prompt; an unfinished character at its end is left out.

        A closing token that is no text is not among `ids`.
        """
        if not ids:
            return ""
        # Where a step could have gone astray, the steps are made: a decoder sees characters
        # differently in a longer run of bytes, and first tokens after one that is left out.
        if self._fast is not None and self._special.isdisjoint(ids):
            whole = self._at_once(prompt, ids)
            if whole is not None and _UNDECODABLE not in whole:
                return whole
        return self._step_by_step(prompt, ids)

    def _at_once(self, prompt: Sequence[int], ids: Sequence[int]) -> str | None:
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(ids=list(prompt), skip_special_tokens=True)
        try:
            found: str | None = stream.step(self._fast, list(ids))
        except Exception:  # noqa: BLE001 - it has no other: bytes that join those of the prompt
            return None
        return found

    def _step_by_step(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        from vllm import SamplingParams
        from vllm.v1.engine.detokenizer import IncrementalDetokenizer

        request = SimpleNamespace(
            request_id="",
            prompt_token_ids=list(prompt),
            prompt_embeds=None,
            sampling_params=SamplingParams(),
        )
        steps = IncrementalDetokenizer.from_new_request(self._tokenizer, request)
        steps.update(list(ids), stop_terminated=False)
        return str(steps.get_next_output_text(finished=True, delta=False))
