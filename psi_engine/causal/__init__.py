"""Causal patch swaps: what putting a patch into an image does to a channel."""

from psi_engine.causal.config import CONDITIONS, CONTROLS, SwapConfig
from psi_engine.causal.run import plan_swaps, read_swaps, summarise, swap, swap_key

__all__ = [
    "CONDITIONS",
    "CONTROLS",
    "SwapConfig",
    "plan_swaps",
    "read_swaps",
    "summarise",
    "swap",
    "swap_key",
]
