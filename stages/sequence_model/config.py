"""Configs of sequence models and of policies trained through them. Reading them imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...pipeline.config.checks import (
    check_choices,
    check_counts,
    check_layers,
    check_not_negative,
    check_positive,
    check_shares,
)
from ...pipeline.errors import ConfigError

KINDS = ("markov", "hwm", "awm", "rnn", "ssm", "rerooted")
"""markov: s' = s + f(s, a) or f(s, a). hwm: transformer over states and actions. awm, rnn, ssm: transformer, recurrent
network and diagonal state-space model over the first state and the actions only. rerooted: an awm that starts anew
every `stride` decisions from its own prediction."""

NOISY_KINDS = ("awm", "rnn", "ssm")

REWARDS = ("auto", "simulator", "learned")
TARGETS = ("difference", "next_state")
LIKELIHOODS = ("mse", "gaussian")


@dataclass(frozen=True)
class SequenceModelConfig:
    """Sizes follow Ma et al. (arXiv 2402.05290)."""

    kind: str = "awm"
    """awm, rnn, ssm: a transformer, recurrent or state-space model of the first observation and the actions alone.
    markov, hwm: models that feed predicted observations back, one step or the whole history. rerooted: an awm that
    starts anew every `stride` decisions."""
    horizon: int = 100
    """Longest prediction in decisions. Transformers learn one position per decision and refuse to go beyond."""
    width: int = 48
    """Of tokens and hidden states; a multiple of `heads`."""
    layers: int = 2
    """Blocks of a transformer or state-space model."""
    heads: int = 3
    """Attention heads."""
    states: int = 64
    """Complex states per layer of a state-space model."""
    mlp_units: tuple[int, ...] = (64, 64)
    """Hidden widths of decoder, Markov model, reward head and the recurrent model's embeddings."""
    stride: int = 10
    """rerooted: decisions between two roots; 1 is a Markov model, `horizon` an AWM."""
    task_dim: int = 16
    """Width of the task embedding of the Markov model and the reward head; the others read a task token."""
    feedback_gradient: float = 1.0
    """markov, hwm, rerooted: gradients through predicted states that are fed back are multiplied by this at each step;
    0 cuts them."""
    target: str = "difference"
    """markov: predict the difference to the next observation (difference), or that observation itself (next_state)."""
    likelihood: str = "mse"
    """markov: squared error (mse), or the likelihood under a Gaussian whose deviation is learned too (gaussian)."""
    noise: bool = False
    """awm, rnn, ssm: noise tokens beside the actions, for stochastic environments (awm/stochastic.py)."""
    reward_head: bool = True
    """Learn the reward of a transition. Without it, policies need a task whose simulator gives the true one."""

    def __post_init__(self) -> None:
        check_choices(self, kind=KINDS)
        check_counts(self, "horizon", "width", "layers", "heads", "states", "stride", "task_dim")
        check_layers(self, "layers")
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} is not a multiple of heads {self.heads}")
        for name, known in (("target", TARGETS), ("likelihood", LIKELIHOODS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}: expected {' or '.join(known)}, found {getattr(self, name)!r}")
            if self.kind != "markov" and getattr(self, name) != known[0]:
                raise ConfigError(f"{name}: {getattr(self, name)} is for kind markov; kind is {self.kind}")
        if self.noise and self.kind not in NOISY_KINDS:
            raise ConfigError(f"noise is for kinds {', '.join(NOISY_KINDS)}; kind is {self.kind}")
        check_shares(self, "feedback_gradient")

    def longest_prediction(self) -> int | None:
        """Decisions that the model can look ahead; None where there is no limit."""
        return self.horizon if self.kind in ("awm", "hwm") else None


@dataclass(frozen=True)
class SequenceLossConfig:
    """What a sequence model is trained on."""

    reward: float = 1.0
    """Weight of the reward head's squared error, in units of the reward's standard deviation."""
    reward_on_predictions: float = 0.9
    """Probability that the reward head learns from a predicted transition rather than from the data's."""

    def __post_init__(self) -> None:
        check_shares(self, "reward_on_predictions")


@dataclass(frozen=True)
class BpoConfig:
    """Policy optimisation by backpropagation through a whole imagined episode (Ma et al., section 4)."""

    horizon: int = 0
    """Imagined decisions; 0 takes the model's horizon, or the episode's length where that is shorter."""
    batch_size: int = 16
    """Imagined episodes per policy and iteration."""
    units: tuple[int, ...] = (64, 64)
    """Hidden widths of the policy."""
    lr: float = 1e-3
    """Adam; Ma et al. use 1e-4 with 219 updates."""
    final_lr_scale: float = 1.0
    """lr falls linearly to lr times this at the last iteration; 1 is constant."""
    clip_norm: float = 100.0
    """Gradient norm of each policy is clipped to this."""
    entropy: float = 0.01
    """Weight of the policy's mean entropy per decision, against returns in standard deviations of the data's."""
    policy_input_gradient: float = 0.0
    """Share of the gradient that reaches a predicted state through the policy that reads it. 0 cuts that path, which is
    what keeps the gradient paths of an AWM short."""
    reward: str = "auto"
    """simulator: the true one, which the task's simulator gives. learned: the model's reward head. auto: the true one
    where there is a simulator."""

    def __post_init__(self) -> None:
        check_choices(self, reward=REWARDS)
        check_counts(self, "batch_size")
        check_not_negative(self, "horizon", "entropy")
        check_shares(self, "policy_input_gradient")


@dataclass(frozen=True)
class OnlineConfig:
    """The loop of Ma et al.: one environment, model and policy updated between its decisions."""

    decisions: int = 5000
    """Of the environment, in whole episodes."""
    warm_up: int = 1500
    """Decisions before the first update; the policy acts with its initial noise."""
    model_every: int = 2
    """Decisions per update of the model."""
    policy_every: int = 16
    """Decisions per update of the policy."""
    batch_size: int = 64
    """Sequences per model update."""
    model_lr: float = 1e-3
    """Adam."""
    bpo: BpoConfig = field(default_factory=BpoConfig)
    """Policy updates."""


ACTIONS = ("auto", "policies", "data", "uniform")


@dataclass(frozen=True)
class DynaConfig:
    """What is generated."""

    share: float = 1.0
    """Generated decisions per decision of the data."""
    length: int = 5
    """Decisions of a generated episode. The model's errors add up over them."""
    actions: str = "auto"
    """policies: of the run's policies, those of a task in turn. data: sequences from elsewhere in the data. uniform:
    uniformly random. auto: policies where the run has some, else data."""
    algorithm: str = ""
    """Which policies act; empty takes the first algorithm that their artifact lists."""
    noise: list[float] = field(default_factory=lambda: [0.0, 0.3])
    """Lowest and highest level of noise on them, drawn once per episode, as collect.policy_noise."""
    reward: str = "auto"
    """true: of the task's simulator. learned: the model's reward head. auto: true where there is a simulator."""
    seed: int = 0
    """Base of all randomness of this stage."""

    def __post_init__(self) -> None:
        check_positive(self, "share")
        check_counts(self, "length")
        check_choices(self, actions=ACTIONS)
        if len(self.noise) != 2 or not 0 <= self.noise[0] <= self.noise[1]:
            raise ConfigError(f"noise must be two numbers 0 <= low <= high, found {self.noise}")
