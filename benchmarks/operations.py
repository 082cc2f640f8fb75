"""Every operation that has a kernel: the same bits as torch, then seconds beside a floor.

The floor is the longer of two times: that of the bytes it must move, and that of the products it
must make, at what this device was measured to do at its best, a large copy and a large matrix
product in float64. Work on integers (the tables of Q, ranks, sums in fixed point) is in no floor.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.goals import NEAR, aim_of
from benchmarks.harness import Results, Spread, Work, interleave, spread
from psi_engine.nulls.draws import rotations_about_ones
from psi_engine.nulls.text_rotation import gram_roots
from psi_engine.ops.contingency import permutation_nmi
from psi_engine.ops.exact import quantise, unit_rows
from psi_engine.ops.naming import factored_measure
from psi_engine.ops.random import hash_keys
from psi_engine.ops.rotated_grams import PRODUCT_GRID, ROTATION_GRID, on_grid
from psi_engine.ops.separability import (
    pooled_separability,
    rotated_separability,
    separability,
)
from psi_engine.ops.silhouette import silhouette

PATCHES, RESTARTS, DIM = 50, 5, 512
CLUSTERS, TEXTS = 5, 300
"""Of the operation of D."""

POOL = 4096
COMPARED = 64  # problems that stand for all where torch would take too long


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

    def beside(self, seconds: Spread, moved: float, products: float) -> dict[str, Any]:
        """The floor, how near it is, and what was achieved, as columns of a row."""
        floor = self.floor(moved, products)
        found: dict[str, Any] = {
            "floor": floor, "of_floor": floor / seconds.p50,
            "near": seconds.p50 <= NEAR * floor,
        }  # fmt: skip
        for name, done, ceiling in (
            ("bytes_per_second", moved, "copy"),
            ("flop_per_second", products, "float64 product"),
        ):
            if done:
                rate = done / seconds.p50
                share = "copy_share" if ceiling == "copy" else "product_share"
                found |= {name: rate, share: rate / self.rate[ceiling]}
        return found

    def floor(self, moved: float, products: float) -> float:
        """Least seconds for so many bytes and float64 operations, which a device does at once."""
        return max(moved / self.rate["copy"], products / self.rate["float64 product"])


class Operation(NamedTuple):
    """One row's work: ``run(backend, some)`` on some of the ``problems``, and what all take."""

    name: str
    run: Callable[[Any, slice], Tensor]
    problems: int
    moved: int
    products: int = 0


def operations(results: Results, options: argparse.Namespace) -> None:
    """Compare and time every operation; one that breaks becomes a row."""
    ceilings = Ceilings(options.device, options.rounds, results)
    for operation in every(options):
        try:
            compare(results, ceilings, options, operation)
        except Exception as error:  # the others still count
            failed(results, operation.name, error)


def every(options: argparse.Namespace) -> Iterator[Operation]:
    """All operations that have a kernel, at the sizes of a paper's run."""
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

    yield Operation("silhouette", silhouettes, channels, moved=4 * grams.numel())
    yield Operation("separability", separable, channels, moved=4 * grams.numel())
    for m in options.replicates:
        moved = 8 * channels * m
        yield Operation(f"Q, M = {m}", partial(informed, m), channels, moved=moved)
        yield Operation(
            f"S, M = {m}", Rotated(rows, m).score, channels,
            moved=moved, products=4 * channels * m * PATCHES**3,
        )  # fmt: skip
        yield Operation(
            f"S of a pool, M = {m}", Pooled(m, device).score, m,
            moved=4 * m * PATCHES * DIM, products=2 * m * PATCHES**2 * DIM,
        )  # fmt: skip
        yield Operation(
            f"D, M = {m}", Named(rows, m).measure, channels,
            moved=moved + 4 * m * CLUSTERS * TEXTS,
            products=2 * channels * m * CLUSTERS**2 * TEXTS,
        )  # fmt: skip


def clustered(channels: int, device: str) -> Tensor:
    """Unit rows of three modes: float32 (channels, PATCHES, DIM)."""
    random = torch.Generator(device).manual_seed(0)
    centres = torch.randn(channels, 3, DIM, generator=random, device=device)
    which = torch.randint(0, 3, (channels, PATCHES, 1), generator=random, device=device)
    noise = torch.randn(channels, PATCHES, DIM, generator=random, device=device)
    return torch.nn.functional.normalize(
        centres.gather(1, which.expand(-1, -1, DIM)) + 1.5 * noise, dim=-1
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


class Pooled:
    """What the null ``pool`` asks for: sets of rows of one pool, that all channels share."""

    def __init__(self, replicates: int, device: str) -> None:
        self.rows = unit_rows(clustered(POOL // PATCHES, device).flatten(0, 1)).rows
        random = torch.Generator(device).manual_seed(1)
        scores = torch.rand(replicates, len(self.rows), generator=random, device=device)
        self.indices = scores.topk(PATCHES).indices
        self.keys = hash_keys(torch.arange(replicates, device=device), 3)

    def score(self, backend: Any, some: slice) -> Tensor:
        """S and mean cosine of some sets."""
        sets = (self.rows, self.indices[some], self.keys[some])
        return torch.stack(pooled_separability(*sets, restarts=RESTARTS, backend=backend))


class Named:
    """What the null ``text-rotation`` asks for: clusters against every turn of the texts."""

    def __init__(self, rows: Tensor, replicates: int) -> None:
        channels, device = len(rows), rows.device
        means = rows.unflatten(1, (CLUSTERS, -1)).mean(2)
        self.factors = gram_roots(unit_rows(means.flatten(0, 1)).rows.unflatten(0, (channels, -1)))
        random = torch.Generator(device).manual_seed(2)
        texts = torch.randn(replicates, CLUSTERS, TEXTS, generator=random, device=device)
        self.bank = quantise(texts / DIM**0.5)
        self.weights = torch.full((channels, CLUSTERS), 10.0, device=device, dtype=torch.float64)

    def measure(self, backend: Any, some: slice) -> Tensor:
        """D of some channels against every turn."""
        sets = (self.factors[some], self.bank, self.weights[some])
        return factored_measure(*sets, "contrast", backend=backend)


def compare(
    results: Results, ceilings: Ceilings, options: argparse.Namespace, work: Operation
) -> None:
    """Hold the kernel's bits against torch's on some problems, then time both on these and all."""
    kernel = "cuda" if options.device == "cuda" else "numba"
    name, run, count = work.name, work.run, work.problems
    some = slice(0, COMPARED)
    first, again, other = run(kernel, some), run(kernel, some), run("torch", some)
    if not same(first, again):
        failed(results, name, RuntimeError("two calls gave different bits"))
    if not same(first, other):
        apart = float((first - other).nan_to_num(torch.inf).abs().max())
        failed(results, name, RuntimeError(f"the kernel differs from torch by {apart:.3g}"))
    few = min(COMPARED, count)
    ours = {(kernel, n): partial(run, kernel, slice(n)) for n in {few, count}}
    theirs = {("torch", few): partial(run, "torch", some)}
    taken = interleave({key: Work(call) for key, call in ours.items()}, options.rounds)
    # torch takes seconds where a kernel takes milliseconds, and ran above: one round will do
    taken |= interleave({key: Work(call, lambda: None) for key, call in theirs.items()}, 1)
    for (backend, problems), turns in taken.items():
        share = problems / count
        seconds = spread([x.seconds for x in turns])
        aim = aim_of({"what": name, "problems": problems}, vars(options))
        results.add(
            what=name, backend=backend, problems=problems, seconds=seconds,
            **ceilings.beside(seconds, work.moved * share, work.products * share),
            goal=aim and aim.goal,
            peak_mib=peak_mib((ours | theirs)[backend, problems], options.device),
        )  # fmt: skip


def failed(results: Results, what: str, error: object) -> None:
    """Keep what went wrong as a row."""
    results.add(what=what, failed=" ".join(f"{type(error).__name__}: {error}".split())[:500])


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
