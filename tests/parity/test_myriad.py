"""The differentiable tasks are those of the published systems: states, rewards and gradients, in float64.

golden/myriad_*.npz and awm_*.npz were produced by micklethepickle/action-conditioned-world-models @adc56fe and
nikihowe/myriad @6fb1b1e. Both charge final costs on the state before the last transition.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from orrery.datasets.tasks.myriad_dynamics import PROBLEMS, MyriadTask
from orrery.datasets.tasks.myriad_mechanics import OneBounce, ReleasedPendulum

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = sorted(path.stem.removeprefix("myriad_") for path in GOLDEN.glob("myriad_*.npz"))
CLOSE = {"rtol": 1e-10, "atol": 1e-10}

# Constant actions 0, -1, +1 over 100 steps; the problems without a golden file are pinned by these.
RETURNS = {
    "cancer": (-26.9796, -59.501, -82.2333),
    "bear": (-2506.05, -16.9655, -10011.4),
    "bioreactor": (1, 1.38823, 0.861758),
    "hiv": (810.078, 811.424, 779.772),
    "mould": (-88.1111, -982.119, -142.152),
    "bacteria": (-1, 2.67803, -4),
    "predator_prey": (-1.25, 0, -5),
    "glucose": (-3206.11, -3206.19, -3207.03),
    "harvest": (3.90469, 0, -4.43097),
    "timber": (1081.37, 500, 0),
    "invasive_plant": (-17.5145, -64.3989, -50.0004),
}


def load(name):
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind != "U"}


def play(task, actions_BHA):
    """Observations [B, H + 1, O] and rewards [B, H]."""
    state = task.initial_state(len(actions_BHA), dtype=actions_BHA.dtype)
    observations, rewards = [task.observe(state)], []
    for action in actions_BHA.unbind(1):
        state = task.next_state(state, action)
        observations.append(task.observe(state))
        rewards.append(task.reward(observations[-2], action, observations[-1]))
    return torch.stack(observations, 1), torch.stack(rewards, 1)


@pytest.mark.parametrize("horizon", [20, 100])
@pytest.mark.parametrize("name", FILES)
def test_states_rewards_and_gradients_are_the_published_ones(name, horizon):
    golden = load(f"myriad_{name}")
    problem = PROBLEMS[name.removesuffix("_T10")]
    task = MyriadTask(problem, horizon, duration=float(golden["T"]), terminal_on_final_state=False)
    actions = golden[f"H{horizon}_actions_normed"].clone().requires_grad_()
    observations, rewards = play(task, actions)
    torch.testing.assert_close(observations, golden[f"H{horizon}_obs"], **CLOSE)
    torch.testing.assert_close(rewards, golden[f"H{horizon}_rewards"], **CLOSE)
    torch.testing.assert_close(rewards.sum(1), golden[f"H{horizon}_returns"], **CLOSE)
    (gradient,) = torch.autograd.grad(rewards.sum(), actions)
    # Where a state sits exactly on a bound, JAX's clip passes half of the gradient and torch's all of it.
    tied = {"glucose": [1], "predator_prey_T10": [1]}.get(name, [])
    kept = [index for index in range(len(actions)) if index not in tied]
    torch.testing.assert_close(gradient[kept], golden[f"H{horizon}_dreturn_daction"][kept], **CLOSE)


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith("_T10")])
def test_functions_of_single_points_are_the_published_ones(name):
    golden, problem = load(f"myriad_{name}"), PROBLEMS[name]
    x, u, t = golden["pt_x"], golden["pt_u"], golden["pt_t"]
    torch.testing.assert_close(problem.derivative(x, u), golden["pt_awm_dynamics"], **CLOSE)
    torch.testing.assert_close(problem.cost(x, u, t), golden["pt_awm_cost"], **CLOSE)
    assert bool(golden["terminal_cost"]) == (problem.final_cost is not None)
    if problem.final_cost is not None:
        torch.testing.assert_close(problem.final_cost(x), golden["pt_terminal_cost"], **CLOSE)
    bounds = [*(problem.state_bounds or [(-np.inf, np.inf)] * len(problem.start)), *problem.control_bounds]
    np.testing.assert_array_equal(np.array(bounds, float), golden["bounds"].numpy())
    assert problem.start == pytest.approx(golden["x0"].tolist())
    assert problem.duration == float(golden["myriad_T"])


@pytest.mark.parametrize("name", RETURNS)
def test_returns_of_constant_actions_are_the_published_ones(name):
    task = MyriadTask(PROBLEMS[name], 100, terminal_on_final_state=False)
    actions = torch.tensor([0.0, -1.0, 1.0], dtype=torch.float64)[:, None, None].expand(3, 100, task.action_dim)
    assert play(task, actions)[1].sum(1).tolist() == pytest.approx(RETURNS[name], rel=5e-6, abs=1e-6)


def test_one_bounce_is_the_published_one():
    golden = load("awm_one_bounce")
    first = golden["a1"].clone().requires_grad_()
    actions = torch.cat([first[:, None, None], torch.zeros(9, 19, 1, dtype=torch.float64)], 1)
    observations, rewards = play(OneBounce(20, goal=0.3, terminal_on_final_state=False), actions)
    torch.testing.assert_close(observations, golden["obs"], rtol=1e-10, atol=1e-7)  # it keeps the goal in float32
    torch.testing.assert_close(observations[..., :2], golden["obs"][..., :2], **CLOSE)
    torch.testing.assert_close(rewards, golden["rewards"], rtol=1e-6, atol=1e-7)
    for time in range(21):
        for column in range(2):
            (gradient,) = torch.autograd.grad(observations[:, time, column].sum(), first, retain_graph=True,
                                              materialize_grads=True)  # fmt: skip
            torch.testing.assert_close(gradient, golden["dobs_da1"][:, time, column], **CLOSE)


def test_the_released_pendulum_is_the_published_one():
    golden = load("awm_double_pendulum")
    actions = torch.cat([golden["a1"][:, None, None], torch.zeros(9, 19, 1, dtype=torch.float64)], 1)
    task = ReleasedPendulum(
        20, angle_scale=180, second_angle=180 * 0.25, goal_state=(0.5, 0.0, 0.3, 0.0), observe_angles=True,
        substeps=50, terminal_on_final_state=False,
    )  # fmt: skip
    observations, rewards = play(task, actions)
    torch.testing.assert_close(observations, golden["obs"], rtol=0, atol=1e-5)
    torch.testing.assert_close(rewards, golden["rewards"], rtol=1e-6, atol=1e-5)
