"""A trait's folder, `experiments/<experiment>/<trait>/`: every path in it, and what may happen to
it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import Step, UsageError
from ..files import remove_leftovers
from ..records import Polarity
from ..settings import DEFAULT_POOL, POOLS
from ..traits import DEFINITION_FILE

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

LOG_FOLDER = ".logs"


def check_name(name: str, what: str) -> str:
    """Return `name` if it is safe as a folder's name. Raise UsageError."""
    reserved = name.startswith(("report.", "evaluation."))  # files of the experiment's own
    if _NAME.fullmatch(name) and not reserved:
        return name
    shown = repr(name if len(name) <= 60 else name[:57] + "...")
    if reserved:
        raise UsageError(f"{what} name {shown} is refused: a file of the experiment has that name")
    path = "; it is one name, no path" if "/" in name.strip("/") else ""
    raise UsageError(
        f"{what} name {shown} is refused: use 1 to 100 letters, digits, '.', '_' or '-', "
        f"not starting with a sign{path}"
    )


@dataclass(frozen=True, slots=True)
class TraitFolder:
    """One trait's folder. Paths are absolute or relative as `path` is; none is made here."""

    path: Path

    @property
    def name(self) -> str:
        return self._named.name

    @property
    def experiment(self) -> Path:
        """The folder of the experiment."""
        return self._named.parent

    @property
    def _named(self) -> Path:
        """The path with the folder's own name at its end, also where it is `.` or ends in `..`."""
        return self.path.resolve() if self.path.name in ("", "..") else self.path

    def step(self, name: str, **settings: object) -> Step:
        """What to do next on this folder, for an error or a hint."""
        return Step(name, self.path, tuple(settings.items()))  # type: ignore[arg-type]  # a literal

    # --- input ---

    @property
    def definition(self) -> Path:
        return self.path / DEFINITION_FILE

    # --- the documented files ---

    def responses_csv(self, polarity: Polarity) -> Path:
        return self.path / "responses" / f"{polarity}.csv"

    def tensor(self, pool: str = DEFAULT_POOL) -> Path:
        suffix = pool_suffix(pool)
        return self.path / "activations" / f"all_layers{suffix}.pt"

    @property
    def metadata(self) -> Path:
        return self.path / "activations" / "metadata.json"

    @property
    def per_token(self) -> Path:
        return self.path / "activations" / "per_token"

    @property
    def vectors(self) -> Path:
        return self.path / "vectors"

    @property
    def asked_vectors(self) -> Path:
        """Which vectors a command last had it hold."""
        return self.vectors / "asked.json"

    def evaluation(self, pool: str = DEFAULT_POOL) -> Path:
        return self.path / f"evaluation{pool_suffix(pool)}.parquet"

    def report(self, pool: str = DEFAULT_POOL) -> Path:
        return self.path / f"report{pool_suffix(pool)}.html"

    def responses_page(self, number: int = 0) -> Path:
        """Where all responses can be read; one of several files from some thousand on."""
        return self.path / ("responses.html" if number == 0 else f"responses-{number + 1}.html")

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @property
    def stale_note(self) -> Path:
        """Says which of the files above were made from others than are there now."""
        return self.path / "STALE.txt"

    @property
    def steering(self) -> TraitFolder:
        """What steering with the trait's vectors has made, as a folder of records."""
        return TraitFolder(self.path / "steering")

    @property
    def steering_table(self) -> Path:
        return self.path / "steering.parquet"

    # --- the records ---

    @property
    def records(self) -> Path:
        return self.path / "parquet"

    @property
    def run_record(self) -> Path:
        return self.records / "run.json"

    @property
    def asked(self) -> Path:
        return self.records / "asked.json"

    @property
    def selection(self) -> Path:
        return self.records / "selection.json"

    @property
    def plan(self) -> Path:
        return self.records / "plan.parquet"

    @property
    def responses(self) -> Path:
        return self.records / "responses"

    def verdicts(self, key: str) -> Path:
        return self.records / "verdicts" / key

    def activations(self, key: str) -> Path:
        return self.records / "activations" / key

    @property
    def quarantine(self) -> Path:
        return self.records / "quarantine"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    @property
    def moving(self) -> Path:
        """There while a run is moved aside, and after, if that was cut off."""
        return self.path / ".moving"

    @property
    def coming(self) -> TraitFolder:
        """Holds the first records of a new run until the old one is moved aside."""
        return TraitFolder(self.path / ".new")

    @property
    def renewing(self) -> Path:
        """There until the command that began a new run comes to its end, for all its traits."""
        return self.records / ".renewing"

    # --- all of them ---

    def written(self) -> list[Path]:
        """Files and folders at the top that runs write, the records last."""
        pages = [self.report(pool) for pool in POOLS] + [self.evaluation(pool) for pool in POOLS]
        folders = [self.path / name for name in ("responses", "activations")]
        steered = [self.steering.path, self.steering_table]
        beside = [self.plots, *pages, *steered, self.stale_note]
        beside += sorted(self.path.glob("responses*.html"))
        found = [*folders, self.vectors, *beside, self.records]
        return [path for path in found if path.exists() or path.is_symlink()]

    def outputs(self) -> list[Path]:
        """Tables, tensors and vectors that are there, whoever wrote them."""
        names = ("responses", "activations", "vectors")
        return [path for name in names for path in (self.path / name).glob("[!.]*")]

    def has_records(self) -> bool:
        """Whether a run has stored anything."""
        return holds_rows(self.records)

    def _folders(self) -> Iterator[Path]:
        """Every folder that is written to."""
        yield self.path
        yield from (self.path / name for name in ("responses", "activations", "vectors", "plots"))
        yield self.per_token
        yield self.steering.path
        yield self.records
        yield from (self.responses, self.quarantine)
        for kind in ("verdicts", "activations"):
            yield self.records / kind
            yield from (self.records / kind).glob("*")

    def check_links(self) -> None:
        """Raise UsageError where something we would write through is a link out of the folder."""
        inside = self.path.resolve()
        for folder in self._folders():
            if folder.is_symlink() and not folder.resolve().is_relative_to(inside):
                raise UsageError(
                    f"{folder} is a link out of {self.path}; nothing is written there. To keep "
                    f"runs "
                    "on another disk, put all of them there and name it with `experiments_dir`"
                )

    def check_writable(self) -> None:
        """Raise UsageError where a folder is a file or closed, before any work is done."""
        for folder in self._folders():
            if folder.exists() and not folder.is_dir():
                raise UsageError(f"{folder} is a file where a folder belongs; move it away")
            if folder.is_dir() and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                raise UsageError(
                    f"{folder} cannot be read or written; check its permissions, or use another "
                    "`experiments_dir`"
                )

    def clean(self) -> None:
        """Delete temporary files that a killed command left. Call while holding the lock."""
        for folder in self._folders():
            if folder.is_dir():
                remove_leftovers(folder)
        shutil.rmtree(self.coming.path, ignore_errors=True)

    def archive(self, kind: str, moment: str) -> Path:
        """Move what runs wrote, or another program, into a folder `<kind>-<moment>`; return it.

        What stands in `coming` takes its place at once: a folder never forgets what it is of.
        """
        stem = f"{kind}-{moment.replace(':', '').replace('-', '')}"
        target, number = self.path / stem, 1
        moved = self.written()
        while any((target / path.name).exists() for path in moved):
            number += 1
            target = self.path / f"{stem}_{number}"
        # The records go last: cut off before, the same command moves the rest to the same place.
        self.moving.touch()
        target.mkdir(exist_ok=True)
        for path in moved:
            shutil.move(path, target / path.name)
        if self.coming.records.is_dir():
            self.coming.records.rename(self.records)
        self.moving.unlink()
        return target


def holds_rows(folder: Path) -> bool:
    """Return whether a part, or a journal that no part holds yet, stands in a folder or below."""
    journals = folder.rglob(".journal-*")
    return any(folder.rglob("part-*.parquet")) or any(path.stat().st_size for path in journals)


def pool_suffix(pool: str) -> str:
    """What the names of files made from a pool end in; nothing for the default pool."""
    return "" if pool == DEFAULT_POOL else f".{pool}"
