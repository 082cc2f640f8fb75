from __future__ import annotations

import hashlib
import http.server
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from psi_engine.encoders import check_encoder, load_encoder
from psi_engine.errors import EncoderError
from psi_engine.models.clip_weights import cached_clip_weights, locate
from tests.encoders.tiny import (
    MEAN,
    STD,
    assert_rows,
    clip_rows,
    clip_state,
    images,
    register,
)

QUICK = {"quick_gelu": True, "hf_hub": "me/tiny-quick/"}
PLAIN = {"hf_hub": "me/tiny-plain/"}


def is_quick(weights: str) -> bool:
    """Which of open_clip's two networks the encoder's rows equal; it must be exactly one."""
    encoder: Any = load_encoder("open_clip:tiny", weights)
    mean, std = encoder.preprocess.mean, encoder.preprocess.std
    x = images(4)
    rows = encoder.encode_images(x)
    equal = [
        torch.allclose(rows, clip_rows(x, quick=quick, mean=mean, std=std), rtol=0, atol=1e-6)
        for quick in (False, True)
    ]
    assert sum(equal) == 1
    assert encoder.quick_gelu == equal[1]
    return equal[1]


def test_the_tag_named_with_a_file_decides(monkeypatch: pytest.MonkeyPatch, clip_file: str) -> None:
    register(monkeypatch, openai=QUICK, laion=PLAIN)
    assert is_quick(f"openai={clip_file}")
    assert not is_quick(f"laion={clip_file}")
    x = images(2)
    rows = load_encoder("open_clip:tiny", f"openai={clip_file}").encode_images(x)
    assert_rows(rows, clip_rows(x, quick=True, mean=MEAN, std=STD))


def test_a_file_of_unknown_training_follows_the_name_and_warns(
    monkeypatch: pytest.MonkeyPatch, clip_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    register(monkeypatch, openai=QUICK, laion=PLAIN)
    assert not is_quick(clip_file)
    assert f"its tag with TAG={clip_file} (tags: openai, laion)" in caplog.text


def test_a_file_in_a_tags_repository_has_its_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clip_file: str
) -> None:
    register(monkeypatch, laion=PLAIN, metaclip=QUICK)
    folder = tmp_path / "models--me--tiny-quick" / "snapshots" / "1"
    folder.mkdir(parents=True)
    assert is_quick(str(Path(clip_file).rename(folder / "open_clip_model.safetensors")))


def test_a_file_with_the_name_of_a_download_has_its_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clip_file: str
) -> None:
    quick = {"quick_gelu": True, "url": "https://example.org/tiny_quick-12345678.safetensors"}
    register(monkeypatch, laion=PLAIN, other=quick)
    assert is_quick(str(Path(clip_file).rename(tmp_path / "tiny_quick-12345678.safetensors")))


def test_a_file_has_the_training_all_tags_share(
    monkeypatch: pytest.MonkeyPatch, clip_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    register(monkeypatch, cc12m=QUICK, yfcc=QUICK)
    assert is_quick(clip_file)
    assert "its training is not known" not in caplog.text


def test_half_precision_values_are_openais(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    register(monkeypatch, openai=QUICK, laion=PLAIN)
    state = {
        k: v if "embedding" in k or v.dim() < 2 else v.half().float()
        for k, v in clip_state().items()
    }
    file = tmp_path / "model.safetensors"
    save_file(state, file)
    assert load_encoder("open_clip:tiny", str(file)).quick_gelu  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "RN50"])
def test_openais_models_get_quick_gelu_under_their_plain_names(name: str, clip_file: str) -> None:
    assert not open_clip.get_model_config(name).get("quick_gelu")  # the pitfall
    assert locate(name, f"openai={clip_file}").settings["quick_gelu"]


def test_the_activation_is_in_the_fingerprint(
    monkeypatch: pytest.MonkeyPatch, clip_file: str, tmp_path: Path
) -> None:
    register(monkeypatch, openai=QUICK, laion=PLAIN)
    quick = load_encoder("open_clip:tiny", f"openai={clip_file}").fingerprint
    plain = load_encoder("open_clip:tiny", f"laion={clip_file}").fingerprint
    save_file(clip_state(1), tmp_path / "other.safetensors")
    other = load_encoder("open_clip:tiny", f"laion={tmp_path}/other.safetensors").fingerprint
    again = load_encoder("open_clip:tiny", f"laion={clip_file}").fingerprint
    assert len({quick, plain, other}) == 3
    assert plain == again


class _Node(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def torchscript(file: Path) -> str:
    """Save the tiny CLIP as a TorchScript archive, the form of OpenAI's own files."""
    root = _Node()
    for name, value in clip_state().items():
        *path, leaf = name.split(".")
        node: nn.Module = root
        for part in path:
            if part not in dict(node.named_children()):
                node.add_module(part, _Node())
            node = node.get_submodule(part)
        node.register_parameter(leaf, nn.Parameter(value.clone(), requires_grad=False))
    root.register_buffer("context_length", torch.tensor(77))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(root).save(str(file))
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_openais_own_file_is_known_by_its_hash(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    digest = torchscript(tmp_path / "tiny.pt")
    url = f"https://example.org/clip/models/{digest}/tiny.pt"
    register(monkeypatch, laion=PLAIN, openai={"quick_gelu": True, "url": url})
    assert is_quick(str((tmp_path / "tiny.pt").rename(tmp_path / "renamed.pt")))


def test_other_torchscript_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torchscript(tmp_path / "tiny.pt")
    register(monkeypatch, openai={"quick_gelu": True, "url": "https://example.org/0/tiny.pt"})
    for weights in (f"{tmp_path}/tiny.pt", f"openai={tmp_path}/tiny.pt"):
        with pytest.raises(EncoderError, match="is TorchScript, which can hold code"):
            load_encoder("open_clip:tiny", weights)


def test_a_tag_in_the_hubs_cache_needs_no_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clip_file: str
) -> None:
    register(monkeypatch, openai=QUICK)
    assert cached_clip_weights("tiny", "openai") is None
    repository = tmp_path / "hub" / "models--me--tiny-quick"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    Path(clip_file).rename(repository / "snapshots" / "abc" / "open_clip_model.safetensors")
    check_encoder("open_clip:tiny")
    encoder = load_encoder("open_clip:tiny")
    x = images(2)
    assert_rows(encoder.encode_images(x), clip_rows(x, quick=True, mean=MEAN, std=STD))
    assert str(cached_clip_weights("tiny", "openai")).endswith("abc/open_clip_model.safetensors")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_tag_is_downloaded_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: str
) -> None:
    register(monkeypatch, some={"quick_gelu": True, "url": f"{server}/tiny.pt"})
    torch.save(clip_state(), tmp_path / "served" / "tiny.pt")
    check_encoder("open_clip:tiny", "some")
    assert not (tmp_path / "home").exists()  # checking downloads nothing
    x = images(2)
    rows = load_encoder("open_clip:tiny", "some").encode_images(x)
    assert_rows(rows, clip_rows(x, quick=True, mean=MEAN, std=STD))
    (tmp_path / "served" / "tiny.pt").unlink()
    assert torch.equal(load_encoder("open_clip:tiny").encode_images(x), rows)


def test_a_download_that_fails_names_the_offline_way(
    monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    register(monkeypatch, some={"url": f"{server}/gone.pt"})
    with pytest.raises(EncoderError, match=r"got HTTPError.*404.*--encoder-weights FILE"):
        load_encoder("open_clip:tiny", "some")
