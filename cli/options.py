"""Options that several commands share, spelled as in the guide."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from traitmill.engine.errors import UsageError
from traitmill.engine.settings import DEFAULT_JUDGE, POOLS

_LAYERS = re.compile(r"(-1|[0-9]{1,4})(?:-([0-9]{1,4}))?")
"""An index or a range. No model has 10,000 layers, and a longer number would only fill memory."""
Command = TypeVar("Command", bound=Callable[..., Any])


class AutoInt(click.ParamType[int | None]):
    """A whole number, or `auto` (None)."""

    name = "N|auto"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        if value is None or value == "auto" or isinstance(value, int):
            return None if value == "auto" else value
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a whole number nor auto", param, ctx)


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """`5,10-15` as ascending indices, -1 being the embeddings; `all` or nothing is None. Raises UsageError."""
    if text is None or text == "all":
        return None
    layers: set[int] = set()
    for part in text.split(","):
        found = _LAYERS.fullmatch(part.strip())
        if not found:
            raise UsageError(
                f"--layers {text[:60]!r}: write indices and ranges such as 5,10-15, or all"
            )
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise UsageError(
                f"--layers {text[:60]!r}: {part.strip()} runs backwards; write {last}-{first}"
            )
        layers.update(range(first, last + 1))
    return tuple(sorted(layers))


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


selection_options = _options(
    click.option(
        "--experiment", required=True, help="Folder under --experiments_dir that holds the traits."
    ),
    click.option("--trait", help="One trait."),
    click.option("--traits", help="Several traits, comma-separated, or all."),
    click.option(
        "--experiments_dir",
        type=click.Path(path_type=Path),
        default=Path("experiments"),
        show_default=True,
        help="Where experiments live.",
    ),
)

model_options = _options(
    click.option(
        "--gen_model",
        help="Hub name or local folder. Default: the folder's own, else by experiment name.",
    ),
    click.option(
        "--max_new_tokens", type=int, default=150, show_default=True, help="Longest response."
    ),
    click.option(
        "--temperature", type=float, default=0.7, show_default=True, help="Sampling temperature."
    ),
    click.option("--top_p", type=float, default=0.9, show_default=True, help="Nucleus sampling."),
    click.option(
        "--top_k",
        type=int,
        default=0,
        show_default=True,
        help="Sample among the k likeliest; 0 is off.",
    ),
    click.option(
        "--seed", type=int, default=0, show_default=True, help="Changes every sample's noise."
    ),
    click.option(
        "--dtype",
        default="auto",
        show_default=True,
        help="Of generation: auto, bfloat16, float16, float32.",
    ),
)

plan_options = _options(
    click.option(
        "--n_examples", type=int, default=100, show_default=True, help="Responses per polarity."
    ),
    click.option(
        "--min_kept",
        type=int,
        default=0,
        help="Add rounds of --n_examples until so many pass on each side.",
    ),
    click.option(
        "--max_examples",
        type=int,
        default=0,
        help="Most responses per polarity --min_kept may reach.  [10 rounds]",
    ),
    click.option(
        "--new_run", is_flag=True, help="Move a run with other settings, or a finished one, aside."
    ),
)

judge_options = _options(
    click.option(
        "--judge_model",
        default=DEFAULT_JUDGE,
        show_default=True,
        help="A model at the endpoint; local: the loaded model; local:MODEL.",
    ),
    click.option("--judge_base_url", help="OpenAI-compatible endpoint.  [$OPENAI_BASE_URL]"),
    click.option(
        "--judge_mode",
        type=click.Choice(["auto", "expected", "integer"]),
        default="auto",
        show_default=True,
        help="How a score is read.",
    ),
    click.option(
        "--judge_rpm", type=float, default=500, show_default=True, help="Requests per minute."
    ),
    click.option("--judge_tpm", type=float, default=0, help="Tokens per minute; 0 is off."),
    click.option(
        "--judge_concurrency",
        type=AutoInt(),
        default="auto",
        show_default=True,
        help="Requests in flight.",
    ),
    click.option(
        "--judge_patience",
        type=float,
        default=600,
        show_default=True,
        help="Longest wait an endpoint may ask for, in seconds.",
    ),
    click.option(
        "--max_cost", type=float, default=0, help="Stop resumably at so many dollars; 0 is off."
    ),
)

view_options = _options(
    click.option(
        "--threshold",
        type=float,
        default=50,
        show_default=True,
        help="pos is kept at or above, neg below.",
    ),
    click.option(
        "--csv_safe", is_flag=True, help="Quote cells that a spreadsheet would run as formulas."
    ),
)

capture_options = _options(
    click.option(
        "--pool", default=POOLS[0], show_default=True, help=f"Comma-separated: {', '.join(POOLS)}."
    ),
    click.option("--layers", help="Layers to capture, such as 5,10-15.  [all]"),
    click.option(
        "--include_embeddings", is_flag=True, help="Prepend the embedding output, as index -1."
    ),
    click.option(
        "--capture_dtype",
        default="auto",
        show_default=True,
        help="Of the capture pass; pooling is float32.",
    ),
    click.option(
        "--attention", default="auto", show_default=True, help="transformers' attn_implementation."
    ),
    click.option(
        "--blocks", help="Path of the decoder blocks in the model, where it is not found."
    ),
)

CAPTURE_OPTIONS = {
    "pool": "pools",
    "layers": "layers",
    "include_embeddings": "include_embeddings",
    "capture_dtype": "dtype",
    "attention": "attention",
}
"""Options by the field of settings.Capture they set."""

speed_options = _options(
    click.option(
        "--batch_size",
        type=AutoInt(),
        default="auto",
        show_default=True,
        help="Caps sequences in flight and capture rows.",
    ),
    click.option(
        "--tensor_parallel_size",
        type=int,
        default=1,
        show_default=True,
        help="GPUs one model is split over.",
    ),
    click.option(
        "--capture_device", default="auto", show_default=True, help="cpu, cuda or cuda:N."
    ),
    click.option(
        "--self_check",
        type=click.Choice(["off", "sample", "all"]),
        default="sample",
        show_default=True,
        help="Check captured rows against single rows and vLLM.",
    ),
    click.option(
        "--flush_seconds",
        type=float,
        default=5,
        show_default=True,
        help="Most work a crash may lose, in seconds.",
    ),
    click.option(
        "--force_unlock", is_flag=True, help="Take over a folder locked by a run on another host."
    ),
)
