"""Action values if next states repeat: a system over these states, far smaller than one over centres.

M_ij of `evaluation` depends on row i only through the state y that the row leads to. With P_iy = [row i leads to y]:

    F = K'P,   L_yj = k(y, x_cj) sum_u pi(u | y) ka(u, a_cj),   K'M = F L
    c = b + discount G^-1 F v,   v = L c:       (I - discount L G^-1 F) v = L b
    L G^-1 F = sum_u pi_u T_u,   L b = sum_u pi_u R_u

One fit thus gives, for all policies, the rewards R and transitions T of a Markov decision process over the next states,
and a policy costs one solve of its size. With a delta kernel it is the counted process. Exact (Woodbury).

Dimension letters: N rows, M centres, Y distinct next states, U actions to choose from, O state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .evaluation import Fit, KernelBlocks
from .stability import Pivot, solve_general


@dataclass(frozen=True)
class NextStateModel:
    """A fit as a Markov decision process over next states."""

    row_N: torch.Tensor
    """Which of the Y states each row leads to."""
    first_Y: torch.Tensor
    """A row that leads to each."""
    reward_UY: torch.Tensor
    """R."""
    step_UYY: torch.Tensor
    """T."""
    reward_weight_M: torch.Tensor
    """b."""
    response_MY: torch.Tensor
    """G^-1 F."""

    def transition(self, policy_YU: torch.Tensor) -> torch.Tensor:
        """sum_u pi_u T_u: [Y, Y]."""
        return torch.einsum("yu,uyz->yz", policy_YU, self.step_UYY)

    def evaluate(
        self, policy_YU: torch.Tensor, transition_YY: torch.Tensor, discount: float
    ) -> tuple[torch.Tensor, torch.Tensor, Pivot]:
        """(c, q at the next states [Y, U], pivot) of a policy; no values where the pivot is not regular."""
        identity_YY = torch.eye(len(policy_YU), dtype=transition_YY.dtype, device=transition_YY.device)
        target_Y = torch.einsum("yu,uy->y", policy_YU, self.reward_UY)
        value_Y, pivot = solve_general(identity_YY - discount * transition_YY, target_Y)
        q_YU = (self.reward_UY + discount * self.step_UYY @ value_Y).T
        return self.reward_weight_M + discount * self.response_MY @ value_Y, q_YU, pivot


def next_state_model(blocks: KernelBlocks, model: Fit) -> NextStateModel | None:
    """Return the process over next states, or None if it would not be smaller than the fit's system."""
    rows, num_centres, num_choices = blocks.rows, len(model.centres), model.actions.num
    state_YO, row_N = torch.unique(rows.next_state_NO, dim=0, return_inverse=True)
    size = len(state_YO)
    if num_choices * size**2 > num_centres**2:
        return None
    flow_MY = rows.reward_N.new_zeros(num_centres, size)
    for block in blocks:
        for row, centre, kernel_bM in block.parts:
            flow_MY[centre] += kernel_bM.new_zeros(len(centre), size).index_add_(1, row_N[block.span][row], kernel_bM.T)
    solved = model.solve(torch.cat([flow_MY, model.statistics.target_M[:, None]], 1))
    response_MY, weight_M = solved[:, :-1].contiguous(), solved[:, -1].contiguous()
    kernel_YM = model.kernel(state_YO, model.centres.state_MO)
    reward, step = [], []
    for choice_M in model.actions.of_choices(model.centres.action):
        near = choice_M.nonzero()[:, 0]
        near_YM = kernel_YM[:, near] * choice_M[near]
        reward.append(near_YM @ weight_M[near])
        step.append(near_YM @ response_MY[near])
    first_Y = torch.empty(size, dtype=torch.int64, device=row_N.device)
    first_Y[row_N] = torch.arange(len(rows), device=row_N.device)
    return NextStateModel(row_N, first_Y, torch.stack(reward), torch.stack(step), weight_M, response_MY)
