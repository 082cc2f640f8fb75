"""Draw the demo world, train its networks and write everything the demo ships.

``python -m psi_engine.demo.train`` takes minutes on two cores, ``--only second-encoder`` trains
that network alone and leaves the other files as they are. Everything follows from the seed; what
the networks reach on held-out images is measured here and stored with them.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL import __version__ as pillow
from torch import Tensor
from torch.nn import functional

from psi_engine.demo.assets import (
    ASSETS,
    CARD,
    CLASSIFIER,
    ENCODER,
    IMAGES,
    SECOND_ENCODER,
    card,
    half_precision,
    write_images,
    write_weights,
)
from psi_engine.demo.captions import attributes, caption, captions, is_true, tokenize
from psi_engine.demo.networks import MEAN, STD, WIDTHS, Classifier, DualEncoder
from psi_engine.demo.planted import log_odds
from psi_engine.demo.world import (
    CLASS_NAMES,
    CLASSES,
    COLOURS,
    SHAPES,
    TEXTURES,
    Scene,
    calibration_scene,
    draw,
    held_out_scene,
    training_scene,
)


@dataclass(frozen=True)
class TrainConfig:
    """How the shipped assets are made."""

    seed: int = 0
    images: int = 12000
    """Training images."""
    held_out: int = 1920
    """Images shipped and measured on."""
    calibration: int = 3200
    """Images by which the planted units are standardised."""
    epochs: int = 10
    """Passes over the training images, for each network."""
    batch_size: int = 64
    learning_rate: float = 3e-3
    quality: int = 80
    """JPEG quality of the images, training and held out alike."""


@dataclass(frozen=True)
class Pictures:
    """Drawn scenes: JPEG files, their pixels uint8 (n, 3, 64, 64), attributes, labels (n,)."""

    files: list[bytes]
    pixels: Tensor
    attributes: Tensor
    labels: Tensor
    unseen: Tensor


def make_pictures(scenes: list[Scene], quality: int) -> Pictures:
    """Draw scenes and send them through JPEG, as a data set's images would be."""
    files, pixels = [], []
    for scene in scenes:
        buffer = io.BytesIO()
        Image.fromarray(draw(scene)).save(buffer, "JPEG", quality=quality, optimize=True)
        files.append(buffer.getvalue())
        pixels.append(np.array(Image.open(buffer)))
    return Pictures(
        files,
        torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(),
        attributes(scenes),
        torch.tensor([scene.label for scene in scenes]),
        torch.tensor([scene.unseen for scene in scenes]),
    )


def _pictures(scene: Callable[[int, int], Scene], number: int, config: TrainConfig) -> Pictures:
    return make_pictures([scene(config.seed, i) for i in range(number)], config.quality)


def normalise(pixels: Tensor) -> Tensor:
    """Network input of uint8 pixels."""
    return (pixels.to(torch.float32) / 255 - MEAN) / STD


def _augment(pixels: Tensor, random: torch.Generator, zoomed: float = 0.0) -> Tensor:
    """Turn by quarters, mirror and shift each picture, and zoom into a share of them.

    Whole pixels and quarter turns leave the textures as sharp as they were drawn.
    """
    n, side = len(pixels), pixels.shape[-1]
    quarter = torch.randint(4, (n,), generator=random) * (torch.pi / 2)
    mirror = torch.randint(2, (n,), generator=random) * 2.0 - 1.0
    shift = torch.randint(-3, 4, (n, 2, 1), generator=random) * (2.0 / side)
    zoom = 1 - 0.4 * torch.rand(n, generator=random)
    zoom = torch.where(torch.rand(n, generator=random) < zoomed, zoom, 1.0)
    turn = torch.stack((quarter.cos(), quarter.sin(), -quarter.sin(), quarter.cos()), 1)
    turn = turn.round().view(n, 2, 2) * zoom[:, None, None]
    turn[:, 0] *= mirror[:, None]
    grid = functional.affine_grid(torch.cat((turn, shift), 2), [n, 3, side, side], False)
    return functional.grid_sample(
        normalise(pixels), grid, padding_mode="reflection", align_corners=False
    )


def _fit(
    name: str,
    module: torch.nn.Module,
    rows: Tensor,
    loss: Callable[[Tensor], Tensor],
    config: TrainConfig,
    random: torch.Generator,
) -> None:
    """Minimise ``loss`` of batches of ``rows`` with AdamW under a one-cycle schedule."""
    module.train()
    batches = len(rows) // config.batch_size
    optimiser = torch.optim.AdamW(module.parameters(), config.learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.learning_rate, total_steps=config.epochs * batches
    )
    for epoch in range(config.epochs):
        began, total = time.monotonic(), 0.0
        order = rows[torch.randperm(len(rows), generator=random)]
        for batch in order[: batches * config.batch_size].split(config.batch_size):
            value = loss(batch)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            schedule.step()
            total += value.item()
        print(
            f"{name} epoch {epoch + 1}/{config.epochs}: loss {total / batches:.3f}, "
            f"{time.monotonic() - began:.0f} s",
            flush=True,
        )
    module.eval()


def train_classifier(pictures: Pictures, config: TrainConfig) -> Classifier:
    """Train the classifier on the pictures whose shape and texture make a class.

    Two more heads, dropped afterwards, name shape and texture apart: the stages learn what
    classes have in common from all of them at once.
    """
    torch.manual_seed(config.seed)
    random = torch.Generator().manual_seed(config.seed)
    module = Classifier()
    parts = torch.nn.ModuleList(torch.nn.Linear(WIDTHS[-1], len(n)) for n in (SHAPES, TEXTURES))

    def loss(batch: Tensor) -> Tensor:
        features = module.features(_augment(pictures.pixels[batch], random))
        total = functional.cross_entropy(module.head(features), pictures.labels[batch])
        for attribute, head in enumerate(parts):
            shown = pictures.attributes[batch, attribute]
            total = total + functional.cross_entropy(head(features), shown)
        return total

    rows = torch.nonzero(pictures.labels >= 0)[:, 0]
    _fit("classifier", torch.nn.ModuleList((module, parts)), rows, loss, config, random)
    return module


def train_encoder(pictures: Pictures, config: TrainConfig, number: int = 1) -> DualEncoder:
    """Train both towers so that a picture lies near the captions that are true of it.

    ``number`` sets the seed apart: it draws the first weights, the order of the pictures, what is
    done to them and their captions. The loss is the contrastive one of CLIP (Radford et al. 2021)
    with every true caption of the batch as a target, for a caption that leaves things out is true
    of many pictures.
    """
    torch.manual_seed(config.seed + number)
    random = torch.Generator().manual_seed(config.seed + number)
    words = np.random.default_rng(config.seed + number)
    module = DualEncoder()

    def loss(batch: Tensor) -> Tensor:
        shown = pictures.attributes[batch]
        texts, named = captions(shown, words)
        target = is_true(shown, named).to(torch.float32)
        image = module.image(_augment(pictures.pixels[batch], random, zoomed=0.25))
        logits = module.log_scale.exp().clamp(max=50) * image @ module.text(tokenize(texts)).T
        return 0.5 * (
            functional.cross_entropy(logits, target / target.sum(1, keepdim=True))
            + functional.cross_entropy(logits.T, target.T / target.T.sum(1, keepdim=True))
        )

    _fit("encoder", module, torch.arange(len(pictures.pixels)), loss, config, random)
    return module


def standardisation(module: Classifier, pictures: Pictures) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each class's log odds over the pictures of that class."""
    odds = log_odds(_in_batches(module, pictures.pixels))
    own = [odds[pictures.labels == label, label] for label in range(len(CLASSES))]
    return torch.stack([x.mean() for x in own]), torch.stack([x.std() for x in own])


@torch.no_grad()
def _in_batches(module: torch.nn.Module, pixels: Tensor) -> Tensor:
    return torch.cat([module(normalise(part)) for part in pixels.split(256)])


@torch.no_grad()
def measure_classifier(classifier: Classifier, pictures: Pictures) -> float:
    """Share of held-out pictures whose class the classifier finds."""
    return _share(_in_batches(classifier, pictures.pixels).argmax(1) == pictures.labels)


@torch.no_grad()
def measure_encoder(encoder: DualEncoder, pictures: Pictures) -> dict[str, float]:
    """Accuracies of an encoder on held-out pictures, without training.

    The encoder names a picture by the nearest caption: of every class (32), shape (8), texture
    (5) or colour (8), and of classes once more on the shape-texture-colour combinations that
    training never showed.
    """
    image = _in_batches(encoder.image, pictures.pixels)
    random = np.random.default_rng(0)

    def nearest(named: list[tuple[int, ...]]) -> Tensor:
        texts = [caption(row, random) for row in named]
        return (image @ encoder.text(tokenize(texts)).T).argmax(1)

    found = nearest([(shape, texture, -1, -1) for shape, texture in CLASSES]) == pictures.labels
    shapes = nearest([(i, -1, -1, -1) for i in range(len(SHAPES))])
    textures = nearest([(-1, i, -1, -1) for i in range(len(TEXTURES))])
    colours = nearest([(-1, -1, i, -1) for i in range(len(COLOURS))])
    hits = {
        "class": found,
        "class_unseen_combination": found[pictures.unseen],
        "shape": shapes == pictures.attributes[:, 0],
        "texture": textures == pictures.attributes[:, 1],
        "colour": colours == pictures.attributes[:, 2],
    }
    return {name: _share(hit) for name, hit in hits.items()}


def _share(hit: Tensor) -> float:
    return round(hit.float().mean().item(), 4)


def train(config: TrainConfig, out: Path) -> dict[str, float]:
    """Make all assets and write them to ``out``; returns the measured accuracies."""
    out.mkdir(parents=True, exist_ok=True)
    learn = _pictures(training_scene, config.images, config)
    test = _pictures(held_out_scene, config.held_out, config)
    classifier = train_classifier(learn, config)
    encoder = train_encoder(learn, config)
    for module in (classifier, encoder):
        # What is measured from here on is what is shipped: weights in half precision.
        module.load_state_dict(half_precision(module.state_dict()))
    mean, std = standardisation(
        classifier, _pictures(calibration_scene, config.calibration, config)
    )
    write_images(out / IMAGES, test.files, test.labels.tolist(), CLASS_NAMES)
    write_weights(
        out / CLASSIFIER,
        {**classifier.state_dict(), "planted.mean": mean, "planted.std": std},
    )
    write_weights(out / ENCODER, encoder.state_dict())
    accuracy = {"classifier": measure_classifier(classifier, test)}
    accuracy |= _prefixed("encoder", measure_encoder(encoder, test))
    second = train_second_encoder(learn, test, config, out)
    _write_card(out, {"accuracy": accuracy, "config": asdict(config), "versions": _versions()})
    _tell_of_second_encoder(out, second)
    return accuracy | _prefixed("second_encoder", second)


def train_second_encoder(
    learn: Pictures, test: Pictures, config: TrainConfig, out: Path
) -> dict[str, float]:
    """Train another encoder on the same pictures, write it to ``out`` and measure it."""
    encoder = train_encoder(learn, config, number=2)
    encoder.load_state_dict(half_precision(encoder.state_dict()))
    write_weights(out / SECOND_ENCODER, encoder.state_dict())
    return measure_encoder(encoder, test)


def _tell_of_second_encoder(out: Path, accuracy: dict[str, float]) -> None:
    facts = {"accuracy": accuracy, "versions": _versions(), "threads": torch.get_num_threads()}
    _write_card(out, {**card(out), "second_encoder": facts})


def _prefixed(name: str, accuracy: dict[str, float]) -> dict[str, float]:
    return {f"{name}_{what}": share for what, share in accuracy.items()}


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "numpy": np.__version__, "pillow": pillow}


def _write_card(out: Path, facts: dict[str, Any]) -> None:
    (out / CARD).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=TrainConfig.seed)
    parser.add_argument("--images", type=int, default=TrainConfig.images)
    parser.add_argument("--held-out", type=int, default=TrainConfig.held_out)
    parser.add_argument("--calibration", type=int, default=TrainConfig.calibration)
    parser.add_argument("--epochs", type=int, default=TrainConfig.epochs)
    parser.add_argument("--only", choices=("second-encoder",), help="leave the other files")
    parser.add_argument("--out", type=Path, default=ASSETS)
    options = vars(parser.parse_args(arguments))
    out, only = options.pop("out"), options.pop("only")
    config = TrainConfig(**options)
    if only is None:
        accuracy = train(config, out)
    else:
        learn = _pictures(training_scene, config.images, config)
        test = _pictures(held_out_scene, config.held_out, config)
        accuracy = train_second_encoder(learn, test, config, out)
        _tell_of_second_encoder(out, accuracy)
    for name, value in accuracy.items():
        print(f"{name}: {value:.4f}")


if __name__ == "__main__":
    main()
