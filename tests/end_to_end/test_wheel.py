"""The wheel holds every module and data file: the package list is explicit, and a forgotten folder only warns."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("pipeline", "datasets", "stages", "configs")
DATA = {".py", ".yaml", ".html", ".css", ".typed"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # From a copy: setuptools leaves a build/ folder that would hide a file removed since.
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in files:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(folder), "."]
    subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)
    (built,) = folder.glob("*.whl")
    return built


def test_every_module_and_data_file_is_in_the_wheel(wheel):
    expected = {
        f"orrery/{path.relative_to(ROOT).as_posix()}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in DATA and "__pycache__" not in path.parts
    }
    expected = {name.replace("orrery/stages/public/", "orrery/") for name in expected}
    assert len(expected) > 50
    missing = expected - set(zipfile.ZipFile(wheel).namelist())
    assert not missing, f"add their folders to pyproject.toml [tool.setuptools] packages: {sorted(missing)}"


def test_the_wheel_installs_and_imports_in_a_fresh_environment(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, str(wheel)]
    subprocess.run(install, check=True)
    # From the repository root, where a folder called `datasets` must not become what `import datasets` finds.
    code = (
        "import orrery, orrery.pipeline.errors as e, orrery.pipeline.stage as s; "
        "assert orrery.__version__ and 'WorldModel' in dir(orrery); "
        f"assert e.__file__.startswith({site!r}), e.__file__; "
        "import importlib.util as u; assert u.find_spec('datasets').origin is None"
    )
    subprocess.run([python, "-c", code], check=True, cwd=ROOT)
