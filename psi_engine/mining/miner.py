"""One layer's streaming miner: top, bottom, random and pool sites and statistics in one pass.

Everything a miner keeps is the best part of a fixed order on sites, so the order of the images,
the batch size and the cut into shards never change it:

=========  =============================================  ====================================
set        order (best first)                             at most
=========  =============================================  ====================================
top        value descending, image, u, v                  one site an image (``per-image``) or
bottom     value ascending, image, u, v                   one entry a site (``all``)
random     hash(seed, layer, channel, image)              one site an image
pool       rank of the site in its image, hash(…, u, v)   one entry a site
=========  =============================================  ====================================

The random site of (channel, image) is itself drawn by hash; where it is not finite the image has
no entry, which leaves every finite site equally likely. The pool takes one site from every image
before it takes a second from any, and does not look at activations at all.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from psi_engine.config import MineConfig
from psi_engine.errors import InputError
from psi_engine.ops import topk
from psi_engine.ops.backend import numba_reason
from psi_engine.ops.moments import (
    Moments,
    add_moments,
    carry,
    empty_moments,
    summarise,
)
from psi_engine.ops.random import hash_keys, string_key
from psi_engine.ops.reservoir import reservoir
from psi_engine.ops.survey import survey
from psi_engine.types import ActivationShape, LayerSites, PoolSites, SiteSet

_CARRY_EVERY = 1 << 20  # images; sums of 2^23 could overflow
_MAX_POOL = 1 << 22  # keeps the rank below 2^23
_POOL_AT_ONCE = 1 << 20  # sites that wait to enter the pool together
KEPT = 4
"""Candidates per wanted site that ``exact-fp16`` keeps at each end."""


def kept_per_channel(config: MineConfig) -> int:
    """Sites that a miner keeps of each channel, of all kinds."""
    return _width(config) * (config.top_k + config.bottom_k) + config.reservoir


def _width(config: MineConfig) -> int:
    return KEPT if config.precision == "exact-fp16" else 1


class Miner:
    """Keeps the extreme and random sites of one layer while its activations stream by.

    Parameters
    ----------
    layer : str
        Name of the layer; a key of the randomness.
    shape : ActivationShape
        Layout of the whole layer.
    config : MineConfig
    channels : Tensor, int64 (n,), optional
        Which channels to keep; None = all. Draws depend on the channel's index in the layer, so
        a subset gets the sites it would get in a full run.
    device : torch.device or str
        Where the buffers live.
    """

    def __init__(
        self,
        layer: str,
        shape: ActivationShape,
        config: MineConfig | None = None,
        channels: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        config = MineConfig() if config is None else config
        if config.pool > _MAX_POOL:
            raise InputError("pool is too large", got=config.pool, expected=f"at most {_MAX_POOL}")
        self.layer, self.shape, self.config = layer, shape, config
        self.channels = _checked_channels(layer, shape, channels)
        self._subset = None if channels is None else self.channels.to(device)
        self._sites = shape.grid[0] * shape.grid[1]
        self._group = self._sites if config.sites == "per-image" else 1
        count = len(self.channels)
        width = _width(config)
        self._top = topk.empty(count, width * config.top_k, torch.float32, device)
        self._bottom = topk.empty(count, width * config.bottom_k, torch.float32, device)
        self._random = topk.empty(count, config.reservoir, torch.int64, device)
        self._pool = topk.empty(1, config.pool, torch.int64, device)
        self._waiting: list[Tensor] = []  # images that have not entered the pool yet
        self._queued = 0  # how many
        self._moments = empty_moments(count, device)
        self._images = 0
        self._newest = -1
        self._compiled = numba_reason(torch.device(device)) is None
        layer_key = string_key(layer)
        self._channel_keys = hash_keys(config.seed, layer_key, self.channels).to(device)
        self._pool_key = hash_keys(config.seed, layer_key, string_key("pool")).to(device)

    @torch.no_grad()
    def update(self, maps: Tensor, image_ids: Tensor) -> None:
        """Take in the activations of a batch of images.

        Parameters
        ----------
        maps : Tensor, floating (batch, channels, H, W)
            Activations of the whole layer on its grid; 16-bit values are widened to float32.
            NaN and infinite sites are counted and left out.
        image_ids : Tensor, int64 (batch,)
            Distinct positions in source order, none negative.

        Raises
        ------
        InputError
            The maps are not (batch, channels, H, W) of this layer, or the ids do not fit them.
        """
        expected = (len(image_ids), self.shape.channels, *self.shape.grid)
        if maps.shape != expected or not maps.is_floating_point():
            raise InputError(
                f"activations of {self.layer} do not fit the layer",
                got=f"{maps.dtype} {tuple(maps.shape)}",
                expected=f"floating {expected}, one image id per row",
                fix="every image must reach the model at the same size",
            )
        if not len(image_ids):
            return
        fresh = self._is_fresh(image_ids)
        ids = image_ids.to(maps.device, non_blocking=True)
        if self._subset is not None:
            maps = maps.index_select(1, self._subset)
        x = maps.flatten(2)
        before = self._images // _CARRY_EVERY
        self._images += len(image_ids)
        if self._images // _CARRY_EVERY > before:
            self._moments = carry(self._moments)
        if self._compiled:
            self._survey(x.to(torch.float32), ids, fresh)
            if fresh:
                return
        self._top, self._bottom, moments = survey(
            x,
            ids,
            self._top,
            self._bottom,
            sites_per_group=self._group,
            fresh=fresh,
            moments=None if self._compiled else self._moments,
        )
        if not self._compiled:
            self._moments = moments
        if self.config.reservoir:
            self._random = reservoir(x, ids, self._random, self._channel_keys, fresh=fresh)
        if self.config.pool:
            # the caller may change its own tensor
            self._enter_pool(ids.clone() if ids is image_ids else ids, fresh)

    def _is_fresh(self, image_ids: Tensor) -> bool:
        """Whether the images ascend and come after all seen before; asks no other device."""
        if image_ids.device.type != "cpu":
            self._newest = topk.NO_SITE  # unknown, so no later image is sure to come after it
            return False
        ids = image_ids.numpy()
        fresh = bool(ids[0] > self._newest and (ids[1:] > ids[:-1]).all())
        self._newest = max(self._newest, int(ids.max()))
        return fresh

    def _survey(self, x: Tensor, image_ids: Tensor, fresh: bool) -> None:
        """Add up the images in compiled loops; keep their sites too, if they are fresh."""
        from psi_engine.ops import _numba_mining

        top, bottom, random = (
            entries if fresh else topk.Entries(*(part[:, :0] for part in entries))
            for entries in (self._top, self._bottom, self._random)
        )
        per_image = self.config.sites == "per-image"
        _numba_mining.survey(
            x, image_ids, top, bottom, random, self._channel_keys, per_image, self._moments
        )
        if fresh and self.config.pool:
            _numba_mining.enter_pool(self._pool, image_ids, self._sites, self._pool_key)

    def _enter_pool(self, image_ids: Tensor, fresh: bool) -> None:
        """Let a batch into the pool, fresh ones many together: it depends on their ids alone."""
        if not fresh:
            self._empty_queue()
        self._waiting.append(image_ids)
        self._queued += len(image_ids)
        if not fresh or self._sites * self._queued >= _POOL_AT_ONCE:
            self._empty_queue()

    def _empty_queue(self) -> None:
        if self._waiting:
            new = self._pool_of(torch.cat(self._waiting))
            self._pool = topk.merge(self._pool, new, self.config.pool, 1)
            self._waiting, self._queued = [], 0

    def _pool_of(self, image_ids: Tensor) -> topk.Entries:
        """The sites of a batch that can enter the pool: an equal share of each image's best."""
        sites = image_ids[:, None] * self._sites + torch.arange(
            self._sites, device=image_ids.device
        )
        priority = hash_keys(self._pool_key, sites)
        priority, order = torch.sort(priority, dim=1, stable=True)
        # Later ranks of an image come after `share` sites of every image of the batch.
        share = min(self._sites, -(-self.config.pool // len(image_ids)))
        rank = torch.arange(share, device=image_ids.device)
        # An arithmetic shift keeps the order; the offset makes the 40 bits non-negative.
        high_bits = (priority[:, :share] >> (64 - topk.PRIORITY_BITS)) + (
            1 << (topk.PRIORITY_BITS - 1)
        )
        keys = ~((rank << topk.PRIORITY_BITS) | high_bits)
        kept = sites.gather(1, order[:, :share])
        blank = torch.full_like(kept, torch.nan, dtype=torch.float32)
        return topk.Entries(keys.reshape(1, -1), kept.reshape(1, -1), blank.reshape(1, -1))

    def merge(self, other: Miner) -> None:
        """Take in what another miner of the same layer has seen.

        Sites are merged as sets: associative, commutative, idempotent, so shards may overlap.
        Statistics and the number of images are sums: exact in any order, but an image that both
        have seen counts twice in them.

        Raises
        ------
        InputError
            The other miner has another layer, shape, channel set or configuration.
        """
        same = (
            (self.layer, self.shape, self._settings())
            == (other.layer, other.shape, other._settings())
        ) and torch.equal(self.channels, other.channels)
        if not same:
            raise InputError(
                "miners of different work cannot be merged",
                got=f"{other.layer} {other.shape} {other.config}",
                expected=f"{self.layer} {self.shape} {self.config}",
            )
        device = self._pool.keys.device
        theirs = other._buffers()
        merged = [
            topk.merge(
                kept,
                topk.Entries(*(x.to(device) for x in theirs[name][0])),
                kept.keys.shape[1],
                group,
            )
            for name, (kept, group) in self._buffers().items()
        ]
        self._top, self._bottom, self._random, self._pool = merged
        moments = Moments(*(x.to(device) for x in other._moments))
        self._moments = carry(add_moments(self._moments, moments))
        self._images += other._images
        self._newest = max(self._newest, other._newest)

    def to(self, device: torch.device | str) -> None:
        """Move the buffers to another device."""
        self._empty_queue()
        for name in ("_top", "_bottom", "_random", "_pool", "_moments"):
            parts = getattr(self, name)
            setattr(self, name, type(parts)(*(x.to(device) for x in parts)))
        for name in ("_channel_keys", "_pool_key", "_subset"):
            if (tensor := getattr(self, name)) is not None:
                setattr(self, name, tensor.to(device))
        self._compiled = numba_reason(torch.device(device)) is None

    def extremes(self) -> list[tuple[topk.Entries, int]]:
        """The sorted buffers of the wanted ends, and how many sites of each are wanted."""
        ends = [(self._top, self.config.top_k), (self._bottom, self.config.bottom_k)]
        return [(entries, k) for entries, k in ends if k]

    def images_of(self, sites: Tensor) -> Tensor:
        """Ids of the images that sites of the buffers are in."""
        return sites // self._sites

    def overflowed(self) -> Tensor:
        """Sites that were not finite, int64 (channels,)."""
        return self._moments.nonfinite

    def adopt_extremes(self, exact: Miner) -> None:
        """Take top, bottom, minimum and maximum from a miner of the same channels.

        Places past the other miner's K become empty.
        """
        device = self._pool.keys.device
        for name in ("_top", "_bottom"):
            kept = getattr(self, name)
            channels, width = kept.keys.shape
            taken = topk.empty(channels, width, torch.float32, device)
            for part, other in zip(taken, getattr(exact, name), strict=True):
                part[:, : other.shape[1]] = other.to(device)
            setattr(self, name, taken)
        moments = self._moments
        if exact._top.keys.shape[1]:
            highest = exact._top.keys[:, 0].to(device, copy=True)
            moments = moments._replace(maximum=highest)
        if exact._bottom.keys.shape[1]:
            lowest = -exact._bottom.keys[:, 0].to(device) + 0.0
            moments = moments._replace(minimum=lowest)
        self._moments = moments

    def _settings(self) -> tuple[object, ...]:
        c = self.config
        return c.top_k, c.bottom_k, c.reservoir, c.pool, c.sites, c.precision, c.seed

    def _settings_key(self) -> Tensor:
        return torch.tensor(string_key(repr((self.layer, self.shape, self._settings()))))

    def _buffers(self) -> dict[str, tuple[topk.Entries, int]]:
        self._empty_queue()
        return {
            "top": (self._top, self._group),
            "bottom": (self._bottom, self._group),
            "random": (self._random, self._sites),
            "pool": (self._pool, 1),
        }

    def state_dict(self, copy: bool = True) -> dict[str, Tensor]:
        """Everything kept so far, as plain contiguous tensors on the CPU.

        Without ``copy`` they can be the miner's own, which the next update changes.
        """
        state = {
            f"{name}.{part}": tensor
            for name, (entries, _) in self._buffers().items()
            for part, tensor in entries._asdict().items()
        }
        state |= {f"moments.{part}": tensor for part, tensor in self._moments._asdict().items()}
        state["images"] = torch.tensor(self._images)
        state["newest"] = torch.tensor(self._newest)
        state["channels"] = self.channels
        # exact-fp16 and fp32 at a quarter of K have the same shapes: these tell them apart.
        state["settings"] = self._settings_key()
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        return {name: x.clone() for name, x in plain.items()} if copy else plain

    def load_state_dict(self, state: Mapping[str, Tensor], copy: bool = True) -> None:
        """Continue from :meth:`state_dict` of a miner of the same layer and configuration.

        Without ``copy`` the tensors become the miner's own, where they are on its device.

        Raises
        ------
        InputError
            The state belongs to other work: a name, shape, dtype, channel or setting differs.
        """
        for name, tensor in self.state_dict(copy=False).items():
            found = state.get(name)
            if found is None or found.shape != tensor.shape or found.dtype != tensor.dtype:
                raise InputError(
                    f"saved mining state of {self.layer} does not fit: {name}",
                    got="nothing" if found is None else f"{found.dtype} {tuple(found.shape)}",
                    expected=f"{tensor.dtype} {tuple(tensor.shape)}",
                    fix="mine this layer again from the start",
                )
        if not torch.equal(state["channels"].cpu(), self.channels):
            raise InputError(
                f"saved mining state of {self.layer} holds other channels",
                fix="mine this layer again from the start",
            )
        if not torch.equal(state["settings"].cpu(), self._settings_key()):
            raise InputError(
                f"saved mining state of {self.layer} was made with other settings",
                expected=f"{self.config}",
                fix="mine this layer again from the start",
            )
        device = self._pool.keys.device
        parts = {name: tensor.to(device, copy=copy) for name, tensor in state.items()}

        def entries(name: str) -> topk.Entries:
            return topk.Entries(*(parts[f"{name}.{part}"] for part in topk.Entries._fields))

        self._top, self._bottom = entries("top"), entries("bottom")
        self._random, self._pool = entries("random"), entries("pool")
        self._waiting, self._queued = [], 0
        self._moments = Moments(*(parts[f"moments.{part}"] for part in Moments._fields))
        self._images, self._newest = int(state["images"]), int(state["newest"])

    def result(self) -> LayerSites:
        """What was mined, on the CPU; slots that no site fills hold image id −1 and NaN."""
        self._empty_queue()
        bottom = self._site_set(self._bottom, self.config.bottom_k)
        # The bottom was kept as the top of −x; adding 0 turns −0 into +0.
        bottom = bottom._replace(values=-bottom.values + 0.0)
        pool = self._site_set(self._pool)
        found = pool.image_ids[0] >= 0
        return LayerSites(
            layer=self.layer,
            shape=self.shape,
            channels=self.channels,
            top=self._site_set(self._top, self.config.top_k),
            bottom=bottom,
            random=self._site_set(self._random),
            pool=PoolSites(pool.image_ids[0][found], pool.u[0][found], pool.v[0][found]),
            stats=summarise(Moments(*(part.clone() for part in self._moments))),
            images=self._images,
        )

    def _site_set(self, entries: topk.Entries, most: int | None = None) -> SiteSet:
        sites, values = entries.sites[:, :most].cpu(), entries.values[:, :most].cpu()
        blank = sites == topk.NO_SITE
        image, position = sites // self._sites, sites % self._sites
        columns = self.shape.grid[1]
        u, v = position // columns, position % columns
        return SiteSet(
            torch.where(blank, torch.nan, values),
            torch.where(blank, -1, image),
            torch.where(blank, -1, u).to(torch.int32),
            torch.where(blank, -1, v).to(torch.int32),
        )


def _checked_channels(layer: str, shape: ActivationShape, channels: Tensor | None) -> Tensor:
    if channels is None:
        return torch.arange(shape.channels)
    channels = channels.detach().cpu().to(torch.int64)
    inside = channels.ndim == 1 and bool(((channels >= 0) & (channels < shape.channels)).all())
    if not inside or len(channels) == 0 or len(channels.unique()) != len(channels):
        raise InputError(
            f"channels of {layer} cannot be used",
            got=channels.tolist(),
            expected=f"distinct indices from 0 to {shape.channels - 1}, at least one",
        )
    return channels
