"""Diagnostics of gradients through a world model: growth with the horizon, direction, roughness, and noise.

Pure functions for any model.

A model is given as a function from a batch of first observations and actions to the predictions after each action:
`predict(first [B, O], action [B, T, A]) -> [B, T, X]`, where X are observations, or latents of a latent model
(`latent_predictor`). Read norms only together with a measure of skill: a model that predicts a constant
also has small gradients.

Dimension letters: B trajectories, T steps, O observation, X predicted quantities, A action, G points of a line,
N draws, P parameters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...datasets.tasks.myriad_dynamics import DifferentiableTask
from ..sequence_model.episodes import play
from ..sequence_model.networks import SequenceModel
from ..world_model.networks import WorldModel

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def sequence_predictor(model: SequenceModel, task: int = 0) -> Predict:
    """`predict` of a sequence model, environment units, without the clock and padded columns."""
    kept = (model.observation_mask_KO[task] > 0) & (model.clock_step_KO[task] == 0)

    def predict(first: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return model.predict(first, action, torch.full((len(first),), task, device=first.device))[..., kept]

    return predict


def simulator_predictor(simulator: DifferentiableTask) -> Predict:
    """`predict` of a simulator, from start states [B, S] in place of observations; without the time."""

    def predict(first: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        state, observations = first, []
        for taken in action.unbind(1):
            state = simulator.next_state(state, taken)
            observations.append(simulator.observe(state)[..., :-1])
        return torch.stack(observations, 1)

    return predict


def latent_predictor(model: WorldModel, task: int = 0) -> Predict:
    """`predict` of a latent world model: the latents [B, T, D] after each action."""

    def predict(first: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        tasks = torch.full((len(first),), task, device=first.device)
        return model.rollout(model.encode(first, tasks), action.transpose(0, 1), tasks)[1:].transpose(0, 1)

    return predict


def first_action_jacobian(predict: Predict, first: torch.Tensor, action_BTA: torch.Tensor) -> torch.Tensor:
    """d x_t / d a_1 of each trajectory, exact: [B, T, X, A].

    By forward differentiation, one pass per action component for all t at once.
    """
    columns = []
    # The fused attention kernels have no forward derivative; this one is made of operations that do.
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        # The first forward derivative of a process makes torch script its own rules, of which it then warns.
        warnings.filterwarnings("ignore", message=".*torch.jit.script. is deprecated", category=DeprecationWarning)
        for component in range(action_BTA.shape[-1]):
            tangent = torch.zeros_like(action_BTA)
            tangent[:, 0, component] = 1
            column = torch.func.jvp(lambda action: predict(first, action), (action_BTA,), (tangent,))[1]
            columns.append(column.detach())
    return torch.stack(columns, -1)


def jacobian_norm(jacobian_BTXA: torch.Tensor) -> torch.Tensor:
    """Frobenius norm, [B, T]."""
    return jacobian_BTXA.flatten(2).norm(dim=-1)


def jacobian_cosine(jacobian_BTXA: torch.Tensor, true_BTXA: torch.Tensor) -> torch.Tensor:
    """Cosine between two Jacobians as vectors, [B, T]; 0 if one of them is 0."""
    one, other = jacobian_BTXA.flatten(2).double(), true_BTXA.flatten(2).double()
    return (one * other).sum(-1) / (one.norm(dim=-1) * other.norm(dim=-1)).clamp(min=1e-30)


def growth(norm_BT: torch.Tensor, horizons: tuple[int, ...]) -> tuple[torch.Tensor, float]:
    """Median norm at each horizon, and the slope of log(median) over log(horizon): the order of polynomial growth."""
    median = torch.stack([norm_BT[:, horizon - 1].median() for horizon in horizons]).double()
    x = torch.log(torch.tensor(horizons, dtype=torch.float64))
    y = torch.log(median.clamp(min=1e-30))
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return median, float(slope)


def open_loop_r2(
    predicted_BTX: torch.Tensor, real_BTX: torch.Tensor, valid_BT: torch.Tensor | None = None
) -> torch.Tensor:
    """Share of the variance over trajectories that predictions explain, mean over columns that vary: [T].

    Args:
        valid_BT: bool, False after the end of an episode: later entries of a trajectory are ignored. None is all
            True. With fewer than two trajectories left, the share is NaN.
    """
    valid = torch.ones_like(real_BTX[..., :1]) if valid_BT is None else valid_BT[..., None].to(real_BTX)
    count = valid.sum(0)
    error = ((predicted_BTX - real_BTX).square() * valid).sum(0) / count
    mean = (real_BTX * valid).sum(0) / count
    variance = ((real_BTX - mean).square() * valid).sum(0) / count
    return torch.where((variance > 1e-8) & (count > 1), 1 - error / variance, torch.nan).nanmean(-1)


def count_sign_changes(gradient_XG: torch.Tensor) -> torch.Tensor:
    """Count the sign changes of gradients [..., G] along a line, [...]."""
    signs = torch.sign(gradient_XG)
    return (signs[..., 1:] * signs[..., :-1] < 0).sum(-1)


@dataclass(frozen=True)
class Landscape:
    """A function along a line, and its gradient along it."""

    point_G: torch.Tensor
    value_G: torch.Tensor
    gradient_G: torch.Tensor

    @property
    def sign_changes(self) -> int:
        """Number of sign changes of the gradient on the line."""
        return int(count_sign_changes(self.gradient_G))

    def cosine(self, other: Landscape) -> float:
        """Between the two gradients as vectors over the points."""
        one, two = self.gradient_G.double(), other.gradient_G.double()
        return float(one @ two / (one.norm() * two.norm()).clamp(min=1e-30))


def landscape(value_of: Callable[[torch.Tensor], torch.Tensor], point_G: torch.Tensor) -> Landscape:
    """`value_of` [G] -> [G], each value from its own point, with its derivative."""
    points = point_G.detach().clone().requires_grad_()
    values = value_of(points)
    (gradient,) = torch.autograd.grad(values.sum(), points)
    return Landscape(point_G, values.detach(), gradient)


def first_actions(first_G: torch.Tensor, horizon: int) -> torch.Tensor:
    """Action sequences [G, H, 1] that begin with each of `first_G`; the later actions are 0."""
    return torch.cat([first_G[:, None, None], first_G.new_zeros(len(first_G), horizon - 1, 1)], 1)


def final_reward(
    task: DifferentiableTask, model: SequenceModel | None = None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The last step's reward [G] as a function of the first action [G], others 0: a landscape that can be drawn.

    Of the true reward function, on what the model predicts from the task's (fixed) start, or on the simulator's states.
    """
    start = task.initial_state(1)

    def value(first_G: torch.Tensor) -> torch.Tensor:
        actions = first_actions(first_G, task.horizon)
        if model is None:
            observations = play(task, actions.double(), start.expand(len(first_G), -1))[0]
        else:
            first = task.observe(start).float().expand(len(first_G), -1)
            predicted = model.predict(first, actions, torch.zeros(len(first_G), dtype=torch.int64))
            observations = torch.cat([first[:, None], predicted], 1)
        return task.reward(observations[:, -2], actions[:, -1], observations[:, -1])

    return value


def climb(
    value: Callable[[torch.Tensor], torch.Tensor],
    true_value: Callable[[torch.Tensor], torch.Tensor],
    start_G: torch.Tensor,
    lr: float,
    steps: int,
) -> torch.Tensor:
    """True values [G] of the points that Adam reaches from `start_G` in [-1, 1] along the gradient of `value`.

    Points are independent; gradients are clamped to [-100, 100].
    """
    point = start_G.clone().requires_grad_()
    optimizer = torch.optim.Adam([point], lr=lr)
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(value(point).sum(), point)
        point.grad = -gradient.clamp(-100, 100)
        optimizer.step()
        with torch.no_grad():
            point.clamp_(-1, 1)
    with torch.no_grad():
        return true_value(point)
