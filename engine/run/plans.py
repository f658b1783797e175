"""The plan of a run: how many samples a side it begins with, and what of a stored plan stands."""

from __future__ import annotations

from ..errors import SettingsChangedError
from ..records import POLARITIES, Polarity
from ..settings import RunSettings
from ..storage import RunRecord
from ..traits import Plan, Tokenize, Trait, make_plan, plan_key


def first_counts(
    settings: RunSettings, before: RunRecord | None, stored: Plan | None
) -> dict[Polarity, int]:
    """Return how many samples a side a run begins with.

    Rounds that `min_kept` added stand, with all that was paid for them: where this run ends early,
    no row of theirs may be lost to the files. Another `n_examples` makes other rounds.
    """
    counts = settings.counts
    begun = dict.fromkeys(POLARITIES, counts.n_examples)
    grown = counts.min_kept and before is not None and before.n_examples == counts.n_examples
    if not grown or stored is None:
        return begun
    return {side: max(n, min(stored.n_planned[side], counts.limit)) for side, n in begun.items()}


def questions_line(trait: Trait, before: RunRecord, stored: Plan, plan: Plan) -> str:
    """Return what appended questions make of a plan, empty where there are none."""
    old = before.definition["questions"] or [""]
    added = len(trait.questions) - len(old)
    if added <= 0:
        return ""
    line = f"{trait.name}: {added} questions were appended"
    if int(plan.question_index.max(initial=0)) < len(old):
        return (
            f"{line} and no sample asks them: `n_examples` is too small to come to them (questions "
            "are taken in order)"
        )
    leave = int((plan.positions(stored.ids) < 0).sum())
    join = int((stored.positions(plan.ids) < 0).sum())
    return (
        f"{line}: {join} samples join the plan, and {leave} of before leave it (their rows stay "
        "stored)"
    )


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
