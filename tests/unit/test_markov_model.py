"""Targets and likelihoods of the Markov model: the equations, and that each learns what it says."""

import math

import pytest
import torch
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.pipeline.errors import ConfigError
from orrery.stages.sequence_model.config import LIKELIHOODS, TARGETS, SequenceModelConfig
from orrery.stages.sequence_model.episodes import Episodes, ModelFit
from orrery.stages.sequence_model.kinds import build_model
from orrery.stages.sequence_model.losses import gaussian_error, prediction_error
from orrery.stages.sequence_model.networks import LOG_STD, MarkovModel

TABLE = TaskTable([TaskSpec("toy/wide", 3, 2, 30), TaskSpec("toy/narrow", 2, 1, 30)])
ALL = [(target, likelihood) for target in TARGETS for likelihood in LIKELIHOODS]


def markov(target="difference", likelihood="mse", table=TABLE, **changes):
    torch.manual_seed(0)
    settings = {"kind": "markov", "mlp_units": (8,), "target": target, "likelihood": likelihood} | changes
    model = build_model(SequenceModelConfig(**settings), table)
    assert isinstance(model, MarkovModel)
    model.observation_scale_KO.copy_(torch.tensor([[2.0, 4.0, 1.0], [0.5, 3.0, 1.0]]))
    model.difference_scale_KO.copy_(torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 1.0]]))
    return model


@pytest.mark.parametrize(("target", "likelihood"), ALL)
def test_mean_and_deviation_are_those_of_the_equations(target, likelihood):
    model = markov(target, likelihood)
    scaled, task = torch.tensor([[0.5, -1.0, 0.25], [1.0, 2.0, 0.0]]), torch.tensor([0, 1])
    action = torch.tensor([[0.1, -0.2], [0.3, 0.0]])
    f = model.dynamics(torch.cat([scaled, action, model.dynamics_task(task)], -1))
    f, g = f.split([3, f.shape[1] - 3], -1)
    size = model.difference_scale_KO[task] if target == "difference" else torch.ones(2, 3)
    expected = size * f + (scaled if target == "difference" else 0)
    mask = torch.tensor([[1.0, 1, 1], [1, 1, 0]])
    mean, std = model.next_distribution(model.unscale(scaled, task), action, task)
    torch.testing.assert_close(mean, expected * model.observation_scale_KO[task] * mask)
    if likelihood == "mse":
        assert (std == 0).all()
    else:
        low, high = LOG_STD
        log_std = low + 0.5 * (high - low) * (1 + torch.tanh(g))
        torch.testing.assert_close(std, size * log_std.exp() * model.observation_scale_KO[task] * mask)
    torch.testing.assert_close(model.predict(model.unscale(scaled, task), action[:, None], task)[:, 0], mean)


def test_clocks_are_counted_whatever_the_target():
    model = markov("next_state", "gaussian")
    model.clock_step_KO[0, 1] = 1 / 4
    observation, task = torch.tensor([[0.0, 12.0, 0.0]]), torch.tensor([0])
    mean, std = model.next_distribution(observation, torch.zeros(1, 2), task)
    assert mean[0, 1] == 13
    assert std[0, 1] == 0
    assert (std[0, [0, 2]] > 0).all()


def test_the_likelihood_is_a_gaussians():
    generator = torch.Generator().manual_seed(0)
    mean, target, log_std = (torch.randn(2, 5, 3, generator=generator) for _ in range(3))
    counts = torch.tensor([[1.0, 1, 0], [1, 1, 1]])
    density = torch.distributions.Normal(mean, log_std.exp()).log_prob(target) + 0.5 * math.log(2 * math.pi)
    expected = -(density * counts[:, None]).sum(-1) / counts.sum(-1)[:, None]
    torch.testing.assert_close(gaussian_error(mean, log_std, target, counts), expected)
    torch.testing.assert_close(
        gaussian_error(mean, torch.zeros_like(mean), target, counts), prediction_error(mean, target, counts)
    )


def noisy_line(count, seed):
    """x' = 0.9 x + 0.5 a + 0.1 |x| noise: wide where x is, so that one deviation fits nowhere."""
    generator = torch.Generator().manual_seed(seed)
    x, action = [torch.randn(count, 1, generator=generator)], torch.rand(count, 12, 1, generator=generator) * 2 - 1
    for t in range(12):
        noise = torch.randn(count, 1, generator=generator)
        x.append(0.9 * x[-1] + 0.5 * action[:, t] + 0.1 * x[-1].abs() * noise)
    return Episodes(torch.stack(x, 1), action, torch.stack(x[1:], 1)[..., 0])


@pytest.mark.parametrize(("target", "likelihood"), [("difference", "gaussian"), ("next_state", "mse")])
def test_each_learns_the_mean_and_the_gaussian_its_deviation(target, likelihood):
    """The root mean square of a step is 0.4, so a model that predicted no change would be off by that."""
    config = SequenceModelConfig(
        kind="markov", mlp_units=(32,), horizon=12, target=target, likelihood=likelihood, reward_head=False
    )
    fit = ModelFit(TaskSpec("toy/line", 1, 1, 12), config, lr=1e-2, seed=0)
    data = noisy_line(300, 0)
    fit.set_statistics(data)
    for _ in range(300):
        fit.update(data, 64)
    x, action = torch.tensor([[-1.0], [-0.25], [0.25], [1.0]]), torch.zeros(4, 1)
    with torch.no_grad():
        mean, std = fit.model.next_distribution(x, action, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(mean, 0.9 * x, rtol=0, atol=0.06)
    if likelihood == "gaussian":
        # One deviation for all would be 0.06, which is off by 140% at 0.25.
        torch.testing.assert_close(std, 0.1 * x.abs(), rtol=0.5, atol=0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "delta"}, "target: expected difference or next_state, found 'delta'"),
        ({"likelihood": "nll"}, "likelihood: expected mse or gaussian, found 'nll'"),
        ({"kind": "awm", "likelihood": "gaussian"}, "likelihood: gaussian is for kind markov; kind is awm"),
        ({"kind": "hwm", "target": "next_state"}, "target: next_state is for kind markov; kind is hwm"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(ConfigError, match=message):
        SequenceModelConfig(**({"kind": "markov"} | changes))
