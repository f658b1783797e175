"""metadata.json beside the tensors: what they are, and the checksums that tie files together."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import UsageError
from ..files import write_atomic
from ..storage import SCHEMA_VERSION, TraitFolder, made_by

CSV_COLUMNS = ("question", "instruction", "prompt", "response", "trait_score")
LAYER_CONVENTION = (
    "index i is the residual stream leaving decoder block i (0-based), before the final norm; "
    "-1, where present, is the embedding output"
)
POOLING = {
    "response_mean": "mean over the response's tokens with the prompt as context, in float32; a "
    "closing end token does not count",
    "response_last": "the response's last token with the prompt as context; a closing end token "
    "does not count",
    "prompt_mean": "mean over the prompt's tokens, in float32",
    "prompt_last": "the prompt's last token",
    "thought_mean": "mean over the tokens of the thought before the response, in float32; its tags "
    "do not count",
}


class Metadata(BaseModel):
    """activations/metadata.json. Row i of each tensor is row i of pos.csv, then of neg.csv."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: int = SCHEMA_VERSION
    model: str
    revision: str
    trait: str
    n_examples: int
    n_examples_pos: int
    n_examples_neg: int
    n_excluded: int
    """Passing responses left out because their capture failed."""
    n_layers: int
    hidden_dim: int
    layers: list[int]
    """The block index of each layer; -1 is the embedding output."""
    layer_convention: str
    storage_type: str
    """`token_averaged` where a pool is a mean, else `single_token`."""
    pooling: str
    pools: list[str]
    threshold: float
    """pos is kept at or above it."""
    neg_threshold: float
    """neg is kept below it."""
    paired: bool
    """Whether a row counts only where its twin of the other side passes."""
    coherence: dict[str, Any] | None
    """How coherent a row has to be, and by whom; None where that is not asked."""
    batch_size: int | str
    dtype: str
    attention: str
    placement: str
    extraction_date: str
    sampling: dict[str, Any]
    judge: dict[str, Any]
    counts: dict[str, dict[str, Any]]
    """By polarity: planned, responses and verdicts by status, captured, kept."""
    cost: dict[str, int]
    self_check: dict[str, Any] | None
    versions: dict[str, str]
    files_sha256: dict[str, str]
    """By path in the trait's folder: both CSVs and every tensor."""
    sample_ids: list[str]
    instruction_index: list[int]
    """Of each row in the definition, as `question_index`."""
    question_index: list[int]
    sha256: str = ""
    """Of all the keys above, as canonical JSON."""

    @property
    def made_by(self) -> str:
        """What tells its model from others."""
        return made_by({**self.sampling, "model": self.model, "revision": self.revision})

    def __repr__(self) -> str:
        rows = f"{self.n_examples_pos} pos + {self.n_examples_neg} neg"
        return f"Metadata({self.trait}: {rows}, {self.n_layers} layers of {self.model})"

    __str__ = __repr__

    def checksum(self) -> str:
        """Return the sha256 of everything but `sha256` itself."""
        content = self.model_dump(exclude={"sha256"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def tensor_sha256(self, pool: str) -> str | None:
        """Return that of a pool's tensor; None for one that was not captured."""
        return self.files_sha256.get(TraitFolder(Path()).tensor(pool).as_posix())

    def write(self, folder: TraitFolder) -> None:
        """Write the file, with its checksum, whole or not at all."""
        whole = self.model_copy(update={"sha256": self.checksum()})
        text = json.dumps(whole.model_dump(), indent=1, ensure_ascii=False)
        write_atomic(folder.metadata, text.encode())

    @classmethod
    def read(cls, folder: TraitFolder) -> Self:
        """Return a folder's metadata. Raise UsageError that names every fault."""
        path, anew = folder.metadata, folder.step("export")
        try:
            found = cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            step = "activations" if folder.run_record.is_file() else "generate"
            raise UsageError(
                f"{folder.path} has no activations; make them", folder.step(step)
            ) from None
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror})") from None
        except ValidationError as error:
            if _foreign(error):
                raise UsageError(
                    f"{path} was not written by traitmill, which keeps in parquet/ what rows were "
                    "made with; make them in another experiment, from the same definition"
                ) from None
            raise UsageError(f"{path} {_faults(error)}; write it anew", anew) from None
        if found.sha256 != found.checksum():
            raise UsageError(
                f"{path} was changed since it was written (its checksum differs); write it anew",
                anew,
            )
        return found


def _foreign(error: ValidationError) -> bool:
    """Whether a file was never ours: it ties its rows to nothing."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    lacks = {fault["loc"][0] for fault in faults if fault["type"] == "missing"}
    return {"files_sha256", "sample_ids"} <= lacks


def _faults(error: ValidationError) -> str:
    """Return every fault of a file in words."""
    by_kind: dict[str, list[str]] = {}
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        if not fault["loc"]:
            return "is not a JSON object"
        kind = _KINDS.get(fault["type"], "holds something else than it should under")
        by_kind.setdefault(kind, []).append(str(fault["loc"][0]))
    return ", and ".join(
        f"{kind} {', '.join(dict.fromkeys(keys))}" for kind, keys in by_kind.items()
    )


_KINDS = {"missing": "lacks", "extra_forbidden": "holds unknown keys"}
