"""POWR learns from scratch what it is said to learn, with the settings of its experiments.

The default tests are small versions that take seconds: FrozenLake on all ten seeds, and one seed each of CartPole and
MountainCar far before the number of transitions that the slow tests allow. A policy that acts at random earns 22 on
CartPole (the longest of ten random episodes is below 100) and -200 on MountainCar in every episode; on FrozenLake it
reaches the goal in one episode of 65. So no untrained policy passes by chance.
"""

from __future__ import annotations

import dataclasses
import logging
import statistics
from itertools import groupby

import numpy as np
import pytest
import torch
from orrery.datasets.rollout import play_episodes
from orrery.datasets.tasks import task_spec
from orrery.pipeline.config.load import discover_stages, load_config
from orrery.pipeline.logging import ConsoleProgress
from orrery.pipeline.stage import Context
from orrery.stages.policy.policy import load_policy
from orrery.stages.powr.config import KernelPlannerConfig, OfflineConfig, PowrConfig
from orrery.stages.powr.curves import CurveRow, read_curves
from orrery.stages.powr.stage_powr import Powr
from orrery.stages.powr.stage_powr_online import PowrOnline

from ..unit.stores import point_mass_episodes, point_mass_spec, write_store


def learn(folder, experiment, **changes) -> list[list[CurveRow]]:
    """Curves by seed of an experiment with some settings changed."""
    config = load_config(experiment, stages=discover_stages()).stage_configs["powr_online"]
    folder.mkdir(exist_ok=True)
    context = Context(folder, {}, 1, 1, logging.getLogger("test"), ConsoleProgress())
    PowrOnline(dataclasses.replace(config, **changes)).run(context)
    return [list(rows) for _, rows in groupby(read_curves(folder / "curves.csv"), key=lambda row: row.seed)]


def test_frozenlake_is_solved_and_stays_solved(tmp_path):
    """Without slipping: from 600 transitions on, every evaluation of every seed reaches the goal in every episode."""
    curves = learn(tmp_path, "powr_frozenlake", transitions=700, evaluation_episodes=3)
    assert len(curves) == 10
    for rows in curves:
        late = [row for row in rows if row.transitions >= 600]
        assert len(late) >= 2
        assert all(row.greedy_return == row.sampled_return == 1 for row in late)


def test_cartpole_balances_within_2500_transitions(tmp_path):
    (rows,) = learn(tmp_path, "powr_cartpole", transitions=2500, seeds=1, evaluation_episodes=3)
    assert max(row.greedy_return for row in rows) >= 400


def test_mountain_car_reaches_the_top_within_2000_transitions(tmp_path):
    (rows,) = learn(tmp_path, "powr_mountaincar", transitions=2000, seeds=1, evaluation_episodes=3)
    assert max(row.greedy_return for row in rows) > -150


@pytest.mark.slow
@pytest.mark.parametrize(("experiment", "threshold"), [("powr_cartpole", 400), ("powr_mountaincar", -150)])
def test_five_seeds(tmp_path, experiment, threshold):
    """Medians over 5 seeds: of the best and of the last evaluation, greedy, and of the best sampled one."""
    curves = learn(tmp_path, experiment)
    assert len(curves) == 5
    assert statistics.median(max(row.greedy_return for row in rows) for rows in curves) > threshold
    assert statistics.median(rows[-1].greedy_return for rows in curves) > threshold
    assert statistics.median(max(row.sampled_return for row in rows) for rows in curves) > threshold


@pytest.mark.slow
def test_taxi_is_driven_as_the_best_policy_does(tmp_path):
    """Which earns 7.93 on average over all starts; a random one -770, and one that drives about -200."""
    (rows,) = learn(tmp_path, "powr_taxi", seeds=1)
    assert statistics.mean(row.greedy_return for row in rows[-3:]) > 6


def test_offline_beats_its_data_on_a_point_mass(tmp_path):
    """Continuous actions, candidates from the data. Idle earns 11, random 9.5, a good controller 19."""
    spec = point_mass_spec(discount=0.9)
    write_store(tmp_path / "store", [(spec, point_mass_episodes(spec, 80))])
    planner = KernelPlannerConfig(centres=300, ridge=1e-4, step_size=1.0, steps=8)
    offline = OfflineConfig(planner=planner, num_candidates=5, max_rows=1500)
    (tmp_path / "out").mkdir()
    inputs = {"store": [tmp_path / "store"], "world_model": []}
    context = Context(tmp_path / "out", inputs, 1, 1, logging.getLogger("test"), ConsoleProgress())
    Powr(PowrConfig(seeds=2, kernel="gaussian", offline=offline)).run(context)
    for seed in range(2):
        policy = load_policy(tmp_path / "out" / "powr" / spec.slug / f"seed_{seed}")
        state = np.stack([np.random.default_rng(1).uniform(-1, 1, 64), np.zeros(64)], 1)
        total = np.zeros(64)
        for _ in range(25):
            action = policy.act(torch.from_numpy(state.astype(np.float32)))[:, 0].numpy()
            total += np.exp(-4 * state[:, 0] ** 2)
            state = np.stack([state[:, 0] + 0.2 * state[:, 1], 0.8 * state[:, 1] + 0.4 * action], 1)
        assert total.mean() > 16


def test_policy_file_plays_as_the_learner_did(tmp_path):
    """The saved policy, evaluated as any other, earns what learning last reported."""
    (rows,) = learn(tmp_path, "powr_frozenlake", transitions=600, seeds=1, evaluation_episodes=3)
    policy = load_policy(tmp_path / "seed_0" / "policy")
    spec = dataclasses.replace(task_spec("gymnasium/FrozenLake-v1"), environment=policy.task.environment)
    assert spec.environment["kwargs"] == {"is_slippery": False}

    def act(observation, _):
        return policy.act(torch.from_numpy(observation)).numpy()

    returns = [result.return_ for _, result in play_episodes(spec, act, [1, 2, 3])]
    assert np.mean(returns) == rows[-1].greedy_return == 1
