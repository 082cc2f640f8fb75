from __future__ import annotations

import numpy as np
import pytest

from psi_engine.report.page.layout import FEW, lay_out


def blobs(channels: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = 4 * rng.normal(size=(3, 12))
    return (centres[np.arange(channels) % 3] + rng.normal(size=(channels, 12))).astype(np.float32)


@pytest.mark.parametrize(("channels", "how"), [(2, "principal"), (9, "principal"), (60, "t-SNE")])
def test_places_lie_in_the_unit_square_and_are_the_same_every_time(channels: int, how: str) -> None:
    vectors = blobs(channels)
    found = lay_out(vectors)
    assert how in found.how
    assert found.places.shape == (channels, 2)
    assert found.places.min() == 0
    assert found.places.max() == 1
    np.testing.assert_array_equal(lay_out(vectors.copy()).places, found.places)


def test_alike_channels_are_neighbours() -> None:
    places = lay_out(blobs(60)).places
    distance = np.linalg.norm(places[:, None] - places, axis=2) + 9 * np.eye(60)
    assert (distance.argmin(1) % 3 == np.arange(60) % 3).all()


def test_channels_without_patches_have_no_place() -> None:
    vectors = blobs(FEW)
    vectors[3] = np.nan
    places = lay_out(vectors).places
    assert np.isnan(places).any(1).tolist() == [i == 3 for i in range(FEW)]
    nowhere = lay_out(np.full((3, 4), np.nan, np.float32))
    assert np.isnan(nowhere.places).all()
    assert "no channel" in nowhere.how


def test_principal_components_are_those_of_the_covariance() -> None:
    vectors = blobs(12)
    places = lay_out(vectors).places
    centred = vectors - vectors.mean(0, dtype=np.float64)
    values, axes = np.linalg.eigh(centred.T @ centred)
    for place, axis in enumerate(axes.T[np.argsort(values)[::-1][:2]]):
        wanted = centred @ axis
        assert abs(np.corrcoef(places[:, place], wanted)[0, 1]) == pytest.approx(1, abs=1e-9)


def test_equal_channels_do_not_divide_by_zero() -> None:
    places = lay_out(np.ones((5, 3), np.float32)).places
    np.testing.assert_array_equal(places, 0)
