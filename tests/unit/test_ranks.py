"""One command started several times: the processes find each other, and say so where one is missing."""

import json
import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from orrery.pipeline import ranks
from orrery.pipeline.cli import main
from orrery.pipeline.config.load import load_config
from orrery.pipeline.errors import ConfigError, StageError
from orrery.pipeline.lock import locked
from orrery.pipeline.logging import ConsoleProgress
from orrery.pipeline.ranks import Launch, check_launch, follow, launched
from orrery.pipeline.runner import run
from orrery.pipeline.stage import Context, Stage
from orrery.stages.training.ranks import connected
from rich.console import Console

from .toy_stages import Make

QUIET = ConsoleProgress(Console(quiet=True))
SECOND = Launch(1, 2, 0)


@dataclass(frozen=True)
class AddConfig:
    nodes: int = 2


class Add(Stage):
    """Every process writes what the first one says; the first waits for the others to have done so."""

    Config = AddConfig
    output_kind = "total"

    @property
    def processes(self) -> int:
        return self.config.nodes

    def run(self, context: Context) -> str:
        team = context.team
        said = team.meet({"word": f"said by {team.launch.rank}"})
        (context.folder / f"{team.launch.rank}.txt").write_text(said["word"])
        deadline = time.monotonic() + 10
        while len(list(context.folder.glob("*.txt"))) < team.launch.world_size and time.monotonic() < deadline:
            time.sleep(0.01)
        return "met"


STAGES: dict[str, type[Stage]] = {"make": Make, "add": Add}


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ranks, "POLL_SECONDS", 0.01)
    configs = tmp_path / "configs"
    (configs / "experiments").mkdir(parents=True)
    (configs / "base.yaml").write_text("defaults: [schema, _self_]\n")
    (configs / "experiments" / "toy.yaml").write_text(
        "# @package _global_\ndefaults: [/base, _self_]\nstages: [make, add]\n"
    )

    def load_toy(*overrides: str):
        return load_config("toy", (f"run_dir={tmp_path / 'run'}", *overrides), stages=STAGES, config_dir=configs)

    return load_toy


def run_first(config, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    with locked(config.run_dir):
        run(config, STAGES, log=logging.getLogger("toy"), progress=QUIET)


class Follower(threading.Thread):
    """The second process."""

    def __init__(self, config) -> None:
        super().__init__(daemon=True)
        self._config = config
        self.joined: list[str] = []
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            follow(self._config, STAGES, SECOND, progress=QUIET, on_join=self.joined.append)
        except Exception as error:
            self.error = error

    def end(self) -> None:
        self.join(timeout=20)
        assert not self.is_alive()


def test_all_run_the_stage_that_asks_for_them(load, monkeypatch) -> None:
    config = load()
    follower = Follower(config)
    run_first(config, monkeypatch)
    follower.end()
    assert follower.error is None
    assert follower.joined == ["add"]
    assert [(config.run_dir / "add" / f"{rank}.txt").read_text() for rank in (0, 1)] == ["said by 0"] * 2
    assert not (config.run_dir / "add.ranks").exists()

    again = Follower(config)  # everything is up to date
    again.end()
    assert (again.joined, again.error) == ([], None)


def test_what_a_killed_run_called_for_is_not_joined(load, monkeypatch) -> None:
    config = load("wait_min=0.1")
    folder = config.run_dir / "add.ranks"
    folder.mkdir(parents=True)
    call = {"id": "old", "caller": "process 1 on elsewhere", "stage": "add", "folder": str(folder), "inputs": {}}
    (folder / "call.json").write_text(json.dumps({**call, "said": {"word": "old"}}))
    (folder / "1.json").write_text(json.dumps({"id": "old"}))
    follower = Follower(config)
    time.sleep(0.1)
    run_first(config, monkeypatch)
    follower.end()
    assert follower.joined == ["add"]
    assert (config.run_dir / "add" / "1.txt").read_text() == "said by 0"


def test_a_missing_process_is_named_after_a_while(load, monkeypatch) -> None:
    config = load("wait_min=0.002")
    with pytest.raises(StageError, match=r"add needs 2 processes, but after 0.002 min .* missing: rank 1\."):
        run_first(config, monkeypatch)
    assert not (config.run_dir / "add.ranks").exists()
    with pytest.raises(StageError, match=r"rank 1: no process has started in .*run for 0.002 min"):
        follow(config, STAGES, SECOND, progress=QUIET)


def test_the_others_end_when_the_first_has_ended(load) -> None:
    config = load()
    with locked(config.run_dir):
        follower = Follower(config)
        time.sleep(0.2)
        assert follower.is_alive()
    follower.end()
    assert isinstance(follower.error, StageError)
    assert "ended before add was done" in str(follower.error)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Launch(3, 4, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, None),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}, Launch(5, 8, 1)),
        # A batch script that starts the command without srun.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}, None),
    ],
)
def test_how_processes_know_which_one_they_are(monkeypatch, variables, expected) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launched() == expected


def test_a_number_of_processes_that_no_stage_asks_for(load, monkeypatch, capsys) -> None:
    with pytest.raises(ConfigError, match=r"add needs 3 processes .* but 2 were started"):
        check_launch(load("add.nodes=3"), STAGES, SECOND)
    with pytest.raises(ConfigError, match=r"started 2 times .* start it once"):
        check_launch(load("add.nodes=1"), STAGES, SECOND)
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    assert main(["study", "anything"], stages=STAGES) == 2
    assert "start it once" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("[gloo/transport/tcp/pair.cc:534] Connection closed by peer", StageError),
        ("Application timeout caused pair closure", StageError),  # of a wait that another timeout ended
        ("mat1 and mat2 shapes cannot be multiplied", RuntimeError),
    ],
)
def test_a_lost_connection_is_named(monkeypatch, message: str, expected: type[Exception]) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(expected) as raised, connected():
        raise RuntimeError(message)
    assert ("lost the connection to another training process" in str(raised.value)) == (expected is StageError)
