"""ConSE is its formula, and names pictures of real things."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks import conse
from psi_engine.encoders import load_encoder
from psi_engine.errors import EncoderError


def write_texts(folder, sources, rows):
    save_file({"embeddings": rows.half()}, folder / f"{conse.TEXTS}.safetensors")
    listed = [{"name": name, "source": source} for name, source in sources]
    (folder / f"{conse.TEXTS}.json").write_text(json.dumps(listed))


def test_an_image_is_the_mean_of_the_classes_weighted_by_what_the_classifier_thinks():
    generator = torch.Generator().manual_seed(0)
    logits, rows = (torch.randn(n, 7, generator=generator) for n in (4, 7))
    found = conse.Combination(nn.Identity(), rows, 2.0)(logits)
    for image in range(4):
        weights = [torch.exp(logits[image, i].double() / 2) for i in range(7)]
        expected = sum(w * rows[i].double() for i, w in enumerate(weights)) / sum(weights)
        torch.testing.assert_close(found[image].double(), expected, atol=1e-6, rtol=0)


def test_the_mean_of_the_classes_is_taken_off_and_each_name_stands_once(tmp_path):
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    names = ["crane, bird", "dog", "Lamp", "lamp", "sea"]
    sources = ["imagenet", "imagenet", "lvis", "oid", "oid"]
    write_texts(tmp_path, zip(names, sources, strict=True), rows)
    texts = conse.read_texts(tmp_path)
    assert texts.classes.tolist() == [[0.5, -0.5], [-0.5, 0.5]]
    assert texts.class_names == ("crane", "dog")
    assert texts.other_names == ("Lamp", "sea")
    assert texts.others.tolist() == [[0.5, 0.5], [-0.5, -1.5]]


def test_a_folder_without_the_files_is_refused(tmp_path):
    with pytest.raises(EncoderError, match="does not find its files"):
        conse.open_vocabulary(str(tmp_path))


@pytest.mark.slow
def test_real_pictures_are_near_the_names_of_what_they_show(shared):
    """Of the pictures ResNet-18 is sure of, most are nearest to their own class's name."""
    from psi_engine.data import open_source
    from psi_engine.models import load_model

    folder = shared / "weights"
    encoder = load_encoder("benchmarks.conse:imagenet", str(folder))
    assert (len(encoder.concepts), encoder.dim) == (1000, 512)
    other = load_encoder("benchmarks.conse:open_vocabulary", str(folder))
    assert len(other.concepts) == 1466
    assert other.fingerprint != encoder.fingerprint
    source = open_source(str(shared / "data" / "tiny-imagenet"), 64)
    model = load_model("resnet18", str(next(folder.glob("resnet18*.safetensors"))))
    views = torch.stack([source.view(i, model.preprocess) for i in range(len(source))])
    with torch.no_grad():
        chance = torch.softmax(model.module(model.preprocess.normalise(views)), 1)
    images = encoder.encode_images(views / 255)
    sure = chance.amax(1) > 0.9
    assert sure.sum() >= 5
    nearest = (images @ encoder.concept_embeddings.T).argmax(1)
    assert (nearest == chance.argmax(1))[sure].float().mean() > 0.9
    torch.testing.assert_close(other.encode_images(views[:2] / 255), images[:2], atol=0, rtol=0)
