"""A study's responses and verdicts as a run, whose local judge is that of the trait's own run."""

from __future__ import annotations

from ..errors import SettingsChangedError
from ..models import ModelRef
from ..run import TraitRun
from ..storage import JudgeFacts, TraitFolder


class StudyRun(TraitRun):
    """A study's responses in a run: what fixes a local judge's offset is the trait's own run."""

    def begin_judging(self, judge: ModelRef) -> None:
        """Note which local model judges. Raise SettingsChangedError where its files are others than
        those that judged the trait's own responses."""
        before, now = self.judge.revision, "" if judge.hub_revision else judge.revision
        if before and now and before != now:
            owner = TraitFolder(self.folder.path.parent)
            where = " and ".join(
                str(folder.verdicts(self.state.judge_key))
                for folder in (owner, self.folder)
                if folder.verdicts(self.state.judge_key).exists()
            )
            raise SettingsChangedError(
                f"the judge {judge.name} has changed since it judged {self.name} ({before} -> "
                f"{now}), whose offset places the steered texts; restore its files, or move "
                f"{where} away and judge the trait anew"
            )
        super().begin_judging(judge)

    def calibration(self) -> list[int]:
        """Return none: the offset is known."""
        return []

    def prompt_lengths(self) -> list[int]:
        """Return the tokens of each prompt of the plan: later rounds ask the same."""
        samples = self.samples(list(range(len(self.state.plan))))
        return sorted({len(sample.prompt_token_ids) for sample in samples})


def refuse_moved(own: JudgeFacts, run: StudyRun) -> None:
    """Raise SettingsChangedError where the trait was judged anew since its texts were steered."""
    here = run.judge
    if own.offset is None or here.offset is None:
        return
    if here.revision and own.revision and own.revision != here.revision:
        said = (
            f"are of the judge's files {here.revision}, and the trait's own of {own.revision} "
            "since it was judged anew"
        )
    elif own.offset != here.offset:
        said = (
            f"are placed by the judge's offset {here.offset:g}, and the trait's own by "
            f"{own.offset:g} since it was judged anew"
        )
    else:
        return
    raise SettingsChangedError(
        f"{run.folder.path}: its verdicts {said}; move {run.folder.verdicts(run.state.judge_key)} "
        "away to have the steered texts judged anew too"
    )
