"""Whether a model folder's weight files are all there and whole. Reads headers, loads nothing."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import AccessError
from .hub import ModelRef

_INDEX = "model.safetensors.index.json"


def check_weights(ref: ModelRef) -> None:
    """Raise AccessError for a local folder without weights, with a part missing, or with a file
    that was cut off.

    Models on the hub are fetched, and checked, by what loads them.
    """
    from safetensors import SafetensorError, safe_open

    if not ref.is_local:
        return
    folder = Path(ref.source)
    paths = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if not paths and not any(folder.glob("pytorch_model*.bin")):
        raise AccessError(
            f"model folder {folder} holds no weights (*.safetensors); copy them there"
        )
    try:
        listed = {
            str(name) for name in json.loads((folder / _INDEX).read_bytes())["weight_map"].values()
        }
    except FileNotFoundError:
        listed = set()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise AccessError(f"{folder / _INDEX} is damaged; copy it again") from None
    if (
        folder / "model.safetensors"
    ).is_file():  # transformers takes it first, whatever an index left over says
        paths, listed = [folder / "model.safetensors"], set()
    if missing := sorted(name for name in listed if not (folder / name).is_file()):
        raise AccessError(f"model folder {folder} lacks {', '.join(missing)}; copy what is missing")
    for path in sorted(folder / name for name in listed) or paths:
        try:
            with safe_open(path, "np"):  # looks at the header and at the file's length
                pass
        except (SafetensorError, OSError) as error:
            raise AccessError(f"{path} is cut off or damaged ({error}); copy it again") from None
