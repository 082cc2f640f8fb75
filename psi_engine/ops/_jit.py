"""Compile loops with numba and run them in threads.

The compiled loops release the interpreter lock and run in plain threads, so that neither OpenMP
nor forked workers meet numba's own threading layers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numba
import torch

from psi_engine.ops.fixed_point import bad_gram

_TASKS_PER_THREAD = 8


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a loop when it is first called; keep the code on disk where that is possible.

    numba trusts code on disk as long as the function's own file is unchanged, though it depends
    on constants and functions of others: the stamp here covers every file of the package's ops.
    """
    try:
        dispatcher: Any = numba.njit(nogil=True, cache=True)(function)
        index = dispatcher._cache._cache_file
        index._source_stamp = (index._source_stamp, _stamp())
    except (RuntimeError, AttributeError):  # nowhere to keep it, or another numba inside
        return numba.njit(nogil=True)(function)
    return dispatcher


@cache
def _stamp() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def in_threads(work: Callable[..., bool], items: int, *arguments: Any, least: int = 1) -> None:
    """Run ``work(start, stop, *arguments)`` over ranges of the items, in torch's thread count.

    A range is at least ``least`` items long, for work that is not worth a thread's start.

    Raises
    ------
    InputError
        A range returned False: it met a Gram matrix that holds no cosines.
    """
    most = int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    threads = max(1, min(torch.get_num_threads(), most, -(-items // least)))
    if threads == 1:
        good = work(0, items, *arguments)
    else:
        size = max(least, -(-items // (threads * _TASKS_PER_THREAD)))
        starts = range(0, items, size)
        with ThreadPoolExecutor(threads, thread_name_prefix="psi-engine") as pool:
            tasks = [pool.submit(work, at, min(at + size, items), *arguments) for at in starts]
            good = min(task.result() for task in tasks)  # no short cut: all must end
    if not good:
        raise bad_gram()
