"""Parity and speed beside the package ``semanticlens`` on the same embeddings.

    python -m benchmarks.peers --out benchmarks/results [--embeddings FILE ...]

``difference`` is the largest over the channels. Polysemanticity rests on 2-means, where both
sides may stop in different optima: ``difference`` is then over the channels with the same
clusters, ``differ`` is the share of all channels that are more than 10⁻³ apart, and ``lower`` and
``higher`` are the shares whose sum of squares is lower or higher here than there. ``times`` is
their time over ours. The generated embeddings are not of length one: neither side normalises them
for 2-means. ``tiny_imagenet_resnet18`` in the tracked results are unit features of a ResNet-18, 50
Tiny-ImageNet images a channel, of one class, of 2 to 5 classes and of all.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from benchmarks.harness import Results, Work, interleave, spread
from benchmarks.problems import clip_like, generator, read
from psi_engine.baselines import clarity, redundancy, semanticlens_polysemanticity
from psi_engine.baselines.two_means import split_in_two

APART = 1e-3
PARITY = 1e-5
"""Most that the two may differ where they compute the same thing, in float32."""

_SAME_OPTIMUM = 1e-6


class Peer(NamedTuple):
    """The same measure from both sides, channels to one value each or to their mean."""

    ours: Callable[[Tensor], Tensor]
    theirs: Callable[[Tensor], Tensor]


def main(arguments: Sequence[str] | None = None) -> Results:
    """Print and write one row per source and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for peers.csv and peers.json")
    parser.add_argument(
        "--embeddings",
        type=Path,
        nargs="*",
        default=[],
        metavar="FILE",
        help="npz or safetensors files with `embeddings` (channels, patches, dim)",
    )
    parser.add_argument("--channels", type=int, default=256, help="at most, of each source")
    parser.add_argument("--patches", type=int, default=50, help="of generated channels")
    parser.add_argument("--dim", type=int, default=512, help="of generated channels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    files = [file.name for file in options.embeddings]
    settings = vars(options) | {"embeddings": files, "semanticlens": version("semanticlens")}
    results = Results("peers", settings)
    sources = {"clip_like": of_any_length(options)}
    for file in options.embeddings:
        sources[file.stem] = read(file, options.channels)
    for name, array in sources.items():
        x = torch.from_numpy(np.ascontiguousarray(array, np.float32))
        for measure, peer in peers().items():
            shape = dict(zip(("channels", "patches", "dim"), x.shape, strict=True))
            results.add(source=name, **shape, measure=measure, **compare(x, measure, peer, options))
    if options.out:
        results.write(options.out)
    return results


def of_any_length(options: argparse.Namespace) -> np.ndarray:
    """Generated channels whose rows are about 10 long, as CLIP's are before normalisation."""
    x = clip_like(range(options.channels), options.patches, options.dim, seed=options.seed)
    rng = generator(options.seed, "lengths")
    lengths = 10 * np.exp(0.05 * rng.standard_normal(x.embeddings.shape[:2]))
    return (x.embeddings * lengths[..., None]).astype(np.float32)


def peers() -> dict[str, Peer]:
    """Each measure from both sides; redundancy is theirs as the mean over channels."""
    from semanticlens import scores

    return {
        "clarity": Peer(clarity, scores.clarity_score),
        "redundancy": Peer(
            lambda x: redundancy(x).mean(), lambda x: scores.redundancy_score(x.mean(1))
        ),
        "polysemanticity": Peer(semanticlens_polysemanticity, scores.polysemanticity_score),
    }


def compare(x: Tensor, measure: str, peer: Peer, options: argparse.Namespace) -> dict[str, object]:
    """Agreement first, then the clocks."""
    row = agreement(x, measure, peer)
    works = {"ours": Work(partial(peer.ours, x)), "theirs": Work(partial(peer.theirs, x))}
    taken = {
        name: [one.seconds for one in turns]
        for name, turns in interleave(works, options.rounds).items()
    }
    row["seconds"] = spread(taken["ours"])
    row["their_seconds"] = spread(taken["theirs"])
    rounds = zip(taken["theirs"], taken["ours"], strict=True)
    row["times"] = spread([theirs / ours for theirs, ours in rounds])
    return row


def agreement(x: Tensor, measure: str, peer: Peer) -> dict[str, object]:
    """Differences of the two sides, and refusal where they are no rounding."""
    ours, theirs = peer.ours(x), peer.theirs(x).to(torch.float64)
    gap = (ours - theirs).abs().reshape(-1)
    row: dict[str, object] = {}
    if measure == "polysemanticity":
        here, there, same = sums_of_squares(x)
        row["differ"] = float((gap > APART).double().mean())
        row["lower"] = float((here < there * (1 - _SAME_OPTIMUM)).mean())
        row["higher"] = float((here > there * (1 + _SAME_OPTIMUM)).mean())
        gap = gap[torch.from_numpy(same)]
        if not len(gap):
            raise SystemExit(f"{measure}: no channel has the same clusters on both sides")
    row["difference"] = float(gap.max())
    if not row["difference"] <= PARITY:  # NaN is no parity
        raise SystemExit(f"{measure} differs by {row['difference']:g}: no parity, nothing to time")
    return row


def sums_of_squares(x: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sum of squares of our clusters and of theirs, and whether they are the same clusters."""
    ours = split_in_two(x, seed=0).assignments.numpy()
    here, there, same = [], [], []
    for rows, labels in zip(x.numpy(), ours, strict=True):
        fit = KMeans(2, n_init=10, random_state=123).fit(rows)
        here.append(_within(rows, labels))
        there.append(_within(rows, fit.labels_))
        agree = labels == fit.labels_
        same.append(bool(agree.all() or not agree.any()))
    return np.array(here), np.array(there), np.array(same)


def _within(rows: np.ndarray, labels: np.ndarray) -> float:
    wide = rows.astype(np.float64)
    parts = [wide[labels == j] for j in np.unique(labels)]
    return sum(float(((part - part.mean(0)) ** 2).sum()) for part in parts)


if __name__ == "__main__":
    main()
