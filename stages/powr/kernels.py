"""Kernels (similarities) of states, as matrices in float64.

Dimension letters: N rows and M centres of a matrix, O state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...pipeline.errors import ConfigError, DatasetError
from .config import KERNELS


def delta(x_NO: torch.Tensor, y_MO: torch.Tensor) -> torch.Tensor:
    """1 if the states are equal in every component, else 0: [N, M]."""
    return (_cdist(x_NO, y_MO, p=0) == 0).to(x_NO.dtype)


def laplace(x_NO: torch.Tensor, y_MO: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """exp(-||(x - y) / scale||): [N, M]. The released code calls this one gaussian."""
    return _distance(x_NO / scale, y_MO / scale).neg_().exp_()


def gaussian(x_NO: torch.Tensor, y_MO: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """exp(-sum_o (x_o - y_o)^2 / (2 scale_o^2)): [N, M]."""
    return _distance(x_NO / scale, y_MO / scale).square_().mul_(-0.5).exp_()


def product_laplace(x_NO: torch.Tensor, y_MO: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """exp(-sum_o |x_o - y_o| / (sqrt(2) scale_o)): [N, M]."""
    return _cdist(x_NO / scale, y_MO / scale, p=1).div_(-math.sqrt(2)).exp_()


def linear(x_NO: torch.Tensor, y_MO: torch.Tensor) -> torch.Tensor:
    """x . y: [N, M]. For features that already make values linear."""
    return x_NO @ y_MO.T


def _distance(x_NO: torch.Tensor, y_MO: torch.Tensor) -> torch.Tensor:
    return _cdist(x_NO, y_MO, p=2)


def _cdist(x_NO: torch.Tensor, y_MO: torch.Tensor, p: int) -> torch.Tensor:
    if torch.compiler.is_exporting():  # cdist is no standard operation
        apart_NMO = x_NO[:, None] - y_MO
        return (apart_NMO != 0).sum(2) if p == 0 else torch.linalg.vector_norm(apart_NMO, p, 2)
    # Through products, as torch prefers for large inputs, equal states come out 1e-8 apart instead of 0.
    return torch.cdist(x_NO, y_MO, p, compute_mode="donot_use_mm_for_euclid_dist")


_SCALED: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "laplace": laplace,
    "gaussian": gaussian,
    "product_laplace": product_laplace,
}
_UNSCALED: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"delta": delta, "linear": linear}


@dataclass(frozen=True)
class StateKernel:
    """A kernel with its scale, k(x, y)."""

    kind: str
    """One of `KERNELS`."""
    scale: torch.Tensor
    """[] or [O] float64, in units of the states; unused by delta and linear."""

    @classmethod
    def of(cls, kind: str, scale: float | Sequence[float] = 1.0, device: str | torch.device = "cpu") -> StateKernel:
        """Raises ConfigError: an unknown kind, or a scale that is not positive and finite."""
        if kind not in KERNELS:
            raise ConfigError(f"kernel: expected one of {', '.join(KERNELS)}, found {kind!r}")
        values = torch.as_tensor(scale, dtype=torch.float64, device=device)
        right = (torch.isfinite(values) & (values > 0)).reshape(-1)
        if not right.all():
            column = int((~right).nonzero()[0])
            raise ConfigError(
                f"kernel scale must be positive, found {values.reshape(-1)[column].item():g} for state component "
                f"{column}; a component that never varies can have any positive scale"
            )
        return cls(kind, values)

    def __call__(self, x_NO: torch.Tensor, y_MO: torch.Tensor) -> torch.Tensor:
        """[N, O], [M, O] -> [N, M]."""
        if self.kind in _UNSCALED:
            return _UNSCALED[self.kind](x_NO, y_MO)
        if self.scale.ndim and len(self.scale) != x_NO.shape[1]:
            raise ConfigError(f"kernel has {len(self.scale)} scales, expected one per state component, {x_NO.shape[1]}")
        return _SCALED[self.kind](x_NO, y_MO, self.scale)

    def diagonal(self, x_NO: torch.Tensor) -> torch.Tensor:
        """k(x, x): [N]."""
        return x_NO.square().sum(1) if self.kind == "linear" else torch.ones_like(x_NO[:, 0])

    def to(self, device: str | torch.device) -> StateKernel:
        return StateKernel(self.kind, self.scale.to(device))


def median_distance(x_NO: torch.Tensor, seed: int, sample: int = 1000) -> float:
    """Median distance between two of `sample` random states: the usual scale of a kernel.

    Raises:
        DatasetError: more than half of the pairs coincide, so that the median is 0.
    """
    chosen = np.random.default_rng(seed).permutation(len(x_NO))[:sample]
    distance = torch.nn.functional.pdist(x_NO[torch.from_numpy(chosen).to(x_NO.device)])
    median = float(distance.median()) if len(distance) else 0.0
    if median <= 0:
        raise DatasetError(
            f"the median distance between {len(chosen)} states is 0, which cannot scale a kernel: most states "
            "coincide. Use the delta kernel for states that repeat"
        )
    return median
