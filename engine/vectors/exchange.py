"""A trait's vectors as other programs read them: one file of all layers, and a card beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import numpy as np
from numpy import ndarray

from ..errors import UsageError
from ..files import sha256_of, write_atomic
from ..outputs import LAYER_CONVENTION
from ..settings import plain_arguments
from ..storage import TraitFolder
from .trait_vectors import TraitVectors, open_vectors

Exchange = Literal["gguf", "persona", "safetensors"]
EXCHANGES: tuple[Exchange, ...] = get_args(Exchange)

_WRITTEN = ", written by traitmill."
"""What tells a card of ours."""
_CONVENTIONS: Mapping[Exchange, str] = {
    "gguf": (
        "a llama.cpp control vector: float32 tensor direction.N is added to what leaves block N "
        "(0-based), which is layer N here; llama.cpp has no place for block 0 and the embeddings"
    ),
    "persona": (
        "a float32 tensor [layers + 1, hidden_dim] as persona_vectors has it: row i + 1 is layer i "
        "here, up to the last that was captured; row 0 is of the embedding output; rows of layers "
        "that were not fitted are zeros"
    ),
    "safetensors": (
        "float32 tensors layer<i> [hidden_dim]; the header holds this card under `card`"
    ),
}


@dataclass(frozen=True, slots=True)
class ExportedVectors:
    """Files of vectors for another program."""

    path: Path
    card: Path
    """Markdown: what the vectors are, for people and for a repository's page."""
    method: str
    layers: tuple[int, ...]
    """Those in the file, as numbered here."""
    left_out: tuple[int, ...]
    """Layers that the format has no place for."""
    stale: str
    """Why the vectors are not those of the folder's responses now; empty where they are."""
    doubt: str
    """Why nothing is claimed of the trait's vectors; empty where something is."""


@plain_arguments
def export_vectors(
    folder: Path | str | TraitFolder,
    to: Path | str,
    format: Exchange,  # noqa: A002 - the option's name
    *,
    method: str | None = None,
    pool: str | None = None,
) -> ExportedVectors:
    """Write one method's vectors at all layers to the file `to`, with its card `<to>.md`.

    `gguf` is for llama.cpp, `persona` the stacked `.pt` of persona_vectors, `safetensors` for all
    else. Vectors are written as they are, not scaled. `method` None is the recommended one, `pool`
    None that of the folder's last fit. Raise
    UsageError, with nothing written, for vectors that are not there.
    """
    if format not in EXCHANGES:
        raise UsageError(f"`format` {format!r} is unknown; choose from {', '.join(EXCHANGES)}")
    path = Path(to)
    card = _card_beside(path)
    vectors = open_vectors(folder, pool)
    chosen = _method(vectors, method)
    by_layer = {layer: vectors.vector(chosen, layer) for layer in vectors.available[chosen]}
    _check_widths(vectors, chosen, by_layer)
    left_out: tuple[int, ...] = ()
    if format == "gguf":
        left_out = tuple(layer for layer in by_layer if layer < 1)
        by_layer = {layer: vector for layer, vector in by_layer.items() if layer >= 1}
        if not by_layer:
            raise UsageError(
                f"llama.cpp adds nothing after block 0, and {chosen} of {vectors.trait} has no "
                "other layer; fit more `layers`, or choose another `format`"
            )
    facts = _facts(vectors, chosen, tuple(by_layer), format)
    data = _WRITERS[format](by_layer, facts)
    write_atomic(card, _card(path, facts).encode())  # first: it says whose the file is
    write_atomic(path, data)
    return ExportedVectors(
        path, card, chosen, tuple(by_layer), left_out, vectors.stale, vectors.doubt
    )


def _card_beside(path: Path) -> Path:
    """Return where the card goes. Raise UsageError for a file that is not of this command."""
    if path.is_dir():
        raise UsageError(f"`to` {path} is a folder; name the file to write")
    card = path.with_name(f"{path.name}.md")
    if card.is_file():
        other = None if _WRITTEN in card.read_text(errors="replace") else card
    else:
        other = path if path.exists() else None
    if other:
        raise UsageError(f"{other} is there already and no export of vectors; name another file")
    return card


def _method(vectors: TraitVectors, method: str | None) -> str:
    if method is None:
        if vectors.recommended is None:
            there = ", ".join(vectors.methods)
            raise UsageError(
                f"{vectors.folder.path} recommends no method (it is not evaluated, or its "
                "evaluation is stale or could not choose, as `traitmill vectors` says); give "
                f"`method`: it has {there}"
            )
        return vectors.recommended[0]
    if method not in vectors.available:
        there = ", ".join(vectors.methods)
        raise UsageError(f"{vectors.trait} has no {method} vectors: it has {there}")
    return method


def _check_widths(vectors: TraitVectors, method: str, by_layer: Mapping[int, ndarray]) -> None:
    shapes = {vector.shape for vector in by_layer.values()}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        found = ", ".join(sorted(str(list(shape)) for shape in shapes))
        raise UsageError(
            f"the {method} vectors in {vectors.folder.vectors} are of different shapes ({found}); "
            "fit them anew",
            vectors.folder.step("vectors", pool=vectors.pool),
        )


def _facts(
    vectors: TraitVectors, method: str, layers: tuple[int, ...], format_: Exchange
) -> dict[str, Any]:
    """Return what the card says, as plain JSON values."""
    by_layer = {layer: vectors.metadata(method, layer) for layer in layers}
    first = by_layer[layers[0]]
    definition = vectors.folder.definition
    best = vectors.recommended
    return {
        "trait": vectors.trait,
        "model": vectors.model,
        "revision": str(first.get("revision", "unknown")),
        "adapter": first.get("adapter"),
        "adapter_revision": first.get("adapter_revision"),
        "method": method,
        "units": first.get("units"),
        "pool": vectors.pool,
        "layers": list(layers),
        "last_layer": max(*layers, vectors.last_captured),
        "claim": "none: " + vectors.doubt if vectors.doubt else None,
        "recommended_layer": best[1] if best and best[0] == method and best[1] in layers else None,
        "file": _CONVENTIONS[format_],
        "layer_convention": LAYER_CONVENTION,
        "definition_sha256": sha256_of(definition) if definition.is_file() else None,
        "activations_sha256": vectors.activations_sha256,
        "n_pos": first.get("n_pos"),
        "n_neg": first.get("n_neg"),
        "by_layer": {
            str(layer): {
                name: facts.get(name) for name in ("norm", "bias", "midpoint", "spread", "held_out")
            }
            for layer, facts in by_layer.items()
        },
    }


def _gguf(by_layer: Mapping[int, ndarray], facts: Mapping[str, Any]) -> bytes:
    from gguf import GGUFWriter

    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "vectors.gguf"
        writer = GGUFWriter(path, "controlvector")
        writer.add_string("controlvector.model_hint", facts["model"])
        writer.add_uint32("controlvector.layer_count", len(by_layer))
        writer.add_string("traitmill.card", json.dumps(facts))
        for layer, vector in by_layer.items():
            writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(vector, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def _persona(by_layer: Mapping[int, ndarray], facts: Mapping[str, Any]) -> bytes:
    import torch

    dim = len(next(iter(by_layer.values())))
    stack: ndarray = np.zeros((facts["last_layer"] + 2, dim), np.float32)
    for layer, vector in by_layer.items():
        stack[layer + 1] = vector
    buffer = BytesIO()
    torch.save(torch.from_numpy(stack), buffer)
    return buffer.getvalue()


def _safetensors(by_layer: Mapping[int, ndarray], facts: Mapping[str, Any]) -> bytes:
    from safetensors.numpy import save

    tensors = {f"layer{layer}": np.ascontiguousarray(v) for layer, v in by_layer.items()}
    named = ["trait", "model", "revision", "adapter", "adapter_revision", "method"]
    named += ["layer_convention", "definition_sha256"]
    header = {name: str(facts[name]) for name in named if facts[name] is not None}
    data: bytes = save(tensors, metadata={"format": "pt", **header, "card": json.dumps(facts)})
    return data


_WRITERS: Mapping[Exchange, Callable[[Mapping[int, ndarray], Mapping[str, Any]], bytes]] = {
    "gguf": _gguf,
    "persona": _persona,
    "safetensors": _safetensors,
}


def _card(path: Path, facts: Mapping[str, Any]) -> str:
    """Return the card: Markdown with the facts as a table, and the figures by layer."""
    said = {name: value for name, value in facts.items() if value is not None}
    del said["by_layer"]
    said["layers"] = ", ".join(map(str, facts["layers"]))
    model = " + ".join(filter(None, (facts["model"], facts["adapter"])))
    lines = [f"# {facts['trait']}: {facts['method']} vectors of {model}", ""]
    lines += [f"`{path.name}`{_WRITTEN}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in said.items()]
    lines += ["", "| layer | norm | midpoint | spread | held-out AUROC |"]
    lines += ["|---:|---:|---:|---:|---:|"]
    for layer, at in facts["by_layer"].items():
        figures = [_number(at[name]) for name in ("norm", "midpoint", "spread")]
        lines.append(f"| {layer} | {' | '.join(figures)} | {_auroc(at['held_out'])} |")
    meaning = (
        "`(vector · activation - midpoint) / spread` is 0 midway between the two sides that the "
        "vector was fitted to, and 1 a standard deviation of a side towards the trait."
    )
    return "\n".join([*lines, "", meaning, ""])


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float | int) else "-"


def _auroc(held_out: Any) -> str:
    """Return the AUROC on unseen questions with its interval, else on unseen instructions."""
    for split in ("question", "instruction"):
        figure = ((held_out or {}).get(split) or {}).get("auroc")
        if figure and figure["value"] is not None:
            return f"{figure['value']:.2f} ({figure['low']:.2f} to {figure['high']:.2f}), {split}s"
    return "-"
