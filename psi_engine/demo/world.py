"""A small world of pictures whose contents are known: shapes × textures × colours on clutter.

A scene is drawn from integer keys alone, so the same key gives the same pixels. What a scene
*is* (its class) is its shape and its texture; its colour, background, place, size and turn are
nuisances that a picture shows but the class does not name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from psi_engine.ops.random import hash_keys, string_key

Floats = NDArray[np.float64]

SIDE = 64
"""Height and width of a picture in pixels."""

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "crescent", "heart")
TEXTURES = ("plain", "striped", "dotted", "checkered", "speckled")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
BACKGROUNDS = ("smooth", "blotchy", "scribbled", "grainy")

_RGB = np.array(
    [
        (214, 36, 34),
        (240, 132, 20),
        (238, 218, 40),
        (40, 162, 60),
        (38, 84, 214),
        (126, 48, 168),
        (240, 130, 180),
        (236, 236, 236),
    ],
    dtype=np.float64,
)

CLASSES = tuple(
    (shape, texture)
    for shape in range(len(SHAPES))
    for texture in range(len(TEXTURES))
    if (shape + texture) % len(TEXTURES)
)
"""The labelled classes, as (shape, texture) indices: each shape with all textures but one."""

CLASS_NAMES = tuple(f"{TEXTURES[texture]} {SHAPES[shape]}" for shape, texture in CLASSES)

_LABELS = {pair: label for label, pair in enumerate(CLASSES)}


@dataclass(frozen=True)
class Scene:
    """What a picture shows, as indices into the module's tuples; ``key`` fixes the rest."""

    shape: int
    texture: int
    colour: int
    background: int
    key: int

    @property
    def label(self) -> int:
        """The class, or −1 for a shape and texture that no class names."""
        return _LABELS.get((self.shape, self.texture), -1)

    @property
    def unseen(self) -> bool:
        """Whether training leaves this (shape, texture, colour) out, a tenth of all."""
        return (self.shape + 3 * self.texture + 7 * self.colour) % 10 == 0


def _generator(key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key & ((1 << 64) - 1)))


def held_out_scene(seed: int, index: int) -> Scene:
    """Scene ``index`` of the held-out set: classes in turn, every colour and background."""
    return _labelled_scene(int(hash_keys(seed, string_key("demo/held-out"), index)), index)


def calibration_scene(seed: int, index: int) -> Scene:
    """Scene ``index`` of a set like the held-out one, for standardising what was trained."""
    return _labelled_scene(int(hash_keys(seed, string_key("demo/calibration"), index)), index)


def _labelled_scene(key: int, index: int) -> Scene:
    colour, background = _generator(key).integers((len(COLOURS), len(BACKGROUNDS)))
    shape, texture = CLASSES[index % len(CLASSES)]
    return Scene(shape, texture, int(colour), int(background), key)


def training_scene(seed: int, index: int) -> Scene:
    """Scene ``index`` of the training set: every shape and texture, no unseen combination."""
    key = int(hash_keys(seed, string_key("demo/training"), index))
    random = _generator(key)
    shape, texture = divmod(index % (len(SHAPES) * len(TEXTURES)), len(TEXTURES))
    while True:
        colour, background = random.integers((len(COLOURS), len(BACKGROUNDS)))
        scene = Scene(shape, texture, int(colour), int(background), key)
        if not scene.unseen:
            return scene


def draw(scene: Scene) -> NDArray[np.uint8]:
    """Draw a scene.

    Parameters
    ----------
    scene : Scene

    Returns
    -------
    ndarray
        uint8 (64, 64, 3), RGB. The same scene gives the same pixels.
    """
    random = _generator(scene.key ^ string_key("demo/draw"))
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    canvas = _background(random, scene.background, rows, columns)
    radius = random.uniform(17.0, 26.0)
    row, column = random.uniform(0.95 * radius, SIDE - 0.95 * radius, 2)
    turn = random.uniform(-np.pi, np.pi)
    across = (np.cos(turn) * (columns - column) + np.sin(turn) * (rows - row)) / radius
    down = (-np.sin(turn) * (columns - column) + np.cos(turn) * (rows - row)) / radius
    cover = np.clip(0.5 - radius * _SHAPE[SHAPES[scene.shape]](across, down), 0.0, 1.0)
    paint = _paint(random, scene, rows, columns)
    cover = cover[..., None] * random.uniform(0.92, 1.0)
    canvas = canvas * (1 - cover) + paint * cover
    _strokes(random, canvas, rows, columns, count=int(random.integers(0, 3)), width=(0.4, 1.2))
    light = random.uniform(0.75, 1.15) * (
        1 + random.uniform(-0.25, 0.25) * (columns / SIDE - 0.5)[..., None]
    )
    canvas = canvas * light + random.normal(0.0, random.uniform(1.0, 6.0), canvas.shape)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def _background(random: np.random.Generator, kind: int, rows: Floats, columns: Floats) -> Floats:
    ends = random.uniform(40, 215, (2, 1)) + random.uniform(-30, 30, (2, 3))
    turn = random.uniform(0, 2 * np.pi)
    ramp = (np.cos(turn) * (rows - SIDE / 2) + np.sin(turn) * (columns - SIDE / 2)) / SIDE + 0.5
    canvas: Floats = ends[0] + (ends[1] - ends[0]) * np.clip(ramp, 0, 1)[..., None]
    name = BACKGROUNDS[kind]
    if name == "blotchy":
        _blobs(random, canvas, rows, columns, count=int(random.integers(6, 10)))
    elif name == "scribbled":
        count = int(random.integers(6, 11))
        _strokes(random, canvas, rows, columns, count=count, width=(0.8, 2.0))
    elif name == "grainy":
        size = int(random.integers(1, 4))
        cells = -(-SIDE // size)
        grain = random.normal(0, random.uniform(15, 35), (cells, cells, 3))
        canvas += grain.repeat(size, 0).repeat(size, 1)[:SIDE, :SIDE]
    _blobs(random, canvas, rows, columns, count=int(random.integers(0, 3)))
    return canvas


def _blobs(
    random: np.random.Generator, canvas: Floats, rows: Floats, columns: Floats, count: int
) -> None:
    """Blend soft ellipses of the world's own colours into the canvas."""
    for _ in range(count):
        row, column = random.uniform(0, SIDE, 2)
        tall, wide = random.uniform(4, 14, 2)
        part = _window((row, column), (row, column), 1.2 * max(tall, wide))
        distance = ((rows[part] - row) / tall) ** 2 + ((columns[part] - column) / wide) ** 2
        cover = (np.clip(1.6 - 1.3 * distance, 0, 1) * random.uniform(0.3, 0.7))[..., None]
        canvas[part] += cover * (_tint(random, int(random.integers(len(COLOURS)))) - canvas[part])


def _strokes(
    random: np.random.Generator,
    canvas: Floats,
    rows: Floats,
    columns: Floats,
    count: int,
    width: tuple[float, float],
) -> None:
    """Draw straight strokes of the world's own colours over the canvas."""
    for _ in range(count):
        start = random.uniform(-8, SIDE + 8, 2)
        along = random.uniform(-40, 40, 2)
        half = random.uniform(*width)
        part = _window(start, start + along, half + 1)
        place = (rows[part] - start[0]) * along[0] + (columns[part] - start[1]) * along[1]
        place = np.clip(place / max(float(along @ along), 1.0), 0, 1)
        gap = np.hypot(
            rows[part] - start[0] - place * along[0], columns[part] - start[1] - place * along[1]
        )
        cover = np.clip(half + 0.5 - gap, 0, 1)[..., None]
        canvas[part] += cover * (_tint(random, int(random.integers(len(COLOURS)))) - canvas[part])


def _window(start: ArrayLike, end: ArrayLike, margin: float) -> tuple[slice, slice]:
    """Rows and columns within ``margin`` of a segment's bounding box."""
    corners = np.array((start, end))
    low = np.clip(np.floor(corners.min(0) - margin), 0, SIDE).astype(int)
    high = np.clip(np.ceil(corners.max(0) + margin), 0, SIDE).astype(int)
    return slice(low[0], high[0]), slice(low[1], high[1])


def _tint(random: np.random.Generator, colour: int) -> Floats:
    return np.clip(_RGB[colour] + random.normal(0, 14, 3), 0, 255)


def _paint(random: np.random.Generator, scene: Scene, rows: Floats, columns: Floats) -> Floats:
    """Colour of the object at each pixel, float64 (64, 64, 3): two tones laid out by texture."""
    first = _tint(random, scene.colour)
    dark = random.uniform(0.25, 0.5) * first
    light = first + random.uniform(0.6, 0.85) * (255 - first)
    second = light if random.random() < 0.5 and first.mean() < 200 else dark
    turn = random.uniform(0, np.pi)
    period = random.uniform(6.0, 9.5)
    along = (np.cos(turn) * columns + np.sin(turn) * rows) / period + random.random()
    across = (-np.sin(turn) * columns + np.cos(turn) * rows) / period + random.random()
    name = TEXTURES[scene.texture]
    if name == "striped":
        mix = 0.5 + 1.2 * np.sin(2 * np.pi * along)
    elif name == "checkered":
        mix = 0.5 + 2.0 * np.sin(np.pi * along) * np.sin(np.pi * across)
    elif name == "dotted":
        gap = np.hypot(along - np.floor(along) - 0.5, across - np.floor(across) - 0.5)
        mix = 0.5 + period * (0.3 - gap)
    elif name == "speckled":
        mix = (random.random((SIDE, SIDE)) < 0.35).astype(np.float64)
    else:
        mix = np.zeros((SIDE, SIDE))
    return first + np.clip(mix, 0, 1)[..., None] * (second - first)


def _circle(x: Floats, y: Floats) -> Floats:
    return np.hypot(x, y) - 0.85


def _square(x: Floats, y: Floats) -> Floats:
    return np.maximum(np.abs(x), np.abs(y)) - 0.74


def _triangle(x: Floats, y: Floats) -> Floats:
    return np.maximum(y, np.abs(x) * np.sqrt(3) / 2 - y / 2) - 0.52


def _star(x: Floats, y: Floats) -> Floats:
    sector = 2 * np.pi / 5
    angle = np.abs((np.arctan2(y, x) + sector / 2) % sector - sector / 2)
    length = np.hypot(x, y)
    tip, notch = 1.08, 0.46
    inner = np.array((notch * np.cos(sector / 2), notch * np.sin(sector / 2)))
    normal = np.array((inner[1], tip - inner[0]))
    normal /= np.hypot(*normal)
    return (length * np.cos(angle) - tip) * normal[0] + length * np.sin(angle) * normal[1]


def _cross(x: Floats, y: Floats) -> Floats:
    long, short = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.maximum(long - 0.95, short - 0.33)


def _ring(x: Floats, y: Floats) -> Floats:
    return np.abs(np.hypot(x, y) - 0.7) - 0.26


def _crescent(x: Floats, y: Floats) -> Floats:
    return np.maximum(np.hypot(x, y) - 0.95, 0.72 - np.hypot(x - 0.52, y))


def _heart(x: Floats, y: Floats) -> Floats:
    lobes = np.hypot(np.abs(x) - 0.42, y + 0.3) - 0.48
    point = np.maximum((np.abs(x) + y) / np.sqrt(2) - 0.565, -(y + 0.3))
    return np.minimum(lobes, np.maximum(point, np.abs(x) - 0.9))


_SHAPE: dict[str, Callable[[Floats, Floats], Floats]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "crescent": _crescent,
    "heart": _heart,
}
"""Distance to each outline in units of its radius, negative inside."""
