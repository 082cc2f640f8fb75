"""ConSE: a classifier made into an image encoder in the space of CLIP's texts.

    python -m psi_engine run … --encoder benchmarks.conse:open_vocabulary --encoder-weights FOLDER

An image's vector is the mean of the ImageNet classes' text embeddings, weighted by what a
ResNet-18 thinks of them: Σ p_i (t_i − t̄), p = softmax(logits / 2). It lies in the space of CLIP's
texts, so any text can name it, but it holds no more than the classifier saw: this is a stand-in
where CLIP's image tower cannot be had, and never to be reported as CLIP. The paper sums over the
ten most probable classes at temperature 1; here all classes count, and the mean t̄ that all texts
share is taken off, from the concepts too.

FOLDER holds ``resnet18*.safetensors`` (torchvision's layout) and ``clip_vit_b32_text.safetensors``
with ``.json``: unit text embeddings and for each row ``name`` and ``source``, ImageNet's thousand
first, in class order.

Norouzi et al., "Zero-shot learning by convex combination of semantic embeddings", ICLR 2014
(arXiv 1312.5650), equation 6.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from psi_engine.encoders.forward import ModuleEncoder
from psi_engine.encoders.protocol import Text
from psi_engine.errors import EncoderError
from psi_engine.models import LoadedModel, load_model
from psi_engine.names import clean_class_names

TEMPERATURE = 2.0
TEXTS = "clip_vit_b32_text"
CLASSIFIER = "resnet18"


class Texts(NamedTuple):
    """Embeddings of the classes and of other names, less the classes' mean; not of unit length."""

    classes: Tensor  # float32 (1000, dim)
    class_names: tuple[str, ...]
    others: Tensor  # float32 (others, dim)
    other_names: tuple[str, ...]


class Combination(nn.Module):
    """Σ p_i rows_i with p = softmax(logits / temperature)."""

    def __init__(self, classifier: nn.Module, rows: Tensor, temperature: float) -> None:
        super().__init__()
        self.classifier = classifier
        self.temperature = temperature
        self.register_buffer("rows", rows)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features float32 (n, dim) of normalised images."""
        return torch.softmax(self.classifier(pixels) / self.temperature, dim=1) @ self.rows


class Conse(ModuleEncoder):
    """The encoder, with the vocabulary it names clusters with."""

    text: Text = "fixed"

    def __init__(
        self, name: str, model: LoadedModel, texts: Texts, rows: Tensor, concepts: tuple[str, ...]
    ) -> None:
        digest = hashlib.sha256(repr((name, model.fingerprint, TEMPERATURE, concepts)).encode())
        digest.update(texts.classes.numpy().tobytes())
        digest.update(rows.numpy().tobytes())
        module = Combination(model.module, texts.classes, TEMPERATURE)
        super().__init__(name, module, model.preprocess, rows.shape[1], digest.hexdigest())
        self.concepts = concepts
        self.concept_embeddings = functional.normalize(rows, dim=1)


def open_vocabulary(folder: str) -> Conse:
    """Name clusters with the names of LVIS and OpenImages, each once.

    Some of them also name an ImageNet class: :func:`shared_with_classes` counts them.
    """
    texts = read_texts(Path(folder))
    return Conse("conse-open", _classifier(Path(folder)), texts, texts.others, texts.other_names)


def imagenet(folder: str) -> Conse:
    """Name clusters with the classifier's own thousand classes."""
    texts = read_texts(Path(folder))
    return Conse(
        "conse-imagenet", _classifier(Path(folder)), texts, texts.classes, texts.class_names
    )


def read_texts(folder: Path) -> Texts:
    """Read the text embeddings; of names that stand twice (letter case aside) the first is kept.

    Raises
    ------
    EncoderError
        A file is missing.
    """
    from safetensors.torch import load_file

    rows = load_file(_file(folder, f"{TEXTS}.safetensors"))["embeddings"].float()
    listed = json.loads(_file(folder, f"{TEXTS}.json").read_text(encoding="utf-8"))
    ours = [place for place, entry in enumerate(listed) if entry["source"] == "imagenet"]
    others: dict[str, int] = {}
    for place, entry in enumerate(listed):
        if entry["source"] != "imagenet":
            others.setdefault(entry["name"].casefold(), place)
    mean = rows[ours].mean(0)
    return Texts(
        rows[ours] - mean,
        clean_class_names([listed[place]["name"] for place in ours]),
        rows[list(others.values())] - mean,
        tuple(listed[place]["name"] for place in others.values()),
    )


def shared_with_classes(texts: Texts) -> tuple[str, ...]:
    """Those of the other names that are an ImageNet class's first name, letter case aside."""
    classes = {name.casefold() for name in texts.class_names}
    return tuple(name for name in texts.other_names if name.casefold() in classes)


def _classifier(folder: Path) -> LoadedModel:
    return load_model(CLASSIFIER, str(_file(folder, f"{CLASSIFIER}*.safetensors")))


def _file(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise EncoderError(
            "ConSE does not find its files",
            got=f"{len(found)} of {pattern} in {folder}",
            expected="one",
            fix="give the folder of the weights as --encoder-weights",
        )
    return found[0]
