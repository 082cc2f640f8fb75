"""Where the time goes: the kernels that took most of it, by ``torch.profiler``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import Results
from benchmarks.operations import PATCHES
from benchmarks.routes import Size
from benchmarks.scoring import Scorer
from benchmarks.survey import BATCH, batches_of_maps, take_in
from psi_engine.config import MineConfig

TOP = 12
"""Kernels that become rows; the text file has more."""

_BATCHES = 32


def profiles(results: Results, options: argparse.Namespace) -> None:
    """Profile a score with the most replicates and the miner's step, each after a warm-up.

    On a GPU its kernels are counted, on a CPU torch's operators.
    """
    replicates = max(options.replicates)
    scorer = Scorer(Size(options.channels, replicates=replicates), options.device)
    maps = batches_of_maps(options.device, torch.float32, BATCH)
    config = MineConfig(top_k=PATCHES)
    texts = [
        profiled(results, name, work, options.device)
        for name, work in (
            (f"psi.score, M = {replicates}", scorer.run),
            ("mining", partial(take_in, maps, config, _BATCHES, options.device)),
        )
    ]
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "gpu-profile.txt").write_text("\n\n".join(texts), encoding="utf-8")


def profiled(results: Results, name: str, work: Callable[[], object], device: str) -> str:
    """Add a row for each of the kernels that took most; the profiler's own table."""
    cuda = device == "cuda"
    work()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=kinds) as seen:
        work()
        if cuda:
            torch.cuda.synchronize()
    averages = seen.key_averages()
    where = DeviceType.CUDA if cuda else DeviceType.CPU
    own = "self_device_time_total" if cuda else "self_cpu_time_total"
    taken = {x.key: (x.count, getattr(x, own)) for x in averages if x.device_type == where}
    whole = sum(microseconds for _, microseconds in taken.values())
    most = sorted(taken.items(), key=lambda item: item[1][1], reverse=True)[:TOP]
    for kernel, (calls, microseconds) in most:
        results.add(
            what="profile", of=name, kernel=kernel.split("(")[0][-60:], calls=calls,
            ms=microseconds / 1e3, share=microseconds / whole if whole else 0.0,
        )  # fmt: skip
    return f"{name}\n{averages.table(sort_by=own, row_limit=40, max_name_column_width=80)}"
