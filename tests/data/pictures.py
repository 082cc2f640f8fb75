"""Images to read: pictures by seed, files and shards of them, data sets of any items."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import Dataset

from psi_engine.data import ImageSource, Preprocess, batches

SMALL = Preprocess(image_size=8, resize=10)


def picture(seed: int, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path)


def read(source: ImageSource, batch_size: int = 4, workers: int = 0, **options: Any):
    skipped: dict[int, str] = {}
    found = list(
        batches(source, SMALL, batch_size=batch_size, workers=workers, skipped=skipped, **options)
    )
    ids = torch.cat([b.image_ids for b in found])
    return ids, torch.cat([b.views for b in found]), skipped


def image_array(contents: list[bytes | None], paths: list[str | None] | None = None) -> pa.Array:
    paths = paths or [None] * len(contents)
    rows = [{"bytes": b, "path": p} for b, p in zip(contents, paths, strict=True)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array(rows, type=kind)


def write(
    path: Path,
    seeds: range,
    labels: list[Any] | None = None,
    names: list[str] | None = None,
    paths: list[str | None] | None = None,
    **options: Any,
) -> None:
    columns = {"image": image_array([encoded(picture(s)) for s in seeds], paths)}
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if labels is not None:
        columns["label"] = pa.array(labels)
    if names is not None:
        features["label"] = {"_type": "ClassLabel", "names": names}
    table = pa.table(columns)
    if names is not None:
        note = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": note})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)


class Listed(Dataset[Any]):
    """Any items."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]
