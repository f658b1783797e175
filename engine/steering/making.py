"""A study made ready: which vectors, as long as what they are added to, and which questions.

Where no method and layer are named, they are not those that read best. To tell two sets of texts
apart, a late layer is as good as any: the widest gap is often near the end, where little of the
model is left to act on what is added. The difference of the means is what a sum moves one side by
to reach the other; a vector that weighs directions by how well they tell (a probe, a gradient)
points elsewhere. So: mean_diff, at the layer nearest the middle of those that read the trait as
well as the method's best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .. import storage
from ..errors import UsageError
from ..judging import judge_key
from ..models import Prompts
from ..outputs import Activations, load_activations
from ..settings import RunSettings
from ..storage import TraitFolder
from ..traits import Trait
from ..vectors import Evaluation, check_methods, load_vector, read_evaluation
from .conditions import Target, make_target
from .plan import Vectors
from .study import Asked, Study

if TYPE_CHECKING:
    import polars as pl

METHOD = "mean_diff"
_UNSEEN = 5
"""Questions that no kept response answers, from which on those alone are asked."""


@dataclass(frozen=True, slots=True)
class Which:
    """Which vectors of a trait; None are chosen."""

    methods: Sequence[str] | None
    layers: Sequence[int] | None
    pool: str


def make_study(
    trait: Trait,
    folder: TraitFolder,
    settings: RunSettings,
    prompts: Prompts,
    asked: Asked,
    which: Which,
    notice: Callable[[str], None],
) -> Study:
    """Return a trait's study. The trait's lock is held.

    Raise UsageError where vectors are missing or stale, there is nothing to ask, or the judge
    cannot place its scores.
    """
    activations = load_activations(folder, which.pool)
    targets = _targets(folder, activations, which)
    questioned, said = _questions(trait, activations)
    notice(f"{folder.name}: {said}")
    return Study(
        trait=questioned,  # by its own name: one judge may score several studies
        folder=folder.steering,
        owner=folder,
        settings=settings,
        record=storage.need_record(folder),
        own_judge=_own_judge(trait, folder, settings),
        prompts=prompts,
        vectors=Vectors(targets, asked.n_random),
        pool=which.pool,
        activations_sha256=activations.sha256,
        asked=asked,
        notice=notice,
    )


def _targets(folder: TraitFolder, activations: Activations, which: Which) -> tuple[Target, ...]:
    """Return the vectors to steer with, as long as the mean residual norm of their layers.

    Raise UsageError where one is missing, was fitted to other activations, or none can be chosen.
    """
    evaluation = read_evaluation(folder, activations.metadata, activations.pool)
    named = which.methods
    methods = [default_method(evaluation)] if named is None else check_methods(named)
    if which.layers is not None and not which.layers:
        raise UsageError("`layers` names none; leave it out for the default")
    layers = which.layers or ()
    found = []
    for method in methods:
        for layer in layers or [default_layer(evaluation, method)]:
            if layer < 0 or layer not in activations.layers:
                raise UsageError(f"`layers` {layer}: {folder.path} has no such block captured")
            vector, facts = load_vector(folder, method, layer, activations.pool)
            if facts.get("activations_sha256") != activations.sha256:
                raise UsageError(
                    f"{folder.vectors}: the vectors are of other activations than {folder.path} "
                    "holds now; make them anew",
                    folder.step("vectors", pool=activations.pool),
                )
            norm = float(np.linalg.norm(activations.rows_at(layer), axis=1).mean())
            if not (np.isfinite(vector).all() and np.linalg.norm(vector) > 0):
                raise UsageError(f"{folder.vectors}: {method} at layer {layer} has no direction")
            found.append(make_target(method, layer, vector, norm))
    return tuple(found)


def default_method(evaluation: Evaluation) -> str:
    """Return the difference of means, where it was fitted; else the recommended method.

    Raise UsageError where nothing could be held out.
    """
    best = evaluation.recommendation
    if best is None:
        raise UsageError(
            f"{evaluation.trait}: no vector can be chosen, since nothing could be held out; name "
            "`methods` and `layers`"
        )
    return METHOD if len(_held_out(evaluation, METHOD)) else best.method


def default_layer(evaluation: Evaluation, method: str) -> int:
    """Return the layer nearest the middle of those that read as well as the method's best.

    They are those whose 95 % interval of the held-out AUROC reaches the best one's figure; the
    middle is that of all layers that were fitted. Raise UsageError where nothing was held out.
    """
    found = _held_out(evaluation, method)
    if not len(found):
        raise UsageError(
            f"{evaluation.trait}: no layer of {method} can be chosen, since none was evaluated on "
            "held-out rows; name `layers`"
        )
    middle = (found["layer"].min() + found["layer"].max()) / 2
    reach = found["high"].fill_null(found["value"])
    good = found.filter(reach >= found["value"].max())["layer"].to_list()
    return int(min(sorted(good), key=lambda layer: abs(layer - middle)))


def _held_out(evaluation: Evaluation, method: str) -> pl.DataFrame:
    """Return a method's held-out AUROC by block, of the split that chooses."""
    best, table = evaluation.recommendation, evaluation.table
    split = best.split if best else ""
    found = table.filter(measure="auroc", split=split, method=method).drop_nulls("value")
    return found.filter(found["layer"] >= 0)


def _questions(trait: Trait, activations: Activations) -> tuple[Trait, str]:
    """Return the trait with the questions to ask, and in words which those are.

    Raise UsageError where there are none.
    """
    if trait.steering_questions:
        count = len(trait.steering_questions)
        return replace(trait, questions=trait.steering_questions), f"{count} steering_questions"
    if not any(trait.questions):
        raise UsageError(
            f"{trait.name}: the definition has no questions to ask a steered model; write "
            "`steering_questions` into it"
        )
    indices = set(activations.metadata.question_index)
    seen = {text for index, text in enumerate(trait.questions) if index in indices}
    unseen = tuple(text for text in trait.questions if text not in seen)
    if len(unseen) >= _UNSEEN:
        return replace(trait, questions=unseen), f"{len(unseen)} questions that no vector has seen"
    return trait, (
        f"{len(trait.questions)} questions, which the vectors were fitted on too (with an "
        "instruction); `steering_questions` in the definition are asked instead where there are any"
    )


def _own_judge(
    trait: Trait, folder: TraitFolder, settings: RunSettings
) -> storage.JudgeFacts | None:
    """Return the facts of the judge in use from the trait's own run.

    Raise UsageError for a local judge that has not judged the trait by the prompt that it has now:
    its scores are placed by that.
    """
    asked, sets = settings.judge, storage.verdict_sets(folder)
    if asked.is_local:
        key = judge_key(asked, trait)
        if key not in sets or sets[key].offset is None:
            raise UsageError(
                f"`judge_model` {asked.model} places answers between the two sides of a trait, and "
                "has not judged them by the trait's judge prompt yet; judge them with it first",
                folder.step("judge", judge_model=asked.model),
            )
        return sets[key]
    found = [
        facts
        for facts in sets.values()
        if (facts.model, facts.mode, facts.extra) == (asked.model, asked.mode, asked.extra)
    ]
    # What its endpoint can be asked is the same whatever the prompt.
    return found[-1] if found else None
