"""One rank of a test job: ``python -m torch.distributed.run … -m tests.distributed.job``."""

from __future__ import annotations

import json
import os
import signal
import sys

import psi_engine as psi
from psi_engine import embedding, mining_pass


def main() -> None:
    """Run with the options of a JSON file; die on the way when it says so."""
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    mining_pass.CHECKPOINT_IMAGES = job.get("checkpoint", 4096)
    embedding.BLOCK = job.get("block", 256)
    rank = int(os.environ.get("RANK", 0))
    death = job.get("death", {})

    def die(what: str, done: int, total: int) -> None:
        if what == death.get("what") and done >= death["at"]:
            os.kill(os.getpid(), signal.SIGKILL)

    if rank == death.get("rank"):
        original = psi.mining.mine

        def mine(*args, progress=None, **kwargs):
            return original(*args, progress=die, **kwargs)

        mining_pass.mine = mine
    psi.run(psi.RunConfig.from_options(**job["options"]))


if __name__ == "__main__":
    main()
