"""``psi-engine run`` with nothing but a model's name: weights and images come from a server."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import models
from typer.testing import CliRunner

import psi_engine as psi
from psi_engine.cli import app
from psi_engine.data import download
from tests import toy

NET = "shufflenet_v2_x0_5"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        body = self.server.files[self.path]  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def weights() -> bytes:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = models.get_model(NET, weights=None)
    stream = io.BytesIO()
    torch.save(net.state_dict(), stream)
    return stream.getvalue()


def tiny_imagenet() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number in range(24):
            wnid = f"n0{number % 3}"
            image = io.BytesIO()
            toy.draw(number, number % 3).save(image, "JPEG")
            name = f"tiny-imagenet-200/train/{wnid}/images/{wnid}_{number}.JPEG"
            archive.writestr(name, image.getvalue())
        words = "".join(f"n0{i}\t{name}\n" for i, name in enumerate(toy.CLASSES))
        archive.writestr("tiny-imagenet-200/words.txt", words)
    return stream.getvalue()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    net, images = weights(), tiny_imagenet()
    checkpoint = f"/{NET}-{hashlib.sha256(net).hexdigest()[:8]}.pth"
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.files = {checkpoint: net, "/tiny.zip": images}  # type: ignore[attr-defined]
        made.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=made.serve_forever, args=(0.02,))
        thread.start()
        url = f"http://127.0.0.1:{made.server_address[1]}"
        monkeypatch.setenv("PSI_ENGINE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
        monkeypatch.setattr(download, "TINY_IMAGENET_URL", url + "/tiny.zip")
        monkeypatch.setattr(download, "TINY_IMAGENET_MD5", hashlib.md5(images).hexdigest())
        entry = models.get_model_weights(NET).DEFAULT.value
        original = entry.url
        object.__setattr__(entry, "url", url + checkpoint)  # a frozen dataclass
        yield made
        object.__setattr__(entry, "url", original)
        made.shutdown()
        thread.join()


def call(out: Path, **changes: str) -> Any:
    options = {"model": NET, "layers": "conv5", "channels": "conv5:0-7", "out": str(out)}
    options |= {"encoder": "tests.toy:encoder", "image-size": "64", "patch": "32", "top-k": "12"}
    options |= {"replicates": "20", "device": "cpu"} | changes
    pairs = [part for name, value in options.items() for part in (f"--{name}", value)]
    return CliRunner().invoke(app, ["run", "--json", *pairs])


def test_weights_and_images_are_downloaded_once(
    server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    done = call(tmp_path / "run")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["layers"][0]["channels"] == 8
    run = psi.open_run(tmp_path / "run")
    assert run.manifest["model"]["weights"] == "default"
    assert run.manifest["stages"]["mine"]["images"] == 24
    assert run.manifest["stages"]["score"]["vocabulary"].startswith("3 class names")
    asked = list(server.asked)  # type: ignore[attr-defined]
    assert len(asked) == 2
    again = call(tmp_path / "run2")
    assert again.exit_code == 0, again.stderr
    assert server.asked == asked  # type: ignore[attr-defined]
    tables = [(tmp_path / name / "channels.parquet").read_bytes() for name in ("run", "run2")]
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": "conv55"}, "conv5"),
        ({"channels": "conv5:9999"}, "9999"),
        ({"encoder": "open_clip:ViT-B-33"}, "ViT-B-3"),
        ({"concepts": "no.txt"}, "no.txt"),
    ],
)
def test_mistakes_are_refused_before_any_download(
    server: ThreadingHTTPServer, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    if "layers" in changes:
        changes = {**changes, "channels": "conv55:0-7"}
    done = call(tmp_path / "run", **changes)
    assert done.exit_code == 2, done.stderr
    assert message in done.stderr
    assert server.asked == []  # type: ignore[attr-defined]
    assert not (tmp_path / "run").exists()


def test_wrong_bytes_are_refused(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    files = server.files  # type: ignore[attr-defined]
    files["/tiny.zip"] = files["/tiny.zip"][:-1] + b"!"
    done = call(tmp_path / "run")
    assert done.exit_code == 2, done.stderr
    assert "--data PATH" in done.stderr or "checksum" in done.stderr.lower()
