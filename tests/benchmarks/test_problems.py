"""The generated data are what the benchmarks say of them."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks import problems


def mean_cosine(sets):
    grams = sets @ sets.transpose(0, 2, 1)
    n = sets.shape[1]
    return (grams.sum((1, 2)) - n) / (n * (n - 1))


def test_clip_like_channels_lie_in_a_cone():
    made = problems.clip_like(range(40), 50, 512, pool=64)
    assert made.embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(made.embeddings, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(made.pool, axis=-1), 1, atol=1e-6)
    low, middle, high = np.percentile(mean_cosine(made.embeddings), (10, 50, 90))
    assert low > 0.5
    assert 0.6 < middle < 0.7
    assert high < 0.8
    assert made.labels.min() >= 0
    assert made.labels.max() < problems.CLASSES


def test_a_channel_is_the_same_whichever_others_are_made():
    whole, part = problems.clip_like(range(5), 10, 16), problems.clip_like([3], 10, 16)
    np.testing.assert_array_equal(whole.embeddings[3], part.embeddings[0])
    np.testing.assert_array_equal(whole.labels[3], part.labels[0])
    assert not np.array_equal(whole.embeddings[2], part.embeddings[0])


def test_words_carry_their_concept_in_every_template():
    made = problems.words(20, 256, "vocabulary")
    cosines = made.embeddings @ made.embeddings.T
    same = made.concepts[:, None] == made.concepts
    np.fill_diagonal(same, False)
    other = made.concepts[:, None] != made.concepts
    assert cosines[same].mean() > cosines[other].mean() + 0.1
    assert not np.array_equal(made.embeddings, problems.words(20, 256, "bank").embeddings)


def test_blobs_are_tight_and_the_sphere_is_not():
    assert mean_cosine(problems.blobs(8, 50, 64)).min() > 0.05
    assert abs(mean_cosine(problems.sphere(8, 50, 64))).max() < 0.02
    assert 0.4 < mean_cosine(problems.one_mode(8, 50, 64)).mean() < 0.6


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_real_embeddings_come_from_a_file_evenly_spaced(tmp_path, kind):
    x = np.random.default_rng(0).standard_normal((9, 5, 4)).astype(np.float32)
    file = tmp_path / f"features.{kind}"
    if kind == "npz":
        np.savez(file, embeddings=x)
    else:
        save_file({"embeddings": x}, file)
    expected = problems.unit(x[[0, 4, 8]])
    np.testing.assert_allclose(problems.from_file(file, 3), expected, atol=2e-7)
