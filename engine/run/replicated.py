"""The models of a run in several replicas, each an actor of Ray's: how many, where, loaded how."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..generation import on_gpu
from ..models import Placement, adapter_here, cores, emptiest_first, read_gpus
from ..replicas import Cluster, Hosted, Needs, ReplicaPool, ReplicatedCapturer, Seat
from ..settings import Execution
from .capturing import doubt_of
from .log import last_error
from .models import LocalModels, ModelsWanted, check_model, place
from .watchdog import tie_children

AUTO = 0


def is_replicated(execution: Execution) -> bool:
    """Return whether a run's models go to replicas; a single one stays in the run's process."""
    if execution.ray_address is not None or execution.replicas > 1:
        return True
    return execution.replicas == AUTO and _here(execution.tensor_parallel_size) > 1


def _here(workers: int) -> int:
    """Return how many replicas this machine is best used with: one for each group of GPUs."""
    return len(read_gpus()) // workers if on_gpu() else 1


@dataclass(frozen=True, slots=True)
class OpenReplica:
    """Loads a replica's models in its actor; travels there by value."""

    wanted: ModelsWanted
    share_cores: bool
    """Whether the replicas are on one machine without GPUs, whose cores they divide."""

    @asynccontextmanager
    async def __call__(self, seat: Seat) -> AsyncIterator[Hosted]:
        """Yield the models; take them down at the end. Raise a TraitmillError."""
        tie_children()
        if self.share_cores:
            os.sched_setaffinity(0, own_cores(sorted(os.sched_getaffinity(0)), seat))
        hosted = Hosted()
        wanted = self.wanted
        if wanted.ref.adapter is not None:  # its folder is the one of the machine that sent it
            adapter = await asyncio.to_thread(adapter_here, wanted.ref.adapter)
            wanted = replace(wanted, ref=replace(wanted.ref, adapter=adapter))
        if not seat.generates:
            wanted = ModelsWanted(
                ref=wanted.ref,
                settings=wanted.settings,
                engine=False,
                captures=wanted.captures,
                longest=wanted.longest,
            )
        models = LocalModels(
            wanted,
            notice=hosted.notices.append,
            # Ray has sent what this process says into a file of its own.
            last_error=lambda: last_error(Path("/proc/self/fd/2").resolve()),
            share=seat.of if self.share_cores else 1,
        )
        try:
            await models.prepare()
            await models.fetch()
            await models.load()
            hosted.generator, hosted.capturer = models.generator, models.capturer
            yield hosted
        finally:
            await models.close()


def own_cores(cores: list[int], seat: Seat) -> list[int]:
    """Return the cores of one of several replicas: equal runs of them, one at least."""
    each = max(1, len(cores) // seat.of)
    start = seat.index * each % len(cores)
    return cores[start : start + each]


class ReplicatedModels:
    """A run's models in replicas on Ray, here or on a cluster."""

    def __init__(self, wanted: ModelsWanted, notice: Callable[[str], None]) -> None:
        self.wanted, self._notice = wanted, notice
        self._execution = wanted.settings.execution
        self._cluster = Cluster(self._execution.ray_address)
        self._pool: ReplicaPool | None = None
        self._connected = self._doubted = False
        self._needs = Needs()
        self.replicas = 0
        self.capturer: ReplicatedCapturer | None = None
        self.gpu = False
        self.placement: Placement | None = None
        """Of each replica on this machine; None: those of a cluster decide on their own."""

    @property
    def generator(self) -> ReplicaPool | None:
        """All engines as one; None without one."""
        return self._pool if self.wanted.engine else None

    async def prepare(self) -> None:
        """Start or join Ray, and see that it has room; find out what cannot work.

        Raise UsageError, AccessError or ResourceError.
        """
        workers = self._execution.tensor_parallel_size
        local = self._execution.ray_address is None
        if local:
            self.gpu = await asyncio.to_thread(on_gpu)
            await asyncio.to_thread(check_model, self.wanted, gpu=self.gpu)
            self.replicas = self._execution.replicas or await asyncio.to_thread(_here, workers)
        await self._cluster.connect(self.replicas, cores())
        self._connected = True
        if not local:
            self.gpu = await self._cluster.has_gpus()
            await asyncio.to_thread(check_model, self.wanted, gpu=self.gpu)
        self._needs = Needs(gpus=workers if self.gpu else 0, cpus=1.0 if self.gpu else workers)
        room = await self._cluster.room(self._needs)
        if not self._execution.replicas and not local:
            # Without GPUs a second engine on a node gains nothing.
            self.replicas = room if self.gpu else min(room, await self._cluster.nodes())
        if not 0 < self.replicas <= room:
            what = "GPU" if self.gpu else "CPU core"
            raise UsageError(
                f"`replicas` {self.replicas or 'auto'}: Ray's nodes hold {room} of {workers} "
                f"{what}{'s' * (workers > 1)} each; `ray status` shows them"
            )
        if local:
            self.placement = await asyncio.to_thread(self._place, workers)

    def _place(self, workers: int) -> Placement:
        """Return the placement of the first replica, which the others' are like."""
        cards = emptiest_first(read_gpus())[:workers] if self.gpu else None
        return place(self.wanted, gpu=self.gpu, cards=cards)

    async def fetch(self) -> None:
        """Do nothing: each replica fetches what its machine lacks."""

    async def load(self) -> None:
        """Load the models of all replicas. Raise a TraitmillError, named after its replica.

        Under `auto`, replicas that do not start are named and left out.
        """
        share_cores = not self.gpu and self._execution.ray_address is None
        plural = "" if self.replicas == 1 else "s"
        where = "here" if self._execution.ray_address is None else "on the Ray cluster"
        self._notice(f"{self.replicas} replica{plural} {where}")
        self._pool = ReplicaPool(
            self._cluster,
            OpenReplica(self.wanted, share_cores),
            replicas=self.replicas,
            needs=self._needs,
            all_needed=self._execution.replicas != AUTO,
            notice=self._notice,
        )
        await self._pool.start()
        if self.wanted.captures:
            self.capturer = ReplicatedCapturer(self._pool, self._checked)

    def _checked(self, seen: dict[str, Any]) -> None:
        doubts = doubt_of(seen)
        if doubts and not self._doubted:
            self._doubted = True
            self._notice(doubts)

    async def close(self) -> None:
        """Take the replicas down, and Ray where it was started here."""
        if self._pool is not None:
            await self._pool.close()
        if self._connected:
            self._connected = False
            await self._cluster.close()
