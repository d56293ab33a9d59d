"""Rewards that a two-hot head cannot show are said before training."""

import numpy as np
import pytest
from orrery.stages.world_model.reward_range import rewards_beyond_bins

from .stores import numbered_episode, point_mass_spec, write_store


def store_of(folder, *rewards):
    tasks = []
    for index, reward in enumerate(rewards):
        spec = point_mass_spec(f"toy/{index}")
        episode = numbered_episode(spec, 0, 3)
        episode.rewards[:] = reward
        tasks.append((spec, [episode]))
    return [task.summary for task in write_store(folder, tasks).tasks]


@pytest.mark.parametrize(("reward", "limit"), [(22_025, None), (22_027, 11), (-22_027, 11), (5e5, 14), (-3e7, 18)])
def test_the_limit_that_would_do_is_named(tmp_path, reward, limit):
    said = rewards_beyond_bins(store_of(tmp_path, [0.0, 1.0, reward]), 10.0, "pretrain.model.bin_limit")
    if limit is None:
        assert said is None
        return
    assert f"end at 22,025, and would be learned as that: toy/0 {min(reward, 0):,.6g} to {max(reward, 1):,.6g}" in said
    assert f"Set pretrain.model.bin_limit={limit} (it is 10)" in said
    assert np.expm1(limit) > abs(reward) > np.expm1(limit - 1)


def test_one_message_covers_all_tasks(tmp_path):
    tasks = store_of(tmp_path, 1.0, -3e4, 9e4)
    said = rewards_beyond_bins(tasks, 10.0, "key")
    assert "toy/1 -30,000 to -30,000; toy/2 90,000 to 90,000. Set key=12" in said
    assert "toy/0" not in said
    assert rewards_beyond_bins(tasks, 12.0, "key") is None
