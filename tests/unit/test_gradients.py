"""Gradient diagnostics against numbers that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.datasets.tasks import task_spec
from orrery.datasets.tasks.myriad import simulator
from orrery.stages.diagnostics.config import GradientsConfig
from orrery.stages.diagnostics.gradient_record import median
from orrery.stages.diagnostics.gradients import (
    climb,
    final_reward,
    first_action_jacobian,
    first_actions,
    growth,
    jacobian_cosine,
    jacobian_norm,
    landscape,
    latent_predictor,
    open_loop_r2,
    sequence_predictor,
    simulator_predictor,
)
from orrery.stages.diagnostics.stage_gradients import Gradients
from orrery.stages.sequence_model.config import KINDS, SequenceModelConfig
from orrery.stages.sequence_model.episodes import Episodes, ModelFit, correlated_actions, fit_model, play, simulate
from orrery.stages.sequence_model.kinds import build_model
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.networks import WorldModel

from .stores import numbered_episode, write_store


def test_the_jacobian_of_a_linear_system_is_a_matrix_power():
    a, b = torch.tensor([[0.9, 0.2], [0.0, 1.1]]), torch.tensor([[0.0, 1.0], [0.5, 0.0]])

    def predict(first, action):
        states = [first]
        for taken in action.unbind(1):
            states.append(states[-1] @ a.T + taken @ b.T)
        return torch.stack(states[1:], 1)

    jacobian = first_action_jacobian(predict, torch.randn(3, 2), torch.randn(3, 6, 2))
    for t in range(6):
        expected = torch.linalg.matrix_power(a, t) @ b
        torch.testing.assert_close(jacobian[:, t], expected.expand(3, 2, 2))
    torch.testing.assert_close(jacobian_norm(jacobian)[:, 0], torch.full((3,), math.sqrt(1.25)))
    torch.testing.assert_close(jacobian_cosine(jacobian, -2 * jacobian), -torch.ones(3, 6, dtype=torch.float64))


def first_action_jacobian_backward(predict, first, action_BTA, horizons):
    """`first_action_jacobian` at these horizons, [B, H, X, A]: one backward pass per horizon and predicted quantity."""
    action_BTA = action_BTA.detach().clone().requires_grad_()
    predicted_BTX = predict(first, action_BTA)
    rows = []
    for horizon in horizons:
        for x in range(predicted_BTX.shape[-1]):
            total = predicted_BTX[:, horizon - 1, x].sum()
            rows.append(torch.autograd.grad(total, action_BTA, retain_graph=True)[0][:, 0])
    return torch.stack(rows, 1).unflatten(1, (len(horizons), -1))


@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_reverse_derivatives_of_every_sequence_model_agree(kind):
    torch.manual_seed(0)
    table = TaskTable([TaskSpec("toy/a", 2, 2, 9)])
    model = build_model(SequenceModelConfig(kind=kind, horizon=6, width=12, states=4, stride=2), table)
    predict = sequence_predictor(model.requires_grad_(False))
    first, action = torch.randn(2, 2), torch.rand(2, 6, 2) * 2 - 1
    found = first_action_jacobian(predict, first, action)
    expected = first_action_jacobian_backward(predict, first, action, tuple(range(1, 7)))
    assert expected.abs().max() > 1e-6
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_a_latent_model_and_a_simulator_can_be_diagnosed_too():
    torch.manual_seed(0)
    table = TaskTable([TaskSpec("toy/a", 3, 1, 9), TaskSpec("toy/b", 2, 1, 9)])
    sizes = {"latent_dim": 8, "encoder_dim": 8, "mlp_dim": 8, "task_dim": 4, "num_bins": 11}
    model = WorldModel(WorldModelConfig(**sizes), table).requires_grad_(False)
    predict = latent_predictor(model, task=1)
    first, action = torch.randn(2, 3), torch.rand(2, 4, 1)
    found = first_action_jacobian_backward(predict, first, action, (1, 4))
    assert found.shape == (2, 2, 8, 1)
    nudged = action.double().clone()
    nudged[:, 0] += 1e-5
    model = model.double()
    first = first.double()
    difference = (predict(first, nudged) - predict(first, action.double())) / 1e-5
    torch.testing.assert_close(found[..., 0].double(), difference[:, [0, 3]], rtol=1e-2, atol=1e-4)

    task = simulator(task_spec("myriad/driven_pendulum@5"))
    start, action = task.initial_state(2, torch.Generator().manual_seed(0)), torch.rand(2, 5, 1).double()
    true = first_action_jacobian(simulator_predictor(task), start, action)
    backward = first_action_jacobian_backward(simulator_predictor(task), start, action, (1, 2, 3, 4, 5))
    torch.testing.assert_close(true, backward)


def test_the_clock_and_padding_are_no_part_of_a_prediction():
    table = TaskTable([TaskSpec("toy/a", 3, 1, 9), TaskSpec("toy/b", 2, 1, 9)])
    model = build_model(SequenceModelConfig(kind="awm", horizon=6, width=12), table)
    model.clock_step_KO[0, 2] = 1.0
    shapes = [sequence_predictor(model, k)(torch.zeros(4, 3), torch.zeros(4, 5, 1)).shape for k in (0, 1)]
    assert shapes == [(4, 5, 2), (4, 5, 2)]


def test_the_slope_is_the_order_of_growth():
    t = torch.arange(1, 101).double()
    norms = torch.stack([2 * t**3, 2 * t**3, 1e6 * t])
    median, slope = growth(norms, (5, 10, 20, 50, 100))
    assert slope == pytest.approx(3)
    assert median.tolist() == pytest.approx([2 * h**3 for h in (5, 10, 20, 50, 100)])


def test_skill_by_hand():
    real = torch.tensor([[[0.0, 7.0]], [[2.0, 7.0]]])  # the second column does not vary
    assert open_loop_r2(real, real).tolist() == [1]
    assert open_loop_r2(torch.ones_like(real), real).tolist() == [0]
    assert open_loop_r2(real.flip(0), real).tolist() == [-3]


def test_skill_and_medians_end_with_the_episode():
    real = torch.tensor([[[0.0], [1.0]], [[2.0], [3.0]], [[9.0], [0.0]], [[9.0], [0.0]]])  # zeros pad the last two
    valid = torch.tensor([[True, True], [True, True], [False, False], [True, False]])
    predicted = torch.where(valid[..., None], real, 100.0)
    assert open_loop_r2(predicted, real, valid).tolist() == [1, 1]
    predicted[:2, 1] = 2.0  # the mean of those that have not ended
    assert open_loop_r2(predicted, real, valid).tolist() == [1, 0]
    assert open_loop_r2(predicted, real, valid & torch.tensor([True, False])).isnan().tolist() == [False, True]
    norm = torch.tensor([[1.0, 5.0], [3.0, 7.0], [100.0, 100.0], [2.0, 100.0]])
    assert median(norm, valid).tolist() == [2, 5]


def test_skill_is_measured_on_episodes_that_the_model_has_not_seen(tmp_path):
    spec = TaskSpec("toy/a", 2, 1, 30)
    lengths = [12] * 8 + [30] * 2
    store = write_store(tmp_path, [(spec, [numbered_episode(spec, i, length) for i, length in enumerate(lengths)])])
    unseen = np.flatnonzero(store.tasks[0].held_out(0.3))
    assert len(unseen) == 3
    batch = Gradients(GradientsConfig())._windows(store, "toy/a", 10, 0.3)
    assert set(batch["observation"][:, 0, 0].tolist()) == set(unseen.tolist())
    longest = max(lengths[episode] for episode in unseen)  # a longer window is cut to what there is
    assert Gradients(GradientsConfig())._windows(store, "toy/a", 30, 0.3)["reward"].shape[1] == longest
    assert set(Gradients(GradientsConfig())._windows(store, "toy/a", 10, 0.0)["observation"][:, 0, 0].tolist()) == set(
        range(10)
    )
    one = write_store(tmp_path / "one", [(spec, [numbered_episode(spec, 0, 12)])])
    assert len(Gradients(GradientsConfig())._windows(one, "toy/a", 10, 0.3)["observation"]) == 3


def test_a_landscape_counts_hills():
    points = torch.linspace(0.05, 4 * math.pi - 0.05, 400)
    sine = landscape(torch.sin, points)
    torch.testing.assert_close(sine.gradient_G, torch.cos(points))
    assert sine.sign_changes == 4
    slower = landscape(lambda x: torch.sin(x / 2), points)
    assert slower.sign_changes == 2
    assert sine.cosine(landscape(lambda x: 5 * torch.sin(x), points)) == pytest.approx(1)


def test_the_final_reward_of_the_first_action_and_climbing_it():
    task = simulator(task_spec("myriad/one_bounce"))
    value = final_reward(task)
    point = torch.linspace(-0.9, 0.9, 7)
    actions = first_actions(point, 20)
    assert actions[:, 1:].abs().sum() == 0
    _, reward = play(task, actions.double(), task.initial_state(7))
    torch.testing.assert_close(value(point).double(), reward[:, -1], rtol=1e-5, atol=1e-6)
    # Thrown at a = -0.5 the ball comes back to 0.3 within reach; gradients of the simulator find it.
    reached = climb(value, value, torch.tensor([-0.6, -0.3]), 0.05, 60)
    assert (reached > -1e-3).all()
    assert (value(torch.tensor([-0.6, -0.3])) < -3e-3).all()

    spec = task_spec("myriad/one_bounce")
    model = build_model(SequenceModelConfig(kind="awm", horizon=20, width=12), TaskTable([spec]))
    model.clock_step_KO[0, 4] = 1.0  # else the untrained model would not know that the episode ends
    through = final_reward(task, model.requires_grad_(False))(point)
    first = task.observe(task.initial_state(7)).float()
    predicted = model.predict(first, actions, torch.zeros(7).long())
    torch.testing.assert_close(through, -(predicted[:, -1, 0] - predicted[:, -2, 3]).square(), rtol=1e-4, atol=1e-5)


def test_episodes_are_what_the_simulator_plays_and_repeat():
    task = simulator(task_spec("myriad/driven_pendulum@6"))
    actions = correlated_actions(5, 6, 1, torch.Generator().manual_seed(0))
    assert actions.shape == (5, 6, 1)
    assert actions.abs().max() <= 1
    one, other = simulate(task, actions), simulate(task, actions)
    assert torch.equal(one.observation_NTO, other.observation_NTO)
    start = task.initial_state(5, torch.Generator().manual_seed(0))
    observation, reward = play(task, actions.double(), start)
    torch.testing.assert_close(one.observation_NTO, observation.float())
    torch.testing.assert_close(one.reward_NT, reward.float())
    both = one + one
    assert isinstance(both, Episodes)
    assert both.batch(7, torch.Generator().manual_seed(0))["observation"].shape == (7, 7, 7)


def test_a_fit_is_decided_by_its_seed_and_disturbs_no_other_stream():
    spec = task_spec("myriad/cancer@10")
    data = simulate(simulator(spec), correlated_actions(20, 10, 1, torch.Generator().manual_seed(0)))
    config = SequenceModelConfig(kind="awm", horizon=10, width=12)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, other = (fit_model(spec, data, config, 5, batch_size=8, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    fit = ModelFit(spec, config, 1e-2, 0)
    fit.set_statistics(data)
    losses = [fit.update(data, 16) for _ in range(80)]
    assert sum(losses[-5:]) < 0.2 * sum(losses[:5])
