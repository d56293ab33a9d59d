"""Configs of sequence models and of the policies trained through them. Reading them imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.config.checks import (
    check_choices,
    check_counts,
    check_layers,
    check_shares,
)
from ...pipeline.errors import ConfigError

KINDS = ("markov", "hwm", "awm", "rnn", "ssm", "rerooted")
"""markov: s' = s + f(s, a) or f(s, a). hwm: transformer over states and actions. awm, rnn, ssm: transformer, recurrent
network and diagonal state-space model over the first state and the actions only. rerooted: an awm that restarts every
`stride` steps from its own prediction."""

NOISY_KINDS = ("awm", "rnn", "ssm")

TARGETS = ("difference", "next_state")
LIKELIHOODS = ("mse", "gaussian")
REWARDS = ("auto", "simulator", "learned")
"""Where rewards of imagined steps come from."""

SETTINGS = ("pretrain.horizon", "pretrain.sequence.horizon")
"""Keys that set how many positions a sequence model learns."""


def check_horizon(horizon: int, limit: int | None, key: str, model: str, *settings: str) -> None:
    """Raise a ConfigError that names `key` if `horizon` exceeds the positions that `model` has learned.

    Args:
        settings: keys that give the model more positions.
    """
    if limit is not None and horizon > limit:
        raise ConfigError(
            f"{key} is {horizon}, but {model} has learned {limit} positions; use at most {limit}, or pretrain with "
            + " ".join(f"{setting}={horizon}" for setting in settings)
        )


@dataclass(frozen=True)
class SequenceModelConfig:
    """Sequence model of observations. Sizes follow Ma et al. (arXiv 2402.05290)."""

    kind: str = "awm"
    """awm, rnn, ssm: a transformer, recurrent or state-space model of the first observation and the actions only.
    markov, hwm: feed predicted observations back, one step or the whole history. rerooted: an awm that restarts every
    `stride` steps."""
    horizon: int = 100
    """Longest prediction in steps. Transformers learn one position per step and cannot predict further."""
    width: int = 48
    """Width of tokens and hidden states; a multiple of `heads`."""
    layers: int = 2
    """Blocks of a transformer or state-space model."""
    heads: int = 3
    """Attention heads."""
    states: int = 64
    """Complex states per layer of a state-space model."""
    mlp_units: tuple[int, ...] = (64, 64)
    """Hidden widths of decoder, Markov model, reward head and the recurrent model's embeddings."""
    stride: int = 10
    """rerooted: steps between restarts; 1 is a Markov model, `horizon` an AWM."""
    task_dim: int = 16
    """Width of the task embedding of Markov model and reward head; other models read a task token."""
    feedback_gradient: float = 1.0
    """markov, hwm, rerooted: factor on gradients through predicted states that are fed back; 0 stops them."""
    target: str = "difference"
    """markov: predict the difference to the next observation (difference) or the observation itself (next_state)."""
    likelihood: str = "mse"
    """markov: squared error (mse), or Gaussian likelihood with learned variance (gaussian)."""
    noise: bool = False
    """awm, rnn, ssm: add noise tokens to the actions, for stochastic environments."""
    reward_head: bool = True
    """Learn a reward head. Without it, policies need a task whose simulator provides the reward."""

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
        """Return the longest prediction in steps; None if unlimited."""
        return self.horizon if self.kind in ("awm", "hwm") else None


@dataclass(frozen=True)
class SequenceLossConfig:
    """Losses of a sequence model."""

    reward: float = 1.0
    """Weight of the reward head's squared error, in units of the reward's standard deviation."""
    reward_on_predictions: float = 0.9
    """Probability that the reward head learns from a predicted transition instead of a real one."""

    def __post_init__(self) -> None:
        check_shares(self, "reward_on_predictions")
