"""Whether vLLM has code for a model's class: asked before anything is loaded or paid for."""

from __future__ import annotations

from ..errors import UsageError
from ..models import ModelRef, Shape


def check_architecture(ref: ModelRef) -> None:
    """Raise UsageError for a class that vLLM has given up, or a mixture of experts that is not its.

    What it has no code for it runs through transformers' own, which ends mixtures of experts in
    their first step.
    """
    from vllm.model_executor.models import registry

    names = ref.config.get("architectures") or []
    given_up = registry._PREVIOUSLY_SUPPORTED_MODELS  # noqa: SLF001 - told by an error alone else
    for name in names:
        if name in given_up:
            raise UsageError(
                f"model {ref.name} is a {name}, which vLLM computed until version "
                f"{given_up[name]} and does no more; take another model"
            )
    known = set(registry.ModelRegistry.get_supported_archs())
    if names and not known.intersection(names) and Shape.from_config(ref.config).experts:
        raise UsageError(
            f"model {ref.name} is a {names[0]}, a mixture of experts that vLLM has no code of its "
            "own for; take another model"
        )
