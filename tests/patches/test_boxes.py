"""Boxes stay inside the image, and each distinct crop is kept once."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from psi_engine.errors import InputError
from psi_engine.ops.moments import empty_moments, summarise
from psi_engine.patches import collect_patches, site_boxes
from psi_engine.types import ActivationShape, LayerSites, PoolSites, ReceptiveField, SiteSet
from tests.reference import receptive_field as reference


def square(size: float, jump: float, start: float, **more) -> ReceptiveField:
    return ReceptiveField((size, size), (jump, jump), (start, start), "graph", **more)


@given(
    side=st.integers(1, 40),
    size=st.integers(1, 60),
    jump=st.sampled_from([0.0, 0.5, 1.0, 4.0, 7.25]),
    start=st.sampled_from([0.5, 1.0, 2.0, 3.75]),
    u=st.integers(0, 12),
    v=st.integers(0, 12),
)
def test_boxes_are_the_nearest_windows_inside(side, size, jump, start, u, v) -> None:
    box = site_boxes(torch.tensor(u), torch.tensor(v), square(size, jump, start), side)
    length = min(size, side)
    top, bottom = reference.window(start + u * jump, length, side)
    left, right = reference.window(start + v * jump, length, side)
    assert box.tolist() == [left, top, right, bottom]


def test_a_known_box() -> None:
    """ResNet-50 layer3 at 224: unit (7, 0) sits at row 112.5, column 0.5."""
    box = site_boxes(torch.tensor([7]), torch.tensor([0]), square(88, 16, 0.5), 224)
    assert box.tolist() == [[0, 69, 88, 157]]


def test_a_fractional_size_is_rounded_up_but_not_for_a_rounding_error() -> None:
    at = torch.tensor([5])
    assert site_boxes(at, at, square(7.2, 2, 0.5), 30)[0].tolist() == [7, 7, 15, 15]
    assert site_boxes(at, at, square(7 + 1e-9, 2, 0.5), 30)[0].tolist() == [7, 7, 14, 14]


def test_a_field_wider_than_the_image_is_the_image() -> None:
    grid = torch.arange(7, dtype=torch.int32)
    boxes = site_boxes(grid[:, None].expand(7, 7), grid.expand(7, 7), square(427, 32, 0.5), 224)
    assert boxes.shape == (7, 7, 4)
    assert (boxes == torch.tensor([0, 0, 224, 224])).all()


def test_tokens_find_their_patch_and_prefixes_the_image() -> None:
    field = square(8, 8, 4, tokens=(2, 4))
    u = torch.tensor([0, 1, 2, 5, 6, 17])
    boxes = site_boxes(u, torch.zeros_like(u), field, 32)
    assert boxes.tolist() == [
        [0, 0, 32, 32],
        [0, 0, 32, 32],
        [0, 0, 8, 8],
        [24, 0, 32, 8],
        [0, 8, 8, 16],
        [24, 24, 32, 32],
    ]


def test_fields_may_come_back_from_a_manifest() -> None:
    """JSON turns the pairs into lists."""
    field = square(8, 8, 4, tokens=(1, 4))
    lists = ReceptiveField(*([*x] if isinstance(x, tuple) else x for x in field))
    u = torch.arange(17)
    assert torch.equal(site_boxes(u, u * 0, field, 32), site_boxes(u, u * 0, lists, 32))


def sites(image_ids: list, u: list, v: list) -> SiteSet:
    ids = torch.tensor(image_ids)
    return SiteSet(
        torch.where(ids < 0, torch.nan, 1.0),
        ids,
        torch.tensor(u, dtype=torch.int32),
        torch.tensor(v, dtype=torch.int32),
    )


def layer(name: str, top: SiteSet, pool: tuple[list, list, list]) -> LayerSites:
    none = SiteSet(*(x[:, :0] for x in top))
    return LayerSites(
        layer=name,
        shape=ActivationShape("map", 2, (8, 8)),
        channels=torch.arange(2),
        top=top,
        bottom=none,
        random=none,
        pool=PoolSites(*map(torch.tensor, pool)),
        stats=summarise(empty_moments(2, "cpu")),
        images=9,
    )


def example() -> dict[str, LayerSites]:
    top = sites([[7, 3, -1], [3, 7, 2]], [[1, 2, -1], [2, 1, 0]], [[1, 2, -1], [2, 3, 0]])
    return {
        "a": layer("a", top, ([3, 2, 8], [2, 7, 0], [2, 7, 0])),
        "b": layer("b", top, ([3], [2], [2])),
    }


FIELDS = {"a": square(4, 4, 2), "b": square(6, 4, 2)}


def test_each_distinct_crop_is_kept_once() -> None:
    mined = example()
    patches = collect_patches(mined, FIELDS, 32)
    boxes = torch.cat([patches.boxes.image_ids[:, None], patches.boxes.xyxy], dim=1)
    rows: Tensor = boxes
    assert rows.tolist() == sorted(rows.tolist())
    assert len({tuple(row) for row in rows.tolist()}) == len(rows)
    wanted = set()
    assert set(patches.rows) == {(l, kind) for l in "ab" for kind in ("top", "pool")}
    for (name, kind), index in patches.rows.items():
        part = getattr(mined[name], kind)
        assert index.shape == part.image_ids.shape
        assert index.dtype == torch.int64
        for place in torch.cartesian_prod(*(torch.arange(n) for n in index.shape)).view(
            -1, index.ndim
        ):
            at = tuple(place.tolist())
            image, u, v = (int(x[at]) for x in (part.image_ids, part.u, part.v))
            if image < 0:
                assert index[at] == -1
                continue
            box = site_boxes(torch.tensor(u), torch.tensor(v), FIELDS[name], 32).tolist()
            assert rows[index[at]].tolist() == [image, *box]
            wanted.add((image, *box))
    assert wanted == {tuple(row) for row in rows.tolist()}
    # Shared between channels and with the pool: image 3 at (2, 2) of layer a is one crop.
    a = patches.rows
    assert a["a", "top"][0, 1] == a["a", "top"][1, 0] == a["a", "pool"][0]


def test_only_the_kinds_asked_for() -> None:
    patches = collect_patches(example(), FIELDS, 32, kinds=("bottom", "pool"))
    assert set(patches.rows) == {(l, kind) for l in "ab" for kind in ("bottom", "pool")}
    assert patches.rows["a", "bottom"].shape == (2, 0)
    assert len(patches.boxes.image_ids) == 4


def test_nothing_mined_is_no_crop() -> None:
    patches = collect_patches({}, {}, 32)
    assert patches.boxes.xyxy.shape == (0, 4)
    assert patches.rows == {}


def test_a_layer_without_a_field_is_refused() -> None:
    with pytest.raises(InputError, match=r"\['b'\]"):
        collect_patches(example(), {"a": FIELDS["a"]}, 32)


def test_windows_move_inward_by_no_more_than_they_must() -> None:
    """Every site of a 7-grid whose field is wider than its jump: inside, and around the centre."""
    field = square(90, 32, 0.5)
    for u in range(7):
        x0, y0, x1, y1 = site_boxes(torch.tensor(u), torch.tensor(u), field, 224).tolist()
        assert (x1 - x0, y1 - y0) == (90, 90)
        assert x0 >= 0
        assert y1 <= 224
        centre = 0.5 + 32 * u
        if 45 <= centre <= 224 - 45:
            assert math.isclose((x0 + x1) / 2, centre, abs_tol=0.5)
