"""docs/plans.md: what `traitmill plan` says of ten models on eight set-ups; arithmetic alone.

python -m benchmarks.plans           # writes the page
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, table
from traitmill.engine.errors import ResourceError
from traitmill.engine.generation.sizing import GPU_SEQUENCES
from traitmill.engine.models.machine import GIB
from traitmill.engine.planning import Plan, duration, make_plan, parse_gpus, typical_job
from traitmill.engine.settings import apply

CONFIGS = ROOT / "benchmarks" / "configs"
PAGE = ROOT / "docs" / "plans.md"
SETUPS = ("T4", "L4", "4090", "L40S", "A100-40", "A100-80", "H100", "8xH100")
MODELS = (
    *("llama-3.2-1b", "gemma-2-2b", "llama-3.1-8b", "qwen3-8b", "gemma-2-9b", "qwen3-14b"),
    *("gemma-2-27b", "qwen3-30b-a3b", "qwen3-32b", "llama-3.1-70b"),
)
TRAITS, JOB = 10, {"n_examples": 1000, "judge_rpm": 5000.0}
_HEAD = """# Plans

What `traitmill plan` says of ten models on eight set-ups: {traits} traits of {examples:,} responses a side, 150 new tokens,
judge gpt-5-mini at {rpm:,.0f} requests a minute. The configs are the models' published sizes (`benchmarks/configs/`); no
weights, engine or card was at hand.

```bash
python -m benchmarks.plans
traitmill plan --gpus 8xH100 --gen_model google/gemma-2-27b-it --n_traits 10 --n_examples 1000
```

**Untested on GPU.** Bytes follow from configs and vLLM's source. Times follow from the cards' data sheets and from shares
that stand, each with its source or as an assumption, in `engine/planning/roofline.py` and `estimate.py`; they are for
comparing set-ups, and may be off by a factor of two. Split: GPUs that one model is split over. Replicas: engines side by
side, each a command of its own with its `CUDA_VISIBLE_DEVICES` and its traits unless the run starts them. A refusal is the
one that a run would end with before anything is loaded."""


def config(name: str) -> dict[str, Any]:
    """Return a model's config.json."""
    found: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def plan(model: str, setup: str) -> Plan:
    """Return the plan of a model on a set-up. Raise ResourceError where none fits."""
    settings = apply(JOB)
    job = typical_job(TRAITS, settings)
    gpus = parse_gpus(setup)
    return make_plan(model, config(model), settings, gpus, job, sequences=GPU_SEQUENCES)


def page() -> str:
    """Return docs/plans.md."""
    parts = [_HEAD.format(traits=TRAITS, examples=JOB["n_examples"], rpm=JOB["judge_rpm"])]
    header = ["model", "split", "replicas", "capture", "weights, GiB", "cache, GiB"]
    header += ["used a GPU, GiB", "sequences", "generation", "capture", "all", "waits for"]
    for setup in SETUPS:
        parts += [f"## {setup}", table(header, _rows(setup))]
    return "\n\n".join(parts) + "\n"


def _rows(setup: str) -> Iterator[list[str]]:
    for model in MODELS:
        try:
            found = plan(model, setup)
        except ResourceError as error:
            remedy = error.message.rpartition("; ")[2]
            yield [model, f"does not fit: {remedy}", *[""] * 10]
            continue
        layout, estimate = found.layout, found.estimate
        assert estimate is not None
        yield [
            model,
            str(layout.tensor_parallel),
            str(layout.replicas),
            layout.placement.mode,
            f"{layout.weights / GIB:.1f}",
            f"{layout.cache / GIB:.1f}",
            f"{layout.taken / GIB:.1f}",
            str(layout.sequences),
            duration(estimate.generation),
            duration(estimate.capture),
            duration(estimate.total),
            estimate.bottleneck,
        ]


def main() -> None:
    Path(PAGE).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
