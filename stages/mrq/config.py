"""Configs of MR.Q. Reading them imports no torch.

One set of hyperparameters serves every task (MR.Q, arXiv 2501.16142); defaults are the published ones. `DesignConfig`
holds the choices that the paper's design study removes one at a time, `ReleasedMrqConfig` the differences between the
released code and the paper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...pipeline.accelerator import PRECISIONS, check_accelerator
from ...pipeline.config.checks import check_choices, check_counts, check_not_negative, check_positive, check_shares
from ...pipeline.errors import ConfigError
from ...pipeline.jobs.config import FanoutConfig
from ..training.config import check_loggers

IMAGE_SIZE = 84
"""Height and width in pixels; the convolutions end in 32 x 7 x 7 = 1568 features."""

WARMUP_ACTIONS = ("uniform", "exploration")
RETURN_FORMS = ("masked", "released", "unmasked")


@dataclass(frozen=True)
class NetworkConfig:
    """Network widths; 512 throughout as published, 256 for the action embedding."""

    latent_dim: int = 512
    """Width of the state embedding z_s."""
    state_action_dim: int = 512
    """Width of the state-action embedding z_sa."""
    action_dim: int = 256
    """Width of the action embedding z_a."""
    encoder_dim: int = 512
    """Hidden width of both encoders."""
    value_dim: int = 512
    """Hidden width of each of the two value functions."""
    policy_dim: int = 512
    """Hidden width of the policy."""
    num_bins: int = 65
    """Bins of the two-hot reward head."""
    bin_limit: float = 10.0
    """Bins are symexp of evenly spaced numbers in [-limit, limit]; 10 covers rewards up to 22025 per step."""

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            if entry.type == "int" and getattr(self, entry.name) < 1:
                raise ConfigError(f"{entry.name} must be at least 1, found {getattr(self, entry.name)}")
        if self.num_bins < 2:
            raise ConfigError(f"num_bins must be at least 2, found {self.num_bins}")
        check_positive(self, "bin_limit")


@dataclass(frozen=True)
class DesignConfig:
    """Design choices that the design study removes one at a time."""

    linear_value: bool = False
    """Make values linear in z_sa instead of perceptrons."""
    state_action_target: bool = False
    """Predict the next state-action embedding, with the target policy's action, instead of the next state embedding."""
    target_encoder: bool = True
    """Take model targets from a copy of the encoder that is frozen for a period. False: from the encoder itself,
    without gradient."""
    linear_model: bool = True
    """Make the model linear in z_sa. False: a perceptron with the encoder's hidden width."""
    two_hot_reward: bool = True
    """Predict the reward as a distribution over bins, by cross-entropy. False: as a number, by squared error."""
    scale_rewards: bool = True
    """Divide value targets by the mean absolute reward of the data."""
    min_of_values: bool = True
    """Bootstrap from the minimum of the two target values. False: from their mean."""
    prioritised: bool = True
    """Sample windows by LAP with the Huber value loss. False: uniformly, with squared error."""
    model_based: bool = True
    """Train the encoder to model the decision process. False: with the value loss only."""


@dataclass(frozen=True)
class ReleasedMrqConfig:
    """Restores the behaviour of the released code (facebookresearch/MRQ at 8a44a7d), for comparisons."""

    return_form: str = "masked"
    """masked: sum gamma^t r_t prod_(i<t) not_done_i. released: sum gamma^t r_t not_done_t, which drops the terminal
    reward and adds the next episode's. unmasked: sum gamma^t r_t, used for the published scores."""
    starts: bool = False
    """Start windows only where one step more than the longer horizon follows; a truncated end that is also terminal
    counts as truncated. Orrery keeps every start whose window fits, and pads after terminal states."""
    reward_scale: bool = False
    """Include the zeros stored with final observations in the mean absolute reward, with a floor of 1e-8. Orrery's
    scale stays at 1 until a non-zero reward occurs."""

    def __post_init__(self) -> None:
        check_choices(self, return_form=RETURN_FORMS)


@dataclass(frozen=True)
class LearnConfig:
    """Training step of MR.Q."""

    networks: NetworkConfig = field(default_factory=NetworkConfig)
    """Network widths."""
    design: DesignConfig = field(default_factory=DesignConfig)
    """Switches of the design study."""
    released: ReleasedMrqConfig = field(default_factory=ReleasedMrqConfig)
    """Switches that restore the released code's behaviour."""
    batch_size: int = 256
    """Windows per update of values and encoder."""
    discount: float = 0.99
    """Discount per step, one constant as published; 0 = each task's own, the default on stored data."""
    period: int = 250
    """Training steps between hard target updates, and number of encoder updates after each."""
    encoder_horizon: int = 5
    """Steps over which the model is unrolled."""
    return_horizon: int = 3
    """Rewards summed before the bootstrap (n-step return)."""
    encoder_lr: float = 1e-4
    """Learning rate of the encoder (AdamW)."""
    value_lr: float = 3e-4
    """Learning rate of the values (AdamW)."""
    policy_lr: float = 3e-4
    """Learning rate of the policy (AdamW)."""
    weight_decay: float = 1e-4
    """AdamW's weight decay, on all parameters."""
    value_clip_norm: float = 20.0
    """Maximum gradient norm of the values; nothing else is clipped."""
    dynamics_weight: float = 1.0
    """Weight of the squared error of the next embedding."""
    reward_weight: float = 0.1
    """Weight of the reward loss."""
    done_weight: float = 0.1
    """Weight of the squared error of the terminal flag; 0 until a terminal state occurs."""
    pre_activation_weight: float = 1e-5
    """Weight of the mean square of the policy's output before tanh, or of its logits."""
    exploration_noise: float = 0.2
    """Standard deviation of exploration noise; halved for discrete actions."""
    target_noise: float = 0.2
    """Standard deviation of noise on the target policy's action; halved for discrete actions."""
    target_noise_clip: float = 0.3
    """Bound of the target noise; halved for discrete actions."""
    gumbel_temperature: float = 10.0
    """Temperature of the Gumbel-softmax over discrete actions."""
    priority_exponent: float = 0.4
    """LAP: priority is max(|TD error|, min_priority)^exponent."""
    min_priority: float = 1.0
    """LAP: minimum |TD error| in the priority."""
    shift: int = 4
    """Maximum random shift of images in pixels, in each direction; 0 = off."""
    precision: str = "32-true"
    """32-true, bf16-mixed or auto: bf16-mixed on a CPU with AVX512-BF16 or AMX if `networks.value_dim` is at least 384,
    else 32-true. bf16-mixed narrows matrix products at least 32 wide; weights, norms, losses, actions and values stay
    in 32 bit."""

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
        check_choices(self, precision=PRECISIONS)
        if self.design.state_action_target and self.networks.state_action_dim != self.networks.latent_dim:
            raise ConfigError(
                "design.state_action_target feeds predicted state-action embeddings back as states: latent_dim "
                f"{self.networks.latent_dim} and state_action_dim {self.networks.state_action_dim} must be equal"
            )

    @property
    def horizons(self) -> tuple[int, int]:
        """Lengths of the sampled windows."""
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
"""The released code's behaviour in everything that Orrery changed."""

VARIANTS = ("mrq", *DESIGN_STUDY, *RELEASED)


def vary(config: LearnConfig, variant: str) -> LearnConfig:
    """Return the config of one variant; `mrq` changes nothing."""
    changes = {**DESIGN_STUDY, **RELEASED}.get(variant, {})
    nested = {
        name: dataclasses.replace(getattr(config, name), **value) if isinstance(value, Mapping) else value
        for name, value in changes.items()
    }
    return dataclasses.replace(config, **nested)


def check_variants(variants: list[str], where: str) -> None:
    """Raise a ConfigError for unknown, repeated or missing names."""
    if unknown := sorted(set(variants) - set(VARIANTS)):
        raise ConfigError(f"{where}.variants: unknown {unknown}; known: {', '.join(VARIANTS)}")
    if not variants or len(set(variants)) < len(variants):
        raise ConfigError(f"{where}.variants must be a non-empty list without repetitions, found {variants}")


def algorithm_name(stage: str, variant: str) -> str:
    """Return the algorithm name of a variant in scores: the stage's name, followed by @VARIANT unless the variant is
    mrq."""
    return stage if variant == "mrq" else f"{stage}@{variant}"


BEHAVIOUR_WEIGHT = {"exploration": 0.0, "expert": 0.1, "policy": 0.1, "replay": 0.1, "unknown": 0.1}
"""Default weight of the behaviour term by the behaviour that made the data; 0.1 is that of TD7 (arXiv 2306.02451)."""


@dataclass(frozen=True)
class MrqConfig:
    """Policies to learn from the store, and how."""

    tasks: list[str] = field(default_factory=list)
    """Tasks of the store. Empty: all."""
    seeds: int = 2
    """Policies per task and variant."""
    variants: list[str] = field(default_factory=lambda: ["mrq"])
    """mrq, or rows of the design study such as no_min or no_unroll, reported as mrq@VARIANT."""
    encoder_updates: int = 5_000
    """Encoder updates before values and policy are trained, in whole periods of 250; 0 = none."""
    updates: int = 25_000
    """Updates of values and policy. The encoder gets as many, in bursts."""
    freeze_encoder: bool = False
    """Freeze the encoder after `encoder_updates`."""
    start_from_world_model: bool = False
    """Learn on latents of the run's world model, whose encoder stays frozen, instead of on observations."""
    behaviour_weight: float | None = None
    """lambda of the behaviour term lambda * mean|Q| * distance(policy, data's action) in the policy loss: mean squared
    distance, or cross-entropy for discrete actions. null: 0 for tasks with exploration data, 0.1 for data of experts,
    policies or unknown origin."""
    clamp_targets: bool = True
    """Clamp bootstrapped values to the range of the targets of the last 250 steps, against extrapolation."""
    learn: LearnConfig = field(default_factory=lambda: LearnConfig(discount=0.0))
    """Training step."""
    load_up_to_gb: float = 2.0
    """Load a store up to this size in GB into memory; memory-map a larger one."""
    log_every: int = 250
    """Updates between logged metrics."""
    checkpoint_every: int = 1_000
    """Updates between checkpoints."""
    accelerator: str = "auto"
    """Device: cpu, cuda (alias gpu), or auto (a GPU if there is one)."""
    fanout: FanoutConfig = field(default_factory=FanoutConfig)
    """Jobs. With fanout.policies_per_job=0, a job trains one policy on a CPU, where stacking gains nothing, and all
    policies on a GPU."""
    loggers: list[str] | None = None
    """Loggers of training metrics, by default those of the run: csv, tensorboard, wandb, mlflow."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        check_loggers(self)
        check_counts(self, "seeds", "updates", "log_every", "checkpoint_every")
        check_not_negative(self, "encoder_updates")
        if (self.behaviour_weight or 0) < 0:
            raise ConfigError(f"behaviour_weight must not be negative, found {self.behaviour_weight}")
        if self.freeze_encoder and not self.encoder_updates:
            raise ConfigError("mrq.freeze_encoder would leave the encoder untrained: set mrq.encoder_updates")
        check_accelerator(self)
        check_variants(self.variants, "mrq")


@dataclass(frozen=True)
class MrqOnlineConfig:
    """Tasks and budget of online MR.Q."""

    tasks: list[str] = field(default_factory=list)
    """Task names such as dmc/walker-run or gymnasium/CartPole-v1."""
    seeds: int = 1
    """Policies per task and variant."""
    variants: list[str] = field(default_factory=lambda: ["mrq"])
    """mrq, or rows of the design study such as no_min or no_unroll, reported as mrq_online@VARIANT."""
    steps: int = 25_000
    """Environment steps per policy, over all its environments. A step includes the action repeat."""
    warmup: int = 10_000
    """Random steps before the first update."""
    warmup_actions: str = "uniform"
    """Actions of the warm-up. uniform: independent at every step, as published. exploration: those of the stage
    collect, correlated over 1 to 32 steps, which find sparse rewards sooner."""
    environments: int = 1
    """Parallel environments per policy."""
    update_every: int = 1
    """Environment steps per training step, over all environments; 1 as published. More give a larger replay buffer for
    the same computation."""
    replay_size: int = 1_000_000
    """Capacity of the replay buffer in steps, plus one slot per episode."""
    pixels: bool = False
    """Learn dm_control tasks from images of 84 x 84 pixels instead of states."""
    frames: int = 3
    """Stacked frames of image observations; the replay buffer stores each frame once."""
    evaluate_every: int = 5_000
    """Steps between evaluations, which use a separate environment; the first is at step 0."""
    evaluation_episodes: int = 10
    """Episodes per evaluation."""
    checkpoint_every: int = 2_500
    """Steps between checkpoints, which include the replay buffer."""
    keep_replay: bool = False
    """Save the complete episodes of the replay buffer, for the stage replay_datasets."""
    learn: LearnConfig = field(default_factory=LearnConfig)
    """Training step."""
    accelerator: str = "auto"
    """Device: cpu, cuda (alias gpu), or auto (a GPU if there is one)."""
    fanout: FanoutConfig = field(default_factory=FanoutConfig)
    """Jobs."""
    loggers: list[str] | None = None
    """Loggers of training metrics, by default those of the run: csv, tensorboard, wandb, mlflow."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        names = (
            "seeds",
            "steps",
            "environments",
            "update_every",
            "frames",
            "evaluate_every",
            "evaluation_episodes",
            "checkpoint_every",
        )
        check_loggers(self)
        check_counts(self, *names)
        check_choices(self, warmup_actions=WARMUP_ACTIONS)
        longest = max(self.learn.horizons)
        if self.warmup < longest + 1:
            raise ConfigError(f"mrq_online.warmup must be at least {longest + 1}, one window, found {self.warmup}")
        check_accelerator(self)
        check_variants(self.variants, "mrq_online")
