"""The equations of MR.Q, as pure functions.

Dimension letters: M members, T steps of a window, B batch, D latent, K reward bins, A action, N slots of a replay;
`...` any leading dimensions. not_done is 0 after a step that reached a terminal state.
Source: MR.Q (arXiv 2501.16142); LAP (arXiv 2007.06049); two-hot as in arXiv 2403.03950.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .networks import Prediction


def reward_bins(num_bins: int, limit: float) -> torch.Tensor:
    """[K] bins in environment units: symexp of evenly spaced numbers in [-limit, limit]."""
    even = torch.linspace(-limit, limit, num_bins)
    return torch.sign(even) * torch.expm1(even.abs())


def bin_position(value: torch.Tensor, bins_K: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Index of the bin below each value, and the weight in [0, 1] of the bin above; both [...].

    Values beyond the outer bins are clamped to them; the released code fails there.
    """
    value = value.clamp(bins_K[0], bins_K[-1])
    lower = (torch.searchsorted(bins_K, value.contiguous(), right=True) - 1).clamp(0, len(bins_K) - 2)
    low, high = bins_K[lower], bins_K[lower + 1]
    return lower, (value - low) / (high - low)


def two_hot_cross_entropy(logits: torch.Tensor, value: torch.Tensor, bins_K: torch.Tensor) -> torch.Tensor:
    """Cross-entropy to the two bins around the value, whose weighted mean it is, in nats: logits [..., K], value [...]
    -> [...]."""
    lower, weight = bin_position(value, bins_K)
    log_p = F.log_softmax(logits, -1)
    below, above = (log_p.gather(-1, index[..., None])[..., 0] for index in (lower, lower + 1))
    return -((1 - weight) * below + weight * above)


def alive(not_done_MTB: torch.Tensor) -> torch.Tensor:
    """alive_t = prod_{i<t} not_done_i, [M, T, B]: 1 up to and including the step that ends the episode."""
    before = torch.ones_like(not_done_MTB[:, :1])
    return torch.cat([before, not_done_MTB[:, :-1]], 1).cumprod(1)


def encoder_losses(
    prediction: Prediction,
    target_latent: torch.Tensor,
    reward_MTB: torch.Tensor,
    not_done_MTB: torch.Tensor,
    bins_K: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """The three losses of the model for each step of the unroll, [M, T] each.

        dynamics_t = mean_{B,D} alive_t (z~_{t+1} - f'(s_{t+1}))^2
        reward_t   = mean_B alive_t CE(logits_t, two_hot(r_t)),  r_t as the environment gave it
        done_t     = mean_B alive_t (d_t - done_t)^2

    Means are over the whole batch, not over what is alive of it. A prediction with one number for the reward is
    compared by squared error.

    Args:
        prediction: of `MrqEncoder.unroll`.
        target_latent: [M, T, B, D], without gradient.
    """
    alive_MTB = alive(not_done_MTB)
    dynamics = F.mse_loss(prediction.latent, target_latent, reduction="none").sum(-1) / target_latent.shape[-1]
    if prediction.reward.shape[-1] == 1:
        reward = (prediction.reward[..., 0] - reward_MTB).square()
    else:
        reward = two_hot_cross_entropy(prediction.reward, reward_MTB, bins_K)
    done = (prediction.done - (1 - not_done_MTB)).square()
    return {
        "dynamics": (alive_MTB * dynamics).mean(-1),
        "reward": (alive_MTB * reward).mean(-1),
        "done": (alive_MTB * done).mean(-1),
    }


def n_step_return(
    reward_MTB: torch.Tensor, not_done_MTB: torch.Tensor, discount_M: torch.Tensor, form: str = "masked"
) -> tuple[torch.Tensor, torch.Tensor]:
    """R = sum_t gamma^t r_t prod_{i<t} not_done_i, and gamma^T prod_t not_done_t, the factor of the bootstrap.

    Args:
        discount_M: gamma of each member.
        form: masked as above. released: not_done_t in place of the product, which drops the terminal reward and adds
            rewards of the next episode. unmasked: no factor, so that the next episode's are added.
    Returns:
        [M, B] each.
    """
    steps = torch.arange(reward_MTB.shape[1], device=reward_MTB.device, dtype=reward_MTB.dtype)
    weight = discount_M[:, None, None] ** steps[:, None]
    if form == "masked":
        weight = weight * alive(not_done_MTB)
    elif form == "released":
        weight = weight * not_done_MTB
    bootstrap = discount_M[:, None] ** reward_MTB.shape[1] * not_done_MTB.prod(1)
    return (weight * reward_MTB).sum(1), bootstrap


def value_target(
    return_MB: torch.Tensor,
    bootstrap_MB: torch.Tensor,
    next_value_MB: torch.Tensor,
    scale_M: torch.Tensor,
    target_scale_M: torch.Tensor,
) -> torch.Tensor:
    """y = (R + gamma^n not_done Q' rbar') / rbar, [M, B]: values are in units of the mean absolute reward rbar.

    Args:
        next_value_MB: Q', of the target values: in units of target_scale.
        scale_M, target_scale_M: rbar now, and when the target values were copied.
    """
    return (return_MB + bootstrap_MB * next_value_MB * target_scale_M[:, None]) / scale_M[:, None]


def value_loss(value_MBN: torch.Tensor, target_MB: torch.Tensor, huber: bool = True) -> torch.Tensor:
    """[M]: mean over batch and both values of Huber's loss with delta 1, or of the squared error."""
    loss = F.huber_loss if huber else F.mse_loss
    return loss(value_MBN, target_MB[..., None].expand_as(value_MBN), reduction="none").mean((-2, -1))


def lap_priority(value_MBN: torch.Tensor, target_MB: torch.Tensor, exponent: float, minimum: float) -> torch.Tensor:
    """max(max_j |Q_j - y|, minimum)^exponent, [M, B]."""
    error = (value_MBN - target_MB[..., None]).abs().amax(-1)
    return error.clamp(min=minimum) ** exponent


def draw_by_priority(cumulative_N: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Slots drawn with probability proportional to their priority; slots of priority 0 never are.

    Args:
        cumulative_N: sum of the priorities so far, which are not negative and not all 0, float64: a float32 sum over
            1e6 slots would lose small ones.
        uniform: in [0, 1), any shape; each number gives one slot of the result.
    """
    total = cumulative_N[-1]
    slot = torch.searchsorted(cumulative_N, uniform.to(cumulative_N.dtype) * total, right=True)
    # uniform * total may round to total: the last slot with a priority then.
    return slot.clamp(max=torch.searchsorted(cumulative_N, total))


def reward_scale(reward_N: torch.Tensor, count: int, *, floor: float | None = None) -> float:
    """rbar, the mean absolute reward over `count` steps.

    It stays 1 until a reward other than zero was seen: targets would explode with a scale near 0, and LAP never forgets
    the largest priority. With `floor` it is max(mean, floor) instead, 1e-8 as released.
    """
    mean = float(reward_N.abs().sum(dtype=torch.float64)) / max(count, 1)
    if floor is not None:
        return max(mean, floor)
    return mean if mean > 0 else 1.0


def squash(pre: torch.Tensor, gumbel: torch.Tensor | None, temperature: float) -> torch.Tensor:
    """Return the action [..., A] for a policy output: tanh, or softmax((logits + gumbel) / temperature) if discrete."""
    return torch.tanh(pre) if gumbel is None else torch.softmax((pre + gumbel) / temperature, -1)


def perturb(action: torch.Tensor, noise: torch.Tensor, discrete: bool) -> torch.Tensor:
    """Return action + noise as a valid action: clipped to [-1, 1], or one-hot of the largest component."""
    noisy = action + noise
    if discrete:
        return F.one_hot(noisy.argmax(-1), noisy.shape[-1]).to(noisy)
    return noisy.clamp(-1, 1)


def policy_loss(value_MBN: torch.Tensor, pre_MBA: torch.Tensor, mask_MA: torch.Tensor, weight: float) -> torch.Tensor:
    """[M]: -mean of both values at the policy's action + weight * mean of its squared output before the squash.

    Args:
        mask_MA: 1 if an action component is one of the member's own.
    """
    squares = (pre_MBA.square().mean(1) * mask_MA).sum(-1) / mask_MA.sum(-1)
    return weight * squares - value_MBN.mean((-2, -1))


def behaviour_loss(
    pre_MBA: torch.Tensor, action_MBA: torch.Tensor, mask_MA: torch.Tensor, discrete: bool
) -> torch.Tensor:
    """[M]: distance of the policy to the data's action: mean squared distance of tanh(output), or cross-entropy.

    Source: TD3+BC (arXiv 2106.06860); TD7 (arXiv 2306.02451) offline.
    """
    if discrete:
        masked = pre_MBA.masked_fill(mask_MA[:, None] == 0, -torch.inf)
        return (
            F.cross_entropy(masked.flatten(0, 1), action_MBA.argmax(-1).flatten(), reduction="none")
            .unflatten(0, pre_MBA.shape[:2])
            .mean(-1)
        )
    squares = (torch.tanh(pre_MBA) - action_MBA).square().mean(1)
    return (squares * mask_MA).sum(-1) / mask_MA.sum(-1)


def random_shift(image_BCHW: torch.Tensor, offset_B2: torch.Tensor, pad: int) -> torch.Tensor:
    """Crops of the image padded by `pad` pixels of its border: out[y, x] = padded[y + offset_y, x + offset_x].

    Args:
        offset_B2: (x, y) of each image, whole numbers in 0 .. 2 pad.
    Source: DrQ-v2 (arXiv 2107.09645), which interpolates; at whole offsets both are the same.
    """
    batch, _, height, width = image_BCHW.shape
    device = image_BCHW.device
    x = (torch.arange(width, device=device) + offset_B2[:, :1] - pad).clamp(0, width - 1)
    y = (torch.arange(height, device=device) + offset_B2[:, 1:] - pad).clamp(0, height - 1)
    rows = torch.arange(batch, device=device)[:, None, None]
    return image_BCHW.permute(0, 2, 3, 1)[rows, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
