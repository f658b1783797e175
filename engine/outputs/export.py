"""Records to the documented files: a pure function of records and filters, byte for byte."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Step
from ..files import sha256_of
from ..records import POLARITIES, Polarity
from ..settings import POOLS
from ..storage import KINDS, Choice, Selection, TraitState, require_facts, unfinished_sets
from .judged import coherence_summary, judge_summary, judge_usage
from .metadata import LAYER_CONVENTION, POOLING, Metadata
from .ready import coherence_step, refuse_lost, require_captured
from .rows import write_csvs, write_tensor
from .stale import note_stale


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote."""

    kept: dict[Polarity, int]
    excluded: int
    """Passing responses left out because their capture, or their twin's, failed."""
    uncaptured: int
    """Kept responses never captured; above 0 there are CSVs and no activations."""
    unjudged: int
    """Responses without an answer of the judge in use."""
    judge: str
    """Model and key of the judge in use."""
    files: tuple[Path, ...]
    shape: tuple[int, ...] | None
    """Of all_layers.pt, None without activations."""
    remarks: tuple[str, ...] = ()
    unasked: int = 0
    """Responses that pass but for a score of their coherence, which they lack."""
    asking: Step | None = None
    """What asks for those scores."""
    filters: tuple[str, ...] = ()
    """What else than the threshold decides which are kept."""
    thinking: str = ""
    """What to do about kept responses that hold a thought; empty where none does."""
    stale: tuple[str, ...] = ()
    """Vectors, evaluations and pages there that are of other files than these."""

    def __repr__(self) -> str:
        return f"Exported({self.kept['pos']} pos + {self.kept['neg']} neg, shape {self.shape})"


def export_trait(state: TraitState, *, without_uncaptured: bool = False) -> Exported:
    """Write pos.csv, neg.csv and, where activations are captured, the tensors and metadata.json.

    Then note in selection.json what the files show, and in STALE.txt which vectors and pages show
    others. Raise UsageError, with nothing written, when
    kept responses were not captured (`without_uncaptured`: write the CSVs, remove activations of
    another selection); ResourceError when the disk is full, a part file is damaged or verdicts on
    coherence are gone.
    """
    refuse_lost(state, KINDS)  # what a run lost of these it has made again by now
    if not without_uncaptured:
        require_captured(state)
    folder = state.folder
    selection = _selection(state)
    uncaptured = 0
    if state.any_captured():
        uncaptured = state.kept_uncaptured()
    with_activations = state.any_captured() and not uncaptured
    if with_activations and state.capture_key is not None:
        require_facts(folder.activations(state.capture_key))
    mask = state.passing()
    if with_activations:
        mask = state.exportable()
    kept = np.flatnonzero(mask)
    described = None
    if with_activations:  # what cannot be described is refused while the old files stand
        described = _metadata(state, kept)
    # Files are replaced one by one: cut off between two, none may pass as up to date.
    selection.save(folder.selection)
    files, counts, thoughts = write_csvs(state, kept)
    shape = None
    if described is not None:
        for pool in state.activations:
            shape = write_tensor(state, pool, kept)
            files.append(folder.tensor(pool))
        _completed(described, counts, shape or (), files, folder.path).write(folder)
        files.append(folder.metadata)
    for path in [*(folder.tensor(pool) for pool in POOLS), folder.metadata]:
        if path not in files:  # of another capture setting: it would not fit the new CSVs
            path.unlink(missing_ok=True)
    selection.model_copy(update={"digest": digest(state), "rows": state.n_rows()}).save(
        folder.selection
    )
    stale, unasked = note_stale(folder), state.coherence_unknown()
    return Exported(
        kept=counts,
        excluded=int(state.passing().sum()) - len(kept),
        uncaptured=uncaptured,
        unjudged=int((state.responses.having("ok") & state.verdicts.pending()).sum()),
        judge=_judge_name(state),
        files=tuple(files),
        shape=shape,
        remarks=tuple(unfinished_sets(state)),
        unasked=unasked,
        asking=coherence_step(state) if unasked else None,
        filters=tuple(_filters(state.choice)),
        thinking=_thinking(thoughts),
        stale=tuple(stale),
    )


def _selection(state: TraitState) -> Selection:
    return Selection(
        judge=state.judge_key,
        capture=state.capture_key,
        pools=state.choice.pools,
        threshold=state.choice.threshold,
        neg_threshold=state.choice.neg_threshold,
        paired=state.choice.paired,
        coherence=state.choice.coherence,
        coherence_key=state.choice.coherence_key,
    )


def _filters(choice: Choice) -> Iterator[str]:
    if choice.neg_threshold is not None:
        yield f"`neg_threshold` {choice.neg_threshold:g}"
    if choice.paired:
        yield "`paired`"
    if choice.coherence is not None:
        yield f"`coherence` {choice.coherence:g}"


def _thinking(thoughts: int) -> str:
    if not thoughts:
        return ""
    return (
        f"{thoughts} kept responses hold a thought, judged and pooled as theirs: set it apart with "
        "`thinking` on, or begin responses behind one with `prefill`, in another experiment"
    )


def is_exported(state: TraitState) -> bool:
    """Return whether the files on disk are what an export would write now."""
    selection = Selection.load(state.folder.selection)
    if selection is None or selection.digest != digest(state):
        return False
    folder = state.folder
    files = [folder.responses_csv(polarity) for polarity in POLARITIES]
    if state.any_captured() and not state.kept_uncaptured():
        files += [folder.metadata, *(folder.tensor(pool) for pool in state.activations)]
    return all(path.exists() for path in files)


def note_rows(state: TraitState) -> None:
    """Note how many rows are stored, where the files are what an export would write.

    Rows of repeated attempts may be fewer than at the export: what a damaged part held was made
    again, in one attempt. So may those of a run that asked of coherence, and wrote no files.
    """
    selection, rows = Selection.load(state.folder.selection), state.n_rows()
    if selection is None:
        return
    if selection.judge == state.judge_key and selection.rows != rows:
        selection.model_copy(update={"rows": rows}).save(state.folder.selection)
    elif selection.coherence_key == state.judge_key:
        asked = {"coherence": rows["verdicts"]}
        if asked["coherence"] < selection.rows.get("coherence", 0):
            again = {"rows": selection.rows | asked, "digest": ""}  # the answers may be others
            selection.model_copy(update=again).save(state.folder.selection)


def digest(state: TraitState) -> str:
    """Return a value that is the same as long as an export would write the same files."""
    choice = state.choice
    # As they are stored: 50 and 50.0 keep the same.
    threshold, neg_threshold, coherence = (
        limit if limit is None else float(limit)
        for limit in (choice.threshold, choice.neg_threshold, choice.coherence)
    )
    facts: list[Any] = [threshold, neg_threshold, choice.paired]
    facts += [choice.judge_key, choice.capture_key, choice.pools]
    facts += [coherence, choice.coherence_key]
    facts += [known.model_dump() for known in (state.judge, state.capture) if known]
    content = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    marks = [state.plan.ids, state.responses.status, state.verdicts.status, state.verdicts.score]
    if state.coherence is not None:
        marks += [state.coherence.status, state.coherence.score]
    for mark in (*marks, *(index.status for index in state.activations.values())):
        content.update(np.ascontiguousarray(mark).tobytes())
    return content.hexdigest()[:16]


def _judge_name(state: TraitState) -> str:
    if state.judge is None:
        return "none"
    return f"{state.judge.model} ({state.judge_key})"


def _completed(
    metadata: Metadata,
    counts: dict[Polarity, int],
    shape: tuple[int, ...],
    files: list[Path],
    root: Path,
) -> Metadata:
    """Add what is known once the files it describes are written."""
    facts = {
        "n_examples_pos": counts["pos"],
        "n_examples_neg": counts["neg"],
        "n_layers": shape[1],
        "hidden_dim": shape[2],
        "files_sha256": {str(path.relative_to(root)): sha256_of(path) for path in files},
    }
    return metadata.model_copy(update=facts)


def _metadata(state: TraitState, kept: np.ndarray) -> Metadata:
    """Return what is known of an export's files before they are written."""
    facts, sampling = state.capture, state.record.sampling
    if facts is None:
        raise ValueError("metadata needs the facts of its activation set")
    pools = list(state.activations)
    pooling = "; ".join(f"{pool}: {POOLING[pool]}" for pool in pools)
    if len(pools) == 1:
        pooling = POOLING[pools[0]]
    storage_type = "single_token"
    if any(pool.endswith("_mean") for pool in pools):
        storage_type = "token_averaged"
    names = ("temperature", "top_p", "top_k", "max_new_tokens", "seed", "dtype")
    given = sampling.model_dump(exclude_defaults=True, exclude={"model", "revision"})
    return Metadata(
        model=sampling.model,
        revision=sampling.revision,
        trait=state.name,
        n_examples=len(kept),
        n_examples_pos=0,
        n_examples_neg=0,
        n_excluded=int(state.passing().sum()) - len(kept),
        n_layers=0,
        hidden_dim=0,
        layers=list(facts.layers),
        layer_convention=LAYER_CONVENTION,
        storage_type=storage_type,
        pooling=pooling,
        pools=pools,
        threshold=state.choice.threshold,
        neg_threshold=state.choice.thresholds["neg"],
        paired=state.choice.paired,
        coherence=coherence_summary(state),
        batch_size=facts.batch_size,
        dtype=facts.dtype,
        attention=facts.attention,
        placement=facts.placement,
        extraction_date=facts.begun,
        sampling={name: given.pop(name) for name in names} | given,
        judge=judge_summary(state),
        counts=state.counts(),
        cost=judge_usage(state),
        self_check=facts.self_check,
        versions=state.record.versions | facts.versions,
        files_sha256={},
        sample_ids=[state.plan.ids[position].decode() for position in kept],
        instruction_index=state.plan.instruction_index[kept].tolist(),
        question_index=state.plan.question_index[kept].tolist(),
    )
