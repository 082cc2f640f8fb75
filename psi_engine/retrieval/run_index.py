"""The prototypes of one run, ready to be searched: made once, kept in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from psi_engine.artifacts import Run, fingerprint, write_table
from psi_engine.errors import DiskFullError, RunFolderError
from psi_engine.ops.exact import unit_rows
from psi_engine.prototypes import prototypes
from psi_engine.retrieval.nearest import Nearest
from psi_engine.stored import StoredRun, load_stored

FOLDER = "search"
INDEX = f"{FOLDER}/index.faiss"
ROWS = f"{FOLDER}/rows.parquet"
"""Layer, channel and cluster of each row of the index; its metadata hold key and centre."""

_VERSION = 1
# Of what is kept: another one makes the index anew.

_SCHEMA = pa.schema([("layer", pa.string()), ("channel", pa.int64()), ("cluster", pa.int64())])
_TOLD = 120
# Letters of a library's message.


@dataclass(frozen=True)
class RunIndex:
    """Prototypes of a run less the centre of its pool, in the order of ``clusters.parquet``.

    rows : layer, channel and cluster of each. centre : float32 (dim,), mean of all pool patches:
    what every patch has in common says nothing about a neuron. nearest : the unit rows.
    """

    run: Run
    rows: pa.Table
    centre: Tensor
    nearest: Nearest

    @property
    def encoder(self) -> str:
        """Fingerprint of the encoder the rows come from."""
        return str(self.run.manifest["fingerprints"]["encoder"])

    @cached_property
    def channels(self) -> pa.Table:
        """The run's channels."""
        return self.run.channels

    @cached_property
    def clusters(self) -> pa.Table:
        """The run's clusters."""
        return self.run.clusters

    @cached_property
    def layer_names(self) -> list[str]:
        """Layers of the run, in its order."""
        return list(dict.fromkeys(self.channels["layer"].to_pylist()))

    @cached_property
    def channel_rows(self) -> NDArray[np.int64]:
        """Row of ``channels`` of each prototype, int64 (n,)."""
        return self._places(self.channels, ("layer", "channel"))

    @cached_property
    def cluster_rows(self) -> NDArray[np.int64]:
        """Row of ``clusters`` of each prototype, int64 (n,)."""
        return self._places(self.clusters, ("layer", "channel", "cluster"))

    def centred(self, vectors: Tensor) -> Tensor:
        """Unit rows less the centre, of length one again: float32 (n, dim), on the grid."""
        return _centred(vectors, self.centre)

    def _places(self, table: pa.Table, columns: tuple[str, ...]) -> NDArray[np.int64]:
        """Where each prototype stands in a table that names layer, channel (and cluster)."""
        keys = [_keys(x, columns, self.layer_names) for x in (table, self.rows)]
        order = np.argsort(keys[0])
        return order[np.searchsorted(keys[0][order], keys[1])]


def _keys(table: pa.Table, columns: tuple[str, ...], layers: list[str]) -> NDArray[np.int64]:
    """One number for each combination, the same in every table."""
    code = pa.compute.index_in(table["layer"], pa.array(layers))
    key = np.asarray(code, np.int64)
    for name in columns[1:]:
        key = (key << 24) + table[name].to_numpy()
    return key


def open_index(run: Run, tell: Callable[[str], None]) -> RunIndex:
    """Open the index of a run; make it first where there is none of the run's present scores.

    Parameters
    ----------
    run : Run
    tell : callable
        Is told when an index is made, and when it cannot be kept.

    Raises
    ------
    RunFolderError
        The run is unfinished, or its scores came without embeddings.
    """
    _ = run.channels  # says so where the run is unfinished
    stages = run.manifest["stages"]
    if "embed" not in stages:
        raise RunFolderError(
            f"{run.path} cannot be searched: it keeps no embeddings",
            got="scores of a file of embeddings",
            expected="a run that embedded its patches",
            fix="search a run of psi-engine run",
        )
    key = fingerprint(FOLDER, _VERSION, stages["score"]["key"])
    held = _held(run, key, tell)
    if held is not None:
        return held
    built = _build(run)
    try:
        _write(built, key)
    except (OSError, DiskFullError) as error:
        tell(f"the search index of {run.path} could not be kept: {error}")
    return built


def _held(run: Run, key: str, tell: Callable[[str], None]) -> RunIndex | None:
    """What was kept, if it is of these scores and whole; else None, and why unless never made."""
    if not ((run.path / ROWS).is_file() and (run.path / INDEX).is_file()):
        return None
    try:
        rows = pq.read_table(run.path / ROWS)
        notes = json.loads(rows.schema.metadata[b"search"])
        if notes["key"] != key:
            tell(f"{run.path} was scored anew: its search index is made again")
            return None
        held = RunIndex(run, rows, torch.tensor(notes["centre"]), Nearest.read(run.path / INDEX))
        if rows.schema.remove_metadata() != _SCHEMA:
            raise ValueError(f"columns {rows.schema.names}")
        if held.nearest.rows.shape != (len(rows), len(held.centre)):
            raise ValueError(f"{tuple(held.nearest.rows.shape)} numbers for {len(rows)} rows")
    except Exception as error:  # Arrow, JSON and faiss each raise their own; all can be made again
        why = " ".join(str(error).split())[:_TOLD]
        tell(
            f"the search index of {run.path} is damaged and made again "
            f"({type(error).__name__}: {why})"
        )
        return None
    return held


def _build(run: Run) -> RunIndex:
    stored = load_stored(run.path)
    centre = _pool_centre(stored)
    parts, tables = [], []
    for name, layer in stored.layers.items():
        found = prototypes(layer, stored.assignments(name))
        parts.append(_centred(found.vectors, centre))
        columns = ([name] * len(parts[-1]), found.channel.numpy(), found.cluster.numpy())
        tables.append(pa.table(list(columns), schema=_SCHEMA))
    return RunIndex(run, pa.concat_tables(tables), centre, Nearest.build(parts, len(centre)))


def _pool_centre(stored: StoredRun) -> Tensor:
    """Mean of the unit rows of all layers' pools, float32 (dim,)."""
    total, count = torch.zeros(()), 0
    for layer in stored.layers.values():
        rows = unit_rows(layer.pool).rows
        total, count = total + rows.to(torch.float64).sum(0), count + len(rows)
    return (total / count).to(torch.float32)


def _centred(vectors: Tensor, centre: Tensor) -> Tensor:
    return unit_rows(vectors.to(torch.float64) - centre.to(torch.float64)).rows


def _write(built: RunIndex, key: str) -> None:
    """Keep an index; its rows come last, since they say whose it is."""
    folder = built.run.path
    (folder / ROWS).unlink(missing_ok=True)
    built.nearest.write(folder / INDEX)
    notes = {"key": key, "centre": built.centre.tolist()}
    write_table(folder / ROWS, built.rows.replace_schema_metadata({"search": json.dumps(notes)}))
