"""Which activation set a run's rows belong to: what it is named by, and what must not mix in it."""

from __future__ import annotations

import hashlib
import json

from .. import storage
from ..capture import CaptureFacts
from ..errors import SettingsChangedError
from ..settings import CaptureSettings
from ..storage import TraitFolder


def capture_key(capture: CaptureSettings) -> str:
    """Return which activation set: 16 hex digits of sha256 over what shapes a row's values.

    Pools are told apart by name, within a set.
    """
    content = json.dumps(asked(capture), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def asked(capture: CaptureSettings) -> dict[str, object]:
    """Return the settings that choose an activation set, as plain JSON values."""
    layers = None
    if capture.layers is not None:
        layers = list(capture.layers)
    return {
        "layers": layers,
        "include_embeddings": capture.include_embeddings,
        "dtype": capture.dtype,
        "attention": capture.attention,
    }


def refuse_other_blocks(
    folder: TraitFolder, known: storage.CaptureFacts | None, blocks: str | None
) -> None:
    """Raise SettingsChangedError where an activation set is of other modules than are named now."""
    before = known.blocks if known else None
    if before is not None and before != (blocks or ""):
        raise SettingsChangedError(
            f"{folder.path}: its activation set is of the blocks at "
            f"{before or 'the place that was found'}, and `blocks` names "
            f"{blocks or 'none'}; name the same, or use another experiment"
        )


def refuse_other(folder: TraitFolder, known: storage.CaptureFacts, loaded: CaptureFacts) -> None:
    names = ("dtype", "attention", "layers", "hidden_dim")
    found = {name: getattr(loaded, name) for name in names}
    lines = storage.differing(known.model_dump(include=set(names)), found)
    if lines:
        raise SettingsChangedError(
            f"{folder.path}: capture here would not compute what its activation set holds: "
            f"{', '.join(lines)}. Capture on a device like the first ({known.device}), or capture "
            f"all anew as a set of its own, with `capture_dtype` {loaded.dtype} and `attention` "
            f"{loaded.attention}"
        )
