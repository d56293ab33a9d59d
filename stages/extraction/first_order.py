"""One policy per member by first-order gradients through a frozen world model (PWM), all members as one program.

An iteration: draw start latents, imagine H decisions with every policy, raise the bootstrapped return by its gradient
through the model, clone the data's actions where a member has an anchor, then fit the critics to TD(lambda) targets
of the same rollouts. Behaviour cloning is the same program without imagination.

Dimension letters: M members, P the first of them that imagine, H horizon, B rollouts of a member, D latent,
A action, N critics.
Source: PWM (arXiv 2407.02466) algorithm 1. Deviations, each explained where it is made: true TD(lambda) targets,
bootstrap at discount^H, rewards in environment units, masked actions, discount per task, critics in units of a
value scale, shuffled critic minibatches, behaviour anchor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...pipeline.errors import ConfigError, StageError
from ...pipeline.seeding import derive_seed
from ..world_model.networks import WorldModel
from .actor_critic import StackedActor, StackedCritic, clip_members_
from .config import FirstOrderConfig
from .returns import bootstrapped_return, lambda_return
from .rollout import MemberTasks, Rollout, imagine, imagined_return, member_tasks
from .starts import Starts

_NOISE_BLOCK = 10
"""Iterations whose random numbers are drawn at once; resuming draws the block again, so it is part of no result."""


@dataclass(frozen=True)
class Member:
    """One policy to be trained."""

    algorithm: str
    """`pwm` or `bc`, as it is named in scores; with several anchor weights `pwm@0.3`."""
    task: str
    seed: int
    anchor: float
    """Weight of the behaviour anchor; 0 trusts the model alone."""
    imagines: bool
    """False: behaviour cloning, no return term."""
    uncertainty: float = 0.0
    """Weight of the model's disagreement, which is taken off the imagined reward."""


def anchor_loss(head_MBA: torch.Tensor, action_MBA: torch.Tensor, tasks: MemberTasks) -> torch.Tensor:
    """Behaviour anchor of each member, [M]: mean over states of |tanh(mean(z_0)) - a_0|^2, summed over components.

    Cross-entropy of the data's action where actions are discrete. Padded components count nothing.
    """
    squared_MB = ((torch.tanh(head_MBA) - action_MBA) * tasks.mask_M1A).square().sum(-1)
    if not tasks.any_discrete:
        return squared_MB.mean(1)
    log_probability = torch.log_softmax(head_MBA.masked_fill(tasks.mask_M1A == 0, -1e9), -1)
    cross_entropy_MB = -(log_probability * action_MBA).sum(-1)
    return torch.where(tasks.discrete_M11[..., 0], cross_entropy_MB, squared_MB).mean(1)


class RunningVariance:
    """Cumulative variance per member, as PWM scales its actor loss: no decay, the current batch included."""

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


class FirstOrderExtraction:
    """State and update of all members. Hold the model frozen; nothing here writes to it."""

    def __init__(
        self,
        model: WorldModel,
        starts: Starts,
        members: list[Member],
        config: FirstOrderConfig,
        iterations: int,
        seed: int,
    ) -> None:
        """Args:
        members: those that imagine first.
        iterations: of the whole run; the learning rate falls linearly over them.
        seed: base of all randomness; a member's own stream depends on (seed, task, member seed) alone.
        """
        if [m.imagines for m in members] != sorted((m.imagines for m in members), reverse=True):
            raise ValueError("members that imagine must come first")
        device = starts.z_KND.device
        networks = config.networks
        self.members, self.model = members, model
        self._config, self._iterations, self._seed, self._starts = config, iterations, seed, starts
        self.num_imagining = sum(member.imagines for member in members)
        ids = [model.table.id_of(member.task) for member in members]
        self.tasks = member_tasks(model, ids, device, config.released)
        self._imagining = self.tasks[: self.num_imagining]
        self._rows_M = torch.tensor([starts.row_of_task[k] for k in ids], device=device)
        self._anchor_M = torch.tensor([member.anchor for member in members], device=device)
        self._value_scale_P1 = starts.value_scale_K[self._rows_M[: self.num_imagining]][:, None]
        if config.released.unscaled_values:
            self._value_scale_P1 = torch.ones_like(self._value_scale_P1)
        latent_dim, action_dim = model.config.latent_dim, model.table.action_dim
        self._penalty_P1 = self._penalty_weights(starts)
        self.actor = StackedActor(len(members), latent_dim, action_dim, networks)
        self.critic = StackedCritic(max(self.num_imagining, 1), latent_dim, networks)
        for m, member in enumerate(members):
            generator = torch.Generator().manual_seed(self._stream("weights", member))
            self.actor.mlp.initialise_uniform(m, generator)
            if member.imagines:
                for n in range(networks.num_critics):
                    self.critic.mlp.initialise_orthogonal(m * networks.num_critics + n, generator)
        self.actor.to(device)
        self.critic.to(device)
        betas = (networks.beta1, networks.beta2)
        self._actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=networks.lr, betas=betas)
        self._critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=networks.lr, betas=betas)
        # Shapes never change, so that each is compiled once.
        self._imagined, self._loss_of_critics = self._imagine, self._critic_loss
        if config.compile:
            self._imagined = torch.compile(self._imagine, fullgraph=True, dynamic=False)
            self._loss_of_critics = torch.compile(self._critic_loss, fullgraph=True, dynamic=False)
        self._loss_variance = RunningVariance(self.num_imagining, device)
        self._block = -1
        self._noise: tuple[torch.Tensor, torch.Tensor] = (torch.empty(0), torch.empty(0))

    def update(self, iteration: int) -> dict[str, torch.Tensor]:
        """Iteration number `iteration` of actor and critics.

        Returns:
            Per member, on the device: imagined_reward [P] per decision, anchor_loss [M], actor_grad_norm [M],
            critic_loss [P].
        """
        config, P = self._config, self.num_imagining
        self._set_learning_rate(iteration)
        self.actor.bound_log_std()
        index_MB, noise_HMBA = self._random(iteration)
        z_MBD = self._starts.z_KND[self._rows_M[:, None], index_MB]
        action_MBA = self._starts.action_KNA[self._rows_M[:, None], index_MB]

        anchor_M = anchor_loss(self.actor.head(z_MBD), action_MBA, self.tasks)
        loss = (self._anchor_M * anchor_M).sum()
        metrics = {"anchor_loss": anchor_M.detach()}
        if P:
            rollout, objective_HPB, return_PB = self._imagined(z_MBD[:P], noise_HMBA)
            deviation_P = self._loss_variance.update(return_PB)
            loss = loss - (return_PB.mean(1) / deviation_P).sum()
            metrics["imagined_reward"] = rollout.reward_HMB.detach().mean((0, 2))

        self._actor_optimizer.zero_grad(set_to_none=True)
        # Only the actors: no gradient of the critics is computed or kept here.
        parameters = [p for p in self.actor.parameters() if P or p is not self.actor.log_std]
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        metrics["actor_grad_norm"] = clip_members_(parameters, len(self.members), config.networks.actor_clip_norm)
        self._actor_optimizer.step()
        if P:
            metrics["critic_loss"] = self._update_critics(rollout, objective_HPB.detach(), iteration)
        return metrics

    def _imagine(self, z_PBD: torch.Tensor, noise_HPBA: torch.Tensor) -> tuple[Rollout, torch.Tensor, torch.Tensor]:
        """A rollout from z, its objective per decision [H, P, B] and its bootstrapped return [P, B]."""
        config, released, members = self._config, self._config.released, slice(0, self.num_imagining)
        rollout = imagine(
            self.model,
            self.actor,
            z_PBD,
            noise_HPBA,
            self._imagining,
            members,
            released.reward_space,
            config.policy_input_gradient,
        )
        final_value_PB = self._value(rollout.next_z_HMBD[-1])
        if released.extra_bootstrap_discount:
            final_value_PB = final_value_PB * self._imagining.discount_M1
        objective_HPB = self._objective(rollout)
        return_PB = bootstrapped_return(
            objective_HPB, final_value_PB, rollout.continue_HMB, self._imagining.discount_M1
        )
        return rollout, objective_HPB, return_PB

    def _critic_loss(self, z_PRD: torch.Tensor, target_PR: torch.Tensor) -> torch.Tensor:
        """[P], mean over critics and rows, in units of the value scale."""
        return (self.critic(z_PRD) - target_PR[:, None]).square().mean((1, 2))

    def _penalty_weights(self, starts: Starts) -> torch.Tensor | None:
        """[P, 1] environment units; None where no member is penalised."""
        weight_P = torch.tensor([m.uncertainty for m in self.members[: self.num_imagining]], device=starts.z_KND.device)
        if not weight_P.any():
            return None
        if starts.disagreement_K is None:
            raise ConfigError(
                "an uncertainty weight needs a world model with disagreement heads, and this one has none; pretrain "
                "one with pretrain.model.disagreement_heads=5"
            )
        reward_scale_P1 = starts.value_scale_K[self._rows_M[: self.num_imagining]][:, None] * (
            1 - self._imagining.discount_M1
        )
        return weight_P[:, None] * reward_scale_P1

    def _objective(self, rollout: Rollout) -> torch.Tensor:
        """Imagined reward less the penalty, [H, P, B]:

            r - weight * reward scale * max(u / u_data - 1, 0)

        with u the disagreement of the heads, u_data its mean over the task's data, and the root mean square reward as
        the scale: where the model is as sure as on its data nothing is taken off.
        Source: the penalty of MOPO (arXiv 2005.13239) eq. 3, with an ensemble's disagreement as its error estimate.
        """
        if self._penalty_P1 is None:
            return rollout.reward_HMB
        task_HPB = self._imagining.task_M1.expand(rollout.reward_HMB.shape)
        u_HPB = self.model.disagreement(rollout.z_HMBD, rollout.action_HMBA, task_HPB)
        assert self._starts.disagreement_K is not None
        u_data_P1 = self._starts.disagreement_K[self._rows_M[: self.num_imagining]][:, None]
        return rollout.reward_HMB - self._penalty_P1 * (u_HPB / u_data_P1 - 1).clamp(min=0)

    def _value(self, z_PBD: torch.Tensor) -> torch.Tensor:
        """Smallest value over the critics, [P, B], environment units."""
        return self.critic(z_PBD).amin(1) * self._value_scale_P1

    def _update_critics(self, rollout: Rollout, objective_HPB: torch.Tensor, iteration: int) -> torch.Tensor:
        """Fit the critics to TD(lambda) targets of the objective; mean loss per member [P], in value-scale units."""
        config, P = self._config, self.num_imagining
        z = rollout.z_HMBD.detach()
        with torch.no_grad():
            next_value_HPB = torch.stack([self._value(next_z) for next_z in rollout.next_z_HMBD])
            target_HPB = lambda_return(
                objective_HPB,
                next_value_HPB,
                rollout.continue_HMB,
                self._imagining.discount_M1,
                config.lambda_,
            )
            target_PR = (target_HPB / self._value_scale_P1).transpose(0, 1).flatten(1)
        z_PRD = z.transpose(0, 1).flatten(1, 2)
        # One order for all members: it carries no information about any, and the minibatches stay one indexing.
        generator = torch.Generator(z.device).manual_seed(derive_seed("critic order", self._seed, iteration))
        total_P = torch.zeros(P, device=z.device)
        for _ in range(config.critic_passes):
            order = torch.randperm(z_PRD.shape[1], generator=generator, device=z.device)
            if config.released.ordered_critic_batches:
                order = torch.arange(z_PRD.shape[1], device=z.device)
            for rows in order.chunk(config.critic_minibatches):
                loss_P = self._loss_of_critics(z_PRD[:, rows], target_PR[:, rows])
                self._critic_optimizer.zero_grad(set_to_none=True)
                loss_P.sum().backward()
                clip_members_(list(self.critic.parameters()), P, config.networks.critic_clip_norm)
                self._critic_optimizer.step()
                total_P += loss_P.detach()
        return total_P / (config.critic_passes * config.critic_minibatches)

    def imagined_returns(self) -> torch.Tensor:
        """[M] return of each deterministic policy over whole imagined episodes from real first frames."""
        length_M = torch.tensor(
            [self.model.table[int(k)].episode_length for k in self.tasks.task_M1], device=self.tasks.task_M1.device
        )
        return imagined_return(self.model, self.actor, self._starts.initial_z_KBD[self._rows_M], self.tasks, length_M)

    def gradient_noise(self, draws: int = 8) -> torch.Tensor:
        """[P] variance of the gradient of the imagined return over batches, relative to its squared mean:

            sum_p var_n(g_np) / sum_p mean_n(g_np)^2

        with g_n the gradient to the parameters of a member's actor from draw n of start states and noise. Large where
        the landscape is rough; 0 would need one batch only.
        """
        P = self.num_imagining
        if P == 0:
            return torch.empty(0)
        parameters = list(self.actor.parameters())
        gradients = []
        for draw in range(draws):
            # Iterations that training does not reach, so that their random numbers are new.
            index_MB, noise_HMBA = self._random(self._iterations + draw)
            z_MBD = self._starts.z_KND[self._rows_M[:, None], index_MB]
            return_PB = self._imagine(z_MBD[:P], noise_HMBA)[2]
            found = torch.autograd.grad(return_PB.mean(1).sum(), parameters)
            gradients.append([g[:P].flatten(1) for g in found])
        stacked_NPX = torch.stack([torch.cat(one, 1) for one in gradients])
        return stacked_NPX.var(0).sum(1) / stacked_NPX.mean(0).square().sum(1)

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
        return {
            "actor": self.actor.state_dict(),
            "critic": self.critic.state_dict(),
            "actor_optimizer": self._actor_optimizer.state_dict(),
            "critic_optimizer": self._critic_optimizer.state_dict(),
            "loss_variance": [variance.count, variance.mean_M, variance.variance_M],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.actor.load_state_dict(state["actor"])
        self.critic.load_state_dict(state["critic"])
        self._actor_optimizer.load_state_dict(state["actor_optimizer"])
        self._critic_optimizer.load_state_dict(state["critic_optimizer"])
        variance = self._loss_variance
        variance.count, variance.mean_M, variance.variance_M = state["loss_variance"]

    def _set_learning_rate(self, iteration: int) -> None:
        networks = self._config.networks
        lr = networks.lr + (networks.final_lr - networks.lr) * iteration / self._iterations
        for optimizer in (self._actor_optimizer, self._critic_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = lr

    def _random(self, iteration: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Start indices [M, B] and action noise [H, P, B, A] of an iteration."""
        block, position = divmod(iteration, _NOISE_BLOCK)
        if block != self._block:
            self._block, self._noise = block, self._draw_block(block)
        indices, noise = self._noise
        return indices[position], noise[position]

    def _draw_block(self, block: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Drawn on the device, which would wait for them otherwise; a GPU draws other numbers than a CPU."""
        config, starts = self._config, self._starts
        B, A, device = config.batch_size, starts.action_KNA.shape[-1], starts.z_KND.device
        indices, noise = [], []
        for member in self.members:
            generator = torch.Generator(device).manual_seed(self._stream(f"block {block}", member))
            size = _NOISE_BLOCK, B
            indices.append(torch.randint(starts.z_KND.shape[1], size, generator=generator, device=device))
            if member.imagines:
                noise.append(torch.randn(_NOISE_BLOCK, config.horizon, B, A, generator=generator, device=device))
        stacked = torch.stack(noise, 2) if noise else torch.empty(_NOISE_BLOCK, config.horizon, 0, B, A, device=device)
        return torch.stack(indices, 1), stacked

    def _stream(self, purpose: str, member: Member) -> int:
        return derive_seed(purpose, self._seed, member.task, member.seed)
