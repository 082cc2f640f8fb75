"""Miners that are not at work, in files: what their layers kept so far takes no memory meanwhile.

A miner that is put away keeps working as before (its state, its result), but its buffers are a
file that the system reads where it is looked at and drops where memory is short.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from psi_engine.mining.miner import Miner

_PREFIX = "layers-"


class Shelf:
    """A folder of miners that wait for their pass; use :func:`shelf`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written = 0

    def put(self, miner: Miner) -> None:
        """Put a miner away."""
        miner.to("cpu")
        path = self._folder / f"{self._written}.safetensors"
        self._written += 1
        save_file(miner.state_dict(copy=False), path)
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        miner.load_state_dict(state, copy=False)
        path.unlink()  # the tensors hold the file until they go

    def take(self, miner: Miner, device: torch.device) -> None:
        """Bring a miner back to work on a device."""
        miner.load_state_dict(miner.state_dict(copy=False))
        miner.to(device)


@contextmanager
def shelf(folder: Path | None = None) -> Iterator[Shelf]:
    """A shelf that is gone afterwards.

    Parameters
    ----------
    folder : Path, optional
        Where the files are written; None = the system's folder for temporary files, which can be
        memory itself.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    # Network file systems keep the names of files that are still looked at.
    with TemporaryDirectory(prefix=_PREFIX, dir=folder, ignore_cleanup_errors=True) as inside:
        yield Shelf(Path(inside))


def clear_shelves(folder: Path) -> None:
    """Remove what killed processes left in a folder in which no process is mining."""
    for left in folder.glob(f"{_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)
