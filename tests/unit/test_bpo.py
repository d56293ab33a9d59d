"""BPO: what its gradient is, and what it refuses."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.datasets.tasks import task_spec
from orrery.pipeline.errors import ConfigError, TaskError
from orrery.stages.bpo.bpo import (
    PolicyOptimisation,
    bpo_objective,
    imagined_horizon,
    return_scale,
    start_observations,
)
from orrery.stages.bpo.config import BpoConfig
from orrery.stages.bpo.imagination import imagine, imagine_in_parallel
from orrery.stages.bpo.policy import StackedPolicy, StatePolicy, squashed_entropy
from orrery.stages.policy.policy import load_policy
from orrery.stages.sequence_model.config import KINDS, SequenceModelConfig
from orrery.stages.sequence_model.dynamics import ModelDynamics, SimulatorDynamics
from orrery.stages.sequence_model.kinds import build_model

from .stores import point_mass_episodes, point_mass_spec, write_store

H, M, B = 6, 2, 3
CANCER = task_spec("myriad/cancer@8")
PEST = task_spec("myriad/predator_prey@8")


def dynamics(kind, task="myriad/cancer@8", reward="auto", **changes):
    torch.manual_seed(0)
    config = SequenceModelConfig(kind=kind, horizon=8, width=12, heads=3, states=4, stride=2, **changes)
    model = build_model(config, TaskTable([PEST, CANCER])).double()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return ModelDynamics(model.requires_grad_(False), task, reward)


def policies(spec, members=M):
    policy = StackedPolicy(members, spec.observation_dim, spec.action_dim, (16,))
    for m in range(members):
        policy.mlp.initialise_uniform(m, torch.Generator().manual_seed(m))
    return policy


def draws(spec, seed=0):
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(M, B, spec.observation_dim, generator=generator, dtype=torch.float64) + 0.2
    start[..., -1] = 1
    return start, torch.randn(H, M, B, spec.action_dim, generator=generator)


def gradient_of(imagined, policy):
    return torch.cat([g.flatten() for g in torch.autograd.grad(imagined.reward_HMB.sum(), list(policy.parameters()))])


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_frozen_actions_put_through_the_policy(kind):
    # sum_k (da_k / dtheta)^T dJ / da_k, with the action sequence as leaves.
    world, policy = dynamics(kind), policies(CANCER)
    start, noise = draws(CANCER)
    imagined = imagine(world, policy, start, noise)
    found = gradient_of(imagined, policy)
    leaves = imagined.action_HMBA.detach().double().requires_grad_()
    flat = leaves.permute(1, 2, 0, 3).flatten(0, 1)
    after = world.predict(start.flatten(0, 1), flat).unflatten(0, (M, B)).permute(2, 0, 1, 3)
    before = torch.cat([start[None], after[:-1]])
    torch.testing.assert_close(after, imagined.next_observation_HMBO)
    (per_action,) = torch.autograd.grad(world.reward(before, leaves, after).sum(), leaves)
    taken, _ = policy.sample(
        imagined.observation_HMBO.detach().float().transpose(0, 1).flatten(1, 2), noise.transpose(0, 1).flatten(1, 2)
    )
    weight = per_action.transpose(0, 1).flatten(1, 2).float()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad((taken * weight).sum(), list(policy.parameters()),
                                                                   materialize_grads=True)])  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    other = gradient_of(imagine(world, policy, start, noise, policy_input_gradient=0.5), policy)
    assert (other - found).norm() > 1e-4 * found.norm()


@pytest.mark.parametrize("kind", ["awm", "rnn", "ssm"])
@pytest.mark.parametrize("reward", ["simulator", "learned"])
def test_one_parallel_pass_is_the_unroll(kind, reward):
    # In float64, so that the order of sums, which differs between processors, decides nothing.
    world, policy = dynamics(kind, reward=reward), policies(CANCER).double()
    start, noise = draws(CANCER)
    noise = noise.double()
    one, other = imagine(world, policy, start, noise), imagine_in_parallel(world, policy, start, noise)
    for name in ("observation_HMBO", "next_observation_HMBO", "action_HMBA", "reward_HMB", "entropy_HMB"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-9)
    a, b = gradient_of(one, policy), gradient_of(other, policy)
    torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9 * a.abs().max().item())


def test_the_objective_by_hand():
    reward = torch.tensor([[[1.0, 3.0]], [[2.0, 6.0]]])  # [H, M, B]
    entropy = torch.tensor([[[1.0, 2.0]], [[0.0, 1.0]]])
    assert bpo_objective(reward, entropy, 2.0, 0.1).tolist() == pytest.approx([(3 + 9) / 2 / 2 + 0.1 * 1.0])


def test_the_entropy_of_a_squashed_gaussian():
    mean, std = 0.4, 0.6
    # H = -integral p ln p over actions, on a fine grid of x.
    x = torch.linspace(mean - 8 * std, mean + 8 * std, 200001, dtype=torch.float64)
    p = torch.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
    log_p_action = torch.log(p) - torch.log1p(-(torch.tanh(x) ** 2))
    exact = -torch.trapezoid(p * log_p_action, x).item()
    sample = mean + std * torch.randn(200000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    estimate = squashed_entropy(sample, torch.full_like(sample, std)).mean().item()
    assert estimate == pytest.approx(exact, abs=0.01)
    assert torch.isfinite(squashed_entropy(torch.tensor([[80.0], [-80.0]]), torch.ones(2, 1))).all()


def optimisation(world, spec, seeds, starts=None, **changes):
    settings = BpoConfig(batch_size=4, units=(16,), **changes)
    statistics = torch.zeros(spec.observation_dim), torch.ones(spec.observation_dim)
    return PolicyOptimisation(world, spec, starts, statistics, 1.0, seeds, H, 10, settings, seed=3)


def test_policies_trained_together_are_those_trained_alone_and_resume_exactly():
    starts = torch.rand(5, CANCER.observation_dim, dtype=torch.float64)
    together = optimisation(dynamics("awm"), CANCER, [0, 7], starts)
    alone = optimisation(dynamics("awm"), CANCER, [7], starts)
    for iteration in range(3):
        both, one = together.update(iteration), alone.update(iteration)
        torch.testing.assert_close(both["imagined_return"][1:], one["imagined_return"], rtol=1e-4, atol=1e-5)
    for name, value in alone.policy.mlp.named_parameters():
        torch.testing.assert_close(together.policy.mlp.get_parameter(name)[1:], value, rtol=1e-3, atol=1e-5)
    resumed = optimisation(dynamics("awm"), CANCER, [7], starts)
    resumed.load_state_dict(copy.deepcopy(alone.state_dict()))
    for iteration in range(3, 5):
        alone.update(iteration)
        resumed.update(iteration)
    for one, other in zip(alone.policy.parameters(), resumed.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_gradient_noise_is_the_spread_of_single_gradients_and_of_each_member():
    starts = torch.rand(40, CANCER.observation_dim, dtype=torch.float64)
    both = optimisation(dynamics("awm"), CANCER, [0, 7], starts)
    before = copy.deepcopy(both.state_dict())
    noise = both.gradient_noise(draws=4)
    gradients = []
    for draw in range(4):
        found = both.gradient(*both._draw(f"gradient noise {draw}", 4))
        gradients.append(torch.cat([part[1].flatten() for part in found]))
    spread = torch.stack(gradients)
    assert noise[1].item() == pytest.approx((spread.var(0).sum() / spread.mean(0).square().sum()).item(), rel=1e-5)
    alone = optimisation(dynamics("awm"), CANCER, [7], starts)
    torch.testing.assert_close(alone.gradient_noise(draws=4), noise[1:], rtol=1e-3, atol=0)
    assert all(torch.equal(value, before["policy"][name]) for name, value in both.state_dict()["policy"].items())


def test_the_simulator_gradient_finds_the_optimum_of_a_problem_with_a_known_one():
    # Timber without a terminal value: at the end nothing is gained by growing, so u -> 0 (action -1) pays x dt.
    spec = task_spec("myriad/timber@1")
    statistics = torch.tensor([100.0, 0.0]), torch.tensor([1.0, 1.0])
    settings = BpoConfig(batch_size=4, units=(16,), lr=0.05, entropy=0.0)
    world = SimulatorDynamics(spec)
    trained = PolicyOptimisation(world, spec, None, statistics, 100.0, [0, 1], 1, 60, settings, seed=0)
    for iteration in range(60):
        trained.update(iteration)
    # The best return is 100 dt = 500; an untrained policy earns about half of it.
    assert (trained.imagined_return() > 480).all()


def test_a_policy_folder_gives_the_actions_of_its_member(tmp_path):
    policy = policies(CANCER)
    policy.mean_O.copy_(torch.tensor([0.5, 4.0]))
    policy.scale_O.copy_(torch.tensor([0.2, 2.0]))
    observation = torch.rand(5, 2)
    StatePolicy.from_member(policy, 1, CANCER, (16,), {"algorithm": "bpo", "seed": 1}).save(tmp_path)
    loaded = load_policy(tmp_path)
    assert loaded.task == CANCER
    torch.testing.assert_close(loaded.act(observation), policy.act(observation.expand(M, 5, 2))[1])


def test_horizons_are_checked_against_episodes_and_positions():
    model = dynamics("awm").model
    spec = task_spec("myriad/cancer@30")
    assert imagined_horizon(BpoConfig(), spec, model) == 8
    assert imagined_horizon(BpoConfig(), CANCER, None) == 8
    assert imagined_horizon(BpoConfig(horizon=5), CANCER, model) == 5
    with pytest.raises(
        ConfigError, match=r"bpo.bpo.horizon is 20.* the awm model was trained on 8 of them; use at most 8"
    ):
        imagined_horizon(BpoConfig(horizon=20), spec, model)
    with pytest.raises(ConfigError, match="have 8 steps; use at most 8"):
        imagined_horizon(BpoConfig(horizon=9), CANCER, None)


def test_starts_are_first_frames_for_whole_episodes_and_any_frame_otherwise(tmp_path):
    spec = point_mass_spec("toy/point")
    episodes = [*point_mass_episodes(spec, 4), *point_mass_episodes(spec, 1, seed=5, length=10)]
    (rows,) = write_store(tmp_path, [(spec, episodes)]).tasks
    whole = start_observations(rows, 25, 100, seed=0)
    np.testing.assert_array_equal(whole, [episode.observations[0] for episode in episodes[:4]])
    part = start_observations(rows, 20, 100, seed=0)
    allowed = {tuple(row) for episode in episodes[:4] for row in episode.observations[:6]}
    assert {tuple(row) for row in part.numpy()} == allowed
    with pytest.raises(
        ConfigError, match=r"no episode of its data is as long as the horizon of 26 steps .*longest: 25"
    ):
        start_observations(rows, 26, 100, seed=0)
    assert return_scale(rows) == pytest.approx(rows.returns.std())


def test_what_bpo_cannot_do_is_refused():
    discrete = TaskSpec("toy/discrete", 2, 3, 8, action_kind="discrete")
    with pytest.raises(ConfigError, match="continuous actions; task 'toy/discrete' has 3 discrete actions"):
        optimisation(None, discrete, [0])
    with pytest.raises(ConfigError, match="can end in a terminal state"):
        optimisation(None, TaskSpec("toy/ends", 2, 1, 8, terminates=True), [0])
    toy = TaskTable([TaskSpec("toy/plain", 2, 1, 8)])
    blind = build_model(SequenceModelConfig(horizon=8, reward_head=False), toy)
    with pytest.raises(ConfigError, match="no differentiable reward and the sequence model no reward head"):
        ModelDynamics(blind, "toy/plain", "auto")
    with pytest.raises(ConfigError, match=r"no differentiable simulator.*reward=learned with a model"):
        ModelDynamics(blind, "toy/plain", "simulator")
    with pytest.raises(TaskError, match="no differentiable simulator"):
        SimulatorDynamics(toy[0])
