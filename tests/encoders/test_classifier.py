from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from psi_engine.encoders import load_encoder
from psi_engine.errors import EncoderError
from psi_engine.models import load_model
from tests.encoders.tiny import (
    images,
)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18", "timm:vit_tiny_patch16_224"])
def test_features_and_rows_give_the_classifiers_logits(name: str) -> None:
    model = load_model(name, "none")
    encoder = load_encoder(f"classifier:{name}", "none")
    x = images(3, encoder.image_size)
    with torch.no_grad():
        logits = model.module(model.preprocess.normalise(x))
        head = [m for m in model.module.modules() if isinstance(m, nn.Linear)][-1]
        cosines = encoder.encode_images(x) @ encoder.concept_embeddings.T  # type: ignore[union-attr]
        scaled = (logits - head.bias) / head.weight.norm(dim=1)
    # Up to each image's feature length, the logits without bias are the cosines.
    torch.testing.assert_close(cosines, functional.normalize(scaled, dim=1)
                               * cosines.norm(dim=1, keepdim=True), rtol=0, atol=1e-5)  # fmt: skip
    assert encoder.concept_embeddings is not None
    assert encoder.concept_embeddings.shape == (1000, encoder.dim)
    assert encoder.text == "fixed"


def test_a_classifiers_file_and_names(tmp_path: Path) -> None:
    state = load_model("mobilenet_v3_small", "none").module.state_dict()
    file = tmp_path / "mobilenet.safetensors"
    save_file({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, file)
    encoder = load_encoder("classifier:mobilenet_v3_small", str(file))
    assert encoder.concepts is not None
    assert encoder.concepts[:2] == ("tench", "goldfish")
    assert len({name.casefold() for name in encoder.concepts}) == 1000
    names = tmp_path / "names.txt"
    names.write_text("".join(f"thing_{i}\n" for i in range(1000)))
    named = load_encoder("classifier:mobilenet_v3_small", str(file), concepts_file=names)
    assert named.concepts is not None
    assert named.concepts[999] == "thing 999"
    assert named.fingerprint == encoder.fingerprint
    names.write_text("one\ntwo\n")
    with pytest.raises(EncoderError, match="got 2 names; expected 1000"):
        load_encoder("classifier:mobilenet_v3_small", str(file), concepts_file=names)


def test_a_classifier_without_categories_numbers_its_classes() -> None:
    encoder = load_encoder("classifier:mobilenet_v3_small", "none")
    assert encoder.concepts is not None
    assert encoder.concepts[7] == "class 7"


def test_a_net_without_a_linear_head_is_no_classifier() -> None:
    with pytest.raises(EncoderError, match="squeezenet1_1 does not end in a linear layer"):
        load_encoder("classifier:squeezenet1_1", "none")


def test_fingerprints_follow_the_weights_and_the_family(tmp_path: Path) -> None:
    module = load_model("timm:mobilenetv3_small_050", "none").module
    with torch.no_grad():
        next(module.parameters()).add_(1)
    file = tmp_path / "changed.safetensors"
    save_file(module.state_dict(), file)
    found = {
        load_encoder("timm:mobilenetv3_small_050", "none").fingerprint,
        load_encoder("timm:mobilenetv3_small_050", str(file)).fingerprint,
        load_encoder("classifier:timm:mobilenetv3_small_050", "none").fingerprint,
    }
    assert len(found) == 3


def test_timm_gives_its_features_before_the_logits_and_no_texts() -> None:
    encoder = load_encoder("timm:mobilenetv3_small_050", "none")
    model = load_model("timm:mobilenetv3_small_050", "none")
    x = images(2, encoder.image_size)
    with torch.no_grad():
        maps = model.module.forward_features(model.preprocess.normalise(x))  # type: ignore[operator]
        expected = functional.normalize(
            model.module.forward_head(maps, pre_logits=True),
            dim=1,  # type: ignore[operator]
        )
    torch.testing.assert_close(encoder.encode_images(x), expected, rtol=0, atol=1e-5)
    assert encoder.text == "none"
    with pytest.raises(EncoderError, match="timm:mobilenetv3_small_050 has no text tower"):
        encoder.encode_texts(["an owl"])


def test_the_real_resnet18_names_what_it_sees(shared: Path) -> None:
    file = shared / "weights/resnet18_imagenet_quantised.safetensors"
    encoder = load_encoder("classifier:resnet18", str(file))
    pq = pytest.importorskip("pyarrow.parquet")
    table = pq.read_table(shared / "data/tiny-imagenet/train-00000-of-00004.parquet")
    rows = table.slice(0, 64).to_pylist()
    views = []
    for row in rows:
        image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").resize((224, 224))
        views.append(torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255)
    names = [row["name"] for row in json.loads(
        (shared / "data/tiny-imagenet/classes.json").read_text())]  # fmt: skip
    assert encoder.concepts is not None
    assert encoder.concept_embeddings is not None
    similarity = encoder.encode_images(torch.stack(views)) @ encoder.concept_embeddings.T
    candidates = [encoder.concepts.index(n) if n in encoder.concepts else -1 for n in names]
    known = [i for i, c in enumerate(candidates) if c >= 0]
    best = similarity[:, [candidates[i] for i in known]].argmax(dim=1)
    hits = [known[int(b)] == row["label"] for b, row in zip(best, rows, strict=True)]
    # 200-way chance is 0.5 %; the classifier itself reaches 43 % on this data.
    assert sum(hits) / len(hits) > 0.25
