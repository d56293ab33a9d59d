"""A run that is killed at any of its file operations ends, when it is repeated, as one that was not."""

import dataclasses
import importlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from orrery.pipeline import artifact
from orrery.pipeline.config.load import RunConfig, load_config
from orrery.pipeline.jobs.fanout import FanoutConfig, FolderJob, fan_out
from orrery.pipeline.jobs.job import CPU_SECONDS, STATUS
from orrery.pipeline.lock import locked
from orrery.pipeline.logging import ConsoleProgress
from orrery.pipeline.run_folder import KEPT_FOLDER
from orrery.pipeline.runner import run
from orrery.pipeline.stage import Context, Stage
from rich.console import Console

from .kills import in_child, kill_at
from .toy_stages import STAGES, write_configs

HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class SquareConfig:
    first: int = 0


class Square(Stage):
    """Squares, in jobs."""

    Config = SquareConfig
    output_kind = "squares"

    def run(self, context: Context) -> str:
        function = importlib.import_module("fanout_jobs").square
        jobs = [FolderJob(name, {"name": name, "number": self.config.first + n}) for n, name in enumerate("ab")]
        for name, result in fan_out(jobs, function, context, FanoutConfig()).items():
            shutil.copytree(result, context.folder / name, dirs_exist_ok=True)
            (context.folder / name / artifact.MANIFEST).unlink()
        return "2 squares"


ALL = {**STAGES, "square": Square}


class Project:
    """The toy project with a stage that fans out, whose runs a test kills."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config_dir = folder / "run", write_configs(folder / "configs")

    def load(self, *overrides: str) -> RunConfig:
        given = (f"run_dir={self.folder}", "stages=[make,square,add,report]", *overrides)
        return load_config("toy", given, stages=ALL, config_dir=self.config_dir)

    def run(self, config: RunConfig) -> None:
        with locked(self.folder):
            run(config, ALL, log=logging.getLogger("toy"), progress=ConsoleProgress(Console(quiet=True)))

    def killed(self, config: RunConfig, number: int, *, opened: bool = False) -> bool:
        """Run in a process that is killed at an operation; False where it ended before."""

        def work() -> None:
            kill_at(number, self.folder, opened=opened)
            self.run(config)

        status = in_child(work)
        assert status in (None, 0)
        return status is None

    def artifacts(self) -> dict[str, Any]:
        """What was published, of `state`."""
        return {path: content for path, content in self.state().items() if path.split("/")[0] in ALL}

    def state(self) -> dict[str, Any]:
        """What stands in the run folder, without what is different in every run."""
        return {
            path.relative_to(self.folder).as_posix(): _content(path)
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
            and path.name not in (".lock", "run.json", "log.txt", CPU_SECONDS)
            and KEPT_FOLDER not in path.parts
        }


def _content(path: Path) -> Any:
    if path.name == STATUS:
        return json.loads(path.read_text())["state"]
    if path.name != artifact.MANIFEST:
        return path.read_bytes()
    values: Mapping[str, Any] = json.loads(path.read_text())
    return {name: value for name, value in values.items() if name not in ("created", "seconds", "summary")}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("FAULTS", str(tmp_path / "faults"))
    monkeypatch.setattr(os, "fsync", lambda file: None)  # slow, and a killed process loses nothing that it wrote
    return Project(tmp_path)


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_file_operation_changes_nothing(project: Project, step: int) -> None:
    config = project.load()
    project.run(config)
    expected = project.state()
    for opened in (False, True):
        number = step
        while True:
            shutil.rmtree(project.folder)
            if not project.killed(config, number + opened, opened=opened):
                break
            project.run(config)
            assert project.state() == expected, number
            number += step
        assert number > 50


def test_a_kill_while_artifacts_are_replaced_changes_nothing(project: Project, tmp_path: Path) -> None:
    former, changed = project.load(), project.load("make.size=4", "square.first=2")
    project.run(former)
    shutil.copytree(project.folder, tmp_path / "former")
    before = project.artifacts()
    project.run(changed)
    after = project.state()
    number = 0
    while True:
        number += 7
        shutil.rmtree(project.folder)
        shutil.copytree(tmp_path / "former", project.folder)
        if not project.killed(changed, number):
            break
        if number % 2:
            project.run(former)
            assert project.artifacts() == before, number
        project.run(changed)
        assert project.state() == after, number
    assert number > 50


def test_a_kill_of_what_repairs_after_a_kill_changes_nothing(project: Project) -> None:
    config = project.load()
    project.run(config)
    expected = project.state()
    for first in range(1, 100, 9):
        shutil.rmtree(project.folder)
        again = 0
        if project.killed(config, first):
            while project.killed(config, again := again + 5):
                pass
        assert project.state() == expected, (first, again)
