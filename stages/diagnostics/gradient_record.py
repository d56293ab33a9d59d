"""Gradient diagnostics of one task of a trained model, as rows of a table.

Dimension letters: B trajectories, T steps, O observation, A action, X predicted quantities, H horizons, G points of
a line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...datasets.schema import TaskSpec
from ...datasets.tasks.myriad import simulator
from ...datasets.tasks.myriad_dynamics import DifferentiableTask
from ...pipeline.errors import TaskError
from ..sequence_model.dynamics import ModelDynamics
from ..sequence_model.networks import SequenceModel
from ..world_model.networks import WorldModel
from .gradients import (
    Predict,
    count_sign_changes,
    first_action_jacobian,
    jacobian_cosine,
    jacobian_norm,
    latent_predictor,
    open_loop_r2,
    sequence_predictor,
    simulator_predictor,
)

Rewards = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Predicted rewards [B, T] from first observations [B, O] and actions [B, T, A]."""

LINES, POINTS = 4, 50
"""Trajectories whose landscape is looked at along a line, and the points on it."""


def record_sequence(
    model: SequenceModel,
    task: int,
    batch: Mapping[str, torch.Tensor],
    unseen: Mapping[str, torch.Tensor],
    horizons: tuple[int, ...],
) -> list[dict[str, Any]]:
    """One row per horizon: horizon, norm, return_norm, sign_changes, r2, cosine (NaN without a simulator that can start
    anywhere).

    Args:
        batch: windows at which gradients are taken, at least as long as the farthest horizon.
        unseen: windows on which predictions are compared, of episodes that the model was not trained on; r2 is NaN
            beyond their length.
    """
    spec, observation, action = model.table[task], batch["observation"], batch["action"]
    predict = sequence_predictor(model, task)
    jacobian = first_action_jacobian(predict, observation[:, 0], action)[..., : spec.action_dim]
    kept = (model.observation_mask_KO[task] > 0) & (model.clock_step_KO[task] == 0)
    with torch.no_grad():
        predicted = predict(unseen["observation"][:, 0], unseen["action"])
        r2 = open_loop_r2(predicted, unseen["observation"][:, 1:, kept], unseen["valid"])
    cosine = torch.full((action.shape[1],), torch.nan)
    if (world := _simulator_of_observations(spec)) is not None:
        start, own = observation[:, 0, : spec.observation_dim].double(), action[..., : spec.action_dim].double()
        true = first_action_jacobian(simulator_predictor(world), start, own)
        if true.shape == jacobian.shape:  # the model predicts every column but the time
            cosine = median(jacobian_cosine(jacobian, true), batch["valid"])
    norm = median(jacobian_norm(jacobian), batch["valid"])
    returns = _of_returns(_sequence_rewards(model, task), observation[:, 0], action, batch["valid"], horizons)
    return _rows(horizons, norm, returns, r2, cosine)


def record_latent(
    model: WorldModel,
    task: int,
    batch: Mapping[str, torch.Tensor],
    unseen: Mapping[str, torch.Tensor],
    horizons: tuple[int, ...],
    probes: int,
    generator: torch.Generator,
) -> list[dict[str, Any]]:
    """The same for a latent model: norms of latents, R^2 of the reward, no cosine."""
    first_BO, action = batch["observation"][:, 0], batch["action"]
    predict = latent_predictor(model, task)

    def rewards(first_BO: torch.Tensor, action_BTA: torch.Tensor) -> torch.Tensor:
        task_B = torch.full((len(first_BO),), task)
        before = torch.cat([model.encode(first_BO, task_B)[:, None], predict(first_BO, action_BTA)], 1)
        steps = zip(before.unbind(1), action_BTA.unbind(1), strict=False)
        return torch.stack([model.decode_reward(model.reward_logits(z, taken, task_B)) for z, taken in steps], 1)

    with torch.no_grad():
        predicted = rewards(unseen["observation"][:, 0], unseen["action"])[..., None]
        r2 = open_loop_r2(predicted, unseen["reward"][..., None], unseen["valid"])
    norm = jacobian_norm_by_probes(predict, first_BO, action, horizons, probes, generator)
    full = torch.full((action.shape[1],), torch.nan)
    at = [horizon - 1 for horizon in horizons]
    full[at] = median(norm, batch["valid"][:, at])
    returns = _of_returns(rewards, first_BO, action, batch["valid"], horizons)
    return _rows(horizons, full, returns, r2, torch.full_like(full, torch.nan))


def jacobian_norm_by_probes(
    predict: Predict,
    first: torch.Tensor,
    action_BTA: torch.Tensor,
    horizons: tuple[int, ...],
    probes: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Estimate of |d x_t / d a_1| at the horizons, [B, H], from random signs v: E |v^T J|^2 = |J|^2.

    For wide predictions without a forward derivative: `probes` backward passes per horizon. Source: Hutchinson (1989).
    """
    action_BTA = action_BTA.detach().clone().requires_grad_()
    predicted_BTX = predict(first, action_BTA)
    norms = []
    for horizon in horizons:
        squares = []
        for _ in range(probes):
            signs = torch.randint(2, predicted_BTX[:, 0].shape, generator=generator) * 2.0 - 1
            total = (predicted_BTX[:, horizon - 1] * signs).sum()
            gradient = torch.autograd.grad(total, action_BTA, retain_graph=True)[0][:, 0]
            squares.append(gradient.square().sum(-1))
        norms.append(torch.stack(squares).mean(0).sqrt())
    return torch.stack(norms, 1)


def median(values_BX: torch.Tensor, valid_BX: torch.Tensor) -> torch.Tensor:
    """Median over the trajectories that have not ended, [X]; NaN if all have."""
    return torch.where(valid_BX, values_BX, torch.nan).nanmedian(0).values


def return_norms(
    rewards: Rewards, first_BO: torch.Tensor, action_BTA: torch.Tensor, horizons: tuple[int, ...]
) -> torch.Tensor:
    """|d (r_1 + ... + r_t) / d a_1| of each trajectory at each horizon, [B, H]."""
    action_BTA = action_BTA.detach().clone().requires_grad_()
    total_BT = rewards(first_BO, action_BTA).cumsum(1)
    norms = []
    for horizon in horizons:
        (gradient,) = torch.autograd.grad(total_BT[:, horizon - 1].sum(), action_BTA, retain_graph=True)
        norms.append(gradient[:, 0].norm(dim=-1))
    return torch.stack(norms, 1)


def return_sign_changes(
    rewards: Rewards, first_BO: torch.Tensor, action_BTA: torch.Tensor, horizons: tuple[int, ...]
) -> torch.Tensor:
    """Count the sign changes of the derivative of r_1 + ... + r_t along a line, for each trajectory, [B, H].

    Along the line, the first action moves from -1 to 1 in all components, in `POINTS` steps; later actions are fixed.
    """
    point_G = torch.linspace(-1, 1, POINTS)
    counts = []
    for first_O, action_TA in zip(first_BO, action_BTA, strict=True):  # one by one: a line takes a batch's memory
        line_G = point_G.clone().requires_grad_()
        moved_G1A = line_G[:, None, None].expand(-1, 1, action_TA.shape[-1])
        action_GTA = torch.cat([moved_G1A, action_TA[1:].expand(POINTS, -1, -1)], 1)
        total_GT = rewards(first_O.expand(POINTS, -1), action_GTA).cumsum(1)
        gradients = [
            torch.autograd.grad(total_GT[:, horizon - 1].sum(), line_G, retain_graph=True)[0] for horizon in horizons
        ]
        counts.append(count_sign_changes(torch.stack(gradients)))
    return torch.stack(counts).double()


def _of_returns(
    rewards: Rewards,
    first_BO: torch.Tensor,
    action_BTA: torch.Tensor,
    valid_BT: torch.Tensor,
    horizons: tuple[int, ...],
) -> dict[str, torch.Tensor]:
    """Columns about the return, [H] each, over the trajectories that have not ended."""
    valid_BH = valid_BT[:, [horizon - 1 for horizon in horizons]]
    changes_LH = return_sign_changes(rewards, first_BO[:LINES], action_BTA[:LINES], horizons)
    return {
        "return_norm": median(return_norms(rewards, first_BO, action_BTA, horizons), valid_BH),
        "sign_changes": torch.where(valid_BH[:LINES], changes_LH, torch.nan).nanmean(0),
    }


def _sequence_rewards(model: SequenceModel, task: int) -> Rewards:
    """Rewards of imagined transitions: true if the task has a simulator, else learned."""
    world = ModelDynamics(model, model.table[task].name, "auto")
    spec = model.table[task]

    def rewards(first_BO: torch.Tensor, action_BTA: torch.Tensor) -> torch.Tensor:
        first, own = first_BO[:, : spec.observation_dim], action_BTA[..., : spec.action_dim]
        after = world.predict(first, own)
        return world.reward(torch.cat([first[:, None], after[:, :-1]], 1), own, after)

    return rewards


def _simulator_of_observations(spec: TaskSpec) -> DifferentiableTask | None:
    """Return the task's simulator if its states are its observations, so that it can start from the data."""
    try:
        world = simulator(spec)
    except TaskError:
        return None
    state = world.initial_state(1)
    return world if world.observe(state) is state else None


def _rows(
    horizons: tuple[int, ...],
    norm_T: torch.Tensor,
    returns: Mapping[str, torch.Tensor],
    r2_T: torch.Tensor,
    cosine_T: torch.Tensor,
) -> list[dict[str, Any]]:
    return [
        {
            "horizon": horizon,
            "norm": float(norm_T[horizon - 1]),
            **{name: float(values_H[h]) for name, values_H in returns.items()},
            "r2": float(r2_T[horizon - 1]) if horizon <= len(r2_T) else math.nan,
            "cosine": float(cosine_T[horizon - 1]),
        }
        for h, horizon in enumerate(horizons)
    ]
