"""One rank of a test job: ``python -m tests.distributed.job FILE``, under torchrun or alone.

FILE holds the run's ``options``, and ``deaths``: the image at which a rank kills itself while
mining, by rank.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import psi_engine as psi
from psi_engine import embedding, mining_pass


def main() -> None:
    """Run, saving often; die on the way when the file says so."""
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    mining_pass.CHECKPOINT_IMAGES, embedding.BLOCK = 16, 32
    death = job["deaths"].get(os.environ.get("RANK", "0"))
    if death is not None:
        original = mining_pass.mine

        def die(what: str, done: int, total: int) -> None:
            if done >= death:
                os.kill(os.getpid(), signal.SIGKILL)

        def mine(*args: Any, progress: Any, **kwargs: Any) -> Any:
            return original(*args, progress=die, **kwargs)

        mining_pass.mine = mine
    psi.run(psi.RunConfig.from_options(**job["options"]))


if __name__ == "__main__":
    main()
