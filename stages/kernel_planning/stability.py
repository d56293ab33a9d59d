"""When the closed form can be trusted: singular systems, and the spectral radius of the policy's transition operator.

Dimension letters: M centres, B centres of one block of G.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...pipeline.errors import OrreryError


class SingularSystemError(OrreryError):
    """The linear system of the action values has no unique solution."""


def cholesky(
    system_BB: torch.Tensor, kernel_BB: torch.Tensor, centre_B: torch.Tensor, row_M: torch.Tensor, weights: str
) -> torch.Tensor:
    """Lower Cholesky factor of the block of G that belongs to the centres `centre_B`.

    Raises:
        SingularSystemError: names the first centre that depends on those before it, and the one it is closest to.
    """
    factor_BB, info = torch.linalg.cholesky_ex(system_BB)
    if int(info):
        raise _singular("K'K + n ridge Kc + jitter I", int(info) - 1, kernel_BB, centre_B, row_M, weights)
    return factor_BB


def solve_general(
    system_MM: torch.Tensor, target_M: torch.Tensor, kernel_MM: torch.Tensor, row_M: torch.Tensor, weights: str
) -> torch.Tensor:
    """x of system x = target, by LU.

    Raises:
        SingularSystemError: a pivot that is zero to rounding; names its centre.
    """
    factor_MM, pivots_M, _ = torch.linalg.lu_factor_ex(system_MM)
    diagonal_M = factor_MM.diagonal().abs()
    floor = torch.finfo(system_MM.dtype).eps * len(system_MM) * float(system_MM.abs().max())
    smallest = int(diagonal_M.argmin())
    if not float(diagonal_M[smallest]) > floor:
        everyone = torch.arange(len(row_M), device=row_M.device)
        raise _singular("G - discount K'M", smallest, kernel_MM, everyone, row_M, weights)
    return torch.linalg.lu_solve(factor_MM, pivots_M, target_M[:, None])[:, 0]


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
    for d in range(dimension):
        image_M = apply(basis_DM[d])
        norm = image_M.norm()
        for _ in range(2):  # once more, against rounding
            overlap_D = basis_DM[: d + 1] @ image_M
            hessenberg_DD[: d + 1, d] += overlap_D
            image_M = image_M - overlap_D @ basis_DM[: d + 1]
        hessenberg_DD[d + 1, d] = image_M.norm()
        if float(hessenberg_DD[d + 1, d]) <= 1e-12 * float(norm):
            dimension = d + 1
            break
        basis_DM[d + 1] = image_M / hessenberg_DD[d + 1, d]
    return float(torch.linalg.eigvals(hessenberg_DD[:dimension, :dimension]).abs().max())


def radius_warning(radius: float) -> str | None:
    """What to tell the user of a spectral radius, or None where it is below 1."""
    if radius < 1:
        return None
    return (
        f"the spectral radius of the discounted transition operator is {radius:.3f}, expected below 1: the action "
        "values solve their equation but are no sum of discounted rewards, and can be far too large. Raise the ridge, "
        "widen the kernel or give more centres"
    )
