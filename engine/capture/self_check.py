"""The self-check's judgement: do captured pools agree with rows run alone, and with what vLLM
computed? No torch."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import SelfCheckError

if TYPE_CHECKING:
    import numpy as np

Mode = Literal["off", "sample", "all"]

ONE_IN = 64
"""After the first batch, one row in so many is looked at, unless generation chose rows by keeping
their log-probs."""
_OF_FIRST_BATCH = 4


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest deviations that are rounding; docs/capture.md has the measurements behind them."""

    states: float
    """|batched - alone| / |alone| of a pooled mean (2-norms), per layer.

    Twice that for a pool of one token, whose rounding nothing averages, and twice again for a
    mixture of experts, whose router rounding may switch.
    """
    logprobs: float
    """Mean over a response's tokens of |capture model's log-prob - vLLM's|, in nats, times the cube
    root of their mean size where that is above 1: by so much rounding grows with temperature."""
    all_logprobs: float
    """The same mean over all tokens compared so far: noise averages out, so less is allowed."""


_HALF = Tolerance(0.05, 0.1, 0.07)
TOLERANCES: Mapping[str, Tolerance] = {
    "float32": Tolerance(1e-4, 1e-3, 1e-3),
    "bfloat16": _HALF,
    "float16": _HALF,
}


UNMEASURED_SLACK = 3.0
"""On a GPU a row is an error from so many tolerances on, and below that only counted as doubtful:
the tolerances were measured on a CPU, and a card's float32 may be TF32 (docs/gpu.md, row 8)."""


def is_sampled(sample_id: str) -> bool:
    """Whether `sample` mode looks at a row where no row has log-probs: the same in every run."""
    return zlib.crc32(sample_id.encode()) % ONE_IN == 0


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """A row run alone through transformers' own outputs."""

    states: np.ndarray
    """float32 `[pools, n_layers + 1, dim]`: the embedding output, then each block's."""
    logprobs: np.ndarray | None
    """float32, of the response tokens at `positions`; None when vLLM's are not there to compare."""
    positions: tuple[int, ...]


class SelfCheck:
    """Collects comparisons; raises SelfCheckError at the first that fails, naming sample, layer and
    likely cause.

    `dtype` is capture's, `generation_dtype` vLLM's (auto counts as half precision, which vLLM
    prefers). `layers` are the captured indices (-1 is the embedding output), `capped` says whether
    the model soft-caps its attention scores and `experts` whether it is a mixture of experts; `bos`
    is its beginning-of-sequence token.
    """

    def __init__(
        self,
        mode: Mode,
        dtype: str,
        generation_dtype: str,
        *,
        layers: Sequence[int],
        pools: Sequence[str],
        bos: int | None,
        capped: bool,
        experts: bool = False,
        slack: float = 1.0,
    ) -> None:
        """`slack` is how many tolerances a row may be off before it is an error."""
        self.mode: Mode = mode
        self._slack = slack
        self._doubtful: set[str] = set()
        self._dtypes = f"{dtype} against {generation_dtype}"
        self._dtype = dtype
        base = TOLERANCES[dtype].states * (2 if experts else 1)
        self._state_tolerances = {
            pool: base * (2 if pool.endswith("_last") else 1) for pool in pools
        }
        coarser = max(
            TOLERANCES[dtype],
            TOLERANCES.get(generation_dtype, _HALF),
            key=lambda each: each.logprobs,
        )
        self._logprob_tolerance, self._all_logprobs_tolerance = (
            coarser.logprobs,
            coarser.all_logprobs,
        )
        self._layers = tuple(layers)
        self._pools = tuple(pools)
        self._bos = bos
        self._capped = capped
        self._first = True
        self._rows = 0
        self._logprob_rows = 0
        self._logprob_tokens = 0
        self._logprob_sum = 0.0
        self._logprob_size = 0.0
        self._skipped = 0
        self._worst_states = dict.fromkeys(pools, 0.0)
        self._worst_logprob = 0.0

    def tokens(self, sample_id: str, prompt_token_ids: Sequence[int]) -> None:
        """Every row: a prompt starts with one BOS at most."""
        if (
            self.mode != "off"
            and self._bos is not None
            and list(prompt_token_ids[:2]) == [self._bos] * 2
        ):
            raise SelfCheckError(
                f"self-check: sample {sample_id} starts with two BOS tokens (id {self._bos}): its "
                f"text was tokenised "
                "again with special tokens on top of a chat template's own"
            )

    def choose(
        self, sample_ids: Sequence[str], lengths: Sequence[int], with_logprobs: Sequence[bool]
    ) -> list[int]:
        """Which rows of a batch to look at.

        Of the first batch four, from the shortest (most padding) to the longest, those with
        log-probs before others; of later ones those with log-probs, which generation chose, and
        where there are none those that `is_sampled`.
        """
        if self.mode == "off":
            return []
        if self.mode == "all" or not sample_ids:  # none of them finite, say
            return list(range(len(sample_ids)))
        candidates = [row for row, has in enumerate(with_logprobs) if has]
        if not self._first:
            return candidates or [
                row for row, sample_id in enumerate(sample_ids) if is_sampled(sample_id)
            ]
        self._first = False
        candidates = candidates or list(range(len(sample_ids)))
        candidates.sort(key=lambda row: lengths[row])
        last = len(candidates) - 1
        return sorted(
            {candidates[last * step // (_OF_FIRST_BATCH - 1)] for step in range(_OF_FIRST_BATCH)}
        )

    def skip(self) -> None:
        """A row that could not be run alone for lack of memory."""
        self._skipped += 1

    def states(self, sample_id: str, batched: np.ndarray, reference: Reference) -> None:
        """Compare `batched`, float32 `[pools, layers, dim]`, with the row run alone."""
        import numpy as np

        expected = reference.states[:, [layer + 1 for layer in self._layers]]
        deviation = _relative(batched, expected)
        self._rows += 1
        for pool, worst in zip(self._pools, deviation.max(axis=1), strict=True):
            self._worst_states[pool] = max(self._worst_states[pool], float(worst))
        if not self._agree(deviation, 1.0).all():
            self._doubtful.add(sample_id)
        wrong = np.argwhere(~self._agree(deviation, self._slack).T)
        if not len(wrong):
            return
        slot, place = map(int, wrong[0])
        pool = self._pools[place]
        raise SelfCheckError(
            f"self-check: sample {sample_id}, layer {self._layers[slot]}, {pool}: captured in a "
            f"batch it is "
            f"{float(deviation[place, slot]):.2g} off the same row run alone (tolerance "
            f"{self._slack * self._state_tolerances[pool]:g} for {self._dtype}). "
            f"{self._cause(batched, reference, slot)}"
        )

    def _agree(self, deviation: np.ndarray, slack: float) -> np.ndarray:
        """bool `[pools, layers]`; False where the deviation is not a number."""
        import numpy as np

        tolerances = slack * np.array(list(self._state_tolerances.values()))
        return np.asarray(deviation <= tolerances[:, None])

    def _cause(self, batched: np.ndarray, reference: Reference, slot: int) -> str:
        n_states = reference.states.shape[1]
        for shift in (1, -1):
            indices = [layer + 1 + shift for layer in self._layers]
            inside = [i for i, index in enumerate(indices) if 0 <= index < n_states]
            moved = reference.states[:, [indices[i] for i in inside]]
            if inside and self._agree(_relative(batched[:, inside], moved), 1.0).all():
                matched = self._layers[slot] + shift
                return f"It matches layer {matched}: the blocks are off by one; check `blocks`."
        if slot == 0:
            return (
                "It differs from the first layer on: rows were swapped, other tokens were pooled, "
                "or `blocks` is wrong."
            )
        return "Earlier layers agree: padding, positions or the attention mask are wrong."

    def logprobs(self, sample_id: str, expected: Sequence[float], reference: Reference) -> None:
        """Compare vLLM's log-probs of all response tokens with the reference's at its positions."""
        import numpy as np

        if reference.logprobs is None or not len(reference.positions):
            return
        generated = np.asarray(expected, np.float32)[list(reference.positions)]
        difference, size = np.abs(reference.logprobs - generated), float(np.abs(generated).sum())
        deviation = float(difference.mean())
        self._logprob_rows += 1
        self._logprob_tokens += len(difference)
        self._logprob_sum += float(difference.sum())
        self._logprob_size += size
        self._worst_logprob = max(self._worst_logprob, deviation)
        overall = self._logprob_sum / self._logprob_tokens
        allowed = _allowed(self._logprob_tolerance, len(difference), size)
        where = (
            f"log-probs of the response differ from generation's by {deviation:.2g} nats a token"
        )
        doubtful = deviation > allowed
        allowed *= self._slack
        if deviation <= allowed:
            allowed = _allowed(
                self._all_logprobs_tolerance, self._logprob_tokens, self._logprob_size
            )
            doubtful |= overall > allowed
            allowed *= self._slack
            where = (
                f"with it, log-probs of {self._logprob_rows} responses differ by {overall:.2g} "
                "nats a token"
            )
            if overall <= allowed:
                if doubtful:
                    self._doubtful.add(sample_id)
                return
        causes = "the weights, the chat template or BOS, or the attention mask"
        if self._capped:
            causes += ", or an attention implementation that drops the soft-cap"
        raise SelfCheckError(
            f"self-check: sample {sample_id}, after the last layer: {where} "
            f"(tolerance {allowed:.2g} for {self._dtypes}). Capture and generation do not compute "
            f"the same: {causes}."
        )

    def summary(self) -> dict[str, Any]:
        """Counts and worst deviations, as plain JSON values."""
        return {
            "mode": self.mode,
            "rows": self._rows,
            "logprob_rows": self._logprob_rows,
            "skipped_for_memory": self._skipped,
            "doubtful_rows": len(self._doubtful),
            "worst_state_deviation": dict(self._worst_states),
            "state_tolerance": dict(self._state_tolerances),
            "worst_logprob_deviation": self._worst_logprob,
            "logprob_tolerance": self._logprob_tolerance,
            "mean_logprob_deviation": self._logprob_sum / self._logprob_tokens
            if self._logprob_tokens
            else 0.0,
            "mean_logprob_tolerance": self._all_logprobs_tolerance,
            "mean_logprob": -self._logprob_size / self._logprob_tokens
            if self._logprob_tokens
            else 0.0,
        }


def _allowed(tolerance: float, tokens: int, size: float) -> float:
    """For tokens whose |log-probs| sum up to `size`.

    A mean over few tokens spreads more: by 2 tolerances at one token, by a fifth of one at a
    hundred.
    """
    return tolerance * (1 + 2 / math.sqrt(tokens)) * max(1.0, math.cbrt(size / tokens))


def _relative(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """|found - expected| / |expected| over the last axis; infinite where only `expected` is 0."""
    import numpy as np

    distance = np.linalg.norm(found - expected, axis=-1)
    size = np.linalg.norm(expected, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative: np.ndarray = np.where(distance == 0, 0.0, distance / size)
    return relative
