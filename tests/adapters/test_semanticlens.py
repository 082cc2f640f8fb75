"""SemanticLens' files: what the tool wrote is read, what we write the tool loads."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from psi_engine import adapters
from psi_engine.errors import InputError
from tests.adapters import contents, make_files

FILES = make_files.FILES / "semanticlens"
CACHE = "aggregate_conv_max-5-relu.safetensors"
DATABASE = "concept_database/colours/concept_db-aggregate_conv_max-5-['relu'].safetensors"


def edited(folder: Path, **changes: torch.Tensor) -> Path:
    path = folder / CACHE
    tensors = load_file(FILES / CACHE) | changes
    save_file({name: x for name, x in tensors.items() if x is not None}, path)
    return path


def test_what_the_tool_wrote_is_what_the_network_does() -> None:
    read = adapters.read("semanticlens", FILES)
    (part,) = read.examples
    assert part.layer == "relu"
    assert part.positions is None
    truth = make_files.maps().flatten(2).amax(2).T.to(torch.bfloat16).float()
    for channel in range(make_files.CHANNELS):
        ids = part.image_ids[channel]
        assert torch.equal(part.values[channel], truth[channel, ids])
        best = truth[channel].sort(descending=True).values[: make_files.SAMPLES]
        assert torch.equal(part.values[channel], best)
    colours = make_files.MeanColours()
    pictures = [item[0] for item in (make_files.Pictures(False)[i] for i in range(12))]
    rows = colours.encode_image(colours.preprocess(pictures))
    assert torch.equal(read.embedded["relu"], rows[part.image_ids])
    assert "bfloat16" in read.notes[0]


def test_the_tool_writes_the_committed_files_today(tmp_path: Path) -> None:
    pytest.importorskip("semanticlens", reason="semanticlens (dependency group bench) is missing")
    made = make_files.make_semanticlens(tmp_path)
    for name in (CACHE, DATABASE):
        ours, theirs = load_file(FILES / name), load_file(made / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_tool_loads_what_we_write(tmp_path: Path) -> None:
    pytest.importorskip("semanticlens", reason="semanticlens (dependency group bench) is missing")
    from semanticlens import Lens
    from semanticlens.component_visualization import ActivationComponentVisualizer, aggregators
    from semanticlens.component_visualization.activation_caching import ActMaxCache

    made = contents.whole()
    written = adapters.write("semanticlens", made, tmp_path / "plain")
    cache = ActMaxCache(["layer4"], aggregators.aggregate_conv_max, n_collect=contents.K)
    cache.load(tmp_path / "plain")
    assert torch.equal(cache["layer4"].sample_ids, made.examples[0].image_ids)
    assert torch.equal(cache["layer4"].activations.float(), made.examples[0].values)
    assert len(written) == 2
    # And inside the tool's own storage, under the name its Lens looks for.
    network = make_files.net()
    network.name, network.layer4 = "tiny", torch.nn.Identity()
    visualizer = ActivationComponentVisualizer(
        network,
        make_files.Pictures(True),
        make_files.Pictures(False),
        layer_names=["layer4"],
        num_samples=contents.K,
        aggregate_fn=aggregators.aggregate_conv_max,
        cache_dir=str(tmp_path / "tool"),
    )
    adapters.write("semanticlens", made, visualizer.storage_dir)
    database = Lens(make_files.MeanColours()).compute_concept_db(visualizer)
    assert torch.equal(database["layer4"], made.embedded["layer4"])


def test_written_and_read_again_is_the_same(tmp_path: Path) -> None:
    made = contents.whole()
    adapters.write("semanticlens", made, tmp_path)
    read = adapters.read("semanticlens", tmp_path)
    (part,) = read.examples
    assert torch.equal(part.image_ids, made.examples[0].image_ids)
    assert torch.equal(part.values, made.examples[0].values)
    assert torch.equal(read.embedded["layer4"], made.embedded["layer4"])


def test_a_few_channels_keep_their_numbers(tmp_path: Path) -> None:
    part = contents.examples()
    few = adapters.TopExamples(
        part.layer, part.image_ids, part.values, channels=torch.tensor([3, 7, 8, 20, 21, 500])
    )
    written = adapters.write("semanticlens", adapters.Contents(examples=(few,)), tmp_path)
    assert written[-1].name == "channels.json"
    read = adapters.read("semanticlens", tmp_path)
    assert read.examples[0].numbers.tolist() == [3, 7, 8, 20, 21, 500]


def test_slots_of_minus_one_are_refused_or_left_out(tmp_path: Path) -> None:
    ids = load_file(FILES / CACHE)["sample_ids"].clone()
    ids[2, 3:] = -1
    path = edited(tmp_path, sample_ids=ids)
    with pytest.raises(InputError, match=r"ids of −1; got 1 channels, the first \[2\].*drop-miss"):
        adapters.read("semanticlens", path)
    part = adapters.read("semanticlens", path, drop_missing=True).examples[0]
    assert part.image_ids[2].tolist()[3:] == [-1, -1]
    assert torch.isnan(part.values[2, 3:]).all()
    assert (part.image_ids[2, :3] >= 0).all()


def test_a_channel_that_is_never_positive_gets_no_image_from_the_tool(tmp_path: Path) -> None:
    """The fault itself: its buffers start at 0 with id −1, and its database holds some image."""
    pytest.importorskip("semanticlens", reason="semanticlens (dependency group bench) is missing")
    from semanticlens.component_visualization import aggregators
    from semanticlens.component_visualization.activation_caching import ActMaxCache

    network = make_files.net()
    with torch.no_grad():
        network.conv.weight[1], network.conv.bias[1] = 0, -1
    cache = ActMaxCache(["conv"], aggregators.aggregate_conv_max, n_collect=5)
    with cache.hook_context(network), torch.no_grad():
        network(make_files.inputs())
    cache.store(tmp_path)
    with pytest.raises(InputError, match=r"ids of −1; got 1 channels, the first \[1\]"):
        adapters.read("semanticlens", tmp_path)


NAN = torch.full((4, 5), torch.nan, dtype=torch.bfloat16)
LONG = torch.arange(20).reshape(4, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activations": NAN}, "an activation of .* is not finite; got nan at channel 0, rank 0"),
        ({"sample_ids": LONG.float()}, "other dtypes .*sample_ids torch.float32"),
        ({"activations": LONG}, "other dtypes .*activations torch.int64"),
        ({"sample_ids": LONG[:3]}, r"do not fit; got \(4, 5\) and \(3, 5\)"),
        ({"sample_ids": LONG * 0 + 3}, "image 3 in channel 0"),
        ({"sample_ids": None}, "neither a cache nor a concept database"),
    ],
)
def test_unfit_files_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        adapters.read("semanticlens", edited(tmp_path, **changes))


def test_a_cut_file_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    cut = tmp_path / CACHE
    cut.write_bytes((FILES / CACHE).read_bytes()[:200])
    with pytest.raises(InputError, match=r"cannot be read.*copy it again"):
        adapters.read("semanticlens", cut)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no .safetensors in the folder"):
        adapters.read("semanticlens", tmp_path / "empty")


def test_cache_and_database_of_different_collections_are_refused(tmp_path: Path) -> None:
    shutil.copytree(FILES, tmp_path / "both")
    save_file({"relu": torch.zeros(4, 6, 12)}, tmp_path / "both" / DATABASE)
    with pytest.raises(InputError, match=r"do not fit; got \(4, 5\) and \(4, 6, 12\)"):
        adapters.read("semanticlens", tmp_path / "both")


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    part = contents.examples()
    holes = adapters.TopExamples("a", part.image_ids.clone().index_fill_(1, torch.tensor(4), -1),
                                 part.values)  # fmt: skip
    for made, message in (
        (adapters.Contents(), "no examples to write"),
        (adapters.Contents(examples=(holes,)), "empty slots.*--top-k"),
        (adapters.Contents(examples=(adapters.TopExamples("a", part.image_ids),)), "no activation"),
        (adapters.Contents(examples=(contents.examples("x" * 250),)), "file name too long"),
    ):
        with pytest.raises(InputError, match=message):
            adapters.write("semanticlens", made, tmp_path)
    assert not list(tmp_path.iterdir())
    adapters.write("semanticlens", contents.whole(), tmp_path)
    with pytest.raises(InputError, match="would be overwritten"):
        adapters.write("semanticlens", contents.whole(), tmp_path)


def test_embeddings_keep_to_their_images_however_the_file_is_ordered(tmp_path: Path) -> None:
    """Values in no order and an empty slot amid them; each embedding starts with its id."""
    ids = torch.tensor([[0, 1, -1, 2, 3, 4], [4, 3, 2, 1, 0, 5]])
    values = torch.tensor([[1, 6, 0, 0, 5, 0], [0, 1, 2, 3, 4, 5]], dtype=torch.bfloat16)
    save_file({"activations": values, "sample_ids": ids}, tmp_path / "identity-6-fc.safetensors")
    rows = torch.stack([ids.float(), torch.ones(2, 6)], 2)
    save_file({"fc": rows}, tmp_path / "concept_db.safetensors")
    read = adapters.read("semanticlens", tmp_path, drop_missing=True)
    (part,) = read.examples
    assert part.image_ids.tolist() == [[1, 3, 0, 2, 4, -1], [5, 0, 1, 2, 3, 4]]
    assert torch.equal(read.embedded["fc"][:, :, 0], part.image_ids.float())


def test_one_layer_twice_is_refused(tmp_path: Path) -> None:
    shutil.copytree(FILES, tmp_path / "a")
    shutil.copytree(FILES, tmp_path / "b")
    with pytest.raises(InputError, match="two sets of examples are of one layer; got relu"):
        adapters.read("semanticlens", tmp_path / "a" / CACHE, tmp_path / "b" / CACHE)
    with pytest.raises(InputError, match="two concept databases hold one layer; got relu"):
        adapters.read("semanticlens", tmp_path / "a" / DATABASE, tmp_path / "b" / DATABASE)
    notes = {"layer_name": "other"}
    save_file(load_file(FILES / CACHE), tmp_path / "b" / CACHE, notes)
    two = [tmp_path / "a" / CACHE, tmp_path / "b" / CACHE]
    assert adapters.read("semanticlens", *two).layers == ("relu", "other")
    with pytest.raises(InputError, match="one name was given for several layers"):
        adapters.read("semanticlens", *two, layer="mine")
    assert adapters.read("semanticlens", tmp_path / "a", layer="mine").layers == ("mine",)
