"""The command line: exit codes, messages, streams, formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from psi_engine.cli import app
from tests import toy

RUN: dict[str, Any] = {
    "model": "tests.toy:model",
    "layers": "conv2",
    "encoder": "tests.toy:encoder",
    "patch": 16,
    "top-k": 12,
    "replicates": 20,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_images(tmp_path_factory.mktemp("images"), 30)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def call_run(out: Path, images: Path, *flags: str, **changes: Any) -> Result:
    options = {**RUN, "data": images, "out": out}
    options |= {name.replace("_", "-"): value for name, value in changes.items()}
    given = {name: value for name, value in options.items() if value is not None}
    pairs = [part for name, value in given.items() for part in (f"--{name}", value)]
    return call("run", *flags, *pairs)


def test_run_prints_its_path_on_stdout_and_its_tables_on_stderr(
    images: Path, tmp_path: Path
) -> None:
    done = call_run(tmp_path / "run", images)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'run'}\n"
    for expected in ("conv2:", "time:", "mine", "embed", "score"):
        assert expected in done.stderr


def test_quiet_says_only_the_path_and_json_only_json(images: Path, tmp_path: Path) -> None:
    quiet = call_run(tmp_path / "run", images, "--quiet")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, f"{tmp_path / 'run'}\n", "")
    machine = call_run(tmp_path / "run", images, "--json")
    assert machine.exit_code == 0
    found = json.loads(machine.stdout)
    assert found["run"] == str(tmp_path / "run")
    assert found["layers"][0]["channels"] == 8
    assert set(found["seconds"]) == {"prepare", "mine", "patches", "embed", "score"}


def test_show_run_and_channel(images: Path, tmp_path: Path) -> None:
    call_run(tmp_path / "run", images, "--quiet")
    whole = call("show", tmp_path / "run")
    assert whole.exit_code == 0
    assert "conv2:" in whole.stdout
    one = call("show", tmp_path / "run", "conv2:3")
    assert one.exit_code == 0
    assert "conv2:3" in one.stdout
    assert "null mean" in one.stdout
    details = json.loads(call("show", tmp_path / "run", "conv2:3", "--json").stdout)
    assert len(details["sites"]) == 12
    assert len(details["clusters"]) == details["scores"]["n_clusters"]
    dead = json.loads(call("show", tmp_path / "run", "conv2:7", "--json").stdout)
    assert dead["scores"]["monosemanticity"] is None
    dead = call("show", tmp_path / "run", "conv2:7")
    assert dead.exit_code == 0
    assert "dead channel" in dead.stdout
    for address, message in (
        ("conv9:3", "the layer is not in this run; got conv9; expected conv2"),
        ("conv2:99", "the channel is not in this run's conv2; got 99"),
        ("conv2", "not a channel's address"),
    ):
        bad = call("show", tmp_path / "run", address)
        assert bad.exit_code == 2
        assert message in bad.stderr
    assert call("show", tmp_path / "nothing").exit_code == 2


def test_config_file_mirrors_the_options_which_win(images: Path, tmp_path: Path) -> None:
    lines = [f'data = "{images}"', 'layers = ["head"]', "top-k = 9", "k_max = 3", "patch = 16"]
    lines += ['model = "tests.toy:model"', 'encoder = "tests.toy:encoder"', "replicates = 20"]
    file = tmp_path / "run.toml"
    file.write_text("\n".join(lines))
    done = call("run", "--config", file, "--layers", "conv2", "--out", tmp_path / "run", "--json")
    assert done.exit_code == 0, done.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["config"]["layers"] == ["conv2"]
    assert manifest["config"]["mine"]["top_k"] == 9
    assert manifest["config"]["score"]["k_max"] == 3
    file.write_text("top_q = 9")
    assert (
        "unknown option; got 'top_q'; expected one of top_k" in call("run", "--config", file).stderr
    )
    file.write_text("top_k =")
    assert "is not TOML" in call("run", "--config", file).stderr
    assert "not there" in call("run", "--config", tmp_path / "no.toml").stderr


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("unknown model", {"model": "resnet5o"}, "resnet50"),
    ("unknown factory", {"model": "tests.toy:modle"}, "model"),
    ("layer typo", {"layers": "conv3"}, "conv2"),
    ("missing weights", {"weights": "no-such.pth"}, "no-such.pth"),
    ("unknown layer of channels", {"channels": "conv9:0-3"}, "conv9"),
    ("unknown channel", {"channels": "conv2:0-99"}, "99"),
    ("K below 4", {"top_k": 3}, "top_k is too small; got 3; expected at least 4"),
    ("M below 2", {"replicates": 1}, "replicates is too small; got 1; expected at least 2"),
    ("unknown preset", {"preset": "fast"}, "unknown preset; got 'fast'; expected one of paper"),
    ("unknown encoder", {"encoder": "clip"}, "open_clip:"),
    (
        "missing encoder weights",
        {"encoder": "classifier:resnet18", "encoder_weights": "no.pth"},
        "no.pth",
    ),
    ("missing concepts", {"concepts": "no.txt"}, "no.txt"),
    (
        "concepts for an encoder without text",
        {"encoder": "tests.toy:textless", "concepts": __file__},
        "cannot embed concepts",
    ),
    ("pool below K", {"toml": "pool = 8"}, "smaller than a channel's patches; got pool 8"),
    ("a word for a number", {"toml": 'replicates = "many"'}, "is not a number; got 'many'"),
    ("missing data", {"data": "no-such-folder"}, "no-such-folder"),
    ("unknown device", {"device": "tpu"}, "tpu"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"), [case[1:] for case in BAD], ids=[c[0] for c in BAD]
)
def test_bad_input_is_refused_before_work(
    images: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    if "toml" in changes:
        (tmp_path / "run.toml").write_text(changes["toml"])
        changes = {"config": tmp_path / "run.toml", "replicates": None}
    done = call_run(tmp_path / "run", images, **changes)
    assert done.exit_code == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_bad_usage(images: Path, tmp_path: Path) -> None:
    done = call_run(tmp_path / "run", images, device="cuda")
    assert done.exit_code == 2
    assert "CUDA" in done.stderr
    assert "--device cpu" in done.stderr


def test_weights_of_another_architecture(images: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"conv1.weight": torch.zeros(4, 3, 3, 3), "fc.bias": torch.zeros(5)}, file)
    done = call_run(tmp_path / "run", images, model="resnet18", layers="layer4", weights=file)
    assert done.exit_code == 2
    assert "other.safetensors" in done.stderr
    assert "fc.bias" in done.stderr or "conv1.weight" in done.stderr


def test_empty_and_tiny_data(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = call_run(tmp_path / "run", tmp_path / "empty")
    assert done.exit_code == 2
    assert "empty" in done.stderr
    toy.write_images(tmp_path / "three", 3)
    done = call_run(tmp_path / "run", tmp_path / "three")
    assert done.exit_code == 2
    assert "too few images; got 3; expected at least 4" in done.stderr


def test_mostly_corrupt_data_stops_the_run(images: Path, tmp_path: Path) -> None:
    folder = toy.write_images(tmp_path / "images", 30)
    for file in list(folder.rglob("*.png"))[:15]:
        file.write_bytes(b"not a picture")
    done = call_run(tmp_path / "run", folder)
    assert done.exit_code == 1
    assert "too many images cannot be read; got 4 of 30" in done.stderr


def test_folder_of_another_run_is_refused(images: Path, tmp_path: Path) -> None:
    assert call_run(tmp_path / "run", images, "--quiet").exit_code == 0
    others = toy.write_images(tmp_path / "others", 31)
    done = call_run(tmp_path / "run", others)
    assert done.exit_code == 2
    assert "holds another run" in done.stderr
    assert "give another --out" in done.stderr


def test_interruption_keeps_state_and_says_how_to_go_on(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from psi_engine import pipeline

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "describe_clusters", stop)
    done = call_run(tmp_path / "run", images)
    assert done.exit_code == 130
    assert "continues where it stopped" in done.stderr
    monkeypatch.undo()
    assert call_run(tmp_path / "run", images, "--quiet").exit_code == 0


def test_unexpected_failure_is_one_line_unless_debug(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from psi_engine import pipeline

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("the sky fell")

    monkeypatch.setattr(pipeline, "describe_clusters", fail)
    done = call_run(tmp_path / "run", images)
    assert done.exit_code == 1
    assert "error: RuntimeError: the sky fell" in done.stderr
    assert "--debug" in done.stderr
    assert isinstance(call_run(tmp_path / "run", images, "--debug").exception, RuntimeError)


@pytest.mark.parametrize("kind", ["npz", "safetensors", "parquet"])
def test_score_file_gives_what_the_library_gives(tmp_path: Path, kind: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    import psi_engine as psi

    rng = np.random.default_rng(0)
    z = rng.normal(size=(6, 20, 16)).astype(np.float32)
    labels = rng.integers(0, 3, (6, 20))
    text = rng.normal(size=(9, 16)).astype(np.float32)
    file = tmp_path / f"acts.{kind}"
    if kind == "npz":
        np.savez(file, embeddings=z, labels=labels, text_embeddings=text)
    elif kind == "safetensors":
        save_numpy({"embeddings": z, "labels": labels, "text_embeddings": text}, file)
    else:
        pq.write_table(pa.table({"embeddings": z.tolist(), "labels": labels.tolist()}), file)
        np.save(tmp_path / "text.npy", text)
    extra = ("--text", tmp_path / "text.npy") if kind == "parquet" else ()
    done = call("score", file, "--replicates", 30, "--device", "cpu", "--quiet", *extra)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'acts-psi'}\n"
    stored = psi.open_run(tmp_path / "acts-psi")
    direct = psi.score(
        z, labels=labels, text_embeddings=text, config=psi.ScoreConfig(replicates=30), device="cpu"
    )
    assert stored.channels["log_psi"].to_pylist() == direct.log_psi.tolist()
    clusters = np.array(stored.sites["cluster"].to_pylist()).reshape(6, 20)
    assert (clusters == direct.assignments.numpy()).all()
    shown = call("show", tmp_path / "acts-psi", "acts:2")
    assert shown.exit_code == 0, shown.stderr


def test_score_file_layers_of_safetensors(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layers = {name: rng.normal(size=(3, 12, 8)).astype(np.float32) for name in ("b1", "b2")}
    save_numpy(layers, tmp_path / "db.safetensors")
    done = call(
        "score", tmp_path / "db.safetensors", "--replicates", 10, "--out", tmp_path / "o", "--json"
    )
    assert done.exit_code == 0, done.stderr
    assert [row["layer"] for row in json.loads(done.stdout)["layers"]] == ["b1", "b2"]


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("none.npz", None, "the file is not there"),
        ("a.csv", b"1,2", "unknown kind of file; got a.csv; expected .npz"),
        ("a.npz", b"junk", "cannot be read"),
        ("b.npz", {"acts": np.zeros((2, 5, 3))}, "no embeddings in the file; got b.npz with acts"),
        ("c.npz", {"embeddings": np.zeros((5, 3))}, "(channels, patches, dim)"),
        ("d.npz", {"embeddings": np.full((2, 5, 3), "x")}, "d does not hold numbers; got <U1"),
        ("e.npz", {"embeddings": np.ones((2, 5, 3)), "labels": np.full((2, 5), "x")},
         "array labels does not hold numbers"),
    ],
)  # fmt: skip
def test_score_file_refuses_bad_files(tmp_path: Path, name: str, arrays: Any, message: str) -> None:
    file = tmp_path / name
    if isinstance(arrays, bytes):
        file.write_bytes(arrays)
    elif arrays is not None:
        np.savez(file, **arrays)
    done = call("score", file)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not any(path.is_dir() for path in tmp_path.iterdir())


def test_version_and_help() -> None:
    from psi_engine import __version__

    assert call("--version").stdout == f"psi-engine {__version__}\n"
    shown = call("run", "--help").stdout
    for option in ("--model", "--layers", "--encoder-weights", "--max-images", "--preset"):
        assert option in shown
    assert "🏭" not in shown  # what stands between two colons can be a picture
