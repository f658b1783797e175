"""Ray, started on this machine or joined: what it has room for, and its end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import AccessError, ResourceError, UsageError
from ..storage import installed_versions

TESTED = "2.60.0"
"""Of Ray's core; its own `ray[llm]` pins another vLLM than this package works with."""
_CALLS = 2
_CALL_BYTES = 64 << 20
"""Of a capture call's pools, at most; two are under way on each replica."""
_STORE_SPARE = 128 << 20
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What one replica takes of a node."""

    gpus: int = 0
    cpus: float = 1.0


def require_ray() -> None:
    """Raise UsageError where Ray is not installed."""
    if "ray" not in installed_versions(("ray",)):
        raise UsageError(
            f"`replicas` other than 1 needs Ray, which is not installed: pip install ray=={TESTED}"
        )


class Cluster:
    """Ray as a run has it. Everything of Ray's own that blocks runs on one thread of this object.

    Ray ties its processes to the thread that started them, so that thread lives as long as they do.
    """

    def __init__(self, address: str | None = None) -> None:
        """`address` is auto (the cluster this machine is part of) or HOST:PORT; None starts Ray
        here, for this run alone."""
        self.address = address
        self._thread = ThreadPoolExecutor(1, "ray")

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that may block, in the thread of Ray's own."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, function, *arguments)

    async def connect(self, replicas: int, cpus: float) -> None:
        """Start Ray here with so many CPUs, or join the cluster. Raise UsageError, AccessError."""
        require_ray()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray adds 15 to the nice value of workers: beside any other program they would starve.
        os.environ.setdefault("RAY_worker_niceness", "0")
        await self.call(self._start if self.address is None else self._join, replicas, cpus)

    def _start(self, replicas: int, cpus: float) -> None:
        import psutil
        import ray

        store = replicas * _CALLS * _CALL_BYTES + _STORE_SPARE
        try:
            ray.init(
                "local",
                num_cpus=max(1, round(cpus)),
                include_dashboard=False,
                object_store_memory=min(store, psutil.virtual_memory().available // 4),
                log_to_driver=False,
                configure_logging=False,
            )
        except Exception as error:
            # Ray raises a bare Exception where a node was not up in time; all else goes on up.
            if type(error) is not Exception:
                raise
            raise ResourceError(
                f"Ray did not start: {str(error).strip()[:200]} The machine may be too busy: run "
                "the same command again"
            ) from error

    def _join(self, _replicas: int, _cpus: float) -> None:
        import ray

        try:
            ray.init(self.address, log_to_driver=False, configure_logging=False)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise AccessError(
                f"`ray_address` {self.address}: {reason[:300]}; `ray status` on a machine of the "
                "cluster shows whether it runs"
            ) from error

    async def _alive(self) -> list[dict[str, float]]:
        """Return what each node that is alive has, by Ray's names."""

        def found() -> list[dict[str, float]]:
            import ray

            return [node["Resources"] for node in ray.nodes() if node["Alive"]]

        return await self.call(found)

    async def room(self, needs: Needs) -> int:
        """Return how many replicas the nodes hold together, were they idle; none spans two."""
        total = 0
        for has in await self._alive():
            fits = has.get("CPU", 0.0) // needs.cpus
            if needs.gpus:
                fits = min(fits, has.get("GPU", 0.0) // needs.gpus)
            total += int(fits)
        return total

    async def nodes(self) -> int:
        """Return how many nodes are alive."""
        return len(await self._alive())

    async def is_over(self) -> bool:
        """Return whether the Ray that was started here has no node any more. Others' may again."""
        return self.address is None and not await self.nodes()

    async def has_gpus(self) -> bool:
        """Return whether any node has GPUs that Ray knows of."""
        return any(has.get("GPU") for has in await self._alive())

    def place(self, needs: Needs, kind: type, *arguments: Any) -> Any:
        """Have Ray place an actor of some kind; return at once."""
        import ray

        remote = ray.remote(kind).options(
            num_cpus=needs.cpus,
            num_gpus=needs.gpus,
            # Started again by us: what it was to do must go to others meanwhile.
            max_restarts=0,
            max_task_retries=0,
        )
        return remote.remote(*arguments)

    async def close(self) -> None:
        """Leave the cluster; end what was started here."""
        import ray

        await self.call(ray.shutdown)
        self._thread.shutdown(wait=False)
