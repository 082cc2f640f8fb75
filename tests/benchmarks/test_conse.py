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


def test_other_names_that_are_a_classs_too_are_told():
    texts = conse.Texts(None, ("crane", "sea lion"), None, ("Crane", "lion", "sea lion", "cranes"))
    assert conse.shared_with_classes(texts) == ("Crane", "sea lion")


def test_a_folder_without_the_files_is_refused(tmp_path):
    with pytest.raises(EncoderError, match="does not find its files"):
        conse.open_vocabulary(str(tmp_path))


@pytest.mark.slow
def test_real_pictures_get_the_vector_of_the_formula(shared):
    """And those ResNet-18 is sure of are nearest to the name it would give them."""
    from psi_engine.data import open_source
    from psi_engine.models import load_model

    folder = shared / "weights"
    encoder = load_encoder("benchmarks.conse:imagenet", str(folder))
    assert (len(encoder.concepts), encoder.dim) == (1000, 512)
    texts = conse.read_texts(folder)
    assert (len(texts.other_names), len(conse.shared_with_classes(texts))) == (1466, 278)
    source = open_source(str(shared / "data" / "tiny-imagenet"), 32)
    model = load_model("resnet18", str(next(folder.glob("resnet18*.safetensors"))))
    views = torch.stack([source.view(i, model.preprocess) for i in range(len(source))])
    with torch.no_grad():
        logits = model.module(model.preprocess.normalise(views)).double()
    rows = conse.read_texts(folder).classes.double()
    expected = torch.nn.functional.normalize(torch.softmax(logits / 2, 1) @ rows, dim=1)
    images = encoder.encode_images(views / 255)
    torch.testing.assert_close(images.double(), expected, atol=2e-5, rtol=0)
    sure = torch.softmax(logits, 1).amax(1) > 0.8
    assert sure.any()
    nearest = (images @ encoder.concept_embeddings.T).argmax(1)
    assert torch.equal(nearest[sure], logits.argmax(1)[sure])
