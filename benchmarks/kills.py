"""Kill a run at random moments, again and again, and compare it with an undisturbed one.

    python -m benchmarks.kills [--kills 20] [--ranks 1] [--out FOLDER] -- OPTIONS OF psi-engine run

Without options the demo is run. Every kill is SIGKILL to the run and all its descendants (ranks,
processes that decode), at a moment drawn evenly over the time that the undisturbed run worked in
its folder, counted from when it begins or goes on. A run that ends before its moment starts again
in an empty folder. Whenever a run ends, all files but the manifest (times) must be those of the
undisturbed one, bit for bit, but for the folder's name in the settings. Runs save every
``--interval`` images of a rank and every ``--block`` crops instead of 4096 and 256, so that kills
fall between saved states of a short run.

``lost`` is what a run had told to be done when it was killed and the next one did again: images
of all ranks, crops; images that ``exact-fp16`` refines are not counted. Mining may lose an
interval a rank. Crops are told once they are on the disk, so none of those may be lost; of several
ranks, one tells an estimate, which is not held against them.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import Results

TIMED = "manifest.json"
CONFIG = "config.toml"
JOURNAL = "journal"  # environment variable: file in which each rank tells how far it is


def main() -> None:
    """Print one line per kill and the verdict; exit 1 when a file differs or work is lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--interval", type=int, default=64)
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--pause", type=float, default=0, help="seconds a step, to draw runs out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for kills.csv and kills.json")
    parser.add_argument("--job", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("options", nargs="*")
    arguments = parser.parse_args()
    if arguments.job:
        job(arguments.interval, arguments.block, arguments.pause, arguments.options)
        return
    settings = {name: x for name, x in vars(arguments).items() if name not in ("job", "options")}
    settings["options"] = " ".join(Path(x).name for x in arguments.options) or "demo"
    results = Results("kills", settings)
    with tempfile.TemporaryDirectory() as folder:
        a = arguments
        trial = Trial(Path(folder), a.options, a.ranks, a.interval, a.block, a.pause)
        trial.run(arguments.kills, arguments.seed, results)
    if arguments.out:
        results.write(arguments.out)
    raise SystemExit(bool(trial.different or trial.excess))


@dataclass
class Trial:
    """A run undisturbed, and the same run killed often.

    different : files that are not the same. excess : kills that lost more than they may.
    met : kills by stage.
    """

    folder: Path
    options: Sequence[str]
    ranks: int = 1
    interval: int = 64
    block: int = 32
    pause: float = 0
    different: list[str] = field(default_factory=list)
    excess: list[str] = field(default_factory=list)
    met: Counter[str] = field(default_factory=Counter)

    def run(self, kills: int, seed: int, results: Results | None = None) -> None:
        """Kill so many times, then let the run end, and compare."""
        tell = results.add if results else lambda **_: None
        calm, killed = self.folder / "calm", self.folder / "killed"
        process = self._start(calm)
        self._await_work(process)
        began = time.perf_counter()
        if process.wait():
            raise SystemExit("the undisturbed run failed")
        seconds = time.perf_counter() - began
        tell(what="undisturbed", seconds=seconds, files=len(contents(calm)))
        moments, done, before = random.Random(seed), 0, None
        while True:
            moment = moments.uniform(0, seconds) if done < kills else None  # at last, none
            process = self._start(killed)
            self._await_work(process)
            try:
                if process.wait(moment):
                    raise SystemExit(f"the run failed by itself after {done} kills")
            except subprocess.TimeoutExpired:
                slay(process)
                done += 1
            ended = process.returncode == 0
            now = Told.of(self._journal)
            images, crops = now.lost_since(before)
            if images > self.interval * self.ranks or (crops and self.ranks == 1):
                self.excess.append(f"after kill {done}: {images} images, {crops} crops")
            facts = {"lost_images": images, "lost_crops": crops}
            if ended:
                different = differing(calm, killed)
                self.different += different
                tell(what="end", kills=done, different=" ".join(different) or 0, **facts)
                if done == kills:
                    break
                shutil.rmtree(killed)
                before = None
                continue
            self.met[at := stage(killed)] += 1
            tell(
                what="kill", kills=done, seconds=moment, stage=at,
                images_mined=now.mined, crops_embedded=now.crops, **facts,
            )  # fmt: skip
            before = now.after(before)
        by_stage = {f"in_{name}": count for name, count in sorted(self.met.items())}
        tell(
            what="verdict", kills=done, different=len(self.different),
            lost_too_much=len(self.excess), **by_stage,
        )  # fmt: skip

    def _await_work(self, process: subprocess.Popen[bytes]) -> None:
        while process.poll() is None:
            if any("begin" in file.read_text() for file in self._journal.iterdir()):
                return
            time.sleep(0.02)

    @property
    def _journal(self) -> Path:
        return self.folder / "journal"

    def _start(self, out: Path) -> subprocess.Popen[bytes]:
        shutil.rmtree(self._journal, ignore_errors=True)
        self._journal.mkdir()
        launcher = []
        if self.ranks > 1:
            launcher = ["torch.distributed.run", "--standalone"]
            launcher += [f"--nproc-per-node={self.ranks}", "-m"]
        command = ["run", *self.options] if self.options else ["demo"]
        limits = {"interval": self.interval, "block": self.block, "pause": self.pause}
        limited = [f"--{name}={value}" for name, value in limits.items()]
        program = ["benchmarks.kills", "--job", *limited, "--", *command]
        return subprocess.Popen(
            [sys.executable, "-m", *launcher, *program, "--quiet", "--no-report", f"--out={out}"],
            stdout=subprocess.DEVNULL,
            env={**os.environ, JOURNAL: str(self._journal)},
        )


@dataclass(frozen=True)
class Told:
    """How far a job said it was: images it had to mine, and has mined; crops embedded.

    resumed : crops that were there when it began to embed; None if it did not.
    """

    to_mine: int | None
    mined: int
    crops: int
    resumed: int | None

    @classmethod
    def of(cls, journal: Path) -> Told:
        """Of the journals of all ranks."""
        todo, mined, crops, resumed = [], 0, 0, None
        for file in journal.iterdir():
            lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
            todo += [int(n) for what, n in lines if what == "todo"]
            mined += max((int(n) for what, n in lines if what == "mined"), default=0)
            found = [int(n) for what, n in lines if what == "crops"]
            crops = max([crops, *found])
            resumed = found[0] if found and resumed is None else resumed
        return cls(sum(todo) if todo else None, mined, crops, resumed)

    def lost_since(self, before: Told | None) -> tuple[int, int]:
        """Images and crops that the job before had done and this one began with undone."""
        if before is None:
            return 0, 0
        images = crops = 0
        if self.to_mine is not None and before.to_mine is not None:
            images = max(0, self.to_mine - (before.to_mine - before.mined))
        if self.resumed is not None:
            crops = max(0, before.crops - self.resumed)
        return images, crops

    def after(self, before: Told | None) -> Told:
        """What is known once this job is dead: a job that did not get as far tells nothing."""
        if before is None:
            return self
        mining = self if self.to_mine is not None else before
        return Told(mining.to_mine, mining.mined, max(self.crops, before.crops), None)


def job(interval: int, block: int, pause: float, command: Sequence[str]) -> None:
    """One process of the run: psi-engine itself, saving often and telling how far it is."""
    from psi_engine import embedding, mining_pass, pipeline
    from psi_engine.cli import main as program
    from psi_engine.mining import MINING

    mining_pass.CHECKPOINT_IMAGES, embedding.BLOCK = interval, block
    path = Path(os.environ[JOURNAL]) / os.environ.get("RANK", "0")
    with open(path, "w", encoding="utf-8", buffering=1) as journal:

        def told(
            work: Callable[..., Any], what: str, counted: str, begin: Callable[..., str]
        ) -> Any:
            def run(*args: Any, progress: Any = None, **kwargs: Any) -> Any:
                journal.write(begin(*args, **kwargs))

                def tell(step: str, done: int, total: int) -> None:
                    if step == counted:  # refining counts again from 0
                        journal.write(f"{what} {done}\n")
                    time.sleep(pause)
                    if progress is not None:
                        progress(step, done, total)

                return work(*args, progress=tell, **kwargs)

            return run

        def to_mine(*_: Any, indices: Any, **__: Any) -> str:
            return f"todo {len(indices)}\n"

        def resumed(folder: Path, *_: Any, **__: Any) -> str:
            notes = (folder / embedding.PARTS).rglob("*.json")
            return f"crops {sum(json.loads(note.read_text())['rows'] for note in notes)}\n"

        def begun(*args: Any, **kwargs: Any) -> Any:
            journal.write("begin 0\n")
            return open_folder(*args, **kwargs)

        open_folder, pipeline.run_folder = pipeline.run_folder, begun
        mining_pass.mine = told(mining_pass.mine, "mined", MINING, to_mine)
        pipeline.embed_boxes = told(pipeline.embed_boxes, "crops", "embedding", resumed)
        sys.argv = ["psi-engine", *command]
        program()


def slay(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that descends from it, launcher first, until none is left."""
    known = [process.pid]
    while alive := [pid for pid in _with_descendants(known) if _is_alive(pid)]:
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        known = sorted({*known, *alive})
        process.poll()
        time.sleep(0.01)
    process.wait()


def _with_descendants(pids: Sequence[int]) -> Iterator[int]:
    for pid in pids:
        yield pid
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                children = [int(x) for x in (task / "children").read_text().split()]
                yield from _with_descendants(children)


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def stage(out: Path) -> str:
    """What the run was doing."""
    manifest = out / TIMED
    if not manifest.exists():
        return "preparation"
    stages = json.loads(manifest.read_text(encoding="utf-8"))["stages"]
    return next((name for name, x in stages.items() if x["status"] != "done"), "between stages")


def contents(root: Path) -> set[Path]:
    """Files under a folder, but the manifest."""
    found = (file for file in root.rglob("*") if file.is_file() and file.name != TIMED)
    return {file.relative_to(root) for file in found}


def differing(a: Path, b: Path) -> list[str]:
    """Files of two folders that are not the same, those that only one holds included."""
    return sorted(
        str(name)
        for name in contents(a) | contents(b)
        if not ((a / name).exists() and (b / name).exists()) or _bytes(a / name) != _bytes(b / name)
    )


def _bytes(file: Path) -> bytes:
    found = file.read_bytes()
    if file.name == CONFIG:  # but for the folder that it was written to
        found = b"".join(x for x in found.splitlines(True) if not x.startswith(b"out ="))
    return found


if __name__ == "__main__":
    main()
