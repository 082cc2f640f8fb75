"""A miner with the kernels built for the CPU in the places of a GPU's: it keeps what it keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

from psi_engine.mining import miner
from psi_engine.ops import _cuda, reservoir, survey
from tests.kernels import test_reservoir, test_survey
from tests.kernels.building import HOPPER_SHARED, stand_ins
from tests.mining.test_cuda import SHAPE, batch, check, config, mined

SOURCES = {
    "survey": (test_survey.SIGNATURE, test_survey.CALL),
    "reservoir": (test_reservoir.SIGNATURE, test_reservoir.CALL),
}


@pytest.fixture(scope="module")
def on_kernels(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[], AbstractContextManager[list[str]]]:
    """Within it the CPU counts as a GPU; the kernels that were launched are listed."""
    parts = stand_ins(SOURCES, tmp_path_factory, watched=False)

    @contextmanager
    def patched() -> Iterator[list[str]]:
        launched: list[str] = []

        def kernel(name: str, defines: dict[str, str], device: torch.device) -> object:
            launched.append(name)
            return parts["kernel"](name, defines, device)

        with pytest.MonkeyPatch.context() as patch:
            for op in (survey, reservoir):
                patch.setattr(op, "resolve_backend", lambda backend, x: "cuda")
            patch.setattr(_cuda, "kernel", kernel)
            patch.setattr(_cuda, "launch", parts["launch"])
            patch.setattr(_cuda, "processors", lambda device: 2)
            patch.setattr(_cuda, "shared_memory_limit", lambda device: HOPPER_SHARED)
            patch.setattr(miner, "numba_reason", lambda device: "it counts as a GPU")
            patch.setattr(miner, "_POOL_AT_ONCE", 500)  # of 378 a batch
            yield launched

    return patched


@pytest.mark.parametrize(
    ("dtype", "channels_last"),
    [(torch.float32, False), (torch.float32, True), (torch.float16, True)],
)
@pytest.mark.parametrize("sites", ["per-image", "all"])
def test_kernels_keep_what_loops_keep(on_kernels, sites: str, channels_last: bool, dtype) -> None:
    order = (0, 9, 18, 27)
    with on_kernels() as launched:
        found = mined("cpu", sites, dtype, channels_last, order)
    assert launched == ["survey", "reservoir"] * 4
    check(found, mined("cpu", sites, dtype, channels_last, order))


def test_batches_out_of_order_between_those_in_order(on_kernels) -> None:
    """What comes before the newest image is merged in torch, into the same buffers."""
    with on_kernels() as launched:
        found = mined("cpu", "all", torch.float32, True, (9, 0, 27, 18, 36))
    assert launched == ["survey", "reservoir"] * 3
    check(found, mined("cpu", "all", torch.float32, True, (0, 9, 18, 27, 36)))


def test_a_saved_state_goes_on(on_kernels) -> None:
    with on_kernels():
        first, second = (miner.Miner("layer", SHAPE, config("all")) for _ in range(2))
        for start in (0, 9):
            first.update(*batch(start, torch.float32, True))
        second.load_state_dict(first.state_dict())
        for start in (18, 27):
            second.update(*batch(start, torch.float32, True))
        found = second.result()
    check(found, mined("cpu", "all", torch.float32, True, (0, 9, 18, 27)))
