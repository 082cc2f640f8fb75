"""Files of other tools become run folders, as far as they go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

import psi_engine as psi
from psi_engine import adapters
from psi_engine.adapters.from_run import export_run
from psi_engine.adapters.into_run import import_files
from psi_engine.causal import swap
from psi_engine.errors import InputError, RunFolderError
from psi_engine.inputs import reopen, reopen_images
from psi_engine.report.tables import summarise
from psi_engine.stored import load_stored
from tests import toy
from tests.adapters import make_files, test_clip_dissect, test_exemplars

QUICK = {"replicates": 40, "device": "cpu", "subsamples": 0}
ENCODER = "tests.toy:encoder"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_images(tmp_path_factory.mktemp("images"), 48)


def toy_run(images: Path, out: Path, **changes: Any) -> psi.Run:
    options = {**toy.RUN_OPTIONS, "layers": ["conv2"], **QUICK, "data": str(images)}
    return psi.run(psi.RunConfig.from_options(**{**options, "out": str(out), **changes}))


@pytest.fixture(scope="module")
def ran(images: Path, tmp_path_factory: pytest.TempPathFactory) -> psi.Run:
    return toy_run(images, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def crp_files(ran: psi.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crp")
    export_run("crp", ran, folder)
    return folder


def column(run: psi.Run, name: str) -> np.ndarray:
    return np.array(run.channels[name].to_pylist(), float)


def test_with_the_model_the_scores_are_those_of_the_run(
    ran: psi.Run, images: Path, crp_files: Path, tmp_path: Path
) -> None:
    """Sites, receptive fields, pool and randomness are the same, so that the bits are."""
    options = {"model": "tests.toy:model", "data": str(images), "patch": 16, "pool": 60, **QUICK}
    sites = import_files("crp", [crp_files], out=tmp_path / "run", **options)
    assert list(sites.manifest["stages"]) == ["mine"]
    run = import_files("crp", [crp_files], out=tmp_path / "run", encoder=ENCODER, **options)
    assert run.manifest["stages"]["mine"]["imported"]["tool"] == "crp"
    alive = np.arange(8) != 7  # dead, which top images alone do not tell
    for name in ("s", "q", "d", "s_p", "q_p", "d_p", "psi"):
        assert np.array_equal(column(run, name)[alive], column(ran, name)[alive])
    assert run.channels["monosemanticity"].null_count == 8  # needs the range over the data
    assert run.channels["activation_min"].null_count == 8
    assert any("sites found by crp" in note for note in summarise(run)["notes"])
    # The run goes on with other scores from the same sites …
    again = toy_run(images, tmp_path / "run", replicates=60)
    assert again.manifest["stages"]["mine"]["imported"]["tool"] == "crp"
    assert again.manifest["config"]["score"]["replicates"] == 60
    # … and does not mine over them.
    with pytest.raises(RunFolderError, match="holds sites that another tool found"):
        toy_run(images, tmp_path / "run", top_k=8)
    assert psi.open_run(tmp_path / "run").channels.num_rows == 8
    with pytest.raises(InputError, match="found by another tool"):
        swap(tmp_path / "run")


def test_positions_need_a_model_or_a_grid_and_a_side(
    images: Path, crp_files: Path, tmp_path: Path
) -> None:
    options = {"data": str(images), "encoder": ENCODER, "image_size": 32, **QUICK}
    grid = import_files("crp", [crp_files], out=tmp_path / "a", grid=(8, 8), patch=10, **options)
    boxes = [np.array(grid.sites[name].to_pylist()) for name in ("x0", "y0", "x1", "y1")]
    assert set((boxes[2] - boxes[0]).tolist()) == {10}
    u, x0 = (np.array(grid.sites[name].to_pylist()) for name in ("v", "x0"))
    assert np.array_equal(x0, np.clip(u * 4 + 2 - 5, 0, 22))  # cells of 4 pixels
    plain = import_files("crp", [crp_files], out=tmp_path / "b", **options)
    assert set(np.array(plain.sites["x1"].to_pylist())) == {32}
    assert any("positions of conv2 are not used" in note for note in summarise(plain)["notes"])
    with pytest.raises(InputError, match=r"0 to 3 for \(2, 2\)"):
        import_files("crp", [crp_files], out=tmp_path / "c", grid=(2, 2), patch=9, **options)
    with pytest.raises(InputError, match="outside the model's map"):
        import_files(
            "crp", [crp_files], out=tmp_path / "c", model="tests.toy:model",
            **{**options, "image_size": 16},
        )  # fmt: skip
    assert not (tmp_path / "c").exists()


def test_another_grid_is_another_import(images: Path, crp_files: Path, tmp_path: Path) -> None:
    options = {"data": str(images), "encoder": ENCODER, "image_size": 32, **QUICK}
    out = tmp_path / "run"
    first = import_files("crp", [crp_files], out=out, grid=(8, 8), patch=10, **options)
    held = first.sites["x0"].to_pylist()
    for changes in ({"grid": (4, 16), "patch": 10}, {"grid": (8, 8)}):  # without a side: whole
        with pytest.raises(RunFolderError, match="holds another run"):
            import_files("crp", [crp_files], out=out, **changes, **options)
    again = import_files("crp", [crp_files], out=out, grid=(8, 8), patch=10, **options)
    assert again.sites["x0"].to_pylist() == held
    wider = import_files("crp", [crp_files], out=out, grid=(8, 8), patch=12, **options)
    sides = np.array(wider.sites["x1"].to_pylist()) - np.array(wider.sites["x0"].to_pylist())
    assert set(sides.tolist()) == {12}


def test_a_grid_must_be_that_of_the_model(images: Path, crp_files: Path, tmp_path: Path) -> None:
    options = {"data": str(images), "model": "tests.toy:model", "device": "cpu"}
    good = adapters.read("crp", crp_files)
    part = good.examples[0]
    inside = adapters.TopExamples(part.layer, part.image_ids, part.values, part.positions % 16)
    adapters.write("crp", adapters.Contents(examples=(inside,)), tmp_path / "files")
    with pytest.raises(InputError, match=r"got 4 × 4 .*expected 8 × 8.*--image-size"):
        import_files("crp", [tmp_path / "files"], out=tmp_path / "a", grid=(4, 4), **options)
    assert not (tmp_path / "a").exists()
    plain = import_files("crp", [crp_files], out=tmp_path / "b", **options)
    notes = plain.manifest["stages"]["mine"]["notes"]
    assert any("count through the model's map, 8 × 8" in note for note in notes)
    told = import_files("crp", [crp_files], out=tmp_path / "c", grid=(8, 8), **options)
    assert not any("model's map" in x for x in told.manifest["stages"]["mine"]["notes"])


def test_the_pool_is_of_all_images_that_are_embedded(tmp_path: Path) -> None:
    """Of a list of top images, which are few, and embeddings of every image."""
    ids = torch.stack(
        [torch.randperm(6, generator=torch.Generator().manual_seed(c)) for c in (0, 1)]
    )
    part = adapters.TopExamples("neurons", ids)
    adapters.write("sae-for-vlm", adapters.Contents(examples=(part,)), tmp_path / "neurons")
    rows = torch.randn(40, 5, generator=torch.Generator().manual_seed(2))
    torch.save(rows, tmp_path / "embeddings.pt")
    files = [tmp_path / "neurons", tmp_path / "embeddings.pt"]
    run = import_files("sae-for-vlm", files, out=tmp_path / "run", top_k=6, pool=40, **QUICK)
    assert sorted(load_stored(run.path).layers["neurons"].pool_images.tolist()) == list(range(40))
    assert not any("pool is" in note for note in run.manifest["stages"]["mine"]["notes"])
    lens = make_files.FILES / "semanticlens"
    run = import_files("semanticlens", [lens], out=tmp_path / "lens", **QUICK)
    assert any("pool is the examples" in x for x in run.manifest["stages"]["mine"]["notes"])


def test_whole_images_of_a_cache_are_embedded(images: Path, tmp_path: Path) -> None:
    """The tool's own file of twelve images, with the first twelve of ours."""
    files = [make_files.FILES / "semanticlens" / "aggregate_conv_max-5-relu.safetensors"]
    options = {"data": str(images), "encoder": ENCODER, "image_size": 32, **QUICK}
    run = import_files("semanticlens", files, out=tmp_path / "run", **options)
    (part,) = adapters.read("semanticlens", *files).examples
    stored = load_stored(run.path).layers["relu"]
    for channel in range(4):
        found = stored.sites.image_ids[channel]
        assert sorted(found.tolist()) == sorted(part.image_ids[channel].tolist())
        assert torch.equal(stored.sites.values[channel], part.values[channel])
    source = reopen_images(run).source
    keys = run.sites["key"].to_pylist()
    assert keys == [source.keys[i] for i in run.sites["image_id"].to_pylist()]
    assert reopen(run).encoder.name == "toy"
    first = {name: (run.path / f"{name}.parquet").read_bytes() for name in ("channels", "sites")}
    import_files("semanticlens", files, out=tmp_path / "run", **options)  # nothing is done again
    assert first == {name: (run.path / f"{name}.parquet").read_bytes() for name in first}
    with pytest.raises(RunFolderError, match="holds another run"):
        write = tmp_path / "other"
        adapters.write(
            "semanticlens",
            adapters.Contents(examples=(adapters.TopExamples("relu", part.image_ids.flip(0),
                                                             part.values),)), write)  # fmt: skip
        import_files("semanticlens", [write], out=tmp_path / "run", **options)


def test_a_concept_database_is_scored_alone_or_with_its_ids(tmp_path: Path) -> None:
    folder = make_files.FILES / "semanticlens"
    (database,) = folder.rglob("concept_db*")
    changes = {"replicates": 40, "device": "cpu"}
    alone = import_files("semanticlens", [database], out=tmp_path / "alone", **changes)
    with_ids = import_files("semanticlens", [folder], out=tmp_path / "ids", **changes)
    for run in (alone, with_ids):
        assert run.channels["layer"].to_pylist() == ["relu"] * 4
    assert np.allclose(column(alone, "s"), column(with_ids, "s"), atol=1e-6)
    (part,) = adapters.read("semanticlens", folder).examples
    keys = with_ids.sites.filter(pc.equal(with_ids.sites["channel"], 1))["key"].to_pylist()
    assert {int(key.rpartition(" ")[2]) for key in keys} == set(part.image_ids[1].tolist())
    for call, error in ((reopen, "images"), (reopen_images, "images")):
        with pytest.raises(RunFolderError, match=f"the {error} of .* are not here"):
            call(with_ids)
    with pytest.raises(InputError, match="do not say which images"):
        import_files("semanticlens", [database], out=tmp_path / "c", encoder=ENCODER)


def test_dense_files_are_scored_with_no_model(tmp_path: Path) -> None:
    """Against the library on the top images that a loop finds."""
    files = test_clip_dissect.write(tmp_path)
    run = import_files("clip-dissect", files, out=tmp_path / "run", top_k=10, pool=40, **QUICK)
    read = adapters.read("clip-dissect", *files)
    stored = load_stored(run.path)
    layer = stored.layers["layer4"]
    for channel, values in enumerate(read.activations["layer4"].T.numpy()):
        best = sorted(range(len(values)), key=lambda i: (-values[i], i))[:10]
        assert layer.sites.image_ids[channel].tolist() == best
    rows = torch.nn.functional.normalize(read.image_embeddings, dim=1)
    assert torch.allclose(layer.embeddings, rows[layer.sites.image_ids], atol=1e-6)
    assert sorted(layer.pool_images.tolist()) == list(range(40))  # every image once
    texts = torch.nn.functional.normalize(read.text_embeddings, dim=1)
    scores = psi.score(
        layer.embeddings,
        text_embeddings=texts,
        pool=layer.pool,
        channel_ids=layer.channel_ids,
        config=psi.ScoreConfig(replicates=40),
        device="cpu",
    )
    assert np.array_equal(column(run, "s"), scores.s.numpy())
    assert np.array_equal(column(run, "d_p"), scores.d_p.numpy())
    assert stored.concepts == ("fur", "wheel", "sky")
    assert np.isfinite(column(run, "monosemanticity")).all()  # ranges are known
    with pytest.raises(RunFolderError, match="images of .* are not here"):
        reopen(run)


def test_pictures_in_the_files_need_an_encoder_only(tmp_path: Path) -> None:
    test_exemplars.write(tmp_path / "files")
    with pytest.raises(InputError, match="the pictures need an encoder"):
        import_files("exemplars", [tmp_path / "files"], out=tmp_path / "run")
    run = import_files(
        "exemplars", [tmp_path / "files"], out=tmp_path / "run", encoder=ENCODER, **QUICK
    )
    assert run.channels.num_rows == 3
    assert run.sites["key"].to_pylist()[5] == "layer4/1/1"


def test_exported_exemplars_are_the_views_with_their_patches(
    ran: psi.Run, images: Path, tmp_path: Path
) -> None:
    export_run("exemplars", ran, tmp_path, top_k=4)
    read = adapters.read("exemplars", tmp_path)
    pictures = read.exemplars["conv2"]
    sites = load_stored(ran.path).layers["conv2"].sites
    source, preprocess = (x := reopen_images(ran)).source, x.model.preprocess
    rows = ran.sites.filter(pc.equal(ran.sites["kind"].cast("string"), "top")).to_pylist()
    boxes = {(r["channel"], r["rank"]): (r["x0"], r["y0"], r["x1"], r["y1"]) for r in rows}
    for channel, rank in ((0, 0), (3, 2), (6, 3)):
        view = source.view(int(sites.image_ids[channel, rank]), preprocess)
        assert np.array_equal(pictures.images[channel, rank], view.numpy())
        mask = np.zeros((32, 32), np.uint8)
        x0, y0, x1, y1 = boxes[channel, rank]
        mask[y0:y1, x0:x1] = 1
        assert np.array_equal(pictures.masks[channel, rank, 0], mask)


def test_every_tool_takes_a_run(ran: psi.Run, tmp_path: Path) -> None:
    contents = adapters.from_run(ran, top_k=6)
    sites = load_stored(ran.path).layers["conv2"].sites
    assert torch.equal(contents.examples[0].image_ids, sites.image_ids[:, :6])
    with pytest.raises(InputError, match="conv2 cannot be written for saev"):  # one is negative
        adapters.write("saev", contents, tmp_path / "saev")
    first = contents.examples[0]
    fields = (first.image_ids, first.values, first.positions)
    part = adapters.TopExamples("conv2", *(x[1:7] for x in fields), first.grid)
    adapters.write("saev", replace(contents, examples=(part,)), tmp_path / "saev")
    back = adapters.read("saev", tmp_path / "saev", images=48, top_k=6)  # as --data says it
    assert back.examples[0].grid == (8, 8)
    assert torch.equal(back.examples[0].image_ids, part.image_ids)
    for tool in ("semanticlens", "crp", "clip-dissect", "sae-for-vlm"):
        assert all(path.is_file() for path in adapters.write(tool, contents, tmp_path / tool))
    found = adapters.read("semanticlens", tmp_path / "semanticlens")
    assert torch.equal(found.embedded["conv2"], contents.embedded["conv2"])
    with pytest.raises(InputError, match="no such layer in the run; got conv9"):
        adapters.from_run(ran, layers=["conv9"])
    clusters = ran.clusters.to_pylist()
    for row in contents.descriptions:
        own = [c for c in clusters if c["channel"] == row.unit]
        largest = max(own, key=lambda c: (c["size"], -c["cluster"]))
        assert row.description == largest["concepts"][0]["concept"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "no images and no embeddings.*--data"),
        ({"max_images": 20}, "an image id of conv2 is not in the data"),
        ({"encoder": "tests.toy:nothing"}, "nothing"),
        ({"encoder": ENCODER, "data": None}, "no images and no embeddings"),
        ({"model": "tests.toy:poisoned"}, "conv2"),
        ({"concepts": "no.txt"}, "imported embeddings cannot name concepts"),
        ({"text": Path("t.npy")}, "--text"),
    ],
)
def test_missing_inputs_are_refused_before_anything_is_written(
    images: Path, crp_files: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    options = {"data": str(images), "device": "cpu", **changes}
    with pytest.raises(psi.PsiEngineError, match=message):
        import_files("crp", [crp_files], out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
