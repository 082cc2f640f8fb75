"""What a run costs: the memory of the process, measured run by run."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")


class PeakMemory:
    """Peak memory since it was made: of this process, and of the CUDA device in use.

    Notes
    -----
    The kernel's own high-water mark (``VmHWM`` in ``/proc/self/status``), set back by writing 5
    to ``/proc/self/clear_refs`` (Linux, proc(5)). What earlier runs left allocated counts; what
    worker processes hold does not. Elsewhere the mark cannot be set back and the peak is None.
    """

    def __init__(self) -> None:
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            (_PROCESS / "clear_refs").write_text("5")
            self._known = True
        except OSError:
            self._known = False

    def resident_bytes(self) -> int | None:
        """Peak resident memory of this process so far; None where it cannot be told."""
        if not self._known:
            return None
        status = (_PROCESS / "status").read_text(encoding="utf-8")
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        return None if found is None else int(found[1]) * 1024

    def device_bytes(self) -> int | None:
        """Peak memory torch allocated on the CUDA device; None where none was used."""
        return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None
