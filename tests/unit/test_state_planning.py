"""Planning through models of observations: returns are explicit sums, CEM weighs elites alike, both solve a task."""

from __future__ import annotations

import dataclasses
import logging
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.pipeline.errors import CheckpointError, ConfigError
from orrery.pipeline.stage import Context
from orrery.stages.planning.config import MppiConfig, PlannerConfig
from orrery.stages.planning.planner import Planner, PlanNoise, plan
from orrery.stages.planning.sequence_task import StateModel
from orrery.stages.planning.stage_mppi import Mppi
from orrery.stages.policy.policy import load_policy
from orrery.stages.sequence_model.config import SequenceModelConfig
from orrery.stages.sequence_model.episodes import Episodes, fit_model
from orrery.stages.sequence_model.kinds import build_model
from orrery.stages.world_model.facts import ModelFacts, read_model_facts

from .stores import point_mass_episodes, point_mass_spec

TABLE = TaskTable([TaskSpec("toy/wide", 4, 2, 30, discount=0.9), TaskSpec("toy/narrow", 3, 1, 30, discount=0.8)])
FEW = PlannerConfig(horizon=2, iterations=3, samples=64, elites=8)


def make_model(kind, table=TABLE, horizon=6):
    torch.manual_seed(0)
    model = build_model(SequenceModelConfig(kind=kind, horizon=horizon, width=24, mlp_units=(16,), stride=2), table)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["markov", "hwm", "awm", "ssm", "rerooted"])
def test_a_return_is_the_discounted_sum_of_the_models_rewards(kind):
    model, generator = make_model(kind), torch.Generator().manual_seed(1)
    start, actions = torch.randn(2, 3, generator=generator), torch.rand(5, 2, 4, 1, generator=generator) * 2 - 1
    found = StateModel(model, "toy/narrow").returns(start, actions, actions[-1])
    task = torch.tensor([1])
    for b in range(2):
        for n in range(4):
            padded = torch.cat([actions[:, b, n], torch.zeros(5, 1)], 1)[None]
            before = torch.cat([start[b], torch.zeros(1)])[None]
            following = model.predict(before, padded, task)[0]
            states = torch.cat([before, following])
            rewards = model.reward(states[:-1], padded[0], states[1:], task.expand(5))
            expected = (0.8 ** torch.arange(5) * rewards).sum()
            torch.testing.assert_close(found[b, n], expected, rtol=1e-4, atol=1e-5)


def test_cem_takes_the_plain_mean_of_its_elites():
    config = MppiConfig(planner=dataclasses.replace(FEW, iterations=1), state_horizon=3).planner_of("cem")
    assert (config.horizon, config.prior_trajectories) == (3, 0)
    model = StateModel(make_model("markov"), "toy/wide")
    noise = PlanNoise.draw([torch.Generator().manual_seed(0)], config, 2, torch.device("cpu"))
    start = torch.randn(1, 4)
    found = plan(model, start, torch.zeros(3, 1, 2), noise, config)
    tried = (config.max_std * noise.rounds[0][:-1]).clamp(-1, 1)
    best = model.returns(start, tried, noise.prior_SBPA[-1])[0].topk(config.elites).indices
    torch.testing.assert_close(found.mean_HBA[:, 0], tried[:, 0, best].mean(1))
    torch.testing.assert_close(
        found.std_HBA[:, 0], tried[:, 0, best].std(1, correction=0).clamp(config.min_std, config.max_std)
    )


def make_stage(folder, model, **settings):
    model.save(folder / "model")
    (folder / "out").mkdir()
    stage = Mppi(MppiConfig(planner=FEW, seeds=1, **settings))
    inputs = {"world_model": [folder / "model"]}
    stage.check_input("world_model", folder / "model", read_model_facts(folder / "model"))
    return stage, Context(folder / "out", inputs, 1, 1, logging.getLogger("test"), nullcontext)


def test_a_planner_is_read_back_and_acts_as_it_did(tmp_path):
    model = make_model("markov")
    stage, context = make_stage(tmp_path, model, algorithms=["mppi", "cem"], state_horizon=4)
    assert stage.run(context) == "4 planners for 2 tasks"
    observation = torch.randn(3, 4)
    actions = {}
    for name in ("mppi", "cem"):
        policy = load_policy(tmp_path / "out" / name / "toy.wide" / "seed_0")
        memory = [policy.begin(episode) for episode in range(3)]
        actions[name] = policy.act(observation, memory)
        assert memory[0].mean_HA.shape == (4, 2)
        assert actions[name].abs().max() <= 1
    assert not torch.equal(actions["mppi"], actions["cem"])


def test_what_cannot_be_planned_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(
        CheckpointError,
        match=r"mppi.algorithms has tdmpc2_plan, but .* predicts observations, which supports mppi and cem",
    ):
        make_stage(tmp_path, make_model("markov"), algorithms=["tdmpc2_plan"])
    with pytest.raises(
        CheckpointError, match=r"mppi.algorithms has cem, but .* predicts latents, which supports tdmpc2_plan"
    ):
        Mppi(MppiConfig(algorithms=["cem"])).check_input("world_model", tmp_path / "later", ModelFacts())
    with pytest.raises(ConfigError, match="state_horizon must be at least 1"):
        MppiConfig(state_horizon=0)
    with pytest.raises(ConfigError, match=r"is 20, but the sequence model \(awm\) has learned 6"):
        Planner(make_model("awm"), TABLE[0], MppiConfig(algorithms=["cem"]).planner_of("cem"), 0)
    ends = TaskTable([dataclasses.replace(TABLE[0], terminates=True)])
    with pytest.raises(ConfigError, match="can end in a terminal state, which sequence models do not predict"):
        StateModel(make_model("markov", ends), "toy/wide")


def test_both_solve_the_point_mass():
    """From these starts idling earns 5.8, a proportional-derivative controller 23; random forces are no better than
    idling. Fixed starts and seeds: the outcome does not vary."""
    spec = point_mass_spec(discount=0.95)
    played = point_mass_episodes(spec, 60)
    observation, action, reward = (
        torch.from_numpy(np.stack([getattr(one, name) for one in played]))
        for name in ("observations", "actions", "rewards")
    )
    config = SequenceModelConfig(kind="markov", mlp_units=(32, 32), horizon=25)
    model = fit_model(spec, Episodes(observation, action, reward), config, 300, lr=3e-3)
    for algorithm in ("mppi", "cem"):
        planner = Planner(model, spec, MppiConfig(planner=FEW, state_horizon=10).planner_of(algorithm), 0)
        state = np.stack([np.linspace(-0.9, 0.9, 4), np.zeros(4)], 1)
        total, memory = 0.0, [planner.begin(episode) for episode in range(4)]
        for _ in range(25):
            force = planner.act(torch.from_numpy(state.astype(np.float32)), memory).numpy()[:, 0]
            total += np.exp(-4 * state[:, 0] ** 2).mean()
            state = np.stack([state[:, 0] + 0.2 * state[:, 1], 0.8 * state[:, 1] + 0.4 * force], 1)
        assert total > 19, (algorithm, total)
