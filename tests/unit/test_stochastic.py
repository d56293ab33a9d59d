"""Action models with noise tokens: what the noise reaches, what it was in the data, and policies through them."""

from __future__ import annotations

import pytest
import torch
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.datasets.tasks import task_spec
from orrery.pipeline.errors import ConfigError
from orrery.stages.bpo.bpo import PolicyOptimisation
from orrery.stages.bpo.config import BpoConfig
from orrery.stages.bpo.imagination import imagine, imagine_in_parallel
from orrery.stages.bpo.policy import StackedPolicy
from orrery.stages.sequence_model.config import NOISY_KINDS, SequenceLossConfig, SequenceModelConfig
from orrery.stages.sequence_model.dynamics import ModelDynamics, SimulatorDynamics
from orrery.stages.sequence_model.episodes import Episodes, ModelFit
from orrery.stages.sequence_model.kinds import build_model, load_model
from orrery.stages.sequence_model.losses import sequence_losses
from orrery.stages.sequence_model.stochastic import StochasticActionModel

E, T = 2, 6


def model(kind="awm", spec=None):
    torch.manual_seed(0)
    config = SequenceModelConfig(kind=kind, horizon=T, width=12, states=4, mlp_units=(16,), noise=True)
    built = build_model(config, TaskTable([spec or TaskSpec("toy/a", 2, 1, T)]))
    assert isinstance(built, StochasticActionModel)
    return built


def inputs(B=4):
    return torch.randn(B, 2), torch.rand(B, T, 1) * 2 - 1, torch.zeros(B, dtype=torch.int64), torch.randn(B, T, E)


@pytest.mark.parametrize("kind", NOISY_KINDS)
def test_noise_reaches_all_later_predictions_and_no_earlier_one(kind):
    first, action, task, noise = inputs(B=1)
    noise.requires_grad_()
    predicted = model(kind).predict(first, action, task, noise)
    for t in range(T):
        (gradient,) = torch.autograd.grad(predicted[0, t].sum(), noise, retain_graph=True)
        assert (gradient[0, : t + 1].abs().sum(-1) > 0).all()
        assert not gradient[0, t + 1 :].any()


@pytest.mark.parametrize("kind", NOISY_KINDS)
def test_one_pass_equals_the_unroll_and_no_noise_is_zero_noise(kind):
    built = model(kind)
    first, action, task, noise = inputs()
    whole, carry = built.predict(first, action, task, noise), built.start(first, task)
    for t in range(T):
        found, carry = built.advance(carry, action[:, t], noise[:, t])
        torch.testing.assert_close(found, whole[:, t], rtol=1e-4, atol=1e-5)
    silent = built.predict(first, action, task)
    torch.testing.assert_close(silent, built.predict(first, action, task, torch.zeros_like(noise)))
    assert not torch.allclose(silent, whole)


def test_noise_is_what_the_one_step_model_leaves():
    built = model()
    _, action, task, _ = inputs()
    observation = torch.randn(4, T + 1, 2)
    with torch.no_grad():
        for parameter in built.one_step.parameters():
            parameter.zero_()
        built.one_step[-1].bias.copy_(torch.tensor([0.5, -1.0, 0.0, 1.0]))  # means, then log deviations
    noise, loss = built.innovations(observation, action, task)
    change = observation[:, 1:] - observation[:, :-1]
    expected = torch.stack([change[..., 0] - 0.5, (change[..., 1] + 1) / torch.e], -1)
    torch.testing.assert_close(noise, expected)
    torch.testing.assert_close(loss, (0.5 * expected.square().sum(-1) + 1) / 2)


def test_kinds_that_cannot_have_noise_say_so():
    with pytest.raises(ConfigError, match="noise is for kinds awm, rnn, ssm; kind is markov"):
        SequenceModelConfig(kind="markov", noise=True)


def test_a_saved_model_predicts_the_same(tmp_path):
    built = model()
    built.save(tmp_path)
    arguments = inputs()
    torch.testing.assert_close(load_model(tmp_path).predict(*arguments), built.predict(*arguments))


def random_walks(count, seed):
    """s' = s + 0.1 a + 0.3 w, and a column that is 0; the reward is -s'^2."""
    generator = torch.Generator().manual_seed(seed)
    action = torch.rand(count, T, 1, generator=generator) * 2 - 1
    steps = 0.1 * action + 0.3 * torch.randn(count, T, 1, generator=generator)
    start = 0.2 * torch.randn(count, 1, 1, generator=generator)
    s = torch.cat([start, start + steps.cumsum(1)], 1)
    return Episodes(torch.cat([s, torch.zeros_like(s)], -1), action, -s[:, 1:, 0].square())


def test_samples_of_a_random_walk_spread_and_stay_together_like_it():
    fit = ModelFit(
        TaskSpec("toy/walk", 2, 1, T),
        SequenceModelConfig(kind="awm", horizon=T, width=24, layers=1, mlp_units=(32,), noise=True, reward_head=False),
        lr=3e-3,
        seed=0,
    )
    data = random_walks(1024, 0)
    fit.set_statistics(data)
    losses = [fit.update(data, 64) for _ in range(500)]
    assert losses[-1] < losses[0]
    count = 2000
    first, action = torch.zeros(count, 2), torch.zeros(count, T, 1)
    task = torch.zeros(count, dtype=torch.int64)
    with torch.no_grad():
        noise = torch.randn(count, T, 2, generator=torch.Generator().manual_seed(1))
        sampled = fit.model.predict(first, action, task, noise)[..., 0]
    # By theory 0.3 sqrt(t), and a correlation of sqrt(2 / 6) = 0.58 between times 2 and 6, which heads of their own for
    # every step leave at 0.
    for t in (2, T):
        assert sampled[:, t - 1].std().item() == pytest.approx(0.3 * t**0.5, rel=0.25)
    correlation = torch.corrcoef(sampled[:, [1, T - 1]].T)[0, 1].item()
    assert correlation == pytest.approx((2 / T) ** 0.5, abs=0.2)


def test_losses_read_nothing_that_is_not_valid():
    built = model()
    batch = random_walks(8, 0).batch(8, torch.Generator().manual_seed(0))
    batch["valid"][:4, 3:] = False

    def losses(junk):
        changed = batch.clone()
        changed["observation"][:4, 4:] += junk
        changed["action"][:4, 3:] = junk
        return sequence_losses(built, changed, SequenceLossConfig(), torch.Generator().manual_seed(0))

    quiet, loud = losses(0.0), losses(9.0)
    torch.testing.assert_close(quiet["total"], quiet["prediction"] + quiet["reward"] + quiet["one_step"])
    for name, value in quiet.items():
        torch.testing.assert_close(loud[name], value)


def test_policies_are_imagined_with_noise_of_the_model_and_of_the_simulator():
    spec = task_spec(f"myriad/cancer@{T}+0.05")
    assert dict(spec.environment)["noise"] == 0.05
    built = model(spec=spec).eval().requires_grad_(False)
    dynamics, world = ModelDynamics(built, spec.name, "simulator"), SimulatorDynamics(spec)
    assert (dynamics.noise_dim, world.noise_dim) == (E, 1)
    policy = StackedPolicy(2, 2, 1, (8,))
    for m in range(2):
        policy.mlp.initialise_uniform(m, torch.Generator().manual_seed(m))
    start, noise = torch.rand(2, 4, 2), torch.randn(T, 2, 4, 1 + E)
    one, other = imagine(dynamics, policy, start, noise), imagine_in_parallel(dynamics, policy, start, noise)
    torch.testing.assert_close(one.next_observation_HMBO, other.next_observation_HMBO, rtol=1e-4, atol=1e-5)
    noise[..., 1:] = 0
    assert not torch.allclose(imagine(dynamics, policy, start, noise).next_observation_HMBO, one.next_observation_HMBO)
    world = SimulatorDynamics(task_spec("myriad/cancer+0.05"))  # whose steps are short enough not to end in a bound
    state = world.task.initial_state(8).unflatten(0, (2, 4))
    pushed = torch.zeros(T, 2, 4, 2)
    pushed[0, ..., 1] = 1
    still, moved = (imagine(world, policy, state, part) for part in (torch.zeros_like(pushed), pushed))
    difference = (moved.next_observation_HMBO - still.next_observation_HMBO)[0, ..., 0]
    bound = 1 - still.next_observation_HMBO[0, ..., 0]  # the state is clipped there
    torch.testing.assert_close(difference, bound.clamp(max=0.05))
    for trained, starts in ((dynamics, torch.rand(8, 2)), (SimulatorDynamics(spec), None)):
        statistics = torch.zeros(2), torch.ones(2)
        config = BpoConfig(batch_size=4, units=(8,))
        optimisation = PolicyOptimisation(trained, spec, starts, statistics, 1.0, [0, 1], T, 2, config, 0)
        assert torch.isfinite(optimisation.update(0)["imagined_return"]).all()
        assert optimisation.imagined_return().shape == (2,)
