"""Vectors, evaluations and pages that were made from other files than a folder holds now."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from ..errors import Step, UsageError
from ..files import write_atomic
from ..settings import DEFAULT_POOL, POOLS
from ..storage import TraitFolder, pool_suffix
from .metadata import Metadata

PAGE_MARK = "traitmill-metadata"
"""Name of the page's `meta` element that holds the sha256 of the metadata of what it shows."""
_OLD_MARK = "traitmill-activations"
"""That of pages of earlier versions, which hold the sha256 of the activations."""
_HEAD_BYTES = 4096
"""So far into a page the mark stands."""
_ORDER = ("vectors", "steer", "report")


def noted_stale(folder: TraitFolder) -> list[str]:
    """Return what is stale where STALE.txt says that something is: cheap where nothing is."""
    return stale_files(folder) if folder.stale_note.is_file() else []


def stale_files(folder: TraitFolder) -> list[str]:
    """Return what stands in a trait's folder and shows other files than it holds now.

    Vectors, evaluations and steering are of other activations; pages also of other verdicts or
    another threshold. Names are as in the folder: `vectors/`, `evaluation.parquet`, `report.html`,
    and those of other pools. Without activations all that is there is stale. What cannot be read is
    left out: whoever reads it says so.
    """
    return list(dict.fromkeys(name for name, _ in _stale(folder)))


def renewing(folder: TraitFolder) -> dict[Step, list[str]]:
    """Return the steps that bring what is stale up to date, in order, and what each makes anew."""
    found: dict[Step, list[str]] = {}
    for name, step in sorted(_stale(folder), key=lambda each: _ORDER.index(each[1].name)):
        found.setdefault(step, []).append(name)
    return found


def _stale(folder: TraitFolder) -> Iterator[tuple[str, Step]]:
    """Yield what is stale, and the step that makes it anew."""
    metadata = _metadata(folder)
    currents = {pool: metadata.tensor_sha256(pool) if metadata else None for pool in POOLS}
    whole = metadata.sha256 if metadata else None
    shown, earlier = DEFAULT_POOL, []
    for pool, current in currents.items():
        fit = folder.step("vectors", pool=pool)
        if any(made_from != current for made_from in _of_vectors(folder, pool)):
            yield "vectors/", fit
        made_from = _of_evaluation(folder.evaluation(pool))
        if made_from is not None and made_from != current:
            yield folder.evaluation(pool).name, fit
        page = _of_page(folder.report(pool))
        if page is not None:
            shown = pool
        if page not in (None, whole, current):
            earlier.append(pool)
            yield folder.report(pool).name, folder.step("report", pool=pool)
    pages = takewhile(Path.is_file, map(folder.responses_page, count()))
    if any(_of_page(path) not in (None, whole) for path in pages):
        # Every pool's page comes with it.
        anew = folder.step("report", pool=earlier[0] if earlier else shown)
        yield folder.responses_page().name, anew
    steered = _facts_of(folder.steering_table)  # they stand as an evaluation's do
    if steered and steered.get("activations_sha256") not in currents.values():
        named = {"pool": steered["pool"]} if "pool" in steered else {}
        yield folder.steering_table.name, folder.step("steer", **named)


def note_stale(folder: TraitFolder) -> list[str]:
    """Write STALE.txt where something is stale, else remove it; return what is.

    It stands in the trait's folder, and in `vectors/` too where these are stale. Call it whenever
    activations, vectors, an evaluation or a page have been written, while holding the lock.
    """
    stale = stale_files(folder)
    which = f"--experiment {folder.experiment.name} --trait {folder.name}"
    where = folder.experiment.resolve().parent.name
    if where != "experiments":
        which += f" --experiments_dir {where}"
    text = (
        f"Made from other files than this folder holds now: {', '.join(stale)}.\n"
        "Responses were added, judged or chosen anew since. To bring them up to date, from the "
        f"folder that holds {where}/:\n"
    )
    for step in renewing(folder):
        pools = "".join(f" --pool {pool}" for _, pool in step.settings)
        text += f"  traitmill {step.name} {which}{pools}\n"
    for path, wanted in (
        (folder.stale_note, bool(stale)),
        (folder.vectors / folder.stale_note.name, "vectors/" in stale),
    ):
        if wanted:
            write_atomic(path, text.encode())
        else:
            path.unlink(missing_ok=True)
    return stale


def _metadata(folder: TraitFolder) -> Metadata | None:
    """Return that of the folder's activations; None where it holds none that can be read."""
    try:
        return Metadata.read(folder)
    except UsageError:
        return None


def _of_vectors(folder: TraitFolder, pool: str) -> Iterator[str]:
    """Yield the sha256 of the activations that each file of a pool's vectors was fitted to."""
    suffix = re.escape(pool_suffix(pool))
    for path in folder.vectors.glob("*_metadata.json"):
        if re.search(rf"_layer-?[0-9]+{suffix}_metadata\.json$", path.name):
            with suppress(OSError, ValueError):
                yield from _digest_in(json.loads(path.read_bytes()))
    for path in folder.vectors.glob("*.safetensors"):
        if re.fullmatch(rf"[a-z_]+{suffix}\.safetensors", path.name):
            yield from _of_packed(path)


def _of_packed(path: Path) -> Iterator[str]:
    from safetensors import SafetensorError, safe_open

    with suppress(OSError, ValueError, SafetensorError), safe_open(path, "np") as file:
        for name, text in (file.metadata() or {}).items():
            if name.startswith("layer"):
                yield from _digest_in(json.loads(text))


def _digest_in(facts: Any) -> Iterator[str]:
    digest = facts.get("activations_sha256") if isinstance(facts, dict) else None
    if isinstance(digest, str):
        yield digest


def _of_evaluation(path: Path) -> str | None:
    return next(_digest_in(_facts_of(path)), None)


def _facts_of(path: Path) -> dict[str, Any]:
    """Return what a table says of itself; nothing where it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with suppress(OSError, ValueError, KeyError, pa.ArrowException):
        found = json.loads(pq.read_metadata(path).metadata[b"traitmill"])
        return found if isinstance(found, dict) else {}
    return {}


def _of_page(path: Path) -> str | None:
    with suppress(OSError), path.open("rb") as file:
        head = file.read(_HEAD_BYTES).decode("utf-8", "replace")
        mark = f"(?:{PAGE_MARK}|{_OLD_MARK})"
        found = re.search(rf'<meta name="{mark}" content="([0-9a-f]+)">', head)
        return found[1] if found else None
    return None
