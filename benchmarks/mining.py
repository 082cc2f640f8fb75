"""Mining beside the collectors of SemanticLens and zennit-crp: speed, overhead, peak memory.

    python -m benchmarks.mining --out benchmarks/results

Every collector sees the same network, images, batches and layers in one process, in turns:
``forward`` runs the network up to the last layer and keeps nothing; ``top`` mines top-K alone, as
the others do; ``all sets`` adds bottom-K, random sites, the pool and statistics. Both of ours rank
by (value, site) and hold positions; SemanticLens keeps bfloat16 values without positions,
zennit-crp positions without an order of ties. Before anything is timed, the values are compared:
those of zennit-crp must be ours to the bit, those of SemanticLens ours in bfloat16, where they are
positive (its buffers start at 0).

``overhead`` is CPU time over that of ``forward`` in the same round, less one: CPU time, so that
other processes on the machine stay out of it. ``buffers`` (of the peak-memory rows) is what a
process with the collector peaks at beyond one that only runs the network. Peers that are not
installed are left out, and said.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.harness import Results, Work, in_fresh_process, interleave, spread
from psi_engine.config import MineConfig
from psi_engine.data import Preprocess, open_source
from psi_engine.hooks import evaluating
from psi_engine.mining import MICRO_BATCH, mine
from psi_engine.mining.precision import exact_fp32
from psi_engine.mining.sweep import Sweep
from psi_engine.models import activation_shapes

K = 50
TOP_ALONE = {"top_k": K, "bottom_k": 0, "reservoir": 0, "pool": 0}
MICRO = MICRO_BATCH["cpu"]
Collector = Callable[[nn.Module, Dataset, Sequence[str]], dict[str, Tensor]]


def main(arguments: Sequence[str] | None = None) -> Results:
    """Print and write one row per collector, then one per width, length and collector."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for mining.csv and mining.json")
    parser.add_argument("--model", default="resnet50", help="of torchvision, random weights")
    parser.add_argument("--layers", nargs="*", default=["layer3", "layer4"])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--widths", type=int, nargs="*", default=[1024, 8192])
    parser.add_argument("--lengths", type=int, nargs="*", default=[256, 2048])
    options = parser.parse_args(arguments)
    results = Results("mining", vars(options) | {"k": K, "micro_batch": MICRO})
    collectors = available()
    measure_speed(results, collectors, options)
    if options.out:
        results.write(options.out)
    for width in options.widths:
        for length in options.lengths:
            _, bare = in_fresh_process(run_wide, "forward", width, length)
            for name in collectors:
                if name != "forward":
                    _, peak = in_fresh_process(run_wide, name, width, length)
                    results.add(
                        what="memory", collector=name, channels=width, images=length,
                        buffers_mib=(peak - bare) / 2**20,
                    )  # fmt: skip
    if options.out:
        results.write(options.out)
    return results


def available() -> dict[str, Collector]:
    """The collectors that are installed."""
    found: dict[str, Collector] = {"forward": bare, "top": top_alone, "all sets": all_sets}
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
    results: Results, collectors: dict[str, Collector], options: argparse.Namespace
) -> None:
    import torchvision

    torch.manual_seed(0)
    module = torchvision.models.get_model(options.model, weights=None).eval()
    data = TensorDataset(torch.randn(options.images, 3, options.side, options.side))
    compare(module, data, options.layers, collectors)

    def work(collector: Collector) -> Callable[[], float]:
        def run() -> float:
            started = time.process_time()
            collector(module, data, options.layers)
            return time.process_time() - started

        return run

    works = {
        name: Work(work(collector), lambda: None)  # compare() has run them all
        for name, collector in collectors.items()
    }
    taken = interleave(works, options.rounds)
    for name, rounds in taken.items():
        shares = [
            one.value / bare.value - 1 for one, bare in zip(rounds, taken["forward"], strict=True)
        ]
        results.add(
            what="speed",
            collector=name,
            images_per_second=spread([options.images / one.seconds for one in rounds]),
            cpu_seconds=spread([one.value for one in rounds]),
            overhead=spread(shares),
        )


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


def top_alone(module: nn.Module, data: Dataset, layers: Sequence[str]) -> dict[str, Tensor]:
    return _mined(module, data, layers, MineConfig(**TOP_ALONE))


def all_sets(module: nn.Module, data: Dataset, layers: Sequence[str]) -> dict[str, Tensor]:
    return _mined(module, data, layers, MineConfig(top_k=K))


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


def run_wide(name: str, channels: int, images: int) -> None:
    """One collector over a wide layer, in a process of its own."""
    torch.manual_seed(0)
    module = Wide(channels).eval().requires_grad_(False)
    available()[name](module, Made(images), ["layer"])


if __name__ == "__main__":
    main()
