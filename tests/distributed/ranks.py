"""One rank of a job that only exchanges things: ``python -m tests.distributed.ranks CASE``."""

from __future__ import annotations

import sys
from itertools import product

import pytest
import torch

from psi_engine.distributed import World, join
from psi_engine.errors import RankError
from psi_engine.mining import exchange, mine
from tests.mining.test_exactness import IMAGES, KINDS, Bare, Items, data
from tests.mining.test_miner import assert_brute_force
from tests.mining.test_stream import config


def exchanges(world: World) -> None:
    counts = [1, 0, 2][: world.size]
    x = torch.arange(sum(counts) * 2).reshape(-1, 2) + 100 * world.rank
    found = world.exchange(x, counts)
    share = slice(sum(counts[: world.rank]), sum(counts[: world.rank + 1]))
    base = torch.arange(sum(counts) * 2).reshape(-1, 2)[share]
    assert [part.tolist() for part in found] == [
        (base + 100 * rank).tolist() for rank in range(world.size)
    ]
    assert world.from_main(lambda: ("told", world.rank)) == ("told", 0)
    assert world.all_gather(world.rank) == list(range(world.size))
    assert world.gather(world.rank) == (list(range(world.size)) if world.main else None)
    assert world.in_turn(lambda: world.rank) == world.rank
    world.require_same("things", 1)


def main_fails(world: World) -> None:
    def fail() -> None:
        raise ValueError("no such thing")

    wanted, said = (ValueError, "no such") if world.main else (RankError, "rank 0 stopped; got no")
    with pytest.raises(wanted, match=said):
        world.from_main(fail)


def one_dies(world: World) -> None:
    if world.rank == 0:
        with pytest.raises(RankError, match="another rank ended"):
            world.wait()


def mines(world: World) -> None:
    """Every kind of data, mined in shares and joined: what a full sort of everything finds."""
    for kind, sites in product(KINDS, ("per-image", "all")):
        c = config(sites=sites)
        found = mine(
            Bare(),
            Items(kind),
            ["layer"],
            c,
            indices=torch.arange(IMAGES)[world.share(IMAGES)],
            finish=lambda miners: exchange(miners, world) or {},
        )
        assert len(list(found)) == world.main
        if world.main:
            assert_brute_force(found["layer"], data(kind), list(range(IMAGES)), c, "layer")


CASES = {work.__name__: work for work in (exchanges, main_fails, one_dies, mines)}

if __name__ == "__main__":
    with join("cpu") as joined:
        CASES[sys.argv[1]](joined)
    sys.stdout.write(f"{joined.rank} fine\n")  # one write: the ranks share a pipe
