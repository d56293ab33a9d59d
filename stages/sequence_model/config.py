"""Configs of sequence models and of policies trained through them. Reading them imports no torch."""

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
network and diagonal state-space model over the first state and the actions only. rerooted: an awm that starts anew
every `stride` decisions from its own prediction."""

NOISY_KINDS = ("awm", "rnn", "ssm")

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
