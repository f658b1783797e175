"""Write the pages of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ExitCode, TraitmillError
from ..settings import DEFAULT_POOL, check_pool, plain_arguments
from ..storage import lock_traits, select
from ..vectors import kept_line, kept_pool
from .experiment import write_experiment_report
from .page import write_trait_report


@dataclass(frozen=True, slots=True)
class ReportResult:
    """Pages written, the experiment's last, and what kept others from being written."""

    pages: tuple[Path, ...]
    errors: tuple[TraitmillError, ...]

    def __repr__(self) -> str:
        return f"ReportResult({len(self.pages)} pages, {len(self.errors)} errors)"

    @property
    def exit_code(self) -> ExitCode:
        """The exit code that the command ends with."""
        return max((error.exit_code for error in self.errors), default=ExitCode.OK)


@plain_arguments
def write_report(
    experiment: Path | str,
    traits: Sequence[str] | str | None = None,
    *,
    pool: str | None = None,
    force_unlock: bool = False,
    notice: Callable[[str], None] = lambda _: None,
) -> ReportResult:
    """Write report.html and plots/ for traits of an experiment, and for the experiment.

    `traits` None is all that have a definition, `pool` None that of each folder's last fit. A page
    that cannot be written does not keep the others from it; without any, the experiment's is not
    written. `notice` is called with a pool that is not response_mean, and with what was
    left out of the experiment's page. The traits' locks are taken here.

    Raise UsageError for traits that are unknown or cannot be written, LockedError.
    """
    if pool is not None:
        check_pool(pool)
    folder = Path(experiment)
    folders = select(folder, traits)
    for each in folders.values():
        each.check_writable()
    pages: list[Path] = []
    errors: list[TraitmillError] = []
    with lock_traits(list(folders.values()), force_unlock=force_unlock):
        pools: dict[str, str] = {}
        for name, each in folders.items():
            try:
                pools[name] = pool or kept_pool(each)
            except TraitmillError as error:
                errors.append(error)
        kept = {name: _kept(each) if pool is None else "" for name, each in pools.items()}
        for line in kept_line(kept):
            notice(line)
        written = []
        for name, each_pool in pools.items():
            try:
                pages.append(write_trait_report(folders[name], each_pool))
            except TraitmillError as error:
                errors.append(error)
            else:
                written.append(each_pool)
        for each_pool in dict.fromkeys(written):
            try:
                pages.append(write_experiment_report(folder, notice, each_pool))
            except TraitmillError as error:
                errors.append(error)
    return ReportResult(tuple(pages), tuple(errors))


def _kept(pool: str) -> str:
    return "" if pool == DEFAULT_POOL else f"`pool` {pool}"
