"""What one update of the latent model minimises: losses of a batch of windows, unrolled open loop.

Dimension letters: T steps of a window, B batch, D latent, A action, K tasks, N value functions.
Source: TD-MPC2 (arXiv 2310.16828) eq. 3 and 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tensordict import TensorDict

from .config import LossConfig
from .losses import horizon_mean, soft_cross_entropy
from .networks import WorldModel
from .values import value_loss


@dataclass(frozen=True)
class Draws:
    """Random numbers of one update."""

    target_noise_TBA: torch.Tensor
    """Standard normal noise on the prior's actions in the TD targets."""
    prior_noise_SBA: torch.Tensor
    """Standard normal noise on the prior's actions in its own loss; S = T + 1."""
    target_heads: torch.Tensor
    """[2] of the N value functions; their minimum is the target."""
    prior_heads: torch.Tensor
    """[2] of the N value functions; the prior maximises their mean."""

    @classmethod
    def of(cls, generator: torch.Generator, T: int, B: int, A: int, N: int) -> Draws:
        device = generator.device
        heads = [torch.randperm(N, generator=generator, device=device)[:2] for _ in range(2)]
        noise = torch.randn(2 * T + 1, B, A, generator=generator, device=device)
        return cls(noise[:T], noise[T:], *heads)

    def of_rank(self, rank: int, world_size: int) -> Draws:
        """The part that belongs to the windows of one rank, which takes slots rank, rank + world_size, ..."""
        mine = slice(rank, None, world_size)
        return Draws(self.target_noise_TBA[:, mine], self.prior_noise_SBA[:, mine], self.target_heads, self.prior_heads)


def rollout_losses(
    model: WorldModel,
    batch: TensorDict,
    config: LossConfig,
    reward_weight_K: torch.Tensor,
    draws: Draws | None = None,
    count_T: torch.Tensor | None = None,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Losses of one batch of windows, unrolled open loop from the first observation.

    consistency: MSE(z_t, stop_gradient(encode(o_t))); reward: soft cross-entropy of (z_t, a_t) against r_t, times the
    task's weight; value: that of every value function against the TD target; continuation: BCE of the continue logit
    of z_{t+1} against 1 - terminated_t.

    Args:
        batch: as `WindowSampler.batch` gives it.
        reward_weight_K: [K].
        draws: needed where the model has values.
        count_T: [T], of `horizon_mean`; that of all ranks, divided by their number, makes the mean of their losses the
            loss of all their windows.
    Returns:
        Scalars: consistency, reward, value (with values), disagreement_heads (with these), continuation (0 if
        nothing terminates), total; and the latents [T + 1, B, D] of the rollout, detached, which the policy prior
        learns on.
    """
    observation = batch["observation"].transpose(0, 1)
    action = batch["action"].transpose(0, 1)
    reward_TB = batch["reward"].T
    valid_TB = batch["valid"].T.to(reward_TB.dtype)
    goes_on_TB = 1 - batch["terminated"].T.to(reward_TB.dtype)
    task = batch["task"]
    task_TB = task.expand(len(action), -1)
    with torch.no_grad():
        target_z = model.encode(observation[1:], task_TB)
    z = model.rollout(model.encode(observation[0], task), action, task)
    consistency_TB = (z[1:] - target_z).square().mean(-1)
    reward_loss_TB = soft_cross_entropy(model.reward_logits(z[:-1], action, task_TB), reward_TB, model.bins_M)
    losses = {
        "consistency": horizon_mean(consistency_TB, valid_TB, config.rho, count_T),
        "reward": horizon_mean(reward_loss_TB, valid_TB * reward_weight_K[task], config.rho, count_T),
        "continuation": consistency_TB.new_zeros(()),
    }
    continue_TB = model.continue_logits(z[1:], task_TB)
    if continue_TB is not None:
        bce_TB = F.binary_cross_entropy_with_logits(continue_TB, goes_on_TB, reduction="none")
        losses["continuation"] = horizon_mean(bce_TB, valid_TB, config.rho, count_T)
    losses["total"] = (
        config.consistency * losses["consistency"]
        + config.reward * losses["reward"]
        + config.continuation * losses["continuation"]
    )
    if model.config.disagreement_heads:
        # One step ahead of each latent, which is detached: these heads look on.
        error_TB = (model.head_latents(z[:-1].detach(), action, task_TB) - target_z).square().mean((0, -1))
        losses["disagreement_heads"] = horizon_mean(error_TB, valid_TB, config.rho, count_T)
        losses["total"] = losses["total"] + config.consistency * losses["disagreement_heads"]
    if draws is not None:
        target_TB = td_target(model, target_z, reward_TB, goes_on_TB, task_TB, draws)
        logits_NTB = model.value_logits(z[:-1], action, task_TB)
        losses["value"] = horizon_mean(value_loss(logits_NTB, target_TB, model.bins_M), valid_TB, config.rho, count_T)
        losses["total"] = losses["total"] + config.value * losses["value"]
    return losses, z.detach()


@torch.no_grad()
def td_target(
    model: WorldModel,
    next_z_TBD: torch.Tensor,
    reward_TB: torch.Tensor,
    goes_on_TB: torch.Tensor,
    task_TB: torch.Tensor,
    draws: Draws,
) -> torch.Tensor:
    """r + discount * continue * minimum of two target values at the prior's action in the encoded next state. [T,
    B]."""
    action = model.sample_prior(next_z_TBD, task_TB, draws.target_noise_TBA).action
    logits = model.value_logits(next_z_TBD, action, task_TB, draws.target_heads, target=True)
    return reward_TB + model.discount_K[task_TB] * goes_on_TB * model.decode_value(logits).amin(0)


def prior_values(
    model: WorldModel, z_SBD: torch.Tensor, task: torch.Tensor, draws: Draws, config: LossConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of two values at the prior's actions, and the entropy of these, both [S, B]; weights of values frozen."""
    task_SB = task.expand(len(z_SBD), -1)
    sample = model.sample_prior(z_SBD, task_SB, draws.prior_noise_SBA, squashed_entropy=config.squashed_entropy)
    logits = model.value_logits(z_SBD, sample.action, task_SB, draws.prior_heads, frozen=True)
    return model.decode_value(logits).mean(0), sample.scaled_entropy
