"""Configs of the latent world model. Apart from the networks so that reading a config imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...pipeline.artifact import MANIFEST, read_manifest
from ...pipeline.config.checks import (
    check_choices,
    check_counts,
    check_layers,
    check_not_negative,
    check_positive,
    check_shares,
)
from ...pipeline.errors import ConfigError

ACTIVATION_NAMES = ("mish", "silu", "relu")
LATENT_NAMES = ("simnorm", "mish", "relu")
DYNAMICS = ("step", "awm")

_WIDTHS = ("latent_dim", "encoder_dim", "encoder_layers", "mlp_dim", "task_dim", "num_q")
SIZES = {
    "small": (128, 256, 2, 256, 32, 0),
    "1": (128, 256, 2, 384, 96, 2),
    "5": (512, 256, 2, 512, 96, 5),
    "19": (768, 1024, 3, 1024, 96, 5),
    "48": (768, 1792, 4, 1792, 96, 5),
    "317": (1376, 4096, 5, 4096, 96, 8),
}
"""Widths by name, in the order of _WIDTHS. 1 to 317 are TD-MPC2's, in millions of parameters, as it trains them on 80
tasks; on its 30 tasks sizes 5, 19 and 48 have task_dim 64, and 19 has latent_dim 512. small is the quickstart's,
without values."""


def held_out_share(model: Path) -> float | None:
    """The share of each task's episodes that the training of the model in this folder left out, as
    `TaskRows.held_out` chooses them; None where no manifest says so (it was imported, say)."""
    folder = next((one for one in (model, *model.parents[:2]) if (one / MANIFEST).is_file()), None)
    manifest = None if folder is None else read_manifest(folder)
    return None if manifest is None else manifest.config.get("held_out")


@dataclass(frozen=True)
class WorldModelConfig:
    """Widths follow TD-MPC2 (arXiv 2310.16828) table 8; -1 takes one from `size`."""

    size: str = "small"
    """small, 1, 5, 19, 48 or 317 (million parameters): where the widths that are not given come from."""
    latent_dim: int = -1
    """Width of the latent z; a multiple of simnorm_dim."""
    encoder_dim: int = -1
    """Hidden width of the encoder."""
    encoder_layers: int = -1
    """Layers of the encoder, the last of which gives z."""
    mlp_dim: int = -1
    """Hidden width of dynamics, reward, continue, value and policy prior (two hidden layers each)."""
    task_dim: int = -1
    """Width of the learned task embedding; 0 is none, as in a published model of a single task."""
    num_q: int = -1
    """Value functions of the ensemble; 0 leaves out values and policy prior, which only planning needs."""
    dynamics: str = "step"
    """step: the next latent from a latent and an action, as published. awm: all later latents from the first one and
    the actions alone, by a transformer (an action world model), for long horizons; planning needs step."""
    awm_horizon: int = -1
    """awm: decisions that it looks ahead at most, each with a learned position; -1 takes pretrain.horizon."""
    awm_width: int = 96
    """awm: width of its tokens; a multiple of awm_heads."""
    awm_layers: int = 2
    """awm: blocks of its transformer."""
    awm_heads: int = 4
    """awm: attention heads."""
    disagreement_heads: int = 0
    """Further dynamics heads, whose disagreement extraction can penalise (extract.uncertainty); they teach the model
    nothing and cost nothing where they are not used."""
    dropout: float = 0.01
    """Of the first hidden layer of each value function, while training."""
    log_std_min: float = -10.0
    """Range of the policy prior's log standard deviation."""
    log_std_max: float = 2.0
    """Range of the policy prior's log standard deviation."""
    activation: str = "mish"
    """Of hidden layers: mish as published, silu (much the same curve at a seventh of the time on a CPU), or relu."""
    latent: str = "simnorm"
    """What ends encoder and dynamics: simnorm as published, or mish or relu, which leave the latent unbounded."""
    simnorm_dim: int = 8
    """Group size of SimNorm: softmax within each group of this many latents."""
    normalize_observations: bool = True
    """Scale each task's observations to mean 0 and standard deviation 1 over its data, before the encoder. TD-MPC2 does
    not; without it small angles are lost beside large velocities."""
    num_bins: int = 101
    """Bins of the two-hot reward and value heads."""
    bin_limit: float = 10.0
    """Bins span [-limit, limit] in symlog units; 10 covers rewards up to 22025 per decision."""

    def __post_init__(self) -> None:
        check_choices(self, size=SIZES)
        check_positive(self, "simnorm_dim", "bin_limit")
        widths = self._widths()
        if widths["latent_dim"] % self.simnorm_dim:
            raise ConfigError(f"latent_dim {widths['latent_dim']} is not a multiple of simnorm_dim {self.simnorm_dim}")
        check_choices(self, activation=ACTIVATION_NAMES, latent=LATENT_NAMES, dynamics=DYNAMICS)
        check_counts(self, "awm_width", "awm_layers", "awm_heads")
        check_layers(self, "encoder_layers", "awm_layers")
        if self.awm_width % self.awm_heads:
            raise ConfigError(f"awm_width ({self.awm_width}) must be a multiple of awm_heads ({self.awm_heads})")
        if self.disagreement_heads == 1 or self.disagreement_heads < 0:
            raise ConfigError(f"disagreement_heads must be 0 or at least 2, found {self.disagreement_heads}")
        if self.num_bins < 2:
            raise ConfigError(f"num_bins must be at least 2, found {self.num_bins}")
        if self.num_q == 1:
            raise ConfigError("num_q must be 0 or at least 2 (targets take the smaller of two), found 1")
        for name, width in widths.items():
            if width < (0 if name in ("task_dim", "num_q") else 1):
                raise ConfigError(f"{name} must be positive, or -1 to take it from size, found {width}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), found {self.dropout}")
        if not self.log_std_min < self.log_std_max:
            raise ConfigError(f"log_std_min {self.log_std_min} must be below log_std_max {self.log_std_max}")

    def _widths(self) -> dict[str, int]:
        given = ((name, getattr(self, name)) for name in _WIDTHS)
        return {
            name: of_size if width == -1 else width
            for (name, width), of_size in zip(given, SIZES[self.size], strict=True)
        }

    def complete(self) -> WorldModelConfig:
        """The same with every width given."""
        widths: dict[str, Any] = {**self._widths()}
        return dataclasses.replace(self, **widths)

    def longest_prediction(self) -> int | None:
        """Decisions that the dynamics can look ahead; None where there is no limit."""
        return self.awm_horizon if self.dynamics == "awm" else None

    def check_horizon(self, horizon: int, setting: str) -> None:
        """Raise a ConfigError that names `setting` unless the dynamics can look `horizon` decisions ahead."""
        limit = self.longest_prediction()
        if limit is not None and horizon > limit:
            raise ConfigError(
                f"{setting} is {horizon}, but the world model is an action model that has learned {limit} positions; "
                f"use at most {limit}, or pretrain with pretrain.horizon={horizon}"
            )


@dataclass(frozen=True)
class LossConfig:
    """Weights of the world model's losses (TD-MPC2 section 3.2)."""

    consistency: float = 20.0
    """Weight of the latent consistency loss."""
    reward: float = 0.1
    """Weight of the reward cross-entropy."""
    value: float = 0.1
    """Weight of the value cross-entropy."""
    continuation: float = 1.0
    """Weight of the continue head's binary cross-entropy."""
    entropy: float = 1e-4
    """Weight of the policy prior's entropy in its own loss."""
    squashed_entropy: bool = True
    """Entropy of the squashed action, over the task's own components. False is what TD-MPC2 released: of the Gaussian
    before the squash, with a constant for each padded component."""
    target_rate: float = 0.01
    """Target values move by this share towards the values at each step."""
    scale_rate: float = 0.01
    """So does the running 5th to 95th percentile range of the values, by which the prior's loss divides them."""
    rho: float = 0.99
    """Weight of step t of a window is rho^t. PWM needs a model that is good far ahead: 0.99, where TD-MPC2 uses 0.5."""

    def __post_init__(self) -> None:
        check_not_negative(self, "consistency", "reward", "value", "continuation", "entropy")
        check_shares(self, "target_rate", "scale_rate")
        if not 0 < self.rho <= 1:
            raise ConfigError(f"rho must lie in (0, 1], found {self.rho}")


@dataclass(frozen=True)
class ExportTdmpc2Config:
    """How the file is written."""

    form: str = "new"
    """new: as TD-MPC2 writes since its compiled version of 2024; old: as before, which is also what PWM reads."""

    def __post_init__(self) -> None:
        if self.form not in ("new", "old"):
            raise ConfigError(f"export_tdmpc2.form: expected new or old, found {self.form!r}")


@dataclass(frozen=True)
class ImportTdmpc2Config:
    """Which file, and what it does not say about itself."""

    checkpoint: str = ""
    """The .pt file, of old or new form, of one task or several. Nothing in it is run."""
    tasks: list[str] = field(default_factory=list)
    """Its tasks, in its order: mt30 and mt80 are TD-MPC2's sets. Empty takes the table of the run's store, or without
    one names them by number: tdmpc2/0 and so on. With a store, its table always counts."""
    episode_length: int = 500
    """Decisions per episode of tasks that are named by number; decides their discount."""
    simnorm_dim: int = 8
    """Group size of SimNorm, as it was trained."""
    bin_limit: float = 10.0
    """Bins of rewards and values span [-limit, limit] in symlog units, as it was trained."""
    log_std_min: float = -10.0
    """Range of the policy prior's log standard deviation where the file does not hold it (the old form)."""
    log_std_max: float = 2.0
    """Range of the policy prior's log standard deviation where the file does not hold it (the old form)."""

    def __post_init__(self) -> None:
        check_counts(self, "episode_length")

    @property
    def unseen(self) -> WorldModelConfig:
        """The settings of the model that leave no trace in a file."""
        return WorldModelConfig(
            normalize_observations=False,
            simnorm_dim=self.simnorm_dim,
            bin_limit=self.bin_limit,
            log_std_min=self.log_std_min,
            log_std_max=self.log_std_max,
        )
