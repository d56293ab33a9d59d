"""Rewards and values that a two-hot head cannot show are said before training."""

import dataclasses

import numpy as np
import pytest
from orrery.stages.world_model.reward_range import beyond_bins

from .stores import numbered_episode, point_mass_spec, write_store


def store_of(folder, *rewards):
    tasks = []
    for index, reward in enumerate(rewards):
        spec = point_mass_spec(f"toy/{index}")
        episode = numbered_episode(spec, 0, 3)
        episode.rewards[:] = reward
        tasks.append((spec, [episode]))
    return write_store(folder, tasks).tasks


@pytest.mark.parametrize(("reward", "limit"), [(22_025, None), (22_027, 11), (-22_027, 11), (5e5, 14), (-3e7, 18)])
def test_the_limit_that_would_do_is_named(tmp_path, reward, limit):
    said = beyond_bins(store_of(tmp_path, [0.0, 1.0, reward]), 10.0, "pretrain.model.bin_limit", values=False)
    if limit is None:
        assert said is None
        return
    assert f"end at 22,025, and would be clipped: toy/0 {min(reward, 0):,.6g} to {max(reward, 1):,.6g}" in said
    assert f"Set pretrain.model.bin_limit={limit} (it is 10)" in said
    assert np.expm1(limit) > abs(reward) > np.expm1(limit - 1)


def test_one_message_covers_all_tasks(tmp_path):
    tasks = store_of(tmp_path, 1.0, -3e4, 9e4)
    said = beyond_bins(tasks, 10.0, "key", values=False)
    assert "toy/1 -30,000 to -30,000; toy/2 90,000 to 90,000. Set key=12" in said
    assert "toy/0" not in said
    assert beyond_bins(tasks, 12.0, "key", values=False) is None


def test_returns_that_value_heads_cannot_show_are_said(tmp_path):
    tasks = store_of(tmp_path, 1.0, [0.0, 9e3, 2e4], -1e4, [2e4, -2e4, 2e4])
    assert beyond_bins(tasks, 10.0, "key", values=False) is None
    said = beyond_bins(tasks, 10.0, "key", values=True)
    assert "values exceed the value bins, which end at 22,025, and would be clipped: toy/1 up to 29,000; toy/2" in said
    assert "toy/2 up to 30,000. Set key=11 (it is 10), or scale the rewards" in said
    assert beyond_bins(tasks, 11.0, "key", values=True) is None
    short_sighted = [dataclasses.replace(task, spec=dataclasses.replace(task.spec, discount=0.05)) for task in tasks]
    assert beyond_bins(short_sighted, 10.0, "key", values=True) is None, "2e4 / 0.95 is the most that a value can be"
    larger = store_of(tmp_path / "larger", 5e4)
    assert "rewards exceed" in (said := beyond_bins(larger, 10.0, "key", values=True))
    assert "key=12 " in said, "for the values, too"
