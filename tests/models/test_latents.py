"""Latents of maps, tokens and flat layers against the autoencoder applied by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from psi_engine.errors import ModelError
from psi_engine.hooks import capture
from psi_engine.mining import mine
from psi_engine.models import activation_shapes, attach_latents, load_model, resolve_layers
from psi_engine.patches.field import receptive_field
from psi_engine.types import ActivationShape, ReceptiveField
from tests.models.saes import HERE, Sae

TOY = "tests.toy:model"


def outputs_of(module: nn.Module, names: list[str], x: Tensor) -> dict[str, Tensor]:
    with torch.no_grad(), capture(module, names) as found:
        return {name: value.clone() for name, value in found.run(x).items()}


def pixels(n: int, side: int) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_latents_of_maps_change_nothing_and_stand_at_each_place() -> None:
    model = load_model(TOY, latents=[f"conv2={HERE}:of_maps"]).module
    x = pixels(2, 32)
    with torch.no_grad():
        assert torch.equal(model(x), load_model(TOY).module(x))
    found = outputs_of(model, ["conv2", "latents.conv2"], x)
    assert found["latents.conv2"].shape == (2, 20, 8, 8)
    sae = Sae(8, 20)
    for image, row, column in ((0, 0, 0), (1, 2, 5), (1, 7, 0)):
        expected = sae.encode(found["conv2"][image, :, row, column][None])[0]
        here = found["latents.conv2"][image, :, row, column]
        torch.testing.assert_close(here, expected, rtol=1e-6, atol=1e-6)
    assert not model.get_submodule("latents").training
    assert resolve_layers(model, ["latents.*"]) == [
        "latents.conv2", "latents.conv2.sae", "latents.conv2.sae.encoder",
        "latents.conv2.sae.decoder",
    ]  # fmt: skip


def test_latents_of_tokens_and_of_flat_outputs() -> None:
    specs = [f"blocks.1={HERE}:of_tokens", f"head={HERE}:of_head"]
    model = load_model("timm:test_vit", "none", latents=specs).module
    names = ["blocks.1", "latents.blocks.1", "head", "latents.head"]
    x = pixels(2, 160)
    shapes = activation_shapes(model, names, x)
    assert shapes["latents.blocks.1"] == ActivationShape("tokens", 24, (101, 1))
    assert shapes["latents.head"] == ActivationShape("flat", 2 * shapes["head"].channels, (1, 1))
    found = outputs_of(model, names, x)
    sae = Sae(64, 24, k=3).half().float()  # the weights as they lie in half precision
    expected = sae.encode(found["blocks.1"][1, 17][None])[0]
    torch.testing.assert_close(found["latents.blocks.1"][1, 17], expected, rtol=0, atol=1e-5)
    assert (found["latents.blocks.1"] > 0).sum(2).max() == 3
    both = torch.cat([found["head"].relu(), (-found["head"]).relu()], 1)
    assert torch.equal(found["latents.head"], both)


def test_latents_of_channels_last_maps() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(3, 8, 4, stride=4)
            self.last = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.inner(x).permute(0, 2, 3, 1))

    model, x = Last(), pixels(2, 40)
    assert attach_latents(model, "last", Sae(8, 20), x)[0] == "latents.last"
    found = outputs_of(model, ["last", "latents.last"], x)
    expected = Sae(8, 20).encode(found["last"][1, 2, 5][None])[0]
    torch.testing.assert_close(found["latents.last"][1, :, 2, 5], expected, rtol=0, atol=1e-6)


def test_the_place_of_latents_is_handed_through_by_models_that_run_all_their_children() -> None:
    x = pixels(1, 16)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()))
    plain = copy.deepcopy(model)
    # The outer layer after the inner one: its latents take the place of the inner one's container.
    for layer in ("1.0", "1"):
        attach_latents(model, layer, Sae(8, 20), x)
    assert torch.equal(model(x), plain(x))
    found = outputs_of(model, ["latents.1", "latents.1.0"], x)
    assert found["latents.1"].shape == found["latents.1.0"].shape == (1, 20, 12, 12)
    assert not torch.equal(found["latents.1"], found["latents.1.0"])
    # A copy feeds its own latents, not those of the original.
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_submodule("latents.1.sae.encoder").weight.zero_()
        other.get_submodule("latents.1.sae.encoder").bias.fill_(2)
    assert (outputs_of(other, ["latents.1"], x)["latents.1"] == 2).all()
    assert torch.equal(outputs_of(model, ["latents.1"], x)["latents.1"], found["latents.1"])


@pytest.mark.parametrize("kind", ["theoretical", "effective", 11])
@pytest.mark.parametrize(
    ("model", "layer", "factory", "side"),
    [(TOY, "conv2", "of_maps", 32), ("timm:test_vit", "blocks.1", "of_tokens", 160)],
)
def test_latents_look_where_their_layer_looks(
    kind: str, model: str, layer: str, factory: str, side: int
) -> None:
    def field(module: nn.Module, name: str) -> ReceptiveField:
        shape = activation_shapes(module, [name], torch.zeros(1, 3, side, side))[name]
        images = pixels(2, side)
        return receptive_field(module, name, side, kind, shape=shape, images=images)  # type: ignore[arg-type]

    weights = "none" if model.startswith("timm") else "default"
    alone = load_model(model, weights).module
    with_latents = load_model(model, weights, latents=[f"{layer}={HERE}:{factory}"]).module
    assert field(with_latents, f"latents.{layer}") == field(alone, layer)
    assert field(with_latents, layer) == field(alone, layer)


def test_latents_are_mined(tmp_path: Path) -> None:
    model = load_model(TOY, latents=[f"conv2={HERE}:of_maps"])
    x = pixels(9, 32)
    data = torch.utils.data.TensorDataset(x)
    found = mine(model, data, ["latents.conv2"])["latents.conv2"]
    latents = outputs_of(model.module, ["latents.conv2"], x)["latents.conv2"]
    best, image = latents.amax((2, 3)).max(0)
    torch.testing.assert_close(found.values[:, 0], best, rtol=0, atol=1e-6)
    assert torch.equal(found.image_ids[best > 0, 0], image[best > 0])


def test_globs_mine_what_can_be_mined() -> None:
    data = torch.utils.data.TensorDataset(pixels(5, 32))
    found = mine(load_model(TOY), data, "all")
    assert list(found) == ["conv1", "conv2", "head"]
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 5, 3), nn.ReLU()))
    assert list(mine(net, data, ["1*"])) == ["1", "1.0"]
    some = {"1.1": torch.tensor([2, 4])}
    assert list(mine(net, data, ["1*"], channels=some)) == ["1.0", "1.1"]


def test_weights_answer_and_factory_are_in_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fingerprint(factory: str, model: str = "timm:test_vit", layer: str = "blocks.1") -> str:
        return load_model(model, "none", latents=[f"{layer}={HERE}:{factory}"]).fingerprint

    assert fingerprint("of_tokens") == fingerprint("of_tokens")
    # The same weights, another number of active latents.
    assert fingerprint("of_tokens") != fingerprint("of_more_tokens")
    assert fingerprint("of_tokens") != load_model("timm:test_vit", "none").fingerprint
    state = Sae(8, 20).state_dict()
    monkeypatch.setenv("SAE_FILE", str(tmp_path / "sae.safetensors"))
    save_file(state, tmp_path / "sae.safetensors")
    first = fingerprint("of_file", TOY, "conv2")
    model = load_model(TOY, latents=[f"conv2={HERE}:of_file"]).module
    assert torch.equal(
        model.get_submodule("latents.conv2.sae.encoder").weight, state["encoder.weight"]
    )
    save_file({**state, "decoder.bias": state["decoder.bias"] + 1}, tmp_path / "sae.safetensors")
    assert fingerprint("of_file", TOY, "conv2") != first


def test_a_callable_answers_with_its_values_whatever_the_threads() -> None:
    weight = torch.randn(8, 20, generator=torch.Generator().manual_seed(3))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(4))

    def answer(sae: Callable[[Tensor], Tensor]) -> str:
        return attach_latents(load_model(TOY).module, "conv2", sae, pixels(1, 32))[1]

    def noisy(rows: Tensor) -> Tensor:
        return (rows @ weight).relu() * (1 + 1e-7)

    same = answer(lambda rows: (rows @ weight).relu())
    assert answer(noisy) == same
    others = [
        answer(lambda rows: 2 * (rows @ weight).relu()),
        answer(lambda rows: (rows @ weight).relu().square()),
        answer(lambda rows: rows @ weight),
        answer(lambda rows: (rows @ weight)[:, order]),
        answer(lambda rows: (rows @ weight).relu() - 0.1),
    ]
    assert len({same, *others}) == 6


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("conv2", "bad latents; got 'conv2'; expected LAYER=package.module:factory"),
        (f"={HERE}:of_maps", "bad latents"),
        ("conv2=of_maps", "bad latents"),
        (f"convv2={HERE}:of_maps", "unknown layer 'convv2'; expected one of conv2"),
        (f"conv*={HERE}:of_maps", r"latents are made from one layer; got conv\*"),
        (f"conv2={HERE}:of_mapz", "has no factory 'of_mapz'; expected one of of_maps"),
        (f"conv2={HERE}:of_nothing", r"something else; got tuple; expected .* \(16, latents\)"),
        (f"conv2={HERE}:of_one_row", r"got torch.float32 \(1, 8\)"),
        (f"conv2={HERE}:of_other_width", r"RuntimeError.*expected a map of \(sites, 8\)"),
        (f"conv2={HERE}:no_callable", "latents cannot be made by this; got int"),
    ],
)
def test_latents_that_cannot_be_made(spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(TOY, latents=[spec])


def test_a_failed_attachment_leaves_the_model_as_it_was() -> None:
    model = load_model(TOY).module
    x, keys = pixels(1, 32), set(model.state_dict())
    with pytest.raises(ModelError):
        attach_latents(model, "conv2", Sae(9, 20), x)
    assert set(model.state_dict()) == keys
    assert not model.get_submodule("conv2")._forward_hooks
    attach_latents(model, "conv2", Sae(8, 20), x)
    with pytest.raises(ModelError, match="'conv2' has latents already"):
        attach_latents(model, "conv2", Sae(8, 20), x)
    other = nn.Sequential()
    other.add_module("latents", nn.Conv2d(3, 8, 3))
    with pytest.raises(ModelError, match="a submodule of its own named 'latents'"):
        attach_latents(other, "latents", Sae(8, 20), x)
