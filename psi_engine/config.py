"""Settings of each stage: frozen dataclasses, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from numbers import Real
from operator import index
from typing import Any, Literal, get_args

from psi_engine.errors import InputError

Preset = Literal["paper", "calibrated"]
Sites = Literal["per-image", "all"]
Precision = Literal["fp32", "tf32", "fp16", "bf16", "exact-fp16"]
SNull = Literal[
    "rotation-shared", "rotation", "rotation-samples", "rotation-tangent", "pool", "neighborhood"
]
QNull = Literal["permutation", "exact"]
DNull = Literal[
    "text-rotation", "unrelated-text", "text-shuffle", "partition", "pool", "neighborhood"
]
DMeasure = Literal["gap", "contrast", "margin"]
DLevel = Literal["prompt", "concept"]
Solver = Literal["hartigan", "lloyd"]
Backend = Literal["auto", "torch", "numba", "cuda"]

RUN_SUBSAMPLES = 200
"""Subsamples behind the PSI interval of a run; :func:`psi_engine.score` takes none unless asked."""


def _choose(name: str, value: object, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise InputError(
            f"unknown {name}", got=repr(value), expected="one of " + ", ".join(map(str, choices))
        )


def _number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"{name} is not a number", got=repr(value), expected="a number")


def _at_least(config: object, name: str, least: int) -> None:
    """Check a whole-number option and store it as a plain int."""
    value = getattr(config, name)
    _number(name, value)
    try:
        whole = index(value)
    except TypeError:
        raise InputError(
            f"{name} is not a whole number", got=repr(value), expected="a whole number"
        ) from None
    if whole < least:
        raise InputError(f"{name} is too small", got=whole, expected=f"at least {least}")
    object.__setattr__(config, name, whole)


@dataclass(frozen=True)
class MineConfig:
    """How sites are mined."""

    top_k: int = 50
    """Sites kept per channel, K."""
    bottom_k: int = 50
    """Lowest sites kept per channel."""
    reservoir: int = 50
    """Uniform random sites kept per channel."""
    pool: int = 4096
    """Random sites kept per layer, for the pool nulls."""
    sites: Sites = "per-image"
    """``per-image``: at most one site per image and channel; ``all``: any (image, u, v)."""
    precision: Precision = "fp32"
    """Arithmetic of the forward pass, see :mod:`psi_engine.mining.precision`; fp32 never uses
    TF32, ``exact-fp16`` looks for candidates in fp16 and gives fp32's values of them; that no
    other site belongs there is estimated, not proved."""
    batch_size: int = 64
    """Images loaded together. Sets loading only, never a result."""
    memory: int | None = None
    """Bytes of the device that mining may use beside the model and the sites it finds; layers that
    do not fit together are mined in turns, which changes no result. None = a quarter of what is
    free. What counts is told in :mod:`psi_engine.mining.passes`."""
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least(self, "top_k", 0)
        _at_least(self, "seed", 0)
        if self.top_k < 4:
            raise InputError(
                "top_k is too small",
                got=self.top_k,
                expected="at least 4 (fewer patches have no clusters to test)",
            )
        for name in ("bottom_k", "reservoir", "pool"):
            _at_least(self, name, 0)
        _at_least(self, "batch_size", 1)
        if self.memory is not None:
            _at_least(self, "memory", 1 << 20)
        _choose("sites", self.sites, get_args(Sites))
        _choose("precision", self.precision, get_args(Precision))


@dataclass(frozen=True)
class PatchConfig:
    """How a site becomes a crop."""

    patch: Literal["effective", "theoretical"] | int = "effective"
    """Side of the crop: the effective receptive field, the theoretical one, or pixels."""
    energy: float = 0.95
    """Share of the gradient energy inside the effective receptive field."""
    probe_images: int = 16
    """Images over which the effective receptive field is averaged."""

    def __post_init__(self) -> None:
        if not isinstance(self.patch, str):
            _at_least(self, "patch", 1)
        else:
            _choose("patch", self.patch, ("effective", "theoretical", "a side in pixels"))
        _number("energy", self.energy)
        if not 0 < self.energy < 1:
            raise InputError("energy is out of range", got=self.energy, expected="between 0 and 1")
        _at_least(self, "probe_images", 1)


@dataclass(frozen=True)
class ScoreConfig:
    """How embeddings are scored. The defaults are the ``calibrated`` preset."""

    k_min: int = 2
    """Smallest number of clusters tried."""
    k_max: int = 5
    """Largest number of clusters tried."""
    replicates: int = 1000
    """Draws of each null, M (neighborhood draws four sets for each)."""
    s_null: SNull = "pool"
    """Null of the silhouette S."""
    q_null: QNull = "permutation"
    """Null of the label alignment Q."""
    d_null: DNull = "text-rotation"
    """Null of the distinctness D."""
    d_measure: DMeasure = "margin"
    """``gap``: best minus second similarity (paper); ``contrast``, ``margin``: against the other
    clusters and their names, see :mod:`psi_engine.ops.naming`."""
    d_level: DLevel = "concept"
    """``prompt``: every prompt stands alone (paper); ``concept``: template-averaged."""
    solver: Solver = "hartigan"
    """``hartigan`` single-point moves, or ``lloyd`` for parity with scikit-learn."""
    restarts: int = 20
    """Seedings per clustering problem; the best objective is kept. On ResNet-18 features five
    already match the best of scikit-learn and faiss; twenty keep the clusters of nearly all
    channels the same under another seed."""
    subsamples: int = 0
    """Subsamples for the interval of PSI; 0 = no interval."""
    alpha: float = 0.05
    """False discovery rate of the verdicts."""
    adjust: Literal["bh", "by"] = "bh"
    """Benjamini–Hochberg or Benjamini–Yekutieli."""
    seed: int = 0
    memory: int | None = None
    """Bytes the scorer may use for temporaries; None = a quarter of what the device has free."""

    def __post_init__(self) -> None:
        _at_least(self, "k_min", 2)
        _at_least(self, "k_max", 2)
        _at_least(self, "seed", 0)
        if self.k_max < self.k_min:
            raise InputError(
                "k_max is below k_min", got=f"{self.k_max} < {self.k_min}", expected="k_max ≥ k_min"
            )
        _at_least(self, "replicates", 2)
        _at_least(self, "restarts", 1)
        _at_least(self, "subsamples", 0)
        _number("alpha", self.alpha)
        if not 0 < self.alpha < 1:
            raise InputError("alpha is out of range", got=self.alpha, expected="between 0 and 1")
        if self.memory is not None:
            _at_least(self, "memory", 1 << 20)
        for name, choices in (
            ("s_null", SNull),
            ("q_null", QNull),
            ("d_null", DNull),
            ("d_measure", DMeasure),
            ("d_level", DLevel),
            ("solver", Solver),
        ):
            _choose(name, getattr(self, name), get_args(choices))
        _choose("adjust", self.adjust, ("bh", "by"))

    @classmethod
    def preset(cls, name: str, **changes: Any) -> ScoreConfig:
        """The settings of ``paper`` (Section 4 of the paper) or ``calibrated``, with changes."""
        _choose("preset", name, get_args(Preset))
        changes = _section("score", changes, cls)
        if name == "calibrated":
            return cls(**changes)
        paper = cls(
            replicates=20,
            s_null="rotation",
            q_null="permutation",
            d_null="unrelated-text",
            d_measure="gap",
            d_level="prompt",
            solver="lloyd",
            restarts=10,
        )
        return replace(paper, **changes)


@dataclass(frozen=True)
class RunConfig:
    """One run: a model, its layers, images, an encoder, and how to score.

    :meth:`from_options` builds one from the keys of the command line and of ``--config``.
    """

    model: str
    """torchvision name, ``timm:NAME``, ``open_clip:NAME`` or ``package.module:factory``."""
    layers: Sequence[str]
    """Module names, globs, or ``all``."""
    weights: str = "default"
    """``default``, ``none`` or a file (.pth, .safetensors); of open_clip also a tag."""
    latents: Sequence[str] = ()
    """``LAYER=package.module:factory`` each: a sparse autoencoder whose latents are the channels
    of a layer ``latents.LAYER``."""
    channels: Sequence[str] = ()
    """Subsets such as ``layer4:0-63`` or ``layer4:3,17``; empty = every channel."""
    data: str = "tiny-imagenet"
    """A folder, a Parquet file, tars, ``hf:NAME``, ``package.module:factory`` of a data set, or
    ``tiny-imagenet`` (downloaded)."""
    max_images: int | None = None
    """Use only so many images, at even distances over the source."""
    image_size: int | None = None
    """Side of the model's input; None = the model's own."""
    encoder: str = "open_clip:ViT-B-32"
    """``open_clip:NAME``, ``timm:NAME``, ``classifier:NAME`` or ``package.module:factory``."""
    encoder_weights: str | None = None
    """A pretrained tag or a file; None = the encoder's default."""
    concepts: str | None = None
    """A file of concepts, one per line; None = class names and the generic concepts."""
    out: str | None = None
    """Run folder; None = ``runs/MODEL``."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    backend: Backend = "auto"
    """Who does the clustering; see :mod:`psi_engine.ops.backend`."""
    workers: int = 0
    """Processes that decode images; 0 = in this process."""
    mine: MineConfig = field(default_factory=MineConfig)
    patches: PatchConfig = field(default_factory=PatchConfig)
    score: ScoreConfig = field(default_factory=lambda: ScoreConfig(subsamples=RUN_SUBSAMPLES))

    def __post_init__(self) -> None:
        if isinstance(self.layers, str) or not self.layers:
            raise InputError(
                "no layers named",
                got=repr(self.layers),
                expected="a list such as ['layer3', 'layer4']",
            )
        _choose("backend", self.backend, get_args(Backend))
        if self.max_images is not None:
            _at_least(self, "max_images", 4)
        if self.image_size is not None:
            _at_least(self, "image_size", 8)
        _at_least(self, "workers", 0)
        if self.mine.pool < self.mine.top_k:
            raise InputError(
                "the pool is smaller than a channel's patches",
                got=f"pool {self.mine.pool}, top_k {self.mine.top_k}",
                expected=f"a pool of at least top_k, better {10 * self.mine.top_k}",
            )

    @classmethod
    def from_options(cls, preset: str = "calibrated", **options: Any) -> RunConfig:
        """Build a run from options, on top of a preset.

        Parameters
        ----------
        preset : {"calibrated", "paper"}
            Where options are silent. ``paper`` is Section 4 of the paper: top-K over all sites,
            theoretical receptive field, images at 224, 20 draws per null, Lloyd, prompts.
        **options
            Any field of this class, of :class:`MineConfig`, :class:`PatchConfig` or
            :class:`ScoreConfig`; ``seed`` sets both seeds. None means "as the preset says".
            ``mine``, ``patches`` and ``score`` may hold mappings of one stage's fields, over
            which the others win.

        Raises
        ------
        InputError
            For an option nobody knows, with the close ones.
        """
        _choose("preset", preset, get_args(Preset))
        given = {name: value for name, value in options.items() if value is not None}
        parts: dict[str, dict[str, Any]] = {"mine": {}, "patches": {}, "score": {}, "run": {}}
        stages = {"mine": MineConfig, "patches": PatchConfig, "score": ScoreConfig}
        if preset == "paper":
            parts["mine"]["sites"] = "all"
            parts["patches"]["patch"] = "theoretical"
            parts["run"]["image_size"] = 224
        for stage, kind in stages.items():
            parts[stage] |= _section(stage, given.pop(stage, {}), kind)
        known = _names(cls) - set(stages)
        for name, value in given.items():
            homes = [part for part, kind in stages.items() if name in _names(kind)]
            if name in known:
                homes.append("run")
            if not homes:
                raise _unknown(name, known.union(*(_names(kind) for kind in stages.values())))
            for home in homes:
                parts[home][name] = value
        for needed, such in _NEEDED.items():
            if needed not in parts["run"]:
                raise InputError(f"no {needed} named", fix=f"give --{needed}, such as {such}")
        return cls(
            mine=MineConfig(**parts["mine"]),
            patches=PatchConfig(**parts["patches"]),
            score=ScoreConfig.preset(preset, **{"subsamples": RUN_SUBSAMPLES, **parts["score"]}),
            **parts["run"],
        )


_NEEDED = {
    "model": "resnet50 or timm:vit_base_patch16_224",
    "layers": "layer4, blocks.11 or all; a name that is not there lists the close ones",
}


def _section(stage: str, settings: object, kind: type) -> dict[str, Any]:
    """The settings of one stage, each one known; None is left to the preset."""
    if not isinstance(settings, Mapping):
        raise InputError(
            f"{stage} is no section of settings", got=repr(settings), expected=f"a table [{stage}]"
        )
    for name in settings:
        if name not in _names(kind):
            raise _unknown(name, _names(kind), stage)
    return {name: value for name, value in settings.items() if value is not None}


def _unknown(name: str, known: set[str], stage: str | None = None) -> InputError:
    where = "" if stage is None else f" of [{stage}]"
    close = get_close_matches(name, sorted(known), n=3) or sorted(known)
    return InputError(
        f"unknown option{where}", got=repr(name), expected="one of " + ", ".join(close)
    )


def _names(kind: type) -> set[str]:
    return {f.name for f in fields(kind)}
