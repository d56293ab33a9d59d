"""Imagined rollouts of many policies through one frozen world model.

Dimension letters: H horizon, M members, B rollouts of a member, D latent, A action.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..layers.gradients import scale_gradient
from ..world_model.losses import two_hot_mean
from ..world_model.networks import WorldModel
from .actor_critic import StackedActor, straight_through_one_hot
from .config import ReleasedPwmConfig


@dataclass(frozen=True)
class MemberTasks:
    """Task facts of each policy, as tensors."""

    task_M1: torch.Tensor
    """[M, 1] int64 task id."""
    discount_M1: torch.Tensor
    """[M, 1]."""
    mask_M1A: torch.Tensor
    """[M, 1, A], 1 if the component is the task's own."""
    discrete_M11: torch.Tensor
    """[M, 1, 1] bool."""
    any_discrete: bool

    def __getitem__(self, members: slice) -> MemberTasks:
        return MemberTasks(
            self.task_M1[members],
            self.discount_M1[members],
            self.mask_M1A[members],
            self.discrete_M11[members],
            self.any_discrete,
        )


def member_tasks(
    model: WorldModel, task_ids: list[int], device: torch.device, released: ReleasedPwmConfig | None = None
) -> MemberTasks:
    """Gather the facts of `task_ids` from the model's table."""
    released = released or ReleasedPwmConfig()
    specs = [model.table[k] for k in task_ids]
    task_M1 = torch.tensor(task_ids, device=device)[:, None]
    discrete = [spec.action_kind == "discrete" for spec in specs]
    discounts = [[released.constant_discount or spec.discount] for spec in specs]
    mask_M1A = model.action_mask_KA[task_M1]
    return MemberTasks(
        task_M1,
        torch.tensor(discounts, device=device, dtype=torch.float32),
        torch.ones_like(mask_M1A) if released.unmasked_actions else mask_M1A,
        torch.tensor(discrete, device=device)[:, None, None],
        any(discrete),
    )


@dataclass(frozen=True)
class Rollout:
    """H imagined steps. z are the latents before each action; next_z after."""

    z_HMBD: torch.Tensor
    next_z_HMBD: torch.Tensor
    reward_HMB: torch.Tensor
    """Per step, in environment units (in symlog units if `imagine` was asked for these)."""
    continue_HMB: torch.Tensor
    """Probability that the episode continues after the step; 1 if nothing terminates."""
    action_HMBA: torch.Tensor


def act(
    actor: StackedActor, z_MBD: torch.Tensor, noise_MBA: torch.Tensor, tasks: MemberTasks, members: slice
) -> torch.Tensor:
    """Sampled, masked actions [M, B, A]; `noise_MBA` is standard normal."""
    return sample(actor, actor.head(z_MBD, members), noise_MBA, tasks, members)


def sample(
    actor: StackedActor, head: torch.Tensor, noise_MBA: torch.Tensor, tasks: MemberTasks, members: slice
) -> torch.Tensor:
    """As `act`, from the actors' `head` [M, B, A]."""
    action = actor.sample(head, noise_MBA, members)
    if tasks.any_discrete:
        # A Gumbel variable from the normal one, so that both kinds of action read the same random stream.
        uniform = torch.special.ndtr(noise_MBA).clamp(1e-6, 1 - 1e-6)
        one_hot = straight_through_one_hot(head, -torch.log(-torch.log(uniform)), tasks.mask_M1A.expand_as(head))
        action = torch.where(tasks.discrete_M11, one_hot, action)
    return action * tasks.mask_M1A


def log_probability(
    actor: StackedActor, rollout: Rollout, noise_HMBA: torch.Tensor, tasks: MemberTasks, members: slice
) -> torch.Tensor:
    """Log density of the rollout's actions, which `noise_HMBA` made, in the actors' parameters: [H, M, B].

    Up to a constant: tanh's Jacobian is the same for a given action.
    """
    H, _, B, _ = noise_HMBA.shape
    head = actor.head(rollout.z_HMBD.detach().transpose(0, 1).flatten(1, 2), members)
    head_HMBA = head.unflatten(1, (H, B)).transpose(0, 1)
    log_HMBA = actor.log_density(head_HMBA, noise_HMBA, members)
    if tasks.any_discrete:
        logits, chosen_HMBA = head_HMBA.masked_fill(tasks.mask_M1A == 0, -1e9), rollout.action_HMBA.detach()
        log_HMBA = torch.where(tasks.discrete_M11, torch.log_softmax(logits, -1) * chosen_HMBA, log_HMBA)
    return (log_HMBA * tasks.mask_M1A).sum(-1)


def act_deterministic(actor: StackedActor, z_MBD: torch.Tensor, tasks: MemberTasks) -> torch.Tensor:
    """tanh(mean), or the one-hot of the largest logit: [M, B, A], masked. Used by the published policy."""
    head = actor.head(z_MBD)
    action = torch.tanh(head)
    if tasks.any_discrete:
        best = head.masked_fill(tasks.mask_M1A == 0, -torch.inf).argmax(-1)
        action = torch.where(tasks.discrete_M11, torch.nn.functional.one_hot(best, head.shape[-1]).to(head), action)
    return action * tasks.mask_M1A


def imagine(
    model: WorldModel,
    actor: StackedActor,
    start_MBD: torch.Tensor,
    noise_HMBA: torch.Tensor,
    tasks: MemberTasks,
    members: slice,
    reward_space: str = "raw",
    policy_input_gradient: float = 0.0,
) -> Rollout:
    """Roll the policies out through the model. Gradients flow along latents and rewards into the actions.

    Of the gradient that reaches a latent through the policy that reads it, only the share `policy_input_gradient` is
    kept; PWM stops it.
    """
    M, B, _ = start_MBD.shape
    task = tasks.task_M1.expand(M, B)
    if model.in_parallel and policy_input_gradient == 0:
        z, action = _roll_out_in_parallel(model, actor, start_MBD, noise_HMBA, tasks, members)
    else:
        z, action = _roll_out(model, actor, start_MBD, noise_HMBA, tasks, members, policy_input_gradient)
    task_HMB = task.expand(len(action), M, B)
    logits = model.reward_logits(z[:-1], action, task_HMB)
    reward_HMB = model.decode_reward(logits) if reward_space == "raw" else two_hot_mean(logits, model.bins_M)
    return Rollout(z[:-1], z[1:], reward_HMB, continue_probability(model, z[1:], task_HMB), action)


def _roll_out(
    model: WorldModel,
    actor: StackedActor,
    start_MBD: torch.Tensor,
    noise_HMBA: torch.Tensor,
    tasks: MemberTasks,
    members: slice,
    policy_input_gradient: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents [H + 1, M, B, D] and actions [H, M, B, A], step by step."""
    task = tasks.task_M1.expand(start_MBD.shape[:2])
    carry, latents, actions = model.start(start_MBD, task), [start_MBD], []
    for noise_MBA in noise_HMBA:
        actions.append(act(actor, scale_gradient(latents[-1], policy_input_gradient), noise_MBA, tasks, members))
        z, carry = model.advance(carry, actions[-1], task)
        latents.append(z)
    return torch.stack(latents), torch.stack(actions)


def _roll_out_in_parallel(
    model: WorldModel,
    actor: StackedActor,
    start_MBD: torch.Tensor,
    noise_HMBA: torch.Tensor,
    tasks: MemberTasks,
    members: slice,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same numbers and gradients, for dynamics that predict all latents from actions in one pass.

    What the policy reads carries no gradient, so the unroll needs none: it only finds the latents. Their actions are
    then taken again in one call, and one parallel pass gives the latents that gradients go through.
    """
    with torch.no_grad():
        z_SMBD, _ = _roll_out(model, actor, start_MBD, noise_HMBA, tasks, members)
    H, _, B, _ = noise_HMBA.shape

    def of_member(x_HMBX: torch.Tensor) -> torch.Tensor:
        return x_HMBX.transpose(0, 1).flatten(1, 2)  # [M, H B, X]

    action = act(actor, of_member(z_SMBD[:-1]), of_member(noise_HMBA), tasks, members)
    action_HMBA = action.unflatten(1, (H, B)).transpose(0, 1)
    return model.rollout(start_MBD, action_HMBA, tasks.task_M1.expand(start_MBD.shape[:2])), action_HMBA


@torch.no_grad()
def imagined_return(
    model: WorldModel, actor: StackedActor, start_MBD: torch.Tensor, tasks: MemberTasks, length_M: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return and discounted return of the deterministic policies, each [M], over full imagined episodes of `length_M`
    steps.

    A reward counts with the probability that the episode has not terminated. Compared with the real return, it shows
    how far a policy exploits model errors. An action model that runs out of positions restarts from its last latent.
    """
    M, B, _ = start_MBD.shape
    task, limit = tasks.task_M1.expand(M, B), model.config.longest_prediction()
    z, alive = start_MBD, torch.ones_like(start_MBD[..., 0])
    total_MB, discounted_MB = torch.zeros_like(alive), torch.zeros_like(alive)
    carry = model.start(z, task)
    for t in range(int(length_M.max())):
        if limit and t and t % limit == 0:
            carry = model.start(z, task)
        action = act_deterministic(actor, z, tasks)
        logits = model.reward_logits(z, action, task)
        z, carry = model.advance(carry, action, task)
        reward_MB = torch.where(t < length_M[:, None], alive * model.decode_reward(logits), 0)
        total_MB += reward_MB
        discounted_MB += tasks.discount_M1**t * reward_MB
        alive = alive * continue_probability(model, z, task)
    return total_MB.mean(1), discounted_MB.mean(1)


def continue_probability(model: WorldModel, z: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
    """Probability that the episode continues in z, of the shape of `task`; 1 for tasks that do not terminate."""
    logits = model.continue_logits(z, task)
    if logits is None:
        return torch.ones(task.shape, device=z.device)
    return torch.where(model.terminates_K[task], torch.sigmoid(logits), 1.0)
