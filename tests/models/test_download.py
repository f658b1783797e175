"""G22: a hub model's weights are fetched once, by the parent, and it is said how far that is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from traitmill.engine.errors import AccessError, ResourceError
from traitmill.engine.models import GIB, ModelRef, fetch_weights
from traitmill.engine.models.download import wanted_files

COMMIT = "a" * 40
REF = ModelRef("org/model", "org/model", COMMIT, {})
FILES = {
    "config.json": 700,
    "model-00001-of-00002.safetensors": 5 * GIB,
    "model-00002-of-00002.safetensors": 3 * GIB,
    "original/consolidated.00.pth": 8 * GIB,
    "pytorch_model.bin": 8 * GIB,
    "consolidated.safetensors": 8 * GIB,
    "tokenizer.json": 900,
    "README.md": 10,
    ".gitattributes": 1,
}


class Hub:
    """In the place of the hub and its cache."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = root / "snapshots" / COMMIT
        self.folder.mkdir(parents=True)
        self.fetched: list[str] = []
        self.error: Exception | None = None
        info = SimpleNamespace(
            siblings=[SimpleNamespace(rfilename=name, size=size) for name, size in FILES.items()]
        )
        api = SimpleNamespace(model_info=lambda *_, **__: self._answer(info))
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", self.look)

    def _answer(self, info: Any) -> Any:
        if self.error is not None:
            raise self.error
        return info

    def look(self, repo: str, name: str, *, revision: str) -> str | None:
        path = self.folder / name
        return str(path) if path.exists() else None

    def download(self, repo: str, name: str, *, revision: str) -> str:
        assert (repo, revision) == ("org/model", COMMIT)
        if not (self.folder / name).exists():
            self.fetched.append(name)
            (self.folder / name).touch()
        return str(self.folder / name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(tmp_path, monkeypatch)


def test_g22_what_loaders_read_is_fetched_once_and_both_get_a_folder(hub: Hub) -> None:
    said: list[str] = []
    found = fetch_weights(REF, said.append)
    assert (found.source, found.name, found.revision) == (str(hub.folder), "org/model", COMMIT)
    assert found.is_local
    assert found.hub_revision is None, "nothing asks the hub any more"
    assert sorted(hub.fetched) == sorted(
        [
            "config.json",
            "tokenizer.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ]
    )
    assert said[0] == "downloading org/model: 4 files, 8.0 GiB"
    assert said[-1] == "downloading org/model: 8.0 of 8.0 GiB"
    said.clear()
    fetch_weights(REF, said.append)
    assert (said, len(hub.fetched)) == ([], 4)


def test_g22_weights_of_an_older_kind_are_taken_where_there_are_no_others() -> None:
    assert wanted_files(["pytorch_model.bin", "config.json"]) == [
        "config.json",
        "pytorch_model.bin",
    ]
    assert wanted_files(["consolidated.safetensors", "tekken.json"]) == [
        "tekken.json",
        "consolidated.safetensors",
    ]


def test_g22_a_hub_that_does_not_answer_leaves_it_to_the_cache(hub: Hub) -> None:
    hub.error = errors.OfflineModeIsEnabled("offline")
    assert fetch_weights(REF, print) is REF
    local = ModelRef("m", str(hub.folder), "f", {})
    assert fetch_weights(local, print) is local


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(28, "No space left on device"), ResourceError, "No space left.*8.0 GiB of disk"),
        (errors.LocalEntryNotFoundError("gone"), AccessError, "gone; run the"),
    ],
)
def test_g22_a_download_that_ends_says_why(
    hub: Hub, error: Exception, kind: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(kind, match=words):
        fetch_weights(REF, print)
