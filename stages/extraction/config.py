"""Settings of extraction. Apart from the networks so that reading a config imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...pipeline.config.checks import check_choices, check_counts, check_not_negative, check_positive, check_shares
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
        check_choices(self, activation=ACTIVATION_NAMES)
        check_positive(self, "num_critics", "lr", "actor_clip_norm", "critic_clip_norm")
        check_not_negative(self, "final_lr")
        for name in ("actor_units", "critic_units"):
            if min(getattr(self, name), default=1) < 1:
                raise ConfigError(f"{name} must be at least 1 each, found {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must lie in [0, 1), found {getattr(self, name)}")


REWARD_SPACES = ("raw", "symlog")


@dataclass(frozen=True)
class ReleasedConfig:
    """What PWM's released multi-task code does where it differs from the paper or from what was meant. Off by default;
    with lambda_=0 besides, an update is the released one."""

    reward_space: str = "raw"
    """symlog: add up the logarithms of rewards that the reward head predicts, instead of rewards."""
    extra_bootstrap_discount: bool = False
    """Discount the bootstrap by discount^(horizon + 1), not discount^horizon."""
    unmasked_actions: bool = False
    """Let a policy drive the model's padded action components, on which it was never trained."""
    constant_discount: float = 0.0
    """One discount for all tasks (0.99 as released), not each task's own; 0 is off."""
    unscaled_values: bool = False
    """Critics in environment units, not in units of their task's value scale."""
    ordered_critic_batches: bool = False
    """Critic minibatches of consecutive time steps, not shuffled."""

    def __post_init__(self) -> None:
        check_choices(self, reward_space=REWARD_SPACES)
        if not 0 <= self.constant_discount < 1:
            raise ConfigError(f"constant_discount must lie in [0, 1), found {self.constant_discount}")


@dataclass(frozen=True)
class FirstOrderConfig:
    """One extraction iteration (PWM algorithm 1)."""

    horizon: int = 16
    """Imagined decisions per rollout."""
    batch_size: int = 512
    """Imagined rollouts per policy and iteration."""
    lambda_: float = 0.95
    """TD(lambda) of the critic's targets; 0 is the one-step target that the released multi-task code uses."""
    policy_input_gradient: float = 0.0
    """Share of the gradient that reaches an imagined latent through the policy that reads it; PWM cuts that path."""
    critic_passes: int = 8
    """Passes of the critic over each imagined batch."""
    critic_minibatches: int = 4
    """Minibatches per pass."""
    networks: ActorCriticConfig = field(default_factory=ActorCriticConfig)
    """Actor, critics and their optimiser."""
    compile: bool = False
    """Compile rollout and critic loss with torch.compile, as one graph each. For a GPU: on a CPU it takes minutes first
    and saves little."""
    released: ReleasedConfig = field(default_factory=ReleasedConfig)
    """Switches back to the released code's behaviour, for comparisons."""

    def __post_init__(self) -> None:
        check_counts(self, "horizon", "batch_size", "critic_passes", "critic_minibatches")
        check_shares(self, "lambda_", "policy_input_gradient")
        if (self.horizon * self.batch_size) % self.critic_minibatches:
            raise ConfigError(
                f"horizon x batch_size ({self.horizon} x {self.batch_size}) must divide into "
                f"critic_minibatches ({self.critic_minibatches})"
            )
