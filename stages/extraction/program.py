"""The common part of programs that train many policies at once. A member is one of these policies with its critics.

Dimension letters: M members, P the first of them that imagine, B rollouts of a member, A action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ...pipeline.errors import StageError
from ...pipeline.seeding import derive_seed
from ..layers.gradients import clip_members
from ..world_model.networks import WorldModel
from .actor_critic import StackedActor, StackedCritic
from .config import ActorCriticConfig, ReleasedPwmConfig
from .rollout import MemberTasks, imagined_return, member_tasks
from .starts import StartLatents

NOISE_BLOCK = 10
"""Updates whose random numbers are drawn at once; resuming draws the block again, so it is part of no result."""


@dataclass(frozen=True)
class PolicySpec:
    """A policy to train."""

    algorithm: str
    """`pwm` or `bc`, as named in scores; with several anchor weights `pwm@0.3`."""
    task: str
    seed: int
    anchor: float
    """Weight of the behaviour anchor; 0 relies on the model alone."""
    imagines: bool
    """False: behaviour cloning, without the return term."""
    uncertainty: float = 0.0
    """Weight of the penalty on the model's disagreement, subtracted from the imagined reward."""
    data: str = ""
    """Digest of the task's data; empty if it comes with the world model."""

    @property
    def objective(self) -> str:
        """The algorithm without its weights."""
        return self.algorithm.partition("@")[0]


def anchor_loss(head_MBA: torch.Tensor, action_MBA: torch.Tensor, tasks: MemberTasks) -> torch.Tensor:
    """Behaviour anchor of each policy, [M]: mean over states of |tanh(mean(z_0)) - a_0|^2, summed over components.

    Cross-entropy of the data's action for discrete actions. Padded components do not count.
    """
    squared_MB = ((torch.tanh(head_MBA) - action_MBA) * tasks.mask_M1A).square().sum(-1)
    if not tasks.any_discrete:
        return squared_MB.mean(1)
    log_probability = torch.log_softmax(head_MBA.masked_fill(tasks.mask_M1A == 0, -1e9), -1)
    cross_entropy_MB = -(log_probability * action_MBA).sum(-1)
    return torch.where(tasks.discrete_M11[..., 0], cross_entropy_MB, squared_MB).mean(1)


class RunningVariance:
    """Cumulative variance per policy, as PWM scales its actor loss: without decay, including the current batch."""

    def __init__(self, members: int, device: torch.device) -> None:
        self.count = torch.full((), 1e-4, dtype=torch.float64, device=device)
        self.mean_M = torch.zeros(members, dtype=torch.float64, device=device)
        self.variance_M = torch.ones(members, dtype=torch.float64, device=device)

    def update(self, x_MB: torch.Tensor) -> torch.Tensor:
        """Include x [M, B]; returns the standard deviation [M] so far (float32). Chan et al. (1979) parallel update."""
        x_MB = x_MB.detach().double()
        batch, mean, variance = x_MB.shape[1], x_MB.mean(1), x_MB.var(1, unbiased=False)
        total = self.count + batch
        delta = mean - self.mean_M
        squares = self.variance_M * self.count + variance * batch + delta.square() * self.count * batch / total
        self.mean_M = self.mean_M + delta * batch / total
        self.variance_M = squares / total
        self.count = total
        return (self.variance_M + 1e-5).sqrt().float()


class Program:
    """State of all members: stacked actors and critics, their optimisers and random streams. Subclasses add `update`.

    Hold the model frozen; nothing here writes to it.
    """

    target: StackedCritic | None = None
    """Slowly moving copy of the critics, where a subclass has one."""
    cpu_seconds = 0.0
    """Of the updates of this attempt, in the thread that ran them."""

    def __init__(
        self,
        model: WorldModel,
        starts: StartLatents,
        members: list[PolicySpec],
        networks: ActorCriticConfig,
        critic_in_dim: int,
        updates: int,
        seed: int,
        released: ReleasedPwmConfig | None = None,
    ) -> None:
        """Args:
        members: those that imagine first.
        critic_in_dim: width of what a critic reads.
        updates: of the whole run; the learning rate falls linearly over them.
        seed: base of all randomness; a member's own stream depends on (seed, task, member seed) alone.
        """
        if [m.imagines for m in members] != sorted((m.imagines for m in members), reverse=True):
            raise ValueError("members that imagine must come first")
        device = starts.z_KND.device
        self.members, self.model, self.networks = members, model, networks
        self._updates, self._seed, self._starts = updates, seed, starts
        self.num_imagining = P = sum(member.imagines for member in members)
        ids = [model.table.id_of(member.task) for member in members]
        self.tasks = member_tasks(model, ids, device, released)
        self._imagining = self.tasks[:P]
        self._rows_M = torch.tensor([starts.row_of_task[k] for k in ids], device=device)
        self._anchor_M = torch.tensor([member.anchor for member in members], device=device)
        self._value_scale_P1 = starts.value_scale_K[self._rows_M[:P]][:, None]
        self.actor = StackedActor(len(members), model.config.latent_dim, model.table.action_dim, networks)
        self.critic = StackedCritic(max(P, 1), critic_in_dim, networks)
        for m, member in enumerate(members):
            generator = torch.Generator().manual_seed(self._stream("weights", member))
            self.actor.mlp.initialise_uniform(m, generator)
            if member.imagines:
                for n in range(networks.num_critics):
                    self.critic.mlp.initialise_orthogonal(m * networks.num_critics + n, generator)
        self.actor.to(device)
        self.critic.to(device)
        adam = partial(torch.optim.Adam, lr=networks.lr, betas=(networks.beta1, networks.beta2), fused=True)
        self._actor_optimizer = adam(self.actor.parameters())
        self._critic_optimizer = adam(self.critic.parameters())
        self._loss_variance = RunningVariance(P, device)

    def update(self, iteration: int) -> dict[str, torch.Tensor]:
        """Iteration number `iteration`; numbers per member by name, those that imagine first, on the device."""
        raise NotImplementedError

    @property
    def policy(self) -> StackedActor:
        """The actors that are evaluated and published."""
        return self.actor

    def imagined_returns(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return and discounted return of each deterministic policy, each [M], over whole imagined episodes from real
        first frames."""
        length_M = torch.tensor(
            [self.model.table[int(k)].episode_length for k in self.tasks.task_M1], device=self.tasks.task_M1.device
        )
        return imagined_return(self.model, self.policy, self._starts.initial_z_KBD[self._rows_M], self.tasks, length_M)

    def gradient_noise(self) -> torch.Tensor:
        """[P] relative variance of the actors' gradients over batches; empty if it is not measured."""
        return torch.empty(0)

    def check_finite(self, metrics: dict[str, torch.Tensor], iteration: int) -> None:
        """Raise a StageError that names the members whose numbers are not finite."""
        for name, values in metrics.items():
            broken = [m for m, ok in zip(self.members, torch.isfinite(values).tolist(), strict=False) if not ok]
            if broken:
                named = ", ".join(f"{m.algorithm} {m.task} seed {m.seed}" for m in broken[:5])
                raise StageError(f"extraction: {name} is not finite at iteration {iteration} for {named}; lower the lr")

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, for exact resume. Tensors and plain containers only."""
        variance = self._loss_variance
        state = {name: part.state_dict() for name, part in self._parts().items()}
        return {**state, "loss_variance": [variance.count, variance.mean_M, variance.variance_M]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        variance = self._loss_variance
        variance.count, variance.mean_M, variance.variance_M = state["loss_variance"]

    def _parts(self) -> dict[str, Any]:
        parts = {
            "actor": self.actor,
            "critic": self.critic,
            "actor_optimizer": self._actor_optimizer,
            "critic_optimizer": self._critic_optimizer,
        }
        return parts if self.target is None else {**parts, "target": self.target}

    def _update_actors(self, loss: torch.Tensor, parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
        """A step down `loss`, summed over members; returns each one's gradient norm before clipping, [M]."""
        self._actor_optimizer.zero_grad(set_to_none=True)
        # Only the actors: no gradient of the critics is computed or kept here.
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        norm_M = clip_members(parameters, len(self.members), self.networks.actor_clip_norm)
        self._actor_optimizer.step()
        return norm_M

    def _set_learning_rate(self, update: int) -> None:
        networks = self.networks
        lr = networks.lr + (networks.final_lr - networks.lr) * update / self._updates
        for optimizer in (self._actor_optimizer, self._critic_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = lr

    def _stream(self, purpose: str, member: PolicySpec) -> int:
        return derive_seed(purpose, self._seed, member.task, member.seed)
