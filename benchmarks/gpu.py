"""The whole check on a GPU: tests, every operation beside its floor, the paper's run.

    python -m benchmarks.gpu --out benchmarks/results

First the tests marked ``gpu``. Then each operation's kernel and torch path in turns, after their
results were compared bit for bit, with the bytes it must move or the products it must make over
what this device was measured to do at its best (a large copy, a large matrix product): that is the
floor, the longer of the two. Then the miner's step (the same few batches over and over), a run over
generated images as in the paper (ResNet-50, layer3 and layer4, all sites, K = 50, prompts, a null
that clusters every draw again) with random weights and the project's own solver (only its speed
means anything), ``psi.score``, and the kernels that take most of its time and of the miner's.

Every row is written as it comes. What differs or fails becomes a row, the rest goes on, and the
exit status is 1. ``--device cpu`` does the same on small sizes, to test this file.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

import psi_engine as psi
from benchmarks.goals import aim_of
from benchmarks.harness import Results, Work, interleave, spread
from benchmarks.operations import PATCHES, RESTARTS, failed, operations
from benchmarks.problems import generator
from benchmarks.profiles import profiles
from benchmarks.routes import Size
from benchmarks.scoring import Scorer
from benchmarks.survey import mined
from psi_engine.config import RunConfig

PROJECT = Path(__file__).parents[1]

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
MARK = re.compile(r"^ *(@pytest|pytestmark = pytest)\.mark\.gpu", re.MULTILINE)
TEST_SECONDS, TESTERS = 180, 6


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
    parser.add_argument("--parts", nargs="*", default=list(STEPS))
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "torch sees no CUDA device: nothing was measured (--device cpu tests this)"
        )
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise SystemExit(f"not installed: {', '.join(missing)}; nothing was measured")
    settings = vars(options) | {"patches": PATCHES, "restarts": RESTARTS}
    results = Results("gpu", settings, keep=options.out)
    for name in options.parts:
        try:
            STEPS[name](results, options)
        except Exception as error:  # the other parts still count
            failed(results, name, error)
    if options.out:
        results.write(options.out)
    return results


def tests(results: Results, options: argparse.Namespace) -> None:
    """Run what is marked ``gpu``, some files at a time: most of it is compiling, by one core."""
    files = sorted((PROJECT / "tests").rglob("test_*.py"))
    files = [path for path in files if MARK.search(path.read_text(encoding="utf-8"))]
    folder = options.out or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    until = time.perf_counter() + TEST_SECONDS
    with (
        ThreadPoolExecutor(TESTERS) as testers,
        (folder / "gpu-tests.log").open("w", encoding="utf-8", buffering=1) as log,
    ):
        at_work = {testers.submit(tested, path, until): path for path in files}
        for done in as_completed(at_work):
            code, text, seconds = done.result()
            log.write(text)
            lines = text.strip().splitlines()
            wrong = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
            results.add(
                what="tests marked gpu", file=str(at_work[done].relative_to(PROJECT)), exit=code,
                result=lines[-1] if lines else "", seconds=seconds,
                failed="; ".join(wrong)[:2000] or (f"ended with {code}" if code else None),
            )  # fmt: skip


def tested(path: Path, until: float) -> tuple[object, str, float]:
    """The exit status of a file's tests, what they printed, and seconds."""
    # The first test compiles loops for the CPU's side; warnings of other versions are no failures.
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "--timeout=90", "-W", "default"]
    threads = str(max(1, (os.cpu_count() or 1) // TESTERS))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as loops:  # numba's files are not made for many writers
        shares = {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}
        try:
            done = subprocess.run(
                [*command, str(path)],
                cwd=PROJECT,
                env=os.environ | shares | {"NUMBA_CACHE_DIR": loops},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=max(0.0, until - started),
            )
            code: object = done.returncode
            printed = done.stdout
        except subprocess.TimeoutExpired as error:
            code, printed = f"a stop after {TEST_SECONDS} s of all tests", error.stdout or b""
    return code, printed.decode(errors="replace"), since(started)


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
        results.add(what=f"score D, M = {replicates}", seconds=spread(more))


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
            taken = since(started)
            aim = aim_of({"what": f"run {precision}"}, vars(options))
            results.add(what=f"run {precision}", seconds=taken, goal=aim and aim.goal, **stages)


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


STEPS: dict[str, Callable[[Results, argparse.Namespace], None]] = {
    "tests": tests,
    "ops": operations,
    "mining": mined,
    "run": paper_runs,
    "score": scores,
    "profiles": profiles,
}
"""What is done, in this order; ``--parts`` names some."""


if __name__ == "__main__":
    raise SystemExit(any(row.get("failed") for row in main().rows))
