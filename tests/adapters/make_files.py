"""Files made by the tools themselves, from one tiny network and twelve tiny images.

``python -m tests.adapters.make_files`` writes what stands in ``files/``; it needs semanticlens
0.2.1 (the dependency group ``bench``) and zennit-crp 0.6.0 with zennit 0.5.1 (installed with
``pip install --no-deps zennit-crp==0.6.0 zennit==0.5.1``).
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

FILES = Path(__file__).parent / "files"
IMAGES, SIDE, CHANNELS, SAMPLES = 12, 8, 4, 5


class Net(nn.Module):
    """One convolution with positive outputs, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, 3, stride=2, padding=1)
        self.relu = nn.ReLU()
        self.head = nn.Linear(CHANNELS, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.conv(x)).mean((2, 3)))


def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = Net()
    with torch.no_grad():
        made.conv.bias.fill_(1.0)
    return made.eval()


def pixels() -> np.ndarray:
    """uint8 (IMAGES, SIDE, SIDE, 3)."""
    return np.random.default_rng(2).integers(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=np.uint8)


def inputs() -> Tensor:
    return torch.from_numpy(pixels()).permute(0, 3, 1, 2).float() / 255


def maps() -> Tensor:
    """What the layer puts out, float32 (IMAGES, CHANNELS, 4, 4)."""
    made = net()
    with torch.no_grad():
        return made.relu(made.conv(inputs()))


class Pictures(torch.utils.data.Dataset):
    """The images as tensors with a target, or as pictures."""

    def __init__(self, as_tensors: bool) -> None:
        self.name = "twelve"
        self._tensors = inputs() if as_tensors else None

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> tuple[Tensor | Image.Image, int]:
        if self._tensors is None:
            return Image.fromarray(pixels()[index]), index % 2
        return self._tensors[index], index % 2


class MeanColours:
    """Stands for SemanticLens' foundation model: 2 × 2 mean colours."""

    name = "colours"
    device = "cpu"

    def to(self, device: object) -> MeanColours:
        return self

    def preprocess(self, pictures: list[Image.Image]) -> Tensor:
        return torch.stack([torch.from_numpy(np.array(p)) for p in pictures]).permute(0, 3, 1, 2)

    def encode_image(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x.float() / 255, 2).flatten(1)


def make_semanticlens(folder: Path) -> Path:
    """Let SemanticLens write its cache and concept database; return its storage folder."""
    from semanticlens import Lens
    from semanticlens.component_visualization import ActivationComponentVisualizer, aggregators

    network = net()
    network.name = "tiny"
    visualizer = ActivationComponentVisualizer(
        network,
        Pictures(True),
        Pictures(False),
        layer_names=["relu"],
        num_samples=SAMPLES,
        aggregate_fn=aggregators.aggregate_conv_max,
        cache_dir=str(folder),
    )
    Lens(MeanColours()).compute_concept_db(visualizer, batch_size=4)
    return Path(visualizer.storage_dir)


def make_crp(folder: Path) -> Path:
    """Let zennit-crp collect the layer; return its folder of maxima."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from crp.attribution import CondAttribution
        from crp.concepts import ChannelConcept
        from crp.visualization import FeatureVisualization
        from zennit.composites import EpsilonPlusFlat

        collected = FeatureVisualization(
            CondAttribution(net()),
            Pictures(True),
            {"relu": ChannelConcept()},
            max_target="max",
            abs_norm=False,
            path=str(folder),
        )
        collected.run(EpsilonPlusFlat(), 0, IMAGES, batch_size=4, checkpoint=10)
    return Path(collected.ActMax.PATH)


def main() -> None:
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        for name, make in (("semanticlens", make_semanticlens), ("crp", make_crp)):
            source = make(Path(made) / name)
            target = FILES / name if name == "semanticlens" else FILES / name / source.name
            shutil.rmtree(FILES / name, ignore_errors=True)
            shutil.copytree(source, target)


if __name__ == "__main__":
    main()
