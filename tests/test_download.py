"""Tiny-ImageNet's download against a server on this machine that misbehaves in every way."""

from __future__ import annotations

import hashlib
import io
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from psi_engine.data import cached_tiny_imagenet, download, needs_download, open_source
from psi_engine.errors import DataError
from psi_engine.network import unreachable_reason


def archive() -> bytes:
    folder = "tiny-imagenet-200"
    stream, image = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(image, "JPEG")
    with zipfile.ZipFile(stream, "w") as content:
        for wnid in ("n01", "n02"):
            for i in range(3):
                name = f"{folder}/train/{wnid}/images/{wnid}_{i}.JPEG"
                content.writestr(name, image.getvalue())
        content.writestr(f"{folder}/words.txt", "n01\tgoldfish, Carassius\nn02\tnewt\n")
        content.writestr(f"{folder}/wnids.txt", "n02\nn01\n")
    return stream.getvalue()


class Server(ThreadingHTTPServer):
    """Serves ``content`` once per behaviour: ok, cut (after so many bytes), status, length lied."""

    content = archive()
    cuts: list[int]
    lie = 0
    status = 200
    ranges = True
    requests: list[str | None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/tiny-imagenet-200.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append(asked)
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        body = self.server.content[start:]
        if asked and not body:
            self.send_error(416)
            return
        resumed = bool(asked) and self.server.ranges
        if not resumed:
            body = self.server.content
        self.send_response(206 if resumed else 200)
        self.send_header("Content-Length", str(len(body) + self.server.lie))
        self.end_headers()
        cut = self.server.cuts.pop(0) if self.server.cuts else len(body)
        self.wfile.write(body[:cut])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as made:
        made.cuts, made.requests = [], []
        thread = threading.Thread(target=made.serve_forever, args=(0.02,))
        thread.start()
        monkeypatch.setenv("PSI_ENGINE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(download, "_CHUNK", 100)  # what of a chunk has come is lost with it
        monkeypatch.setattr(download, "TINY_IMAGENET_URL", made.url)
        monkeypatch.setattr(download, "TINY_IMAGENET_MD5", hashlib.md5(made.content).hexdigest())
        yield made
        made.shutdown()
        thread.join()


def test_download_unpacks_once(server: Server, tmp_path: Path) -> None:
    assert needs_download("tiny-imagenet")
    assert not needs_download("elsewhere")
    reports: list[tuple[str, int, int]] = []
    source = open_source("tiny-imagenet", progress=lambda *report: reports.append(report))
    assert len(source) == 6
    assert source.class_names == ("goldfish", "newt")
    size = len(server.content)
    assert ("download", size, size) in reports
    assert reports[-1] == ("unpack", 8, 8)
    folder = tmp_path / "cache" / "tiny-imagenet-200"
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [folder.name]
    assert cached_tiny_imagenet() == folder
    assert not needs_download("tiny-imagenet")
    assert open_source("tiny-imagenet", max_images=4).labels is not None
    assert server.requests == [None]


def test_a_transfer_that_breaks_off_is_taken_up_again(server: Server) -> None:
    server.cuts = [300, 200]
    assert len(open_source("tiny-imagenet")) == 6
    assert server.requests == [None, "bytes=300-", "bytes=500-"]


def test_a_server_that_knows_no_ranges_starts_over(server: Server) -> None:
    server.cuts = [300]
    server.ranges = False
    assert len(open_source("tiny-imagenet")) == 6
    assert server.requests == [None, "bytes=300-"]


def test_a_transfer_that_keeps_breaking_off_is_continued_by_the_next_run(server: Server) -> None:
    server.cuts = [100, 100, 100, 100]
    with pytest.raises(DataError, match=r"broke off; got .*run the same command again to continue"):
        open_source("tiny-imagenet")
    assert cached_tiny_imagenet() is None
    assert len(open_source("tiny-imagenet")) == 6
    assert server.requests[-1] == "bytes=400-"


def test_a_finished_but_unchecked_part_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "cache" / "tiny-imagenet-200.zip.part"
    part.parent.mkdir()
    part.write_bytes(server.content)
    assert len(open_source("tiny-imagenet")) == 6
    assert server.requests == [f"bytes={len(server.content)}-"]


def test_wrong_bytes_are_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    right, server.content = server.content, b"a page that says: moved" * 100
    with pytest.raises(DataError, match=r"not the expected file; got another checksum .*MD5"):
        open_source("tiny-imagenet")
    assert list((tmp_path / "cache").iterdir()) == []
    server.content = right
    assert len(open_source("tiny-imagenet")) == 6


def test_a_length_that_is_too_large_is_told_and_what_came_is_kept(server: Server) -> None:
    server.lie = 70
    with pytest.raises(DataError, match=r"broke off; got .*run the same command again to continue"):
        open_source("tiny-imagenet")
    whole = len(server.content) // 100 * 100
    assert server.requests == [None, *[f"bytes={whole}-"] * 3]
    server.lie = 0
    assert len(open_source("tiny-imagenet")) == 6
    assert server.requests[-1] == f"bytes={whole}-"


def test_a_length_that_is_too_small_is_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    server.lie = -70
    with pytest.raises(DataError, match=r"not the expected file; got another checksum .*MD5"):
        open_source("tiny-imagenet")
    assert list((tmp_path / "cache").iterdir()) == []
    server.lie = 0
    assert len(open_source("tiny-imagenet")) == 6


def test_a_missing_file_is_one_error(server: Server) -> None:
    server.status = 404
    with pytest.raises(DataError, match=r"broke off; got 404 .*--data PATH"):
        open_source("tiny-imagenet")
    assert len(server.requests) == 1


def test_no_network_is_one_error_at_once(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/tiny.zip"
        monkeypatch.setattr(download, "TINY_IMAGENET_URL", url)
        started = time.perf_counter()
        with pytest.raises(
            DataError, match=r"cannot be downloaded; got 127.*--data PATH"
        ) as caught:
            open_source("tiny-imagenet")
        assert time.perf_counter() - started < 3
    assert caught.value.exit_code == 2
    assert url in str(caught.value)


def test_a_cache_that_cannot_be_written(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PSI_ENGINE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"cannot be kept in .*set PSI_ENGINE_CACHE"):
        open_source("tiny-imagenet")


def test_reachability(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unreachable_reason(server.url) is None
    monkeypatch.setenv("https_proxy", server.url)
    assert unreachable_reason("https://nowhere.invalid/file") is None
    monkeypatch.delenv("https_proxy")
    reason = unreachable_reason("https://nowhere.invalid/file")
    assert reason is not None
    assert reason.startswith("nowhere.invalid:443: ")
    answer = threading.Event()

    def hang(*_: Any) -> socket.socket:
        answer.wait(10)
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", hang)
    reason = unreachable_reason(server.url, timeout=0.05)
    answer.set()
    assert reason is not None
    assert reason.endswith("no answer within 0.05 s")
