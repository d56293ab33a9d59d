"""Datasets of one task put together: every episode once, labels that differ, and a behaviour for the whole."""

import json
import logging
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from orrery.datasets.collect import write_dataset
from orrery.datasets.formats.chain import ChainReader, joint_behaviour
from orrery.datasets.formats.sources import open_reader
from orrery.datasets.rollout import play_episodes
from orrery.datasets.store import TaskStore
from orrery.datasets.tasks import task_spec
from orrery.pipeline.errors import DatasetError
from orrery.pipeline.stage import Context
from orrery.stages.data.config import PackConfig
from orrery.stages.data.stage_pack import Pack

PENDULUM = task_spec("gymnasium/Pendulum-v1")


def collected(folder, seeds, force, behaviour):
    """An artifact of the stage collect: pushes of one force."""

    def act(observation, _):
        return np.full((len(observation), 1), force, np.float32)

    results = [result for _, result in play_episodes(PENDULUM, act, seeds, record=True, lanes=1)]
    record = write_dataset(folder / "minari", PENDULUM, behaviour, results, {})
    tasks = {PENDULUM.name: {"path": f"minari/{record['dataset_id']}", **record}}
    (folder / "datasets.json").write_text(json.dumps({"tasks": tasks}))
    return folder


@pytest.fixture
def two(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    return [
        collected(tmp_path / "first", [1, 2], 0.25, "exploration"),
        collected(tmp_path / "second", [3], -0.5, "policy"),
    ]


def test_pack_puts_together_what_several_collections_hold(tmp_path, two):
    out = tmp_path / "pack"
    out.mkdir()

    def progress(*_, **__):
        return nullcontext(SimpleNamespace(advance=lambda amount=1: None, note=lambda text: None))

    context = Context(out, {"datasets": two}, 1, 1, logging.getLogger("test"), progress)
    Pack(PackConfig([PENDULUM.name])).run(context)
    (task,) = TaskStore.open(out).tasks
    assert list(task.lengths) == [200, 200, 200]
    pushes = [float(task.rows[start, 3]) for start in task.offsets[:-1]]
    assert pushes == [0.25, 0.25, -0.5]
    assert task.summary.behaviour == "exploration"
    (summary,) = json.loads((out / "store.json").read_text())["tasks"]
    assert [part["episodes"] for part in summary["source"]["parts"]] == [2, 1]


def test_episodes_of_equal_names_can_be_told_apart(two):
    folders = [str(next(folder.glob("minari/**/data")).parent) for folder in two]
    reader = open_reader(folders)
    labels = [episode.label for episode in reader]
    assert len(reader) == len(set(labels)) == 3
    assert labels[0].startswith("part 1 of 2: ")
    assert labels[2].startswith("part 2 of 2: ")


def test_another_task_is_refused(two):
    parts = [open_reader(next(folder.glob("minari/**/data")).parent) for folder in two]
    other = open_reader(next(two[1].glob("minari/**/data")).parent, overrides={"episode_length": 100})
    with pytest.raises(DatasetError, match="which differs in episode_length 200 and 100"):
        ChainReader([parts[0], other])


def test_data_that_holds_exploration_counts_as_exploration():
    assert joint_behaviour(["policy", "exploration"]) == "exploration"
    assert joint_behaviour(["expert", "expert"]) == "expert"
    assert joint_behaviour(["expert", "policy"]) == "policy"
    assert joint_behaviour(["expert", "replay", "policy"]) == "replay"
    assert joint_behaviour(["replay", "exploration"]) == "exploration"
