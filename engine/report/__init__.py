"""The pages: what a trait's evaluation, judge and responses look like."""

from __future__ import annotations

from .commands import ReportResult, write_report
from .experiment import write_experiment_report
from .page import write_trait_report

__all__ = ["ReportResult", "write_experiment_report", "write_report", "write_trait_report"]
