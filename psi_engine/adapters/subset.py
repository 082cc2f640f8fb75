"""Which channels the rows of a tool's files are, where they are not all of a layer.

Row i of these files is channel i to the tools. A run of a few channels writes its rows in order
and says in ``channels.json`` beside them which channels they are; reading takes it back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from psi_engine.adapters.contents import TopExamples
from psi_engine.adapters.safe_files import write_text
from psi_engine.errors import InputError

CHANNELS = "channels.json"


def write_channels(folder: Path, examples: Sequence[TopExamples]) -> list[Path]:
    """Write ``channels.json`` where a layer's rows are not its channels from 0 on."""
    listed = {
        part.layer: part.numbers.tolist()
        for part in examples
        if not torch.equal(part.numbers, torch.arange(len(part.numbers)))
    }
    if not listed:
        return []
    write_text(folder / CHANNELS, json.dumps(listed) + "\n")
    return [folder / CHANNELS]


def read_channels(folder: Path, layer: str, rows: int) -> Tensor | None:
    """Indices of a layer's rows, int64 (rows,), from ``channels.json``; None without one.

    Raises
    ------
    InputError
        The file is broken or lists another number of rows.
    """
    path = folder / CHANNELS
    if not path.is_file():
        return None
    try:
        numbers = json.loads(path.read_text(encoding="utf-8")).get(layer)
        found = None if numbers is None else torch.tensor(numbers, dtype=torch.int64)
    except (ValueError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read", got=str(error), expected="{layer: [channel, …]}"
        ) from error
    if found is None:
        return None
    if found.shape != (rows,) or bool((found < 0).any()) or len(found.unique()) != rows:
        raise InputError(
            f"{path} does not fit the layer {layer}",
            got=f"{len(numbers)} channels for {rows} rows",
            expected="a different channel for each row",
            fix="take the file that was written with these rows, or remove it",
        )
    return found
