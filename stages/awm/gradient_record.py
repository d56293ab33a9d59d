"""Gradient diagnostics of one task of a trained model, as rows of a table.

Dimension letters: B trajectories, T decisions, O observation, A action, X predicted quantities, H horizons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...datasets.schema import TaskSpec
from ...datasets.tasks.myriad import simulator
from ...datasets.tasks.myriad_dynamics import DifferentiableTask
from ...pipeline.errors import TaskError
from ..world_model.networks import WorldModel
from .gradients import (
    Predict,
    first_action_jacobian,
    jacobian_cosine,
    jacobian_norm,
    latent_predictor,
    open_loop_r2,
    sequence_predictor,
    simulator_predictor,
)
from .imagination import ModelDynamics
from .networks import SequenceModel


def record_sequence(
    model: SequenceModel, task: int, batch: Mapping[str, torch.Tensor], horizons: tuple[int, ...]
) -> list[dict[str, Any]]:
    """One row per horizon: horizon, norm, return_norm, r2, cosine (NaN without a simulator that can start anywhere)."""
    spec, observation, action = model.table[task], batch["observation"], batch["action"]
    predict = sequence_predictor(model, task)
    jacobian = first_action_jacobian(predict, observation[:, 0], action)[..., : spec.action_dim]
    kept = (model.observation_mask_KO[task] > 0) & (model.clock_step_KO[task] == 0)
    with torch.no_grad():
        r2 = open_loop_r2(predict(observation[:, 0], action), observation[:, 1:, kept])
    cosine = torch.full((action.shape[1],), torch.nan)
    if (world := _simulator_of_observations(spec)) is not None:
        start, own = observation[:, 0, : spec.observation_dim].double(), action[..., : spec.action_dim].double()
        true = first_action_jacobian(simulator_predictor(world), start, own)
        if true.shape == jacobian.shape:  # the model predicts every column but the time
            cosine = jacobian_cosine(jacobian, true).median(0).values
    rewards = _sequence_rewards(model, task, observation[:, 0])
    returns = return_norms(rewards, action, horizons)
    median = jacobian_norm(jacobian).median(0).values
    return _rows(horizons, median, returns, r2, cosine)


def record_latent(
    model: WorldModel,
    task: int,
    batch: Mapping[str, torch.Tensor],
    horizons: tuple[int, ...],
    probes: int,
    generator: torch.Generator,
) -> list[dict[str, Any]]:
    """The same for a latent model: norms of latents, R^2 of the reward, no cosine."""
    observation, action = batch["observation"], batch["action"]
    task_B = torch.full((len(action),), task)
    predict = latent_predictor(model, task)

    def rewards(action_BTA: torch.Tensor) -> torch.Tensor:
        before = torch.cat(
            [model.encode(observation[:, 0], task_B)[:, None], predict(observation[:, 0], action_BTA)], 1
        )
        steps = zip(before.unbind(1), action_BTA.unbind(1), strict=False)
        return torch.stack([model.decode_reward(model.reward_logits(z, taken, task_B)) for z, taken in steps], 1)

    with torch.no_grad():
        r2 = open_loop_r2(rewards(action)[..., None], batch["reward"][..., None])
    norm = jacobian_norm_by_probes(predict, observation[:, 0], action, horizons, probes, generator)
    full = torch.full((action.shape[1],), torch.nan)
    full[[horizon - 1 for horizon in horizons]] = norm.median(0).values
    return _rows(horizons, full, return_norms(rewards, action, horizons), r2, torch.full_like(full, torch.nan))


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


def return_norms(
    rewards: Callable[[torch.Tensor], torch.Tensor], action_BTA: torch.Tensor, horizons: tuple[int, ...]
) -> torch.Tensor:
    """Median over trajectories of |d (r_1 + ... + r_t) / d a_1| at each horizon, [H].

    `rewards` maps actions [B, T, A] to rewards [B, T].
    """
    action_BTA = action_BTA.detach().clone().requires_grad_()
    total_BT = rewards(action_BTA).cumsum(1)
    medians = []
    for horizon in horizons:
        (gradient,) = torch.autograd.grad(total_BT[:, horizon - 1].sum(), action_BTA, retain_graph=True)
        medians.append(gradient[:, 0].norm(dim=-1).median())
    return torch.stack(medians)


def _sequence_rewards(
    model: SequenceModel, task: int, first_BO: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Rewards of imagined transitions: true where the task has a simulator, else learned."""
    world = ModelDynamics(model, model.table[task].name, "auto")
    spec = model.table[task]
    first_BO = first_BO[:, : spec.observation_dim]

    def rewards(action_BTA: torch.Tensor) -> torch.Tensor:
        own = action_BTA[..., : spec.action_dim]
        after = world.predict(first_BO, own)
        return world.reward(torch.cat([first_BO[:, None], after[:, :-1]], 1), own, after)

    return rewards


def _simulator_of_observations(spec: TaskSpec) -> DifferentiableTask | None:
    """The task's simulator, if its states are its observations, so that it can start from the data's."""
    try:
        world = simulator(spec)
    except TaskError:
        return None
    state = world.initial_state(1)
    return world if world.observe(state) is state else None


def _rows(
    horizons: tuple[int, ...], norm_T: torch.Tensor, return_H: torch.Tensor, r2_T: torch.Tensor, cosine_T: torch.Tensor
) -> list[dict[str, Any]]:
    return [
        {
            "horizon": horizon,
            "norm": float(norm_T[horizon - 1]),
            "return_norm": float(return_H[h]),
            "r2": float(r2_T[horizon - 1]),
            "cosine": float(cosine_T[horizon - 1]),
        }
        for h, horizon in enumerate(horizons)
    ]
