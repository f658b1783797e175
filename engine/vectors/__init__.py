"""Activations → trait vectors, and how good they are. Reads the documented files."""

from __future__ import annotations

from .commands import FitResult, FittedTrait, fit_experiment, fit_trait
from .evaluation import Evaluation, evaluate_vectors, read_evaluation, write_evaluation
from .exchange import EXCHANGES, ExportedVectors, export_vectors
from .fit import Vectors, fit_vectors
from .methods import DEFAULT_METHODS, METHODS, check_methods
from .recommendation import MIN_CLAIM_GROUPS, MIN_CLAIM_ROWS, Recommendation
from .remembered import kept_line, kept_pool
from .table_file import read_table, write_table
from .trait_vectors import StaleWarning, TraitVectors, load_vectors, open_vectors
from .transfer import evaluated_traits, read_transfer, update_transfer
from .vector_files import Format, load_vector, write_vectors

__all__ = [
    "DEFAULT_METHODS",
    "EXCHANGES",
    "METHODS",
    "MIN_CLAIM_GROUPS",
    "MIN_CLAIM_ROWS",
    "Evaluation",
    "ExportedVectors",
    "FitResult",
    "FittedTrait",
    "Format",
    "Recommendation",
    "StaleWarning",
    "TraitVectors",
    "Vectors",
    "check_methods",
    "evaluate_vectors",
    "evaluated_traits",
    "export_vectors",
    "fit_experiment",
    "fit_trait",
    "fit_vectors",
    "kept_line",
    "kept_pool",
    "load_vector",
    "load_vectors",
    "open_vectors",
    "read_evaluation",
    "read_table",
    "read_transfer",
    "update_transfer",
    "write_evaluation",
    "write_table",
    "write_vectors",
]
