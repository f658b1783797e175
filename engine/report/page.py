"""One page a trait and one an experiment: self-contained HTML, every number tied to the file it
comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import TraitmillError
from ..files import write_atomic
from ..judging import find_price
from ..outputs import Metadata, audit_table
from ..records import POLARITIES
from ..settings import DEFAULT_POOL
from ..storage import TraitFolder, pool_suffix
from ..vectors.evaluation import read_evaluation
from ..vectors.recommendation import MIN_CLAIM_GROUPS, MIN_CLAIM_ROWS
from ..vectors.transfer import evaluated_traits, read_transfer
from .numbers import Figures, Number, in_full
from .pictures import NAMES, cosine_layer, trait_pictures, transfer_picture
from .plots import Picture

if TYPE_CHECKING:
    import polars as pl

AUDIT_PER_STRATUM = 4
AUDIT_CHARACTERS = 1500
_NOT_SETTINGS = (
    "sample_ids",
    "instruction_index",
    "question_index",
    "files_sha256",
    "counts",
    "cost",
    "layers",
)
_NO_SETTING_OF_JUDGE = ("histogram", "auroc", "auroc_interval")


# --- pages ---


def write_trait_report(folder: TraitFolder, pool: str = DEFAULT_POOL) -> Path:
    """Write `report.html` and `plots/` in a trait's folder from its evaluation, metadata and
    records.

    Pages and pictures of other pools than response_mean have the pool in their names. The same
    files give the same page. Raises UsageError, with nothing written, where an input is missing or
    stale.
    """
    typed = Metadata.read(folder)
    metadata = typed.model_dump()
    figures = Figures(read_evaluation(folder, typed, pool), metadata)
    responses = audit_table(folder)
    best = _best(figures)
    splits = figures.splits()
    pictures = trait_pictures(figures, metadata, responses)
    page = _render(
        "trait.html",
        trait=folder.name,
        experiment=folder.experiment.name,
        model=metadata["model"],
        pool=pool,
        date=metadata["extraction_date"],
        best=best,
        notes=[note for note in figures.evaluation.notes if not best or note != best["reason"]],
        yields=_yields(figures),
        cost=list(_flattened(figures, {"cost": metadata["cost"]}))
        if isinstance(metadata.get("cost"), dict)
        else [],
        dollars=_dollars(figures, metadata),
        threshold=figures.meta("threshold"),
        judge_auroc=_judge_auroc(figures, metadata.get("judge") or {}),
        pictures={picture.name: picture for picture in pictures},
        splits=splits,
        methods=_method_rows(figures, best) if splits else [],
        cosine_layer=figures.layer("cosine", "", figures.methods()[0], cosine_layer(figures)),
        audit=_audit(responses),
        settings=list(_flattened(figures, _settings(metadata))),
    )
    return _write(folder.path, page, pictures, pool)


def write_experiment_report(
    experiment: Path, notice: Callable[[str], None], pool: str = DEFAULT_POOL
) -> Path:
    """Write `report.html` in an experiment's folder: its evaluated traits and how vectors transfer
    between them.

    A trait whose evaluation does not fit its activations is left out with a notice.
    """
    table = read_transfer(experiment, notice, pool)
    traits, models = [], []
    for folder in evaluated_traits(experiment, pool):
        try:
            typed = Metadata.read(folder)
            metadata = typed.model_dump()
            figures = Figures(read_evaluation(folder, typed, pool), metadata)
        except TraitmillError as error:
            notice(f"{folder.name} is left out of the experiment's report: {error}")
            continue
        own_page = folder.report(pool)
        models.append(metadata["model"])
        traits.append(
            {
                "name": folder.name,
                "href": f"{folder.name}/{own_page.name}" if own_page.is_file() else "",
                "kept_pos": figures.meta("n_examples_pos"),
                "kept_neg": figures.meta("n_examples_neg"),
                "best": _best(figures),
            }
        )
    pairs = [] if table is None else [_transfer_pair(row) for row in table.iter_rows(named=True)]
    picture = None if table is None else transfer_picture(table)
    page = _render(
        "experiment.html",
        experiment=experiment.name,
        models=list(dict.fromkeys(models)),
        pool=pool,
        traits=traits,
        transfer=picture,
        pairs=pairs,
    )
    return _write(experiment, page, [picture] if picture else [], pool)


def _render(template: str, **context: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader(__package__ or ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["drawn"] = lambda picture: Markup(picture.inline)  # noqa: S704 - escaped where drawn
    return environment.get_template(template).render(**context)


def _write(folder: Path, page: str, pictures: list[Picture], pool: str) -> Path:
    suffix, drawn = pool_suffix(pool), {picture.name for picture in pictures}
    for picture in pictures:
        write_atomic(folder / "plots" / f"{picture.name}{suffix}.svg", picture.svg)
        write_atomic(folder / "plots" / f"{picture.name}{suffix}.png", picture.png)
    path = folder / f"report{suffix}.html"
    write_atomic(path, page.encode("utf-8", "backslashreplace"))
    for name in set(NAMES) - drawn:  # of an earlier page: it would show what no longer holds
        for kind in ("svg", "png"):
            (folder / "plots" / f"{name}{suffix}.{kind}").unlink(missing_ok=True)
    return path


# --- what the pages show ---


def _best(figures: Figures) -> dict[str, Any] | None:
    found = figures.evaluation.recommendation
    if found is None:
        return None
    split, others = found.split, [name for name in figures.splits() if name != found.split]
    at = (found.method, found.layer)
    counts = [figures.measured("rows", other=side, digits=0) for side in POLARITIES]
    n_groups = figures.measured("groups", split, digits=0)
    corrected = found.auroc is not None
    other = figures.measured("selected_auroc", others[0], *at) if corrected and others else None
    return {
        "method": found.method,
        "claim": found.claim,
        "general": found.general,
        "split": split,
        "reason": found.reason,
        "too_few": min(count.value for count in counts) < MIN_CLAIM_ROWS
        or n_groups.value < MIN_CLAIM_GROUPS,
        "layer": figures.layer("selected_auroc", split, *at),
        "corrected": corrected,
        "auroc": figures.measured("selected_auroc" if corrected else "auroc", split, *at),
        "candidates": figures.measured("candidates", split, digits=0),
        "n_pos": counts[0],
        "n_neg": counts[1],
        "n_groups": n_groups,
        "shuffled": figures.measured("shuffled_auroc", split, *at),
        "random": figures.measured("random_auroc", split, "random", found.layer),
        "over_random": figures.measured("over_random", split, *at) if corrected else None,
        "other_split": "instruction" if split == "question" else "question",
        "other": other if other and np.isfinite(other.value) else None,
    }


def _method_rows(figures: Figures, best: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    first, rows = figures.splits()[0], []
    for method in figures.methods():
        curve = figures.curve("auroc", first, method)
        layer = curve.layers[int(curve.values.argmax())]
        if best and best["method"] == method:
            layer = int(best["layer"].value)
        rows.append(
            {
                "method": method,
                "best": best is not None and best["method"] == method,
                "layer": figures.layer("auroc", first, method, layer),
                "auroc": [
                    figures.measured("auroc", split, method, layer) for split in figures.splits()
                ],
                "accuracy": figures.measured("accuracy", first, method, layer),
                "cohens_d": figures.measured("cohens_d", first, method, layer),
                "shuffled": figures.measured("shuffled_auroc", first, method, layer),
            }
        )
    return rows


def _yields(figures: Figures) -> list[tuple[str, list[Number]]]:
    """Counts of both sides by what became of the responses; statuses that nothing has are left out."""
    paths: dict[str, tuple[str, ...]] = {"planned": ("planned",)}
    for kind, word in (("responses", "response"), ("verdicts", "verdict")):
        paths |= {f"{word}: {name}": (kind, name) for name in figures.counts(kind)}
    paths |= {
        "passed the judge": ("kept",),
        "captured": ("captured",),
        "capture failed": ("capture_failed",),
    }
    rows = [
        (name, [figures.meta("counts", side, *path) for side in POLARITIES])
        for name, path in paths.items()
    ]
    # What passed and could not be captured is in no file, so that it is not kept.
    kept = ("kept", [figures.meta(f"n_examples_{side}") for side in POLARITIES])
    return [(name, cells) for name, cells in rows if any(cell.value for cell in cells)] + [kept]


def _dollars(figures: Figures, metadata: Mapping[str, Any]) -> Number | None:
    """What judging cost at most, since stored verdicts do not say which tokens a cache made
    cheaper."""
    model = (metadata.get("judge") or {}).get("model")
    price = (
        find_price(model)
        if isinstance(model, str) and isinstance(metadata.get("cost"), dict)
        else None
    )
    if price is None:
        return None
    used = [int(figures.meta("cost", name).value) for name in ("input tokens", "output tokens")]
    value = price.dollars(used[0], 0, used[1])
    return Number(value, f"{value:.4f}", f"prices:{model}")


def _judge_auroc(figures: Figures, judge: Mapping[str, Any]) -> Number | None:
    if judge.get("auroc") is None:
        return None
    found = figures.meta("judge", "auroc", text="{:.2f}")
    if not judge.get("auroc_interval"):
        return found
    low, high = (figures.meta("judge", "auroc_interval", index, text="{:.2f}") for index in (0, 1))
    return Number(found.value, found.text, found.source, low, high)


def _audit(responses: pl.DataFrame) -> list[dict[str, Any]]:
    """Up to 4 responses of each side, kept and left out, evenly spread over their scores; then
    unscored ones."""
    import polars as pl

    rows = []
    for side in POLARITIES:
        for kept, scored in ((True, True), (False, True), (False, False)):
            chosen = (
                (pl.col("polarity") == side)
                & (pl.col("kept") == kept)
                & (pl.col("score").is_not_null() == scored)
            )
            stratum = responses.filter(chosen).sort(["score", "sample_id"])
            spread = np.unique(
                np.linspace(0, len(stratum) - 1, min(AUDIT_PER_STRATUM, len(stratum)))
                .round()
                .astype(int)
            )
            rows += [_audit_row(row) for row in stratum[spread].iter_rows(named=True)]
    return rows


def _audit_row(row: Mapping[str, Any]) -> dict[str, Any]:
    text, score = row["response"], row["score"]
    return {
        **{name: row[name] for name in ("polarity", "kept", "instruction", "question")},
        "status": row["verdict_status"]
        or (row["response_status"] if row["response_status"] != "ok" else "not judged"),
        "score": None
        if score is None
        else Number(score, in_full(score), f"responses:{row['sample_id']}/score"),
        "response": text if len(text) <= AUDIT_CHARACTERS else text[:AUDIT_CHARACTERS] + " …",
    }


def _settings(metadata: Mapping[str, Any]) -> dict[str, Any]:
    settings = {name: value for name, value in metadata.items() if name not in _NOT_SETTINGS}
    judge = metadata.get("judge") or {}
    return {
        **settings,
        "judge": {name: value for name, value in judge.items() if name not in _NO_SETTING_OF_JUDGE},
    }


def _flattened(
    figures: Figures, values: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        where = (*path, name)
        if isinstance(value, Mapping):
            yield from _flattened(figures, value, where)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield " ".join(where), figures.meta(*where)
        elif value is not None:
            yield (
                " ".join(where),
                ", ".join(map(str, value)) if isinstance(value, list) else str(value),
            )


def _transfer_pair(row: Mapping[str, Any]) -> dict[str, Any]:
    def number(column: str) -> Number:
        return Number(
            row[column], f"{row[column]:.2f}", f"transfer:{row['trait']}/{row['target']}/{column}"
        )

    found = None
    if row["value"] is not None:
        value = number("value")
        found = Number(value.value, value.text, value.source, number("low"), number("high"))
    return {"trait": row["trait"], "target": row["target"], "note": row["note"], "auroc": found}
