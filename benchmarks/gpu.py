"""The whole check on a GPU: tests, every operation beside its floor, the paper's run.

    python -m benchmarks.gpu --out benchmarks/results

First the tests marked ``gpu``. Then each operation's kernel and torch path in turns, after their
results were compared, with the bytes it must move or the products it must make over what this
device was measured to do at its best (a large copy, a large matrix product): that is the floor.
At last a run as in the paper (ResNet-50, layer3 and layer4, all sites, K = 50, a null that clusters
every draw again, 100,000 images of 64 pixels) with random weights: only its speed means anything.
Rows are written as they come, so that a check cut short keeps what it has. ``--device cpu`` runs
the same on small sizes, to test this file.
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
from psi_engine.config import RunConfig
from psi_engine.nulls.draws import rotations_about_ones
from psi_engine.ops import topk
from psi_engine.ops.contingency import permutation_nmi
from psi_engine.ops.random import hash_keys
from psi_engine.ops.rotated_grams import PRODUCT_GRID, ROTATION_GRID, on_grid
from psi_engine.ops.separability import rotated_separability, separability
from psi_engine.ops.silhouette import silhouette
from psi_engine.ops.survey import survey

GOALS = {
    "S, M = 20": 0.03,
    "S, M = 1000": 1.0,
    "Q, M = 1000": 0.02,
    "D, M = 1000": 0.3,
    "top-K, all images": 0.1,
    "run fp16": 25.0,
    "run fp32": 45.0,
}
"""Seconds on one H200."""

RUN = {
    "cuda": {
        "model": "resnet50",
        "layers": ["layer3", "layer4"],
        "image_size": 224,
        "encoder": "open_clip:ViT-B-32",
    },
    "cpu": {
        "model": "resnet18",
        "layers": ["layer1"],
        "channels": ["layer1:0-1"],
        "image_size": 32,
        "encoder": "timm:resnet10t",
        "pool": 12,
        "top_k": 8,
    },
}
"""What the run is made of; the small one tests this file."""

PATCHES, RESTARTS, BATCH = 50, 5, 256
TEST_SECONDS = 150


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
    parser.add_argument("--parts", nargs="*", default=["tests", "ops", "score", "run"])
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "torch sees no CUDA device: nothing was measured (--device cpu tests this)"
        )
    results = Results("gpu", vars(options) | {"patches": PATCHES, "restarts": RESTARTS})
    steps: dict[str, Callable[[Results, argparse.Namespace], None]] = {
        "tests": tests, "ops": operations, "score": scores, "run": paper_runs,
    }  # fmt: skip
    for name in options.parts:
        steps[name](results, options)
        if options.out:
            results.write(options.out)
    return results


def tests(results: Results, options: argparse.Namespace) -> None:
    """Run what is marked ``gpu``; the rest of the check goes on if a test fails."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TEST_SECONDS)
        print(done.stdout[-4000:], flush=True)
        lines = done.stdout.strip().splitlines()
        found = lines[-1] if lines else done.stderr[-200:]
    except subprocess.TimeoutExpired:
        found = f"stopped after {TEST_SECONDS} s"
    results.add(what="tests marked gpu", result=found, seconds=time.perf_counter() - started)


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


def operations(results: Results, options: argparse.Namespace) -> None:
    """Every operation that has a kernel: the same result, then the seconds of both paths."""
    ceilings = Ceilings(options.device, options.rounds, results)
    device, channels = options.device, options.channels
    rows = clustered(channels, device)
    grams, keys = rows @ rows.mT, hash_keys(torch.arange(channels, device=device), 1)
    labels = torch.arange(PATCHES, device=device).expand(channels, -1) % 5
    compare(
        results, ceilings, options, "silhouette",
        lambda backend: silhouette(grams, labels, backend=backend),
        moved=grams.numel() * 4,
    )  # fmt: skip
    compare(
        results, ceilings, options, "separability",
        lambda backend: separability(grams, keys, restarts=RESTARTS, backend=backend).score,
        moved=grams.numel() * 4,
    )  # fmt: skip
    classes = torch.randint(0, 200, labels.shape, device=device)
    for replicates in options.replicates:
        compare(
            results, ceilings, options, f"Q, M = {replicates}",
            lambda backend, m=replicates: permutation_nmi(
                labels, classes, keys, m, backend=backend
            ),
            moved=8 * channels * replicates,
        )  # fmt: skip
        rotated = Rotated(rows, replicates)
        compare(
            results, ceilings, options, f"S, M = {replicates}", rotated.score,
            products=4 * channels * replicates * PATCHES**3, torch_too=replicates <= 20,
        )  # fmt: skip
    for dtype in (torch.float32, torch.float16):
        mined(results, ceilings, options, dtype)


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

    def score(self, backend: Any) -> Tensor:
        """S of every channel and rotation."""
        sets = (self.rotations, self.products, self.scale, 0.0, self.keys)
        return rotated_separability(*sets, restarts=RESTARTS, backend=backend)


def compare(
    results: Results,
    ceilings: Ceilings,
    options: argparse.Namespace,
    name: str,
    run: Callable[[Any], Tensor],
    *,
    moved: int = 0,
    products: int = 0,
    torch_too: bool = True,
) -> None:
    """Compare the two paths' results, then their seconds, and the floor of what must be done."""
    backends = [kernel_of(options)] + ["torch"] * torch_too
    found = [run(backend) for backend in backends]
    apart = float((found[0] - found[-1]).nan_to_num(0.0).abs().max())
    if apart > 1e-5:
        raise SystemExit(f"{name}: the kernel differs from torch by {apart}; nothing was timed")
    floor = moved / ceilings.rate["copy"] + products / ceilings.rate["float64 product"]
    for backend, turns in interleave(
        {backend: Work(lambda b=backend: run(b)) for backend in backends}, options.rounds
    ).items():
        seconds = spread([x.seconds for x in turns])
        results.add(
            what=name, backend=backend, seconds=seconds, floor=floor, apart=apart,
            goal=GOALS.get(name), peak_mib=peak_mib(lambda b=backend: run(b), options.device),
        )  # fmt: skip


def kernel_of(options: argparse.Namespace) -> str:
    """The backend that is held against torch."""
    return "cuda" if options.device == "cuda" else "numba"


def peak_mib(run: Callable[[], Any], device: str) -> float | None:
    """MiB of the GPU that a call takes beyond what is held already."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def mined(
    results: Results, ceilings: Ceilings, options: argparse.Namespace, dtype: torch.dtype
) -> None:
    """Top-K of layer3 and layer4 of a ResNet-50 at 224 pixels, batch after batch."""
    device, cuda = options.device, options.device == "cuda"
    shapes = [(1024, 14), (2048, 7)] if cuda else [(16, 4)]
    # Several batches, so that none is read from a cache; seen again, their sites only tie.
    maps = [
        [
            torch.randn(BATCH, channels, side, side, device=device)
            .relu_()
            .to(dtype)
            .to(memory_format=torch.channels_last)
            .flatten(2)
            for channels, side in shapes
        ]
        for _ in range(8 if cuda else 2)
    ]
    batches = max(1, options.images // BATCH)

    def run(backend: Any, count: int) -> Tensor:
        kept = [
            [topk.empty(x.shape[1], k, torch.float32, device) for k in (PATCHES, 0)]
            for x in maps[0]
        ]
        for at in range(count):
            ids = torch.arange(at * BATCH, (at + 1) * BATCH, device=device)
            for layer, x in enumerate(maps[at % len(maps)]):
                *kept[layer], _ = survey(
                    x, ids, *kept[layer], sites_per_group=1, fresh=True, backend=backend
                )
        return torch.cat([top.keys for top, _ in kept])

    backend = "cuda" if cuda else "torch"
    if not torch.equal(run(backend, 3), run("torch", 3)):
        raise SystemExit("the survey kernel differs from torch; nothing was timed")
    moved = sum(x.numel() * x.element_size() for x in maps[0]) * batches
    turns = interleave({backend: Work(lambda: run(backend, batches))}, options.rounds)[backend]
    results.add(
        what="top-K, all images", backend=backend, dtype=str(dtype),
        seconds=spread([x.seconds for x in turns]), floor=moved / ceilings.rate["copy"],
        goal=GOALS["top-K, all images"],
    )  # fmt: skip


def scores(results: Results, options: argparse.Namespace) -> None:
    """S, S with Q, and all three through :func:`psi_engine.score`, M = 20 and 1000."""
    for replicates in options.replicates:
        scorer = Scorer(Size(options.channels, replicates=replicates), options.device)
        works = {parts: Work(partial(scorer.run, parts)) for parts in ("S", "SQ", "SQD")}
        for parts, turns in interleave(works, max(1, options.rounds // 2)).items():
            seconds = spread([x.seconds for x in turns])
            results.add(what=f"score {parts}, M = {replicates}", seconds=seconds)


def paper_runs(results: Results, options: argparse.Namespace) -> None:
    """The paper's run over generated images, in fp16 and in exact fp32."""
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images.parquet"
        started = time.perf_counter()
        write_images(images, options.images)
        results.add(what="images written", images=options.images, seconds=since(started))
        for precision in ("fp16", "fp32") if options.device == "cuda" else ("fp32",):
            config = RunConfig.from_options(
                "paper",
                **RUN[options.device],
                weights="none",
                encoder_weights="none",
                data=str(images),
                device=options.device,
                workers=options.workers,
                precision=precision,
                s_null="rotation-samples",
                out=str(Path(folder) / precision),
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


if __name__ == "__main__":
    main()
