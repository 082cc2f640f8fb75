"""The run folder: what is written, under which name, and whether it is still true.

Every file is written beside its place under a temporary name and renamed, so a reader never sees
half a file. Each stage has a *key*: the hash of its settings and of its inputs' keys. A stage is
done when the manifest holds the key it would have now; a changed setting changes the keys of the
stages that depend on it and of no other.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from psi_engine.distributed import ALONE, World
from psi_engine.errors import DiskFullError, InputError, RunFolderError
from psi_engine.types import (
    ActivationShape,
    ActivationStats,
    LayerSites,
    Mined,
    PoolSites,
    SiteSet,
)

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
CONFIG = "config.toml"  # the settings
STAGES = ("mine", "patches", "embed", "score", "swap")
"""In the order they run; each needs the ones before it. A run ends with ``score``."""

_MINED_PARTS: dict[str, Any] = {
    "top": SiteSet,
    "bottom": SiteSet,
    "random": SiteSet,
    "pool": PoolSites,
    "stats": ActivationStats,
}

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``; rename it into place when the block succeeds.

    Raises
    ------
    DiskFullError
        There is no room; what stood at ``path`` stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with full_disk_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def full_disk_told(path: Path) -> Iterator[None]:
    """Turn the system's "no space left" into a :class:`DiskFullError` that says how to go on."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors tells the system's error in words only
        number = getattr(error, "errno", None)
        if number not in _FULL and os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise DiskFullError(
            "no room to write a file",
            got=f"{path}: {error}",
            fix="free some space, then give the same command again; what is saved stays",
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; dataclasses, paths and tuples are taken as they are."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, default=_plain) + "\n", encoding="utf-8")


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet table atomically."""
    with atomic(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
    """Write tensors (and strings beside them) atomically as safetensors."""
    with atomic(path) as temporary:
        copies, seen = {}, set()
        for name, value in tensors.items():
            # safetensors refuses tensors that share memory, as u and v of flat layers may; a copy
            # of each would double what a large state takes.
            place = value.untyped_storage().data_ptr()
            copies[name] = value.contiguous().clone() if place in seen else value.contiguous()
            seen.add(place)
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(copies, temporary, metadata=dict(notes))
        temporary.chmod(mode)  # safetensors leaves a file that its owner alone can read


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what :func:`write_tensors` wrote."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def write_mined(path: Path, mined: Mined) -> None:
    """Write mined sites atomically; :func:`read_mined` gives the same bits back."""
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    for name, layer in mined.items():
        tensors[f"{name}/channels"] = layer.channels
        for part in _MINED_PARTS:
            for field_name, value in _entries(getattr(layer, part)).items():
                tensors[f"{name}/{part}/{field_name}"] = value
        facts[name] = {"shape": asdict(layer.shape), "images": layer.images}
    write_tensors(path, tensors, {"layers": json.dumps(facts)})


def read_mined(path: Path) -> Mined:
    """Read what :func:`write_mined` wrote."""
    tensors, notes = read_tensors(path)
    layers = {}
    for name, facts in json.loads(notes["layers"]).items():
        parts = {
            part: kind(**{field: tensors[f"{name}/{part}/{field}"] for field in _field_names(kind)})
            for part, kind in _MINED_PARTS.items()
        }
        shape = facts["shape"]
        layers[name] = LayerSites(
            layer=name,
            shape=ActivationShape(shape["kind"], shape["channels"], tuple(shape["grid"])),
            channels=tensors[f"{name}/channels"],
            images=facts["images"],
            **parts,
        )
    return Mined(layers)


def _entries(part: Any) -> dict[str, Tensor]:
    return {name: getattr(part, name) for name in _field_names(type(part))}


def _field_names(kind: type) -> tuple[str, ...]:
    return getattr(kind, "_fields", None) or tuple(f.name for f in fields(kind))


def fingerprint(*parts: Any) -> str:
    """Hash JSON-able values, dataclasses included, into 16 hex digits; order matters."""
    text = json.dumps(parts, sort_keys=True, default=_plain)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def tensor_fingerprint(tensor: Tensor) -> str:
    """Hash a tensor's dtype, shape and bytes into 16 hex digits."""
    digest = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=8)
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    digest.update(raw.numpy().tobytes())
    return digest.hexdigest()


class RunFolder:
    """A run folder that is being written.

    Parameters
    ----------
    path : Path
        Created when absent.
    identity : Mapping[str, str]
        What makes two runs the same run: model, weights, data (names and fingerprints). A folder
        that holds another identity, another schema version or foreign files is refused, unless
        nothing was made under that identity.
    world : World
        The ranks of the job. All call the same methods; rank 0 alone reads and writes, and what
        it found holds for all.

    Raises
    ------
    RunFolderError
        With what the folder holds and what would have been written.
    """

    def __init__(self, path: Path, identity: Mapping[str, str], world: World = ALONE) -> None:
        self.path, self._world = path, world
        self.manifest: dict[str, Any] = world.from_main(lambda: self._open(identity))

    def _open(self, identity: Mapping[str, str]) -> dict[str, Any]:
        path = self.path
        refuse_other_run(path, identity)
        old = _existing_manifest(path)
        if old is not None and _differing(old, identity):
            old = None  # nothing was made under it
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(
                "the run folder cannot be made", got=str(error), fix="give another --out"
            ) from error
        for leftover in path.rglob(".*.tmp"):  # of a killed process
            leftover.unlink(missing_ok=True)
        return old or {
            "schema_version": SCHEMA_VERSION,
            "created": _now(),
            "identity": dict(identity),
            "stages": {},
        }

    def describe(self, keys: Mapping[str, str] | None = None, **entries: Any) -> None:
        """Put entries into the manifest, drop what stages made under other keys, and save it.

        Both in one save: whenever the manifest is read, its entries are those that the stages in
        it were made with.

        Parameters
        ----------
        keys : Mapping[str, str], optional
            The stages' keys under these entries. From the first stage that has another one on,
            the stages' records go.
        **entries
            JSON-able.
        """
        self.manifest.update(entries)
        stages = self.manifest["stages"]
        for stage, key in (keys or {}).items():
            if stages.get(stage, {}).get("key", key) != key:
                self._forget_from(stage)
        self.save()

    def save(self) -> None:
        """Save the manifest."""
        self.manifest["updated"] = _now()
        if self._world.main:
            write_json(self.path / MANIFEST, self.manifest)

    def is_done(self, stage: str, key: str) -> bool:
        """Whether the stage finished under this key and its files are still there."""
        entry = self.manifest["stages"].get(stage, {})
        if entry.get("key") != key or entry.get("status") != "done":
            return False
        return self._world.from_main(
            lambda: all((self.path / name).exists() for name in entry["files"])
        )

    def begin(self, stage: str, key: str, **facts: Any) -> None:
        """Record that the stage is being worked on under this key, with facts known already.

        What later stages made belongs to the stage's old result: their entries go.
        """
        self._forget_from(stage)
        entry = {"key": key, "status": "running", "started": _now(), **facts}
        self.manifest["stages"][stage] = entry
        self.save()

    def _forget_from(self, stage: str) -> None:
        for later in STAGES[STAGES.index(stage) :]:
            self.manifest["stages"].pop(later, None)

    def finish(self, stage: str, files: list[str], seconds: float, **facts: Any) -> None:
        """Record that the stage is done, which files it made, how long it took and its facts."""
        entry = self.manifest["stages"][stage]
        entry.update(status="done", files=files, seconds=round(seconds, 3), **facts)
        self.save()

    def fact(self, stage: str, name: str) -> Any:
        """Return a fact that a finished stage recorded."""
        return self.manifest["stages"][stage][name]

    def discard(self, *names: str) -> None:
        """Remove partial files of an earlier attempt."""
        for name in names if self._world.main else ():
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


class Run:
    """A finished run, opened for reading; tables are read when first asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        manifest = _existing_manifest(path) if path.is_dir() else None
        if manifest is None:
            raise RunFolderError(
                "not a run folder",
                got=str(path),
                expected=f"a folder with {MANIFEST}",
                fix="give the --out of a psi-engine run",
            )
        if manifest.get("schema_version") != SCHEMA_VERSION:
            raise _wrong_schema(path, manifest)
        self.manifest = manifest

    @property
    def channels(self) -> pa.Table:
        """One row per channel: scores, nulls, p-values, verdict, baselines."""
        return self._table("channels")

    @property
    def sites(self) -> pa.Table:
        """One row per mined site: where it is, its box, its label, its cluster and silhouette."""
        return self._table("sites")

    @property
    def clusters(self) -> pa.Table:
        """One row per cluster: size, silhouette, concepts, medoid."""
        return self._table("clusters")

    @property
    def nulls(self) -> pa.Table:
        """One row per scored channel and component: the null's name and its draws' quantiles."""
        return self._table("nulls")

    def search(self, text: str | None = None, **query: Any) -> Any:
        """Find neurons of this run, see :func:`psi_engine.search`; what it opens is kept."""
        return self._searcher.search(text, **query)

    @functools.cached_property
    def _searcher(self) -> Any:
        # by name: search is made of runs, not runs of search
        return import_module("psi_engine.retrieval.search").Searcher(self)

    def _table(self, name: str) -> pa.Table:
        path = self.path / f"{name}.parquet"
        stages = self.manifest["stages"]
        if stages.get("score", {}).get("status") != "done" or not path.exists():
            running = [stage for stage, entry in stages.items() if entry["status"] != "done"]
            raise RunFolderError(
                f"{path.name} is not there yet",
                got="unfinished: " + (", ".join(running) or "score"),
                fix="run the same psi-engine run command again; it continues where it stopped",
            )
        return pq.read_table(path)


def open_run(path: str | Path) -> Run:
    """Open a run folder for reading.

    Raises
    ------
    RunFolderError
        When the folder is not a run, or of another schema version.
    """
    return Run(Path(path))


def _existing_manifest(path: Path) -> dict[str, Any] | None:
    if path.exists() and not path.is_dir():
        raise RunFolderError("the run folder is a file", got=str(path), fix="give another --out")
    file = path / MANIFEST
    if file.exists():
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise RunFolderError(
                "the manifest cannot be read", got=f"{file}: {error}", fix="give another --out"
            ) from None
    if path.is_dir() and any(entry.name[0] != "." for entry in path.iterdir()):
        raise RunFolderError(
            "the folder is not empty and not a run folder",
            got=str(path),
            expected=f"an empty or new folder, or one with {MANIFEST}",
            fix="give another --out",
        )
    return None


def refuse_other_run(path: Path, identity: Mapping[str, str]) -> None:
    """Raise when a folder holds something else than this run; one of which nothing was made may go.

    Raises
    ------
    RunFolderError
        For foreign files, another schema version, or entries of ``identity`` that differ.
    """
    manifest = _existing_manifest(path)
    if manifest is None:
        return
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise _wrong_schema(path, manifest)
    differing = _differing(manifest, identity)
    if differing and not _nothing_made(path, manifest):
        held = manifest.get("identity", {})
        raise RunFolderError(
            f"{path} holds another run",
            got="; ".join(f"{k} {identity.get(k)}" for k in differing),
            expected="; ".join(f"{k} {held.get(k)}" for k in differing),
            fix="give another --out; nothing was overwritten",
        )


def _differing(manifest: Mapping[str, Any], identity: Mapping[str, str]) -> list[str]:
    held = manifest.get("identity", {})
    return sorted(name for name in identity if held.get(name) != identity[name])


def _nothing_made(path: Path, manifest: Mapping[str, Any]) -> bool:
    if any(entry.get("status") == "done" for entry in manifest.get("stages", {}).values()):
        return False
    made = (x for x in path.rglob("*") if not x.is_dir() and x.name[0] != ".")
    return all(x.parent == path and x.name in (MANIFEST, CONFIG) for x in made)


def _wrong_schema(path: Path, manifest: Mapping[str, Any]) -> RunFolderError:
    return RunFolderError(
        f"{path} was written by another version of psi-engine",
        got=f"schema {manifest.get('schema_version')}",
        expected=f"schema {SCHEMA_VERSION}",
        fix="give another --out, or use the version named in its manifest",
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path | torch.device):
        return str(value)
    if isinstance(value, Tensor):
        return value.tolist()
    raise InputError("a value cannot be written as JSON", got=type(value).__name__)
