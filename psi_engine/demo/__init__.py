"""The demo: a miniature world of pictures, a classifier, an image-text encoder, planted units.

Its classes are known, so units can be planted whose kind is known (one concept, several, none),
and the whole pipeline can be checked against them. Nothing is downloaded.
"""

from psi_engine.demo.assets import card, images_path
from psi_engine.demo.factories import classifier, encoder, second_encoder
from psi_engine.demo.planted import planted_classes, planted_kinds
from psi_engine.demo.run import RUN_OPTIONS, judge
from psi_engine.demo.truth import auroc

__all__ = [
    "RUN_OPTIONS",
    "auroc",
    "card",
    "classifier",
    "encoder",
    "images_path",
    "judge",
    "planted_classes",
    "planted_kinds",
    "second_encoder",
]
