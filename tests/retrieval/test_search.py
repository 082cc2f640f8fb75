"""From runs and a question to neurons."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import psi_engine as psi
from psi_engine.errors import EncoderError, InputError
from psi_engine.prototypes import prototypes
from psi_engine.retrieval import search as module
from psi_engine.stored import load_stored
from psi_engine.vocabulary import TEMPLATES, build_vocabulary, with_article
from tests import toy
from tests.reference import retrieval as reference

Address = tuple[str, int, int]


def clusters_of(folder: Path) -> tuple[list[Address], list[list[float]], list[list[float]]]:
    """Address and prototype of every cluster, and the rows of all pools, in float64."""
    stored = load_stored(folder)
    addresses: list[Address] = []
    vectors: list[list[float]] = []
    pool: list[list[float]] = []
    for name, layer in stored.layers.items():
        found = prototypes(layer, stored.assignments(name))
        numbers = zip(found.channel.tolist(), found.cluster.tolist(), strict=True)
        addresses += [(name, channel, cluster) for channel, cluster in numbers]
        vectors += found.vectors.double().tolist()
        pool += layer.pool.double().tolist()
    return addresses, vectors, pool


def addresses(found: module.Found) -> list[Address]:
    rows = found.table.to_pylist()
    return [(row["layer"], row["channel"], row["cluster"]) for row in rows]


def agrees(found: module.Found, truth: list[float], places: list[Address]) -> None:
    """The similarities are those of the definition, and none of what is left out is greater."""
    similar = found.table["similarity"].to_numpy()
    value = dict(zip(places, truth, strict=True))
    np.testing.assert_allclose(similar, [value[x] for x in addresses(found)], atol=1e-6, rtol=0)
    assert (np.diff(similar) <= 0).all()
    rest = sorted(truth, reverse=True)[: len(similar)]
    np.testing.assert_allclose(similar, rest, atol=1e-6, rtol=0)
    assert found.table["rank"].to_pylist() == [*range(1, 1 + len(similar))]


def test_a_text_is_held_against_prototypes_each_less_its_mean(run: Path) -> None:
    places, vectors, pool = clusters_of(run)
    encoder, prompts = toy.encoder(), build_vocabulary(toy.CLASSES)
    rows = encoder.encode_texts(list(prompts.texts)).double()
    vocabulary = [rows[prompts.concept_ids == i].tolist() for i in range(len(prompts.concepts))]
    for text in ("red", "a green   thing"):
        phrase = with_article(" ".join(text.split()))
        query = encoder.encode_texts([template.format(phrase) for template in TEMPLATES])
        truth = [
            reference.text_similarity(vector, pool, query.double().tolist(), vocabulary)
            for vector in vectors
        ]
        agrees(psi.search(run, text, top=7), truth, places)


def test_examples_are_searched_by_each_of_their_clusters_and_left_out(run: Path) -> None:
    places, vectors, pool = clusters_of(run)
    centre = reference.mean([reference.unit(row) for row in pool])
    apart = [reference.less(vector, centre) for vector in vectors]
    examples = [i for i, place in enumerate(places) if place[:2] in (("conv2", 3), ("head", 1))]
    others = [i for i in range(len(places)) if i not in examples]
    truth = [max(reference.cosine(apart[i], apart[j]) for j in examples) for i in others]
    found = psi.search(run, like=["conv2:3", "head:1"], top=9)
    agrees(found, truth, [places[i] for i in others])
    for row, place in zip(found.table.to_pylist(), addresses(found), strict=True):
        address, _, cluster = row["by"].rpartition("/")
        layer, _, channel = address.partition(":")
        by = places.index((layer, int(channel), int(cluster)))
        at = places.index(place)
        assert row["similarity"] == pytest.approx(reference.cosine(apart[at], apart[by]), abs=1e-6)


def test_an_image_is_embedded_whole(run: Path, tmp_path: Path) -> None:
    places, vectors, pool = clusters_of(run)
    toy.draw(99, 1).resize((40, 32)).save(tmp_path / "green.png")
    centre = reference.mean([reference.unit(row) for row in pool])
    small = Image.open(tmp_path / "green.png").resize((10, 8), Image.Resampling.BILINEAR)
    pixels = np.asarray(small.crop((1, 0, 9, 8))).copy()
    view = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    query = toy.encoder().encode_images(view)[0].double().tolist()
    truth = [
        reference.cosine(reference.less(vector, centre), reference.less(query, centre))
        for vector in vectors
    ]
    agrees(psi.search(run, image=tmp_path / "green.png", top=5), truth, places)


def test_rows_carry_what_the_run_knows_of_them(run: Path) -> None:
    opened = psi.open_run(run)
    clusters = {(r["layer"], r["channel"], r["cluster"]): r for r in opened.clusters.to_pylist()}
    channels = {(r["layer"], r["channel"]): r for r in opened.channels.to_pylist()}
    found = opened.search("blue", top=1000).table.to_pylist()
    assert len(found) == len(clusters)
    for row in found:
        cluster = clusters[row["layer"], row["channel"], row["cluster"]]
        for name in ("size", "silhouette", "concepts", "medoid_rank"):
            assert row[name] == cluster[name]
        for name in ("psi", "log_psi", "psi_p_adj", "verdict"):
            assert row[name] == channels[row["layer"], row["channel"]][name]
        assert row["by"] is None
        assert row["run"] == str(run)


def test_layers_verdicts_and_channels_narrow_what_is_found(run: Path) -> None:
    opened = psi.open_run(run)
    every = opened.search("red", top=1000).table.to_pylist()
    head = opened.search("red", top=1000, layers=["head"]).table.to_pylist()
    assert [row["channel"] for row in head] == [
        row["channel"] for row in every if row["layer"] == "head"
    ]
    for verdict in {row["verdict"] for row in every}:
        only = opened.search("red", top=1000, verdict=verdict).table.to_pylist()
        assert [row["similarity"] for row in only] == [
            row["similarity"] for row in every if row["verdict"] == verdict
        ]
    best: dict[tuple[str, int], dict] = {}
    for row in every:
        best.setdefault((row["layer"], row["channel"]), row)
    for top in (1, 3, 1000):
        each = opened.search("red", top=top, per="channel").table.to_pylist()
        assert [(row["layer"], row["channel"], row["cluster"]) for row in each] == [
            (*key, row["cluster"]) for key, row in [*best.items()][:top]
        ]


def test_several_runs_are_searched_as_one(run: Path, second_run: Path) -> None:
    alone = [psi.search(x, "red", top=6).table for x in (run, second_run)]
    both = psi.search([run, second_run], "red", top=6).table
    apart = [value for table in alone for value in table["similarity"].to_pylist()]
    assert both["similarity"].to_pylist() == sorted(apart, reverse=True)[:6]
    assert {*both["run"].to_pylist()} <= {str(run), str(second_run)}
    first, named, whole = (
        psi.search([run, second_run], like=like, top=3)
        for like in ("conv2:3", "two/conv1:2", f"{second_run}/conv1:2")
    )
    assert named.table["similarity"].equals(whole.table["similarity"])
    assert {row.rpartition("/")[0] for row in first.table["by"].to_pylist()} == {"conv2:3"}
    found = {(r["run"], r["layer"], r["channel"]) for r in named.table.to_pylist()}
    assert (str(second_run), "conv1", 2) not in found


def test_runs_of_different_encoders_are_refused(run: Path, fixed_run: Path) -> None:
    with pytest.raises(EncoderError, match="different encoders") as error:
        psi.search([run, fixed_run], "red")
    assert str(run) in str(error.value)
    assert f"{fixed_run}: classifier:tests.toy:model" in str(error.value)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({}, "nothing is searched for"),
        ({"text": "red", "like": "conv2:1"}, "not clear; got text, like"),
        ({"text": "  "}, "the query is empty"),
        ({"text": "red", "top": 0}, "too few results"),
        ({"text": "red", "layers": ["conv9"]}, "no such layer; got conv9; expected conv2, head"),
        ({"text": "red", "verdict": "not scorable"}, "unknown verdict"),
        ({"text": "red", "per": "layer"}, "unknown grouping"),
        ({"like": "conv2"}, "not a channel's address"),
        ({"like": "conv2:99"}, "one of its 8 channels between 0 and 7"),
        ({"like": "conv2:7"}, "conv2:7 has no clusters to search like; got failed: dead"),
        ({"image": "nowhere.png"}, "the image is not there"),
        ({"image": __file__}, "the image cannot be read"),
    ],
)
def test_what_cannot_be_asked_is_told(run: Path, query: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        psi.open_run(run).search(**query)
    with pytest.raises(InputError, match="no run to search"):
        psi.search([], "red")


def test_a_run_keeps_what_its_search_opened(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = psi.open_run(run)
    first = opened.search("red")
    monkeypatch.setattr(module, "open_index", lambda *_: pytest.fail("opened again"))
    assert opened.search("red").table.equals(first.table)
    assert len(first.to_pandas()) == 10
