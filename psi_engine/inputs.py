"""A run's inputs, found and checked before any work and before any download.

The order is options, device, model, weights, layers, channels, data, encoder: the mistakes that
cost nothing to see come first, whatever needs the network comes last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from psi_engine.artifacts import Run
from psi_engine.config import MineConfig, PatchConfig, RunConfig, ScoreConfig
from psi_engine.data import ImageSource, needs_download, open_source, require_download
from psi_engine.encoders import Encoder, check_encoder, load_encoder
from psi_engine.errors import DataError, EncoderError, InputError, RunFolderError
from psi_engine.mining import require_precision
from psi_engine.models import (
    LayerChoice,
    LoadedModel,
    choose_layers,
    load_model,
    may_download,
    parse_channels,
)
from psi_engine.ops.backend import resolve_backend, resolve_device
from psi_engine.standins import IMPORTED, pictures_only
from psi_engine.types import ActivationShape, Progress, Prompts
from psi_engine.vocabulary import build_vocabulary, unrelated_bank


@dataclass(frozen=True)
class ImageInputs:
    """The model and the images of a run, found and checked."""

    device: torch.device
    backend: str
    model: LoadedModel
    chosen: LayerChoice
    channels: Mapping[str, Tensor]
    source: ImageSource

    @property
    def layers(self) -> list[str]:
        """Names of the layers, in the model's order."""
        return list(self.chosen.shapes)

    @property
    def shapes(self) -> Mapping[str, ActivationShape]:
        """Layout of each layer."""
        return self.chosen.shapes

    @property
    def identity(self) -> dict[str, str]:
        """What makes two runs the same run."""
        return {
            "model": self.model.name,
            "weights": self.model.fingerprint[:16],
            "data": f"{len(self.source)} images {self.source.fingerprint[:16]}",
        }

    @property
    def fingerprints(self) -> dict[str, str]:
        """What the inputs are, byte for byte."""
        return {"weights": self.model.fingerprint, "data": self.source.fingerprint}


@dataclass(frozen=True)
class Inputs(ImageInputs):
    """A run's inputs, all found and checked."""

    encoder: Encoder
    prompts: Prompts | None
    """What an encoder of free texts names clusters with; None for the other encoders."""
    bank: Prompts | None
    """Prompts of unrelated domains, where the null of D asks for them."""

    @property
    def fingerprints(self) -> dict[str, str]:
        """What the inputs are, byte for byte."""
        return {**super().fingerprints, "encoder": self.encoder.fingerprint}

    @property
    def concepts(self) -> tuple[str, ...] | None:
        """Names of the concepts clusters can have; None without text."""
        return self.encoder.concepts if self.prompts is None else self.prompts.concepts

    @property
    def vocabulary(self) -> str:
        """Where the concepts come from, for the manifest."""
        if self.prompts is not None:
            return self.prompts.source
        if self.encoder.text == "fixed":
            return f"fixed: {self.encoder.name}"
        return "none: the encoder has no text side"


@dataclass(frozen=True)
class Texts:
    """The prompts clusters are named with, embedded; None where there is no text."""

    embeddings: Tensor | None  # float32 (prompts, dim)
    concept_ids: Tensor | None  # int64 (prompts,); None = each prompt is a concept
    unrelated: Tensor | None  # float32 (bank prompts, dim)
    unrelated_ids: Tensor | None


def check(config: RunConfig, progress: Progress | None = None) -> Inputs:
    """Find and check everything a run needs; local checks first, downloads last."""
    if config.concepts is not None and not Path(config.concepts).is_file():
        raise InputError("no concepts file", got=config.concepts, expected="one concept a line")
    seen = check_images(
        config, progress, lambda: check_encoder(config.encoder, config.encoder_weights)
    )
    encoder = load_encoder(config.encoder, config.encoder_weights, seen.device, config.concepts)
    prompts, bank = choose_vocabulary(config, encoder, seen.source)
    return Inputs(**vars(seen), encoder=encoder, prompts=prompts, bank=bank)


def check_images(
    config: RunConfig,
    progress: Progress | None,
    before_downloads: Callable[[], None] = lambda: None,
) -> ImageInputs:
    """Find and check the model and the images; ``before_downloads`` checks what else is here.

    Raises
    ------
    InputError
        For anything wrong with the options, the device, the model, its weights, the layers, the
        channels or the data.
    """
    device = resolve_device(config.device)
    require_precision(config.mine.precision, device)
    backend = resolve_backend(config.backend, device)
    downloads_weights = may_download(config.model, config.weights)
    first = "none" if downloads_weights else config.weights
    model = load_model(config.model, first, config.image_size, config.latents)
    side = model.preprocess.image_size
    chosen = choose_layers(model.module, config.layers, torch.zeros(1, 3, side, side))
    _refuse_unused_latents(config, chosen)
    channels = parse_channels(config.channels, chosen.shapes)
    source = None
    if needs_download(config.data):
        require_download(config.data)
    else:
        source = _open_data(config, progress)
    before_downloads()
    if downloads_weights:
        model = load_model(config.model, config.weights, config.image_size, config.latents)
    source = source or _open_data(config, progress)
    return ImageInputs(device, backend, model, chosen, channels, source)


def config_of(run: Run) -> RunConfig:
    """The settings of a run, from its manifest; ``out`` is the folder as it lies now."""
    settings = dict(run.manifest["config"])
    stages = {"mine": MineConfig, "patches": PatchConfig, "score": ScoreConfig}
    parts = {name: kind(**settings.pop(name)) for name, kind in stages.items()}
    return replace(RunConfig(**settings, **parts), out=str(run.path))


def reopen(run: Run, progress: Progress | None = None) -> Inputs:
    """Find the model, the images and the encoder of a finished run again.

    Raises
    ------
    RunFolderError
        They are not what they were: weights, images or encoder differ from the manifest.
    InputError
        As :func:`check`.
    """
    config = config_of(run)
    if IMPORTED in (config.model, config.encoder):
        seen = _imported_images(run, config, progress)
        if config.encoder == IMPORTED:
            raise RunFolderError(
                f"the encoder of {run.path} is not here: its embeddings were imported",
                fix="import again with --data and --encoder",
            )
        encoder = load_encoder(config.encoder, config.encoder_weights, seen.device, config.concepts)
        prompts, bank = choose_vocabulary(config, encoder, seen.source)
        inputs = Inputs(**vars(seen), encoder=encoder, prompts=prompts, bank=bank)
    else:
        inputs = check(config, progress)
    _require_same(run, inputs)
    return inputs


def reopen_images(run: Run, progress: Progress | None = None) -> ImageInputs:
    """Find the model and the images of a finished run again, and leave its encoder alone.

    Raises
    ------
    RunFolderError
        Weights or images differ from the manifest.
    InputError
        As :func:`check`.
    """
    inputs = _imported_images(run, config_of(run), progress)
    _require_same(run, inputs)
    return inputs


def _imported_images(run: Run, config: RunConfig, progress: Progress | None) -> ImageInputs:
    """Model and images of a run whose sites may have been imported without a model."""
    if config.data == IMPORTED:
        raise RunFolderError(
            f"the images of {run.path} are not here: its embeddings were imported",
            fix="import again with --data",
        )
    if config.model != IMPORTED:
        return check_images(config, progress)
    device = resolve_device(config.device)
    held = run.manifest
    model = pictures_only(held["fingerprints"]["weights"], held["image_size"])
    shapes = {layer: ActivationShape("flat", 0, (1, 1)) for layer in config.layers}
    chosen = LayerChoice(shapes, {}, {})
    source = _open_data(config, progress)
    return ImageInputs(device, resolve_backend(config.backend, device), model, chosen, {}, source)


def _require_same(run: Run, inputs: ImageInputs) -> None:
    held = run.manifest["fingerprints"]
    if changed := sorted(n for n, found in inputs.fingerprints.items() if held[n] != found):
        raise RunFolderError(
            f"{run.path} was made with other {' and '.join(changed)}",
            got="; ".join(f"{name} {inputs.fingerprints[name][:16]}" for name in changed),
            expected="; ".join(f"{name} {held[name][:16]}" for name in changed),
            fix="put them back as they were, or make the run again",
        )


def _refuse_unused_latents(config: RunConfig, chosen: LayerChoice) -> None:
    made = {f"latents.{spec.partition('=')[0]}" for spec in config.latents}
    if unused := sorted(made - chosen.shapes.keys()):
        raise InputError(
            "latents that are not scored",
            got=", ".join(unused),
            expected="their layers among --layers",
            fix=f"add {','.join(unused)} to --layers, or leave out --latents",
        )


def run_folder(config: RunConfig) -> Path:
    """Return the folder of a run: ``out``, or ``runs/MODEL``."""
    return Path(config.out or Path("runs") / config.model.replace(":", "-").replace("/", "-"))


def choose_vocabulary(
    config: RunConfig, encoder: Encoder, source: ImageSource
) -> tuple[Prompts | None, Prompts | None]:
    """The prompts an encoder of free texts names clusters with, and the bank of its null of D.

    None for the other encoders, and without a null that asks for the bank.

    Raises
    ------
    EncoderError
        Concepts are given to an encoder that cannot embed them.
    InputError
        The bank is smaller than the vocabulary.
    """
    if encoder.text != "encoder":
        if config.concepts is not None and not config.encoder.startswith("classifier:"):
            raise EncoderError(
                f"{encoder.name} cannot embed concepts",
                got=f"--concepts {config.concepts}",
                fix="leave --concepts out, or take an encoder with a text side",
            )
        return None, None
    prompts = build_vocabulary(source.class_names, config.concepts)
    if config.score.d_null != "unrelated-text":
        return prompts, None
    bank = unrelated_bank(exclude=prompts.concepts)
    if len(bank.concepts) < len(prompts.concepts):
        raise InputError(
            "the bank of unrelated concepts is smaller than the vocabulary",
            got=f"{len(bank.concepts)} for {len(prompts.concepts)} concepts",
            fix="give fewer --concepts, or d_null = 'text-shuffle' in --config",
        )
    return prompts, bank


def _open_data(config: RunConfig, progress: Progress | None) -> ImageSource:
    source = open_source(config.data, config.max_images, progress)
    if len(source) < 4:
        raise DataError(
            "too few images",
            got=len(source),
            expected=f"at least 4, better {10 * config.mine.top_k} or more",
            fix="give a larger --data",
        )
    return source


def embed_texts(inputs: Inputs) -> Texts:
    """Embed the vocabulary, or take the encoder's own concepts, or none."""
    encoder, prompts, bank = inputs.encoder, inputs.prompts, inputs.bank
    if prompts is None:
        return Texts(encoder.concept_embeddings, None, None, None)
    return Texts(
        encoder.encode_texts(list(prompts.texts)),
        prompts.concept_ids,
        None if bank is None else encoder.encode_texts(list(bank.texts)),
        None if bank is None else bank.concept_ids,
    )
