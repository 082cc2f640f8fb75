"""Random sets: what they share with the channels, and what differs, counted by loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from psi_engine.validation.null_channels import differences, null_channels, pool_halves


def test_crops_and_images_of_the_comparison_pool_are_counted(toy_stored: Any) -> None:
    layer = toy_stored.layers["conv2"]
    pool = pool_halves(layer, 0)[1].tolist()
    crops = {int(layer.patches.rows["conv2", "pool"][place]) for place in pool}
    images = {int(layer.pool_images[place]) for place in pool}
    held = same = near = 0
    for row, present in enumerate(layer.mask.tolist()):
        for place, there in enumerate(present):
            held += there
            same += there and int(layer.rows[row, place]) in crops
            near += there and int(layer.sites.image_ids[row, place]) in images
    assert 0 < same < near < held
    (note,) = differences(layer, 0)
    assert f"conv2: {same} of the channels' {held} patches are themselves rows" in note
    assert f"and {near} are of its images" in note
    sets = null_channels(layer, 15, 0)
    assert images.isdisjoint(layer.pool_images[sets.rows].flatten().tolist())


def test_patches_that_repeat_an_image_are_said(toy_stored: Any) -> None:
    layer = toy_stored.layers["conv2"]
    ids = layer.sites.image_ids.clone()
    ids[:, 1:4] = ids[:, :1]  # the first four patches are of one image
    rows = dict(layer.patches.rows)
    crops = rows["conv2", "top"].clone()
    crops[:, 1] = crops[:, 0]  # and two of them are the same crop
    rows["conv2", "top"] = crops
    twice = replace(
        layer,
        sites=replace(layer.sites, top=layer.sites.top._replace(image_ids=ids)),
        patches=replace(layer.patches, rows=rows),
    )
    counts = []
    for row, present in enumerate(layer.mask):
        if bool(present.any()):
            some = [len(set(x[row, : len(present)][present].tolist())) for x in (ids, crops)]
            counts.append((int(present.sum()), *some))
    patches, of_images, of_crops = torch.tensor(counts).double().quantile(0.5, dim=0).tolist()
    assert (patches, of_images, of_crops) == (12, 9, 11)
    note = differences(twice, 0)[-1]
    assert "12 patches come from 9 images and are 11 distinct crops" in note
