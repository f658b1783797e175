"""Top-p by selection masks what vLLM's own sampler masks, on every kind of distribution."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

from traitmill.engine.generation import top_p as nucleus

VOCAB = 5000


def draws(spread: float, rows: int = 24) -> torch.Tensor:
    """Logits `[rows, VOCAB]`; a larger spread is a smaller nucleus."""
    return torch.from_numpy(
        np.random.default_rng(int(spread * 100)).normal(0, spread, (rows, VOCAB)).astype("f4")
    )


def kept(logits: torch.Tensor) -> np.ndarray:
    return (logits > -torch.inf).numpy()


def kept_by_hand(logits: torch.Tensor, top_p: float) -> np.ndarray:
    """One row at a time, in double precision."""
    mask = np.zeros(logits.shape, bool)
    for row, values in enumerate(logits.double().numpy()):
        probabilities = np.exp(values - values.max())
        probabilities /= probabilities.sum()
        total = 0.0
        for token in np.argsort(-values, kind="stable"):
            mask[row, token] = True
            total += probabilities[token]
            if total >= top_p:
                break
    return mask


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.01, 1.0, 3.0, 10.0, 100.0])
def test_the_mask_is_vllms_and_the_definitions(top_p: float, spread: float) -> None:
    logits = draws(spread)
    found = kept(nucleus.keep_nucleus(logits.clone(), top_p))
    theirs = kept(
        apply_top_k_top_p_pytorch(logits.clone(), None, torch.full((len(logits),), top_p))
    )
    by_hand = kept_by_hand(logits, top_p)
    # float32 sums may move the border by a token or two where thousands weigh nearly the same
    border = 0 if by_hand.sum(1).max() < 500 else 2
    assert np.abs(found.sum(1) - by_hand.sum(1)).max() <= border
    assert np.abs(found.sum(1) - theirs.sum(1)).max() <= border
    if not border:
        assert (found == by_hand).all()
        assert (found == theirs).all()


def test_rows_of_all_kinds_in_one_batch_keep_their_own_nucleus() -> None:
    kinds = torch.cat([draws(spread, rows=3) for spread in (100.0, 3.0, 0.01, 8.0)])
    mixed = kinds[torch.randperm(len(kinds), generator=torch.Generator().manual_seed(0))]
    together = nucleus.keep_nucleus(mixed.clone(), 0.9)
    alone = torch.cat([nucleus.keep_nucleus(row[None].clone(), 0.9) for row in mixed])
    assert torch.equal(together, alone)
    sizes = kept(together).sum(1)
    assert sizes.min() < nucleus._LOOKS[0]
    assert sizes.max() > nucleus._LOOKS[1], "a nucleus found at the first look, and one at the last"


def test_what_is_kept_is_unchanged_and_the_likeliest_always_stays() -> None:
    logits = draws(2.0)
    masked = nucleus.keep_nucleus(logits.clone(), 1e-9)
    assert (kept(masked).sum(1) == 1).all()
    assert torch.equal(masked.argmax(1), logits.argmax(1))
    wide = nucleus.keep_nucleus(logits.clone(), 0.9)
    assert torch.equal(wide[wide > -torch.inf], logits[wide > -torch.inf])


@pytest.mark.parametrize("vocab", [1, 2, 63, 64, 65])
def test_small_vocabularies(vocab: int) -> None:
    logits = draws(1.0)[:, :vocab].contiguous()
    assert (kept(nucleus.keep_nucleus(logits.clone(), 0.9)) == kept_by_hand(logits, 0.9)).all()


def test_already_masked_tokens_stay_masked() -> None:
    logits = draws(1.0)
    logits[:, 10:] = -torch.inf
    masked = nucleus.keep_nucleus(logits.clone(), 0.9)
    assert (kept(masked) == kept_by_hand(logits, 0.9)).all()


def test_vllm_finds_it_by_name() -> None:
    module, _, name = nucleus.NAME.partition(":")
    assert module == "traitmill.engine.generation.top_p"
    processor = getattr(nucleus, name)(
        SimpleNamespace(additional_config={"top_p": 0.5}), torch.device("cpu"), False
    )
    assert isinstance(processor, LogitsProcessor)
    assert processor.is_argmax_invariant()
    logits = draws(3.0)
    assert torch.equal(processor.apply(logits.clone()), nucleus.keep_nucleus(logits.clone(), 0.5))
