"""Files of the demo: where they lie, how they are written and read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ASSETS = Path(__file__).parent / "assets"
IMAGES, CLASSIFIER, ENCODER = "images.parquet", "classifier.safetensors", "encoder.safetensors"
SECOND_ENCODER = "second_encoder.safetensors"
CARD = "card.json"


def images_path() -> Path:
    """Parquet file of the held-out images: ``image: {bytes, path}`` and ``label``."""
    return ASSETS / IMAGES


def card(folder: Path = ASSETS) -> dict[str, Any]:
    """What the assets are: settings, versions, and the accuracies measured when made."""
    return dict(json.loads((folder / CARD).read_text(encoding="utf-8")))


def write_images(
    path: Path, files: Sequence[bytes], labels: Sequence[int], names: Sequence[str]
) -> None:
    """Write JPEG files as a Parquet table in the Hugging Face image layout.

    Parameters
    ----------
    path : Path
    files : sequence of bytes
        JPEG files.
    labels : sequence of int
        Index into ``names`` per file.
    names : sequence of str
        Class names, kept in the schema's metadata.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", image), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = [{"bytes": file, "path": f"{row:05d}.jpg"} for row, file in enumerate(files)]
    table = pa.table({"image": pa.array(rows, image), "label": list(labels)}, schema=schema)
    pq.write_table(table, path, compression="none")


def half_precision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Round a state dict to half precision; whole numbers keep their type."""
    return {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in state.items()
    }


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict in half precision."""
    from safetensors.torch import save

    path.write_bytes(save(half_precision(state)))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read what :func:`write_weights` wrote, as float32."""
    from safetensors.torch import load_file

    return {
        name: value.to(torch.float32) if value.is_floating_point() else value
        for name, value in load_file(path).items()
    }


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
