from __future__ import annotations

import threading

import numba
import pytest
import torch

from psi_engine.errors import InputError
from psi_engine.ops import _jit


def _double(x: int) -> int:
    return 2 * x


def test_code_is_kept_with_the_stamp_of_all_ops() -> None:
    dispatcher = _jit.compiled(_double)
    assert dispatcher(21) == 42
    assert _jit._stamp() in dispatcher._cache._cache_file._source_stamp


def test_compiles_without_a_place_to_keep_code(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = numba.njit

    def nowhere(**options: bool):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return genuine(**options)

    monkeypatch.setattr(numba, "njit", nowhere)
    assert _jit.compiled(_double)(21) == 42


@pytest.mark.parametrize("threads", [1, 2])
def test_ranges_cover_every_item_once(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 2)
    seen, lock = [], threading.Lock()

    def work(start: int, stop: int) -> bool:
        with lock:
            seen.extend(range(start, stop))
        return True

    _jit.in_threads(work, 101)
    assert sorted(seen) == list(range(101))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_bad_range_is_an_error_of_input(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 2)
    with pytest.raises(InputError, match="cosines"):
        _jit.in_threads(lambda start, stop: start > 0, 10)


def test_ranges_are_no_shorter_than_what_is_worth_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 2)
    seen = []

    def work(start: int, stop: int) -> bool:
        seen.append((start, stop))
        return True

    _jit.in_threads(work, 101, least=40)
    assert sorted(seen) == [(0, 40), (40, 80), (80, 101)]
    seen.clear()
    _jit.in_threads(work, 101, least=101)
    assert seen == [(0, 101)]
