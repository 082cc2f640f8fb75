"""Validation: how far scores can be trusted, shown on units whose kind is known."""

from psi_engine.validation.ground_truth import GroundTruthConfig, run_ground_truth

__all__ = ["GroundTruthConfig", "run_ground_truth"]
