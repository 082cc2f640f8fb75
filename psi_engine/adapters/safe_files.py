"""Files of unknown origin as plain arrays: nothing in them is ever executed.

Pickles can run code when they are loaded. ``.npy`` and ``.npz`` are read without pickles, ``.pt``
with ``weights_only=True``, safetensors and CSV hold numbers only. A file of a few bytes can claim
any size: what would not fit into the free memory is refused before it is unpacked.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from psi_engine.artifacts import atomic
from psi_engine.errors import InputError, PsiEngineError
from psi_engine.ops.backend import memory_budget

_BUDGETS = 4  # a budget is a quarter of the free memory
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_KINDS = {"ids": "iu", "numbers": "fiu"}


@contextlib.contextmanager
def _told(path: Path, expected: str) -> Iterator[None]:
    """Turn whatever a reader raises into one error that names the file."""
    if not path.is_file():
        raise InputError("a file is not there", got=str(path), expected=expected)
    try:
        yield
    except PsiEngineError:
        raise
    except Exception as error:  # every format has its own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{path} cannot be read",
            got=lines[0],
            expected=expected,
            fix="copy it again if it was cut off; a pickle that could run code is never opened",
        ) from error


def require_room(path: Path, size: int, what: str) -> None:
    """Raise where so many bytes, as a file claims to hold, are more than there is memory free."""
    free = _BUDGETS * memory_budget("cpu")
    if size > free:
        raise InputError(
            f"{path.name} does not fit into the memory",
            got=f"{what}, {size / 2**30:.3g} GiB",
            expected=f"at most the free {free / 2**30:.3g} GiB",
            fix="use a machine with more memory; do not open files whose origin you do not trust",
        )


def _require_unpacked(path: Path) -> None:
    """Raise where an archive unpacks to more than fits, or an array in it claims more than it has.

    A ``.pt`` of torch is an archive as well.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        require_room(path, sum(member.file_size for member in members), "unpacked")
        for member in (m for m in members if m.filename.endswith(".npy")):
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                header = _HEADERS.get(version, np.lib.format.read_array_header_1_0)
                shape, _, dtype = header(file)
                size = math.prod(shape) * dtype.itemsize
                if not dtype.hasobject and size != member.file_size - file.tell():
                    raise ValueError(
                        f"{member.filename} claims {size} bytes and "
                        f"holds {member.file_size - file.tell()}"
                    )


def read_npy(path: Path, what: str, ndim: int, hold: str = "numbers") -> np.ndarray:
    """Map a ``.npy`` array; ``hold`` is ``ids`` (integers) or ``numbers``.

    Raises
    ------
    InputError
        The file is missing, cut off, holds objects, or an array of another rank or dtype.
    """
    expected = f"a .npy array of {what}"
    with _told(path, expected):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    _require(path, array.dtype.kind in _KINDS[hold], array.dtype, f"{what}: {hold}")
    _require(path, array.ndim == ndim, f"shape {array.shape}", f"{what} with {ndim} axes")
    return array


def read_npz(path: Path, what: str, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read the named arrays of a ``.npz`` archive.

    Raises
    ------
    InputError
        The file is missing or broken, lacks one of them, or does not fit into the memory.
    """
    with _told(path, f"a .npz of {what}"):
        _require_unpacked(path)
    # The file is opened here: numpy leaves one that is no archive open.
    with (
        _told(path, f"a .npz of {what}"),
        open(path, "rb") as file,
        np.load(file, allow_pickle=False) as archive,
    ):
        missing = [name for name in names if name not in archive]
        _require(path, not missing, ", ".join(archive), f"arrays {', '.join(names)}")
        return {name: archive[name] for name in names}


def read_pt(path: Path, what: str) -> Tensor:
    """Read a ``.pt`` file that holds one (rows, columns) tensor of numbers, as float32.

    Raises
    ------
    InputError
        The file is missing, broken or holds anything that only code could build, or does not
        fit into the memory.
    """
    with _told(path, f"a tensor of {what}, without code"):
        _require_unpacked(path)
    with _told(path, f"a tensor of {what}, without code"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old formats; what is read is checked below
        value = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(value, Tensor):
        raise InputError(
            f"{path} holds no tensor", got=type(value).__name__, expected=f"a tensor of {what}"
        )
    _require(path, value.ndim == 2 and len(value) > 0, tuple(value.shape), f"(rows, …): {what}")
    _require(path, not (value.is_complex() or value.dtype == torch.bool), value.dtype, "numbers")
    require_room(path, 4 * value.numel(), f"a tensor {tuple(value.shape)}")
    return value.detach().to(torch.float32)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read every tensor of a safetensors file, and its metadata.

    Raises
    ------
    InputError
        The file is missing, cut off or another format.
    """
    with _told(path, "a safetensors file"), safe_open(path, framework="pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return found, dict(file.metadata() or {})


def read_csv(path: Path, what: str) -> np.ndarray:
    """Read a table of numbers without a header, float64 (rows, columns).

    Raises
    ------
    InputError
        The file is missing, empty, ragged or holds words.
    """
    with _told(path, f"numbers between commas: {what}"), warnings.catch_warnings():
        warnings.simplefilter("error")  # loadtxt warns of empty files
        return np.loadtxt(path, delimiter=",", ndmin=2)


def require_finite(path: Path, values: Tensor, what: str) -> None:
    """Raise where a (rows, columns) tensor holds NaN or infinity."""
    broken = ~torch.isfinite(values)
    if bool(broken.any()):
        row, column = torch.nonzero(broken)[0].tolist()
        raise InputError(
            f"{path.name}: {what} are not all finite",
            got=f"{float(values[row, column])} in row {row}, column {column}",
            expected="finite numbers",
            fix="find out why the network puts out NaN or infinity, and make the file again",
        )


def write_npy(path: Path, array: np.ndarray) -> None:
    """Write a ``.npy`` array atomically."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, np.ascontiguousarray(array), allow_pickle=False)


def write_pt(path: Path, tensor: Tensor) -> None:
    """Write one tensor atomically, as ``torch.load`` reads it."""
    with atomic(path) as temporary:
        torch.save(tensor.contiguous().clone(), temporary)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, table: np.ndarray, form: str) -> None:
    """Write a table of numbers without a header, atomically."""
    buffer = io.StringIO()
    np.savetxt(buffer, table, delimiter=",", fmt=form)
    write_text(path, buffer.getvalue())


def _require(path: Path, good: bool, got: object, expected: str) -> None:
    if not good:
        raise InputError(
            f"{path.name} is not what it should be", got=got, expected=expected,
            fix="give the file that the tool wrote",
        )  # fmt: skip
