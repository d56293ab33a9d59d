"""The model-free baseline: an actor of a library as a policy of ours, and what the stage refuses."""

from __future__ import annotations

import importlib.util
import json
import logging

import numpy as np
import pytest
import torch
from orrery.datasets.schema import Episode
from orrery.datasets.tasks import make_environment, task_spec
from orrery.pipeline.errors import ConfigError
from orrery.pipeline.logging import ConsoleProgress
from orrery.pipeline.stage import Context
from orrery.stages.baselines.config import SacConfig
from orrery.stages.baselines.mlp_policy import MlpPolicy
from orrery.stages.baselines.stage_sac import Sac
from orrery.stages.policy.policy import load_policy
from torch import nn

from .stores import point_mass_episodes, point_mass_spec, write_store


def context(folder, store):
    folder.mkdir(exist_ok=True)
    return Context(folder, {"store": [store.folder]}, 1, 1, logging.getLogger("test"), ConsoleProgress())


def test_a_policy_of_linear_layers_acts_like_them_and_is_loaded_again(tmp_path):
    torch.manual_seed(0)
    spec = point_mass_spec(action_dim=2)
    linears = [nn.Linear(2, 8), nn.Linear(8, 4), nn.Linear(4, 2)]
    mean, scale = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    policy = MlpPolicy.from_layers(linears, (mean, scale), spec, {"algorithm": "sac", "seed": 0})
    observation = torch.randn(5, 2)
    x = (observation - mean) / scale
    expected = torch.tanh(linears[2](torch.relu(linears[1](torch.relu(linears[0](x))))))
    torch.testing.assert_close(policy.act(observation), expected)
    policy.save(tmp_path / "policy")
    torch.testing.assert_close(load_policy(tmp_path / "policy").act(observation), expected)


def test_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package stable_baselines3, .* pip install 'orrery\[baselines\]'"):
        Sac(SacConfig()).check()


def test_it_refuses_what_it_cannot_learn(tmp_path):
    with pytest.raises(ConfigError, match=r"sac.warm_up must be less than the 10 steps, found 1000"):
        SacConfig(steps=10)
    spec = point_mass_spec("toy/choice", action_dim=2, action_kind="discrete")
    store = write_store(tmp_path / "store", [(spec, point_mass_episodes(spec, 4))])
    with pytest.raises(ConfigError, match=r"sac needs continuous actions; task 'toy/choice' has 2 discrete actions"):
        Sac(SacConfig()).run(context(tmp_path / "sac", store))


def test_a_short_run_leaves_policies_and_keeps_what_is_finished(tmp_path):
    pytest.importorskip("stable_baselines3")
    spec = task_spec("myriad/cancer@10")
    environment = make_environment(spec)
    episodes = []
    for seed in range(4):
        random = np.random.default_rng(seed)
        observations, rewards, actions = [environment.reset(seed=seed)[0]], [], random.uniform(-1, 1, (10, 1))
        for action in actions:
            observation, reward, *_ = environment.step(action)
            observations.append(observation)
            rewards.append(reward)
        actions, rewards = actions.astype(np.float32), np.array(rewards, np.float32)
        episodes.append(Episode(np.stack(observations), actions, rewards, False))
    store = write_store(tmp_path / "store", [(spec, episodes)])
    stage = Sac(SacConfig(steps=60, warm_up=20, batch_size=16, actor_units=[8], critic_units=[8]))
    where = context(tmp_path / "sac", store)
    assert stage.run(where) == "2 policies for 1 task, 60 steps each"
    entries = json.loads((where.folder / "policies.json").read_text())["policies"]
    assert [(entry["algorithm"], entry["task"], entry["seed"]) for entry in entries] == [
        ("sac", spec.name, seed) for seed in (0, 1)
    ]
    paths = [where.folder / entry["path"] for entry in entries]
    assert load_policy(paths[0]).act(torch.rand(5, 2)).shape == (5, 1)
    weights = [(path / "policy.safetensors").read_bytes() for path in paths]
    (paths[1] / "policy.json").unlink()
    stage.run(where)
    assert [(path / "policy.safetensors").read_bytes() for path in paths] == weights
