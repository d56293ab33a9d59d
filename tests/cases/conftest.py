"""The fixture `run_case`: a case's `run.sh`, executed in a copy of its folder, and what it printed by section."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TIME_LIMIT_S = 900


@pytest.fixture
def run_case(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Run a case and return its output (stdout and stderr) by section.

    A section starts with a line `--- TITLE` and is found under TITLE; what is printed before the first is under "".
    Keyword arguments become environment variables of the script. The case's files stay in `tmp_path / name`.
    """

    def run(name: str, **variables: str) -> dict[str, str]:
        for shared in ("show.py", "tiny.yaml"):
            shutil.copy(HERE / shared, tmp_path)
        folder = Path(shutil.copytree(HERE / name, tmp_path / name))
        environment = os.environ | {"BIN": str(Path(sys.executable).parent), "COLUMNS": "200"} | variables
        done = subprocess.run(
            ["bash", str(folder / "run.sh")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIME_LIMIT_S,
            env=environment,
            check=False,
        )
        sections = {"": ""}
        title = ""
        for line in done.stdout.splitlines():
            if line.startswith("--- "):
                title = line.removeprefix("--- ")
                sections[title] = ""
            else:
                sections[title] += line + "\n"
        return sections

    return run
