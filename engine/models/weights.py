"""Whether a model folder's weight files are all there and whole. Reads headers, loads nothing."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import AccessError
from .hub import ModelRef


def check_weights(ref: ModelRef) -> None:
    """Raise AccessError for a local folder without weights, or with a file missing or cut off.

    Models on the hub are fetched, and checked, by what loads them.
    """
    from safetensors import SafetensorError, safe_open

    if not ref.is_local:
        return
    for path in _files(Path(ref.source)):
        try:
            with safe_open(path, "np"):  # looks at the header and at the file's length
                pass
        except (SafetensorError, OSError) as error:
            raise AccessError(f"{path} is cut off or damaged ({error}); copy it again") from None


def _files(folder: Path) -> list[Path]:
    """Return the safetensors files that a loader would read."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    found = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if not found and not any(folder.glob("pytorch_model*.bin")):
        raise AccessError(
            f"model folder {folder} holds no weights (*.safetensors); copy them there"
        )
    if single.is_file():  # transformers takes it first, whatever an index left over says
        return [single]
    if not index.exists():
        return found
    try:
        listed = {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise AccessError(f"{index} is damaged; copy it again") from None
    missing = sorted(name for name in listed if not (folder / name).is_file())
    if missing:
        raise AccessError(f"model folder {folder} lacks {', '.join(missing)}; copy what is missing")
    return sorted(folder / name for name in listed)
