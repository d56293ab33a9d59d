"""From raw observations to kernel inputs: an affine map, after a frozen encoder if there is one.

    state = (x - mean) @ projection,    x the observation, or the world model's latent of it

One-hot observations become their index, raw ones are standardised (or left alone), latents are whitened and reduced by
PCA. Nothing here is trained.

Dimension letters: B batch, O observation, E what the map is applied to (observation or latent), D state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..world_model.task_encoder import TaskEncoder

MIN_STD = 1e-8
"""Components that vary less (in their own units) are left unscaled, and then say nothing."""

ENCODE_ROWS = 4096


class Features(nn.Module):
    """Observation [B, O] float32 -> state [B, D] float64."""

    mean_E: torch.Tensor
    projection_ED: torch.Tensor

    def __init__(self, mean_E: torch.Tensor, projection_ED: torch.Tensor, encoder: TaskEncoder | None = None) -> None:
        super().__init__()
        self.register_buffer("mean_E", mean_E.double())
        self.register_buffer("projection_ED", projection_ED.double())
        self.encoder = encoder

    @torch.no_grad()
    def forward(self, observation_BO: torch.Tensor) -> torch.Tensor:
        x_BE = observation_BO if self.encoder is None else encode_rows(self.encoder, observation_BO)
        return (x_BE.double() - self.mean_E) @ self.projection_ED


def encode_rows(encoder: TaskEncoder, observation_BO: torch.Tensor) -> torch.Tensor:
    """Latents of a whole dataset, in blocks of rows: the hidden layers of all rows need not fit into memory."""
    if torch.compiler.is_exporting():  # a graph has no loop over a number of blocks that it does not know
        return encoder(observation_BO)
    return torch.cat([encoder(block) for block in observation_BO.split(ENCODE_ROWS)])


def is_one_hot(observation_NO: torch.Tensor) -> bool:
    """Whether every row is one-hot, as Discrete observations are stored."""
    binary = bool(((observation_NO == 0) | (observation_NO == 1)).all())
    return observation_NO.shape[1] > 1 and binary and bool((observation_NO.sum(1) == 1).all())


def index_features(observation_dim: int) -> Features:
    """One-hot observations to their index, [B, 1]."""
    return Features(torch.zeros(observation_dim), torch.arange(observation_dim, dtype=torch.float64)[:, None])


def raw_features(observation_dim: int) -> Features:
    """Unchanged observations, as published; the scale per component is set by hand."""
    return Features(torch.zeros(observation_dim), torch.eye(observation_dim))


def standardised_features(observation_NO: torch.Tensor) -> Features:
    """Every component to mean 0 and standard deviation 1 over the data; components that never vary are dropped to 0."""
    x_NO = observation_NO.double()
    std_O = x_NO.std(0, correction=0)
    return Features(x_NO.mean(0), torch.diag(torch.where(std_O > MIN_STD, 1 / std_O.clamp(min=MIN_STD), 0.0)))


def latent_features(encoder: TaskEncoder, observation_NO: torch.Tensor, components: int) -> Features:
    """Latents projected on their first principal components over the data, each scaled to standard deviation 1."""
    with torch.no_grad():
        z_NE = encode_rows(encoder, observation_NO).double()
    mean_E = z_NE.mean(0)
    covariance_EE = torch.cov(z_NE.T, correction=0)
    variance_E, direction_EE = torch.linalg.eigh(covariance_EE)
    kept = torch.arange(len(variance_E) - 1, -1, -1)[:components]
    kept = kept[variance_E[kept] > MIN_STD * float(variance_E[-1])]
    return Features(mean_E, direction_EE[:, kept] / variance_E[kept].sqrt(), encoder)


def describe(features: Features) -> dict[str, Any]:
    """Return what `restore` needs in addition to the weights."""
    encoder = features.encoder
    return {
        "width": list(features.projection_ED.shape),
        "encoder": None if encoder is None else encoder.describe(),
    }


def restore(values: dict[str, Any]) -> Features:
    """An empty map of the described shape, to load weights into."""
    encoder = None if values["encoder"] is None else TaskEncoder(**values["encoder"])
    width_in, width_out = values["width"]
    return Features(torch.zeros(width_in), torch.zeros(width_in, width_out), encoder)
