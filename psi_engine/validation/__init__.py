"""Validation: how far scores can be trusted, shown on units whose kind is known."""

from psi_engine.validation.ground_truth import GroundTruthConfig, judge_units, run_ground_truth
from psi_engine.validation.headline import summarise

__all__ = ["GroundTruthConfig", "judge_units", "run_ground_truth", "summarise"]
