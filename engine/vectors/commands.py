"""Stage 3 on folders: fit, evaluate and write vectors, what transfers between traits, and whether
the vectors that stand there are those that would be fitted now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import ExitCode, TraitmillError, UsageError
from ..outputs import Activations, load_activations, note_stale
from ..settings import DEFAULT_POOL, check_pool, plain_arguments
from ..storage import TraitFolder, installed_versions, lock_traits, select
from .evaluation import Evaluation, evaluate_vectors, read_evaluation, write_evaluation
from .fit import SCHEMA_VERSION, Vectors, check_layers, fit_vectors
from .methods import DEFAULT_METHODS, check_methods
from .remembered import Wanted, kept_line, wanted_vectors
from .transfer import update_transfer
from .vector_files import Format, load_vector, stored_facts, stored_format, write_vectors
from .workers import count_for, map_side_by_side

SMALL = 64 << 20
"""Bytes of a tensor of few rows, 120 of a model with 2,304 dimensions and 26 layers: larger ones
keep all cores busy by themselves."""
Step = Literal["fitting", "evaluating"]
"""What is done layer by layer; the second takes nearly all of the time."""


@dataclass(frozen=True, slots=True)
class FittedTrait:
    """One trait's vectors, and how good they are."""

    vectors: Vectors
    evaluation: Evaluation
    n_pos: int
    n_neg: int
    folder: Path
    """Where the vectors stand."""
    dropped: str
    """What an evaluation that was there covered and this one does not, in words."""
    removed: int = 0
    """Vectors of rows that are exported no more, which are gone and not fitted anew."""
    reused: bool = False
    """Whether the same had been fitted before and stood there unchanged."""
    stale: tuple[str, ...] = ()
    """What stands beside them and shows other files: a page, as a rule."""

    def __repr__(self) -> str:
        best = self.evaluation.recommendation
        said = f"{best.method} at layer {best.layer}" if best else "nothing recommended"
        if best and best.lack:
            said += f", {best.lack}"
        return f"FittedTrait({self.vectors.trait}: {said}, {self.n_pos} pos + {self.n_neg} neg)"


@dataclass(frozen=True, slots=True)
class FitResult:
    """What fitting some traits came to, by trait."""

    fitted: Mapping[str, FittedTrait]
    errors: Mapping[str, TraitmillError]

    def __repr__(self) -> str:
        [shown] = self.fitted.values() if len(self.fitted) == 1 else [f"{len(self.fitted)} fitted"]
        return f"FitResult({shown}, {len(self.errors)} failed)"

    @property
    def exit_code(self) -> ExitCode:
        """The exit code that the command ends with."""
        return max((error.exit_code for error in self.errors.values()), default=ExitCode.OK)


@plain_arguments
def fit_experiment(
    experiment: Path | str,
    traits: Sequence[str] | str | None = None,
    *,
    methods: Sequence[str] | None = None,
    layers: Sequence[int] | Literal["all"] | None = None,
    pool: str | None = None,
    format: Format | None = None,  # noqa: A002 - the option's name
    force_unlock: bool = False,
    on_fitted: Callable[[str, FittedTrait], None] = lambda _name, _fitted: None,
    on_layer: Callable[[str, Step, int, int], None] = lambda _name, _step, _done, _total: None,
    notice: Callable[[str], None] = lambda _: None,
) -> FitResult:
    """Fit, evaluate and write the vectors of traits of an experiment, then the transfer table.

    What is None is each folder's own, as it was last fitted, of which `notice` is told; in a folder
    without vectors it is the default: all methods but pca, of all layers. One trait's trouble does
    not keep the others from being fitted. Raise UsageError for methods or traits that are unknown,
    LockedError, before anything is written. `on_layer` is told the trait, what is done there, how
    many layers of it, and of how many.
    """
    if methods is not None:
        check_methods(methods)
    if pool is not None:
        check_pool(pool)
    folder = Path(experiment)
    folders = select(folder, traits)
    for each in folders.values():
        each.check_writable()
    fitted: dict[str, FittedTrait] = {}
    errors: dict[str, TraitmillError] = {}
    with lock_traits(list(folders.values()), force_unlock=force_unlock):
        wanted: dict[str, Wanted] = {}
        for name, each in folders.items():
            try:
                wanted[name] = wanted_vectors(each, methods, layers, pool, format)
            except TraitmillError as error:
                errors[name] = error
        for line in kept_line({name: each.kept for name, each in wanted.items()}):
            notice(line)
        # Closed before the locks go, though a listener raises: no worker writes without one.
        with closing(_each_fitted(folders, wanted, on_layer)) as each_fitted:
            for name, found in each_fitted:
                if isinstance(found, TraitmillError):
                    errors[name] = found
                else:
                    fitted[name] = found
                    on_fitted(name, found)
        for each_pool in dict.fromkeys(wanted[name].pool for name in fitted):
            update_transfer(folder, notice, each_pool)
    in_order = [name for name in folders if name in fitted]
    return FitResult({name: fitted[name] for name in in_order}, errors)


def _each_fitted(
    folders: Mapping[str, TraitFolder],
    wanted: Mapping[str, Wanted],
    on_layer: Callable[[str, Step, int, int], None],
) -> Generator[tuple[str, FittedTrait | TraitmillError]]:
    """Yield each trait as it is fitted, or its error: one after the other, layers side by side, or
    many small ones side by side."""
    tasks = {name: (folders[name], asked) for name, asked in wanted.items()}
    small = all(_size(folders[name].tensor(asked.pool)) < SMALL for name, asked in wanted.items())
    count = count_for(len(tasks)) if small else 1
    if count > 1:
        yield from map_side_by_side(_fit_wanted, tasks, count, on_layer)
        return
    for name, task in tasks.items():
        try:
            yield name, _fit_wanted(*task, partial(on_layer, name))
        except TraitmillError as error:
            yield name, error


def _size(path: Path) -> int:
    """Return a file's bytes; 0 where it cannot be read, which is said when it is."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _fit_wanted(
    folder: TraitFolder, wanted: Wanted, on_layer: Callable[[Step, int, int], None]
) -> FittedTrait:
    asked = (wanted.methods, wanted.layers, wanted.pool, wanted.format)
    fitted = fit_trait(folder, *asked, on_layer)
    wanted.remember(folder)
    return fitted


def fit_trait(
    folder: TraitFolder,
    methods: Sequence[str] = DEFAULT_METHODS,
    layers: Sequence[int] | None = None,
    pool: str = DEFAULT_POOL,
    format: Format = "pt",  # noqa: A002 - as above
    on_layer: Callable[[Step, int, int], None] = lambda _step, _done, _total: None,
) -> FittedTrait:
    """Fit, evaluate and write one trait; all is computed before any vector is written.

    Nothing is where the same stands there already, unchanged. The caller holds the trait's lock.
    """
    folder.clean()
    activations = load_activations(folder, pool)
    names, chosen = check_methods(methods), check_layers(activations, layers)
    before = _evaluation(folder, activations)
    if before and before.fingerprint:
        there = read_vectors(folder, activations, names, chosen, format)
        if there and before.fingerprint == fingerprint(activations, there, format):
            return _fitted(folder, activations, there, before, reused=True)
    vectors = fit_vectors(activations, names, chosen, partial(on_layer, "fitting"))
    evaluation = evaluate_vectors(
        activations,
        vectors,
        on_layer=partial(on_layer, "evaluating"),
        keep_in=folder,
    )
    removed = _outlived(folder, vectors)
    write_vectors(folder, vectors, format, evaluation.held_out())
    stored = read_vectors(folder, activations, names, chosen, format)
    if stored:
        evaluation = replace(evaluation, fingerprint=fingerprint(activations, stored, format))
    write_evaluation(folder, evaluation)
    dropped = before.beyond(vectors) if before else ""
    fitted = _fitted(folder, activations, vectors, evaluation, dropped=dropped)
    return replace(fitted, removed=removed)


def _outlived(folder: TraitFolder, vectors: Vectors) -> int:
    """Return how many vectors of other rows stand in a folder that are not fitted anew."""
    current = next(iter(vectors.metadata.values()))["activations_sha256"]
    there = stored_facts(folder.vectors, vectors.pool)
    return sum(
        facts.get("activations_sha256", current) != current
        for key, facts in there.items()
        if key not in vectors.metadata
    )


def _evaluation(folder: TraitFolder, activations: Activations) -> Evaluation | None:
    """Return the one that stands there; None where there is none of these activations."""
    try:
        return read_evaluation(folder, activations.metadata, activations.pool)
    except UsageError:
        return None


def _fitted(
    folder: TraitFolder,
    activations: Activations,
    vectors: Vectors,
    evaluation: Evaluation,
    *,
    dropped: str = "",
    reused: bool = False,
) -> FittedTrait:
    return FittedTrait(
        vectors=vectors,
        evaluation=evaluation,
        n_pos=activations.n_pos,
        n_neg=activations.n_neg,
        folder=folder.vectors,
        dropped=dropped,
        reused=reused,
        stale=tuple(note_stale(folder)),
    )


def read_vectors(
    folder: TraitFolder,
    activations: Activations,
    methods: Sequence[str],
    layers: Sequence[int],
    format: Format,  # noqa: A002 - the option's name
) -> Vectors | None:
    """Return the vectors that stand in a trait's folder; None where one is missing or damaged."""
    pool = activations.pool
    values = np.empty((len(methods), len(layers), activations.values.shape[2]), np.float32)
    metadata = {}
    for i, method in enumerate(methods):
        for j, layer in enumerate(layers):
            if stored_format(folder, method, layer, pool) != format:
                return None
            try:
                vector, facts = load_vector(folder, method, layer, pool)
            except UsageError:
                return None
            if vector.shape != values.shape[2:]:
                return None
            values[i, j] = vector
            metadata[method, layer] = facts
    return Vectors(activations.trait, pool, tuple(methods), tuple(layers), values, metadata)


def fingerprint(
    activations: Activations,
    vectors: Vectors,
    format: Format,  # noqa: A002 - as above
) -> str:
    """Return a sha256 of what was asked for, from which rows, by which versions, and the vectors.

    A change of a row's group, of a file of vectors or of the program makes it another.
    """
    asked = {
        "schema_version": SCHEMA_VERSION,
        "versions": installed_versions(("traitmill", "numpy", "scipy")),
        "metadata_sha256": activations.metadata.sha256,
        "pool": vectors.pool,
        "methods": vectors.methods,
        "layers": vectors.layers,
        "format": format,
        "facts": [facts for _, facts in sorted(vectors.metadata.items())],
    }
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(vectors.values).tobytes())
    return digest.hexdigest()
