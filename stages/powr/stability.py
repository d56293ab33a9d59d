"""Validity of the closed form: singular systems, and the spectral radius of the policy's transition operator.

Dimension letters: M centres, B centres of one block of G.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ...pipeline.errors import OrreryError


class SingularSystemError(OrreryError):
    """The linear system of the action values has no unique solution."""


@dataclass(frozen=True)
class Pivot:
    """The smallest pivot of a linear system. On its device: reading one waits for everything before it."""

    which: torch.Tensor
    """[] int64, its position."""
    regular: torch.Tensor
    """[] bool, False if it is zero to rounding."""


def solve_general(system_MM: torch.Tensor, target_M: torch.Tensor) -> tuple[torch.Tensor, Pivot]:
    """(x of system x = target, its smallest pivot), by LU; 0 if the system is singular. Never waits for a GPU."""
    factor_MM, pivots_M, _ = torch.linalg.lu_factor_ex(system_MM)
    diagonal_M = factor_MM.diagonal().abs()
    floor = torch.finfo(system_MM.dtype).eps * len(system_MM) * system_MM.abs().max()
    smallest, which = diagonal_M.min(0)
    regular = smallest > floor
    solved_M = torch.linalg.lu_solve(factor_MM, pivots_M, target_M[:, None])[:, 0]
    return torch.where(regular, solved_M, 0.0), Pivot(which, regular)


def all_regular(pivots: Sequence[Pivot]) -> bool:
    """Whether no system is singular; waits for a GPU once."""
    return not pivots or bool(torch.stack([pivot.regular for pivot in pivots]).all())


def check_pivots(pivots: Sequence[Pivot], kernel_MM: torch.Tensor, row_M: torch.Tensor, weights: str) -> None:
    """Raise SingularSystemError for the first system G - discount K'M that is singular; names the pivot's centre."""
    if all_regular(pivots):
        return
    which = next(int(pivot.which) for pivot in pivots if not pivot.regular)
    everyone = torch.arange(len(row_M), device=row_M.device)
    raise _singular("G - discount K'M", which, kernel_MM, everyone, row_M, weights)


def check_factors(
    info: Sequence[torch.Tensor],
    centres: Sequence[torch.Tensor],
    kernel_MM: Callable[[], torch.Tensor],
    row_M: torch.Tensor,
    weights: str,
) -> None:
    """Raise SingularSystemError for the first block of G without a Cholesky factor; waits for a GPU once.

    The error names the first centre that depends on earlier ones, and the centre closest to it.

    Args:
        info: of `torch.linalg.cholesky_ex`, per block. centres: [B] of each block. kernel_MM: computed for the message.
    """
    if bool((torch.stack(list(info)) == 0).all()):
        return
    failed, centre_B = next((int(one), centre_B) for one, centre_B in zip(info, centres, strict=True) if int(one))
    kernel_BB = kernel_MM()[centre_B[:, None], centre_B]
    raise _singular("K'K + n ridge Kc + jitter I", failed - 1, kernel_BB, centre_B, row_M, weights)


def _singular(
    system: str, which: int, kernel_BB: torch.Tensor, centre_B: torch.Tensor, row_M: torch.Tensor, weights: str
) -> SingularSystemError:
    scale_B = kernel_BB.diagonal().clamp(min=1e-300).sqrt()
    likeness_B = kernel_BB[which] / (scale_B * scale_B[which])
    likeness_B[which] = -torch.inf
    closest = int(likeness_B.argmax())
    centre, nearest = int(centre_B[which]), int(centre_B[closest])
    return SingularSystemError(
        f"the system {system} of {len(row_M)} centres is singular at centre {centre} (row {int(row_M[centre])} of the "
        f"data), which depends on the others; the most alike is centre {nearest} (row {int(row_M[nearest])}), with a "
        f"correlation of {float(likeness_B[closest]):.6g}. Choose distinct centres or fewer of them, or raise {weights}"
    )


def spectral_radius(
    apply: Callable[[torch.Tensor], torch.Tensor], size: int, device: str | torch.device = "cpu", dimension: int = 40
) -> float:
    """Largest absolute eigenvalue of the linear map `apply`: [size] -> [size], float64.

    Of discount B M: where it is below 1, evaluation is the limit of a Neumann series.

    By Arnoldi's iteration from a fixed start, exact where `dimension` reaches the size.
    """
    dimension = min(dimension, size)
    basis_DM = torch.zeros(dimension + 1, size, dtype=torch.float64, device=device)
    hessenberg_DD = basis_DM.new_zeros(dimension + 1, dimension)
    generator = torch.Generator().manual_seed(0)
    start_M = torch.randn(size, generator=generator, dtype=torch.float64).to(device)
    basis_DM[0] = start_M / start_M.norm()
    norm_D = basis_DM.new_zeros(dimension)
    for d in range(dimension):
        image_M = apply(basis_DM[d])
        norm_D[d] = image_M.norm()
        for _ in range(2):  # once more, against rounding
            overlap_D = basis_DM[: d + 1] @ image_M
            hessenberg_DD[: d + 1, d] += overlap_D
            image_M = image_M - overlap_D @ basis_DM[: d + 1]
        hessenberg_DD[d + 1, d] = image_M.norm()
        basis_DM[d + 1] = image_M / hessenberg_DD[d + 1, d]
    # Where nothing new is left the space is complete; what follows is noise. Read together: each read waits for a GPU.
    complete_D = (hessenberg_DD.diagonal(-1) <= 1e-12 * norm_D).tolist()
    if True in complete_D:
        dimension = complete_D.index(True) + 1
    return float(torch.linalg.eigvals(hessenberg_DD[:dimension, :dimension]).abs().max())


def radius_warning(radius: float) -> str | None:
    """Return a warning about a spectral radius, or None if it is below 1."""
    if radius < 1:
        return None
    return (
        f"the spectral radius of the discounted transition operator is {radius:.3f}, expected below 1: the action "
        "values solve their equation but are not a sum of discounted rewards and can be far too large. Raise the "
        "ridge, widen the kernel or use more centres"
    )
