"""From planned hosts to forward passes, and from their activations to ``causal.parquet``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from psi_engine.causal.config import CONDITIONS, Blend
from psi_engine.causal.measure import BLANK, Edits
from psi_engine.causal.plan import Hosts

_SQUARE = ("x0", "y0", "x1", "y1")
_WHOLE = ("host_rank", "host_image", "host_u", "host_v", "host_cluster", "cluster")
_DONOR = ("donor_image", "donor_u", "donor_v", "donor_channel", "donor_cluster")

SWAP_SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("channel", pa.int64()),
        ("hosts", pa.string()),
        ("blend", pa.string()),
        ("condition", pa.string()),
        *((name, pa.int64()) for name in _WHOLE),
        *((name, pa.int32()) for name in _SQUARE),
        *((name, pa.int64()) for name in _DONOR),
        *((f"donor_{name}", pa.int32()) for name in _SQUARE),
        *((name, pa.float64()) for name in ("before", "after", "delta", "delta_units")),
    ]
)
"""One row per swap. ``host_*`` is the target site, ``x0`` … the square that was replaced,
``cluster`` the one that aligned means; ``donor_*`` is null where the square was blanked."""


def edits_of(hosts: Sequence[Hosts], blends: int) -> tuple[Edits, Tensor]:
    """The forward passes of some hosts: each untouched, then per blend each condition.

    Returns
    -------
    tuple
        The edits, host by host, and the image ids that their views are rows of, ascending.
        Weights 0 are zeros, 1 and on the blends.
    """
    parts = [_edits(one, blends) for one in hosts]
    joined = Edits(*(torch.cat([getattr(p, name) for p in parts]) for name in vars(parts[0])))
    images = torch.cat([joined.host, joined.donor[joined.donor != BLANK]]).unique()
    donor = torch.where(
        joined.donor == BLANK, BLANK, torch.searchsorted(images, joined.donor.clamp(min=0))
    )
    view = torch.searchsorted(images, joined.host)
    rest = {name: x for name, x in vars(joined).items() if name not in ("host", "donor")}
    return Edits(host=view, donor=donor, **rest), images


def _edits(hosts: Hosts, blends: int) -> Edits:
    conditions = len(CONDITIONS)
    each = 1 + blends * conditions

    def spread(untouched: Tensor, changed: Tensor) -> Tensor:
        """(hosts, …) and (hosts, conditions, …) → (hosts · each, …)."""
        changed = changed.repeat(1, blends, *[1] * (changed.ndim - 2))
        return torch.cat([untouched[:, None], changed], 1).flatten(0, 1)

    blend = torch.arange(1, blends + 1).repeat_interleave(conditions)
    ours = [x.repeat_interleave(each) for x in (hosts.image, hosts.u, hosts.v)]
    return Edits(
        host=ours[0],
        donor=spread(hosts.image, hosts.donor_image),
        target=spread(hosts.target[:, 0], hosts.target),
        source=spread(hosts.target[:, 0], hosts.source),
        weights=torch.cat([torch.zeros(1, dtype=torch.int64), blend]).repeat(len(hosts)),
        channel=torch.full_like(ours[0], hosts.channel),
        u=ours[1],
        v=ours[2],
    )


def swap_rows(
    hosts: Hosts, activations: Tensor, value_range: float, blends: Sequence[Blend]
) -> pa.Table:
    """Rows of one channel's swaps into one kind of host.

    Parameters
    ----------
    hosts : Hosts
    activations : Tensor, float32 (hosts · (1 + blends · conditions),)
        Of the edits, in their order.
    value_range : float
        Maximum minus minimum of the channel over the data set, above 0.
    blends : sequence of {"hard", "feathered"}

    Returns
    -------
    pyarrow.Table
        By host, blend and condition; values that are not finite are null.
    """
    n, conditions = len(hosts), len(CONDITIONS)
    values = activations.double().view(n, 1 + len(blends) * conditions)
    shape = (n, len(blends), conditions)
    before = values[:, :1, None].expand(shape)
    after = values[:, 1:].view(shape)
    rows = after.numel()

    def of_host(x: Tensor) -> Tensor:
        return x[:, None, None].expand(shape).flatten()

    def of_swap(x: Tensor) -> Tensor:
        return x[:, None].expand(*shape, *x.shape[2:]).flatten(0, 2)

    whole = {
        "host_rank": hosts.rank,
        "host_image": hosts.image,
        "host_u": hosts.u,
        "host_v": hosts.v,
        "host_cluster": hosts.own_cluster,
        "cluster": hosts.cluster,
    }
    donor = {name: of_swap(getattr(hosts, name)) for name in _DONOR}
    blanked = donor["donor_image"] == BLANK
    target, source = of_swap(hosts.target), of_swap(hosts.source)
    numbers = {
        "before": before,
        "after": after,
        "delta": after - before,
        "delta_units": (after - before) / value_range,
    }
    columns: dict[str, object] = {
        "layer": [hosts.layer] * rows,
        "channel": [hosts.channel] * rows,
        "hosts": [hosts.kind] * rows,
        "blend": np.tile(np.repeat(blends, conditions), n).tolist(),
        "condition": list(CONDITIONS) * (rows // conditions),
        **{name: _blank(of_host(x), of_host(x) < 0) for name, x in whole.items()},
        **{name: target[:, i].numpy() for i, name in enumerate(_SQUARE)},
        **{name: _blank(x, x < 0) for name, x in donor.items()},
        **{f"donor_{name}": _blank(source[:, i], blanked) for i, name in enumerate(_SQUARE)},
        **{name: _blank(x.flatten(), ~x.flatten().isfinite()) for name, x in numbers.items()},
    }
    return pa.table(columns).cast(SWAP_SCHEMA)


def _blank(values: Tensor, missing: Tensor) -> pa.Array:
    return pa.array(values.numpy(), mask=missing.numpy())
