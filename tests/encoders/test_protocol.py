from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from psi_engine.encoders import check_encoder, load_encoder
from psi_engine.errors import EncoderError

PLUGIN = """
import torch
class Mine:
    name, dim, image_size, interpolation = "mine", 4, 8, "bilinear"
    fingerprint, text, concepts, concept_embeddings = "f", "encoder", None, None
    weights = None
    def encode_images(self, x):
        return torch.nn.functional.normalize(x.flatten(1)[:, :4] + 1, dim=1)
    def encode_texts(self, texts):
        return torch.nn.functional.normalize(torch.ones(len(texts), 4), dim=1)
    def to(self, device):
        return self
def good(weights=None):
    encoder = Mine()
    encoder.weights = weights
    return encoder
def bare():
    return object()
def no_arguments():
    return Mine()
def changed(**changes):
    encoder = Mine()
    vars(encoder).update(changes)
    return encoder
def bad_text(): return changed(text="words")
def bad_dim(): return changed(dim=5)
def long_rows(): return changed(encode_images=lambda x: torch.ones(len(x), 4))
def doubles(): return changed(encode_texts=lambda t: torch.ones(len(t), 4).double() / 2)
def no_concepts(): return changed(text="fixed")
def fixed():
    return changed(text="fixed", concepts=("a", "b"), concept_embeddings=torch.eye(4)[:2],
                   encode_texts=None)
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"plugin_{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:8]}"
    (tmp_path / f"{name}.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)  # the working directory is importable
    return name


def test_a_users_own_encoder(plugin: str) -> None:
    assert load_encoder(f"{plugin}:good").encode_images(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
    assert load_encoder(f"{plugin}:good", "w.pt").weights == "w.pt"  # type: ignore[attr-defined]
    assert load_encoder(f"{plugin}:fixed").concepts == ("a", "b")
    check_encoder(f"{plugin}:good")


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("bare", r"no attribute name \(str\).*no attribute dim.*no method encode_images"),
        ("bad_text", "text = 'words', not one of encoder, fixed, none"),
        ("bad_dim", r"encode_images\(…\) has shape \(1, 4\), not \(1, 5\)"),
        ("long_rows", "rows that are not of unit length"),
        ("doubles", "encode_texts.* is torch.float64, not torch.float32"),
        ("no_concepts", "text is 'fixed' but concepts or concept_embeddings is missing"),
    ],
)
def test_what_a_users_encoder_lacks_is_named(plugin: str, factory: str, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        load_encoder(f"{plugin}:{factory}")


def test_a_factory_that_takes_no_weights_says_so(plugin: str) -> None:
    with pytest.raises(EncoderError, match=r"cannot be called with 1 arguments.*leave --encoder-w"):
        load_encoder(f"{plugin}:no_arguments", "w.pt")
