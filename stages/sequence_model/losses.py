"""Losses of a sequence model as pure functions, and the data statistics that set its scaling.

Dimension letters: B batch, T steps, O observation.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict

from ...datasets.store import STATISTICS_ROWS, TaskRows, TaskStore
from .config import SequenceLossConfig
from .networks import MarkovModel, SequenceModel
from .stochastic import StochasticActionModel


def masked_mean(loss_BT: torch.Tensor, valid_BT: torch.Tensor) -> torch.Tensor:
    """Mean over valid entries; 0 if there is none."""
    return (loss_BT * valid_BT).sum() / valid_BT.sum().clamp(min=1)


def prediction_error(predicted_BTO: torch.Tensor, target_BTO: torch.Tensor, counts_BO: torch.Tensor) -> torch.Tensor:
    """Half the mean squared error over the columns that count, [B, T].

    Args:
        predicted_BTO, target_BTO: [B, T, O], scaled.
        counts_BO: [B, O], 1 for columns of the task that are predicted; 0 for padding and clocks.
    """
    squared = (predicted_BTO - target_BTO).square() * counts_BO[:, None]
    return 0.5 * squared.sum(-1) / counts_BO.sum(-1)[:, None].clamp(min=1)


def gaussian_error(
    predicted_BTO: torch.Tensor, log_std_BTO: torch.Tensor, target_BTO: torch.Tensor, counts_BO: torch.Tensor
) -> torch.Tensor:
    """Negative log-likelihood per column that counts, without its constant ln(2 pi) / 2; [B, T].

        mean_o [ ((x_o - mu_o) / std_o)^2 / 2 + ln std_o ]

    `prediction_error` is this with std = 1.
    """
    terms = 0.5 * ((target_BTO - predicted_BTO) * torch.exp(-log_std_BTO)).square() + log_std_BTO
    return (terms * counts_BO[:, None]).sum(-1) / counts_BO.sum(-1)[:, None].clamp(min=1)


def sequence_losses(
    model: SequenceModel, batch: TensorDict, config: SequenceLossConfig, generator: torch.Generator | None = None
) -> dict[str, torch.Tensor]:
    """Losses of one batch of windows.

    prediction: half the squared error of all observations after the first, scaled; the negative log-likelihood where
    the model gives deviations. reward: squared error of the reward
    head on detached transitions, predicted with probability `reward_on_predictions` and from the data otherwise.

    Args:
        batch: as `WindowSampler.batch` gives it.
        generator: for the choice between predicted and real transitions.
    Returns:
        Scalars: prediction, reward (0 without a head), one_step (with noise tokens), total.
    Source: Ma et al. (arXiv 2402.05290), released code; rewards and observations are scaled here.
    """
    task_B, valid_BT = batch["task"], batch["valid"].to(batch["reward"].dtype)
    observation = model.scale(batch["observation"], task_B) * _present(valid_BT)
    action_BTA = batch["action"] * model.action_mask_KA[task_B][:, None]
    counts_BO = model.observation_mask_KO[task_B] * (model.clock_step_KO[task_B] == 0)
    noise, losses = None, {}
    if isinstance(model, StochasticActionModel):
        noise, one_step_BT = model.innovations(observation, action_BTA, task_B)
        losses["one_step"] = masked_mean(one_step_BT, valid_BT)
    taken = model.with_noise(action_BTA, noise, task_B)
    predicted, log_std = model.fit_distribution(observation[:, :-1], taken, task_B)
    if log_std is None:
        error_BT = prediction_error(predicted, observation[:, 1:], counts_BO)
    else:
        error_BT = gaussian_error(predicted, log_std, observation[:, 1:], counts_BO)
    losses["prediction"] = masked_mean(error_BT, valid_BT)
    losses["reward"] = losses["prediction"].new_zeros(())
    if model.config.reward_head:
        imagined = model.complete_all(predicted.detach(), observation[:, 0], task_B)
        imagined = torch.cat([observation[:, :1], imagined], 1)
        draw = torch.rand(valid_BT.shape, generator=generator, device=valid_BT.device)
        use = (draw < config.reward_on_predictions)[..., None]
        found_BT = model.reward_scaled(
            torch.where(use, imagined[:, :-1], observation[:, :-1]),
            action_BTA,
            torch.where(use, imagined[:, 1:], observation[:, 1:]),
            task_B[:, None].expand(valid_BT.shape),
        )
        target_BT = (batch["reward"] - model.reward_mean_K[task_B, None]) / model.reward_scale_K[task_B, None]
        losses["reward"] = masked_mean((found_BT - target_BT).square(), valid_BT)
    losses["total"] = losses["prediction"] + config.reward * losses["reward"]
    if noise is not None:
        losses["total"] = losses["total"] + losses["one_step"]
    return losses


def _present(valid_BT: torch.Tensor) -> torch.Tensor:
    """[B, T + 1, 1], 1 if there is an observation: the first, and the one after each valid step."""
    return torch.cat([torch.ones_like(valid_BT[:, :1]), valid_BT], 1)[..., None]


def set_statistics(model: SequenceModel, store: TaskStore, held_out: float = 0.0) -> None:
    """Take the scales of observations, differences and rewards, and the clocks, from the data of each task.

    From at most 65536 random transitions per task, of the episodes that are not held out. A column that does not vary
    keeps scale 1.
    """
    for k, rows in enumerate(store.tasks):
        set_task_statistics(model, k, *_transitions(rows, store.table.observation_dim, held_out))


@torch.no_grad()
def set_task_statistics(
    model: SequenceModel, k: int, now_NO: torch.Tensor, following_NO: torch.Tensor, reward_N: torch.Tensor
) -> None:
    """The same for task number `k`, from N of its transitions in float64."""
    own = slice(0, model.table[k].observation_dim)
    mean, scale = _mean_and_scale(now_NO)
    clock = ((following_NO - now_NO - 1).abs() < 1e-3).all(0)
    model.observation_mean_KO[k, own] = mean[own].float()
    model.observation_scale_KO[k, own] = scale[own].float()
    model.clock_step_KO[k, own] = torch.where(clock, 1 / scale, 0.0)[own].float()
    change = ((following_NO - now_NO) / scale).square().mean(0).sqrt()
    if isinstance(model, StochasticActionModel):
        model.moves_KO[k, own] = (change > 1e-6)[own].float()
    if isinstance(model, MarkovModel):
        model.difference_scale_KO[k, own] = torch.where(change > 1e-6, change, 1.0)[own].float()
    model.reward_mean_K[k] = reward_N.mean().float()
    deviation = reward_N.std(unbiased=False)
    model.reward_scale_K[k] = deviation.float() if deviation > 1e-9 else 1.0


def observation_statistics(
    rows: TaskRows, observation_dim: int, held_out: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and scale of the padded observations of one task, [O] float32 each, as `set_statistics` takes them."""
    mean, scale = _mean_and_scale(_transitions(rows, observation_dim, held_out)[0])
    return mean.float(), scale.float()


def _mean_and_scale(observation_NO: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = observation_NO.mean(0), observation_NO.std(0, unbiased=False)
    return mean, torch.where(std > 1e-6 * (1 + mean.abs()), std, 1.0)


def _transitions(
    rows: TaskRows, observation_dim: int, held_out: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Observations before and after, and rewards, of random transitions, float64."""
    index = rows.sample_transitions(STATISTICS_ROWS, held_out).to(rows.rows.device)
    before, after = rows.rows[index].double().cpu(), rows.rows[index + 1].double().cpu()
    return before[:, :observation_dim], after[:, :observation_dim], before[:, -1]
