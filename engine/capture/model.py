"""Responses to activations: a causal model, hooks on its blocks, pools formed on the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ..models import (
    Shape,
    check_layers,
    choose_device,
    free_host_memory,
    has_soft_cap,
    length_dependent_rope,
    token_budget,
)
from ..records import Activation, Response
from ..settings import CaptureSettings
from . import decoder
from .batching import Batch, Budget, run_batches
from .heap import keep_freed_memory
from .pooling import EMBEDDINGS, Enough, LayerHooks, Pooler, padded_ids, pool_weights
from .reference import run_alone
from .self_check import UNMEASURED_SLACK, Mode, SelfCheck
from .spread import Pending, SharedOnce, devices_of


class CaptureModel:
    """A model loaded for capture.

    Layer i is the residual stream leaving decoder block i, before the final norm; -1 is the
    embedding output. Rows are padded on the right and run without a mask: in a causal model no
    token sees the padding, and the fast causal kernels stay in use. The forward ends at the last
    layer needed, so the LM head never runs in the bulk pass.
    """

    def __init__(
        self,
        model_path: str,
        capture: CaptureSettings,
        *,
        device: str = "auto",
        revision: str | None = None,
        adapter: str | None = None,
        self_check: Mode = "sample",
        generation_dtype: str = "auto",
        max_rows: int | None = None,
        token_budget: int | None = None,
        threads: int | None = None,
        blocks: str | None = None,
    ) -> None:
        """Load weights. `token_budget` fixes the batch budget (else it comes from free memory),
        `max_rows` caps rows, `threads` sets torch's, `blocks` is the path of the decoder blocks
        where they are not found, `adapter` the folder of a LoRA adapter. What the self-check allows
        depends on `generation_dtype`, vLLM's.

        Raises AccessError, ResourceError or UsageError.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = choose_device(device)
        if self._device == "cpu":
            keep_freed_memory()
        self._model = decoder.load(
            model_path,
            dtype=capture.dtype,
            attn=capture.attention,
            device=self._device,
            revision=revision,
            adapter=adapter,
        )
        text_config = self._model.config.get_text_config()
        self._blocks = decoder.find_blocks(self._model, blocks)
        self._devices = devices_of(self._blocks)
        self.pools = capture.pools
        self.layers = self._captured_layers(capture)
        self.hidden_dim = int(text_config.hidden_size)
        self._shape = Shape.from_config(text_config)
        self._rope = length_dependent_rope(text_config)
        self._itemsize = self._model.dtype.itemsize
        growth = self._shape.score_growth(self._itemsize) if self.attention == "eager" else 0.0
        limit, self.arithmetic = self._limit(token_budget)
        self._budget = Budget(limit, max_rows=max_rows, growth=growth)
        bos = text_config.bos_token_id
        self._check = SelfCheck(
            self_check,
            self.dtype,
            generation_dtype,
            layers=self.layers,
            pools=self.pools,
            bos=bos if isinstance(bos, int) else None,
            capped=has_soft_cap(text_config),
            experts=self._shape.experts,
            slack=UNMEASURED_SLACK if torch.device(self._device).type == "cuda" else 1.0,
        )

    def _captured_layers(self, capture: CaptureSettings) -> tuple[int, ...]:
        chosen = capture.layers if capture.layers is not None else tuple(range(self.n_layers))
        check_layers(chosen, self.n_layers)
        return (EMBEDDINGS, *chosen) if capture.include_embeddings else chosen

    def _limit(self, tokens: int | None) -> tuple[int, str]:
        if tokens is not None:
            return tokens, f"capture batches of {tokens:,} tokens, as set"
        gpu = torch.device(self._device).type == "cuda"
        free = decoder.free_bytes(self._model) if gpu else free_host_memory()
        budget = token_budget(self._shape, self._itemsize, free, gpu=gpu)
        return budget.tokens, budget.line

    @property
    def n_layers(self) -> int:
        """Decoder blocks of the model, captured or not."""
        return len(self._blocks)

    @property
    def dtype(self) -> str:
        return str(self._model.dtype).removeprefix("torch.")

    @property
    def attention(self) -> str:
        """The attention implementation in use."""
        return str(self._model.config.get_text_config()._attn_implementation)  # noqa: SLF001

    @property
    def device(self) -> str:
        return self._device

    @property
    def devices(self) -> list[torch.device]:
        return self._devices

    @property
    def input_device(self) -> torch.device:
        """Where token ids go: the first device when the layers are spread over several."""
        device: torch.device = self._model.get_input_embeddings().weight.device
        return device

    def check_summary(self) -> dict[str, Any]:
        return self._check.summary()

    @property
    def budget(self) -> Budget:
        return self._budget

    def capture(self, rows: Sequence[Response]) -> list[Activation]:
        """Pools of `rows`, in their order.

        A row whose activations are not finite, or that has nothing to pool, gets an error and no
        pools; one without a token of some pool lacks that. The others are safe. More rows a call
        mean less padding. Raises SelfCheckError when a row contradicts the self-check and
        ResourceError when one row alone does not fit.
        """
        results: list[Activation | None] = [None] * len(rows)
        runnable = []
        for index, row in enumerate(rows):
            self._check.tokens(row.sample.id, row.sample.prompt_token_ids)
            fault = self._unfit(row)
            if fault:
                error = f"sample {row.sample.id}: {fault}"
                results[index] = Activation(row.sample.trait, row.sample.id, error=error)
            else:
                runnable.append(index)
        chosen = [rows[index] for index in runnable]
        for batch, pooled in self._pooled(chosen):
            for place, result in zip(
                batch.indices, self._finish(chosen, batch, pooled), strict=True
            ):
                results[runnable[place]] = result
        return [result for result in results if result is not None]

    def _unfit(self, row: Response) -> str:
        if not row.sample.prompt_token_ids:
            return "it has no prompt tokens"
        lacking = " and no ".join(self._parts)
        return "" if self._poolable(row) else f"it has no {lacking} token to pool"

    def _poolable(self, row: Response) -> list[str]:
        """Return the pools that a row has tokens of."""
        spans = {pool: row.spans[pool.partition("_")[0]] for pool in self.pools}
        return [pool for pool, (first, end) in spans.items() if first < end]

    @property
    def _parts(self) -> list[str]:
        """What the pools are of: prompt, thought, response."""
        return list(dict.fromkeys(pool.partition("_")[0] for pool in self.pools))

    def tokens_run(self, row: Response) -> int:
        """Tokens of the row that the pass runs: those after the last pooled one change nothing
        before them.

        But where RoPE depends on the length of the row, that is the length generation saw.
        """
        if self._rope is not None:
            return len(row.token_ids)
        return max(row.spans[part][1] for part in self._parts)

    def together(self, longest: int, other: int) -> bool:
        """Whether a row of `other` tokens may be in a batch whose longest row has `longest`.

        Length-dependent RoPE turns all rows of a batch by its longest: longrope by one of two
        factors, dynamic NTK by another one for each length.
        """
        if self._rope is None or longest <= self._rope[1]:
            return True
        return self._rope[0] == "longrope" and other > self._rope[1]

    def _pooled(self, rows: Sequence[Response]) -> Iterator[tuple[Batch, np.ndarray]]:
        """Batches with their pools on the host; as many as devices run while one is finished."""
        lengths = [self.tokens_run(row) for row in rows]
        under_way: deque[Pending] = deque()
        for _, pending in run_batches(
            lengths,
            self._budget,
            lambda batch: self._launch(rows, batch),
            decoder.is_out_of_memory,
            together=self.together,
        ):
            under_way.append(pending)
            if len(under_way) > len(set(self._devices)):
                yield under_way.popleft().wait()
        while under_way:
            yield under_way.popleft().wait()

    def _launch(self, rows: Sequence[Response], batch: Batch) -> Pending:
        """Start a batch's forward and the copy of its pools."""
        chosen = [rows[index] for index in batch.indices]
        ids = padded_ids([row.token_ids for row in chosen], batch.width)
        weights = pool_weights(self.pools, [row.spans for row in chosen], batch.width)
        pooler = Pooler(weights, len(self.layers), self.hidden_dim, self.input_device)
        self.forward(ids, self.layers, pooler.take)
        return Pending.start(batch, pooler)

    def forward(self, ids: torch.Tensor, layers: Sequence[int], take: Any) -> None:
        """Run `[rows, width]` ids up to the last of `layers` (ascending), calling `take(slot,
        hidden)` for each."""
        with (
            torch.inference_mode(),
            SharedOnce(self._blocks, self._devices),
            LayerHooks(self._blocks, layers, take),
        ):
            try:
                self._model(input_ids=ids.to(self.input_device), use_cache=False, logits_to_keep=1)
            except Enough:
                return

    def _finish(
        self, rows: Sequence[Response], batch: Batch, pooled: np.ndarray
    ) -> list[Activation]:
        """Results of a batch, `pooled` being float32 `[rows, pools, layers, dim]`, once they are
        finite and checked."""
        chosen = [rows[index] for index in batch.indices]
        finite = np.isfinite(pooled).all(axis=-1)
        for place in np.flatnonzero(~finite.all(axis=(1, 2))):
            # Alone and unpadded it has nobody else's faults; what is wrong now is its own.
            alone = self._launch(chosen, Batch((int(place),), self.tokens_run(chosen[place])))
            pooled[place] = alone.wait()[1][0]
            finite[place] = np.isfinite(pooled[place]).all(axis=-1)
        good = [place for place in range(len(chosen)) if finite[place].all()]
        looked_at = self._check.choose(
            [chosen[place].sample.id for place in good],
            [self.tokens_run(chosen[place]) for place in good],
            [chosen[place].logprobs is not None for place in good],
        )
        for choice in looked_at:
            self._compare(chosen[good[choice]], pooled[good[choice]])
        return [self._result(row, pooled[place], finite[place]) for place, row in enumerate(chosen)]

    def _result(self, row: Response, pooled: np.ndarray, finite: np.ndarray) -> Activation:
        if finite.all():
            by_pool = dict(zip(self.pools, pooled, strict=True))
            had = {pool: by_pool[pool] for pool in self._poolable(row)}
            return Activation(row.sample.trait, row.sample.id, had)
        slot = int(np.flatnonzero(~finite.all(axis=0))[0])
        where = f"layer {self.layers[slot]} ({self.dtype}, {self.attention})"
        error = f"sample {row.sample.id}: NaN or infinity at {where}"
        return Activation(row.sample.trait, row.sample.id, error=error)

    def _compare(self, row: Response, pooled: np.ndarray) -> None:
        try:
            reference = run_alone(
                self._model,
                self._blocks,
                (*row.sample.prompt_token_ids, *row.thought_token_ids),
                row.response_token_ids,
                spans=row.spans,
                pools=self.pools,
                logprobs=row.logprobs is not None,
            )
        except (RuntimeError, MemoryError) as error:
            if not decoder.is_out_of_memory(error):
                raise
            self._check.skip()
            return
        self._check.states(row.sample.id, pooled, reference)
        if row.logprobs is not None:
            self._check.logprobs(row.sample.id, row.logprobs, reference)
