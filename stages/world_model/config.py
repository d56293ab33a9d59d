"""Configs of the latent world model. Reading them imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ...pipeline.config.checks import (
    check_choices,
    check_counts,
    check_layers,
    check_not_negative,
    check_positive,
    check_shares,
)
from ...pipeline.errors import ConfigError
from ..sequence_model.config import check_horizon

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
"""Widths by name, in the order of _WIDTHS. Sizes 1 to 317 are TD-MPC2's, in millions of parameters, as trained on 80
tasks; on its 30 tasks, sizes 5, 19 and 48 have task_dim 64, and 19 has latent_dim 512. `small` is the quickstart's,
without values."""


@dataclass(frozen=True)
class WorldModelConfig:
    """Latent world model. Widths follow TD-MPC2 (arXiv 2310.16828, table 8); -1 takes the width from `size`."""

    size: str = "small"
    """Sets the widths that are -1: small, 1, 5, 19, 48 or 317 (million parameters)."""
    latent_dim: int = -1
    """Width of the latent z; a multiple of `simnorm_dim`."""
    encoder_dim: int = -1
    """Hidden width of the encoder."""
    encoder_layers: int = -1
    """Layers of the encoder, including the one that outputs z."""
    mlp_dim: int = -1
    """Hidden width of dynamics, reward, continue and value heads and of the policy prior (two hidden layers each)."""
    task_dim: int = -1
    """Width of the learned task embedding; 0 = no embedding, as in published single-task models."""
    num_q: int = -1
    """Value functions in the ensemble; 0 removes values and policy prior, which only planning needs."""
    dynamics: str = "step"
    """step: predict the next latent from latent and action, as published. awm: predict all later latents from the first
    one and the actions with a transformer (action world model), for long horizons; planning needs step."""
    awm_horizon: int = -1
    """awm: longest prediction in steps, with one learned position per step; -1 = `pretrain.horizon`."""
    awm_width: int = 96
    """awm: token width; a multiple of `awm_heads`."""
    awm_layers: int = 2
    """awm: transformer blocks."""
    awm_heads: int = 4
    """awm: attention heads."""
    disagreement_heads: int = 0
    """Additional dynamics heads whose disagreement extraction can penalise (`extract.uncertainty`). They are trained on
    detached latents and cost nothing if unused."""
    dropout: float = 0.01
    """Dropout rate of the first hidden layer of each value function during training."""
    log_std_min: float = -10.0
    """Lower bound of the policy prior's log standard deviation."""
    log_std_max: float = 2.0
    """Upper bound of the policy prior's log standard deviation."""
    activation: str = "mish"
    """Activation of hidden layers: mish (as published), silu (nearly the same learning curve, 7x faster on CPU) or
    relu."""
    latent: str = "simnorm"
    """Output activation of encoder and dynamics: simnorm (as published), or mish or relu, which leave the latent
    unbounded."""
    simnorm_dim: int = 8
    """Group size of SimNorm, which applies a softmax to each group of latents."""
    normalize_observations: bool = True
    """Scale each task's observations to mean 0 and standard deviation 1. TD-MPC2 does not; without it, small angles are
    lost beside large velocities."""
    wrap_angles: bool = False
    """Give the encoder the sine and cosine of angles that turn without limit, beside the columns themselves. These are
    columns whose range in a task's data exceeds 2 pi and whose velocity is another column."""
    num_bins: int = 101
    """Bins of the two-hot reward and value heads."""
    bin_limit: float = 10.0
    """Bins span [-limit, limit] in symlog units; 10 covers rewards up to 22025 per step."""

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
            raise ConfigError("num_q must be 0 or at least 2 (targets take the minimum of two), found 1")
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
        """Return the same config with every width given."""
        widths: dict[str, Any] = {**self._widths()}
        return dataclasses.replace(self, **widths)

    @property
    def observation_parts(self) -> int:
        """Inputs of the encoder per observation column: its value, and with `wrap_angles` its sine and cosine."""
        return 3 if self.wrap_angles else 1

    def longest_prediction(self) -> int | None:
        """Return the longest prediction of the dynamics in steps; None if unlimited."""
        return self.awm_horizon if self.dynamics == "awm" else None

    def check_horizon(self, horizon: int, setting: str) -> None:
        """Raise a ConfigError that names `setting` if the dynamics cannot predict `horizon` steps ahead."""
        check_horizon(horizon, self.longest_prediction(), setting, "the world model (awm)", "pretrain.horizon")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the world model's losses (TD-MPC2, section 3.2)."""

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
    """Use the entropy of the squashed action, over the task's own action components. False restores TD-MPC2's released
    code: the entropy of the Gaussian before squashing, plus a constant per padded component."""
    target_rate: float = 0.01
    """EMA rate of the target values."""
    scale_rate: float = 0.01
    """EMA rate of the 5-95 percentile range that scales the policy prior's loss."""
    rho: float = 0.99
    """The loss of step t in a window has weight rho^t. PWM needs accurate long predictions and uses 0.99; TD-MPC2 uses
    0.5."""

    def __post_init__(self) -> None:
        check_not_negative(self, "consistency", "reward", "value", "continuation", "entropy")
        check_shares(self, "target_rate", "scale_rate")
        if not 0 < self.rho <= 1:
            raise ConfigError(f"rho must lie in (0, 1], found {self.rho}")


@dataclass(frozen=True)
class ExportTdmpc2Config:
    """Format of the exported checkpoint."""

    form: str = "new"
    """new: the format of TD-MPC2 since its compiled version of 2024; old: the earlier format, which PWM also reads."""

    def __post_init__(self) -> None:
        if self.form not in ("new", "old"):
            raise ConfigError(f"export_tdmpc2.form: expected new or old, found {self.form!r}")


@dataclass(frozen=True)
class ImportTdmpc2Config:
    """The checkpoint, and settings that it does not store."""

    checkpoint: str = ""
    """Path of the .pt file, in old or new format, single-task or multi-task. Nothing in it is executed."""
    tasks: list[str] = field(default_factory=list)
    """Tasks of the checkpoint, in its order; mt30 and mt80 are TD-MPC2's sets. Empty: the tasks of the run's store, or
    without a store tdmpc2/0, tdmpc2/1 and so on. A store's task table takes precedence."""
    episode_length: int = 500
    """Episode length in steps for tasks without a name; sets their discount."""
    simnorm_dim: int = 8
    """Group size of SimNorm used in training."""
    bin_limit: float = 10.0
    """Reward and value bins used in training span [-limit, limit] in symlog units."""
    log_std_min: float = -10.0
    """Lower bound of the policy prior's log standard deviation, if the file does not store it (old format)."""
    log_std_max: float = 2.0
    """Upper bound of the policy prior's log standard deviation, if the file does not store it (old format)."""

    def __post_init__(self) -> None:
        check_counts(self, "episode_length")

    @property
    def unseen(self) -> WorldModelConfig:
        """Settings of the model that a checkpoint does not store."""
        return WorldModelConfig(
            normalize_observations=False,
            simnorm_dim=self.simnorm_dim,
            bin_limit=self.bin_limit,
            log_std_min=self.log_std_min,
            log_std_max=self.log_std_max,
        )
