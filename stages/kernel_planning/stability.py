"""When the closed form can be trusted: singular systems, and the spectral radius of the policy's transition operator.

Dimension letters: M centres.
"""

from __future__ import annotations

import torch

from ...pipeline.errors import OrreryError


class SingularSystemError(OrreryError):
    """The linear system of the action values has no unique solution."""


def cholesky(system_MM: torch.Tensor, kernel_MM: torch.Tensor, row_M: torch.Tensor, weights: str) -> torch.Tensor:
    """Lower Cholesky factor of G.

    Raises:
        SingularSystemError: names the first centre that depends on those before it, and the one it is closest to.
    """
    factor_MM, info = torch.linalg.cholesky_ex(system_MM)
    if int(info):
        raise _singular("K'K + n ridge Kc + jitter I", int(info) - 1, kernel_MM, row_M, weights)
    return factor_MM


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
        raise _singular("G - discount K'M", smallest, kernel_MM, row_M, weights)
    return torch.linalg.lu_solve(factor_MM, pivots_M, target_M[:, None])[:, 0]


def _singular(
    system: str, centre: int, kernel_MM: torch.Tensor, row_M: torch.Tensor, weights: str
) -> SingularSystemError:
    scale_M = kernel_MM.diagonal().clamp(min=1e-300).sqrt()
    likeness_M = kernel_MM[centre] / (scale_M * scale_M[centre])
    likeness_M[centre] = -torch.inf
    nearest = int(likeness_M.argmax())
    return SingularSystemError(
        f"the system {system} of {len(row_M)} centres is singular at centre {centre} (row {int(row_M[centre])} of the "
        f"data), which depends on the others; the most alike is centre {nearest} (row {int(row_M[nearest])}), with a "
        f"correlation of {float(likeness_M[nearest]):.6g}. Choose distinct centres or fewer of them, or raise {weights}"
    )


def spectral_radius(
    cholesky_MM: torch.Tensor, successor_MM: torch.Tensor, discount: float, dimension: int = 40
) -> float:
    """Spectral radius of discount G^-1 K'M = discount B M: below 1, evaluation is the limit of a Neumann series.

    By Arnoldi's iteration from a fixed start, exact where `dimension` reaches M; each step costs two triangular solves.
    """
    size = len(successor_MM)
    dimension = min(dimension, size)
    basis_DM = successor_MM.new_zeros(dimension + 1, size)
    hessenberg_DD = successor_MM.new_zeros(dimension + 1, dimension)
    generator = torch.Generator().manual_seed(0)
    start_M = torch.randn(size, generator=generator, dtype=torch.float64).to(successor_MM)
    basis_DM[0] = start_M / start_M.norm()
    for d in range(dimension):
        image_M = discount * torch.cholesky_solve((successor_MM @ basis_DM[d])[:, None], cholesky_MM)[:, 0]
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
