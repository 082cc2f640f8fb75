"""Captions say what is true, and tokens are stable."""

import numpy as np
import torch

from psi_engine.demo.captions import (
    ATTRIBUTES,
    STRAYS,
    VOCABULARY,
    WORDS,
    attributes,
    caption,
    captions,
    is_true,
    tokenize,
)
from psi_engine.demo.world import SHAPES, training_scene


def test_tokens_know_the_worlds_words_and_share_slots_for_others():
    ids = tokenize(["A Red, striped CIRCLE!", "circle red striped a", "", "zebra zebra"])
    assert ids.shape == (4, 24)
    assert ids.dtype == torch.int64
    assert sorted(ids[0].tolist()) == sorted(ids[1].tolist())
    assert ids[2].eq(0).all()
    assert ids[3, 0] == ids[3, 1] > len(WORDS)
    assert ids.max() < VOCABULARY == 1 + len(WORDS) + STRAYS


def test_long_texts_are_cut():
    assert tokenize(["circle " * 40]).eq(1).all()


def test_truth_table_equals_a_loop():
    shown = attributes([training_scene(0, index) for index in range(40)])
    texts, named = captions(shown, np.random.default_rng(0))
    table = is_true(shown, named)
    for i, row in enumerate(shown.tolist()):
        for j, said in enumerate(named.tolist()):
            assert table[i, j] == all(b in (-1, a) for a, b in zip(row, said, strict=True))
    assert table.diagonal().all()
    assert not named.eq(-1).all(1).any()
    assert len(texts) == 40


def test_caption_names_exactly_what_it_is_told():
    random = np.random.default_rng(1)
    for _ in range(200):
        named = tuple(int(random.integers(-1, len(words))) for words in ATTRIBUTES)
        words = set(caption(named, random).split())
        for value, names in zip(named, ATTRIBUTES, strict=True):
            said = words & set(names)
            assert said == ({names[value]} if value >= 0 else set())


def test_captions_never_hold_a_number_or_the_word_class():
    shown = attributes([training_scene(0, index) for index in range(200)])
    texts, _ = captions(shown, np.random.default_rng(0))
    known = " ".join(text for text in texts if "stray" not in text)
    assert "class" not in known
    assert not any(letter.isdigit() for letter in known)
    assert any(shape in known for shape in SHAPES)
