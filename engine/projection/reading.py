"""One model's reading of texts: token ids, spans, and the projections of every turn and token."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import TraitmillError, UsageError
from ..models import (
    Conversation,
    Conversations,
    ModelRef,
    Shape,
    check_adapter,
    check_capture,
    check_support,
    check_weights,
    choose_device,
    device_here,
    load_tokenizer,
    span_of,
)
from ..settings import RunSettings
from .directions import Directions
from .table import Layout
from .texts import Text

if TYPE_CHECKING:
    from ..capture.model import CaptureModel

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Read:
    """A text as this model reads it."""

    text: Text
    conversation: Conversation


class Reader:
    """A model that texts are projected in. Weights and tokenizer load when they are needed."""

    def __init__(
        self, ref: ModelRef, label: str, directions: Directions, settings: RunSettings
    ) -> None:
        """`label` names the model in the table.

        Raise UsageError for a model that cannot be captured, or that the vectors do not fit.
        """
        self.ref, self.label = ref, label
        self._directions, self._settings = directions, settings
        self.tokens_of = f"{ref.name}@{ref.revision}"
        """Whose token ids it has: an adapter changes none."""
        self.reads = {self.tokens_of}
        """Whose token ids it takes as they were stored."""
        self.remarks: dict[str, None] = {}
        """What is to be said, once, of how it read the texts so far."""
        layers = [layer for layer in directions.layers if layer >= 0]
        capture = settings.capture
        self._capture = type(capture)(
            layers=tuple(layers or [0]),
            include_embeddings=directions.layers[0] < 0,
            dtype=capture.dtype,
            attention=capture.attention,
        )
        check_support(ref, captures=True, generates=False)
        device = choose_device(settings.execution.capture_device).partition(":")[0]
        dtype, attention = check_capture(ref.config, self._capture, device)
        self.computes = f"{dtype} with {attention}"
        """What `auto` comes to on this device."""
        width = Shape.from_config(ref.config).hidden
        if width != directions.hidden_dim:
            raise UsageError(
                f"the vectors are {directions.hidden_dim} wide and what {ref.name} computes is "
                f"{width} wide: they are of another model ({directions.model_name})"
            )
        check_weights(ref)
        check_adapter(ref)

    @cached_property
    def _model(self) -> CaptureModel:
        from transformers.utils.logging import disable_progress_bar

        from ..capture.model import CaptureModel

        disable_progress_bar()
        how = self._settings.execution
        return CaptureModel(
            self.ref.source,
            self._capture,
            device=device_here(self.ref, self._settings),
            revision=self.ref.hub_revision,
            adapter=self.ref.adapter.folder if self.ref.adapter else None,
            self_check="off",
            max_rows=how.batch_size,
            blocks=how.blocks,
        )

    def unload(self) -> None:
        """Let the weights go, and the memory that held them: the next model's place is sought by
        what is free."""
        import torch

        self.__dict__.pop("_model", None)
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.ref)

    @cached_property
    def _conversations(self) -> Conversations:
        return Conversations(self.tokenizer, self._directions.moment)

    def rows(self, texts: Sequence[Text], layout: Layout) -> list[Row]:
        """Return the table's rows of some texts, in their order.

        A text that this model cannot read has one row, with the reason under `error`.
        """
        rows: list[list[Row]] = []
        readable: list[int] = []
        reads: list[_Read] = []
        for index, text in enumerate(texts):
            rows.append([])
            try:
                reads.append(_Read(text, self._read(text)))
                readable.append(index)
            except TraitmillError as error:
                rows[index] = [self._head(text, layout) | {"error": error.message}]
        for place, projected in self._projected(reads):
            rows[readable[place]] = self._turns(reads[place], projected, layout)
        return [row for each in rows for row in each]

    def _read(self, text: Text) -> Conversation:
        stored = text.stored
        if stored is not None and stored.model in self.reads:
            ids = (*stored.prompt, *stored.thought, *stored.response)
            said = (text.turns[0].content, text.columns.get("question") or "")
            spans = (span_of(self.tokenizer, stored.prompt, words) for words in said)
            # Where the instruction is a system turn, the question alone is the user's.
            asked = next((span for span in spans if span != (0, 0)), (0, 0))
            found = Conversation(ids, (asked, (len(ids) - len(stored.response), len(ids))))
        else:
            found = self._conversations(text.turns)
        longest = self.ref.context_length
        if longest and len(found.token_ids) > longest:
            raise UsageError(f"it has {len(found.token_ids)} tokens; the model takes {longest}")
        if not any(stop > start for start, stop in found.spans):
            raise UsageError("no turn of it has a token")
        if found.unasked:
            self.remarks[
                f"{self.label}: texts without a prompt are read behind an empty turn of the user, "
                "as the chat template writes it"
            ] = None
        if found.bare:
            self.remarks[
                f"{self.label}: some texts begin at the model's first token, whose state is of "
                "another size than all others; that token counts in no mean"
            ] = None
        return found

    def _projected(self, reads: Sequence[_Read]) -> Any:
        from ..capture.projecting import project_tokens

        if not reads:
            return ()
        ids = [read.conversation.token_ids for read in reads]
        return project_tokens(self._model, ids, self._directions.by_layer())

    def _head(self, text: Text, layout: Layout) -> Row:
        columns = zip(layout.inputs, layout.carried, strict=True)
        return {
            "model": self.label,
            "row": text.row,
            **{ours: text.columns.get(theirs) for theirs, ours in columns},
        }

    def _turns(self, read: _Read, projected: np.ndarray, layout: Layout) -> list[Row]:
        """Return a row for each turn; `projected` is float32 `[tokens, k]`."""
        rows = []
        head, ids = self._head(read.text, layout), read.conversation.token_ids
        if not np.isfinite(projected).all():
            return [head | {"error": "the model computed NaN or infinity"}]
        for number, (turn, (start, stop)) in enumerate(
            zip(read.text.turns, read.conversation.spans, strict=True)
        ):
            row = {
                **head,
                "turn": number,
                "role": turn.role,
                "text": turn.content,
                "n_tokens": stop - start,
                "token_ids": ids[start:stop],
            }
            for column, each in enumerate(self._directions.chosen):
                scores = each.scaled(projected[start:stop, column].astype(np.float64))
                by_token: Any = scores.astype(np.float32)
                if start == 0 and stop > 1:
                    # Attention drains into a sequence's first token: its state is many times as
                    # long as others, and would be most of a short text's mean.
                    scores, by_token = scores[1:], [None, *by_token[1:].tolist()]
                row[f"{each.name}.by_token"] = by_token
                row[each.name] = float(scores.mean()) if stop > start else None
            rows.append(row)
        return rows


def share_tokens(readers: Sequence[Reader]) -> None:
    """Have readers of one vocabulary take each other's stored token ids: they read the same texts,
    whatever their templates."""
    for one in readers:
        for other in readers:
            if other.tokens_of not in one.reads and (
                one.tokenizer.get_vocab() == other.tokenizer.get_vocab()
            ):
                one.reads.add(other.tokens_of)
