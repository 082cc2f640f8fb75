"""Concepts × templates → prompts: the words clusters are named with.

The default vocabulary is the class names of the data and 67 generic visual concepts (textures,
colours, materials, shapes, parts, scenes), each in six templates: 267 × 6 = 1602 prompts on
Tiny-ImageNet, as many as in the paper (Section 4). The paper names neither its concepts nor its
templates; these are our own. The bank of the ``unrelated-text`` null holds 960 concepts one
cannot see in a photograph: law, grammar, finance, music theory and the like.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

import torch

from psi_engine.errors import InputError
from psi_engine.names import clean_class_names, read_names, split_names
from psi_engine.types import Prompts

TEMPLATES = (
    "an image patch that shows {}",
    "a close-up view of {}",
    "a small crop of a photo with {} in it",
    "{} in the middle of a picture",
    "a blurry snapshot in which {} can be seen",
    "part of a scene that contains {}",
)
"""What a prompt looks like; ``{}`` is the concept with its article."""


def build_vocabulary(
    class_names: Sequence[str] | None = None, concepts_file: str | Path | None = None
) -> Prompts:
    """Lay out the vocabulary of a run as prompts.

    Parameters
    ----------
    class_names : sequence of str, optional
        Of the data, in label order; cleaned by :func:`psi_engine.names.clean_class_names`.
    concepts_file : path, optional
        A user's concepts, one per line (see :func:`read_concepts`). They replace class names
        and generic concepts.

    Returns
    -------
    Prompts
        Concept by concept, six prompts each: classes first, then the generic concepts. A
        generic concept that is also a class is kept once, as the class, and ``source`` says so.

    Raises
    ------
    InputError
        When the file is missing or holds fewer than two concepts or a concept twice, or when a
        class name is empty.
    """
    if concepts_file is not None:
        return _prompts(read_concepts(concepts_file), f"concepts file {Path(concepts_file).name}")
    generic = _shipped("generic")
    classes = clean_class_names(class_names or ())
    taken = {name.casefold() for name in classes}
    both = [name for name in generic if name.casefold() in taken]
    kept = [name for name in generic if name.casefold() not in taken]
    source = f"{len(kept)} generic concepts"
    if classes:
        source = f"{len(classes)} class names, {source}"
    if both:
        source += f" ({len(both)} left out, being class names: {', '.join(both)})"
    return _prompts((*classes, *kept), source)


def unrelated_bank(exclude: Iterable[str] = ()) -> Prompts:
    """Lay out the bank of concepts from unrelated domains, in the same templates.

    Parameters
    ----------
    exclude : iterable of str
        Concepts of the run's own vocabulary: in the bank they would not be unrelated.

    Returns
    -------
    Prompts
        960 concepts × 6 templates, less the excluded ones.
    """
    taken = {name.casefold() for name in exclude}
    bank = tuple(name for name in _shipped("unrelated") if name.casefold() not in taken)
    return _prompts(bank, f"{len(bank)} concepts of unrelated domains")


def read_concepts(path: str | Path) -> tuple[str, ...]:
    """Read a user's concepts: UTF-8 text, one per line; blank lines and # comments are skipped.

    Returns
    -------
    tuple of str
        In file order.

    Raises
    ------
    InputError
        When the file is missing, is not UTF-8, holds fewer than two concepts (naming a cluster
        takes a runner-up), or holds one twice (letter case aside).
    """
    concepts = read_names(path)
    if len(concepts) < 2:
        raise InputError(
            f"too few concepts in {path}",
            got=len(concepts),
            expected="at least 2, one per line",
            fix="add concepts, or leave --concepts out to use class names and generic concepts",
        )
    seen: set[str] = set()
    for name in concepts:
        if name.casefold() in seen:
            raise InputError(
                f"a concept stands twice in {path}",
                got=repr(name),
                expected="distinct concepts (letter case does not count)",
                fix="delete one of the lines",
            )
        seen.add(name.casefold())
    return concepts


def with_article(concept: str) -> str:
    """Put "a" or "an" before a concept, by its sound; nothing before a plural or an article.

    >>> with_article("hourglass"), with_article("unicycle"), with_article("sunglasses")
    ('an hourglass', 'a unicycle', 'sunglasses')
    """
    if _DETERMINED.match(concept) or _is_plural(concept):
        return concept
    return f"{'an' if _sounds_like_vowel(concept) else 'a'} {concept}"


_DETERMINED = re.compile(r"(?:an?|the|some|my|your|his|her|its|our|their|two|three)\s", re.I)
_BEFORE_PREPOSITION = re.compile(r"\s(?:of|in|on|at|to|for|by|with|from)\s")
_SINGULAR_IN_S = {
    "bias",
    "series",
    "triceratops",
    "rhinoceros",
    "lens",
    "gas",
    "canvas",
    "atlas",
    "patas",
    "christmas",
}
_INITIALS = re.compile(r"[A-Z](?![a-z])")
_YOU_SOUND = re.compile(r"uni(?![nmd])|unan|ubiq|us[aeiu]|ut[ie]|uk|ur[aeiou]|eu|ew|on(?:e|ce)\b")
_SILENT_H = re.compile(r"hour|honest|honou?r|heir")


def _is_plural(concept: str) -> bool:
    head = _BEFORE_PREPOSITION.split(concept)[0].split()[-1].casefold()
    return (
        head.endswith("s")
        and not head.endswith(("ss", "us", "is"))
        and head not in (_SINGULAR_IN_S)
    )


def _sounds_like_vowel(concept: str) -> bool:
    if _INITIALS.match(concept):
        return concept[0] in "AEFHILMNORSX"
    word = concept.casefold()
    if _SILENT_H.match(word):
        return True
    return word[0] in "aeiou" and not _YOU_SOUND.match(word)


def _prompts(concepts: Sequence[str], source: str) -> Prompts:
    phrases = [with_article(concept) for concept in concepts]
    return Prompts(
        texts=tuple(template.format(phrase) for phrase in phrases for template in TEMPLATES),
        concept_ids=torch.arange(len(concepts)).repeat_interleave(len(TEMPLATES)),
        concepts=tuple(concepts),
        source=f"{source}, {len(TEMPLATES)} templates",
    )


def _shipped(name: str) -> tuple[str, ...]:
    file = resources.files("psi_engine") / "concepts" / f"{name}.txt"
    return split_names(file.read_text(encoding="utf-8"))
