"""What is searched for: a text, an image or other channels, as directions to look in.

Images and texts of one encoder lie in two separate cones (Liang et al. 2022, arXiv 2203.02053,
"the modality gap"), so raw cosines between them favour rows near the other cone, whatever the
text says. Each side is therefore taken less its own mean: prototypes and images less the pool's,
texts less the vocabulary's.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor

from psi_engine.artifacts import Run
from psi_engine.data.preprocess import Preprocess, decode
from psi_engine.encoders import Encoder, load_encoder
from psi_engine.errors import EncoderError, InputError, RunFolderError
from psi_engine.inputs import Texts, config_of
from psi_engine.ops.backend import resolve_device
from psi_engine.ops.exact import unit_rows
from psi_engine.scores.distinctness import texts_at_level
from psi_engine.standins import IMPORTED
from psi_engine.stored import read_texts
from psi_engine.vocabulary import TEMPLATES, with_article

_SUGGESTED = 5


def reopen_encoder(run: Run, device: str = "auto") -> Encoder:
    """Load the encoder of a run again, and neither its model nor its images.

    Raises
    ------
    EncoderError
        It cannot be loaded, or the run's embeddings came without one.
    RunFolderError
        It is not what it was.
    """
    config = config_of(run)
    if config.encoder == IMPORTED:
        raise EncoderError(
            f"the encoder of {run.path} is not here: its embeddings were imported",
            expected="a query by --like",
        )
    place = resolve_device(device)
    encoder = load_encoder(config.encoder, config.encoder_weights, place, config.concepts)
    held = run.manifest["fingerprints"]["encoder"]
    if encoder.fingerprint != held:
        raise RunFolderError(
            f"{run.path} was made with another encoder",
            got=f"{config.encoder} {encoder.fingerprint[:16]}",
            expected=held[:16],
            fix="put its weights back as they were, or make the run again",
        )
    return encoder


def text_direction(run: Run, text: str, device: str = "auto") -> Tensor:
    """Where a text points, less what all texts of the run's vocabulary have in common.

    Parameters
    ----------
    run : Run
    text : str
        Anything where the encoder has a text side; one of its concepts' names (letter case
        aside) where those are fixed. Put into the run's six templates, which are averaged. A
        concept of the run needs no encoder: its embedding is kept.
    device : str
        Of the encoder.

    Returns
    -------
    Tensor
        float32 (1, dim), a grid unit row.

    Raises
    ------
    InputError
        The text is empty, is none of the fixed names, or is what all texts have in common.
    EncoderError
        The run's encoder has no text side.
    """
    said = " ".join(text.split())
    if not said:
        raise InputError("the query is empty", expected="a word or more")
    kind = run.manifest["encoder"]["text"]
    texts, concepts = read_texts(run.path)
    if kind == "none" or texts.embeddings is None or concepts is None:
        raise EncoderError(
            f"{run.path} cannot be searched by text: its encoder has no text side",
            got=run.manifest["encoder"]["name"],
            fix="search by --like LAYER:CHANNEL or by --image FILE",
        )
    every = _vocabulary(texts)
    place = {name.casefold(): row for row, name in reversed([*enumerate(concepts)])}
    row = place.get(said.casefold())
    if row is not None:
        found = every[row : row + 1]
    elif kind == "fixed":
        raise _unknown_name(run, said, concepts)
    else:
        prompts = [template.format(with_article(said)) for template in TEMPLATES]
        rows = reopen_encoder(run, device).encode_texts(prompts).cpu()
        found = texts_at_level(rows, torch.zeros(len(rows), dtype=torch.int64), "concept", said)[0]
    apart = unit_rows(found.to(torch.float64) - every.to(torch.float64).mean(0))
    if not bool(apart.nonzero.all()):
        raise InputError(
            "the query says what all concepts of the run have in common",
            got=repr(said),
            fix="say something more particular",
        )
    return apart.rows


def _vocabulary(texts: Texts) -> Tensor:
    """One unit row per concept, float32 (concepts, dim), in the order of their ids."""
    assert texts.embeddings is not None
    ids = texts.concept_ids
    ids = torch.arange(len(texts.embeddings)) if ids is None else ids
    return texts_at_level(texts.embeddings, ids, "concept", "the run's texts").rows


def _unknown_name(run: Run, said: str, concepts: Sequence[str]) -> InputError:
    names = {name.casefold(): name for name in concepts}
    low = said.casefold()
    close = [name for key, name in names.items() if low in key]
    close = close or [names[key] for key in get_close_matches(low, names, n=_SUGGESTED)]
    shown = ", ".join(close[:_SUGGESTED])
    return InputError(
        f"the encoder of {run.path} knows fixed names only",
        got=repr(said),
        expected=f"one of its {len(concepts)} concepts"
        + (f", such as {shown}" if shown else f" like {', '.join(concepts[:3])}"),
    )


def image_embedding(run: Run, file: Path, device: str = "auto") -> Tensor:
    """Embed an image with the run's encoder: shorter side at its size, the centre cut out.

    Returns
    -------
    Tensor
        float32 (1, dim), a grid unit row; not centred.

    Raises
    ------
    InputError
        The file is missing or not an image.
    EncoderError, RunFolderError
        As :func:`reopen_encoder`.
    """
    if not file.is_file():
        raise InputError("the image is not there", got=str(file))
    try:
        picture = decode(file.read_bytes())
    except ValueError as error:
        raise InputError("the image cannot be read", got=f"{file}: {error}") from error
    encoder = reopen_encoder(run, device)
    side = encoder.image_size
    view = Preprocess(side, side, encoder.interpolation).view(picture)
    return unit_rows(encoder.encode_images(view[None].to(torch.float32) / 255).cpu()).rows
