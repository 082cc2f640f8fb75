"""What the stages hand to each other.

Axis glossary, the same names everywhere:

=============  ==================================================================
``channels``   neurons of one layer (C)
``patches``    sites of one channel, best first (K)
``dim``        embedding size (d)
``prompts``    text embeddings (P)
``concepts``   groups of prompts that name the same thing
``replicates`` draws of a null (M)
``k``          number of clusters tried; ``n_k`` how many values of k are tried
=============  ==================================================================

A *site* is (image, u, v): u the row and v the column of a unit's map; for tokens u is the token
and v is 0; for flat outputs both are 0. Empty slots hold image id −1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from psi_engine.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

Progress = Callable[[str, int, int], None]
"""``progress(what, done, total)``, called from long loops; must be cheap."""

COMPONENTS = ("s", "q", "d")
"""The three components of PSI, in the paper's order."""

_NOT_PER_CHANNEL = {"assignments", "silhouettes", "centre", "nulls", "notes"} | {
    f"{component}_null_quantiles" for component in COMPONENTS
}

VERDICTS = ("polysemantic", "monosemantic", "random-like", "not scorable")
"""What a channel can be found to be; README says when."""


class SiteSet(NamedTuple):
    """Sites with their activations.

    values : float32 (channels, k), in the set's own order; NaN in empty slots
    image_ids : int64 (channels, k); −1 in empty slots
    u, v : int32 (channels, k)
    """

    values: Tensor
    image_ids: Tensor
    u: Tensor
    v: Tensor


class PoolSites(NamedTuple):
    """Random sites of a layer, shared by its channels: image_ids int64 (n,), u and v int32 (n,)."""

    image_ids: Tensor
    u: Tensor
    v: Tensor


@dataclass(frozen=True)
class ActivationShape:
    """How a layer's output is laid out.

    kind : ``map`` (B, C, H, W), ``tokens`` (B, T, C) or ``flat`` (B, C).
    channels : number of channels.
    grid : (H, W) of a map, (T, 1) of tokens, (1, 1) of a flat output.
    """

    kind: Literal["map", "tokens", "flat"]
    channels: int
    grid: tuple[int, int]


@dataclass(frozen=True)
class ActivationStats:
    """Running statistics of each channel over every site of every image, all (channels,).

    minimum, maximum : float32. mean, variance : float64 (population). sparsity : float64,
    share of sites that are exactly zero. nonfinite : int64, NaN or infinite sites (left out of
    everything else). count : int64, finite sites seen.
    """

    minimum: Tensor
    maximum: Tensor
    mean: Tensor
    variance: Tensor
    sparsity: Tensor
    nonfinite: Tensor
    count: Tensor


@dataclass(frozen=True)
class LayerSites:
    """Everything mined from one layer.

    ``values, image_ids, u, v`` are the top-K, each (channels, top_k), best first, ordered by
    value descending, then image id, u, v ascending.
    """

    layer: str
    shape: ActivationShape
    channels: Tensor  # int64 (channels,): indices of the kept channels in the layer
    top: SiteSet
    bottom: SiteSet
    random: SiteSet
    pool: PoolSites
    stats: ActivationStats
    images: int  # how many images were seen

    @property
    def values(self) -> Tensor:
        """Activations of the top sites, float32 (channels, top_k)."""
        return self.top.values

    @property
    def image_ids(self) -> Tensor:
        """Image ids of the top sites, int64 (channels, top_k)."""
        return self.top.image_ids

    @property
    def u(self) -> Tensor:
        """Rows of the top sites, int32 (channels, top_k)."""
        return self.top.u

    @property
    def v(self) -> Tensor:
        """Columns of the top sites, int32 (channels, top_k)."""
        return self.top.v

    @property
    def unit_range(self) -> Tensor:
        """Top activations scaled to [0, 1] by each channel's range over the data; 0 if empty."""
        low, high = self.stats.minimum[:, None], self.stats.maximum[:, None]
        return ((self.top.values - low) / (high - low)).nan_to_num(0.0)


class Mined(Mapping[str, LayerSites]):
    """Mined sites by layer name, in the order the layers were asked for."""

    def __init__(self, layers: Mapping[str, LayerSites]) -> None:
        self._layers = dict(layers)

    def __getitem__(self, layer: str) -> LayerSites:
        return self._layers[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


class ReceptiveField(NamedTuple):
    """Where a unit of a layer looks, in input pixels; every pair is (height, width).

    size : side of the window. jump : distance between neighbouring units. start : centre of
    unit (0, 0), in continuous coordinates where pixel i covers [i, i + 1).
    source : how it was found (``graph``, ``gradient``, ``effective``, ``image``, ``pixels``).
    tokens : (prefix, columns) where sites are tokens: the first ``prefix`` look at the whole
    image, the others fill a grid row by row. None where sites are already (row, column).
    """

    size: tuple[float, float]
    jump: tuple[float, float]
    start: tuple[float, float]
    source: str
    tokens: tuple[int, int] | None = None


class Boxes(NamedTuple):
    """Distinct crops: image_ids int64 (n,), xyxy int64 (n, 4) = x0, y0, x1, y1 (x1, y1 open)."""

    image_ids: Tensor
    xyxy: Tensor


@dataclass(frozen=True)
class PatchSet:
    """The distinct crops of a run and which of them each site uses.

    rows maps (layer, kind) to int64 indices into ``boxes``: (channels, k) for ``top``,
    ``bottom`` and ``random``, (n,) for ``pool``; −1 where there is no site.
    """

    boxes: Boxes
    rows: Mapping[tuple[str, str], Tensor]


@dataclass(frozen=True)
class Prompts:
    """A vocabulary laid out as prompts.

    texts : the prompts, concept by concept. concept_ids : int64 (prompts,), index into
    ``concepts``. concepts : names. source : where they came from, for the manifest.
    """

    texts: tuple[str, ...]
    concept_ids: Tensor
    concepts: tuple[str, ...]
    source: str


class NullDraws(NamedTuple):
    """What a component was compared with: the null's name, and how many draws of it."""

    null: str
    replicates: int


@dataclass(frozen=True)
class Scores:
    """The result of :func:`psi_engine.score`; CPU tensors, one row per channel in input order.

    For each component x in s, q, d: ``x`` raw value, ``x_null_mean``, ``x_null_std``, ``x_z``,
    ``x_p`` (permutation p), ``x_p_adj`` (adjusted over the call), ``x_hat`` (logistic of z),
    all float64 (channels,); NaN where the component or the channel could not be scored;
    ``x_null_quantiles``, float32 (channels, 41): the null's draws at the probabilities
    0, 1/40 … 1, linear between order statistics. A component that is not available for the whole
    call is None in every field.

    The draws are those that ``x_p`` was counted among: for ``exact`` its permutations, for
    ``neighborhood`` the sets' residuals brought to the channel's mean cosine; under
    ``rotation-shared`` every draw is the observation.
    """

    psi: Tensor  # float64 (channels,), product of the available x_hat
    log_psi: Tensor  # float64 (channels,), sum of log-sigmoids of z
    psi_low: Tensor  # float64 (channels,), subsampling interval; NaN when not asked for
    psi_high: Tensor
    psi_p: Tensor  # float64 (channels,), largest p of the available components
    psi_p_adj: Tensor
    clarity: Tensor  # float64 (channels,), mean off-diagonal cosine
    clarity_p_adj: Tensor  # float64 (channels,), is the set more coherent than the pool?
    n_patches: Tensor  # int64 (channels,), valid patches used
    n_clusters: Tensor  # int64 (channels,), k̂; 0 where not scored
    assignments: Tensor  # int64 (channels, patches); −1 = none
    silhouettes: Tensor  # float64 (channels, patches); NaN = none
    verdict: tuple[str, ...]  # polysemantic | monosemantic | random-like | not scorable
    status: tuple[str, ...]  # ok | short | failed
    reason: tuple[str, ...]  # empty where status is ok
    s: Tensor | None = None
    s_null_mean: Tensor | None = None
    s_null_std: Tensor | None = None
    s_z: Tensor | None = None
    s_p: Tensor | None = None
    s_p_adj: Tensor | None = None
    s_hat: Tensor | None = None
    s_null_quantiles: Tensor | None = None
    q: Tensor | None = None
    q_null_mean: Tensor | None = None
    q_null_std: Tensor | None = None
    q_z: Tensor | None = None
    q_p: Tensor | None = None
    q_p_adj: Tensor | None = None
    q_hat: Tensor | None = None
    q_null_quantiles: Tensor | None = None
    d: Tensor | None = None
    d_null_mean: Tensor | None = None
    d_null_std: Tensor | None = None
    d_z: Tensor | None = None
    d_p: Tensor | None = None
    d_p_adj: Tensor | None = None
    d_hat: Tensor | None = None
    d_null_quantiles: Tensor | None = None
    centre: Tensor | None = None
    """float32 (dim,): the pool's mean, where D took it off (``margin``); None elsewhere."""
    nulls: Mapping[str, NullDraws] = field(default_factory=dict)
    """What each available component was compared with, fallbacks followed."""
    notes: tuple[str, ...] = field(default=())
    """What the caller should know: degenerate nulls, fallbacks, unavailable components."""

    @property
    def available(self) -> tuple[str, ...]:
        """The components that entered PSI, of ``("s", "q", "d")``."""
        return tuple(x for x in COMPONENTS if getattr(self, x) is not None)

    def to_arrow(self) -> pa.Table:
        """One row per channel; what is per patch or per quantile stays out.

        Unavailable components become columns of nulls, so the schema never changes.
        """
        import pyarrow as pa

        columns: dict[str, pa.Array] = {}
        for item in fields(self):
            if item.name in _NOT_PER_CHANNEL:
                continue
            value = getattr(self, item.name)
            if value is None:
                columns[item.name] = pa.nulls(len(self.status), pa.float64())
            elif isinstance(value, torch.Tensor):
                data = value.numpy()
                blank = np.isnan(data) if data.dtype.kind == "f" else None
                columns[item.name] = pa.array(data, mask=blank)
            else:
                columns[item.name] = pa.array(list(value), pa.string())
        return pa.table(columns)

    def to_pandas(self) -> Any:
        """The table of :meth:`to_arrow` as a pandas DataFrame.

        Raises
        ------
        InputError
            pandas is not installed.
        """
        if find_spec("pandas") is None:
            raise InputError(
                "pandas is not installed",
                fix="pip install 'pandas>=2.2', or take to_arrow()",
            )
        return self.to_arrow().to_pandas()


@dataclass(frozen=True)
class Clusters:
    """One row per cluster of the scored channels.

    channel : int64 (n,), row of the scored batch. cluster : int64 (n,). size : int64 (n,).
    silhouette : float64 (n,), mean over members. medoid : int64 (n,), patch index of the member
    with the greatest mean cosine to its cluster. prototypes : float32 (n, dim), unit rows.
    concepts : int64 (n, 5) concept ids, best first (−1 where fewer exist);
    similarities : float64 (n, 5). Both None without text.
    """

    channel: Tensor
    cluster: Tensor
    size: Tensor
    silhouette: Tensor
    medoid: Tensor
    prototypes: Tensor
    concepts: Tensor | None
    similarities: Tensor | None
