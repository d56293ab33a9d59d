"""`orrery tasks` and `python -m orrery`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from orrery.datasets.tasks.tdmpc2 import SETS
from orrery.pipeline.cli import main


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("mt30", list(SETS["mt30"])),
        ("ball_in_cup", ["dmc/ball_in_cup-catch", "dmc/ball_in_cup-spin"]),
        ("metaworld/door-*", ["metaworld/door-close-v3", "metaworld/door-lock-v3", "metaworld/door-open-v3",
                              "metaworld/door-unlock-v3"]),
    ],
)  # fmt: skip
def test_names_of_a_set_or_a_pattern(pattern, expected, capsys):
    assert main(["tasks", pattern]) == 0
    assert capsys.readouterr().out.split() == expected
    assert main(["tasks", pattern, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == expected


def test_a_suite_is_listed_whole(capsys):
    assert main(["tasks", "metaworld"]) == 0
    assert len(capsys.readouterr().out.split()) == 50


def test_sizes(capsys):
    assert main(["tasks", "dmc/cartpole-swingup", "--long"]) == 0
    assert "dmc/cartpole-swingup         5            1       500 x 2  return / 1000" in capsys.readouterr().out


def test_tasks_that_cannot_be_built_are_apart_from_the_output(capsys, monkeypatch):
    monkeypatch.setattr(
        "orrery.stages.data.command_tasks._matching", lambda pattern: ["gymnasium/Pusher-v4", "dmc/cartpole-swingup"]
    )
    assert main(["tasks", "--long", "--json"]) == 0
    found = capsys.readouterr()
    assert [spec["name"] for spec in json.loads(found.out)] == ["dmc/cartpole-swingup"]
    assert found.err.startswith("task 'gymnasium/Pusher-v4': its environment 'Pusher-v4' cannot be built: ")
    assert found.err.count("\n") == 1


def test_stubs_of_gymnasium_are_no_tasks(capsys):
    assert main(["tasks", "gymnasium"]) == 0
    names = capsys.readouterr().out.split()
    assert "gymnasium/Ant-v5" in names
    assert not {"gymnasium/Ant-v2", "gymnasium/GymV21Environment-v0"} & set(names)


def test_a_pattern_may_leave_the_suite_out(capsys):
    assert main(["tasks", "cartpole-swing*"]) == 0
    assert capsys.readouterr().out.split() == ["dmc/cartpole-swingup", "dmc/cartpole-swingup_sparse"]


def test_nothing_matches(capsys):
    assert main(["tasks", "walkerr"]) == 2
    assert "no task matches 'walkerr'; expected a suite (dmc, metaworld" in capsys.readouterr().err


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "orrery", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("orrery ")
