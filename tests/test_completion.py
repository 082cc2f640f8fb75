"""Shell completion: the script, and what it is answered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from psi_engine.cli import app, completion
from psi_engine.validation.parts import NAMES


def complete(line: str) -> list[str]:
    """What the bash script gets back for a line that ends at the cursor."""
    words = line.split(" ")
    environment = {
        "_PSI_ENGINE_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = CliRunner().invoke(app, [], prog_name="psi-engine", env=environment)
    assert done.exit_code == 0, done.output
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("psi-engine valid", ["validate"]),
        ("psi-engine run --image-s", ["--image-size"]),
        ("psi-engine run --preset ", ["paper", "calibrated"]),
        ("psi-engine run --sites a", ["all"]),
        ("psi-engine run --precision exact", ["exact-fp16"]),
        ("psi-engine run --model wide_res", ["wide_resnet101_2", "wide_resnet50_2"]),
        ("psi-engine run --model tim", ["timm:"]),
        ("psi-engine validate RUN dep", ["depth"]),
    ],
)
def test_names_are_completed(line: str, expected: list[str]) -> None:
    assert complete(line) == expected


def test_models_are_all_of_torchvisions() -> None:
    import torchvision.models

    named = torchvision.models.list_models(module=torchvision.models)
    assert completion.models("") == sorted([*named, "timm:", "open_clip:"])


def test_parts_are_all_of_the_validation() -> None:
    assert completion.parts("") == sorted(NAMES)


def test_layers_are_those_of_the_run(tmp_path: Path) -> None:
    assert complete(f"psi-engine show {tmp_path} ") == []
    (tmp_path / "manifest.json").write_text(
        json.dumps({"layers": {"depth": {"layer3": 0.5, "layer4": 0.9, "fc": 1}}})
    )
    assert complete(f"psi-engine show {tmp_path} lay") == ["layer3:", "layer4:"]
    for broken in ("{", "[]", "{}", '{"layers": null}'):
        (tmp_path / "manifest.json").write_text(broken)
        assert complete(f"psi-engine show {tmp_path} ") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_is_shown(shell: str) -> None:
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    code = "import sys; sys.argv[0] = 'psi-engine'; from psi_engine.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--show-completion", shell],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "_PSI_ENGINE_COMPLETE" in done.stdout
    assert "psi-engine" in done.stdout


def test_the_tab_key_loads_no_torch() -> None:
    code = (
        "import sys\n"
        "from psi_engine.cli import completion\n"
        "assert 'resnet50' in completion.models('') and completion.parts('')\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'torchvision'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
