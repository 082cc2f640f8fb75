"""Kill a run at random moments, again and again, and compare it with an undisturbed one.

    python -m benchmarks.kills [--kills 20] [--ranks 1] [--seed 0] [-- OPTIONS OF psi-engine run]

Without options the demo is run. Every kill is SIGKILL to all processes of the run, at a moment
drawn evenly over the time the undisturbed run took; a run that ends before its moment starts
again in an empty folder. At the end all files but the manifest (times) must be equal bit for bit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

TIMED = "manifest.json"


def main() -> None:
    """Print one line per kill and the verdict; exit 1 when a file differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("options", nargs="*")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        different = kill(
            Path(folder), arguments.options, arguments.kills, arguments.ranks, arguments.seed
        )
    print("different: " + ", ".join(different) if different else "every file is the same")
    raise SystemExit(bool(different))


def kill(folder: Path, options: Sequence[str], kills: int, ranks: int, seed: int) -> list[str]:
    """Run once undisturbed and once killed ``kills`` times; the files that differ come back."""
    calm, killed = folder / "calm", folder / "killed"
    started = time.perf_counter()
    if start(calm, options, ranks).wait():
        raise SystemExit("the undisturbed run failed")
    seconds = time.perf_counter() - started
    print(f"undisturbed: {seconds:.1f} s")
    moments, done, met = random.Random(seed), 0, Counter[str]()
    while done < kills:
        process = start(killed, options, ranks)
        try:
            if process.wait(moments.uniform(0, seconds)):
                raise SystemExit(f"the run failed by itself after {done} kills")
            shutil.rmtree(killed)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done += 1
            met[at := stage(killed)] += 1
            print(f"kill {done}: {at}")
    if start(killed, options, ranks).wait():
        raise SystemExit("the run does not go on")
    print("killed " + ", ".join(f"{count} times in {name}" for name, count in met.items()))
    return differing(calm, killed)


def start(out: Path, options: Sequence[str], ranks: int) -> subprocess.Popen[bytes]:
    """Start the run as a process group of its own."""
    launcher = []
    if ranks > 1:
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    command = ["run", *options] if options else ["demo"]
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "psi_engine", *command, "--quiet", "--out", str(out)],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def stage(out: Path) -> str:
    """What the run was doing."""
    manifest = out / TIMED
    if not manifest.exists():
        return "preparation"
    stages = json.loads(manifest.read_text(encoding="utf-8"))["stages"]
    return next((name for name, x in stages.items() if x["status"] != "done"), "between stages")


def differing(a: Path, b: Path) -> list[str]:
    """Files of two folders that are not the same, those that only one holds included."""
    files = {file.relative_to(root) for root in (a, b) for file in root.rglob("*")}
    return sorted(
        str(name)
        for name in files
        if name.name != TIMED and not (a / name).is_dir()
        if not ((a / name).exists() and (b / name).exists())
        or (a / name).read_bytes() != (b / name).read_bytes()
    )


if __name__ == "__main__":
    main()
