"""sae-for-vlm's files in their documented layout, and its score by a literal loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from psi_engine import adapters
from psi_engine.adapters.sae_for_vlm import monosemanticity
from psi_engine.errors import InputError
from tests.adapters import contents

ROWS, NEURONS, DIM, K = 23, 4, 6, 5
STEM = "imagenet_val_activations_clip-vit_-1_post_projection"


def activations() -> torch.Tensor:
    """Neuron 3 is dead."""
    values = torch.rand(ROWS, NEURONS, generator=torch.Generator().manual_seed(5))
    values[:, 3] = 0
    return values


def embeddings() -> torch.Tensor:
    return torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(6))


def write(folder: Path) -> Path:
    """Three parts and the list, as the scripts write them: argsort's last k, best last."""
    parts = folder / "acts"
    parts.mkdir()
    values = activations()
    for number, part in enumerate(values.split(8), start=1):
        torch.save(part.clone(), parts / f"{STEM}_part{number}.pt")
    order = np.argsort(values.numpy(), axis=0, kind="stable")[-K:].T
    np.save(parts / f"hai_indices_{K}", order)
    (parts / "metric").mkdir()
    torch.save(torch.zeros(NEURONS), parts / "metric" / "all_neurons_scores.pth")
    torch.save(torch.zeros(2, 2), parts / "all_neurons_scores.pth")  # not one of the parts
    torch.save(embeddings(), folder / "embeddings.pt")
    return parts


def test_parts_are_joined_and_the_list_is_turned_best_first(tmp_path: Path) -> None:
    parts = write(tmp_path)
    read = adapters.read("sae-for-vlm", parts, tmp_path / "embeddings.pt")
    layer = "clip-vit_-1_post_projection"
    assert read.layers == (layer,)
    assert torch.equal(read.activations[layer], activations())
    (part,) = read.examples
    best = activations().sort(0, descending=True).values[:K].T
    assert torch.equal(part.values[:3], best[:3])
    assert torch.equal(read.image_embeddings, embeddings())


def test_what_is_not_read_of_a_folder_is_listed(tmp_path: Path) -> None:
    parts = write(tmp_path)
    torch.save(torch.zeros(2, 2), parts / "imagenet_activations.pt")
    notes = adapters.read("sae-for-vlm", parts).notes
    assert notes[1:] == (
        "in the folder but not read: all_neurons_scores.pth, imagenet_activations.pt",
    )
    (parts / "imagenet_activations.pt").unlink()
    (parts / "all_neurons_scores.pth").unlink()
    assert len(adapters.read("sae-for-vlm", parts).notes) == 1


def test_more_than_nine_parts_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in range(1, 12):
        torch.save(torch.full((1, 4), float(number)), tmp_path / f"x_part{number}.pt")
    read = adapters.read("sae-for-vlm", tmp_path)
    assert next(iter(read.activations.values()))[:, 0].tolist() == list(range(1, 12))


def test_their_score_is_the_sum_over_pairs(tmp_path: Path) -> None:
    """Equation of the paper by a loop over all pairs of images, in float64."""
    parts = write(tmp_path)
    read = adapters.read("sae-for-vlm", parts, tmp_path / "embeddings.pt")
    (found,) = monosemanticity(read).values()
    rows = embeddings().double().numpy()
    for neuron in range(NEURONS):
        a = activations()[:, neuron].double().numpy()
        if a.max() == a.min():
            assert torch.isnan(found[neuron])
            continue
        scaled = (a - a.min()) / (a.max() - a.min())
        total = weights = 0.0
        for i in range(ROWS):
            for j in range(i + 1, ROWS):
                norm = np.linalg.norm(rows[i]) * np.linalg.norm(rows[j])
                total += scaled[i] * scaled[j] * (rows[i] @ rows[j]) / norm
                weights += scaled[i] * scaled[j]
        assert float(found[neuron]) == pytest.approx(total / weights, abs=1e-6)
    with pytest.raises(InputError, match="no image embeddings to write for the monosem"):
        monosemanticity(adapters.read("sae-for-vlm", parts))


def test_written_and_read_again_is_the_same(tmp_path: Path) -> None:
    part = contents.examples("neurons")
    plain = adapters.TopExamples("neurons", part.image_ids)
    adapters.write("sae-for-vlm", adapters.Contents(examples=(plain,)), tmp_path / "ids")
    theirs = np.load(tmp_path / "ids" / "hai_indices_5.npy")
    assert theirs[:, -1].tolist() == part.image_ids[:, 0].tolist()  # best last
    read = adapters.read("sae-for-vlm", tmp_path / "ids", layer="neurons")
    assert torch.equal(read.examples[0].image_ids, part.image_ids)
    given = adapters.Contents(activations={"neurons": activations()}, image_embeddings=embeddings())
    adapters.write("sae-for-vlm", given, tmp_path / "parts")
    read = adapters.read("sae-for-vlm", tmp_path / "parts")
    assert torch.equal(read.activations["neurons"], activations())
    assert torch.equal(torch.load(tmp_path / "parts" / "all_embeddings.pt"), embeddings())


def test_missing_and_unfit_parts_are_refused(tmp_path: Path) -> None:
    parts = write(tmp_path)
    path = parts / f"{STEM}_part2.pt"
    held = torch.load(path)
    cases = [
        (None, r"missing or doubled; got numbers \[1, 3\]"),
        (held[:, :3].clone(), "part2.pt does not fit the parts before it; got 3 neurons"),
        (torch.full_like(held, torch.inf), "not all finite; got inf"),
        (held.clone() + 1, "not the highest of the activations"),
        (held[0].clone(), r"got \(4,\)"),
    ]
    for tensor, message in cases:
        path.unlink(missing_ok=True)
        if tensor is not None:
            torch.save(tensor, path)
        with pytest.raises(InputError, match=message):
            adapters.read("sae-for-vlm", parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: np.where(x == x.max(), -1, x), "negative ids; got -1"),
        (lambda x: x + 20, "not in the data; got id .* 23 images"),
        (lambda x: x[:2], "different neurons; got 2 and 4"),
        (lambda x: x.astype(np.float64), "got float64"),
        (lambda x: x[:, :3], "not a table of image ids"),
    ],
)
def test_unfit_lists_are_refused(tmp_path: Path, change: object, message: str) -> None:
    parts = write(tmp_path)
    path = parts / f"hai_indices_{K}.npy"
    np.save(path, change(np.load(path)))
    with pytest.raises(InputError, match=message):
        adapters.read("sae-for-vlm", parts)


def test_embeddings_of_other_images_and_foreign_files_are_refused(tmp_path: Path) -> None:
    parts = write(tmp_path)
    torch.save(torch.randn(22, DIM), tmp_path / "embeddings.pt")
    with pytest.raises(InputError, match="different images; got 23 and 22 rows"):
        adapters.read("sae-for-vlm", parts, tmp_path / "embeddings.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="not the files of sae-for-vlm"):
        adapters.read("sae-for-vlm", tmp_path / "empty")
    with pytest.raises(InputError, match="one layer"):
        adapters.write("sae-for-vlm", adapters.Contents(), tmp_path / "out")
