"""Sites that another tool found, written as the stages of a run that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psi_engine import artifacts
from psi_engine.embedding import BOXES, EMBEDDINGS, write_boxes
from psi_engine.patches import collect_patches
from psi_engine.stored import MINED
from psi_engine.types import Mined, ReceptiveField


@dataclass(frozen=True)
class Found:
    """What stands in place of the first stages of a run.

    mined : the sites. origin : which tool and files they are from, for the manifest. fields :
    where sites look, of layers whose model is not there; None = as the patches stage finds.
    embeddings : ids int64 (n,) ascending and rows float32 (n, dim) of whole images, in place of
    an encoder.
    """

    mined: Mined
    origin: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    fields: Mapping[str, ReceptiveField] | None = None
    embeddings: tuple[Tensor, Tensor] | None = None

    @property
    def identity(self) -> dict[str, str]:
        """Entry of the run's identity: a folder holds the sites of one import.

        The files alone do not tell the sites: the same positions lie elsewhere in another grid,
        and count as whole images without a side of patches.
        """
        shapes = {name: (s.shape.kind, s.shape.grid) for name, s in self.mined.items()}
        of = artifacts.fingerprint(self.origin["fingerprint"], shapes)
        return {"sites": f"{self.origin['tool']} {of}"}


def write_mine_stage(folder: artifacts.RunFolder, key: str, found: Found) -> None:
    """Write the sites as a finished mining stage, whose notes say where they come from."""
    if folder.is_done("mine", key):
        return
    images = next(iter(found.mined.values())).images
    folder.begin("mine", key)
    artifacts.write_mined(folder.path / MINED, found.mined)
    folder.finish(
        "mine", [MINED], 0.0,
        images=images, skipped=[], notes=list(found.notes), imported=dict(found.origin),
    )  # fmt: skip


def write_stages(
    folder: artifacts.RunFolder, keys: Mapping[str, str], side: int, found: Found
) -> None:
    """Write every stage that ``found`` stands for, under the keys of the run.

    Parameters
    ----------
    side : int
        Of the pictures, in pixels.
    """
    write_mine_stage(folder, keys["mine"], found)
    if found.fields is None:
        return
    if not folder.is_done("patches", keys["patches"]):
        folder.begin("patches", keys["patches"])
        facts = {layer: place._asdict() for layer, place in found.fields.items()}
        folder.finish("patches", [], 0.0, fields=facts)
    if found.embeddings is None or folder.is_done("embed", keys["embed"]):
        return
    boxes = collect_patches(found.mined, found.fields, side).boxes
    ids, rows = found.embeddings
    chosen = rows[torch.searchsorted(ids, boxes.image_ids.contiguous())].to(torch.float64)
    unit = torch.nn.functional.normalize(chosen, dim=1).to(torch.float32)
    folder.begin("embed", keys["embed"])
    with artifacts.atomic(folder.path / EMBEDDINGS) as temporary, open(temporary, "wb") as file:
        np.save(file, unit.numpy())
    write_boxes(folder.path, boxes)
    folder.finish("embed", [EMBEDDINGS, BOXES], 0.0, crops=len(boxes.image_ids), dim=unit.shape[1])
