"""Policy mirror descent on closed-form action values, with one weight per row of the data.

    pi_{t+1}(u | x) is proportional to pi_t(u | x) exp(step_size q_t(x, u))
    log pi_T(u | x) = log pi_0(u | x) + sum_t step_size_t q_t(x, u) + constant
                    = log pi_0(u | x) + sum_i kk((x, u), row i) W_i + constant

Every q_t is a combination of kernels at its centres, which are rows. So W, one number per row and mostly zero, defines
the policy, even after many fits with different centres.

Dimension letters: N rows, b rows of one block, M centres, Y distinct next states, U actions to choose from, O state.
Source: POWR (arXiv 2406.19861) section 3; policy mirror descent, Xiao (2022).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .actions import ActionKernel
from .evaluation import Fit, KernelBlocks, successor_part
from .kernels import StateKernel
from .repeated import NextStateModel, next_state_model
from .stability import Pivot, all_regular, spectral_radius
from .transitions import Transitions

BLOCK_BYTES = 2**27
"""Of a kernel matrix that is made to be summed over."""


@dataclass(frozen=True)
class Improvement:
    """Result of some steps of mirror descent."""

    weight_M: torch.Tensor
    """sum_t step_size_t c_t, over the centres of the fit."""
    value_weight_M: torch.Tensor
    """c of the last step: the action values of the policy before that step."""
    next_logits_NU: torch.Tensor
    """log pi at the rows' next states after the last step, up to a constant per row."""
    radius: float
    """Spectral radius of the last step's transition operator; NaN if it was not asked for."""


def step_sizes(first: float, steps: int, growth: float = 1.0) -> list[float]:
    """first growth^t. With growth above 1, mirror descent converges linearly, as policy iteration does."""
    return [first * growth**t for t in range(steps)]


def mirror_descent(
    blocks: KernelBlocks,
    model: Fit,
    next_logits_NU: torch.Tensor,
    sizes: Sequence[float],
    discount: float,
    *,
    penalty_NU: torch.Tensor | None = None,
    watch_radius: bool = True,
) -> Improvement:
    """Take one step per entry of `sizes`, each with an exact evaluation of the current policy.

    Args:
        blocks: the rows over which K'M is summed; their centres are the model's.
        next_logits_NU: log pi_0 at the rows' next states, up to a constant per row; a function of the state, as is
            the penalty, so that equal next states have equal ones.
        sizes: step size of each step.
        penalty_NU: subtracted from the action values at the next states in the improvement.
        watch_radius: compute the spectral radius of the last step.
    """
    process = next_state_model(blocks, model)
    if process is not None:
        found = _descend_process(process, next_logits_NU, sizes, discount, penalty_NU, watch_radius)
        if found is not None:
            return found
    choice_UM = model.actions.of_choices(model.centres.action)
    logits_NU = next_logits_NU.clone()
    weight_M = torch.zeros_like(model.statistics.target_M)
    value_weight_M = torch.zeros_like(weight_M)
    radius = math.nan
    before = 0.0
    pivots: list[Pivot] = []
    for step, size in enumerate([*sizes, 0.0]):
        successor_MM = torch.zeros_like(model.statistics.gram_MM)
        for block in blocks:
            # What the last step added is added in the pass that first needs it: one pass over the rows per step.
            here_bU = logits_NU[block.span]
            if before:
                here_bU += before * (block.next_bM @ model.choice_weights(value_weight_M))
                if penalty_NU is not None:
                    here_bU -= before * penalty_NU[block.span]
            if size:
                successor_MM += successor_part(block, torch.softmax(here_bU, 1), choice_UM)
        if size:
            value_weight_M, pivot = model.solve_values(successor_MM, discount)
            pivots.append(pivot)
            weight_M += size * value_weight_M
            before = size
        if step == len(sizes) - 1:
            model.check(pivots)  # after all steps: each look at a pivot waits for a GPU
            if size and watch_radius:
                radius = transition_radius(model, successor_MM, discount)
    return Improvement(weight_M, value_weight_M, logits_NU, radius)


def _descend_process(
    process: NextStateModel,
    next_logits_NU: torch.Tensor,
    sizes: Sequence[float],
    discount: float,
    penalty_NU: torch.Tensor | None,
    watch_radius: bool,
) -> Improvement | None:
    """`mirror_descent` if next states repeat; None if a system is singular (the general form names its centres)."""
    logits_YU = next_logits_NU[process.first_Y]
    penalty_YU = torch.zeros_like(logits_YU) if penalty_NU is None else penalty_NU[process.first_Y]
    weight_M = torch.zeros_like(process.reward_weight_M)
    pivots: list[Pivot] = []
    for size in sizes:
        transition_YY = process.transition(torch.softmax(logits_YU, 1))
        value_weight_M, q_YU, pivot = process.evaluate(torch.softmax(logits_YU, 1), transition_YY, discount)
        pivots.append(pivot)
        weight_M += size * value_weight_M
        logits_YU = logits_YU + size * (q_YU - penalty_YU)
    if not all_regular(pivots):
        return None
    radius = math.nan
    if watch_radius:
        radius = spectral_radius(lambda x_Y: discount * transition_YY @ x_Y, len(logits_YU), logits_YU.device)
    return Improvement(weight_M, value_weight_M, logits_YU[process.row_N], radius)


def transition_radius(model: Fit, successor_MM: torch.Tensor, discount: float) -> float:
    """Spectral radius of discount G^-1 K'M = discount B M."""

    def apply(x_M: torch.Tensor) -> torch.Tensor:
        return discount * model.solve((successor_MM @ x_M)[:, None])[:, 0]

    return spectral_radius(apply, len(successor_MM), successor_MM.device)


def uncertainty_form(model: Fit) -> torch.Tensor:
    """H of sd^2 = kk - k' H k: [M, M], symmetric. See `uncertainty`."""
    prior_MM = model.centre_kernel_MM.clone()
    prior_MM.diagonal().add_(1e-8 * float(prior_MM.diagonal().mean()))
    ridge = model.statistics.num_rows * model.ridge
    return torch.cholesky_inverse(torch.linalg.cholesky(prior_MM)) - ridge * model.inverse()


def uncertainty(
    kernel: StateKernel, state_NO: torch.Tensor, centre_MO: torch.Tensor, choice_UM: torch.Tensor, form_MM: torch.Tensor
) -> torch.Tensor:
    """Posterior standard deviation of the regression at (x, u) for every u, in units of the kernel: [N, U].

        sd^2 = kk - k' Kc^-1 k + n ridge k' G^-1 k

    The first two terms are what the centres cannot represent, the last is due to the finite number of rows. 0 if the
    data determine the value, sqrt(kk) far from the data.

    Args:
        choice_UM: ka(u, a_cj). form_MM: `uncertainty_form` of the fit.
    """
    kernel_NM = kernel(state_NO, centre_MO)
    found = []
    for choice_M in choice_UM:
        near = choice_M.nonzero()[:, 0]
        row_NM = kernel_NM[:, near] * choice_M[near]
        # ka(u, u) = 1 for both kinds of actions.
        variance_N = kernel.diagonal(state_NO) - ((row_NM @ form_MM[near[:, None], near]) * row_NM).sum(1)
        found.append(variance_N.clamp(min=0).sqrt())
    return torch.stack(found, 1)


def policy_weights(
    actions: ActionKernel, rows: Transitions, weight_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(states [M, O], weight per choice [M, U]) of sum_i kk((x, u), row i) W_i = sum_j k(x, x_j) weight_ju.

    M distinct states of rows with non-zero weight: the complete policy.
    """
    active = weight_N.nonzero()[:, 0]
    state_MO, of = torch.unique(rows.state_NO[active], dim=0, return_inverse=True)
    choice_MU = actions.of_choices(rows.action[active]).T * weight_N[active, None]
    return state_MO, choice_MU.new_zeros(len(state_MO), actions.num).index_add_(0, of, choice_MU)


def kernel_sum(
    kernel: StateKernel,
    state_MO: torch.Tensor,
    weight_MU: torch.Tensor,
    state_BO: torch.Tensor,
    block_bytes: int = BLOCK_BYTES,
) -> torch.Tensor:
    """sum_j k(x, x_j) weight_j: [B, U], some rows at a time."""
    size = max(block_bytes // (8 * max(len(state_MO), 1)), 1)
    parts = [kernel(part_bO, state_MO) @ weight_MU for part_bO in state_BO.split(size)]
    return torch.cat(parts) if parts else state_BO.new_zeros(0, weight_MU.shape[1])


def behaviour_logits(
    kernel: StateKernel, point_PO: torch.Tensor, share_PU: torch.Tensor, state_BO: torch.Tensor, floor: float
) -> torch.Tensor:
    """log pi_0(u | x) of the behaviour policy: kernel-weighted frequencies of its actions, [B, U].

        pi_0(u | x) = (sum_p k(x, x_p) share_pu + floor / U) / (sum_p k(x, x_p) + floor)

    Uniform far from all points. `share_PU` is the share of each choice in point p's action; rows sum to 1.
    Source: Nadaraya (1964), Watson (1964).
    """
    weight_BP = kernel(state_BO, point_PO)
    share_BU = weight_BP @ share_PU + floor / share_PU.shape[1]
    return torch.log(share_BU / (weight_BP.sum(1, keepdim=True) + floor))


def uniform_logits(num: int, state_BO: torch.Tensor) -> torch.Tensor:
    """log pi_0 of the uniform policy: [B, U]."""
    return state_BO.new_full((len(state_BO), num), -math.log(num))
