"""Which of a folder's record sets are looked at, and what of them is kept."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import Polarity
from .run_record import CaptureFacts, JudgeFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which of a folder's record sets are looked at."""

    judge_key: str
    judge: JudgeFacts | None = None
    """None while no verdict of the set is stored."""
    capture_key: str | None = None
    capture: CaptureFacts | None = None
    pools: tuple[str, ...] = ()
    threshold: float = 50.0
    neg_threshold: float | None = None
    """That of neg; None where it is `threshold`."""
    paired: bool = False
    """Whether a response counts only where its twin passes."""
    coherence: float | None = None
    """The least score for coherence; None where that is not looked at."""
    coherence_key: str | None = None

    @property
    def thresholds(self) -> dict[Polarity, float]:
        """pos passes at or above its own, neg below its own."""
        neg = self.threshold if self.neg_threshold is None else self.neg_threshold
        return {"pos": self.threshold, "neg": neg}

    def passes(self, polarity: Polarity, score: float) -> bool:
        """Return whether a score lies on its side of the threshold."""
        limit = self.thresholds[polarity]
        return score >= limit if polarity == "pos" else score < limit
