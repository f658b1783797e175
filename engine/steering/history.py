"""What earlier commands have asked of a trait: figures are of all that is stored of the same kind.

That is of the same activations, questions, positions, sampling, judge and number of random vectors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import write_atomic
from ..judging import judge_key
from ..traits import coherence_of
from ..vectors import load_vector
from .conditions import Condition, Target, digest, make_target
from .study import Study

_ORDER = ("unsteered", "prompt", "steered", "random", "ablated")


def remember(study: Study) -> None:
    """Note what a finished study has asked, beside what was asked before."""
    known, key = _read(study), _key(study)
    before = known.get(key, {"n_examples": 0, "targets": [], "conditions": []})
    targets = [[each.method, each.layer, each.norm] for each in study.vectors.targets]
    wanted = [list(astuple(condition)) for condition in study.plan.conditions]
    known[key] = {
        "n_examples": max(before["n_examples"], study.asked.n_examples),
        "targets": _union(before["targets"], targets),
        "conditions": _union(before["conditions"], wanted),
    }
    write_atomic(_path(study), json.dumps(known, indent=1).encode())


def whole(study: Study) -> Study:
    """Return a study of what is asked now and what was asked before, as far as it is stored.

    It is for reading: its records are open. Raise UsageError where the list of what was asked is
    damaged.
    """
    before = _read(study).get(_key(study))
    if before is None:
        return study
    own = study.plan.conditions
    asked = [Condition(*each) for each in before["conditions"]]
    targets = (*study.vectors.targets, *_others(study, before["targets"]))
    places = {(each.method, each.layer) for each in targets}
    layers = {each.layer for each in targets}
    found = [c for c in asked if (c.method, c.layer) in places or _is_baseline(c, layers)]
    n_examples = max(before["n_examples"], study.asked.n_examples)
    shown = _with(study, targets, [*own, *found], n_examples)
    stored = ~shown.open().state.responses.pending()
    left = [c for c in shown.plan.conditions if c in own or stored[shown.plan.of(c)].any()]
    if len(left) < len(shown.plan.conditions):  # of vectors that were fitted anew since
        shown = _with(study, targets, left, n_examples)
        shown.open()
    return shown


def _with(
    study: Study, targets: tuple[Target, ...], wanted: Iterable[Condition], n_examples: int
) -> Study:
    wanted = set(wanted)
    places = [(each.method, each.layer) for each in targets]
    layers = list(dict.fromkeys(layer for _, layer in places))

    def order(condition: Condition) -> tuple[int, int, int, float]:
        place = (condition.method, condition.layer)
        layer = layers.index(condition.layer) if condition.layer in layers else -1
        own = places.index(place) if place in places else len(places)
        return _ORDER.index(condition.kind), own, layer, condition.coefficient

    shown = replace(
        study,
        vectors=replace(study.vectors, targets=targets),
        asked=replace(
            study.asked, n_examples=n_examples, ablate=any(c.kind == "ablated" for c in wanted)
        ),
        shown=tuple(sorted(wanted, key=order)),
        _plans={},
    )
    shown.grid = {
        place: tuple(
            c.coefficient
            for c in shown.shown
            if c.kind == "steered" and (c.method, c.layer) == place
        )
        for place in places
    }
    return shown


def _others(study: Study, targets: list[list[Any]]) -> list[Target]:
    """Return the earlier targets that are not among the study's, where their vectors still are."""
    own = {(each.method, each.layer) for each in study.vectors.targets}
    found = []
    for method, layer, norm in targets:
        if (method, layer) in own:
            continue
        try:
            vector, facts = load_vector(study.owner, method, layer, study.pool)
        except UsageError:  # deleted since: what it did is shown no longer
            continue
        if facts.get("activations_sha256") == study.activations_sha256:
            found.append(make_target(method, layer, vector, norm))
    return found


def _is_baseline(condition: Condition, layers: set[int]) -> bool:
    return condition.layer < 0 or (condition.method == "random" and condition.layer in layers)


def _union(before: list[list[Any]], now: list[list[Any]]) -> list[list[Any]]:
    return before + [each for each in now if each not in before]


def _key(study: Study) -> str:
    judge, trait = study.settings.judge, study.trait
    content = [
        study.activations_sha256,
        study.pool,
        study.asked.positions,
        study.asked.n_random,
        trait.questions,
        trait.instructions,
        asdict(study.settings.sampling),
        judge_key(judge, trait),
        None if judge.is_local else judge_key(judge, coherence_of(trait)),
    ]
    return digest(content).hex()[:16]


def _read(study: Study) -> dict[str, Any]:
    path = _path(study)
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError:
        raise UsageError(
            f"{path} is damaged; delete it, and the figures are of the next command alone"
        ) from None
    return found


def _path(study: Study) -> Path:
    return Path(study.folder.records / "steered.json")
