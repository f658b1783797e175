"""Options that several commands share, spelled as in the guide; only what is typed reaches the
engine."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from traitmill.engine.errors import UsageError
from traitmill.engine.settings import DEFAULTS, POOLS, value_of

_LAYERS = re.compile(r"(-1|[0-9]{1,4})(?:-([0-9]{1,4}))?")
"""An index or a range. No model has 10,000 layers, and a longer number would only fill memory."""
Command = TypeVar("Command", bound=Callable[..., Any])


class AutoInt(click.ParamType[int | None]):
    """A whole number, or `auto` (0 for a count that is left to the engine)."""

    name = "N|auto"

    def __init__(self, auto: int | None = None) -> None:
        self._auto = auto

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        if isinstance(value, int):
            return value
        if value == "auto":
            return self._auto
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a whole number nor auto", param, ctx)
        if number < 1:
            self.fail(f"{value} is below 1; give a whole number from 1, or auto", param, ctx)
        return number


class Layers(click.ParamType[tuple[int, ...] | None]):
    """`5,10-15` as ascending indices, -1 being the embeddings; `all` is None."""

    name = "LAYERS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...] | None:
        if not isinstance(value, str):
            return None if value is None else tuple(value)
        return parse_layers(value)


def parse_layers(text: str) -> tuple[int, ...] | None:
    """Return `5,10-15` as ascending indices, -1 being the embeddings; `all` is None."""
    if text == "all":
        return None
    layers: set[int] = set()
    for part in text.split(","):
        found = _LAYERS.fullmatch(part.strip())
        if not found:
            raise UsageError(
                f"`layers` {text[:60]!r}: write indices and ranges such as 5,10-15, or all"
            )
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise UsageError(
                f"`layers` {text[:60]!r}: {part.strip()} runs backwards; write {last}-{first}"
            )
        layers.update(range(first, last + 1))
    return tuple(sorted(layers))


class GroupedCommand(click.Command):
    """A command whose help shows its common options in groups; `--help_all` shows every one."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        hidden = 0
        for param in self.get_params(ctx):
            group, common = getattr(param, "group", "Other"), getattr(param, "common", True)
            if not common and not ctx.meta.get("help_all"):
                hidden += 1
                continue
            record = param.get_help_record(ctx)
            if record is not None:
                groups.setdefault(group, []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)
        if hidden:
            with formatter.indentation():
                formatter.write_paragraph()
                formatter.write_text(f"{hidden} more options: --help_all")


class Option(click.Option):
    """An option of a group; `common` ones stand in `--help`."""

    def __init__(
        self, *args: Any, group: str = "Other", common: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.group, self.common = group, common


def _show_all(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta["help_all"] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def option(*names: str, **kwargs: Any) -> Callable[[Command], Command]:
    """Return click's decorator for an option of ours."""
    return click.option(*names, cls=Option, **kwargs)


def setting(name: str, help_: str, group: str, **kwargs: Any) -> Callable[[Command], Command]:
    """Return the option of an engine's setting: nothing unless it is typed; help shows the default."""
    default = value_of(DEFAULTS, name)
    if default not in (None, False, 0, ()):
        shown = default
        if isinstance(default, tuple):
            shown = ",".join(default)
        if isinstance(default, float):
            shown = f"{default:g}"
        help_ = f"{help_}  [{shown}]"
    return option(f"--{name}", default=None, help=help_, group=group, **kwargs)


def flag(name: str, help_: str, group: str) -> Callable[[Command], Command]:
    """Return the option of a setting that is on or off: nothing unless it is typed."""
    return option(f"--{name}/--no_{name}", default=None, help=help_, group=group)


selection_options = _options(
    option(
        "--experiment",
        required=True,
        help="Folder under --experiments_dir that holds the traits.",
        group="What",
        common=True,
    ),
    option("--trait", help="One trait.", group="What", common=True),
    option("--traits", help="Several traits, comma-separated, or all.", group="What", common=True),
    option(
        "--experiments_dir",
        type=click.Path(path_type=Path),
        default=Path("experiments"),
        help="Where experiments live.  [experiments]",
        group="What",
    ),
)
help_all = option(
    "--help_all",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_all,
    help="Show every option.",
    group="Other",
    common=True,
)
force_unlock = option(
    "--force_unlock",
    is_flag=True,
    help="Take over a folder locked by a run on another host.",
    group="Machine",
)
counts_options = _options(
    setting("n_examples", "Responses per polarity.", "What", type=int, common=True),
    setting(
        "min_kept",
        "Add rounds of --n_examples until so many pass on each side.",
        "What",
        type=int,
    ),
    setting(
        "max_examples",
        "Most responses per polarity --min_kept may reach.  [10 rounds]",
        "What",
        type=int,
    ),
    option(
        "--new_run",
        is_flag=True,
        help="Move a run with other settings, or a finished one, aside.",
        group="What",
    ),
)
sampling_options = _options(
    option(
        "--gen_model",
        help="Hub name or local folder.  [the folder's own, else by experiment name]",
        group="Sampling",
        common=True,
    ),
    setting("max_new_tokens", "Longest response.", "Sampling", type=int, common=True),
    setting("temperature", "Sampling temperature.", "Sampling", type=float, common=True),
    setting("top_p", "Nucleus sampling.", "Sampling", type=float),
    setting("top_k", "Sample among the k likeliest; 0 is off.", "Sampling", type=int),
    setting("seed", "Changes every sample's noise.", "Sampling", type=int),
    setting("dtype", "Of generation: auto, bfloat16, float16 or float32.", "Sampling"),
)
judge_options = _options(
    setting(
        "judge_model",
        "A model at the endpoint; local: the loaded model; local:MODEL.",
        "Judge",
        common=True,
    ),
    setting(
        "judge_base_url",
        "OpenAI-compatible endpoint.  [the folder's, else $OPENAI_BASE_URL]",
        "Judge",
        common=True,
    ),
    setting(
        "judge_mode",
        "How a score is read.",
        "Judge",
        type=click.Choice(["auto", "expected", "integer"]),
    ),
    setting("judge_rpm", "Requests per minute.", "Judge", type=float),
    setting("judge_tpm", "Tokens per minute; 0 is off.", "Judge", type=float),
    setting("judge_concurrency", "Requests in flight.  [auto]", "Judge", type=AutoInt(0)),
    setting(
        "judge_patience",
        "Longest wait an endpoint may ask for, in seconds.",
        "Judge",
        type=float,
    ),
    setting(
        "max_cost",
        "Stop resumably at so many dollars; 0 is off.",
        "Judge",
        type=float,
        common=True,
    ),
)
threshold_option = setting(
    "threshold", "pos is kept at or above, neg below.", "Judge", type=float, common=True
)
capture_options = _options(
    setting("pool", f"Comma-separated: {', '.join(POOLS)}.", "Capture"),
    setting("layers", "Layers to capture, such as 5,10-15.  [all]", "Capture", type=Layers()),
    flag("include_embeddings", "Prepend the embedding output, as index -1.", "Capture"),
    setting("capture_dtype", "Of the capture pass; pooling is float32.", "Capture"),
    setting("attention", "transformers' attn_implementation.", "Capture"),
    setting("blocks", "Path of the decoder blocks in the model, where it is not found.", "Capture"),
    setting(
        "self_check",
        "Check captured rows against single rows and vLLM.",
        "Capture",
        type=click.Choice(["off", "sample", "all"]),
    ),
)
capture_rows_option = setting(
    "capture", "Whose activations.", "Capture", type=click.Choice(["all", "kept"])
)
machine_options = _options(
    setting(
        "batch_size",
        "Caps sequences in flight and capture rows.  [auto]",
        "Machine",
        type=AutoInt(),
        common=True,
    ),
    setting("tensor_parallel_size", "GPUs one model is split over.", "Machine", type=int),
    setting("capture_device", "cpu, cuda or cuda:N.", "Machine"),
    setting("flush_seconds", "Most work a crash may lose, in seconds.", "Machine", type=float),
    force_unlock,
)


def selected(
    options: dict[str, Any], *, default_all: bool = False
) -> tuple[Path, Sequence[str] | None]:
    """Take the selection out of a command's options: the experiment's folder, traits (None: all)."""
    experiment = options.pop("experiments_dir") / options.pop("experiment")
    trait, traits = options.pop("trait"), options.pop("traits")
    if trait is None and traits is None and default_all:
        return experiment, None
    if (trait is None) == (traits is None):
        raise UsageError("give one of `trait` NAME and `traits` NAME,NAME (or `traits` all)")
    if trait is not None:
        return experiment, [trait]
    if traits == "all":
        return experiment, None
    names = [name.strip() for name in traits.split(",")]
    if "" in names:
        raise UsageError(
            f"`traits` {traits!r} has an empty name; write names with one comma between them, or "
            "all"
        )
    return experiment, names


def typed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that were typed, by name. `--batch_size auto` is one, though it is None."""
    source = click.get_current_context().get_parameter_source
    given = {name: value for name, value in options.items() if value is not None}
    for name in ("batch_size", "layers"):
        found = source(name) if name in options else None
        if found is not None and found.name == "COMMANDLINE":
            given[name] = options[name]
    return given
