"""Measures of neighbouring projects, on the embeddings that PSI is computed from.

Formulas only, written from their papers, for comparison beside PSI. None of them has a null.
Every function takes embeddings (channels, patches, dim) in float32 or float64, works in
float64 and leaves channels with NaN or zero rows as NaN. A channel's bits depend neither on the
channels beside it nor on their order.
"""

from psi_engine.baselines.interpretability import interpretability
from psi_engine.baselines.measures import DIRECTIONS, MEASURES, measure_all, measure_peers
from psi_engine.baselines.monosemanticity import MonosemanticitySums, monosemanticity
from psi_engine.baselines.pure import pure_ratio
from psi_engine.baselines.semanticlens import clarity, redundancy, semanticlens_polysemanticity

__all__ = [
    "DIRECTIONS",
    "MEASURES",
    "MonosemanticitySums",
    "clarity",
    "interpretability",
    "measure_all",
    "measure_peers",
    "monosemanticity",
    "pure_ratio",
    "redundancy",
    "semanticlens_polysemanticity",
]
