"""What vLLM's processes find in their environment: set before it is imported, and inherited."""

from __future__ import annotations

import multiprocessing
import os

from ..errors import UsageError

_ALWAYS = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # A forked worker would keep our locks and pipes open.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_LOGGING_COLOR": "0",
    # Its warm-up is compiled with nvcc, which a GPU machine may lack; seeded samples never use it.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
_CPU = {
    # Even eager, vLLM compiles one small function of its sampler: seconds, and a C++ compiler.
    "TORCH_COMPILE_DISABLE": "1",
}


def set_environment(*, on_gpu: bool, workers: int = 1) -> None:
    """Set what vLLM needs, where the user has not; `workers` share the model."""
    values = dict(_ALWAYS)
    if not on_gpu:
        values |= _CPU
        if workers > 1:
            # Left to itself, vLLM asks for a memory node a worker, which few machines have.
            values["VLLM_CPU_OMP_THREADS_BIND"] = binding(sorted(os.sched_getaffinity(0)), workers)
    for name, value in values.items():
        os.environ.setdefault(name, value)


def binding(cores: list[int], workers: int) -> str:
    """Return cores dealt out to workers in equal runs, as `0,1|2,3`; at least one core a worker.

    Where a run of cores would be longer than another, the last ones are left to everything else:
    the workers wait for the slowest at every layer.
    """
    each = len(cores) // workers
    shares = [cores[place * each : (place + 1) * each] for place in range(workers)]
    return "|".join(",".join(map(str, share)) for share in shares)


def require_main_guard() -> None:
    """Raise UsageError where a process that was started runs the user's script once more."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UsageError(
            'a script that generates needs `if __name__ == "__main__":` around what it does: the '
            "engine's process reads the script anew, and would run it a second time"
        )
