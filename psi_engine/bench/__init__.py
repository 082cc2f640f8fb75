"""Suites of runs: models × presets × seeds, each its own run folder, in one comparison."""

from psi_engine.bench.plan import Entry, Plan, read_plan
from psi_engine.bench.suite import Outcome, Suite, run_suite

__all__ = ["Entry", "Outcome", "Plan", "Suite", "read_plan", "run_suite"]
