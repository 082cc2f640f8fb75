"""A suite as its TOML file tells it, checked wholly before any work.

Example::

    out = "suites/training"        # optional; else suites/NAME-OF-THE-FILE
    data = "tiny-imagenet"         # any option of `run`, for all models
    max_images = 20000
    encoder = "open_clip:ViT-B-32"
    seeds = [0, 1, 2]              # optional; else [0]
    presets = ["calibrated"]       # optional; else ["calibrated"]

    [[models]]
    model = "resnet50"
    layers = ["layer3", "layer4"]

    [[models]]
    name = "resnet50-untrained"    # optional; else from model and weights
    model = "resnet50"
    weights = "none"
    layers = ["layer3", "layer4"]
    seeds = [0]                    # what a model says wins over what stands above

Every model is run once for each of its presets and seeds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from psi_engine.config import MineConfig, PatchConfig, Preset, RunConfig, ScoreConfig
from psi_engine.encoders import check_encoder
from psi_engine.errors import InputError
from psi_engine.models import check_model
from psi_engine.settings import read_settings

RUNS = "runs"
"""Folder of the run folders, in the suite's."""

_LISTS = ("seeds", "presets")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_STAGES = {"mine": MineConfig, "patches": PatchConfig, "score": ScoreConfig}


@dataclass(frozen=True)
class Entry:
    """One run of a suite. ``config.out`` is its folder."""

    name: str
    preset: str
    seed: int
    config: RunConfig

    @property
    def key(self) -> str:
        """``NAME/PRESET-seedN``: its address in the suite."""
        return f"{self.name}/{self.preset}-seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """The runs of a suite in the order they are made, and the folder that holds them."""

    folder: Path
    entries: tuple[Entry, ...]


def read_plan(file: str | Path, out: str | Path | None = None) -> Plan:
    """Read a suite from its TOML file.

    Parameters
    ----------
    file : path
    out : path, optional
        Folder of the suite; wins over the file's ``out``.

    Raises
    ------
    InputError
        The file is not there or is no TOML; an unknown option, a wrong value, two models of one
        name; a model, its weights file or its encoder does not exist. Nothing is downloaded, and
        layers, channels and data are seen to when the run's turn comes.
    """
    path = Path(file)
    content = read_settings(path, "suite's file")
    models = content.pop("models", None)
    if not isinstance(models, list) or not models or not all(isinstance(m, dict) for m in models):
        raise InputError(
            f"{path} names no models",
            got="no [[models]]" if models is None else type(models).__name__,
            expected="a [[models]] table for each, with model and layers",
        )
    folder = Path(out or content.pop("out", None) or Path("suites") / path.stem)
    content.pop("out", None)
    shared = _options(content, f"{path}")
    entries: list[Entry] = []
    owners: dict[str, int] = {}
    for number, model in enumerate(models, 1):
        where = f"{path}, models {number}"
        own = _options(model, where, also=("name",))
        options = {**shared, **own}
        name = _name(options.pop("name", None), options, where)
        if name.lower() in owners:
            raise InputError(
                f"{path} holds two models of the name {name!r}",
                got=f"models {owners[name.lower()]} and {number}",
                fix='give one another name: name = "…"',
            )
        owners[name.lower()] = number
        entries += _entries(name, options, folder, where)
    _check_what_is_named(entries, path)
    return Plan(folder, tuple(entries))


def _known() -> set[str]:
    known = {f.name for f in fields(RunConfig)} - {*_STAGES, "out"}
    known = known.union(*({f.name for f in fields(kind)} for kind in _STAGES.values()))
    return (known - {"seed"}) | set(_LISTS)


def _options(table: Mapping[str, Any], where: str, also: tuple[str, ...] = ()) -> dict[str, Any]:
    """Options of a table with underscores for dashes, each one known."""
    options = {key.replace("-", "_"): value for key, value in table.items()}
    known = _known().union(also)
    for key in options:
        if key in known:
            continue
        plural = f"{key}s"
        if plural in _LISTS:
            raise InputError(
                f"{where}: {key} is given as a list", got=f"{key} = …", expected=f"{plural} = […]"
            )
        close = get_close_matches(key, sorted(known), n=3) or sorted(known)
        raise InputError(f"{where}: unknown option {key!r}", expected="one of " + ", ".join(close))
    return options


def _name(given: object, options: Mapping[str, Any], where: str) -> str:
    """The name given, or one made of the model's and its weights'."""
    if given is None:
        weights = str(options.get("weights", "default"))
        given = str(options.get("model", ""))
        if weights != "default":
            given += f"-{Path(weights).stem if Path(weights).suffix else weights}"
        given = re.sub(r"[^A-Za-z0-9._+-]", "-", given)
        if not options.get("model"):
            raise InputError(f"{where}: no model named", expected='model = "resnet50" or another')
    if not isinstance(given, str) or _NAME.fullmatch(given) is None:
        raise InputError(
            f"{where}: the name cannot be a folder's",
            got=repr(given),
            expected="letters, digits, . _ + -",
        )
    return given


def _entries(name: str, options: dict[str, Any], folder: Path, where: str) -> list[Entry]:
    seeds = _list(options.pop("seeds", [0]), "seeds", where)
    presets = _list(options.pop("presets", ["calibrated"]), "presets", where)
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise InputError(f"{where}: bad seed", got=repr(seed), expected="0, 1, 2, …")
    for preset in presets:
        if preset not in get_args(Preset):
            raise InputError(
                f"{where}: unknown preset",
                got=repr(preset),
                expected="one of " + ", ".join(get_args(Preset)),
            )
    entries = []
    for preset in presets:
        for seed in seeds:
            out = folder / RUNS / name / f"{preset}-seed{seed}"
            try:
                config = RunConfig.from_options(preset, **{**options, "seed": seed}, out=str(out))
            except InputError as error:
                raise InputError(f"{where} ({name}): {error}") from error
            entries.append(Entry(name, preset, seed, config))
    return entries


def _list(value: object, what: str, where: str) -> list[Any]:
    if not isinstance(value, list) or not value or len(set(map(repr, value))) != len(value):
        raise InputError(
            f"{where}: {what} is not a list of different values",
            got=repr(value),
            expected=f"such as {what} = {'[0, 1]' if what == 'seeds' else ['calibrated']}",
        )
    return value


def _check_what_is_named(entries: list[Entry], path: Path) -> None:
    """Refuse models, weights files and encoders that do not exist, each looked up once."""
    for entry in {e.name: e for e in entries}.values():
        try:
            check_model(entry.config.model, entry.config.weights)
        except InputError as error:
            raise InputError(f"{path} ({entry.name}): {error}") from error
    encoders = {(e.config.encoder, e.config.encoder_weights): e for e in entries}
    for (encoder, weights), entry in encoders.items():
        try:
            check_encoder(encoder, weights)
        except InputError as error:
            raise InputError(f"{path} ({entry.name}): {error}") from error
