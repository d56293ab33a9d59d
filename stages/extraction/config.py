"""Configs of the stages extract and starts. Reading them imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...pipeline.accelerator import PRECISIONS, check_accelerator, wants_gpu
from ...pipeline.config.checks import check_choices, check_counts, check_not_negative, check_positive, check_shares
from ...pipeline.errors import ConfigError
from ...pipeline.jobs.config import FanoutConfig
from ..training.config import check_loggers
from ..world_model.config import ACTIVATION_NAMES

DEFAULT_ANCHOR = {"exploration": 0.0, "expert": 1.0, "policy": 1.0, "replay": 0.1, "unknown": 1.0}
"""Anchor weight by the behaviour that made the data. Narrow data without an anchor ends in exploiting the model's
errors (imagined return high, real return nil); wide data loses half its score to an anchor of 0.3. A replay buffer lies
between: on gym_replay, 0, 0.1 and 1 score 0.22, 0.36 and 0.09; on replay_small, 0 and 0.1 score 0.72 and 0.63."""

ALGORITHMS = ("pwm", "svg", "bc")
"""pwm: first-order extraction. svg: stochastic value gradients. Both with the behaviour anchor if its weight is
positive. bc: behaviour cloning, the anchor alone."""


@dataclass(frozen=True)
class ActorCriticConfig:
    """Networks and optimiser of one policy. Defaults are PWM's (arXiv 2407.02466, appendix B)."""

    actor_units: tuple[int, ...] = (400, 200, 100)
    """Hidden widths of the actor."""
    critic_units: tuple[int, ...] = (400, 200)
    """Hidden widths of each critic."""
    num_critics: int = 3
    """Critics per policy; their minimum is used."""
    activation: str = "mish"
    """Activation of hidden layers: mish (as published), silu or relu."""
    log_std_init: float = -1.0
    """Initial log standard deviation of the exploration noise, per action component."""
    log_std_min: float = -1.427
    """Lower bound of the log standard deviation; -1.427 is a standard deviation of 0.24."""
    lr: float = 5e-4
    """Learning rate of actor and critics at the first iteration."""
    final_lr: float = 1e-5
    """Learning rate at the last iteration; linear in between."""
    beta1: float = 0.7
    """Adam's beta1."""
    beta2: float = 0.95
    """Adam's beta2."""
    actor_clip_norm: float = 1.0
    """Maximum gradient norm of each actor."""
    critic_clip_norm: float = 100.0
    """Maximum gradient norm of each policy's critics."""

    def __post_init__(self) -> None:
        check_choices(self, activation=ACTIVATION_NAMES)
        check_positive(self, "num_critics", "lr", "actor_clip_norm", "critic_clip_norm")
        check_not_negative(self, "final_lr")
        for name in ("actor_units", "critic_units"):
            if min(getattr(self, name), default=1) < 1:
                raise ConfigError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must lie in [0, 1), found {getattr(self, name)}")


REWARD_SPACES = ("raw", "symlog")


@dataclass(frozen=True)
class ReleasedPwmConfig:
    """Restores the behaviour of PWM's released multi-task code where it differs from the paper or its intention. Off by
    default; with lambda_=0 as well, an update equals the released one."""

    reward_space: str = "raw"
    """symlog: sum predicted rewards in symlog space, instead of in environment units (raw)."""
    extra_bootstrap_discount: bool = False
    """Discount the bootstrapped value by discount^(horizon + 1) instead of discount^horizon."""
    unmasked_actions: bool = False
    """Let the policy set the model's padded action components, on which it was never trained."""
    constant_discount: float = 0.0
    """One discount for all tasks (0.99 as released) instead of one per task; 0 = off."""
    unscaled_values: bool = False
    """Train critics in environment units instead of units of each task's value scale."""
    ordered_critic_batches: bool = False
    """Use critic minibatches of consecutive time steps instead of shuffled ones."""

    def __post_init__(self) -> None:
        check_choices(self, reward_space=REWARD_SPACES)
        if not 0 <= self.constant_discount < 1:
            raise ConfigError(f"constant_discount must lie in [0, 1), found {self.constant_discount}")


@dataclass(frozen=True)
class FirstOrderConfig:
    """One extraction iteration (PWM, algorithm 1)."""

    horizon: int = 16
    """Imagined steps per rollout."""
    batch_size: int = 512
    """Imagined rollouts per policy and iteration."""
    lambda_: float = 0.95
    """TD(lambda) of the critic targets; 0 gives the one-step targets of the released multi-task code."""
    gradient: str = "pathwise"
    """pathwise: the gradient of the return through the model (first-order). score_function: REINFORCE with the critics
    as baseline (zeroth-order), without gradients through the model, for comparisons."""
    policy_input_gradient: float = 0.0
    """Share of the gradient that flows from the policy into its input latent; PWM stops this gradient (0)."""
    critic_passes: int = 8
    """Critic passes over each imagined batch."""
    critic_minibatches: int = 4
    """Minibatches per pass."""
    networks: ActorCriticConfig = field(default_factory=ActorCriticConfig)
    """Actor, critics and their optimiser."""
    compile: bool = False
    """Compile rollout and critic loss with torch.compile. For GPUs: on a CPU it takes minutes first and saves
    little."""
    released: ReleasedPwmConfig = field(default_factory=ReleasedPwmConfig)
    """Switches that restore the released code's behaviour, for comparisons."""

    def __post_init__(self) -> None:
        check_counts(self, "horizon", "batch_size", "critic_passes", "critic_minibatches")
        check_shares(self, "lambda_", "policy_input_gradient")
        check_choices(self, gradient=("pathwise", "score_function"))
        if (self.horizon * self.batch_size) % self.critic_minibatches:
            raise ConfigError(
                f"horizon x batch_size ({self.horizon} x {self.batch_size}) must be a multiple of "
                f"critic_minibatches ({self.critic_minibatches})"
            )


SVG_NETWORKS = ActorCriticConfig(
    actor_units=(128, 64),
    critic_units=(128, 128),
    num_critics=2,
    activation="silu",
    lr=1e-3,
    final_lr=5e-5,
    beta1=0.9,
    beta2=0.999,
    critic_clip_norm=1.0,
)
"""Smaller than PWM's, since critics of real transitions need several thousand updates."""


@dataclass(frozen=True)
class SvgConfig:
    """Stochastic value gradients: critics learn from real transitions, actors from 0 to `horizon` model steps."""

    horizon: int = 3
    """Longest imagined rollout in steps; 0 uses no gradient through the model (DDPG on its latents)."""
    lambda_: float = 0.5
    """Weight of a rollout of h steps in the objective: lambda^h, normalised."""
    weights: str = "lambda"
    """lambda: weights by `lambda_` alone. trust: these times R^2 of the model's h-step advantage on the task's held-out
    windows."""
    n_step: int = 3
    """Real steps in a critic's n-step target; fewer at the end of an episode."""
    updates: int = 4
    """Updates of critics and actor per iteration."""
    batch_size: int = 128
    """Real windows per policy and update."""
    starts: int = 64
    """Windows of a batch from which the model is rolled out."""
    priority: float = 0.5
    """Exponent of prioritized replay by the critics' errors; 0 draws transitions uniformly."""
    target_rate: float = 0.1
    """EMA rate of the target critics."""
    average_rate: float = 0.01
    """EMA rate of the actor's weights, whose average is the policy; 1 keeps the last update's."""
    target_noise: float = 0.2
    """Standard deviation of the noise on a target's action, as a fraction of half the action range."""
    pre_activation_weight: float = 1e-3
    """Weight of the mean square of the actor's output before tanh, or of its logits, relative to the normalised
    return."""
    frames_per_task: int = 200_000
    """Maximum frames per task kept as latents; larger datasets use a random choice of episodes."""
    networks: ActorCriticConfig = SVG_NETWORKS
    """Actor, critics and their optimiser."""

    def __post_init__(self) -> None:
        check_counts(self, "n_step", "updates", "batch_size", "starts", "frames_per_task")
        check_not_negative(self, "horizon", "target_noise", "pre_activation_weight")
        check_shares(self, "lambda_", "target_rate", "average_rate", "priority")
        check_choices(self, weights=("lambda", "trust"))
        if self.starts > self.batch_size:
            raise ConfigError(f"starts ({self.starts}) must not exceed batch_size ({self.batch_size})")
        if self.starts <= self.horizon:
            raise ConfigError(
                f"starts ({self.starts}) must exceed horizon ({self.horizon}): every horizon from 0 needs a state"
            )


@dataclass(frozen=True)
class ExtractConfig:
    """Policies to extract, and how."""

    first_order: FirstOrderConfig = field(default_factory=FirstOrderConfig)
    """Rollouts, critics and optimiser."""
    svg: SvgConfig = field(default_factory=SvgConfig)
    """svg: windows of real data, rollouts, critics and optimiser."""
    algorithms: list[str] = field(default_factory=lambda: ["svg", "bc"])
    """svg (stochastic value gradients on real transitions), pwm (first-order extraction from imagined states, also
    without a store) and bc (behaviour cloning with the same number of updates)."""
    tasks: list[str] = field(default_factory=list)
    """Tasks of the world model to extract policies for; a store must hold them, too. Empty: all; the store must then
    hold exactly these."""
    seeds: int = 2
    """Policies per task and algorithm."""
    iterations: int = 500
    """Iterations per policy: an actor update each, or `svg.updates` of them."""
    anchor: list[float] = field(default_factory=list)
    """Weight of the behaviour anchor |tanh(mean(z_0)) - a_0|^2, relative to the normalised return. Empty: 0 for tasks
    with exploration data, 0.1 for replay buffers, 1 for data of experts, policies or unknown origin. Several weights
    train one policy each, reported as ALGORITHM@WEIGHT."""
    task_anchor: dict[str, float] = field(default_factory=dict)
    """Anchor weight by task; overrides `anchor`."""
    uncertainty: list[float] = field(default_factory=lambda: [0.0])
    """Weight of the penalty on model disagreement above its level on the data (needs
    `pretrain.model.disagreement_heads`), in units of the task's reward. Several weights train one policy each, reported
    as pwm@uWEIGHT. Only pwm has it."""
    starts_per_task: int = 16384
    """Dataset frames per task encoded as start latents; without a store, limited to the frames saved with the model."""
    log_every: int = 10
    """Iterations between logged metrics; logging waits for the device."""
    evaluate_every: int = 0
    """Iterations between evaluations in the environment during extraction, logged as `evaluation_return`; 0 = off. They
    change no policy."""
    evaluation_episodes: int = field(default=4, metadata={"renamed_from": "evaluate_episodes"})
    """Episodes per policy and evaluation of `evaluate_every`."""
    checkpoint_every: int = 50
    """Iterations between checkpoints."""
    groups: int = 0
    """Groups of a job's policies that train in parallel, one CPU core each; 0 = auto: 2 on a CPU, 1 on a GPU. Affects
    speed and float rounding only."""
    accelerator: str = "auto"
    """Device: cpu, cuda (alias gpu), or auto (a GPU if there is one)."""
    precision: str = "32-true"
    """32-true, bf16-mixed or auto: bf16-mixed on a CPU with AVX512-BF16 or AMX for algorithms with critics at least 384
    wide (pwm's by default, not svg's), else 32-true. bf16-mixed narrows matrix products at least 32 wide; weights,
    norms, losses, actions and values stay in 32 bit."""
    loggers: list[str] | None = None
    """Loggers of training metrics, by default those of the run: csv, tensorboard, wandb, mlflow."""
    seed: int = 0
    """Random seed."""
    fanout: FanoutConfig = field(default_factory=FanoutConfig)
    """How policies are split into jobs, and where the jobs run. Affects speed and float rounding only."""

    def __post_init__(self) -> None:
        check_loggers(self)
        check_counts(self, "seeds", "iterations", "starts_per_task", "log_every", "checkpoint_every")
        check_counts(self, "evaluation_episodes")
        check_not_negative(self, "groups", "evaluate_every")
        check_accelerator(self)
        check_choices(self, precision=PRECISIONS)
        if unknown := sorted(set(self.algorithms) - set(ALGORITHMS)):
            raise ConfigError(f"extract.algorithms: unknown {unknown}, this stage has: {', '.join(ALGORITHMS)}")
        for name, weights in {
            "anchor": self.anchor,
            "task_anchor": self.task_anchor.values(),
            "uncertainty": self.uncertainty,
        }.items():
            if min(weights, default=0) < 0:
                raise ConfigError(f"{name} must not be negative, found {min(weights)}")
        if not self.uncertainty:
            raise ConfigError("uncertainty must have at least one weight")
        for key in ("anchor", "uncertainty"):
            if len(set(weights := getattr(self, key))) < len(weights):
                raise ConfigError(f"extract.{key} repeats a weight: {weights}")

    def groups_on(self, device: str) -> int:
        """Return `groups`, or the default for this kind of device."""
        return self.groups or (2 if device == "cpu" else 1)

    @property
    def cores(self) -> int:
        """CPU cores per job."""
        return self.groups_on("cuda" if wants_gpu(self.accelerator) else "cpu")


SOURCES = ("auto", "model", "episodes")


@dataclass(frozen=True)
class StartsConfig:
    """Origin of the start frames."""

    source: str = "auto"
    """model: the frames saved with the model. episodes: new episodes played in the environments, by noisy scripted
    experts if the suite has them, else by exploration. auto: model if it has frames, else episodes."""
    tasks: list[str] = field(default_factory=list)
    """Tasks of the world model. Empty: all."""
    episodes: int = 40
    """Episodes played per task."""
    frames: int = 16384
    """Maximum frames kept per task from played episodes."""
    seed: int = 0
    """Random seed."""
    fanout: FanoutConfig = field(default_factory=FanoutConfig)
    """Jobs, whose episodes are played in parallel: one per task; with executor=inline, one for all."""

    def __post_init__(self) -> None:
        check_choices(self, source=SOURCES)
        check_counts(self, "episodes", "frames")
