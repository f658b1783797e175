"""The plan of a run: how many samples a side it begins with, and what of a stored plan stands."""

from __future__ import annotations

from .. import storage
from ..errors import SettingsChangedError
from ..judging import judge_key
from ..records import POLARITIES, Polarity
from ..settings import RunSettings, check_thresholds
from ..storage import RunRecord
from ..traits import Plan, Tokenize, Trait, make_plan, plan_key
from .wanted import Wanted


def first_counts(
    wanted: Wanted, before: RunRecord | None, stored: Plan | None
) -> dict[Polarity, int]:
    """Return how many samples a side a run begins with.

    Rounds that `min_kept` added to the same run stand, with all that was paid for them: where this
    one ends early, no row of theirs may be lost to the files. Under another judge or filter it
    takes other rounds, and begins anew.
    """
    settings, chosen = wanted.settings, storage.chosen(wanted.folder)
    counts = settings.counts
    begun = dict.fromkeys(POLARITIES, counts.n_examples)
    if not counts.min_kept or before is None or stored is None:
        return begun
    filters = (
        settings.threshold,
        check_thresholds(settings.threshold, settings.neg_threshold),
        settings.paired,
        judge_key(settings.judge, wanted.trait),
    )
    same = (
        all(getattr(before, name) == getattr(counts, name) for name in ("n_examples", "min_kept"))
        and (chosen.threshold, chosen.neg_threshold, chosen.paired, chosen.judge_key) == filters
    )
    if not same:
        return begun
    return {side: max(n, min(stored.n_planned[side], counts.limit)) for side, n in begun.items()}


def planned(
    trait: Trait,
    settings: RunSettings,
    n_planned: dict[Polarity, int],
    tokenize: Tokenize,
    stored: Plan | None,
    *,
    thinks: bool,
) -> Plan:
    """Return the plan for so many samples a side: the stored one where it is that."""
    if stored is not None and stored.key == plan_key(trait, n_planned, settings.sampling):
        return stored
    plan = make_plan(trait, n_planned, settings.sampling, tokenize, thinks=thinks)
    if stored is not None and (moved := plan.moved(stored)):
        raise SettingsChangedError(
            f"{trait.name}: {moved} of its {len(stored)} prompts have other tokens by now, and "
            "would be paid for anew: go on with the versions of transformers and tokenizers that "
            "began the run (parquet/run.json), or start over with `new_run`"
        )
    return plan
