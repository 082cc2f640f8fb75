"""saev's sparse matrix in its documented layout, against dense loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from psi_engine import adapters
from psi_engine.errors import InputError
from tests.adapters import contents

IMAGES, GRID, LATENTS = 9, (2, 3), 5
TOKENS = GRID[0] * GRID[1]


def dense() -> np.ndarray:
    """Mostly zeros, with ties; latent 4 is never active, latent 3 in two images only."""
    rng = np.random.default_rng(4)
    values = rng.integers(0, 4, (IMAGES * TOKENS, LATENTS)) / 2
    values[rng.random(values.shape) < 0.6] = 0
    values[:, 4] = 0
    values[2 * TOKENS :, 3] = 0
    values[1, 3] = values[TOKENS + 2, 3] = 3
    return values.astype(np.float32)


def write(folder: Path, matrix: object = None) -> Path:
    path = folder / "token_acts.npz"
    sparse.save_npz(path, sparse.csr_array(dense()) if matrix is None else matrix)
    return path


def slowly(values: np.ndarray, latent: int, top_k: int) -> list[tuple[int, int, float]]:
    """(image, token, value) of the best images of a latent, one token each."""
    best = []
    for image in range(IMAGES):
        own = values[image * TOKENS : (image + 1) * TOKENS, latent]
        token = int(np.argmax(own))  # the first of equals
        if own[token] > 0:
            best.append((image, token, float(own[token])))
    return sorted(best, key=lambda x: (-x[2], x[0]))[:top_k]


@pytest.mark.parametrize("top_k", [4, 6])
def test_best_tokens_are_those_of_slow_loops(tmp_path: Path, top_k: int) -> None:
    read = adapters.read("saev", write(tmp_path), grid=GRID, top_k=top_k)
    (part,) = read.examples
    values = dense()
    for latent in range(LATENTS):
        expected = slowly(values, latent, top_k)
        ids, places = part.image_ids[latent].tolist(), part.positions[latent].tolist()
        found = list(zip(ids, places, part.values[latent].tolist(), strict=True))
        assert found[: len(expected)] == expected
        assert part.image_ids[latent, len(expected) :].tolist() == [-1] * (top_k - len(expected))
    stats = part.stats
    assert np.array_equal(stats.maximum.numpy(), values.max(0))
    assert np.array_equal(stats.minimum.numpy(), values.min(0))
    assert np.allclose(stats.mean.numpy(), values.mean(0, dtype=np.float64), rtol=1e-12)
    assert np.allclose(stats.variance.numpy(), values.var(0, dtype=np.float64), rtol=1e-9)
    assert np.allclose(stats.sparsity.numpy(), (values == 0).mean(0), rtol=1e-12)


def test_the_grid_is_a_square_where_the_images_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, sparse.csr_array(np.ones((36, 2), np.float32)))
    assert adapters.read("saev", path, images=4).examples[0].grid == (3, 3)
    assert adapters.read("saev", tmp_path, images=9).examples[0].grid == (2, 2)
    for options in ({}, {"images": 6}, {"images": 12}):
        with pytest.raises(InputError, match=r"how many tokens .*--grid 14x14"):
            adapters.read("saev", path, **options)
    for options in ({"grid": (5, 5)}, {"grid": (2, 3), "images": 5}):
        with pytest.raises(InputError, match="rows of token_acts.npz do not fit"):
            adapters.read("saev", path, **options)


def test_written_and_read_again_is_the_same(tmp_path: Path) -> None:
    part = contents.examples("latents")
    written = adapters.write("saev", adapters.Contents(examples=(part,)), tmp_path)
    matrix = sparse.load_npz(written[0])  # as the tool opens it
    assert matrix.format == "csr"
    assert matrix.nnz == contents.CHANNELS * contents.K
    read = adapters.read("saev", tmp_path, grid=contents.GRID, top_k=contents.K)
    contents.same(read.examples[0], part)


def test_a_whole_export_is_read_with_the_images_it_is_of(tmp_path: Path) -> None:
    """Images after the last top one are rows too, or the rows would not be tokens · images."""
    part = contents.examples("latents")
    made = adapters.Contents(examples=(part,), images=100)
    (path,) = adapters.write("saev", made, tmp_path)
    assert sparse.load_npz(path).shape == (1600, contents.CHANNELS)
    read = adapters.read("saev", path, images=100, top_k=contents.K)  # the grid is a square
    contents.same(read.examples[0], part)
    assert read.images == 100
    with pytest.raises(InputError, match="not in the data"):
        adapters.write("saev", adapters.Contents(examples=(part,), images=3), tmp_path / "few")


def test_activations_below_zero_are_not_written_to_be_lost(tmp_path: Path) -> None:
    part = contents.examples("latents")
    low = adapters.TopExamples("a", part.image_ids, part.values - 2, part.positions, part.grid)
    with pytest.raises(InputError, match="cannot be written for saev; got an activation of -1.75"):
        adapters.write("saev", adapters.Contents(examples=(low,)), tmp_path)


def test_activations_below_zero_are_counted(tmp_path: Path) -> None:
    assert len(adapters.read("saev", write(tmp_path), grid=GRID).notes) == 1
    values = dense()
    values[3:5, 1] = -1
    notes = adapters.read("saev", write(tmp_path, sparse.csr_array(values)), grid=GRID).notes
    assert notes[1] == "activations below 0, which are never among the top ones: 2"


def broken(**changes: np.ndarray) -> dict[str, np.ndarray]:
    matrix = sparse.csr_array(dense())
    parts = {
        "indices": matrix.indices, "indptr": matrix.indptr, "format": np.array(b"csr"),
        "shape": np.array(matrix.shape), "data": matrix.data,
    }  # fmt: skip
    return {name: x for name, x in (parts | changes).items() if x is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indptr": None}, "expected arrays format, shape, data, indices, indptr"),
        ({"format": np.array(b"csc")}, "no sound CSR matrix; got a csc matrix"),
        ({"indices": np.full(2, 99)}, "no sound CSR matrix"),
        ({"shape": np.array([54, 2])}, "no sound CSR matrix"),
        ({"indptr": np.arange(55)[::-1].copy()}, "no sound CSR matrix"),
        ({"data": np.array([b"a"])}, r"no sound CSR matrix; got a csr matrix of \|S1"),
        ({"data": np.array([{}], dtype=object)}, "cannot be read"),
    ],
)
def test_unfit_files_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    path = tmp_path / "token_acts.npz"
    np.savez(path, **broken(**changes))
    with pytest.raises(InputError, match=message):
        adapters.read("saev", path, grid=GRID)


def test_nan_and_cut_files_are_refused(tmp_path: Path) -> None:
    values = dense()
    values[3, 1] = np.nan
    path = write(tmp_path, sparse.csr_array(values))
    with pytest.raises(InputError, match="not finite; got nan for latent 1"):
        adapters.read("saev", path, grid=GRID)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="cannot be read"):
        adapters.read("saev", path, grid=GRID)


def test_several_layers_and_contents_without_activations_are_refused(tmp_path: Path) -> None:
    two = (contents.examples("a"), contents.examples("b"))
    ids = adapters.TopExamples("a", torch.arange(8).reshape(2, 4))
    for examples in (two, (ids,)):
        with pytest.raises(InputError, match="one layer"):
            adapters.write("saev", adapters.Contents(examples=examples), tmp_path)
