"""Mining beside the collectors of SemanticLens and zennit-crp: speed, overhead, peak memory.

    python -m benchmarks.mining --out benchmarks/results

Every collector sees the same network, images, batches and layers in one process, in turns.
``top`` mines top-K alone, as the others do; ``all sets`` adds bottom-K, random sites, the pool;
both gather statistics, rank by (value, site) and hold positions. SemanticLens keeps bfloat16
values without positions, zennit-crp positions without an order of ties. Before anything is timed,
the values are compared: those of zennit-crp must be ours to the bit, those of SemanticLens ours in
bfloat16, where they are positive (its buffers start at 0).

``keeping`` is the CPU time spent in the collector's hooks as a share of that spent outside them,
in the same call: CPU time, so that other processes on the machine stay out of it. ``beyond`` is
the CPU time of the whole call over that of the same loop without a collector in the same round,
less one; it misses nothing, and varies more. The loop of ours is ``forward``, which ends at the
last layer; the peers' is ``whole``, a plain loop over the whole network. All start with empty
buffers; as a channel's best sites are found, fewer and fewer enter, which the rows ``update`` show:
a miner alone, given normal activations of the layers' shapes, its CPU time for the images after
the first N as a share of ``forward``. ``buffers`` (of the peak-memory rows) is what a process with
the collector comes to hold at its peak, once libraries are loaded, beyond one that only runs the
network. Peers that are not installed are left out, and said.
"""

from __future__ import annotations

import argparse
import gc
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.harness import Results, Work, in_fresh_process, interleave, peak_memory, spread
from psi_engine.config import MineConfig
from psi_engine.data import Preprocess, open_source
from psi_engine.hooks import evaluating
from psi_engine.mining import MICRO_BATCH, Miner, mine
from psi_engine.mining.precision import exact_fp32
from psi_engine.mining.sweep import Sweep
from psi_engine.models import activation_shapes
from psi_engine.types import ActivationShape

K = 50
WINDOW = 512  # images that an update is timed over
CONFIGS = {
    "top": MineConfig(top_k=K, bottom_k=0, reservoir=0, pool=0),
    "all sets": MineConfig(top_k=K),
}
MICRO = MICRO_BATCH["cpu"]
BARE = {"top": "forward", "all sets": "forward", "semanticlens": "whole", "zennit-crp": "whole"}
"""The loop that each collector is held against."""
Collector = Callable[[nn.Module, Dataset, Sequence[str]], dict[str, Tensor]]


class Clock:
    """Adds up the CPU seconds of what it is put around."""

    seconds = 0.0

    def around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same work, timed."""

        def run(*arguments: Any, **named: Any) -> Any:
            began = time.process_time()
            try:
                return work(*arguments, **named)
            finally:
                self.seconds += time.process_time() - began

        return run


CLOCK = Clock()


def main(arguments: Sequence[str] | None = None) -> Results:
    """Print and write one row per collector, then one per width, length and collector."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for mining.csv and mining.json")
    parser.add_argument("--model", default="resnet50", help="of torchvision, random weights")
    parser.add_argument("--layers", nargs="*", default=["layer3", "layer4"])
    parser.add_argument("--sides", type=int, nargs="*", default=[64, 224])
    parser.add_argument("--images", type=int, nargs="*", default=[512, 128], help="per side")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seen", type=int, nargs="*", default=[0, 1000, 10_000])
    parser.add_argument("--widths", type=int, nargs="*", default=[1024, 8192])
    parser.add_argument("--lengths", type=int, nargs="*", default=[256, 2048])
    options = parser.parse_args(arguments)
    settings = vars(options) | {"k": K, "micro_batch": MICRO}
    results = Results("mining", settings, keep=options.out)
    collectors = available()
    for side, images in zip(options.sides, options.images, strict=True):
        measure_speed(results, collectors, options, side, images)
    for width in options.widths:
        for length in options.lengths:
            alone = {name: growth(name, width, length) for name in set(BARE.values())}
            for name in collectors:
                if name not in BARE.values():
                    beyond = growth(name, width, length) - alone[BARE[name]]
                    results.add(
                        what="memory", collector=name, channels=width, images=length,
                        buffers_mib=beyond / 2**20,
                    )  # fmt: skip
    if options.out:
        results.write(options.out)
    return results


def available() -> dict[str, Collector]:
    """The collectors that are installed."""
    found: dict[str, Collector] = {
        "forward": bare, "whole": whole, "top": top_alone, "all sets": all_sets
    }  # fmt: skip
    for package, name, collector in (
        ("semanticlens", "semanticlens", semanticlens),
        ("crp", "zennit-crp", zennit_crp),
    ):
        if find_spec(package) is None:
            print(f"{name} is not installed: left out")
        else:
            found[name] = collector
    return found


def measure_speed(
    results: Results,
    collectors: dict[str, Collector],
    options: argparse.Namespace,
    side: int,
    images: int,
) -> None:
    import torchvision

    torch.manual_seed(0)
    module = torchvision.models.get_model(options.model, weights=None).eval()
    data = TensorDataset(torch.randn(images, 3, side, side))
    compare(module, data, options.layers, collectors)

    def work(collector: Collector) -> Callable[[], tuple[float, float]]:
        def run() -> tuple[float, float]:
            started, CLOCK.seconds = time.process_time(), 0.0
            with patch.object(Miner, "update", CLOCK.around(Miner.update)):
                collector(module, data, options.layers)
            return time.process_time() - started, CLOCK.seconds

        return run

    works = {
        name: Work(work(collector), lambda: None)  # compare() has run them all
        for name, collector in collectors.items()
    }
    taken = interleave(works, options.rounds)
    for name, rounds in taken.items():
        total = [one.value[0] for one in rounds]
        without = [one.value[0] for one in taken[BARE.get(name, name)]]
        hooks = [one.value[1] for one in rounds]
        results.add(
            what="speed",
            collector=name,
            side=side,
            images=images,
            images_per_second=spread([images / one.seconds for one in rounds]),
            cpu_seconds=spread(total),
            keeping=spread([x / (all_ - x) for x, all_ in zip(hooks, total, strict=True)]),
            beyond=spread([x / bare - 1 for x, bare in zip(total, without, strict=True)]),
        )
    with evaluating(module):
        shapes = activation_shapes(module, options.layers, data[0][0][None])
    forward = spread([one.value[0] for one in taken["forward"]]).p50 / images
    for name, config in CONFIGS.items():
        for seen, seconds in update_seconds(shapes, config, options.seen).items():
            share = [x / forward for x in seconds]
            results.add(
                what="update", collector=name, side=side, images=seen, keeping=spread(share)
            )


def update_seconds(
    shapes: Mapping[str, ActivationShape], config: MineConfig, seen: Sequence[int]
) -> dict[int, list[float]]:
    """CPU seconds an image for what comes after the first N, batch by batch of a window."""
    miners = {name: Miner(name, shape, config) for name, shape in shapes.items()}
    found: dict[int, list[float]] = {}
    for start in range(0, max(seen) + WINDOW, MICRO):
        ids, seconds = torch.arange(start, start + MICRO), 0.0
        for name, shape in shapes.items():
            maps = torch.randn(MICRO, shape.channels, *shape.grid)
            maps = maps.contiguous(memory_format=torch.channels_last)
            began = time.process_time()
            miners[name].update(maps, ids)
            seconds += time.process_time() - began
        for n in seen:
            if n <= start < n + WINDOW:
                found.setdefault(n, []).append(seconds / MICRO)
    return found


def compare(
    module: nn.Module, data: Dataset, layers: Sequence[str], collectors: dict[str, Collector]
) -> None:
    """Refuse to time collectors that do not find the same values."""
    found = {name: collector(module, data, layers) for name, collector in collectors.items()}
    for layer, ours in found["top"].items():
        same = {"all sets": torch.equal(found["all sets"][layer], ours)}
        if "zennit-crp" in found:
            same["zennit-crp"] = torch.equal(found["zennit-crp"][layer], ours)
        if "semanticlens" in found:
            positive = ours[:, -1] > 0
            theirs = found["semanticlens"][layer][positive]
            same["semanticlens"] = torch.equal(theirs, ours[positive].to(torch.bfloat16))
        for name, agrees in same.items():
            if not agrees:
                raise SystemExit(f"{name} finds other values in {layer}: nothing to time")


def bare(module: nn.Module, data: Dataset, layers: Sequence[str]) -> dict[str, Tensor]:
    """Run the network as mining does, and keep nothing."""
    device, plain = torch.device("cpu"), Preprocess(1, 1)
    with evaluating(module):
        shapes = activation_shapes(module, layers, data[0][0][None])
        source = open_source(data)
        sweep = Sweep(module, source, plain, device, MICRO, shapes, 64, 0, {})
        images = torch.arange(len(source))
        for _ in sweep.over(images, layers, (("fp32", lambda *_: None),)):
            pass
    return {}


def whole(module: nn.Module, data: Dataset, layers: Sequence[str]) -> dict[str, Tensor]:
    """Run the network as the peers do, and keep nothing."""
    with torch.inference_mode(), exact_fp32():
        for (x,) in DataLoader(data, MICRO):
            module(x.contiguous(memory_format=torch.channels_last))
    return {}


def top_alone(module: nn.Module, data: Dataset, layers: Sequence[str]) -> dict[str, Tensor]:
    return _mined(module, data, layers, CONFIGS["top"])


def all_sets(module: nn.Module, data: Dataset, layers: Sequence[str]) -> dict[str, Tensor]:
    return _mined(module, data, layers, CONFIGS["all sets"])


def _mined(
    module: nn.Module, data: Dataset, layers: Sequence[str], config: MineConfig
) -> dict[str, Tensor]:
    found = mine(module, data, layers, config, device="cpu")
    return {layer: found[layer].top.values for layer in layers}


def semanticlens(module: nn.Module, data: Dataset, layers: Sequence[str]) -> dict[str, Tensor]:
    """Its cache of maxima, with hooks, over batches of the same size and layout."""
    from semanticlens.component_visualization import aggregators
    from semanticlens.component_visualization.activation_caching import ActMaxCache

    logging.getLogger("semanticlens").setLevel(logging.ERROR)
    cache = ActMaxCache(list(layers), aggregators.aggregate_conv_max, n_collect=K)
    hook = cache._get_hook
    cache._get_hook = lambda layer: CLOCK.around(hook(layer))
    with torch.inference_mode(), exact_fp32(), cache.hook_context(module):
        for (x,) in DataLoader(data, MICRO):
            module(x.contiguous(memory_format=torch.channels_last))
    return {layer: cache.cache[layer].activations for layer in layers}


def zennit_crp(module: nn.Module, data: Dataset, layers: Sequence[str]) -> dict[str, Tensor]:
    """Its maximisation by activation, given each layer's output by a hook."""
    from crp.concepts import ChannelConcept
    from crp.maximization import Maximization

    with tempfile.TemporaryDirectory() as folder:
        kept = Maximization("activation", "max", abs_norm=False, path=folder)
    kept.SAMPLE_SIZE = K
    concept, seen = ChannelConcept(), 0

    @CLOCK.around
    def collect(layer: str, output: Tensor) -> None:
        ids = torch.arange(seen, seen + len(output)).numpy()
        kept.analyze_layer(output.contiguous(), concept, layer, ids, [0] * len(ids))

    handles = [
        module.get_submodule(layer).register_forward_hook(
            lambda _, __, output, layer=layer: collect(layer, output)
        )
        for layer in layers
    ]
    try:
        with torch.inference_mode(), exact_fp32():
            for (x,) in DataLoader(data, MICRO):
                module(x.contiguous(memory_format=torch.channels_last))
                seen += len(x)
    finally:
        for handle in handles:
            handle.remove()
    return {layer: kept.rel_c_sorted[layer].T for layer in layers}


class Wide(nn.Module):
    """A layer of many channels at next to no cost, for peak memory."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return self.layer(x)


class Made(Dataset):
    """Images made when asked for, so that the data take no memory."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return (torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(index)),)


def growth(name: str, channels: int, images: int) -> int:
    """Bytes that a collector over a wide layer adds to a process that has run it before."""
    before, peak = in_fresh_process(run_wide, name, channels, images)
    return peak - before


def run_wide(name: str, channels: int, images: int) -> int:
    """Run a collector on little, forget that peak, run it in full; the bytes held in between."""
    torch.manual_seed(0)
    collector = available()[name]
    collector(Wide(8).eval().requires_grad_(False), Made(2 * MICRO), ["layer"])
    module = Wide(channels).eval().requires_grad_(False)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew
    before = peak_memory()
    collector(module, Made(images), ["layer"])
    return before


if __name__ == "__main__":
    main()
