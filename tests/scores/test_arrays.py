"""Embeddings from any library, in any dtype and layout, read where they are."""

import numpy as np
import pytest
import torch

from psi_engine.config import ScoreConfig
from psi_engine.errors import InputError
from psi_engine.scores.arrays import as_tensor, row_slices
from psi_engine.scores.score import score

Z = torch.randn(3, 8, 6, generator=torch.Generator().manual_seed(0))
QUICK = {"config": ScoreConfig(replicates=3)}
WANT = score(Z, **QUICK).psi


class Capsule:
    """An old producer: the capsule and nothing else."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)


class Producer(Capsule):
    """Any library's array: nothing but the DLPack protocol."""

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


class Refusing(Producer):
    def __dlpack__(self, **options):
        raise BufferError("not exportable")


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def spread(array):
    """The same numbers with gaps between them."""
    wide = np.zeros((*array.shape, 3), array.dtype)
    wide[..., 1] = array
    return wide[..., 1]


def packed(array):
    """The same numbers as a field of records of five bytes."""
    records = np.zeros(array.shape, [("x", "f4"), ("y", "u1")])
    records["x"] = array
    return records["x"]


FORMS = {
    "numpy": Z.numpy(),
    "read-only": read_only(Z.numpy()),
    "negative strides": Z.numpy()[:, :, ::-1].copy()[:, :, ::-1],
    "gaps": spread(Z.numpy()),
    "fortran order": np.asfortranarray(Z.numpy()),
    "odd strides": packed(Z.numpy()),
    "transposed torch": Z.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "numpy float64": Z.double().numpy(),
    "torch float64": Z.double(),
    "parameter": torch.nn.Parameter(Z.clone()),
    "computed from a parameter": torch.nn.Parameter(Z.clone()) * 1,
    "dlpack": Producer(Z),
    "dlpack of numpy": Producer(Z.numpy()),
    "dlpack of read-only numpy": Producer(read_only(Z.numpy())),
    "capsule only": Capsule(Z),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_every_form_scores_alike_and_is_not_modified(form):
    before = Z.clone()
    got = score(form, **QUICK)
    assert torch.equal(got.psi, WANT)
    assert not got.psi.requires_grad
    assert torch.equal(Z, before)


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2],
    ids=str,
)
def test_a_narrow_dtype_scores_as_the_same_numbers_in_float32(dtype):
    narrow = Z.to(dtype)
    want = score(narrow.to(torch.float32), pool=narrow.to(torch.float32)[0].repeat(9, 1), **QUICK)
    got = score(narrow, pool=narrow[0].repeat(9, 1), **QUICK)
    assert torch.equal(got.psi, want.psi)
    assert torch.equal(got.assignments, want.assignments)
    if dtype == torch.float16:
        assert torch.equal(score(narrow.numpy(), **QUICK).psi, score(narrow, **QUICK).psi)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_labels_of_any_integer_dtype_are_the_same_labels(dtype):
    labels = np.arange(24).reshape(3, 8) % 3
    want = score(Z, labels=labels, **QUICK)
    assert torch.equal(score(Z, labels=labels.astype(dtype), **QUICK).q, want.q)


def test_a_file_mapped_into_memory_is_read_where_it_is(tmp_path):
    np.save(tmp_path / "z.npy", Z.numpy())
    mapped = np.load(tmp_path / "z.npy", mmap_mode="r")
    assert as_tensor("z", mapped).data_ptr() == mapped.ctypes.data
    assert torch.equal(score(mapped, **QUICK).psi, WANT)


@pytest.mark.parametrize("form", ["numpy", "gaps", "fortran order", "transposed torch", "dlpack"])
def test_nothing_is_copied(form):
    value = FORMS[form]
    address = getattr(value, "_array", value)
    address = address.data_ptr() if isinstance(address, torch.Tensor) else address.ctypes.data
    assert as_tensor("z", value).data_ptr() == address


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array(["a"]), "z has an unsupported dtype; got <U1; expected a real"),
        (np.zeros(3, np.longdouble), "z has an unsupported dtype"),
        (np.zeros(3, object), "z has an unsupported dtype"),
        (np.zeros(3, ">f4"), r"foreign byte order; got >f4; .* x.astype\(x.dtype.newbyteorder"),
        (np.ma.masked_array(np.zeros(3), [1, 0, 0]), "masked array, whose mask would be lost"),
        (Refusing(Z), "cannot be read through DLPack; got Refusing: not exportable; .*NumPy"),
        (Z.to_sparse(), "z is not a dense tensor; got torch.sparse_coo"),
        (Z.to("meta"), "z is not a dense tensor; got .* on meta"),
        ([1.0], r"z is not an array; got list; .*numpy.asarray"),
    ],
)
def test_what_is_no_usable_array_is_refused(value, message):
    with pytest.raises(InputError, match=message):
        as_tensor("z", value)


def test_foreign_byte_order_converted_as_the_error_says_is_taken():
    foreign = Z.numpy().astype(">f4")
    with pytest.raises(InputError, match="embeddings is in foreign byte order"):
        score(foreign, **QUICK)
    assert torch.equal(score(foreign.astype(foreign.dtype.newbyteorder("=")), **QUICK).psi, WANT)


def test_slices_cover_the_rows_once():
    for rows, each in ((10, 1), (10, 1 << 22), (7, 1 << 21), (0, 5), (3, 1 << 40)):
        seen = [i for part in row_slices(rows, each) for i in range(part.start, part.stop)]
        assert seen == list(range(rows))
    assert len(list(row_slices(8, 1 << 20))) == 2
