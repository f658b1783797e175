"""Traits fitted side by side, each in a process of its own.

Threads would wait for each other: fits of few rows are many short calls, and each needs the
interpreter. A worker is a program of its own, not a fork of this one, and reads no script of the
user's.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Self

from ..errors import ResourceError, TraitmillError
from ..models import free_host_memory
from . import rows

MANY = 4
"""Traits a process, at least: to start one takes as long as some traits."""
HELD = 1 << 30
"""Bytes of memory that each process needs to be free: about twice what was measured, see
docs/vectors.md."""
MOST = 16
"""Processes: each imports torch, and the disk takes the files of all."""
PATIENCE_S = 10.0
"""For a worker that is asked to end and writes a trait's files."""
_PROGRAM = "import sys; sys.path[:] = {path!r}; from {module} import serve; serve({end})"

Tell = Callable[..., object]
"""Told how far a task is."""
Task = tuple[Any, ...]


def count_for(tasks: int) -> int:
    """Return how many processes so many traits are worth; 1: this one."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min(cores, MOST, tasks // MANY, free_host_memory() // HELD))


def map_side_by_side(
    function: Callable[..., Any], tasks: Mapping[str, Task], count: int, tell: Tell
) -> Iterator[tuple[str, Any]]:
    """Yield each task's name with `function(*task, tell)`, or with its TraitmillError, as it ends.

    `tell` is called here, with the name before what the function tells. Another error of a task is
    raised, and so is ResourceError where a worker died; what they are at is ended then.
    """
    waiting = iter(tasks.items())
    busy: dict[Connection, str] = {}

    def give(end: Connection) -> None:
        for name, task in waiting:
            busy[end] = name
            with suppress(BrokenPipeError, ConnectionResetError):  # the next look finds its end
                end.send((function, task))
            return

    with ExitStack() as workers:
        for _ in range(count):
            give(workers.enter_context(_Worker()).end)
        while busy:
            for end in wait(list(busy)):
                assert isinstance(end, Connection)  # noqa: S101 - as it was given
                name = busy[end]
                try:
                    kind, found = end.recv()
                except (EOFError, ConnectionResetError):
                    raise ResourceError(
                        f"the process that fitted {name} died (out of memory?); what was fitted "
                        "stands: run the same command again, with fewer traits if it dies again"
                    ) from None
                if kind == "told":
                    tell(name, *found)
                    continue
                if isinstance(found, BaseException) and not isinstance(found, TraitmillError):
                    raise found
                del busy[end]
                give(end)
                yield name, found


class _Worker:
    """A process that answers at `end`; it does not outlive the block, nor its parent."""

    def __enter__(self) -> Self:
        self.end, theirs = Pipe()
        with theirs:
            program = _PROGRAM.format(path=sys.path, module=__name__, end=theirs.fileno())
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-c", program],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches this process, which ends the worker
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.end.close()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(descriptor: int) -> None:
    """Be a worker: do what comes in until the other end is closed, which interrupts a task."""
    rows.side_by_side = 1  # layers; the other cores have workers of their own
    end = Connection(descriptor)
    tasks: queue.SimpleQueue[tuple[Callable[..., Any], Task] | None] = queue.SimpleQueue()

    def receive() -> None:
        with suppress(EOFError, ConnectionResetError):
            while True:
                tasks.put(end.recv())
        tasks.put(None)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        # An interrupt that falls into a destructor is lost.
        time.sleep(PATIENCE_S)
        os._exit(1)

    # Whose parent has gone has nobody to tell.
    with suppress(KeyboardInterrupt, BrokenPipeError, ConnectionResetError):
        threading.Thread(target=receive, daemon=True).start()
        while task := tasks.get():
            end.send(("found", _done(*task, end)))


def _done(function: Callable[..., Any], task: Task, end: Connection) -> object:
    """Return what a task came to, an error included."""
    try:
        return function(*task, lambda *what: end.send(("told", what)))
    except Exception as error:  # noqa: BLE001 - the parent raises what it does not expect
        error.add_note(traceback.format_exc())
        return error
