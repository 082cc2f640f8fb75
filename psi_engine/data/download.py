"""Tiny-ImageNet from its authors' server, into a cache."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from psi_engine.errors import DataError
from psi_engine.network import unreachable_reason
from psi_engine.types import Progress

TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_IMAGENET_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"

_FOLDER = "tiny-imagenet-200"
_CHUNK = 1 << 18
_ATTEMPTS = 4
_TIMEOUT = (5.0, 30.0)  # seconds to connect, and between two pieces of data
_OFFLINE = "fetch {url} where there is a network, unpack it, and give its folder with --data PATH"


def cache_folder() -> Path:
    """Where downloads are kept: ``PSI_ENGINE_CACHE``, or ``~/.cache/psi-engine``."""
    chosen = os.environ.get("PSI_ENGINE_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "psi-engine"


def cached_tiny_imagenet() -> Path | None:
    """The folder of a finished download, or None."""
    folder = cache_folder() / _FOLDER
    return folder if folder.is_dir() else None


def download_tiny_imagenet(progress: Progress | None = None) -> Path:
    """Download, check and unpack Tiny-ImageNet, once.

    Parameters
    ----------
    progress : callable, optional
        Called as ``progress("download", bytes, total bytes)``, then ``progress("unpack", …)``.

    Returns
    -------
    Path
        The unpacked folder, in Tiny-ImageNet's layout. It appears only when it is complete.

    Raises
    ------
    DataError
        If the server cannot be reached or the file is not the one its checksum names.

    Notes
    -----
    A broken transfer is taken up where it stopped, within the call and by the next one. The
    checksum is the MD5 of the archive of 248,100,043 bytes.
    """
    done = cached_tiny_imagenet()
    if done is not None:
        return done
    cache = cache_folder()
    target = cache / _FOLDER
    try:
        cache.mkdir(parents=True, exist_ok=True)
        archive = _fetch(TINY_IMAGENET_URL, TINY_IMAGENET_MD5, cache, progress)
        _unpack(archive, target, progress)
        archive.unlink()
    except OSError as error:
        raise DataError(
            f"Tiny-ImageNet cannot be kept in {cache}",
            got=str(error),
            fix="free some space (1 GB), or set PSI_ENGINE_CACHE to another folder",
        ) from error
    return target


def require_network(url: str | None = None) -> None:
    """Raise a DataError with the offline way when Tiny-ImageNet's server cannot be reached."""
    url = url or TINY_IMAGENET_URL
    reason = unreachable_reason(url)
    if reason is not None:
        raise DataError(
            "Tiny-ImageNet cannot be downloaded", got=reason, fix=_OFFLINE.format(url=url)
        )


def _fetch(url: str, md5: str, cache: Path, progress: Progress | None) -> Path:
    import pooch

    name = f"{_FOLDER}.zip"
    part = cache / f"{name}.part"

    def download(url: str, output: str, _: object) -> None:
        require_network(url)
        _transfer(url, part, progress)
        part.replace(output)

    pooch.get_logger().setLevel("WARNING")
    try:
        return Path(pooch.retrieve(url, f"md5:{md5}", fname=name, path=cache, downloader=download))
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            "the downloaded Tiny-ImageNet is not the expected file",
            got=f"another checksum from {url}",
            expected=f"MD5 {md5}",
            fix="try again; if it stays so, " + _OFFLINE.format(url="the archive elsewhere"),
        ) from error


def _transfer(url: str, part: Path, progress: Progress | None) -> None:
    """Fetch ``url`` into ``part``, continuing what is there."""
    import requests

    reason = ""
    for _ in range(_ATTEMPTS):
        have = part.stat().st_size if part.exists() else 0
        headers = {"Range": f"bytes={have}-"} if have else {}
        try:
            with requests.get(url, stream=True, timeout=_TIMEOUT, headers=headers) as answer:
                if answer.status_code == requests.codes.requested_range_not_satisfiable:
                    return  # it was complete, or it is not this file: the checksum tells
                answer.raise_for_status()
                resumed = answer.status_code == requests.codes.partial_content
                done = have if resumed else 0
                total = done + int(answer.headers.get("Content-Length", 0))
                with part.open("ab" if resumed else "wb") as stream:
                    for chunk in answer.iter_content(_CHUNK):
                        stream.write(chunk)
                        done += len(chunk)
                        if progress is not None:
                            progress("download", done, max(total, done))
            if done >= total:
                return
            reason = f"the transfer ended at {done} of {total} bytes"
        except requests.HTTPError as error:
            reason = str(error)
            break
        except requests.RequestException as error:
            reason = str(error)
    raise DataError(
        "the download of Tiny-ImageNet broke off",
        got=reason,
        fix="run the same command again to continue it, or " + _OFFLINE.format(url=url),
    )


def _unpack(archive: Path, target: Path, progress: Progress | None) -> None:
    """Unpack beside the target and rename, so that a killed run leaves no half of it."""
    scratch = Path(tempfile.mkdtemp(prefix=".unpack-", dir=target.parent))
    try:
        with zipfile.ZipFile(archive) as content:
            members = content.infolist()
            for number, member in enumerate(members):
                content.extract(member, scratch)
                if progress is not None and (number % 1000 == 0 or number + 1 == len(members)):
                    progress("unpack", number + 1, len(members))
        inner = scratch / _FOLDER
        try:
            inner.rename(target)
        except OSError:
            if not target.is_dir():  # else another run has just finished the same
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
