"""Settings of extraction. Apart from the networks so that reading a config imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...pipeline.errors import ConfigError
from ..world_model.config import ACTIVATION_NAMES

ALGORITHMS = ("pwm", "bc")
"""pwm: first-order extraction, with the behaviour anchor where it is on. bc: behaviour cloning, the anchor alone."""


@dataclass(frozen=True)
class ActorCriticConfig:
    """Networks and optimiser of one policy; defaults are PWM's (arXiv 2407.02466, appendix B)."""

    actor_units: tuple[int, ...] = (400, 200, 100)
    """Hidden widths of the actor."""
    critic_units: tuple[int, ...] = (400, 200)
    """Hidden widths of each critic."""
    num_critics: int = 3
    """Critics per policy; the smallest value of them is used."""
    activation: str = "mish"
    """Of hidden layers: mish as published, silu, or relu."""
    log_std_init: float = -1.0
    """Initial log standard deviation of the exploration noise, per action component."""
    log_std_min: float = -1.427
    """Lower bound of it; -1.427 is a standard deviation of 0.24."""
    lr: float = 5e-4
    """Learning rate of actor and critic at the first iteration."""
    final_lr: float = 1e-5
    """Learning rate at the last iteration; linear in between."""
    beta1: float = 0.7
    """Adam."""
    beta2: float = 0.95
    """Adam."""
    actor_clip_norm: float = 1.0
    """Gradient norm of each policy is clipped to this."""
    critic_clip_norm: float = 100.0
    """Gradient norm of each policy's critics is clipped to this."""

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATION_NAMES:
            raise ConfigError(f"activation: expected {', '.join(ACTIVATION_NAMES)}, found {self.activation!r}")


@dataclass(frozen=True)
class FirstOrderConfig:
    """One extraction iteration (PWM algorithm 1, with the corrections of the README's table)."""

    horizon: int = 16
    """Imagined decisions per rollout."""
    batch_size: int = 512
    """Imagined rollouts per policy and iteration."""
    lambda_: float = 0.95
    """TD(lambda) of the critic's targets; 0 is the one-step target that the released multi-task code uses."""
    critic_passes: int = 8
    """Passes of the critic over each imagined batch."""
    critic_minibatches: int = 4
    """Minibatches per pass."""
    networks: ActorCriticConfig = field(default_factory=ActorCriticConfig)
    """Actor, critics and their optimiser."""

    def __post_init__(self) -> None:
        for name in ("horizon", "batch_size", "critic_passes", "critic_minibatches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not 0 <= self.lambda_ <= 1:
            raise ConfigError(f"lambda_ must lie in [0, 1], found {self.lambda_}")
        if (self.horizon * self.batch_size) % self.critic_minibatches:
            raise ConfigError(
                f"horizon x batch_size ({self.horizon} x {self.batch_size}) must divide into "
                f"critic_minibatches ({self.critic_minibatches})"
            )
