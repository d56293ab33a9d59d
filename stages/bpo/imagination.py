"""Imagined episodes of closed-loop policies, through a sequence model or through a differentiable simulator.

At each step the policy reads the predicted observation with its gradient cut (or scaled); the reward keeps it:

    a_t = pi(sg(s^_t), noise_t),   r_t = r(s^_t, a_t, s^_{t+1}),   s^_{t+1} = model(s_1, a_{1:t})
    dJ/dtheta = sum_k (da_k/dtheta)^T [ dr_k/da_k + sum_{t>k} (ds^_t/da_k)^T dr_t/ds^_t ]

Dimension letters: H steps, M members, B rollouts of a member, R = M B rollouts, O observation, A action, E noise of
the dynamics, S start.
Source: Ma et al. (arXiv 2402.05290), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..layers.gradients import scale_gradient
from ..sequence_model.dynamics import Dynamics
from .policy import StackedPolicy


def _of_policy_and_dynamics(noise: torch.Tensor, dynamics: Dynamics) -> tuple[torch.Tensor, torch.Tensor]:
    own = noise.shape[-1] - dynamics.noise_dim
    return noise[..., :own], noise[..., own:]


@dataclass(frozen=True)
class Imagined:
    """H imagined steps of M members from B starts each."""

    observation_HMBO: torch.Tensor
    """Before each action."""
    next_observation_HMBO: torch.Tensor
    action_HMBA: torch.Tensor
    reward_HMB: torch.Tensor
    entropy_HMB: torch.Tensor


def imagine(
    dynamics: Dynamics,
    policy: StackedPolicy,
    start_MBS: torch.Tensor,
    noise_HMBX: torch.Tensor,
    policy_input_gradient: float = 0.0,
) -> Imagined:
    """Step by step.

    `noise_HMBX` is standard normal: the policy's, of the width of its actions (zeros act deterministically up to the
    squash), then that of the dynamics, X = A + noise_dim.
    """
    M, B = start_MBS.shape[:2]
    noise_HMBA, noise_HMBE = _of_policy_and_dynamics(noise_HMBX, dynamics)
    observation_RO, carry = dynamics.begin(start_MBS.flatten(0, 1))
    observations, actions, entropies = [observation_RO], [], []
    for noise_MBA, noise_MBE in zip(noise_HMBA, noise_HMBE, strict=True):
        seen = scale_gradient(observations[-1], policy_input_gradient).unflatten(0, (M, B))
        action_MBA, entropy_MB = policy.sample(seen, noise_MBA)
        observation_RO, carry = dynamics.advance(carry, action_MBA.flatten(0, 1), noise_MBE.flatten(0, 1))
        observations.append(observation_RO)
        actions.append(action_MBA)
        entropies.append(entropy_MB)
    observation = torch.stack(observations).unflatten(1, (M, B))
    action = torch.stack(actions)
    reward = dynamics.reward(observation[:-1], action, observation[1:])
    return Imagined(observation[:-1], observation[1:], action, reward, torch.stack(entropies))


def imagine_in_parallel(
    dynamics: Dynamics, policy: StackedPolicy, start_MBS: torch.Tensor, noise_HMBX: torch.Tensor
) -> Imagined:
    """The same numbers and gradients as `imagine` with the policy's input cut, for models that predict in parallel.

    What the policy reads carries no gradient, so the unroll needs none: it only finds the states. Their actions are
    then taken again in one call, and one parallel pass gives the predictions that gradients go through.
    """
    with torch.no_grad():
        found = imagine(dynamics, policy, start_MBS, noise_HMBX)
    H, M, B = noise_HMBX.shape[:3]
    noise_HMBA, noise_HMBE = _of_policy_and_dynamics(noise_HMBX, dynamics)

    def of_member(x_HMB: torch.Tensor) -> torch.Tensor:
        return x_HMB.transpose(0, 1).flatten(1, 2)  # [M, H B, ...]

    action, entropy = policy.sample(of_member(found.observation_HMBO), of_member(noise_HMBA))
    action_MHBA = action.unflatten(1, (H, B))
    flat_RHA = action_MHBA.transpose(1, 2).flatten(0, 1)
    predicted = dynamics.predict(start_MBS.flatten(0, 1), flat_RHA, noise_HMBE.flatten(1, 2).transpose(0, 1))
    next_observation = predicted.unflatten(0, (M, B)).permute(2, 0, 1, 3)
    observation = torch.cat([found.observation_HMBO[:1], next_observation[:-1]])
    action_HMBA = action_MHBA.transpose(0, 1)
    reward = dynamics.reward(observation, action_HMBA, next_observation)
    return Imagined(observation, next_observation, action_HMBA, reward, entropy.unflatten(1, (H, B)).transpose(0, 1))
