"""A finished run opened for scoring again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import psi_engine as psi
from psi_engine.artifacts import open_run, read_tensors, write_tensors
from psi_engine.errors import InputError, RunFolderError
from psi_engine.inputs import reopen
from psi_engine.stored import SCORE_INPUTS, StoredRun, load_stored, write_score_inputs
from tests import toy


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_images(tmp_path_factory.mktemp("images"), 48)


@pytest.fixture(scope="module")
def stored(images: Path, tmp_path_factory: pytest.TempPathFactory) -> StoredRun:
    out = tmp_path_factory.mktemp("run")
    psi.run(psi.RunConfig.from_options(**toy.RUN_OPTIONS, data=str(images), out=str(out)))
    return load_stored(out)


def test_scoring_again_gives_the_bits_of_the_run(stored: StoredRun) -> None:
    table = stored.run.channels
    start = 0
    for name, layer in stored.layers.items():
        scores = stored.score(name)
        rows = table.slice(start, len(layer.sites.channels))
        for column in ("psi", "log_psi", "s_z", "q_z", "d_z", "psi_low", "psi_p_adj"):
            found = np.array(rows[column].to_pylist(), float)
            np.testing.assert_array_equal(getattr(scores, column).numpy(), found)
        start += len(rows)
    assert start == len(table)


def test_assignments_are_those_of_the_scores(stored: StoredRun) -> None:
    for name in stored.layers:
        assert torch.equal(stored.assignments(name), stored.score(name).assignments)
    with pytest.raises(InputError, match="no such layer"):
        stored.assignments("conv9")


def test_a_part_of_the_patches_or_channels_is_scored_as_if_it_were_all(stored: StoredRun) -> None:
    layer = stored.layers["conv2"]
    prefix = stored.score("conv2", patches=8)
    marked = torch.zeros_like(layer.mask)
    marked[:, :8] = True
    assert torch.equal(prefix.s.nan_to_num(), stored.score("conv2", patches=marked).s.nan_to_num())
    assert not torch.equal(prefix.s.nan_to_num(), stored.score("conv2").s.nan_to_num())
    few = stored.score("conv2", channels=[3, 1])
    assert torch.equal(few.s, stored.score("conv2").s[[3, 1]])
    with pytest.raises(InputError, match="too few patches"):
        stored.score("conv2", patches=3)
    with pytest.raises(InputError, match="no such layer"):
        stored.score("conv9")


def test_replacements_take_the_place_of_what_is_stored(stored: StoredRun) -> None:
    assert stored.score("conv2", labels=None).q is None
    assert stored.score("conv2", text_embeddings=None, concept_ids=None).d is None
    turned = stored.layers["conv2"].embeddings.flip(1)
    assert not torch.equal(
        stored.score("conv2", embeddings=turned).assignments, stored.score("conv2").assignments
    )


def test_labels_are_those_of_the_images(stored: StoredRun) -> None:
    layer = stored.layers["conv2"]
    assert layer.labels is not None
    assert layer.pool_labels is not None
    np.testing.assert_array_equal(layer.pool_labels, stored.labels[layer.sites.pool.image_ids])
    valid = layer.sites.image_ids >= 0
    np.testing.assert_array_equal(layer.labels[valid], stored.labels[layer.sites.image_ids[valid]])
    assert (layer.labels[~valid] == -1).all()
    assert layer.pool.shape == (len(layer.pool_labels), layer.embeddings.shape[2])


def test_a_folder_that_lacks_something_is_refused(stored: StoredRun, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(stored.run.path, copy)
    tensors, _ = read_tensors(copy / SCORE_INPUTS)
    write_tensors(copy / SCORE_INPUTS, tensors, {"class_names": "[]", "concepts": "[]"})
    with pytest.raises(RunFolderError, match="of another version"):
        load_stored(copy)
    (copy / SCORE_INPUTS).unlink()
    with pytest.raises(RunFolderError, match=f"{SCORE_INPUTS} missing"):
        load_stored(copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["stages"]["score"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunFolderError, match="stage score unfinished"):
        load_stored(copy)


def test_inputs_come_back_only_as_they_were(stored: StoredRun, tmp_path: Path) -> None:
    inputs = reopen(stored.run)
    assert inputs.layers == ["conv2", "head"]
    copy = tmp_path / "copy"
    shutil.copytree(stored.run.path, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["fingerprints"]["encoder"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunFolderError, match="made with other encoder"):
        reopen(open_run(copy))


def test_what_the_scorer_was_given_is_written_in_the_same_bytes(
    stored: StoredRun, tmp_path: Path
) -> None:
    for number in range(8):  # an order drawn at random would differ in one of them
        write_score_inputs(
            tmp_path / str(number),
            stored.labels,
            stored.texts,
            stored.class_names,
            stored.concepts,
        )
    assert len({(tmp_path / str(number)).read_bytes() for number in range(8)}) == 1
