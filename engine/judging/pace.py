"""How many requests a minute an endpoint bears: what was allowed, less where it refuses, and back
again."""

from __future__ import annotations

from collections import deque

# A pace is judged by so many outcomes, more after a cut; where fewer than 1 % are refusals, its
# pauses are enough.
_OUTCOMES, _OUTCOMES_AFTER_CUT, _BORNE_REFUSALS = 20, 60, 0.01
# A cut goes to 0.9 of what was answered in the last minute, pauses included: whatever the pace, the
# endpoint bore that.
_BORNE_SHARE, _MINUTE = 0.9, 60
# Where two cuts left the share of refusals about what it was, they come of something else, such as
# another user's load: more cuts would only bring the pace to nothing.
_SAME_SHARE, _CUTS_IN_VAIN = (0.5, 2.0), 2
# Nor does the pace sink below a tenth of the rate, unless the endpoint does not answer half of
# that.
_LEAST_SHARE = 0.1
# The pace comes back by time, in 10 s by 5 % of the rate (of a low pace by a tenth), so that a low
# one recovers too; but only after 100 answers without a 429, so that finding the endpoint's limit
# again costs few of them.
_REGAIN_SHARE, _REGAIN_MOST, _REGAIN_SECONDS, _CLEAN_ANSWERS = 0.05, 0.1, 10.0, 100


class Pace:
    """Requests a minute to aim at. Times are seconds of any one clock."""

    def __init__(self, rpm: float) -> None:
        self._rpm = self.rpm = rpm
        self._began: float | None = None
        self._minute: deque[list[int]] = deque()
        """[second, answers in it] of the last minute."""
        self._changed_at = 0.0
        self._answered = self._refused = 0
        """Since then."""
        self._clean, self._refused_at = 0, 0.0
        """Answers since the last refusal, and when that was."""
        self._cut_for: float | None = None
        """The share of refusals that the last cut was made for, None where it has been regained
        since."""
        self._in_vain = 0
        """Cuts since then that changed little."""

    def sent(self, now: float) -> None:
        """A request leaves."""
        if self._began is None:
            self._began = self._changed_at = now

    def answered(self, now: float) -> None:
        """An answer came: a pace that was cut regains where none was refused for a while."""
        self._answered += 1
        self._clean += 1
        if not self._minute or self._minute[-1][0] != int(now):
            self._minute.append([int(now), 0])
            self._forget(now)
        self._minute[-1][1] += 1
        quiet = now - max(self._refused_at, self._changed_at) >= _REGAIN_SECONDS
        if (
            self.rpm < self._rpm
            and quiet
            and self._clean >= _CLEAN_ANSWERS
            and self._answered >= _OUTCOMES
        ):
            self._cut_for, self._in_vain = None, 0
            step = min(_REGAIN_SHARE * self._rpm, _REGAIN_MOST * self.rpm)
            self._change(min(self._rpm, self.rpm + step), now)

    def refused(self, now: float) -> None:
        """A 429 came."""
        self._refused += 1
        self._clean, self._refused_at = 0, now

    def cut(self, now: float) -> bool:
        """Slow down to what was answered, where that may help; whether it did so."""
        outcomes = self._answered + self._refused
        enough = _OUTCOMES if self._cut_for is None else _OUTCOMES_AFTER_CUT
        if (
            outcomes < enough
            or self._refused < _BORNE_REFUSALS * outcomes
            or self._in_vain >= _CUTS_IN_VAIN
        ):
            return False
        share = self._refused / outcomes
        if self._cut_for is not None and _SAME_SHARE[0] < share / self._cut_for < _SAME_SHARE[1]:
            self._in_vain += 1
        self._cut_for = share
        borne, least = self._borne(now), _LEAST_SHARE * self._rpm
        least = least if borne > least / 2 else min(1.0, self._rpm)
        self._change(min(self.rpm, max(_BORNE_SHARE * borne, least)), now)
        return True

    def allow(self, rpm: float) -> None:
        """Never go beyond `rpm` from now on."""
        self._rpm, self.rpm = min(self._rpm, rpm), min(self.rpm, rpm)

    def _borne(self, now: float) -> float:
        """Answers a minute, over the last minute or as long as there have been requests."""
        self._forget(now)
        seen = min(_MINUTE, max(1.0, now - (now if self._began is None else self._began)))
        return 60 * sum(count for _, count in self._minute) / seen

    def _forget(self, now: float) -> None:
        while self._minute and self._minute[0][0] <= now - _MINUTE:
            self._minute.popleft()

    def _change(self, rpm: float, now: float) -> None:
        self.rpm, self._changed_at = rpm, now
        self._answered = self._refused = 0
