"""Mining: the sites that excite each channel most, found in one pass over the images."""

from psi_engine.mining.exchange import exchange
from psi_engine.mining.folding import NETWORK_FORM
from psi_engine.mining.miner import Miner
from psi_engine.mining.precision import require_precision
from psi_engine.mining.shelf import clear_shelves
from psi_engine.mining.state import pack_state, unpack_state
from psi_engine.mining.stream import MICRO_BATCH, MINING, mine
from psi_engine.ops.moments import dead_channels

__all__ = [
    "MICRO_BATCH",
    "MINING",
    "NETWORK_FORM",
    "Miner",
    "clear_shelves",
    "dead_channels",
    "exchange",
    "mine",
    "pack_state",
    "require_precision",
    "unpack_state",
]
