"""Where a model is captured that this process loads itself, without an engine beside it."""

from __future__ import annotations

from ..settings import RunSettings
from .gpus import number_here
from .hub import ModelRef
from .machine import choose_device
from .placement import choose_placement
from .stored import count_weights


def device_here(ref: ModelRef, settings: RunSettings) -> str:
    """Return the device to capture on: under `auto` the emptiest card, where one holds the model.

    This process may have seen the cards already, and cannot be shown them
    in another order: the card is named by its number here. Raise UsageError or ResourceError.
    """
    asked = settings.execution.capture_device
    if not choose_device(asked).startswith("cuda"):
        return asked
    found = choose_placement(
        ref.config,
        settings,
        gpu=True,
        engine=False,
        sequences=0,
        tokens_per_sequence=0,
        stored=count_weights(ref),
    )
    place = found.capture_device.partition(":")[2]
    if asked != "auto" or not place:
        return found.capture_device
    return f"cuda:{number_here(found.gpus[int(place)])}"
