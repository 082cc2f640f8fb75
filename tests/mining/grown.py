"""How far a process grows while it mines: ``python -m tests.mining.grown SETTINGS``, in JSON."""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import threading
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from psi_engine.config import MineConfig
from psi_engine.mining import mine

LAYERS, CHANNELS, IMAGES = 12, 4096, 64


class Wide(nn.Module):
    """Layers with nothing but channels: next to what mining keeps, its outputs are nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(48, CHANNELS) for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        for layer in self.layers:
            layer(flat)
        return flat


class Peak:
    """The most memory of its own that the process holds, looked at every 2 ms."""

    def __init__(self) -> None:
        self.most, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.002):
            self.most = max(self.most, held())


def held() -> int:
    """Bytes of anonymous memory; pages of files are the system's to drop."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the system does not tell")


def grow(folder: Path, settings: dict) -> dict[str, int]:
    module = Wide()
    data = TensorDataset(torch.rand(IMAGES, 3, 4, 4))
    few = TensorDataset(data.tensors[0][:20])
    precision = settings.get("precision", "fp32")
    small = MineConfig(top_k=4, bottom_k=0, reservoir=2, pool=4, precision=precision)
    mine(module, few, "layers.*", small)  # what is loaded and compiled once
    gc.collect()
    before, amid = held(), []

    def save(state: dict[str, Tensor]) -> None:
        save_file({name: x.contiguous() for name, x in state.items()}, folder / "state")
        amid.append(peak.most)

    with Peak() as peak:
        found = mine(
            module, data, "layers.*", MineConfig(**settings),
            checkpoint=save, checkpoint_every=32, scratch=folder,
        )  # fmt: skip
    sets = [part for layer in found.values() for part in (layer.top, layer.bottom, layer.random)]
    returned = sum(x.nbytes for part in sets for x in part)
    return {
        "mining": amid[-1] - before, "whole": peak.most - before, "returned": returned,
        "saved": (folder / "state").stat().st_size,
    }  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as inside:
        print(json.dumps(grow(Path(inside), json.loads(sys.argv[1]))))
