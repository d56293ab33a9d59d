"""Settings of MR.Q. Apart from the networks so that reading a config imports no torch.

One set of hyper-parameters serves every task (MR.Q, arXiv 2501.16142); defaults are the published ones. `DesignConfig`
holds the choices that the paper's design study removes one at a time, `ReleasedMrqConfig` what the released code does
differently from the text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...datasets.schema import BEHAVIOURS
from ...pipeline.accelerator import check_accelerator
from ...pipeline.config.checks import check_choices, check_counts, check_not_negative, check_positive, check_shares
from ...pipeline.errors import ConfigError
from ...pipeline.jobs.config import FanoutConfig

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
class ReleasedMrqConfig:
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
    released: ReleasedMrqConfig = field(default_factory=ReleasedMrqConfig)
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


@dataclass(frozen=True)
class MrqConfig:
    """Which policies are learned from the store, and how."""

    tasks: list[str] = field(default_factory=list)
    """Tasks of the store to learn; all of them where empty."""
    seeds: int = 2
    """Policies per task and variant."""
    variants: list[str] = field(default_factory=lambda: ["mrq"])
    """mrq, and rows of the design study such as no_min or no_unroll, each scored as mrq@VARIANT."""
    encoder_updates: int = 5_000
    """Updates of the encoder alone before the first of values and policy, in whole periods of 250; 0 for none."""
    updates: int = 25_000
    """Training steps: updates of values and policy, with one of the encoder for each, in bursts."""
    freeze_encoder: bool = False
    """Leave the encoder as it is after `encoder_updates`."""
    start_from_world_model: bool = False
    """Learn on the latents of the run's world model instead of observations; its encoder stays frozen."""
    behaviour_weight: float = 0.1
    """lambda of the behaviour term lambda * mean|Q| * distance(policy, data's action) in the policy loss: mean squared
    distance, or cross-entropy where actions are discrete. 0 trusts the values alone."""
    clamp_targets: bool = True
    """Keep bootstrapped values within the range of the targets of the last 250 steps; guards extrapolation."""
    learn: LearnConfig = field(default_factory=LearnConfig)
    """The training step."""
    load_up_to_gb: float = 2.0
    """A store of at most this many gigabytes is loaded into memory; a larger one is read through a memory map."""
    log_every: int = 250
    """Updates between logged numbers."""
    checkpoint_every: int = 1_000
    """Updates between checkpoints for resuming."""
    accelerator: str = "auto"
    """cpu, cuda (or gpu, the same), or auto: a GPU where there is one."""
    fanout: FanoutConfig = field(default_factory=FanoutConfig)
    """Where the policies are trained. fanout.members_per_job=0 trains one in a job on a CPU, where stacking them gains
    nothing, and all of them on a GPU."""
    seed: int = 0
    """Base of all randomness of this stage."""

    def __post_init__(self) -> None:
        check_counts(self, "seeds", "updates", "log_every", "checkpoint_every")
        check_not_negative(self, "encoder_updates", "behaviour_weight")
        if self.freeze_encoder and not self.encoder_updates:
            raise ConfigError("mrq.freeze_encoder would leave the encoder untrained: give mrq.encoder_updates")
        check_accelerator(self)
        check_variants(self.variants, "mrq")


@dataclass(frozen=True)
class MrqOnlineConfig:
    """What is learned, and for how long."""

    tasks: list[str] = field(default_factory=list)
    """Names such as dmc/walker-run or gymnasium/CartPole-v1."""
    seeds: int = 1
    """Policies per task and variant."""
    variants: list[str] = field(default_factory=lambda: ["mrq"])
    """mrq, and rows of the design study such as no_min or no_unroll, each scored as mrq_online@VARIANT."""
    steps: int = 25_000
    """Decisions of each policy, over all its environments."""
    warmup: int = 10_000
    """Decisions with random actions before the first training step."""
    environments: int = 1
    """Environments of one policy that are played side by side; each decision of each is one training step."""
    replay_size: int = 1_000_000
    """Decisions, and one slot more per episode, that are kept."""
    pixels: bool = False
    """Learn dm_control tasks from images of 84 x 84 pixels instead of states."""
    frames: int = 3
    """Frames that an environment with image observations stacks into one; the replay keeps each once."""
    evaluate_every: int = 5_000
    """Decisions between evaluations, in an environment of their own; also before the first."""
    evaluation_episodes: int = 10
    """Episodes of an evaluation."""
    checkpoint_every: int = 2_500
    """Decisions between checkpoints for resuming, which hold the replay."""
    keep_replay: bool = False
    """Keep every complete episode of the replay, for the stage mrq_datasets."""
    learn: LearnConfig = field(default_factory=LearnConfig)
    """The training step."""
    accelerator: str = "auto"
    """cpu, cuda (or gpu, the same), or auto: a GPU where there is one."""
    fanout: FanoutConfig = field(default_factory=FanoutConfig)
    """Where the policies are trained."""
    seed: int = 0
    """Base of all randomness of this stage."""

    def __post_init__(self) -> None:
        names = (
            "seeds",
            "steps",
            "environments",
            "frames",
            "evaluate_every",
            "evaluation_episodes",
            "checkpoint_every",
        )
        check_counts(self, *names)
        longest = max(self.learn.horizons)
        if self.warmup < longest + 1:
            raise ConfigError(f"mrq_online.warmup must be at least {longest + 1}, one window, found {self.warmup}")
        check_accelerator(self)
        check_variants(self.variants, "mrq_online")


@dataclass(frozen=True)
class MrqDatasetsConfig:
    """Which replays become data."""

    tasks: list[str] = field(default_factory=list)
    """Tasks to write; empty takes every task that was learned."""
    algorithm: str = "mrq_online"
    """Whose replays, where several variants were trained."""
    behaviour: str = "exploration"
    """How the data counts for the defaults of later stages. A replay reaches from random actions to a trained policy's,
    which is as wide as exploration; policy or unknown anchor extraction to it."""

    def __post_init__(self) -> None:
        check_choices(self, behaviour=BEHAVIOURS)
