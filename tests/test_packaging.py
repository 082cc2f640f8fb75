"""The wheel holds kernels, concept lists, demo and report page, and imports from anywhere."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]

PROBE = """
import pathlib, sys
import psi_engine
assert "torch" not in sys.modules, "import psi_engine must load nothing heavy"
home = pathlib.Path(psi_engine.__file__).parent
from psi_engine.ops._cuda import kernel_folder
from psi_engine import demo, vocabulary
assert kernel_folder() == home / "kernels", kernel_folder()
assert demo.images_path().is_file()
assert len(vocabulary.build_vocabulary(None, None).concepts) == 67
print(home)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_wheel_ships_kernels_concepts_and_demo(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"psi_engine"}
    shipped = {path.name for path in (PROJECT / "kernels").iterdir()}
    assert {f"psi_engine/kernels/{name}" for name in shipped} <= set(names)
    assert any(name.startswith("psi_engine/concepts/") for name in names)
    assert any(name.startswith("psi_engine/demo/assets/") for name in names)
    page = PROJECT / "psi_engine/report/page/assets"
    assert {f"psi_engine/report/page/assets/{path.name}" for path in page.iterdir()} <= set(names)


def test_wheel_imports_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == tmp_path / "site"
