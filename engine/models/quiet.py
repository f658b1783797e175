"""Libraries that say nothing while they load: what happens is said once, by us."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep transformers' reports, and every library's progress bars, off the screen."""
    from tqdm import std  # type: ignore[import-untyped]
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    draw = std.tqdm.display
    std.tqdm.display = lambda *_, **__: None
    try:
        yield
    finally:
        std.tqdm.display = draw
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
