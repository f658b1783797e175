"""`traitmill plan`: what a run would take of cards, time and money; nothing is loaded or paid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from traitmill.engine.errors import ExitCode, UsageError
from traitmill.engine.settings import DTYPES, THINKING

from . import options
from .render import say
from .session import prepare_environment
from .values import AutoInt

if TYPE_CHECKING:
    from traitmill.engine.models import Gpu
    from traitmill.engine.planning import Job
    from traitmill.engine.settings import RunSettings

PARAMS = (
    options.Option(
        "gpus", "Cards to plan for, as 8xH100.  [this machine's]", "Machine", common=True
    ),
    options.Option(
        "machines",
        "Machines with these cards each.",
        "Machine",
        common=True,
        type=click.IntRange(1, 10_000),
        default=1,
        show_default=True,
    ),
    options.Option(
        "experiment",
        "Plan for its traits, and for the model its name implies.",
        "What",
        common=True,
    ),
    options.Option("trait", "One trait of it.", "What", common=True),
    options.Option("traits", "Several traits, comma-separated, or all.", "What", common=True),
    options.EXPERIMENTS_DIR,
    options.Option(
        "n_traits",
        "Without --experiment: so many traits like those of the library.",
        "What",
        common=True,
        type=click.IntRange(1, 100_000),
        default=1,
        show_default=True,
    ),
    options.setting("n_examples", "Responses per polarity.", "What", common=True),
    options.GEN_MODEL,
    options.ADAPTER,
    options.setting("max_new_tokens", "Longest response.", "Sampling", common=True),
    options.setting(
        "thinking", "Whether a model that can think does.", "Sampling", choices=THINKING
    ),
    options.setting("max_thinking_tokens", "Longest thought.", "Sampling"),
    options.setting("dtype", "Of generation.", "Sampling", choices=DTYPES),
    options.setting("judge_model", "A model at an endpoint, or local.", "Judge", common=True),
    options.setting("judge_rpm", "Requests per minute.", "Judge", common=True),
    options.setting("judge_tpm", "Tokens per minute; 0 is off.", "Judge"),
    options.Option(
        "extract_activations",
        "Capture activations too.  [True]",
        "Capture",
        common=True,
        type=bool,
    ),
    options.CAPTURE_ROWS,
    options.setting("capture_dtype", "Of the capture pass.", "Capture", choices=DTYPES),
    options.Option(
        "tensor_parallel_size",
        "GPUs one model is split over.  [what ends first]",
        "Machine",
        common=True,
        type=click.IntRange(1, 64),
    ),
    options.setting("capture_device", "cpu, cuda or cuda:N.", "Machine"),
    options.setting("batch_size", "Caps sequences in flight.  [auto]", "Machine", kind=AutoInt()),
)
_OF_A_RUN = (
    *("n_examples", "max_new_tokens", "thinking", "max_thinking_tokens", "dtype"),
    *("judge_model", "judge_rpm", "judge_tpm", "capture"),
    *("capture_dtype", "capture_device", "batch_size", "tensor_parallel_size"),
)


@click.command(cls=options.GroupedCommand, params=PARAMS)
def command(**given: Any) -> int:
    """Say which cards would do what, how much memory, time and money a run would take, and what it
    would wait for: from the model's config and the cards' data sheets, without weights or engine.
    """
    from traitmill.engine.generation import GPU_SEQUENCES
    from traitmill.engine.models import (
        check_split,
        check_support,
        count_weights,
        quantised,
    )
    from traitmill.engine.planning import make_plan
    from traitmill.engine.run import model_to_be, settings_of
    from traitmill.engine.storage import check_name

    prepare_environment()
    wanted = {name: given[name] for name in _OF_A_RUN if given.get(name) is not None}
    if given["extract_activations"] is False:
        wanted["capture"] = "none"
    name, folder = given["experiment"], None
    if name is not None:
        folder = given["experiments_dir"] / check_name(name, "experiment")
    settings, _ = settings_of(folder, given["gen_model"], wanted)
    gpus = _gpus(given["gpus"])
    job = _job(given, settings)
    ref = model_to_be(folder, given["gen_model"], given["adapter"])
    check_support(ref, captures=job.captures, generates=False)
    stored = count_weights(ref)
    if not (stored and stored.n_bytes) and quantised(ref.config):
        raise UsageError(
            f"model {ref.name} is quantised, and how large it is stands in its weights, which are "
            "not at hand: fetch it first, or plan for the model it was made from"
        )
    split = given["tensor_parallel_size"]
    if split:
        check_split(ref, split)
    plan = make_plan(
        ref.name,
        ref.config,
        settings,
        gpus,
        job,
        sequences=settings.execution.batch_size or GPU_SEQUENCES,
        machines=given["machines"],
        stored=stored,
        **({"splits": (split,)} if split else {}),
    )
    for line in plan.lines():
        say(line)
    return ExitCode.OK


def _gpus(named: str | None) -> list[Gpu]:
    from traitmill.engine.models import emptiest_first, read_gpus
    from traitmill.engine.planning import parse_gpus

    if named is not None:
        return parse_gpus(named)
    here = emptiest_first(read_gpus())
    if not here:
        raise UsageError("no NVIDIA GPU answers here: name the cards to plan for, as `gpus` 8xH100")
    return here


def _job(given: Mapping[str, Any], settings: RunSettings) -> Job:
    from traitmill.engine.planning import job_of, typical_job
    from traitmill.engine.storage import select_traits
    from traitmill.engine.traits import load_traits

    if given["experiment"] is None:
        if given["trait"] or given["traits"]:
            raise UsageError("`traits` are those of an `experiment`: name it, or give `n_traits`")
        return typical_job(given["n_traits"], settings)
    names = options.named_traits(given["trait"], given["traits"], all_traits=True)
    folders = select_traits(given["experiments_dir"], given["experiment"], names)
    return job_of(load_traits({name: each.path for name, each in folders.items()}), settings)
