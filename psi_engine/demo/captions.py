"""Captions of scenes, and the words they are made of.

A caption may name any of a scene's shape, texture, colour and background and says nothing of
classes. The order of the words, the frame around them and stray words the world does not know
vary, so that a text encoder has to learn what each word means on its own.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor

from psi_engine.demo.world import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, Scene
from psi_engine.ops.random import string_key

WORDS = (*SHAPES, *TEXTURES, *COLOURS, *BACKGROUNDS, "background", "thing", "shape")
"""Words with an embedding of their own; every other word shares one of ``STRAYS`` slots."""

STRAYS = 64
MAX_WORDS = 24
VOCABULARY = 1 + len(WORDS) + STRAYS
"""Number of token ids; id 0 is padding."""

ATTRIBUTES = (SHAPES, TEXTURES, COLOURS, BACKGROUNDS)

_IDS = {word: 1 + position for position, word in enumerate(WORDS)}
_FRAMES = (
    "a {}",
    "a photo of a {}",
    "a picture of one {}",
    "there is a {} in the scene",
    "a close-up of the {}",
    "an image with a {} in it",
)
_STRAY_WORDS = tuple(f"stray{number}" for number in range(4 * STRAYS))


def tokenize(texts: list[str]) -> Tensor:
    """Token ids of texts.

    Parameters
    ----------
    texts : list of str
        Lower-cased and split at anything but letters and digits; words after the 24th are
        dropped.

    Returns
    -------
    Tensor
        int64 (len(texts), 24), padded with 0.
    """
    ids = torch.zeros((len(texts), MAX_WORDS), dtype=torch.int64)
    for row, text in enumerate(texts):
        words = re.findall(r"[a-z0-9]+", text.lower())[:MAX_WORDS]
        for position, word in enumerate(words):
            ids[row, position] = _IDS.get(word) or 1 + len(WORDS) + string_key(word) % STRAYS
    return ids


def attributes(scenes: list[Scene]) -> Tensor:
    """Shape, texture, colour and background of scenes, int64 (len(scenes), 4)."""
    rows = [(s.shape, s.texture, s.colour, s.background) for s in scenes]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, len(ATTRIBUTES))


def caption(named: tuple[int, ...], random: np.random.Generator) -> str:
    """Put what is named of a scene into words.

    Parameters
    ----------
    named : tuple of 4 int
        Shape, texture, colour and background; −1 = not mentioned.
    random : numpy Generator
        Chooses the frame, the order of the adjectives and the stray words.
    """
    shape, texture, colour, background = named
    words = [TEXTURES[texture]] if texture >= 0 else []
    words += [COLOURS[colour]] if colour >= 0 else []
    random.shuffle(words)
    words.append(SHAPES[shape] if shape >= 0 else ("thing", "shape")[random.integers(2)])
    if background >= 0:
        words.append(f"on a {BACKGROUNDS[background]} background")
    if random.random() < 0.5:
        strays = random.choice(_STRAY_WORDS, int(random.integers(1, 9)))
        words.insert(int(random.integers(len(words))), " ".join(strays))
    return _FRAMES[random.integers(len(_FRAMES))].format(" ".join(words))


def captions(attributes: Tensor, random: np.random.Generator) -> tuple[list[str], Tensor]:
    """One caption per scene, each leaving out attributes at random but never all of them.

    Parameters
    ----------
    attributes : Tensor
        int64 (n, 4), from :func:`attributes`.
    random : numpy Generator

    Returns
    -------
    texts : list of str, n
    named : Tensor
        int64 (n, 4): what each caption says, −1 where it is silent.
    """
    keep = random.random(attributes.shape) < (0.85, 0.8, 0.7, 0.3)
    keep[~keep.any(1), 0] = True
    named = torch.where(torch.from_numpy(keep), attributes, -1)
    return [caption(tuple(row), random) for row in named.tolist()], named


def is_true(attributes: Tensor, named: Tensor) -> Tensor:
    """Whether each caption is true of each scene.

    Parameters
    ----------
    attributes : Tensor
        int64 (n, 4), what scenes show.
    named : Tensor
        int64 (m, 4), what captions say; −1 where silent.

    Returns
    -------
    Tensor
        bool (n, m).
    """
    return ((named[None] < 0) | (named[None] == attributes[:, None])).all(-1)
