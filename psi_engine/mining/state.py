"""What a stopped mining pass needs to go on, as one flat dict of tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from psi_engine.errors import InputError
from psi_engine.mining.miner import Miner


def pack_state(
    miners: Mapping[str, Miner], skipped: Mapping[int, str], position: int
) -> dict[str, Tensor]:
    """Put miners, unreadable images and a position together.

    The tensors are the miners' own: their next update changes them.

    Parameters
    ----------
    miners : mapping of layer name to Miner
    skipped : mapping of image id to reason
    position : int
        Images from this id on are still to be mined.
    """
    state = {
        f"{name}/{part}": tensor
        for name, miner in miners.items()
        for part, tensor in miner.state_dict(copy=False).items()
    }
    state["position"] = torch.tensor(position)
    state["skipped"] = torch.tensor(list(json.dumps(dict(skipped)).encode()), dtype=torch.uint8)
    return state


def unpack_state(
    state: Mapping[str, Tensor], miners: Mapping[str, Miner], skipped: dict[int, str], images: int
) -> int:
    """Fill miners and ``skipped`` from :func:`pack_state`'s dict; the position comes back.

    Raises
    ------
    InputError
        The state does not fit the miners or a source of so many images.
    """
    if not {"position", "skipped"} <= state.keys() or int(state["position"]) > images:
        raise InputError(
            "saved mining state does not fit the images",
            got=f"position {state['position']}" if "position" in state else "no position",
            expected=f"at most {images}",
            fix="mine again from the start",
        )
    for name, miner in miners.items():
        mark = f"{name}/"
        miner.load_state_dict(
            {key.removeprefix(mark): x for key, x in state.items() if key.startswith(mark)}
        )
    known = json.loads(bytes(state["skipped"].tolist()).decode())
    skipped.update({int(image): reason for image, reason in known.items()})
    return int(state["position"])
