"""Validation: how far scores can be trusted.

:func:`run_ground_truth` judges them on units whose kind is known; :func:`validate_run` makes the
tables and figures of a finished run, part by part (:mod:`psi_engine.validation.parts`).
"""

from psi_engine.validation.ground_truth import GroundTruthConfig, judge_units, run_ground_truth
from psi_engine.validation.headline import summarise
from psi_engine.validation.part import Options
from psi_engine.validation.run_parts import Outcome, validate_run

__all__ = [
    "GroundTruthConfig",
    "Options",
    "Outcome",
    "judge_units",
    "run_ground_truth",
    "summarise",
    "validate_run",
]
