"""Settings of MR.Q. Apart from the networks so that reading a config imports no torch.

One set of hyper-parameters serves every task (MR.Q, arXiv 2501.16142); defaults are the
published ones. `DesignConfig` holds the choices that the paper's design study removes one at a time, `ReleasedConfig`
what the released code does differently from the text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...pipeline.config.checks import check_choices, check_not_negative, check_positive, check_shares
from ...pipeline.errors import ConfigError

IMAGE_SIZE = 84
"""Height and width in pixels that the convolutions are made for: they end in 32 x 7 x 7 = 1568 numbers."""

RETURN_FORMS = ("masked", "released", "unmasked")


@dataclass(frozen=True)
class NetworkConfig:
    """Widths; 512 throughout as published, 256 for the action embedding."""

    latent_dim: int = 512
    """Width of the state embedding z_s."""
    state_action_dim: int = 512
    """Width of the state-action embedding z_sa."""
    action_dim: int = 256
    """Width of the action embedding z_a."""
    encoder_dim: int = 512
    """Hidden width of both encoders."""
    value_dim: int = 512
    """Hidden width of each of the two values."""
    policy_dim: int = 512
    """Hidden width of the policy."""
    num_bins: int = 65
    """Bins of the two-hot reward head."""
    bin_limit: float = 10.0
    """Bins are symexp of evenly spaced numbers in [-limit, limit]; 10 covers rewards up to 22025 per decision."""

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            if entry.type == "int" and getattr(self, entry.name) < 1:
                raise ConfigError(f"{entry.name} must be at least 1, found {getattr(self, entry.name)}")
        if self.num_bins < 2:
            raise ConfigError(f"num_bins must be at least 2, found {self.num_bins}")
        check_positive(self, "bin_limit")


@dataclass(frozen=True)
class DesignConfig:
    """What the design study takes away, one at a time."""

    linear_value: bool = False
    """Values are linear in z_sa instead of perceptrons on it."""
    state_action_target: bool = False
    """The model predicts the next state-action embedding, with the target policy's action, instead of the state's."""
    target_encoder: bool = True
    """The model's targets come from a copy of the encoder that is frozen for a period; False: from the encoder itself,
    without gradient."""
    linear_model: bool = True
    """The model is linear in z_sa; False: a perceptron with the encoder's hidden width."""
    two_hot_reward: bool = True
    """The reward is predicted as a distribution over bins, by cross-entropy; False: as a number, by squared error."""
    scale_rewards: bool = True
    """Value targets are divided by the mean absolute reward of the data."""
    min_of_values: bool = True
    """The smaller of the two target values is the bootstrap; False: their mean."""
    prioritised: bool = True
    """Windows are drawn by LAP and the value loss is Huber's; False: uniformly, with squared error."""
    model_based: bool = True
    """The encoder learns to model the decision process; False: it learns from the value loss alone."""


@dataclass(frozen=True)
class ReleasedConfig:
    """Behaviour of the released code (facebookresearch/MRQ at 8a44a7d) in place of ours, for comparisons."""

    return_form: str = "masked"
    """masked: sum gamma^t r_t prod_{i<t} not_done_i. released: sum gamma^t r_t not_done_t, which drops the terminal
    reward and adds the next episode's. unmasked: sum gamma^t r_t, which the published scores were made with."""
    starts: bool = False
    """A window starts only where one decision more than the longer horizon follows; a truncated end that is terminal
    as well counts as truncated. Ours keeps every start whose window fits, and pads after every terminal state."""
    reward_scale: bool = False
    """The mean absolute reward includes the zeros stored with final observations and has a floor of 1e-8. Ours stays
    at 1 until a reward other than zero was seen."""

    def __post_init__(self) -> None:
        check_choices(self, return_form=RETURN_FORMS)


@dataclass(frozen=True)
class LearnConfig:
    """The training step."""

    networks: NetworkConfig = field(default_factory=NetworkConfig)
    """Widths."""
    design: DesignConfig = field(default_factory=DesignConfig)
    """Switches of the design study."""
    released: ReleasedConfig = field(default_factory=ReleasedConfig)
    """Switches to the released code's behaviour."""
    batch_size: int = 256
    """Windows per update, of the values and of the encoder."""
    discount: float = 0.99
    """Per decision; published as one constant. 0 takes each task's own."""
    period: int = 250
    """Training steps between hard copies of the targets, and encoder updates that then follow in a row."""
    encoder_horizon: int = 5
    """Decisions over which the model is unrolled."""
    return_horizon: int = 3
    """Rewards summed before the bootstrap."""
    encoder_lr: float = 1e-4
    """AdamW."""
    value_lr: float = 3e-4
    """AdamW."""
    policy_lr: float = 3e-4
    """AdamW."""
    weight_decay: float = 1e-4
    """AdamW, of all parameters."""
    value_clip_norm: float = 20.0
    """Gradient norm of the values is clipped to this; nothing else is clipped."""
    dynamics_weight: float = 1.0
    """Weight of the squared error of the next embedding."""
    reward_weight: float = 0.1
    """Weight of the reward loss."""
    done_weight: float = 0.1
    """Weight of the squared error of the terminal flag; counts once a terminal state was seen."""
    pre_activation_weight: float = 1e-5
    """Weight of the mean square of the policy's output before tanh, or of its logits."""
    exploration_noise: float = 0.2
    """Standard deviation of the noise on actions; halved where actions are discrete."""
    target_noise: float = 0.2
    """The same for the target policy's action."""
    target_noise_clip: float = 0.3
    """Bound of the latter; halved where actions are discrete."""
    gumbel_temperature: float = 10.0
    """Of the relaxed choice among discrete actions."""
    priority_exponent: float = 0.4
    """LAP: priority max(|TD error|, min_priority)^exponent."""
    min_priority: float = 1.0
    """LAP: TD errors below this count as this."""
    shift: int = 4
    """Pixels by which images are shifted at random, at most, in each direction; 0 turns it off."""

    def __post_init__(self) -> None:
        check_positive(
            self, "batch_size", "period", "encoder_horizon", "return_horizon", "encoder_lr", "value_lr", "policy_lr",
            "value_clip_norm", "gumbel_temperature", "min_priority",
        )  # fmt: skip
        check_not_negative(
            self, "weight_decay", "dynamics_weight", "reward_weight", "done_weight", "pre_activation_weight",
            "exploration_noise", "target_noise", "target_noise_clip", "priority_exponent", "shift",
        )  # fmt: skip
        check_shares(self, "discount")
        if self.design.state_action_target and self.networks.state_action_dim != self.networks.latent_dim:
            raise ConfigError(
                "design.state_action_target feeds predicted state-action embeddings back as states: latent_dim "
                f"{self.networks.latent_dim} and state_action_dim {self.networks.state_action_dim} must be equal"
            )

    @property
    def horizons(self) -> tuple[int, int]:
        """Lengths of the windows that are drawn."""
        return self.encoder_horizon, self.return_horizon


DESIGN_STUDY: Mapping[str, Mapping[str, Any]] = {
    "linear_value": {"design": {"linear_value": True}},
    "dynamics_target": {"design": {"state_action_target": True}},
    "no_target_encoder": {"design": {"target_encoder": False}},
    "revert": {"design": {"linear_value": True, "state_action_target": True, "target_encoder": False}},
    "nonlinear_model": {"design": {"linear_model": False}},
    "mse_reward": {"design": {"two_hot_reward": False}},
    "no_reward_scaling": {"design": {"scale_rewards": False}},
    "no_min": {"design": {"min_of_values": False}},
    "no_lap": {"design": {"prioritised": False}},
    "no_mr": {"design": {"model_based": False}},
    "one_step_return": {"return_horizon": 1},
    "no_unroll": {"encoder_horizon": 1},
}
"""The twelve rows of the published design study, as changes to LearnConfig."""

RELEASED: Mapping[str, Mapping[str, Any]] = {
    "released": {"released": {"return_form": "released", "starts": True, "reward_scale": True}},
}
"""The released code's behaviour in all that we changed."""

VARIANTS = ("mrq", *DESIGN_STUDY, *RELEASED)


def vary(config: LearnConfig, variant: str) -> LearnConfig:
    """The config of one variant: `mrq` leaves it as it is, others change what VARIANTS says."""
    changes = {**DESIGN_STUDY, **RELEASED}.get(variant, {})
    nested = {
        name: dataclasses.replace(getattr(config, name), **value) if isinstance(value, Mapping) else value
        for name, value in changes.items()
    }
    return dataclasses.replace(config, **nested)


def check_variants(variants: list[str], where: str) -> None:
    """Raise a ConfigError for unknown or repeated names, or none at all."""
    if unknown := sorted(set(variants) - set(VARIANTS)):
        raise ConfigError(f"{where}.variants: unknown {unknown}; known: {', '.join(VARIANTS)}")
    if not variants or len(set(variants)) < len(variants):
        raise ConfigError(f"{where}.variants must name each variant once, and at least one; found {variants}")


def algorithm_name(stage: str, variant: str) -> str:
    """What a variant's policies are called in scores: the stage's name, and the variant after an @ unless plain."""
    return stage if variant == "mrq" else f"{stage}@{variant}"
