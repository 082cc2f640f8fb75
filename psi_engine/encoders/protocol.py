"""What every encoder offers, and the check that a user's own one does."""

from __future__ import annotations

from typing import Any, Literal, Protocol, Self, get_args

import torch
from torch import Tensor

from psi_engine.errors import EncoderError

Text = Literal["encoder", "fixed", "none"]
Interpolation = Literal["bilinear", "bicubic"]

_ATTRIBUTES: dict[str, type] = {
    "name": str,
    "dim": int,
    "image_size": int,
    "interpolation": str,
    "fingerprint": str,
    "text": str,
}
_UNIT_TOLERANCE = 1e-3


class Encoder(Protocol):
    """Images, and where it can also texts, as unit vectors of one space.

    name : what it is, for people.
    dim : length of an embedding.
    image_size : side S of the square images it takes.
    interpolation : how crops are resized to S.
    fingerprint : hex digest of weights, architecture and preprocessing; two encoders with equal
    fingerprints give equal embeddings.
    text : ``encoder`` (any text), ``fixed`` (named concepts with embeddings of their own) or
    ``none`` (D is unavailable).
    concepts, concept_embeddings : names and float32 (concepts, dim) unit rows where ``text`` is
    ``fixed``; else None.
    """

    name: str
    dim: int
    image_size: int
    interpolation: Interpolation
    fingerprint: str
    text: Text
    concepts: tuple[str, ...] | None
    concept_embeddings: Tensor | None

    def encode_images(self, images: Tensor) -> Tensor:
        """Unit embeddings, float32 (n, dim), of float32 images (n, 3, S, S) in [0, 1].

        The images are already S × S; the encoder normalises them itself. A row depends on its
        own image only, not on how many come with it.
        """
        ...

    def encode_texts(self, texts: list[str]) -> Tensor:
        """Unit embeddings, float32 (texts, dim); only where ``text`` is ``encoder``."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Move the weights to a device; returns itself."""
        ...


def check_protocol(encoder: Any, spec: str) -> Encoder:
    """Check an object against :class:`Encoder`, with one probe image and one probe text.

    Raises
    ------
    EncoderError
        Naming everything it lacks, or the first output that is not what the protocol says.
    """
    faults = [_attribute_fault(encoder, name, kind) for name, kind in _ATTRIBUTES.items()]
    for name, choices in (("text", get_args(Text)), ("interpolation", get_args(Interpolation))):
        value = getattr(encoder, name, None)
        if isinstance(value, str) and value not in choices:
            faults.append(f"{name} = {value!r}, not one of {', '.join(choices)}")
    text = getattr(encoder, "text", None)
    methods = ["encode_images", "to"] + ["encode_texts"] * (text == "encoder")
    faults += [f"no method {m}" for m in methods if not callable(getattr(encoder, m, None))]
    if text == "fixed":
        faults.append(_concepts_fault(encoder))
    found = [fault for fault in faults if fault]
    if not found:
        found = [fault for fault in _output_faults(encoder) if fault]
    if found:
        raise EncoderError(
            f"{spec} does not make an encoder",
            got=f"{type(encoder).__name__}: {'; '.join(found)}",
            expected="the protocol of psi_engine.encoders.Encoder",
            fix="mend the factory or the class it builds",
        )
    checked: Encoder = encoder
    return checked


def _attribute_fault(encoder: Any, name: str, kind: type) -> str | None:
    if not hasattr(encoder, name):
        return f"no attribute {name} ({kind.__name__})"
    value = getattr(encoder, name)
    if not isinstance(value, kind):
        return f"{name} is a {type(value).__name__}, not a {kind.__name__}"
    if value in ("", 0) or (isinstance(value, int) and value < 1):
        return f"{name} is {value!r}"
    return None


def _concepts_fault(encoder: Any) -> str | None:
    names = getattr(encoder, "concepts", None)
    rows = getattr(encoder, "concept_embeddings", None)
    if not names or not isinstance(rows, Tensor):
        return "text is 'fixed' but concepts or concept_embeddings is missing"
    if len(names) < 2:
        return "fewer than 2 concepts"
    return _rows_fault("concept_embeddings", rows, (len(names), getattr(encoder, "dim", -1)))


def _output_faults(encoder: Any) -> list[str | None]:
    side = encoder.image_size
    image = torch.linspace(0, 1, 3 * side * side).view(1, 3, side, side)
    faults = [_rows_fault("encode_images(…)", encoder.encode_images(image), (1, encoder.dim))]
    if encoder.text == "encoder":
        rows = encoder.encode_texts(["a striped pattern"])
        faults.append(_rows_fault("encode_texts(…)", rows, (1, encoder.dim)))
    return faults


def _rows_fault(what: str, rows: Any, shape: tuple[int, int]) -> str | None:
    if not isinstance(rows, Tensor):
        return f"{what} is a {type(rows).__name__}, not a Tensor"
    if tuple(rows.shape) != shape:
        return f"{what} has shape {tuple(rows.shape)}, not {shape}"
    if rows.dtype != torch.float32:
        return f"{what} is {rows.dtype}, not torch.float32"
    if not bool(((rows.norm(dim=1) - 1).abs() < _UNIT_TOLERANCE).all()):
        return f"{what} has rows that are not of unit length"
    return None
