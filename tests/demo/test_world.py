"""The world is drawn from keys alone and covers what it says it covers."""

import numpy as np
import pytest
from PIL import Image

from psi_engine.demo import world
from psi_engine.demo.world import (
    CLASS_NAMES,
    CLASSES,
    SHAPES,
    TEXTURES,
    Scene,
    draw,
    held_out_scene,
    training_scene,
)


def test_same_key_same_bits_in_any_order():
    scenes = [held_out_scene(0, index) for index in range(12)]
    forward = [draw(scene) for scene in scenes]
    backward = [draw(scene) for scene in reversed(scenes)][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert forward[0].dtype == np.uint8
    assert forward[0].shape == (64, 64, 3)


def test_other_key_other_picture():
    one = held_out_scene(0, 5)
    assert held_out_scene(0, 5) == one
    assert held_out_scene(1, 5).key != one.key
    assert training_scene(0, 5).key != one.key
    again = Scene(one.shape, one.texture, one.colour, one.background, one.key + 1)
    assert (draw(again) != draw(one)).mean() > 0.5


def test_classes_are_distinct_and_each_shape_lacks_one_texture():
    assert len(CLASSES) == len(set(CLASSES)) == len(set(CLASS_NAMES)) == 32
    for shape in range(len(SHAPES)):
        assert sum(pair[0] == shape for pair in CLASSES) == len(TEXTURES) - 1
    assert CLASS_NAMES[0].split() == [TEXTURES[CLASSES[0][1]], SHAPES[CLASSES[0][0]]]


def test_held_out_set_is_balanced_and_shows_every_nuisance():
    scenes = [held_out_scene(0, index) for index in range(640)]
    assert [scene.label for scene in scenes] == [index % 32 for index in range(640)]
    assert {scene.colour for scene in scenes} == set(range(8))
    assert {scene.background for scene in scenes} == set(range(4))


def test_training_set_holds_all_pairs_and_no_unseen_combination():
    scenes = [training_scene(0, index) for index in range(800)]
    assert not any(scene.unseen for scene in scenes)
    assert len({(scene.shape, scene.texture) for scene in scenes}) == 40
    assert sum(scene.label < 0 for scene in scenes) == 800 * 8 // 40
    unseen = [
        Scene(shape, texture, colour, 0, 0).unseen
        for shape in range(8)
        for texture in range(5)
        for colour in range(8)
    ]
    assert sum(unseen) == 32


@pytest.mark.parametrize("shape", range(len(SHAPES)), ids=SHAPES)
def test_outline_covers_a_sensible_share_and_is_negative_inside(shape):
    grid = np.linspace(-1.5, 1.5, 301)
    x, y = np.meshgrid(grid, grid)
    inside = world._SHAPE[SHAPES[shape]](x, y) < 0
    area = inside.mean() * 9
    assert 0.8 < area < 2.6
    assert not inside[np.hypot(x, y) > 1.15].any()


def test_object_has_its_colour():
    """A plain object's most common hue is that of its colour's word."""
    hues = {"red": (245, 15), "yellow": (30, 55), "green": (85, 115), "blue": (145, 180)}
    for name, (low, high) in hues.items():
        hits = 0
        for key in range(10):
            scene = Scene(1, 0, world.COLOURS.index(name), 0, key)
            hsv = np.array(Image.fromarray(draw(scene)).convert("HSV"))
            strong = hsv[..., 0][(hsv[..., 1] > 130) & (hsv[..., 2] > 60)].astype(int)
            wanted = (
                (strong >= low) | (strong <= high)
                if low > high
                else ((strong >= low) & (strong <= high))
            )
            hits += wanted.sum() > 0.1 * 64 * 64
        assert hits >= 8, name
