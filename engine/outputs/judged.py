"""How the verdicts in use were made and what they show, as metadata.json has it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..records import POLARITIES
from ..statistics import auroc_interval, draw_groups, fold_auroc, histogram
from ..storage import COUNTED, MODES, TraitState, verdict_sets


def coherence_summary(state: TraitState) -> dict[str, Any] | None:
    """Return how coherent responses have to be, and who says so; None where it is not asked."""
    index, choice = state.coherence, state.choice
    if index is None or choice.coherence_key is None:
        return None
    facts = verdict_sets(state.folder, "coherence").get(choice.coherence_key)
    return {
        "at_least": choice.coherence,
        "model": facts and facts.model,
        "key": choice.coherence_key,
        "unknown": state.coherence_unknown(),
        "histogram": {
            polarity: histogram(index.score[state.side(polarity) & index.having("scored")].tolist())
            for polarity in POLARITIES
        },
    }


def judge_usage(state: TraitState) -> dict[str, int]:
    """Return what the verdicts in use took: calls and tokens, as their rows count them."""
    names = ("calls", "input tokens", "output tokens", "of them hidden")
    judged = ~state.verdicts.pending()
    return {
        name: int(state.verdicts.facts[column][judged].sum())
        for column, name in zip(COUNTED, names, strict=True)
    }


def measurement(state: TraitState) -> str | None:
    """Return how the scores in use were measured, as one of MODES; None while there is none."""
    used = state.verdicts.facts["mode"][state.verdicts.having("scored")]
    found = [MODES[code] for code in np.unique(used)]
    return "+".join(found) or None


def judge_summary(state: TraitState) -> dict[str, Any]:
    """Return which judge and measurement, and how well its scores tell the two sides apart.

    The AUROC is over all scored responses, kept or not; None where a side has none.
    """
    facts = state.judge
    pos, neg = state.scores("pos").tolist(), state.scores("neg").tolist()
    out: dict[str, Any] = {
        "model": facts and facts.model,
        "mode": measurement(state),
        "mode_asked": facts and facts.mode,
        "kind": facts and facts.kind,
        "offset": facts and facts.offset,
        "scale": facts and list(facts.scale),
        "extra": (facts and facts.extra) or None,
        "key": state.judge_key,
        "histogram": {"pos": histogram(pos), "neg": histogram(neg)},
        "auroc": None,
        "auroc_interval": None,
    }
    if pos and neg:
        estimate, *ends = auroc_interval(pos, neg)
        low, high = _by_question(state, *ends)
        out["auroc"] = round(estimate, 4)
        out["auroc_interval"] = [round(low, 4), round(high, 4)]
    return out


def _by_question(state: TraitState, low: float, high: float) -> tuple[float, float]:
    """Return the ends of the AUROC's interval, or those by redrawn questions where they are wider.

    Answers to one question are alike, and the former takes them as independent.
    """
    scored = state.verdicts.having("scored")
    groups = np.unique(state.plan.question_index[scored], return_inverse=True)[1]
    labels, together = state.side("pos")[scored], np.zeros(int(scored.sum()), int)
    weights = draw_groups(groups, np.random.default_rng(0))
    draws = fold_auroc(state.verdicts.score[scored][None], labels, together, weights)[0]
    found = np.nanpercentile(draws, (2.5, 97.5))
    return min(low, float(found[0])), max(high, float(found[1]))
