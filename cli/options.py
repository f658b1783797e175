"""Options that several commands share, spelled as in the guide; what is typed goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from traitmill.engine.errors import UsageError
from traitmill.engine.settings import (
    DEFAULTS,
    DTYPES,
    POOLS,
    PROMPT_FORMATS,
    THINKING,
    value_of,
)

from .values import AutoInt, Layers, defaults_of
from .waiting import greet


class Option(click.Option):
    """An option in a group of the help; `common` ones stand in `--help`, all in `--help_all`."""

    def __init__(
        self, name: str, help_: str, group: str, *, common: bool = False, **how: Any
    ) -> None:
        super().__init__([f"--{name}"], help=help_, **how)
        self.group, self.common = group, common


def setting(
    name: str,
    help_: str,
    group: str,
    *,
    common: bool = False,
    choices: Any = None,
    kind: Any = None,
) -> Option:
    """Return the option of one of the engine's settings. Help shows the engine's default."""
    default = value_of(DEFAULTS, name)
    if isinstance(default, bool):
        return Option(f"{name}/--no_{name}", help_, group, common=common, default=None)
    if default and "[" not in help_:
        shown = f"{default:g}" if isinstance(default, float) else default
        help_ = f"{help_}  [{shown}]"
    if choices:
        kind = click.Choice(choices)
    elif kind is None and default is not None:
        kind = type(default)
    return Option(name, help_, group, common=common, type=kind)


class GroupedCommand(click.Command):
    """A command whose help shows its common options in groups; `--help_all` shows every one.

    `greets`: it takes long to begin, and says at once what was asked.
    """

    def __init__(
        self, name: str | None, *, params: Iterable[Option], greets: bool = False, **how: Any
    ) -> None:
        super().__init__(name, params=[*params, _HELP_ALL], **how)
        self._greets = greets

    def invoke(self, ctx: click.Context) -> Any:
        if self._greets:
            greet(ctx.info_name or "", ctx.params)
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record and (getattr(param, "common", True) or ctx.meta.get("help_all")):
                groups.setdefault(getattr(param, "group", "Help"), []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)


def _show_all(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.meta["help_all"] = True
        click.echo(ctx.get_help())
        ctx.exit()


_HELP_ALL = Option(
    "help_all",
    "Show every option and exit; --help shows the most used.",
    "Help",
    common=True,
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_all,
)


EXPERIMENTS_DIR = Option(
    "experiments_dir",
    "Where experiments live.",
    "What",
    type=click.Path(path_type=Path),
    default=Path("experiments"),
    show_default=True,
)
SELECTION = (
    Option(
        "experiment",
        "Folder under --experiments_dir that holds the traits.",
        "What",
        common=True,
        required=True,
    ),
    Option("trait", "One trait.", "What", common=True),
    Option("traits", "Several traits, comma-separated, or all.", "What", common=True),
    EXPERIMENTS_DIR,
)
RESET = Option(
    "reset",
    "Settings to have their defaults again, not the folder's; comma-separated names of options.",
    "What",
    metavar="NAME,...",
)
COUNTS = (
    setting("n_examples", "Responses per polarity.", "What", common=True),
    setting("min_kept", "Add rounds of --n_examples until so many pass on each side.", "What"),
    setting("max_examples", "Most responses --min_kept may reach a side.  [10 rounds]", "What"),
    RESET,
    Option(
        "new_run", "Move a run with other settings, or a finished one, aside.", "What", is_flag=True
    ),
)
GEN_MODEL = Option(
    "gen_model",
    "Hub name or local folder.  [the folder's own, else by experiment name]",
    "Sampling",
    common=True,
)
ADAPTER = Option(
    "adapter", "LoRA adapter over the model: a folder or hub name.  [the folder's own]", "Sampling"
)
PROMPT = (
    setting(
        "prompt_format",
        "user: instruction and question in one turn; system: the instruction as system turn; raw: "
        "no chat template.",
        "Sampling",
        choices=PROMPT_FORMATS,
    ),
    setting("system_prompt", "A fixed system turn; may be empty.  [the template's]", "Sampling"),
    setting("prefill", "What every response begins with; no part of it.", "Sampling"),
    setting(
        "thinking",
        "auto: off where the template can, else a span of its own; on: always that; off: or "
        "refused; template: as it has it.",
        "Sampling",
        choices=THINKING,
    ),
    setting("max_thinking_tokens", "Longest thought before a response.", "Sampling"),
    setting(
        "chat_template_kwargs",
        'Variables of the chat template, as {"enable_thinking": false}.',
        "Sampling",
    ),
)
SAMPLING = (
    GEN_MODEL,
    ADAPTER,
    setting("max_new_tokens", "Longest response.", "Sampling", common=True),
    setting("temperature", "Sampling temperature.", "Sampling"),
    setting("top_p", "Nucleus sampling.", "Sampling"),
    setting("top_k", "Sample among the k likeliest; 0 is off.", "Sampling"),
    setting("seed", "Changes every sample's noise.", "Sampling"),
    *PROMPT,
    setting("dtype", "Of generation.", "Sampling", choices=DTYPES),
)
JUDGE = (
    setting(
        "judge_model",
        "A model at the endpoint; local: the loaded model; local:MODEL.",
        "Judge",
        common=True,
    ),
    setting(
        "judge_base_url",
        "OpenAI-compatible endpoint.  [the folder's, else $OPENAI_BASE_URL, else OpenAI]",
        "Judge",
    ),
    setting("judge_mode", "How a score is read.", "Judge", choices=["auto", "expected", "integer"]),
    setting(
        "judge_extra",
        "JSON object that every request to the judge holds too.  [none, or the folder's]",
        "Judge",
    ),
    setting("judge_rpm", "Requests per minute.", "Judge"),
    setting("judge_tpm", "Tokens per minute; 0 is off.", "Judge"),
    setting("judge_concurrency", "Requests in flight.  [auto]", "Judge", kind=AutoInt(0)),
    setting("judge_patience", "Longest wait an endpoint may ask for, in seconds.", "Judge"),
    setting("judge_retry", "Ask once more for verdicts that were given up.", "Judge"),
    setting("max_cost", "Stop resumably at so many dollars; 0 is off.", "Judge"),
)
FILTERS = (
    setting("threshold", "pos is kept at or above, neg below.", "Filters", common=True),
    setting("neg_threshold", "neg is kept below.  [that of --threshold]", "Filters", kind=float),
    setting("paired", "Keep a sample only where its twin of the other side passes.", "Filters"),
)
CAPTURE_ROWS = setting("capture", "Whose activations.", "Capture", choices=["all", "kept"])
CAPTURE = (
    setting("pool", f"Comma-separated: {', '.join(POOLS)}.  [{POOLS[0]}]", "Capture", kind=str),
    setting("layers", "Layers to capture, such as 5,10-15.  [all]", "Capture", kind=Layers()),
    setting("include_embeddings", "Prepend the embedding output, as index -1.", "Capture"),
    setting("capture_dtype", "Of the capture pass; pooling is float32.", "Capture", choices=DTYPES),
    setting("attention", "transformers' attn_implementation.", "Capture"),
    setting("blocks", "Path of the decoder blocks in the model, where not found.", "Capture"),
    setting(
        "self_check",
        "Check captured rows against single rows and vLLM.",
        "Capture",
        choices=["off", "sample", "all"],
    ),
)
FORCE_UNLOCK = Option(
    "force_unlock", "Take over a folder locked by a run on another host.", "Machine", is_flag=True
)
MACHINE = (
    setting(
        "batch_size",
        "Caps sequences in flight and capture rows.  [auto]",
        "Machine",
        common=True,
        kind=AutoInt(),
    ),
    setting("tensor_parallel_size", "GPUs, or CPU workers, one model is split over.", "Machine"),
    setting(
        "replicas",
        "Engines, each with its capture, that share the work; above 1 on Ray.  [1]",
        "Machine",
        kind=AutoInt(0),
    ),
    setting("ray_address", "auto or HOST:PORT of a Ray cluster.  [Ray is started here]", "Machine"),
    setting("capture_device", "cpu, cuda or cuda:N.", "Machine"),
    FORCE_UNLOCK,
)


# --- from options to arguments of the engine ---


def arguments(options: Mapping[str, Any], *, all_traits: bool = False) -> dict[str, Any]:
    """Return the arguments of an engine's function: experiment, traits, and what was typed.

    `all_traits`: without --trait and --traits, all traits are meant. Raise UsageError.
    """
    from traitmill.engine.storage import check_name

    source = click.get_current_context().get_parameter_source
    typed = {name for name in options if source(name) is ParameterSource.COMMANDLINE}
    chosen = {"experiment", "experiments_dir", "trait", "traits"}
    given = {name: options[name] for name in typed - chosen}
    given = {**defaults_of(given.pop("reset", None), options), **given}
    if "gen_model" in given:
        given["model"] = given.pop("gen_model")
    name = check_name(options["experiment"], "experiment")  # never a path out of the folder
    given["experiment"] = options["experiments_dir"] / name
    given["traits"] = named_traits(options["trait"], options["traits"], all_traits=all_traits)
    return given


def named_traits(trait: str | None, traits: str | None, *, all_traits: bool) -> list[str] | None:
    """Return the names of the traits that are meant, None for all."""
    if trait is None and traits is None and all_traits:
        return None
    if (trait is None) == (traits is None):
        raise UsageError("give one of --trait NAME and --traits NAME,NAME (or --traits all)")
    if traits == "all":
        return None
    names = [name.strip() for name in (traits or trait or "").split(",")]
    if trait is not None:
        names = [trait]
    if traits is not None and "" in names:
        raise UsageError(
            f"--traits {traits!r} has an empty name; write names with one comma between them, or "
            "all"
        )
    return names
