"""The world model's fit and the action values of a policy, in closed form.

Kernel matrices over rows i and centres j, kk((x, a), (x', a')) = k(x, x') ka(a, a'):

    K_ij = kk((x_i, a_i), (x_cj, a_cj))        M_ij = k(y_i, x_cj) sum_u pi(u | y_i) ka(u, a_cj)
    G = K'K + n ridge Kc + jitter I            (G - discount K'M) c = K'r
    q(x, u) = sum_j kk((x, u), centre j) c_j

That one solve equals the published (I - discount B M)^-1 b with B = G^-1 K', b = B r. It is ridge-regularised kernel
LSTD-Q. Rows are visited in blocks, so memory is O(m^2 + block m); with discrete actions only rows and centres of the
same action meet in K, which saves a factor of A in K'M and of A^2 in K'K.

Dimension letters: N rows, b rows of one block, M centres, U actions to choose from, O state.
Source: POWR (arXiv 2406.19861) section 4; Lagoudakis and Parr (2003) for LSTD-Q.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from .actions import ActionKernel
from .kernels import StateKernel
from .stability import Pivot, check_factors, check_pivots, solve_general
from .transitions import Transitions

BLOCK_ROWS = 2048
CACHE_BYTES = 2**30


@dataclass(frozen=True)
class Centres:
    """The rows that carry weights."""

    state_MO: torch.Tensor
    action: torch.Tensor
    """[M] or [M, A], as the rows' actions."""
    row_M: torch.Tensor
    """Position of each centre among the rows, for messages and for the global weight array."""

    @classmethod
    def of(cls, rows: Transitions, index_M: torch.Tensor) -> Centres:
        return cls(rows.state_NO[index_M], rows.action[index_M], index_M)

    def __len__(self) -> int:
        return len(self.row_M)


@dataclass(frozen=True)
class KernelBlock:
    """Kernel matrices of some rows, computed on first use."""

    kernel: StateKernel
    actions: ActionKernel
    centres: Centres
    rows: Transitions
    span: slice
    """Where these rows are among all."""
    pairs: list[tuple[torch.Tensor, torch.Tensor]]
    """(rows, centres) whose part of K is not zero."""

    @cached_property
    def parts(self) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """(rows, centres, their part of K): K is zero elsewhere."""
        centres, found = self.centres, []
        for row, centre in self.pairs:
            kernel_bM = self.kernel(self.rows.state_NO[row], centres.state_MO[centre])
            found.append((row, centre, self.actions.within(kernel_bM, self.rows.action[row], centres.action[centre])))
        return found

    @cached_property
    def next_bM(self) -> torch.Tensor:
        """k(y_i, x_cj)."""
        return self.kernel(self.rows.next_state_NO, self.centres.state_MO)


class KernelBlocks:
    """K and the kernel of next states, block by block; up to `cache_bytes` of them are cached for the next pass."""

    def __init__(
        self,
        kernel: StateKernel,
        actions: ActionKernel,
        centres: Centres,
        rows: Transitions,
        block_rows: int = BLOCK_ROWS,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        actions.check(rows.action)
        self.kernel, self.actions, self.centres, self.rows = kernel, actions, centres, rows
        self._keep = cache_bytes // (16 * block_rows * len(centres))
        # Checks of rows and the search for their actions wait for a GPU, so they come before any pass.
        self._blocks: list[KernelBlock] = []
        for start in range(0, len(rows), block_rows):
            span = slice(start, min(start + block_rows, len(rows)))
            pairs = actions.partition(rows.action[span], centres.action)
            self._blocks.append(KernelBlock(kernel, actions, centres, rows[span], span, pairs))

    def __iter__(self) -> Iterator[KernelBlock]:
        for number, block in enumerate(self._blocks):
            yield block if number < self._keep else replace(block)  # without the matrices it would keep


@dataclass(frozen=True)
class Statistics:
    """Sums over rows that a fit needs; those of several sets of rows over the same centres add up."""

    gram_MM: torch.Tensor
    """K'K."""
    target_M: torch.Tensor
    """K'r."""
    num_rows: int

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(self.gram_MM + other.gram_MM, self.target_M + other.target_M, self.num_rows + other.num_rows)


def statistics(blocks: KernelBlocks) -> Statistics:
    """K'K and K'r over all rows."""
    size = len(blocks.centres)
    gram_MM = blocks.rows.reward_N.new_zeros(size, size)
    target_M = blocks.rows.reward_N.new_zeros(size)
    for block in blocks:
        for row, centre, kernel_bM in block.parts:
            gram_MM[centre[:, None], centre] += kernel_bM.T @ kernel_bM
            target_M[centre] += kernel_bM.T @ block.rows.reward_N[row]
    return Statistics(gram_MM, target_M, len(blocks.rows))


@dataclass(frozen=True)
class Fit:
    """The world model as a regression: G and K'r over its centres."""

    kernel: StateKernel
    actions: ActionKernel
    centres: Centres
    statistics: Statistics
    ridge: float
    """Weight per row: the penalty is n x ridge, as published."""
    jitter: float
    """Added to the diagonal of G. 1e-6 as published."""

    @cached_property
    def centre_kernel_MM(self) -> torch.Tensor:
        """Kc."""
        centres = self.centres
        return self.kernel(centres.state_MO, centres.state_MO) * self.actions.between(centres.action, centres.action)

    @cached_property
    def regression_MM(self) -> torch.Tensor:
        """G."""
        found_MM = self.statistics.gram_MM + self.statistics.num_rows * self.ridge * self.centre_kernel_MM
        found_MM.diagonal().add_(self.jitter)
        return found_MM

    @cached_property
    def factors(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(centres, lower factor of their block of G). Outside G is zero; one block per action where they are discrete.

        Raises SingularSystemError if a block has no factor.
        """
        penalty, found, info = self.statistics.num_rows * self.ridge, [], []
        action, state_MO = self.centres.action, self.centres.state_MO
        for centre, _ in self.actions.partition(action, action):
            kernel_BB = self.actions.within(
                self.kernel(state_MO[centre], state_MO[centre]), action[centre], action[centre]
            )
            system_BB = self.statistics.gram_MM[centre[:, None], centre] + penalty * kernel_BB
            system_BB.diagonal().add_(self.jitter)
            factor_BB, failed = torch.linalg.cholesky_ex(system_BB)
            found.append((centre, factor_BB))
            info.append(failed)
        check_factors(
            info, [centre for centre, _ in found], lambda: self.centre_kernel_MM, self.centres.row_M, self._weights
        )
        return found

    def solve(self, target_MX: torch.Tensor) -> torch.Tensor:
        """G^-1 target: [M, X]."""
        found_MX = torch.empty_like(target_MX)
        for centre, factor_BB in self.factors:
            found_MX[centre] = torch.cholesky_solve(target_MX[centre], factor_BB)
        return found_MX

    def inverse(self) -> torch.Tensor:
        """G^-1: [M, M]."""
        found_MM = torch.zeros_like(self.statistics.gram_MM)
        for centre, factor_BB in self.factors:
            found_MM[centre[:, None], centre] = torch.cholesky_inverse(factor_BB)
        return found_MM

    @property
    def _weights(self) -> str:
        return f"ridge (now {self.ridge:g}) or jitter (now {self.jitter:g})"

    def reward_weights(self) -> torch.Tensor:
        """b = G^-1 K'r: the weights of the reward's regression, [M]."""
        return self.solve(self.statistics.target_M[:, None])[:, 0]

    def value_weights(self, successor_MM: torch.Tensor, discount: float) -> torch.Tensor:
        """c of (G - discount K'M) c = K'r: [M]. Raises SingularSystemError."""
        weight_M, pivot = self.solve_values(successor_MM, discount)
        self.check([pivot])
        return weight_M

    def solve_values(self, successor_MM: torch.Tensor, discount: float) -> tuple[torch.Tensor, Pivot]:
        """`value_weights` for a loop that checks all its pivots at the end; see `solve_general`."""
        return solve_general(self.regression_MM - discount * successor_MM, self.statistics.target_M)

    def check(self, pivots: Sequence[Pivot]) -> None:
        """Raise SingularSystemError for the first system of `solve_values` that is singular."""
        check_pivots(pivots, self.centre_kernel_MM, self.centres.row_M, self._weights)

    def features(self, state_NO: torch.Tensor, weight_M: torch.Tensor) -> torch.Tensor:
        """sum_j kk((x, u), centre j) weight_j for every u: [N, U]."""
        return self.kernel(state_NO, self.centres.state_MO) @ self.choice_weights(weight_M)

    def choice_weights(self, weight_M: torch.Tensor) -> torch.Tensor:
        """ka(u, a_cj) weight_j: [M, U]."""
        return self.actions.of_choices(self.centres.action).T * weight_M[:, None]


def fit(blocks: KernelBlocks, ridge: float, jitter: float) -> Fit:
    """Fit the world model and the reward to all rows of `blocks`."""
    return Fit(blocks.kernel, blocks.actions, blocks.centres, statistics(blocks), ridge, jitter)


def successor_part(block: KernelBlock, policy_bU: torch.Tensor, choice_UM: torch.Tensor) -> torch.Tensor:
    """The part of K'M from one block: [M, M]. `policy_bU` is pi(u | y_i), `choice_UM` is ka(u, a_cj)."""
    next_bM = block.next_bM * (policy_bU @ choice_UM)
    found_MM = next_bM.new_zeros(len(choice_UM[0]), len(choice_UM[0]))
    for row, centre, kernel_bM in block.parts:
        found_MM[centre] = kernel_bM.T @ next_bM[row]
    return found_MM


def successor_matrix(blocks: KernelBlocks, policy_NU: torch.Tensor) -> torch.Tensor:
    """K'M of a policy given at the rows' next states: [M, M]."""
    choice_UM = blocks.actions.of_choices(blocks.centres.action)
    total_MM = policy_NU.new_zeros(len(blocks.centres), len(blocks.centres))
    for block in blocks:
        total_MM += successor_part(block, policy_NU[block.span], choice_UM)
    return total_MM
