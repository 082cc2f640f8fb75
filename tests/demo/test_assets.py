"""The shipped files load, hold what the card says and are as good as it says."""

from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from psi_engine import demo
from psi_engine.config import ScoreConfig
from psi_engine.data import open_source
from psi_engine.demo.assets import ASSETS
from psi_engine.demo.world import CLASS_NAMES
from psi_engine.scores.score import score
from psi_engine.vocabulary import build_vocabulary

TEMPLATES = ("a photo of a {}", "there is a {} in the scene", "{}")


@pytest.fixture(scope="module")
def model():
    return demo.classifier()


@pytest.fixture(scope="module")
def images(model):
    source = open_source(demo.images_path())
    views = torch.stack([source.view(index, model[1]) for index in range(len(source))])
    return views, source.labels


@pytest.fixture(scope="module")
def logits(model, images):
    module, preprocess = model
    with torch.no_grad():
        return torch.cat([module(preprocess.normalise(part)) for part in images[0].split(256)])


@pytest.fixture(scope="module")
def embeddings(images):
    found = {}
    for encoder in (demo.encoder(), demo.second_encoder()):
        parts = [encoder.encode_images(part / 255) for part in images[0].split(256)]
        found["encoder" if encoder.name == "demo" else "second_encoder"] = torch.cat(parts)
    return found


def test_assets_are_small_and_told_about():
    files = [path for path in ASSETS.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 5e6
    assert {path.name for path in files} == {
        "NOTICE",
        "card.json",
        "classifier.safetensors",
        "encoder.safetensors",
        "images.parquet",
        "second_encoder.safetensors",
    }
    assert demo.card()["config"]["seed"] == 0
    assert set(demo.card()["versions"]) == {"torch", "numpy", "pillow"}


def test_images_are_a_hugging_face_table(images):
    source = open_source(demo.images_path())
    assert len(source) == demo.card()["config"]["held_out"] == 1920
    assert source.class_names == CLASS_NAMES
    assert torch.bincount(source.labels).tolist() == [60] * 32
    schema = pq.read_schema(demo.images_path())
    assert schema.field("image").type.get_field_index("bytes") == 0
    assert images[0].shape == (1920, 3, 64, 64)


def test_classifier_reaches_what_the_card_says(logits, images):
    accuracy = (logits.argmax(1) == images[1]).float().mean().item()
    assert accuracy == pytest.approx(demo.card()["accuracy"]["classifier"], abs=0.01)
    assert accuracy > 0.92


@pytest.mark.parametrize("which", ["encoder", "second_encoder"])
def test_encoders_name_classes_they_were_never_told_of(which, images, embeddings):
    encoder, image = getattr(demo, which)(), embeddings[which]
    texts = [template.format(name) for template in TEMPLATES for name in CLASS_NAMES]
    text = encoder.encode_texts(texts)
    assert image.shape == (1920, encoder.dim)
    assert text.shape == (96, encoder.dim)
    torch.testing.assert_close(image.norm(dim=1), torch.ones(1920), atol=1e-5, rtol=0)
    torch.testing.assert_close(text.norm(dim=1), torch.ones(96), atol=1e-5, rtol=0)
    for prompts in text.chunk(len(TEMPLATES)):
        accuracy = ((image @ prompts.T).argmax(1) == images[1]).float().mean().item()
        assert accuracy > 0.87  # chance is 1/32


def test_second_encoder_reaches_what_the_card_says_in_a_space_of_its_own(images, embeddings):
    encoder, image = demo.second_encoder(), embeddings["second_encoder"]
    assert encoder.fingerprint != demo.encoder().fingerprint
    assert encoder.name != demo.encoder().name
    text = encoder.encode_texts([f"a {name}" for name in CLASS_NAMES])
    accuracy = ((image @ text.T).argmax(1) == images[1]).float().mean().item()
    assert accuracy == pytest.approx(demo.card()["second_encoder"]["accuracy"]["class"], abs=0.02)
    foreign = ((embeddings["encoder"] @ text.T).argmax(1) == images[1]).float().mean().item()
    assert foreign < 0.2


@pytest.mark.parametrize("which", ["encoder", "second_encoder"])
def test_encoders_do_not_mind_words_they_do_not_know(which):
    encoder = getattr(demo, which)()
    plain = encoder.encode_texts(list(CLASS_NAMES))
    framed = encoder.encode_texts(
        [f"a blurry snapshot in which a {name} can be seen" for name in CLASS_NAMES]
    )
    assert ((plain @ framed.T).argmax(1) == torch.arange(32)).all()


def planted_tops(seed, images, logits):
    """The fifty strongest images of each planted unit, int64 (units, 50)."""
    module, _ = demo.classifier(seed)
    return module.planted(logits, images[0].to(torch.float32)).topk(50, 0).indices.T


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_units_fire_for_their_classes_and_each_gets_its_share(seed, images, logits):
    share = {"mono": 45, "poly2": 15, "poly3": 8, "poly5": 3}
    labels = images[1][planted_tops(seed, images, logits)].tolist()
    for kind, classes, found in zip(
        demo.planted_kinds(), demo.planted_classes(seed), labels, strict=True
    ):
        if kind == "random":
            assert max(map(found.count, set(found))) <= 10
            continue
        counts = [found.count(label) for label in classes]
        assert sum(counts) >= (45 if kind == "mono" else 47), (kind, classes, counts)
        assert min(counts) >= share[kind], (kind, classes, counts)


def test_statistics_of_the_planted_layer_are_not_one_tensor(model):
    planted = model[0].planted
    assert not torch.equal(planted.mean, planted.std)
    assert (planted.std > 0).all()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("labelled", [True, False])
def test_psi_tells_planted_units_apart_where_s_does_not(seed, labelled, images, logits, embeddings):
    tops = planted_tops(seed, images, logits)
    vocabulary = build_vocabulary(CLASS_NAMES)
    scores = score(
        embeddings["encoder"][tops],
        images[1][tops] if labelled else None,
        demo.encoder().encode_texts(list(vocabulary.texts)),
        vocabulary.concept_ids,
        pool=embeddings["encoder"],
        config=ScoreConfig(seed=seed),
        device="cpu",
    )
    found = demo.auroc(scores)
    assert min(found["PSI"].values()) >= 0.95
    assert found["S"]["mono"] <= found["PSI"]["mono"] - 0.05


def test_closing_verdict_reads_the_planted_rows_in_channel_order():
    kinds = demo.planted_kinds()
    values = [float(kind.startswith("poly")) for kind in kinds]
    order = list(range(len(kinds)))[::-1]
    table = pa.table(
        {
            "layer": ["stage4"] * 3 + ["planted"] * len(kinds),
            "channel": [0, 1, 2, *order],
            "log_psi": [9.0] * 3 + [values[unit] for unit in order],
            "s": [0.0] * (3 + len(kinds)),
        }
    )
    truth = demo.judge(SimpleNamespace(channels=table))
    assert truth["auroc"] == {
        "PSI": {"mono": 1.0, "random": 1.0},
        "S": {"mono": 0.5, "random": 0.5},
    }
    assert truth["accuracy"] == demo.card()["accuracy"]
