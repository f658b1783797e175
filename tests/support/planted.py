"""Trait folders with planted directions: the files a run would leave, written without one."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

MODEL = "google/gemma-2-2b-it"
JUDGE = "gpt-5-mini"
# Numbers too long for six digits: a page that rounds them is found out.
SEED = 20261123
COST = {"calls": 94, "input tokens": 1234567, "output tokens": 98765, "of them hidden": 43210}


def planted_direction(dim: int, layer: int, number: int = 0) -> np.ndarray:
    """Unit vector of the planted trait."""
    direction = np.random.default_rng([number, 77, layer]).standard_normal(dim)
    return direction / np.linalg.norm(direction)


def write_trait(
    folder: Path,
    *,
    n_per_side: int = 40,
    n_questions: int = 10,
    n_pairs: int = 4,
    n_layers: int = 4,
    dim: int = 48,
    signal: Sequence[float] | float = 8.0,
    seed: int = 0,
    direction: int = 0,
    question_spread: float = 1.0,
    side_spread: float = 0.0,
    side_by: str = "question",
    pools: Sequence[str] = ("response_mean",),
) -> Path:
    """A trait folder. Rows are unit noise.

    A side is `signal[layer]` from the other along the planted direction. Questions shift their rows
    by a vector of their own (`question_spread` a coordinate), so that rows of one question are
    alike; with `side_spread`, each side of each question (or instruction, `side_by`) has a shift of
    its own too, so that sides can be told apart on questions that were seen and on no others.
    `direction` numbers the planted directions, so that traits can have different ones.
    """
    rng = np.random.default_rng(seed)
    strengths = [signal] * n_layers if isinstance(signal, float | int) else list(signal)
    definition = {
        "instruction": [
            {"pos": f"Do it, way {i}.", "neg": f"Do not, way {i}."} for i in range(n_pairs)
        ],
        "questions": [f"Question {i}, please?" for i in range(n_questions)],
        "eval_prompt": "{question} {answer}",
    }
    for name in ("responses", "activations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "trait_definition.json").write_text(json.dumps(definition))
    question_shift = question_spread * rng.standard_normal((n_questions, n_layers, dim))
    side_shift = (
        side_spread * rng.standard_normal((2, max(n_questions, n_pairs), n_layers, dim))
        if side_spread
        else None
    )
    blocks, ids = [], []
    for side, polarity in enumerate(("pos", "neg")):
        pairs, questions = (
            np.arange(n_per_side) % n_pairs,
            np.arange(n_per_side) // n_pairs % n_questions,
        )
        values = rng.standard_normal((n_per_side, n_layers, dim)) + question_shift[questions]
        if side_shift is not None:
            values += side_shift[side, questions if side_by == "question" else pairs]
        for layer, strength in enumerate(strengths):
            values[:, layer] += (0.5 - side) * strength * planted_direction(dim, layer, direction)
        blocks.append(values)
        ids += [
            hashlib.sha256(f"{seed}{polarity}{row}".encode()).hexdigest()[:32]
            for row in range(n_per_side)
        ]
        with (folder / "responses" / f"{polarity}.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["question", "instruction", "prompt", "response", "trait_score"])
            for row in range(n_per_side):
                question = definition["questions"][questions[row]]
                instruction = definition["instruction"][pairs[row]][polarity]
                score = 90 - 80 * side
                writer.writerow(
                    [
                        question,
                        instruction,
                        f"{instruction}\n\n{question}",
                        f"Answer, {row}\n<b>",
                        score,
                    ]
                )
    values = torch.from_numpy(np.concatenate(blocks).astype(np.float32))
    for pool in pools:
        suffix = "" if pool == "response_mean" else f".{pool}"
        torch.save(values, folder / "activations" / f"all_layers{suffix}.pt")
    per_row = np.arange(n_per_side)
    sampling = {"temperature": 0.7, "top_p": 0.9, "top_k": 0, "max_new_tokens": 150, "seed": SEED}
    metadata = {
        "schema_version": 2,
        "model": MODEL,
        "revision": "0123abc",
        "trait": folder.name,
        "n_examples": 2 * n_per_side,
        "n_examples_pos": n_per_side,
        "n_examples_neg": n_per_side,
        "n_excluded": 0,
        "n_layers": n_layers,
        "hidden_dim": dim,
        "layers": list(range(n_layers)),
        "layer_convention": "index i is the residual stream leaving decoder block i",
        "storage_type": "token_averaged",
        "pooling": "mean over the response's tokens",
        "pools": list(pools),
        "threshold": 50.0,
        "neg_threshold": 50.0,
        "paired": False,
        "batch_size": 8,
        "dtype": "float32",
        "attention": "eager",
        "placement": "alone",
        "extraction_date": "2026-01-02T03:04:05Z",
        "sampling": {**sampling, "dtype": "auto"},
        "judge": {
            "model": JUDGE,
            "mode": "auto",
            "kind": "integer",
            "auroc": 0.91,
            "auroc_interval": [0.85, 0.96],
            "histogram": {
                "pos": [0, 0, 1, 2, 3, 5, 8, 9, 7, 5],
                "neg": [9, 8, 7, 6, 4, 3, 2, 1, 0, 0],
            },
        },
        "counts": {side: _counts(n_per_side) for side in ("pos", "neg")},
        "cost": COST,
        "self_check": {"checked": 8, "passed": True},
        "versions": {"torch": "2.13.0"},
        "sample_ids": ids,
        "instruction_index": 2 * (per_row % n_pairs).tolist(),
        "question_index": 2 * (per_row // n_pairs % n_questions).tolist(),
    }
    write_metadata(folder, metadata)
    return folder


def _counts(n_per_side: int) -> dict:
    """What became of one side's responses: some did not pass."""
    responses = {"pending": 0, "ok": n_per_side + 4, "empty": 1, "overlong": 0, "failed": 0}
    verdicts = {"unjudged": 0, "scored": n_per_side + 4}
    verdicts |= dict.fromkeys(("refused", "unparsable", "truncated", "failed"), 0)
    return {
        "planned": n_per_side + 5,
        "responses": responses,
        "verdicts": verdicts,
        "captured": n_per_side + 4,
        "capture_failed": 0,
        "kept": n_per_side,
    }


def write_metadata(folder: Path, metadata: dict) -> None:
    """metadata.json with the hashes of the files as they are now, and its own."""
    files = [*folder.glob("responses/*.csv"), *folder.glob("activations/*.pt")]
    hashes = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
    content = {**metadata, "files_sha256": hashes}
    content.pop("sha256", None)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path = folder / "activations" / "metadata.json"
    path.write_text(json.dumps({**content, "sha256": digest}))


def read_metadata(folder: Path) -> dict:
    return json.loads((folder / "activations" / "metadata.json").read_bytes())
