"""What a run will take of cards, time and money, from configs and definitions alone."""

from __future__ import annotations

from .cards import CARDS, card_of, parse_gpus
from .estimate import judge_dollars
from .job import Job, job_of, typical_job
from .plan import Plan, duration, make_plan, plan_run, work_words

__all__ = [
    "CARDS",
    "Job",
    "Plan",
    "card_of",
    "duration",
    "job_of",
    "judge_dollars",
    "make_plan",
    "parse_gpus",
    "plan_run",
    "typical_job",
    "work_words",
]
