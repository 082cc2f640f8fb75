"""What a finished run holds, ready to be scored again: embeddings, labels, texts.

Nothing here mines or embeds. The pipeline scores its layers through this module, and whoever
asks how far the scores can be trusted scores them again with something changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from psi_engine import artifacts
from psi_engine.config import Backend, RunConfig, ScoreConfig
from psi_engine.embedding import EMBEDDINGS
from psi_engine.errors import InputError, RunFolderError
from psi_engine.inputs import Texts, config_of
from psi_engine.mining import dead_channels
from psi_engine.ops.backend import resolve_backend, resolve_device
from psi_engine.ops.random import hash_keys, string_key
from psi_engine.patches import collect_patches
from psi_engine.scores.score import score
from psi_engine.types import LayerSites, PatchSet, Progress, ReceptiveField, Scores

MINED = "mining.safetensors"
SCORE_INPUTS = "score_inputs.safetensors"
"""What the scorer was given beside the embeddings: labels of the images, embedded texts."""

_TEXTS = tuple(f.name for f in fields(Texts))


@dataclass(frozen=True)
class StoredLayer:
    """One layer of a run as the scorer sees it.

    ``embeddings`` and ``pool`` are gathered anew at every access, so that holding a layer
    holds no copy of them.
    """

    name: str
    sites: LayerSites
    field: ReceptiveField
    patches: PatchSet
    all_embeddings: Tensor  # float32 (crops, dim), one row per distinct crop of the run
    image_labels: Tensor | None  # int64 (images,), −1 = unknown; None = no labels

    @property
    def channel_ids(self) -> Tensor:
        """Keys of the channels' randomness, int64 (channels,)."""
        return hash_keys(string_key(self.name), self.sites.channels)

    @property
    def rows(self) -> Tensor:
        """Rows of ``all_embeddings`` of the top sites, int64 (channels, patches); −1 = none.

        Slots that every channel leaves empty are cut, down to the 4 patches scoring needs.
        """
        rows = self.patches.rows[self.name, "top"]
        return rows[:, : max(4, int((rows >= 0).sum(1).max()))]

    @property
    def embeddings(self) -> Tensor:
        """Of the top sites, float32 (channels, patches, dim), unit rows."""
        return self.all_embeddings[self.rows.clamp(min=0)]

    @property
    def mask(self) -> Tensor:
        """Which patches there are, bool (channels, patches); none of a dead channel."""
        return (self.rows >= 0) & ~dead_channels(self.sites.stats)[:, None]

    @property
    def labels(self) -> Tensor | None:
        """Labels of the top sites' images, int64 (channels, patches), −1 = unknown."""
        return self._labels_of(self.sites.image_ids[:, : self.rows.shape[1]])

    @property
    def pool(self) -> Tensor:
        """Of the pool's sites, float32 (n, dim), unit rows."""
        return self.all_embeddings[self.patches.rows[self.name, "pool"]]

    @property
    def pool_images(self) -> Tensor:
        """Images of the pool's sites, int64 (n,)."""
        return self.sites.pool.image_ids

    @property
    def pool_labels(self) -> Tensor | None:
        """Labels of the pool's images, int64 (n,), −1 = unknown."""
        return self._labels_of(self.pool_images)

    def _labels_of(self, image_ids: Tensor) -> Tensor | None:
        if self.image_labels is None:
            return None
        return torch.where(image_ids >= 0, self.image_labels[image_ids.clamp(min=0)], -1)

    def score(
        self,
        texts: Texts,
        config: ScoreConfig,
        *,
        device: torch.device | str = "auto",
        backend: Backend = "auto",
        progress: Progress | None = None,
        **replacements: Any,
    ) -> Scores:
        """Score the layer's channels.

        Parameters
        ----------
        texts : Texts
        config : ScoreConfig
        **replacements
            Arguments of :func:`psi_engine.score` to give instead of the layer's own.

        Returns
        -------
        Scores
            One row per channel, in the order of ``sites.channels``.
        """
        given: dict[str, Any] = {
            "embeddings": self.embeddings,
            "labels": self.labels,
            "text_embeddings": texts.embeddings,
            "concept_ids": texts.concept_ids,
            "pool": self.pool,
            "unrelated_text_embeddings": texts.unrelated,
            "unrelated_concept_ids": texts.unrelated_ids,
            "channel_ids": self.channel_ids,
            "mask": self.mask,
        } | replacements
        return score(
            given.pop("embeddings"),
            **given,
            config=config,
            device=device,
            backend=backend,
            progress=progress,
        )


@dataclass(frozen=True)
class StoredRun:
    """A finished run, its layers by name; made by :func:`load_stored`."""

    run: artifacts.Run
    config: RunConfig
    layers: Mapping[str, StoredLayer]
    texts: Texts
    concepts: tuple[str, ...] | None
    labels: Tensor | None  # int64 (images,), −1 = unknown
    class_names: tuple[str, ...] | None
    image_size: int

    def assignments(self, layer: str) -> Tensor:
        """Clusters of a layer's top sites as they were scored.

        Returns
        -------
        Tensor
            int64 (channels, patches), −1 = none; the axes of the layer's ``embeddings``.

        Raises
        ------
        InputError
            No such layer.
        """
        stored = self._layer(layer)
        ours = (pc.field("layer") == layer) & (pc.field("kind").cast("string") == "top")
        table = self.run.sites.filter(ours & pc.field("cluster").is_valid())
        channels, ranks, clusters = (
            torch.tensor(table[name].to_numpy(), dtype=torch.int64)
            for name in ("channel", "rank", "cluster")
        )
        order = torch.argsort(stored.sites.channels)
        rows = order[torch.searchsorted(stored.sites.channels[order], channels)]
        out = torch.full(stored.rows.shape, -1)
        out[rows, ranks] = clusters
        return out

    def _layer(self, name: str) -> StoredLayer:
        if name not in self.layers:
            raise InputError("no such layer in the run", got=name, expected=list(self.layers))
        return self.layers[name]

    def score(
        self,
        layer: str,
        config: ScoreConfig | None = None,
        *,
        patches: int | Tensor | None = None,
        channels: Tensor | Sequence[int] | None = None,
        progress: Progress | None = None,
        **replacements: Any,
    ) -> Scores:
        """Score a layer again; with nothing changed, the bits are those of the run.

        Parameters
        ----------
        layer : str
        config : ScoreConfig, optional
            None = the run's own.
        patches : int or Tensor, bool (channels, patches), optional
            Only the first so many patches of each channel, or only those marked.
        channels : Tensor, int64 (n,), optional
            Rows of the layer to score; None = all.
        **replacements
            Arguments of :func:`psi_engine.score` to give instead of the layer's own, already
            cut to ``patches`` and ``channels``.

        Raises
        ------
        InputError
            No such layer, or fewer than 4 patches asked for.
        """
        stored = self._layer(layer)
        given: dict[str, Any] = {
            "mask": stored.mask,
            "channel_ids": stored.channel_ids,
            "labels": stored.labels,
        }
        if "embeddings" not in replacements:
            given["embeddings"] = stored.embeddings
        if isinstance(patches, int):
            if patches < 4:
                raise InputError("too few patches", got=patches, expected="at least 4")
            for name in ("embeddings", "mask", "labels"):
                if given.get(name) is not None:
                    given[name] = given[name][:, :patches]
        elif patches is not None:
            given["mask"] = given["mask"] & patches
        if channels is not None:
            rows = torch.as_tensor(channels)
            given = {name: None if x is None else x[rows] for name, x in given.items()}
        return stored.score(
            self.texts,
            self.config.score if config is None else config,
            device=resolve_device(self.config.device),
            backend=resolve_backend(self.config.backend, resolve_device(self.config.device)),
            progress=progress,
            **given | replacements,
        )


def stored_layers(
    mined: Mapping[str, LayerSites],
    fields_of: Mapping[str, ReceptiveField],
    patches: PatchSet,
    embeddings: Tensor,
    labels: Tensor | None,
) -> dict[str, StoredLayer]:
    """The layers of a run that has been mined and embedded, in the run's order."""
    return {
        name: StoredLayer(name, sites, fields_of[name], patches, embeddings, labels)
        for name, sites in mined.items()
    }


def write_score_inputs(
    path: Path,
    labels: Tensor | None,
    texts: Texts,
    class_names: Sequence[str] | None,
    concepts: Sequence[str] | None,
) -> None:
    """Write what the scorer is given beside the embeddings, atomically."""
    tensors = {name: getattr(texts, name) for name in _TEXTS} | {"labels": labels}
    artifacts.write_tensors(
        path,
        {name: x for name, x in tensors.items() if x is not None},
        # One entry: safetensors writes several in an order that differs from run to run.
        {"names": json.dumps({"class_names": class_names, "concepts": concepts})},
    )


def load_stored(path: str | Path) -> StoredRun:
    """Open a finished run for scoring it again.

    Raises
    ------
    RunFolderError
        The folder is no run, is unfinished, or was scored by a version that did not keep what
        the scorer was given.
    """
    run = artifacts.open_run(path)
    folder = run.path
    stages = run.manifest["stages"]
    needed = artifacts.STAGES[: artifacts.STAGES.index("score") + 1]
    undone = [name for name in needed if stages.get(name, {}).get("status") != "done"]
    missing = [name for name in (MINED, EMBEDDINGS, SCORE_INPUTS) if not (folder / name).is_file()]
    if undone or missing:
        raise RunFolderError(
            f"{folder} cannot be scored again",
            got=", ".join([f"stage {name} unfinished" for name in undone] + [*missing])
            + (" missing" if missing else ""),
            expected="a finished run",
            fix="run the same psi-engine run command again; it does only what is missing",
        )
    config = config_of(run)
    tensors, names = _read_score_inputs(folder)
    mined = artifacts.read_mined(folder / MINED)
    facts = stages["patches"]["fields"]
    seen = {name: field_of(facts[name]) for name in mined}
    image_size = run.manifest["image_size"]
    patches = collect_patches(mined, seen, image_size)
    embeddings = torch.from_numpy(np.load(folder / EMBEDDINGS, mmap_mode="c"))
    labels = tensors.get("labels")
    return StoredRun(
        run,
        config,
        stored_layers(mined, seen, patches, embeddings, labels),
        _texts(tensors),
        names["concepts"],
        labels,
        names["class_names"],
        image_size,
    )


def read_texts(folder: Path) -> tuple[Texts, tuple[str, ...] | None]:
    """The embedded texts of a scored run and the names of its concepts; nothing else is read."""
    tensors, names = _read_score_inputs(folder)
    return _texts(tensors), names["concepts"]


def _read_score_inputs(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, notes = artifacts.read_tensors(folder / SCORE_INPUTS)
    if "names" not in notes:
        raise RunFolderError(
            f"{folder / SCORE_INPUTS} is of another version",
            got="no names of classes and concepts in it",
            expected="what this version of psi-engine writes",
            fix="run the same psi-engine run command again, into another --out if it is refused",
        )
    names = json.loads(notes["names"])
    return tensors, {key: None if held is None else tuple(held) for key, held in names.items()}


def _texts(tensors: Mapping[str, Tensor]) -> Texts:
    return Texts(**{name: tensors.get(name) for name in _TEXTS})


def field_of(facts: Mapping[str, Any]) -> ReceptiveField:
    """A receptive field from its entry in the manifest, where tuples have become lists."""
    entries: dict[str, Any] = {
        name: tuple(x) if isinstance(x, list) else x for name, x in facts.items()
    }
    return ReceptiveField(**entries)
