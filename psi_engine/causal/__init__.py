"""Causal patch swaps: what putting a patch into an image does to a channel."""

from psi_engine.causal.config import CONDITIONS, CONTROLS, SwapConfig
from psi_engine.causal.run import CAUSAL, CAUSAL_SUMMARY, summarise, swap

__all__ = [
    "CAUSAL",
    "CAUSAL_SUMMARY",
    "CONDITIONS",
    "CONTROLS",
    "SwapConfig",
    "summarise",
    "swap",
]
