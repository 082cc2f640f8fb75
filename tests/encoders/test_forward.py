from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from psi_engine.encoders import load_encoder
from psi_engine.encoders.forward import exact_float32
from psi_engine.errors import InputError
from tests.encoders.tiny import (
    images,
)


@pytest.fixture(
    params=["open_clip:tiny", "classifier:mobilenet_v3_small", "timm:mobilenetv3_small_050"]
)
def any_encoder(request: pytest.FixtureRequest, clip_file: str) -> Any:
    clip = request.param.startswith("open_clip")
    return load_encoder(request.param, clip_file if clip else "none")


def test_a_rows_bits_do_not_depend_on_its_company(any_encoder: Any) -> None:
    side = any_encoder.image_size
    x = images(37, side)
    rows = any_encoder.encode_images(x)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(1))
    assert torch.equal(any_encoder.encode_images(x[order]), rows[order])
    assert torch.equal(any_encoder.encode_images(x[36:]), rows[36:])
    assert torch.equal(torch.cat([any_encoder.encode_images(p) for p in x.split(11)]), rows)


def test_rows_are_unit_plain_tensors_and_inputs_stay(any_encoder: Any) -> None:
    x = images(2, any_encoder.image_size)
    before = x.clone()
    rows = any_encoder.encode_images(x)
    assert rows.shape == (2, any_encoder.dim)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(2), rtol=0, atol=1e-6)
    assert not rows.requires_grad
    rows.mul_(2)  # an inference tensor would refuse
    assert torch.equal(x, before)
    assert any_encoder.encode_images(x[:0]).shape == (0, any_encoder.dim)


def test_a_texts_bits_do_not_depend_on_its_company(clip_file: str) -> None:
    encoder = load_encoder("open_clip:tiny", clip_file)
    texts = [f"a thing of kind {i}" for i in range(37)]
    rows = encoder.encode_texts(texts)
    assert torch.equal(encoder.encode_texts(texts[::-1]), rows.flip(0))
    assert torch.equal(encoder.encode_texts(texts[36:]), rows[36:])
    assert encoder.encode_texts([]).shape == (0, 16)


@pytest.mark.slow
def test_vit_b_32_rows_do_not_depend_on_their_company(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32"))
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    encoder = load_encoder("open_clip:ViT-B-32", str(tmp_path / "w.safetensors"))
    x = images(40, 224)
    rows = encoder.encode_images(x)
    assert torch.equal(encoder.encode_images(x.flip(0)), rows.flip(0))
    assert torch.equal(encoder.encode_images(x[39:]), rows[39:])
    texts = [f"a thing of kind {i}" for i in range(40)]
    rows = encoder.encode_texts(texts)
    assert torch.equal(encoder.encode_texts(texts[::-1]), rows.flip(0))
    assert torch.equal(encoder.encode_texts(texts[39:]), rows[39:])


@pytest.mark.gpu
def test_cuda_rows_equal_cpu_rows_and_do_not_depend_on_their_company() -> None:
    encoder = load_encoder("classifier:resnet18", "none")
    x = images(300, 224)
    cpu = encoder.encode_images(x[:8])
    rows = encoder.to("cuda").encode_images(x)
    assert rows.device.type == "cuda"
    torch.testing.assert_close(rows[:8].cpu(), cpu, rtol=0, atol=1e-5)
    assert torch.equal(encoder.encode_images(x.flip(0)), rows.flip(0))
    assert torch.equal(encoder.encode_images(x[299:]), rows[299:])


def test_switches_are_set_and_put_back_whoever_set_them_before() -> None:
    """Also within each other, and where one library alone was told to leave TF32 out."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul

    def switches() -> tuple[object, ...]:
        precisions = (x.fp32_precision for x in (matmul, cudnn.conv, cudnn.rnn))
        return *precisions, cudnn.enabled, cudnn.deterministic, cudnn.benchmark

    before = switches()
    exact = "ieee", "ieee", "ieee", True, True, False
    device = torch.device("cuda")
    for given in ("ieee", "tf32"):
        try:
            cudnn.conv.fp32_precision, cudnn.benchmark = given, True
            outside = switches()
            with exact_float32(device):
                assert switches() == exact
                with pytest.raises(ZeroDivisionError), exact_float32(device):
                    assert switches() == exact
                    1 / 0  # noqa: B018
                assert switches() == exact
            assert switches() == outside
            with exact_float32(torch.device("cpu")):
                assert switches() == outside
        finally:
            cudnn.conv.fp32_precision, cudnn.benchmark = before[1], before[5]
    assert switches() == before


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 3, 31, 32), r"wrong shape; got \(2, 3, 31, 32\).*expected \(n, 3, 32, 32"),
        (torch.zeros(3, 32, 32), "wrong shape"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), r"dtype; got torch.uint8; expected float"),
    ],
)
def test_wrong_images_are_refused(clip_file: str, x: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_encoder("open_clip:tiny", clip_file).encode_images(x)
