"""Records as Arrow tables: the schemas of the Parquet parts, and the way there and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ..records import RESPONSE_STATUSES, VERDICT_STATUSES, Activation, Response, Sample, Verdict

Kind = Literal["responses", "verdicts", "activations"]
KINDS: tuple[Kind, ...] = ("responses", "verdicts", "activations")
ACTIVATION_STATUSES = ("ok", "failed")
STATUSES: dict[Kind, tuple[str, ...]] = {
    "responses": RESPONSE_STATUSES,
    "verdicts": VERDICT_STATUSES,
    "activations": ACTIVATION_STATUSES,
}


RESPONSE_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("polarity", pa.string()),
        ("instruction_index", pa.int32()),
        ("question_index", pa.int32()),
        ("rollout", pa.int32()),
        ("instruction", pa.string()),
        ("question", pa.string()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("response_token_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("seed", pa.int64()),
        ("status", pa.string()),
        ("logprobs", pa.list_(pa.float32())),
        ("error", pa.string()),
    ]
)
VERDICT_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("judge_key", pa.string()),
        ("status", pa.string()),
        ("score", pa.float64()),
        ("mode", pa.string()),
        ("model", pa.string()),
        ("raw", pa.string()),
        ("attempts", pa.int32()),
        ("input_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("hidden_tokens", pa.int32()),
        ("error", pa.string()),
    ]
)
"""Activations have no fixed schema: their values' width is a capture set's shape."""


@dataclass(frozen=True, slots=True)
class CaptureFailure:
    """A response whose activation could not be stored (a NaN, say); retried by the next run."""

    trait: str
    sample_id: str
    pool: str
    error: str


def check_columns(kind: Kind, schema: pa.Schema) -> None:
    """Raise ArrowInvalid for a part whose columns are not those of its kind."""
    if kind == "activations":
        width = schema.field("values").type
        empty = activation_table("", [])
        expected = empty.schema.set(
            empty.schema.get_field_index("values"), pa.field("values", width)
        )
        good = pa.types.is_fixed_size_binary(width) and schema.equals(expected)
    else:
        good = schema.equals(RESPONSE_SCHEMA if kind == "responses" else VERDICT_SCHEMA)
    if not good:
        raise pa.ArrowInvalid(f"its columns are not those of {kind}")


def _text(value: object) -> object:
    """Arrow refuses lone surrogates; they are kept readable as escapes."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def response_table(responses: Sequence[Response]) -> pa.Table:
    """Responses as a table of the responses schema."""
    rows = [
        {
            name: _text(getattr(r, name) if hasattr(r, name) else getattr(r.sample, name))
            for name in RESPONSE_SCHEMA.names
            if name != "sample_id"
        }
        | {"sample_id": r.sample.id}
        for r in responses
    ]
    return pa.Table.from_pylist(rows, schema=RESPONSE_SCHEMA)


def verdict_table(verdicts: Sequence[Verdict]) -> pa.Table:
    """Verdicts as a table of the verdicts schema."""
    rows = [{name: _text(getattr(v, name)) for name in VERDICT_SCHEMA.names} for v in verdicts]
    return pa.Table.from_pylist(rows, schema=VERDICT_SCHEMA)


def activation_table(
    capture_key: str, activations: Sequence[Activation | CaptureFailure]
) -> pa.Table:
    """Activations of one capture set (one shape) as a table; a failure has null values."""
    values = next(
        (a.values for a in activations if isinstance(a, Activation)), np.zeros((0, 0), np.float32)
    )
    done = [a if isinstance(a, Activation) else None for a in activations]
    layers = next((list(a.layers) for a in done if a), [])
    return pa.table(
        {
            "sample_id": pa.array([a.sample_id for a in activations], pa.string()),
            "capture_key": pa.array([capture_key] * len(done), pa.string()),
            "pool": pa.array([a.pool for a in activations], pa.string()),
            "layers": pa.array([layers] * len(done), pa.list_(pa.int32())),
            "dim": pa.array([values.shape[-1]] * len(done), pa.int32()),
            "status": pa.array(["ok" if a else "failed" for a in done], pa.string()),
            "values": pa.array(
                [np.ascontiguousarray(a.values, "<f4").tobytes() if a else None for a in done],
                pa.binary(values.nbytes or 4),
            ),
            "error": pa.array(
                ["" if isinstance(a, Activation) else a.error for a in activations], pa.string()
            ),
        }
    )


def response_of(trait: str, row: dict[str, Any]) -> Response:
    """The response a row of the responses schema holds."""
    sample = Sample(
        trait=trait,
        id=row["sample_id"],
        polarity=row["polarity"],
        instruction_index=row["instruction_index"],
        question_index=row["question_index"],
        rollout=row["rollout"],
        instruction=row["instruction"],
        question=row["question"],
        prompt=row["prompt"],
        prompt_token_ids=tuple(row["prompt_token_ids"]),
        seed=row["seed"],
    )
    return Response(
        sample=sample,
        status=row["status"],
        response=row["response"],
        response_token_ids=tuple(row["response_token_ids"]),
        finish_reason=row["finish_reason"],
        logprobs=None if row["logprobs"] is None else tuple(row["logprobs"]),
        error=row["error"],
    )
