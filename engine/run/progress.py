"""What a caller sees of a run: notices and counts while it goes, a result when it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ExitCode, TraitmillError
from ..judging import Usage
from ..outputs import Exported
from ..records import POLARITIES, Polarity
from ..settings import RunSettings
from ..storage import TraitFolder, TraitState
from .backends import STAGES, Backends, Clock, Stage
from .pipeline import Pipeline
from .trait_run import TraitRun


class Listener:
    """Told of a run as it goes. Override what is wanted; nothing here does anything."""

    def notice(self, line: str) -> None:
        """Take one line for the user."""

    def began(self, progress: Progress) -> None:
        """Take what may be looked at from now on; no model is loaded yet."""

    def ended(self) -> None:
        """Take note that the models are down again."""


@dataclass(slots=True)
class Progress:
    """Counts of a run under way. May be read from another thread."""

    log: Path
    """Where output of libraries may go."""
    captures: bool
    runs: Sequence[TraitRun]
    pipeline: Pipeline | None = None
    """None while models are being loaded."""
    backends: Backends = field(default_factory=Backends)
    loads: bool = True
    """Whether a model is loaded: a judge at an endpoint alone has none here."""

    @property
    def keeps(self) -> bool:
        """Whether what is judged decides which responses are kept."""
        return all(run.exports for run in self.runs)

    @property
    def elapsed(self) -> float:
        """Seconds since models were loaded, 0 before."""
        if self.pipeline is None:
            return 0.0
        return self.pipeline.elapsed

    @property
    def clocks(self) -> Mapping[Stage, Clock]:
        if self.pipeline is None:
            return {stage: Clock() for stage in STAGES}
        return self.pipeline.clocks

    @property
    def usage(self) -> Usage | None:
        """What a remote judge has used so far."""
        return self.backends.usage()

    def counts(self) -> dict[Stage, tuple[int, int]]:
        """Return records done and in all, of each stage, over all traits."""
        planned = sum(len(run.state.plan) for run in self.runs)
        useless = sum(
            int(run.state.responses.having("empty", "overlong", "unfinished").sum())
            for run in self.runs
        )
        done = {stage: sum(run.done[stage] for run in self.runs) for stage in STAGES}
        return {
            "generation": (done["generation"], planned),
            "judging": (done["judging"], planned - useless),
            "capture": (done["capture"], self._to_capture(planned - useless)),
        }

    def _to_capture(self, judgeable: int) -> int:
        """Return how many rows are to be captured, as far as is known: of kept ones, those that are
        kept by now."""
        if any(run.settings.capture_rows == "kept" for run in self.runs):
            return sum(self.kept().values())
        return judgeable

    def kept(self) -> dict[Polarity, int]:
        """Return how many responses of each side pass the threshold by now."""
        kept: dict[Polarity, int] = dict.fromkeys(POLARITIES, 0)
        for run in self.runs:
            state = run.state
            for polarity in POLARITIES:
                kept[polarity] += int((state.passing() & state.side(polarity)).sum())
        return kept


@dataclass(frozen=True, slots=True)
class TraitResult:
    """What became of one trait."""

    name: str
    folder: TraitFolder
    state: TraitState
    settings: RunSettings
    finished: bool
    """Whether its files are written."""
    decided: bool
    error: TraitmillError | None
    exported: Exported | None
    """What was written now; None where the files were up to date."""
    exports: bool
    """Whether the run was to write files: it judged the trait, or did not judge."""

    def __repr__(self) -> str:
        counts = self.state.counts()
        if not self.exports:
            scored = sum(counts[side]["verdicts"]["scored"] for side in POLARITIES)
            return f"TraitResult({self.name}: {scored} scored)"
        kept = {side: n["kept"] for side, n in counts.items()}
        return f"TraitResult({self.name}: {kept['pos']} pos + {kept['neg']} neg kept)"


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended."""

    traits: Mapping[str, TraitResult]
    stage_errors: Mapping[Stage, TraitmillError]
    interrupted: bool
    clocks: Mapping[Stage, Clock]
    seconds: float
    """From the call to its end, model loads included."""
    usage: Usage | None
    log: Path | None
    """None where no model was loaded."""

    def __repr__(self) -> str:
        return f"RunResult({list(self.traits.values())}, exit code {int(self.exit_code)})"

    @property
    def errors(self) -> list[TraitmillError]:
        """What stopped a stage, and what stopped a trait."""
        found = [trait.error for trait in self.traits.values() if trait.error]
        return [*self.stage_errors.values(), *found]

    @property
    def exit_code(self) -> ExitCode:
        """The exit code that a command ends with."""
        if self.interrupted:
            return ExitCode.INTERRUPTED
        if self.errors:
            return max(error.exit_code for error in self.errors)
        states = [trait.state for trait in self.traits.values()]
        for state in states:
            failed = state.responses.having("failed", "overlong").any()
            if failed or state.verdicts.having("failed").any() or state.capture_failed().any():
                return ExitCode.FAILED_SAMPLES
        for state in [trait.state for trait in self.traits.values() if trait.exports]:
            for polarity in POLARITIES:
                if not (state.passing() & state.side(polarity)).any():
                    return ExitCode.NOTHING_KEPT
        return ExitCode.OK


def trait_results(runs: Sequence[TraitRun]) -> dict[str, TraitResult]:
    """Return what became of each trait, by name."""
    return {
        run.name: TraitResult(
            name=run.name,
            folder=run.folder,
            state=run.state,
            settings=run.settings,
            finished=run.finished,
            decided=run.decided,
            error=run.error,
            exported=run.exported,
            exports=run.exports,
        )
        for run in runs
    }
