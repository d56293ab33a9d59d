"""Configs of the latent world model. Apart from the networks so that reading a config imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.errors import ConfigError

ACTIVATION_NAMES = ("mish", "silu", "relu")


@dataclass(frozen=True)
class WorldModelConfig:
    """Widths follow TD-MPC2 (arXiv 2310.16828) table 8; the defaults are the quickstart's small model."""

    latent_dim: int = 128
    """Width of the latent z; a multiple of simnorm_dim."""
    encoder_dim: int = 256
    """Hidden width of the encoder."""
    encoder_layers: int = 2
    """Layers of the encoder, the last of which gives z."""
    mlp_dim: int = 256
    """Hidden width of dynamics, reward and continue heads (two hidden layers each)."""
    task_dim: int = 32
    """Width of the learned task embedding."""
    activation: str = "mish"
    """Of hidden layers: mish as published, silu (much the same curve at a seventh of the time on a CPU), or relu."""
    simnorm_dim: int = 8
    """Group size of SimNorm: softmax within each group of this many latents."""
    normalize_observations: bool = True
    """Scale each task's observations to mean 0 and standard deviation 1 over its data, before the encoder. TD-MPC2 does
    not; without it small angles are lost beside large velocities."""
    num_bins: int = 101
    """Bins of the two-hot reward head."""
    bin_limit: float = 10.0
    """Bins span [-limit, limit] in symlog units; 10 covers rewards up to 22025 per decision."""

    def __post_init__(self) -> None:
        if self.latent_dim % self.simnorm_dim:
            raise ConfigError(f"latent_dim {self.latent_dim} is not a multiple of simnorm_dim {self.simnorm_dim}")
        if self.activation not in ACTIVATION_NAMES:
            raise ConfigError(f"activation: expected {', '.join(ACTIVATION_NAMES)}, found {self.activation!r}")
        if self.num_bins < 2:
            raise ConfigError(f"num_bins must be at least 2, found {self.num_bins}")
        if self.encoder_layers < 1:
            raise ConfigError(f"encoder_layers must be at least 1, found {self.encoder_layers}")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the world model's losses (TD-MPC2 section 3.2)."""

    consistency: float = 20.0
    """Weight of the latent consistency loss."""
    reward: float = 0.1
    """Weight of the reward cross-entropy."""
    continuation: float = 1.0
    """Weight of the continue head's binary cross-entropy."""
    rho: float = 0.99
    """Weight of step t of a window is rho^t. PWM needs a model that is good far ahead: 0.99, where TD-MPC2 uses 0.5."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam as in TD-MPC2."""

    lr: float = 3e-4
    """Learning rate."""
    encoder_lr_scale: float = 0.3
    """The encoder learns at lr times this."""
    clip_norm: float = 20.0
    """Global gradient norm is clipped to this."""
    final_lr_scale: float = 1.0
    """lr falls linearly to lr times this at the last step; 1 is constant."""


@dataclass(frozen=True)
class TrainerConfig:
    """Passed to lightning.Trainer."""

    accelerator: str = "auto"
    """cpu, gpu, or auto."""
    devices: int = 1
    """Processes of this node, one per GPU or CPU rank."""
    strategy: str = "auto"
    """As Lightning names them; auto is ddp_spawn for several devices."""
    precision: str = "32-true"
    """32-true, bf16-mixed, ..."""
    accumulate: int = 1
    """Micro-batches per optimiser step."""
    log_every: int = 25
    """Steps between logged losses."""

    def __post_init__(self) -> None:
        if self.devices < 1 or self.accumulate < 1 or self.log_every < 1:
            raise ConfigError("devices, accumulate and log_every must be at least 1")
        if self.devices > 1 and self.strategy in ("ddp", "fsdp", "deepspeed"):
            raise ConfigError(
                f"strategy {self.strategy!r} starts the whole command again for each device, which the lock of the run "
                "folder refuses; use ddp_spawn"
            )

    @property
    def launched_strategy(self) -> str:
        """What Lightning is given."""
        return "ddp_spawn" if self.strategy == "auto" and self.devices > 1 else self.strategy
