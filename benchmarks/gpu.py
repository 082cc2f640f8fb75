"""The whole check on a GPU: tests, every operation beside its floor, the paper's run.

    python -m benchmarks.gpu --out benchmarks/results

First the tests marked ``gpu``. Then each operation's kernel and torch path in turns, after their
results were compared bit for bit, with the bytes it must move or the products it must make over
what this device was measured to do at its best (a large copy, a large matrix product): that is the
floor. Then the miner's step, ``psi.score``, and a run over generated images as in the paper
(ResNet-50, layer3 and layer4, all sites, K = 50, prompts, a null that clusters every draw again)
with random weights and the project's own solver: only its speed means anything.

Every row is written as it comes. What differs or fails becomes a row, the rest goes on, and the
exit status is 1. ``--device cpu`` does the same on small sizes, to test this file.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import psi_engine as psi
from benchmarks.harness import Results, Work, interleave, spread
from benchmarks.problems import generator
from benchmarks.routes import Size
from benchmarks.scoring import Scorer
from psi_engine.config import MineConfig, RunConfig
from psi_engine.mining.miner import Miner
from psi_engine.nulls.draws import rotations_about_ones
from psi_engine.ops import topk
from psi_engine.ops.contingency import permutation_nmi
from psi_engine.ops.random import hash_keys
from psi_engine.ops.rotated_grams import PRODUCT_GRID, ROTATION_GRID, on_grid
from psi_engine.ops.separability import rotated_separability, separability
from psi_engine.ops.silhouette import silhouette
from psi_engine.ops.survey import survey
from psi_engine.types import ActivationShape

GOALS = {
    "S, M = 20": 0.03,
    "S, M = 1000": 1.0,
    "Q, M = 1000": 0.02,
    "D, M = 1000": 0.3,
    "mining all images": 0.1,
    "run fp16": 25.0,
    "run fp32": 45.0,
}
"""Seconds on one H200."""

RUN: dict[str, dict[str, Any]] = {
    "cuda": {"model": "resnet50", "layers": ["layer3", "layer4"], "image_size": 224},
    "cpu": {
        "model": "resnet18",
        "layers": ["layer1"],
        "channels": ["layer1:0-1"],
        "image_size": 32,
        "pool": 12,
        "top_k": 8,
    },
}
"""What the run is made of; the small one tests this file."""

NEEDED = ("pytest", "pytest_timeout", "hypothesis", "numba", "pooch", "open_clip", "ftfy", "PIL")
PATCHES, RESTARTS, BATCH = 50, 5, 128
TEST_SECONDS = 150
COMPARED = 64  # channels that stand for all where torch would take too long


def main(arguments: Sequence[str] | None = None) -> Results:
    """Print and write one row per thing measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for gpu.csv and gpu.json")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--channels", type=int, default=3072)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--replicates", type=int, nargs="*", default=[20, 1000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=12, help="processes that decode the run")
    parser.add_argument("--parts", nargs="*", default=["tests", "ops", "mining", "run", "score"])
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "torch sees no CUDA device: nothing was measured (--device cpu tests this)"
        )
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise SystemExit(f"not installed: {', '.join(missing)}; nothing was measured")
    settings = vars(options) | {"patches": PATCHES, "restarts": RESTARTS}
    results = Results("gpu", settings, keep=options.out)
    steps: dict[str, Callable[[Results, argparse.Namespace], None]] = {
        "tests": tests, "ops": operations, "mining": mined, "run": paper_runs, "score": scores,
    }  # fmt: skip
    for name in options.parts:
        try:
            steps[name](results, options)
        except Exception as error:  # the machine is lent once: the other parts still count
            failed(results, name, error)
    return results


def failed(results: Results, what: str, error: object) -> None:
    """Keep what went wrong as a row."""
    results.add(what=what, failed=" ".join(f"{type(error).__name__}: {error}".split())[:500])


def tests(results: Results, options: argparse.Namespace) -> None:
    """Run what is marked ``gpu``, with a limit for each test and for all."""
    files = [
        str(x) for x in sorted(Path("tests").rglob("test_*.py")) if "mark.gpu" in x.read_text()
    ]
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "--timeout=40", *files]
    started = time.perf_counter()
    log = (options.out or Path(tempfile.mkdtemp())) / "gpu-tests.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        try:
            code: object = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, timeout=TEST_SECONDS
            ).returncode
        except subprocess.TimeoutExpired:
            code = f"stopped after {TEST_SECONDS} s"
    lines = log.read_text().strip().splitlines()
    wrong = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    print("\n".join(lines[-30:]), flush=True)
    results.add(
        what="tests marked gpu", exit=code, result=lines[-1] if lines else "",
        seconds=time.perf_counter() - started,
        failed="; ".join(wrong)[:2000] or (f"exit {code}" if code else None),
    )  # fmt: skip


class Ceilings:
    """What the device does at its best: bytes per second of a copy, products per second."""

    def __init__(self, device: str, rounds: int, results: Results) -> None:
        cuda = device == "cuda"
        source = torch.empty(1 << (30 if cuda else 22), device=device)
        target = torch.empty_like(source)
        side = 8192 if cuda else 256
        rows = torch.rand(side, side, device=device)
        wide, narrow = rows.double(), rows.bfloat16()
        works = {
            "copy": Work(lambda: target.copy_(source)),
            "float64 product": Work(lambda: wide @ wide),
            "float32 product": Work(lambda: rows @ rows),
            "bfloat16 product": Work(lambda: narrow @ narrow),
        }
        taken = interleave(works, rounds)
        size = {"copy": 8 * source.numel()}
        self.rate = {}
        for name, turns in taken.items():
            self.rate[name] = size.get(name, 2 * side**3) / min(x.seconds for x in turns)
            results.add(what="ceiling", name=name, per_second=self.rate[name])

    def floor(self, moved: float, products: float) -> float:
        """Least seconds for so many bytes and float64 operations."""
        return moved / self.rate["copy"] + products / self.rate["float64 product"]


def operations(results: Results, options: argparse.Namespace) -> None:
    """Every operation that has a kernel: the same bits, then the seconds of both paths."""
    ceilings = Ceilings(options.device, options.rounds, results)
    device, channels = options.device, options.channels
    rows = clustered(channels, device)
    grams, keys = rows @ rows.mT, hash_keys(torch.arange(channels, device=device), 1)
    labels = torch.arange(PATCHES, device=device).expand(channels, -1) % 5
    classes = torch.randint(0, 200, labels.shape, device=device)

    def silhouettes(backend: Any, some: slice) -> Tensor:
        return silhouette(grams[some], labels[some], backend=backend)

    def separable(backend: Any, some: slice) -> Tensor:
        return separability(grams[some], keys[some], restarts=RESTARTS, backend=backend).score

    def informed(m: int, backend: Any, some: slice) -> Tensor:
        return permutation_nmi(labels[some], classes[some], keys[some], m, backend=backend)

    compare(results, ceilings, options, "silhouette", silhouettes, moved=4 * grams.numel())
    compare(results, ceilings, options, "separability", separable, moved=4 * grams.numel())
    for m in options.replicates:
        moved = 8 * channels * m
        compare(results, ceilings, options, f"Q, M = {m}", partial(informed, m), moved=moved)
        compare(
            results, ceilings, options, f"S, M = {m}", Rotated(rows, m).score,
            moved=moved, products=4 * channels * m * PATCHES**3,
        )  # fmt: skip


def clustered(channels: int, device: str) -> Tensor:
    """Unit rows of three modes: float32 (channels, PATCHES, 512)."""
    random = torch.Generator(device).manual_seed(0)
    centres = torch.randn(channels, 3, 512, generator=random, device=device)
    which = torch.randint(0, 3, (channels, PATCHES, 1), generator=random, device=device)
    noise = torch.randn(channels, PATCHES, 512, generator=random, device=device)
    return torch.nn.functional.normalize(
        centres.gather(1, which.expand(-1, -1, 512)) + 1.5 * noise, dim=-1
    )


class Rotated:
    """What the null ``rotation-samples`` asks for: every channel under every rotation."""

    def __init__(self, rows: Tensor, replicates: int) -> None:
        device, (channels, n, _) = rows.device, rows.shape
        products = rows.double() @ rows.double().mT
        norm = products.flatten(1).norm(dim=1)
        self.scale = torch.ldexp(torch.ones_like(norm), torch.frexp(norm).exponent)
        self.products = on_grid(products / self.scale[:, None, None], PRODUCT_GRID)
        turns = torch.arange(replicates, device=device)
        self.rotations = on_grid(rotations_about_ones(hash_keys(turns, 2), n), ROTATION_GRID)
        self.keys = hash_keys(torch.arange(channels, device=device)[:, None], turns)

    def score(self, backend: Any, some: slice) -> Tensor:
        """S of some channels under every rotation."""
        sets = (self.rotations, self.products[some], self.scale[some], 0.0, self.keys[some])
        return rotated_separability(*sets, restarts=RESTARTS, backend=backend)


def compare(
    results: Results,
    ceilings: Ceilings,
    options: argparse.Namespace,
    name: str,
    run: Callable[[Any, slice], Tensor],
    *,
    moved: int = 0,
    products: int = 0,
) -> None:
    """Hold the kernel's bits against torch's on some channels, then time both on these and all."""
    kernel = "cuda" if options.device == "cuda" else "numba"
    some, every = slice(0, COMPARED), slice(None)
    first, again, other = run(kernel, some), run(kernel, some), run("torch", some)
    if not same(first, again):
        failed(results, name, RuntimeError("two calls gave different bits"))
    if not same(first, other):
        apart = float((first - other).nan_to_num(torch.inf).abs().max())
        failed(results, name, RuntimeError(f"the kernel differs from torch by {apart:.3g}"))
    few = min(COMPARED, options.channels)
    works = {
        (kernel, options.channels): partial(run, kernel, every),
        (kernel, few): partial(run, kernel, some),
        ("torch", few): partial(run, "torch", some),
    }
    taken = interleave({key: Work(work) for key, work in works.items()}, options.rounds)
    for (backend, channels), turns in taken.items():
        share = channels / options.channels
        seconds = spread([x.seconds for x in turns])
        floor = ceilings.floor(moved * share, products * share)
        results.add(
            what=name, backend=backend, channels=channels, seconds=seconds, floor=floor,
            of_floor=floor / seconds.p50, goal=GOALS.get(name) if share == 1 else None,
            peak_mib=peak_mib(works[backend, channels], options.device),
        )  # fmt: skip


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bits, NaN in the same places."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def peak_mib(run: Callable[[], Any], device: str) -> float | None:
    """MiB of the GPU that a call takes beyond what is held already."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def mined(results: Results, options: argparse.Namespace) -> None:
    """Take in layer3 and layer4 of a ResNet-50 at 224 pixels, as a run does, batch after batch."""
    ceilings = Ceilings(options.device, options.rounds, results)
    device, cuda = options.device, options.device == "cuda"
    sizes = [(1024, 14), (2048, 7)] if cuda else [(16, 4)]
    batches = max(1, options.images // BATCH)
    for dtype in (torch.float32, torch.float16):
        # Several, so that none is read from a cache; seen again, their sites only tie.
        maps = [
            [
                torch.randn(BATCH, channels, side, side, device=device)
                .relu_().to(dtype).to(memory_format=torch.channels_last)
                for channels, side in sizes
            ]
            for _ in range(16 if cuda else 2)
        ]  # fmt: skip
        kept = [same_buffers(x.flatten(2), device, cuda) for x in maps[0]]
        if not all(kept):
            failed(results, f"survey {dtype}", RuntimeError("the kernel differs from torch"))
        moved = sum(x.numel() * x.element_size() for x in maps[0]) * batches
        for config, name in (
            (MineConfig(top_k=PATCHES, bottom_k=0, reservoir=0, pool=0), "top-K, all images"),
            (MineConfig(top_k=PATCHES), "mining all images"),
        ):
            turns = interleave(
                {name: Work(partial(take_in, maps, sizes, config, batches, device))},
                max(1, options.rounds // 2),
            )[name]
            seconds = spread([x.seconds for x in turns])
            floor = ceilings.floor(moved, 0)
            results.add(
                what=name, dtype=str(dtype), images=batches * BATCH, seconds=seconds, floor=floor,
                of_floor=floor / seconds.p50, goal=GOALS.get(name),
            )  # fmt: skip


def same_buffers(x: Tensor, device: str, cuda: bool) -> bool:
    """Whether the kernel and torch keep the same entries of one batch."""
    found = []
    for backend in ("cuda" if cuda else "auto", "torch"):
        ends = [topk.empty(x.shape[1], k, torch.float32, device) for k in (PATCHES, 10)]
        ids = torch.arange(len(x), device=device)
        *kept, _ = survey(x, ids, *ends, sites_per_group=1, fresh=True, backend=backend)
        found.append(kept)
    return all(
        same(a, b)
        for ours, theirs in zip(*found, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    )


def take_in(
    maps: list[list[Tensor]],
    sizes: list[tuple[int, int]],
    config: MineConfig,
    batches: int,
    device: str,
) -> None:
    """Mine every layer of every batch."""
    miners = [
        Miner(f"layer{at}", ActivationShape("map", channels, (side, side)), config, device=device)
        for at, (channels, side) in enumerate(sizes)
    ]
    for at in range(batches):
        ids = torch.arange(at * BATCH, (at + 1) * BATCH)
        for miner, x in zip(miners, maps[at % len(maps)], strict=True):
            miner.update(x, ids)


def scores(results: Results, options: argparse.Namespace) -> None:
    """S, S with Q, and all three through :func:`psi_engine.score`; D is what it adds."""
    for replicates in options.replicates:
        scorer = Scorer(Size(options.channels, replicates=replicates), options.device)
        works = {parts: Work(partial(scorer.run, parts)) for parts in ("S", "SQ", "SQD")}
        taken = interleave(works, max(1, options.rounds // 2))
        for parts, turns in taken.items():
            seconds = spread([x.seconds for x in turns])
            results.add(what=f"score {parts}, M = {replicates}", seconds=seconds)
        more = [x.seconds - y.seconds for x, y in zip(taken["SQD"], taken["SQ"], strict=True)]
        name = f"D, M = {replicates}"
        results.add(what=name, seconds=spread(more), goal=GOALS.get(name))


def paper_runs(results: Results, options: argparse.Namespace) -> None:
    """The run over generated images, in fp16 and in exact fp32."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        started = time.perf_counter()
        write_images(folder / "images.parquet", options.images)
        if options.device == "cuda":
            write_clip(folder / "clip.pt")
        results.add(what="images written", images=options.images, seconds=since(started))
        encoder = (
            {"encoder": "open_clip:ViT-B-32", "encoder_weights": str(folder / "clip.pt")}
            if options.device == "cuda"
            else {"encoder": "timm:resnet10t", "encoder_weights": "none"}
        )
        for precision in ("fp16", "fp32") if options.device == "cuda" else ("fp32",):
            config = RunConfig.from_options(
                "paper",
                **RUN[options.device] | encoder,
                weights="none",
                data=str(folder / "images.parquet"),
                device=options.device,
                workers=options.workers,
                precision=precision,
                s_null="rotation-samples",
                solver="hartigan",
                restarts=RESTARTS,
                subsamples=0,
                out=str(folder / precision),
            )
            started = time.perf_counter()
            done = psi.run(config)
            stages = {name: stage.get("seconds") for name, stage in done.manifest["stages"].items()}
            results.add(
                what=f"run {precision}", seconds=since(started), goal=GOALS[f"run {precision}"],
                **stages,
            )  # fmt: skip


def since(started: float) -> float:
    """Seconds from a reading of the clock to now."""
    return time.perf_counter() - started


def write_images(path: Path, count: int) -> None:
    """A Parquet file of JPEGs, 64 pixels wide; 512 different ones over and over, 200 classes."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    different = []
    random = generator(0, "images")
    for _ in range(min(count, 512)):
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        different.append(buffer.getvalue())
    data = [{"bytes": different[i % len(different)], "path": f"{i}.jpg"} for i in range(count)]
    labels = [i % 200 for i in range(count)]
    pq.write_table(pa.table({"image": data, "label": labels}), path, row_group_size=1000)


def write_clip(path: Path) -> None:
    """CLIP's ViT-B/32 with random weights, as a file that the encoder takes."""
    from psi_engine.models.clip import build_clip

    torch.manual_seed(0)
    torch.save(build_clip("ViT-B-32", "none").module.state_dict(), path)


if __name__ == "__main__":
    raise SystemExit(any(row.get("failed") for row in main().rows))
