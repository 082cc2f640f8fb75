"""From candidates mined in fp16 to the extremes of fp32: the second half of ``exact-fp16``.

The fp16 pass keeps :data:`KEPT` · K sites per channel. The images of the first 2K run again, in
fp32, together with a sample of the others drawn by hash; in all of them both arithmetics are
compared at every site. Call the largest difference of a channel ``e``, its K-th best fp32 value
``t``, and its 2K-th best fp16 value ``f``: no site outside the candidates has more than ``f`` in
fp16. The channel is certified when

    t > f + SAFETY · e.

Else the images of the next 2K candidates run too, and ``f`` becomes the 4K-th value. What is
still open then is mined in fp32 from all images: without a certificate nothing is taken on trust.

What the certificate says: a site that was not run in fp32 can belong to the true extremes only
if fp16 errs there by more than :data:`SAFETY` times as much as at any site of that channel in
any image that was compared. That is an estimate, not a proof: rounding errors of a deep network
have no useful bound in advance, and a rare image of another magnitude can break it. If a channel is
the difference of two features, an image in which both are 20,000 times as large as in the others
errs by up to 16 where no error was seen above 0.001; it is missed unless the sample holds it. Where
a certificate must not err, mine in fp32. The sample alone says, with 99 % confidence, that at most
1 − 0.01^(1/n) of the images hold a larger error than ``e`` (n = 256: 1.8 %); the factor and the
demand that such an error meet a site just below ``f`` come on top. Ties at the cut (a channel
that is 0 in all but a few images) are never certified, nor are channels in which fp16 overflowed
anywhere.

The fp32 extremes give the minimum and maximum too. The random sites are the same in either
arithmetic (except where fp16 overflows), but their activations, the mean, the variance and the
sparsity are those of fp16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from psi_engine.config import Precision
from psi_engine.mining.journal import Journal
from psi_engine.mining.miner import KEPT, Miner
from psi_engine.mining.passes import buffer_bytes, working_bytes
from psi_engine.mining.sweep import Sweep, Take
from psi_engine.ops import topk
from psi_engine.ops.backend import memory_budget
from psi_engine.ops.random import hash_keys, string_key

SAFETY = 4.0
"""How many times the largest error seen a site outside the candidates may err."""
SAMPLE = 256
"""Images drawn by hash for the comparison, beside those of the candidates."""


class Refinement:
    """The fp32 extremes of miners that hold fp16 candidates.

    Parameters
    ----------
    miners : mapping of layer name to Miner
        After the fp16 pass.
    sweep : Sweep
    images : Tensor, int64 (n,)
        Ids of all images that the miners have seen, or more.
    loading : int
        Bytes that images on their way need, of the memory.
    journal : Journal, optional
        Where it is saved, and what was saved of it is found.
    """

    def __init__(
        self,
        miners: Mapping[str, Miner],
        sweep: Sweep,
        images: Tensor,
        loading: int = 0,
        journal: Journal | None = None,
    ) -> None:
        self._miners, self._sweep, self._images = miners, sweep, images
        self._loading = loading
        self._journal = Journal(images) if journal is None else journal
        self._part = 2  # candidates, in K, whose images run next
        self._notes: list[str] = []
        self._size = int(images.max()) + 1 if len(images) else 0
        self._seen: dict[str, Tensor] = {}
        self._exact: dict[str, Miner] = {}
        self._errors: dict[str, Tensor] = {}
        self._open: dict[str, Tensor] = {}
        self._fp32: dict[str, Tensor] = {}
        for name, miner in miners.items():
            config = replace(miner.config, precision="fp32", reservoir=0, pool=0)
            device = self._sweep.device
            self._exact[name] = Miner(name, miner.shape, config, miner.channels, device)
            self._errors[name] = torch.zeros(len(miner.channels), device=device)
            self._open[name] = torch.ones(len(miner.channels), dtype=torch.bool)
            self._seen[name] = torch.zeros(self._size, dtype=torch.bool)
        self._resume()

    def run(self, told: Callable[[str, int, int], None] | None = None) -> list[str]:
        """Refine every miner in place; notes on what was certified come back.

        Parameters
        ----------
        told : callable, optional
            ``told(what, images done, images in all)``.
        """
        channels = sum(len(rows) for rows in self._open.values())
        while self._part <= KEPT and self._still():
            wanted = self._of_candidates(self._part)
            if self._part == 2:
                wanted |= self._sample()
            self._compare(wanted, told)
            self._certify(self._part)
            certain = channels - self._still()
            said = f"{certain} of {channels} channels certified by {self._part}K"
            self._notes.append(said)
            self._part += 2
        if still := self._still():
            self._mine_the_rest(told)
            self._notes.append(f"{still} mined in fp32 from all images")
        for name, miner in self._miners.items():
            miner.adopt_extremes(self._exact[name])
        run = int(torch.stack([*self._seen.values()]).any(0).sum())
        note = f"exact-fp16: {', '.join(self._notes)}; {run} of {len(self._images)} images in fp32"
        if still < channels:
            note += "; certificates are estimated from the images compared, not proved"
        return [note]

    def _still(self) -> int:
        return sum(int(rows.sum()) for rows in self._open.values())

    def _save(self) -> None:
        tensors = {}
        for name, exact in self._exact.items():
            tensors[f"{name}/errors"] = self._errors[name].cpu()
            tensors[f"{name}/open"] = self._open[name]
            tensors[f"{name}/seen"] = torch.from_numpy(np.packbits(self._seen[name].numpy()))
            state = exact.state_dict(copy=False)
            tensors |= {f"{name}/exact/{part}": x for part, x in state.items()}
        facts = {"part": self._part, "said": self._notes}
        self._journal.save([*self._miners], facts, tensors)

    def _resume(self) -> None:
        found = self._journal.saved([*self._miners])
        if found is None:
            return
        facts, tensors = found
        self._part, self._notes = facts["part"], facts["said"]
        for name, exact in self._exact.items():
            self._errors[name] = tensors[f"{name}/errors"].to(self._sweep.device, copy=True)
            self._open[name] = tensors[f"{name}/open"].clone()
            bits = np.unpackbits(tensors[f"{name}/seen"].numpy(), count=self._size)
            self._seen[name] = torch.from_numpy(bits.astype(bool))
            mark = f"{name}/exact/"
            exact.load_state_dict(
                {key.removeprefix(mark): x for key, x in tensors.items() if key.startswith(mark)}
            )

    def _of_candidates(self, part: int) -> Tensor:
        """The images of the first ``part`` · K candidates of open channels, bool (images,)."""
        wanted = torch.zeros(self._size, dtype=torch.bool)
        for name, miner in self._miners.items():
            for entries, k in miner.extremes():
                sites = entries.sites[:, : part * k].cpu()[self._open[name]]
                wanted[miner.images_of(sites[sites != topk.NO_SITE])] = True
        return wanted

    def _sample(self) -> Tensor:
        seed = next(iter(self._miners.values())).config.seed
        keys = hash_keys(seed, string_key("exact-fp16"), self._images)
        drawn = self._images[torch.argsort(keys)[:SAMPLE]]
        wanted = torch.zeros(self._size, dtype=torch.bool)
        wanted[drawn] = True
        return wanted

    def _names(self) -> list[str]:
        return [name for name, rows in self._open.items() if bool(rows.any())]

    def _compare(self, wanted: Tensor, told: Callable[[str, int, int], None] | None) -> None:
        """Run images in both arithmetics: fp32 sites are kept, differences are measured."""

        def keep(layer: str, maps: Tensor, ids: Tensor) -> None:
            self._exact[layer].update(maps, ids)
            self._fp32[layer] = maps.clone()

        def measure(layer: str, maps: Tensor, ids: Tensor) -> None:
            apart = (self._fp32.pop(layer) - maps.to(torch.float32)).abs()
            # Differences of what is not finite certify nothing.
            apart = torch.where(apart.isnan(), torch.inf, apart).amax((0, 2, 3))
            apart = apart[self._exact[layer].channels.to(apart.device)]
            self._errors[layer] = torch.maximum(self._errors[layer], apart)

        turns: Sequence[tuple[Precision, Take]] = (("fp32", keep), ("fp16", measure))
        groups = self._held_together()
        for number, names in enumerate(groups):
            if told is None:
                self._over(wanted, names, turns, None)
                continue

            def tell(what: str, done: int, total: int, number: int = number) -> None:
                told(what, number * total + done, len(groups) * total)

            self._over(wanted, names, turns, tell)

    def _over(
        self,
        wanted: Tensor,
        names: list[str],
        turns: Sequence[tuple[Precision, Take]],
        told: Callable[[str, int, int], None] | None,
    ) -> None:
        """Run the images that some layers have not seen, saving now and then."""
        seen = torch.stack([self._seen[name] for name in names]).all(0)
        indices = (wanted & ~seen).nonzero().squeeze(1)
        at = saved = 0
        for last in self._sweep.over(indices, names, turns):
            reached = int(torch.searchsorted(indices, last + 1))
            for name in names:
                self._seen[name][indices[at:reached]] = True
            at = reached
            if told is not None:
                told("refining", at, len(indices))
            if at - saved >= self._journal.every:
                self._save()
                saved = at
        for name in names:
            self._seen[name][indices] = True  # the last ones may be unreadable

    def _held_together(self) -> list[list[str]]:
        """Open layers in groups whose fp32 maps of a micro-batch the memory holds, one or more."""
        config = next(iter(self._miners.values())).config
        kept = [buffer_bytes(m.shape, config, len(m.channels)) for m in self._miners.values()]
        room = [working_bytes(m.shape, self._sweep.micro) for m in self._miners.values()]
        budget = memory_budget(self._sweep.device, config.memory)
        budget -= sum(kept) + max(room) + self._loading
        groups: list[list[str]] = []
        held = 0
        for name in self._names():
            shape = self._miners[name].shape
            own = 4 * self._sweep.micro * shape.channels * shape.grid[0] * shape.grid[1]
            if not groups or held + own > budget:
                groups.append([])
                held = 0
            groups[-1].append(name)
            held += own
        return groups

    def _certify(self, part: int) -> None:
        for name, rows in self._open.items():
            miner, error = self._miners[name], self._errors[name].cpu()
            certain = miner.overflowed().cpu() == 0
            sides = zip(miner.extremes(), self._exact[name].extremes(), strict=True)
            for (low, k), (exact, _) in sides:
                floor = low.keys[:, part * k - 1].cpu()
                value = exact.keys[:, k - 1].cpu()
                # −inf: every site there is has been a candidate
                certain &= (floor == -torch.inf) | (value > floor + SAFETY * error)
            self._open[name] = rows & ~certain

    def _mine_the_rest(self, told: Callable[[str, int, int], None] | None) -> None:
        wanted = torch.zeros(self._size, dtype=torch.bool)
        wanted[self._images] = True

        def keep(layer: str, maps: Tensor, ids: Tensor) -> None:
            self._exact[layer].update(maps, ids)

        self._over(wanted, self._names(), (("fp32", keep),), told)
