"""What every benchmark here shares: clocks, peak memory, the machine's facts, result files.

Works that are compared take turns, so that a slow minute of the machine falls on all of them;
what is reported is the median of the rounds with its 20th and 80th percentile, and ratios are
taken within a round before the median is.
"""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

PACKAGES = (
    "torch", "torchvision", "timm", "numpy", "scipy", "numba", "scikit-learn", "cupy-cuda13x",
    "cupy-cuda12x", "faiss-gpu", "faiss-cpu", "torch-kmeans", "fast-pytorch-kmeans",
    "torchmetrics", "semanticlens", "zennit-crp", "cuml-cu13", "cuml-cu12", "flash-kmeans",
)  # fmt: skip
"""What psi-engine and its peers compute with; those that are installed are written down."""

SEEDINGS = 5
"""Seedings of psi-engine's solver: enough to match ten of the peers', see benchmarks.solver."""

MEASURED = ("psi_engine", "kernels", "benchmarks/*.py")
"""What a figure depends on: with changes in any of it, the commit alone tells too little."""

RESULTS = Path("benchmarks/results")
_HERE = Path(__file__).parent


Name = TypeVar("Name", bound=Hashable)


class Work(NamedTuple):
    """Something to time: ``run`` in every round, ``warm_up`` (None = ``run``) once before."""

    run: Callable[[], Any]
    warm_up: Callable[[], Any] | None = None


class Round(NamedTuple):
    """One timed call: its seconds and what it returned."""

    seconds: float
    value: Any


class Spread(NamedTuple):
    """20th, 50th and 80th percentile."""

    p20: float
    p50: float
    p80: float

    def __str__(self) -> str:
        return f"{self.p50:.4g} [{self.p20:.4g}, {self.p80:.4g}]"


def spread(values: Sequence[float]) -> Spread:
    """Percentiles of some measurements."""
    return Spread(*(float(x) for x in np.percentile(values, (20, 50, 80))))


def interleave(
    works: Mapping[Name, Work], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[Name, list[Round]]:
    """Warm every work up, then let them take turns, in an order that reverses every round."""
    for work in works.values():
        (work.warm_up or work.run)()
    taken: dict[Name, list[Round]] = {name: [] for name in works}
    for turn in range(rounds):
        for name in list(works)[:: -1 if turn % 2 else 1]:
            taken[name].append(timed(works[name].run, clock))
    return taken


def timed(run: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> Round:
    """Call once, with the GPU's queue empty at both ends if there is one in use."""
    synchronize()
    started = clock()
    value = run()
    synchronize()
    return Round(clock() - started, value)


def synchronize() -> None:
    """Wait for the GPU, if this process has used one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def in_fresh_process(work: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
    """What ``work(*arguments)`` returns in a process of its own, and that process's peak bytes.

    The peak counts everything resident: interpreter, libraries, data and work.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_with_peak, (work, arguments))


def _with_peak(work: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, int]:
    value = work(*arguments)
    return value, peak_memory()


def peak_memory() -> int:
    """Most bytes this process ever had resident.

    ``ru_maxrss`` of a child also counts what its parent held at the fork, so Linux's own count of
    this process comes first.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> bool:
    """Take what this process holds now for its peak; False where that cannot be done.

    Linux sets its mark back when 5 is written to ``/proc/self/clear_refs``.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def device_peak() -> int | None:
    """Most bytes torch held on the GPU; None where none was used."""
    torch = sys.modules.get("torch")
    used = torch is not None and torch.cuda.is_initialized()
    return torch.cuda.max_memory_allocated() if used else None


def machine() -> dict[str, Any]:
    """Device, cores, thread counts, versions and commit: what a figure depends on."""
    import numba
    import torch

    changes = _git("status", "--porcelain", "--", *MEASURED)
    return {
        # a copy without its history is told its commit
        "commit": _git("rev-parse", "--short=12", "HEAD") or os.environ.get("PSI_ENGINE_COMMIT"),
        "changed_since": None if changes is None else bool(changes),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": {"torch": torch.get_num_threads(), "numba": numba.config.NUMBA_NUM_THREADS},
        "environment": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith("OMP_")
        },
        "load_before": list(os.getloadavg()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=_HERE.parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _name(value: Any) -> Any:
    if isinstance(value, list):
        return [_name(item) for item in value]
    return value.name if isinstance(value, Path) else value


def _finite(value: Any) -> Any:
    """The same with None for what is not finite: JSON knows neither NaN nor infinity."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Results:
    """Rows of one benchmark, printed as they come and written as ``NAME.csv`` and ``NAME.json``.

    With ``keep`` both files are written again after every row: what is cut short keeps its rows,
    and ``finished`` in its facts is False. Numbers that are not finite are written as null.
    """

    def __init__(self, name: str, settings: Mapping[str, Any], keep: Path | None = None) -> None:
        self.name, self._keep = name, keep
        # a file by its name alone: folders differ between machines and show nothing
        shown = {key: _name(value) for key, value in settings.items() if key != "out"}
        self.facts = {"benchmark": name, "settings": shown, **machine()}
        self.rows: list[dict[str, Any]] = []
        self._started = time.perf_counter()

    def add(self, **row: Any) -> None:
        """Keep one row; a :class:`Spread` under ``x`` becomes ``x_p20``, ``x_p50``, ``x_p80``."""
        print("  ".join(f"{name} {_shown(value)}" for name, value in row.items()), flush=True)
        flat: dict[str, Any] = {}
        for name, value in row.items():
            if isinstance(value, Spread):
                flat |= {f"{name}_{which}": part for which, part in value._asdict().items()}
            else:
                flat[name] = value
        self.rows.append(flat)
        if self._keep:
            self._save(self._keep, finished=False)

    def write(self, out: Path) -> None:
        """Write both files into a folder; the csv has every column that any row has."""
        self._save(out, finished=True)
        print(f"{self.name}: {self.facts['wall_seconds']} s, written to {out}")

    def _save(self, out: Path, finished: bool) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.facts["finished"] = finished
        self.facts["wall_seconds"] = round(time.perf_counter() - self._started, 1)
        self.facts["peak_bytes"] = peak_memory()  # of this process, not of those it started
        columns = list(dict.fromkeys(column for row in self.rows for column in row))
        with (out / f"{self.name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            for row in self.rows:
                writer.writerow({name: _rounded(value) for name, value in row.items()})
        written = _finite({"facts": self.facts, "rows": self.rows})
        text = json.dumps(written, indent=1, ensure_ascii=False, allow_nan=False)
        (out / f"{self.name}.json").write_text(text + "\n", encoding="utf-8")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _rounded(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
