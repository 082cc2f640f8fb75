"""Score embeddings that another tool wrote to a file.

============  =====================================================================
npz           arrays ``embeddings`` and, optionally, ``labels``, ``text_embeddings``,
              ``concept_ids``, ``pool``
safetensors   the same names; without ``embeddings``, every (channels, patches, dim)
              tensor is a layer of its own
parquet       one row per channel: ``embeddings`` list<list<float>>, ``labels`` list<int>
============  =====================================================================
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import load_file
from torch import Tensor

from psi_engine import artifacts
from psi_engine.config import ScoreConfig
from psi_engine.distributed import LOCK, only_job
from psi_engine.errors import InputError
from psi_engine.provenance import versions
from psi_engine.scores.arrays import as_tensor
from psi_engine.scores.describe import describe_clusters
from psi_engine.scores.score import score
from psi_engine.settings import write_score_settings
from psi_engine.tables import SCORED, channel_scores, cluster_scores, null_table, patch_table
from psi_engine.types import Progress

_SIDE_ARRAYS = ("labels", "text_embeddings", "concept_ids", "pool")
_EXPECTED = "an array `embeddings` of shape (channels, patches, dim)"


def score_file(
    file: Path,
    *,
    labels: Path | None = None,
    text: Path | None = None,
    pool: Path | None = None,
    preset: str = "calibrated",
    changes: Mapping[str, Any] | None = None,
    device: str = "auto",
    out: Path | None = None,
    progress: Progress | None = None,
) -> artifacts.Run:
    """Score the embeddings of a file and write a run folder without images.

    Parameters
    ----------
    file : Path
        ``.npz``, ``.safetensors`` or ``.parquet``, laid out as this module's table says.
    labels, text, pool : Path, optional
        Arrays (``.npy``, ``.npz`` or ``.safetensors`` with one array) that replace those of the
        file: (channels, patches) ints, (prompts, dim), (n, dim).
    changes : Mapping, optional
        Fields of :class:`ScoreConfig` on top of the preset.
    out : Path, optional
        None = the file's name without its ending, plus ``-psi``.

    Raises
    ------
    InputError
        For a file that is missing, of another kind, or without embeddings.
    """
    arrays = _read(file)
    for name, path in (("labels", labels), ("text_embeddings", text), ("pool", pool)):
        if path is not None:
            arrays[name] = _read_one(path)
    side = {name: _tensor(name, arrays.pop(name)) for name in _SIDE_ARRAYS if name in arrays}
    layers = _layers(file, arrays)
    config = ScoreConfig.preset(preset, **(changes or {}))
    content = artifacts.fingerprint(
        {name: artifacts.tensor_fingerprint(value) for name, value in {**layers, **side}.items()}
    )
    identity = {"file": file.name, "content": content}
    out = out or file.with_name(file.stem + "-psi")
    artifacts.refuse_other_run(out, identity)
    started = time.perf_counter()
    tables: dict[str, list[pa.Table]] = {name: [] for name in SCORED}
    notes = {}
    for layer, embeddings in layers.items():
        scores = score(
            embeddings,
            labels=side.get("labels"),
            text_embeddings=side.get("text_embeddings"),
            concept_ids=side.get("concept_ids"),
            pool=side.get("pool"),
            config=config,
            device=device,
            progress=progress,
        )
        clusters = describe_clusters(
            embeddings, scores, side.get("text_embeddings"), side.get("concept_ids")
        )
        channels = torch.arange(len(embeddings))
        tables["channels"].append(channel_scores(layer, channels, scores))
        tables["clusters"].append(cluster_scores(layer, channels, clusters, _names(side)))
        tables["sites"].append(patch_table(layer, scores, side.get("labels")))
        tables["nulls"].append(null_table(layer, channels, scores))
        notes[layer] = list(scores.notes)
    with only_job(out / LOCK):
        folder = artifacts.RunFolder(out, identity)
        key = artifacts.fingerprint("score", content, config)
        folder.describe({"score": key}, config=asdict(config), versions=versions())
        given = {"file": file, "labels": labels, "text": text, "pool": pool, "out": out}
        write_score_settings(folder.path, config, given | {"device": device})
        folder.begin("score", key)
        for name, parts in tables.items():
            artifacts.write_table(folder.path / f"{name}.parquet", pa.concat_tables(parts))
        seconds = time.perf_counter() - started
        folder.finish("score", [f"{name}.parquet" for name in tables], seconds, notes=notes)
    return artifacts.open_run(folder.path)


def _read(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise InputError("the file is not there", got=str(file))
    try:
        if file.suffix == ".npy":
            return {file.stem: np.load(file, allow_pickle=False)}
        if file.suffix == ".npz":
            # Opened here: numpy leaves a file that is no archive open.
            with open(file, "rb") as opened:
                archive = np.load(opened, allow_pickle=False)
                if isinstance(archive, np.ndarray):
                    raise ValueError("a single .npy array under the name of an archive")
                return dict(archive)
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        if file.suffix == ".parquet":
            table = pq.read_table(file)
            return {name: _dense(table[name]) for name in table.column_names}
    except Exception as error:  # each format has its own; the reader needs the file's name
        raise InputError(
            "the file cannot be read",
            got=f"{file}: {error}",
            expected=f"a whole {file.suffix} file of plain arrays",
            fix="write it again if it was cut off; objects in it are never unpickled",
        ) from error
    raise InputError(
        "unknown kind of file", got=file.name, expected=".npz, .safetensors or .parquet (or .npy)"
    )


def _dense(column: pa.ChunkedArray) -> np.ndarray:
    """A column of equally long lists (of lists …) as an array; no Python object per number."""
    values, shape = column.combine_chunks(), [len(column)]
    while pa.types.is_nested(values.type):
        lengths = values.value_lengths().unique()
        if values.null_count or len(lengths) > 1:
            raise ValueError(
                f"lists of {len(lengths)} lengths ({values.null_count} missing): pad them and give "
                "psi_engine.score a mask"
            )
        shape.append(lengths[0].as_py() if len(lengths) else 0)
        values = values.flatten()
    if values.null_count:
        raise ValueError(f"{values.null_count} missing numbers")
    return values.to_numpy(zero_copy_only=False).reshape(shape)


def _read_one(path: Path) -> np.ndarray:
    arrays = _read(path)
    if len(arrays) != 1:
        raise InputError(
            "which array is meant is not clear",
            got=f"{path} with {', '.join(arrays)}",
            expected="one array",
        )
    return next(iter(arrays.values()))


def _layers(file: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    if "embeddings" in arrays:
        found = {file.stem: arrays["embeddings"]}
    elif file.suffix == ".safetensors":
        found = {name: value for name, value in arrays.items() if value.ndim == 3}
    else:
        found = {}
    if not found:
        raise InputError(
            "no embeddings in the file",
            got=f"{file.name} with {', '.join(arrays) or 'nothing'}",
            expected=_EXPECTED,
        )
    return {name: _tensor(name, value) for name, value in found.items()}


def _tensor(name: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "fiu":
        raise InputError(
            f"array {name} does not hold numbers", got=array.dtype, expected="floats or integers"
        )
    return as_tensor(name, array)


def _names(side: Mapping[str, Tensor]) -> list[str] | None:
    """Name concepts by number: a file of embeddings does not say what its prompts were."""
    if "text_embeddings" not in side:
        return None
    ids = side.get("concept_ids")
    count = len(side["text_embeddings"]) if ids is None else int(ids.max()) + 1
    return [f"concept {i}" for i in range(count)]
