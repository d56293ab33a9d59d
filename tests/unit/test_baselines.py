"""The stage baselines: agents of a library as policies of ours, learning curves, and what the stage refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import logging
import os
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from orrery.datasets.formats.minari import MinariReader
from orrery.datasets.schema import Episode
from orrery.datasets.tasks import make_environment, task_spec
from orrery.pipeline import termination
from orrery.pipeline.config.load import discover_stages, load_config
from orrery.pipeline.errors import ConfigError, StageError
from orrery.pipeline.jobs.config import FanoutConfig
from orrery.pipeline.logging import ConsoleProgress
from orrery.pipeline.stage import Context
from orrery.stages.baselines import continuation, online
from orrery.stages.baselines.config import BaselinesConfig, SacConfig
from orrery.stages.baselines.environment import LibraryEnv
from orrery.stages.baselines.mlp_policy import MlpPolicy
from orrery.stages.baselines.stage_baselines import Baselines
from orrery.stages.data.config import ReplayDatasetsConfig
from orrery.stages.data.stage_replay_datasets import ReplayDatasets
from orrery.stages.policy.policy import load_policy
from torch import nn

from .grown import computed
from .stores import point_mass_episodes, point_mass_spec, write_store

SMALL = SacConfig(learning_starts=20, batch_size=16, actor_units=[8], critic_units=[8])


def context(folder, *stores):
    folder.mkdir(exist_ok=True)
    inputs = {"store": [store.folder for store in stores]}
    return Context(folder, inputs, 1, 1, logging.getLogger("test"), ConsoleProgress())


def test_a_policy_of_linear_layers_acts_like_them_and_is_loaded_again(tmp_path):
    torch.manual_seed(0)
    spec = point_mass_spec(action_dim=2)
    linears = [nn.Linear(2, 8), nn.Linear(8, 4), nn.Linear(4, 2)]
    agent = nn.Module()
    agent.actor = nn.Module()
    agent.actor.latent_pi = nn.Sequential(linears[0], nn.ReLU(), linears[1], nn.ReLU())
    agent.actor.mu = linears[2]
    mean, scale = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    policy = MlpPolicy.from_agent(agent, (mean, scale, 1.0), spec, {"algorithm": "sac", "seed": 0})
    observation = torch.randn(5, 2)
    x = (observation - mean) / scale
    expected = torch.tanh(linears[2](torch.relu(linears[1](torch.relu(linears[0](x))))))
    torch.testing.assert_close(policy.act(observation), expected)
    policy.save(tmp_path / "policy")
    torch.testing.assert_close(load_policy(tmp_path / "policy").act(observation), expected)


@pytest.mark.parametrize(
    ("algorithm", "task"),
    [("a2c", "gymnasium/CartPole-v1"), ("dqn", "gymnasium/CartPole-v1"), ("ppo", "gymnasium/Pendulum-v1"),
     ("sac", "gymnasium/Pendulum-v1"), ("trpo", "gymnasium/CartPole-v1")],
)  # fmt: skip
def test_a_policy_chooses_as_its_agent_does(algorithm, task):
    library = pytest.importorskip("sb3_contrib" if algorithm == "trpo" else "stable_baselines3")
    spec = task_spec(task)
    agent = getattr(library, algorithm.upper())("MlpPolicy", LibraryEnv(spec, None), seed=0)
    policy = MlpPolicy.from_agent(agent.policy, None, spec, {"algorithm": algorithm, "seed": 0})
    observation = 3 * torch.randn(64, spec.observation_dim, generator=torch.Generator().manual_seed(0))
    chosen = torch.as_tensor(agent.predict(observation.numpy(), deterministic=True)[0])
    acted = policy.act(observation)
    if spec.action_kind == "discrete":
        assert acted.shape == (64, 2)
        assert set(acted.sum(-1).tolist()) == {1.0}
        chosen, acted = chosen.long(), acted.argmax(-1)
    torch.testing.assert_close(acted, chosen)


def test_it_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sb3_contrib" else find("json"))
    Baselines(BaselinesConfig(algorithms=["ppo", "sac"])).check()
    with pytest.raises(ConfigError, match=r"needs the package sb3_contrib, .* pip install 'orrery\[baselines\]'"):
        Baselines(BaselinesConfig(algorithms=["trpo"])).check()


def test_it_refuses_what_it_cannot_learn(tmp_path):
    with pytest.raises(ConfigError, match=r"sac.learning_starts must be less than baselines.steps \(10\), found 1000"):
        BaselinesConfig(steps=10)
    with pytest.raises(ConfigError, match=r"baselines.algorithms: expected some of a2c, .*, found bc"):
        BaselinesConfig(algorithms=["bc"])
    with pytest.raises(ConfigError, match=r"baselines has no tasks: set baselines.tasks"):
        Baselines(BaselinesConfig()).check_inputs({"store": []})
    with pytest.raises(ConfigError, match=r"sac cannot learn gymnasium/CartPole-v1, whose actions are discrete"):
        Baselines(BaselinesConfig(["gymnasium/CartPole-v1"])).check_inputs({"store": []})
    Baselines(BaselinesConfig()).check_inputs({"store": [None]})
    spec = point_mass_spec("toy/choice", action_dim=2, action_kind="discrete")
    store = write_store(tmp_path / "store", [(spec, point_mass_episodes(spec, 4))])
    with pytest.raises(ConfigError, match=r"sac cannot learn toy/choice, whose actions are discrete"):
        Baselines(BaselinesConfig()).run(context(tmp_path / "sac", store))


@pytest.mark.parametrize(
    ("override", "now"),
    [
        ("stages=[sac]", "stages: 'sac' was renamed: use baselines"),
        ("sac.decisions=10", "key 'sac.decisions' was renamed: use baselines.steps"),
        ("powr_baselines.seeds=3", "key 'powr_baselines.seeds' was renamed: use baselines.seeds"),
    ],
)
def test_earlier_names_are_told_their_new_one(override, now):
    with pytest.raises(ConfigError, match=now):
        load_config("powr_cartpole", [override], stages=discover_stages())


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
    stage = Baselines(BaselinesConfig(steps=60, sac=SMALL))
    where = context(tmp_path / "sac", store)
    assert stage.run(where) == "2 policies for 1 task, 60 steps each"
    entries = json.loads((where.folder / "policies.json").read_text())["policies"]
    assert [(entry["algorithm"], entry["task"], entry["seed"]) for entry in entries] == [
        ("sac", spec.name, seed) for seed in (0, 1)
    ]
    paths = [where.folder / entry["path"] for entry in entries]
    assert load_policy(paths[0]).act(torch.rand(5, 2)).shape == (5, 1)
    weights = [(path / "policy.safetensors").read_bytes() for path in paths]
    # Another task in the store and one more algorithm cost only their own runs, on another executor, too.
    more = write_store(tmp_path / "more", [(spec, episodes), (dataclasses.replace(spec, name="toy/other"), episodes)])
    grown = context(tmp_path / "sac", more)
    config = BaselinesConfig(
        tasks=[spec.name], algorithms=["sac", "a2c"], steps=60, sac=SMALL, fanout=FanoutConfig("local")
    )
    Baselines(config).run(grown)
    assert computed(grown) == {"000-myriad.cancer@10": 2, "000-myriad.cancer@10.2": 1, "001-myriad.cancer@10": 1}
    assert [(path / "policy.safetensors").read_bytes() for path in paths] == weights


def test_what_was_played_in_training_becomes_a_dataset(tmp_path):
    pytest.importorskip("stable_baselines3")
    name = "myriad/cancer@10"
    config = BaselinesConfig(tasks=[name], steps=65, sac=SMALL, seeds=1, keep_replay=True)
    where = context(tmp_path / "sac")
    Baselines(config).run(where)
    datasets = tmp_path / "datasets"
    datasets.mkdir()
    inputs = {"policies": [where.folder]}
    stage = ReplayDatasets(ReplayDatasetsConfig())
    assert (
        stage.run(dataclasses.replace(where, folder=datasets, inputs=inputs))
        == "60 transitions in 6 episodes of 1 task"
    )
    record = json.loads((datasets / "datasets.json").read_text())["tasks"][name]
    environment = make_environment(task_spec(name))
    for episode in MinariReader(datasets / record["path"]):
        observation, _ = environment.reset(seed=0)
        np.testing.assert_allclose(episode.observations[0], observation, rtol=1e-6)
        for action, after, paid in zip(episode.actions, episode.observations[1:], episode.rewards, strict=True):
            observation, reward, *_ = environment.step(action)
            np.testing.assert_allclose(after, observation, rtol=1e-5)
            assert paid == pytest.approx(reward, rel=1e-5)


class Steps:
    """A progress that keeps what it is told."""

    def __init__(self):
        self.began, self.steps, self.notes = [], 0, []

    @contextlib.contextmanager
    def __call__(self, description, total, completed=0):
        self.began.append((description, total, completed))
        yield self

    def advance(self, amount=1):
        self.steps += amount

    def note(self, text):
        self.notes.append(text)


@pytest.mark.parametrize("workers", [1, 2])
def test_curves_are_written_beside_the_policies(tmp_path, workers):
    """An on-policy algorithm ends after a whole rollout, a step later; the progress counts what was asked for."""
    pytest.importorskip("stable_baselines3")
    config = BaselinesConfig(
        ["gymnasium/FrozenLake-v1"], {"is_slippery": False}, ["dqn", "a2c"], SMALL, 64, 32, 2, seeds=1
    )
    progress = Steps()
    where = dataclasses.replace(context(tmp_path / "out"), workers=workers, progress=progress)
    summary = Baselines(config).run(where)
    assert progress.began == [("baselines", 128, 0)]
    assert progress.steps == 128
    if workers == 1:
        assert [note for note in progress.notes if note.startswith("dqn on gymnasium/FrozenLake-v1, seed 0: return ")]
    assert summary.startswith("last greedy return dqn ")
    curves = pd.read_csv(where.folder / "curves.csv")
    assert curves.groupby("algorithm").transitions.apply(list).to_dict() == {"a2c": [32, 65], "dqn": [32, 64]}
    assert (where.folder / "curves.svg").is_file()
    index = json.loads((where.folder / "policies.json").read_text())
    assert index["tasks"][0]["environment"]["kwargs"] == {"is_slippery": False}
    assert load_policy(where.folder / index["policies"][0]["path"]).act(torch.eye(16)).sum() == 16


def test_a_single_evaluation_is_that_of_the_last_step(tmp_path):
    pytest.importorskip("stable_baselines3")
    config = BaselinesConfig(["gymnasium/FrozenLake-v1"], {}, ["dqn"], SMALL, 64, 64, 1, seeds=1)
    where = context(tmp_path / "out")
    Baselines(config).run(where)
    assert pd.read_csv(where.folder / "curves.csv").transitions.tolist() == [64]


@pytest.mark.parametrize(
    ("algorithm", "task", "steps", "after_crash", "after_signal"),
    [
        ("a2c", "gymnasium/CartPole-v1", 200, 120, 170),
        ("dqn", "gymnasium/CartPole-v1", 200, 120, 172),
        ("ppo", "gymnasium/CartPole-v1", 2100, 2048, 2048),  # learns from rollouts of 2,048 steps
        ("trpo", "gymnasium/CartPole-v1", 2100, 2048, 2048),
        ("sac", "gymnasium/Pendulum-v1", 500, 420, 470),
    ],
)
@pytest.mark.parametrize("ended_by", ["a crash", "a signal"])
def test_an_interrupted_run_continues_bit_for_bit(
    tmp_path, monkeypatch, algorithm, task, steps, after_crash, after_signal, ended_by
):
    """A crash loses what came after the last checkpoint, a signal nothing but a rollout that would be the last."""
    pytest.importorskip("stable_baselines3")
    config = BaselinesConfig(
        [task], {}, [algorithm], SMALL, steps, steps // 2, 1, keep_replay=True, checkpoint_every=60, seeds=1
    )
    whole, interrupted = context(tmp_path / "whole"), context(tmp_path / "interrupted")
    Baselines(config).run(whole)
    taken, take, continued = 0, LibraryEnv.step, []

    def step(self, action):
        nonlocal taken
        taken += 1
        if taken == steps - 30:
            if ended_by == "a crash":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)
        return take(self, action)

    def restore(agent, environment, state):
        continued.append(state["counters"]["num_timesteps"])
        continuation.restore(agent, environment, state)

    monkeypatch.setattr(LibraryEnv, "step", step)
    monkeypatch.setattr(online, "restore", restore)
    with termination.handled(), pytest.raises((KeyboardInterrupt, termination.Terminated)):
        Baselines(config).run(interrupted)
    Baselines(config).run(interrupted)
    assert continued == [after_crash if ended_by == "a crash" else after_signal]
    written = [
        {path.relative_to(where.folder): path.read_bytes() for path in where.folder.rglob("*") if path.is_file()}
        for where in (whole, interrupted)
    ]
    assert len(written[0]) >= 5
    assert written[0] == written[1]


def test_another_environment_than_that_of_the_checkpoint_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("stable_baselines3")
    config = BaselinesConfig(["gymnasium/Pendulum-v1"], sac=SMALL, steps=90, checkpoint_every=60, seeds=1)
    where = context(tmp_path / "out")
    take = LibraryEnv.step

    def stop(self, action):
        if len(self.given) == 70:
            raise KeyboardInterrupt
        return take(self, action)

    def other(self, action):
        return take(self, -action)

    monkeypatch.setattr(LibraryEnv, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        Baselines(config).run(where)
    monkeypatch.setattr(LibraryEnv, "step", other)
    with pytest.raises(StageError, match=r"Pendulum-v1', episode 0, step 60: replayed from its seed, .* scratch"):
        Baselines(config).run(where)
