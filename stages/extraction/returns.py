"""Returns of imagined rollouts, as pure functions.

Dimension letters: T imagined steps, B any batch dimensions (members x rollouts).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


def lambda_return(
    reward_TB: torch.Tensor,
    next_value_TB: torch.Tensor,
    continue_TB: torch.Tensor,
    discount_B: torch.Tensor,
    lambda_: float,
) -> torch.Tensor:
    """TD(lambda) targets of an imagined rollout.

        G_t = r_t + discount * c_t * ((1 - lambda) * V_{t+1} + lambda * G_{t+1}),    G_T = V_T

    Args:
        reward_TB: [T, B], environment units per step; r_t follows the action at t.
        next_value_TB: [T, B], V(z_{t+1}).
        continue_TB: [T, B], probability in [0, 1] that the episode continues after t.
        discount_B: broadcasts to [B], per task.
        lambda_: in [0, 1]; 0 is the one-step target that the released multi-task code in fact uses.
    Returns:
        [T, B], same units as value.
    Source: PWM (arXiv 2407.02466) section 3; Sutton and Barto (2018) eq. 12.18.
    """
    target = next_value_TB[-1]
    targets = []
    for reward, next_value, continue_ in zip(
        reward_TB.flip(0), next_value_TB.flip(0), continue_TB.flip(0), strict=True
    ):
        target = reward + discount_B * continue_ * ((1 - lambda_) * next_value + lambda_ * target)
        targets.append(target)
    return torch.stack(targets[::-1])


def bootstrapped_return(
    reward_TB: Iterable[torch.Tensor],
    final_value_B: torch.Tensor,
    continue_TB: Iterable[torch.Tensor],
    discount_B: torch.Tensor,
) -> torch.Tensor:
    """The actor's objective: sum_t discount^t alive_t r_t + discount^T alive_T V(z_T), alive_t = prod_{i<t} c_i.

    Args and shapes as in `lambda_return`; final_value_B is V(z_T), [B].
    Returns:
        [B].
    Source: PWM section 3, eq. 4. The released code discounts the bootstrap by discount^(T + 1).
    """
    total = torch.zeros_like(final_value_B)
    factor = torch.ones_like(final_value_B)
    for reward, continue_ in zip(reward_TB, continue_TB, strict=True):
        total = total + factor * reward
        factor = factor * discount_B * continue_
    return total + factor * final_value_B
