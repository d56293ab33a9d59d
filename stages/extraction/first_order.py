"""One policy per member by first-order gradients through a frozen world model (PWM), all members as one program.

An iteration: draw start latents, imagine H steps with every policy, raise the bootstrapped return by its gradient
through the model, clone the data's actions where a member has an anchor, then fit the critics to TD(lambda) targets
of the same rollouts. Behaviour cloning is the same program without imagination.

Dimension letters: M members, P the first of them that imagine, H horizon, B rollouts of a member, D latent,
A action, N critics.
Source: PWM (arXiv 2407.02466) algorithm 1. Deviations, each explained where it is made: true TD(lambda) targets,
bootstrap at discount^H, rewards in environment units, masked actions, discount per task, critics in units of a
value scale, shuffled critic minibatches, behaviour anchor.
"""

from __future__ import annotations

import torch

from ...pipeline.errors import ConfigError
from ...pipeline.seeding import derive_seed
from ..layers.gradients import clip_members
from ..world_model.networks import WorldModel
from .config import FirstOrderConfig
from .program import NOISE_BLOCK, PolicySpec, Program, anchor_loss
from .returns import bootstrapped_return, lambda_return
from .rollout import Rollout, imagine, log_probability
from .starts import StartLatents


class FirstOrderExtraction(Program):
    """State and update of all policies. The model must stay frozen."""

    def __init__(
        self,
        model: WorldModel,
        starts: StartLatents,
        members: list[PolicySpec],
        config: FirstOrderConfig,
        iterations: int,
        seed: int,
    ) -> None:
        """Args as those of Program, with `iterations` updates of the actors."""
        latent_dim = model.config.latent_dim
        super().__init__(model, starts, members, config.networks, latent_dim, iterations, seed, config.released)
        self._config, self._pathwise = config, config.gradient == "pathwise"
        if config.released.unscaled_values:
            self._value_scale_P1 = torch.ones_like(self._value_scale_P1)
        self._penalty_P1 = self._penalty_weights(starts)
        # Shapes never change, so that each is compiled once.
        self._imagined, self._loss_of_critics = self._imagine, self._critic_loss
        if config.compile:
            self._imagined = torch.compile(self._imagine, fullgraph=True, dynamic=False)
            self._loss_of_critics = torch.compile(self._critic_loss, fullgraph=True, dynamic=False)
        self._block = -1
        self._noise: tuple[torch.Tensor, torch.Tensor] = (torch.empty(0), torch.empty(0))

    def update(self, iteration: int) -> dict[str, torch.Tensor]:
        """Iteration number `iteration` of actor and critics.

        Returns:
            Per member, on the device: imagined_reward [P] per step, anchor_loss [M], actor_grad_norm [M],
            critic_loss [P].
        """
        P = self.num_imagining
        self._set_learning_rate(iteration)
        self.actor.bound_log_std()
        index_MB, noise_HMBA = self._random(iteration)
        z_MBD = self._starts.z_KND[self._rows_M[:, None], index_MB]
        action_MBA = self._starts.action_KNA[self._rows_M[:, None], index_MB]

        anchor_M = anchor_loss(self.actor.head(z_MBD), action_MBA, self.tasks)
        loss = (self._anchor_M * anchor_M).sum()
        metrics = {"anchor_loss": anchor_M.detach()}
        if P:
            with torch.set_grad_enabled(self._pathwise):
                rollout, objective_HPB, return_PB = self._imagined(z_MBD[:P], noise_HMBA)
            target_HPB = self._critic_targets(rollout, objective_HPB)
            raised_PB = return_PB if self._pathwise else self._score_function(rollout, target_HPB, noise_HMBA)
            deviation_P = self._loss_variance.update(return_PB)
            loss = loss - (raised_PB.mean(1) / deviation_P).sum()
            metrics["imagined_reward"] = rollout.reward_HMB.detach().mean((0, 2))

        parameters = [p for p in self.actor.parameters() if P or p is not self.actor.log_std]
        metrics["actor_grad_norm"] = self._update_actors(loss, parameters)
        if P:
            metrics["critic_loss"] = self._update_critics(rollout, target_HPB, iteration)
        return metrics

    def _imagine(self, z_PBD: torch.Tensor, noise_HPBA: torch.Tensor) -> tuple[Rollout, torch.Tensor, torch.Tensor]:
        """A rollout from z, its objective per step [H, P, B] and its bootstrapped return [P, B]."""
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

    def _score_function(self, rollout: Rollout, target_HPB: torch.Tensor, noise_HPBA: torch.Tensor) -> torch.Tensor:
        """[P, B] whose gradient estimates that of the return without the model's gradient:

            sum_t discount^t alive_t log pi(a_t | z_t) (G_t - V(z_t)),    G_t the TD(lambda) target

        Source: Williams (1992); on imagined rollouts with this baseline, DreamerV2 (arXiv 2010.02193) eq. 6.
        """
        with torch.no_grad():
            advantage_HPB = target_HPB - torch.stack([self._value(z_PBD) for z_PBD in rollout.z_HMBD])
            factor_HPB = torch.cumprod(self._imagining.discount_M1 * rollout.continue_HMB, 0)
            advantage_HPB[1:] *= factor_HPB[:-1]
        members = slice(0, self.num_imagining)
        return (log_probability(self.actor, rollout, noise_HPBA, self._imagining, members) * advantage_HPB).sum(0)

    def _critic_loss(self, z_PRD: torch.Tensor, target_PR: torch.Tensor) -> torch.Tensor:
        """[P], mean over critics and rows, in units of the value scale."""
        return (self.critic(z_PRD) - target_PR[:, None]).square().mean((1, 2))

    def _penalty_weights(self, starts: StartLatents) -> torch.Tensor | None:
        """[P, 1] environment units; None if no member is penalised."""
        weight_P = torch.tensor([m.uncertainty for m in self.members[: self.num_imagining]], device=starts.z_KND.device)
        if not weight_P.any():
            return None
        if starts.disagreement_K is None:
            raise ConfigError(
                "extract.uncertainty needs a world model with disagreement heads, but this one has none; pretrain one "
                "with pretrain.model.disagreement_heads=5"
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

    @torch.no_grad()
    def _critic_targets(self, rollout: Rollout, objective_HPB: torch.Tensor) -> torch.Tensor:
        """TD(lambda) targets of the objective, [H, P, B], environment units."""
        next_value_HPB = torch.stack([self._value(next_z) for next_z in rollout.next_z_HMBD])
        return lambda_return(
            objective_HPB, next_value_HPB, rollout.continue_HMB, self._imagining.discount_M1, self._config.lambda_
        )

    def _update_critics(self, rollout: Rollout, target_HPB: torch.Tensor, iteration: int) -> torch.Tensor:
        """Fit the critics to their targets [H, P, B]; mean loss per member [P], in value-scale units."""
        config, P = self._config, self.num_imagining
        z = rollout.z_HMBD.detach()
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
                clip_members(list(self.critic.parameters()), P, config.networks.critic_clip_norm)
                self._critic_optimizer.step()
                total_P += loss_P.detach()
        return total_P / (config.critic_passes * config.critic_minibatches)

    def gradient_noise(self, draws: int = 8) -> torch.Tensor:
        """[P] variance of the gradient of the imagined return over batches, relative to its squared mean:

            sum_p var_n(g_np) / sum_p mean_n(g_np)^2

        with g_n the gradient of a policy's actor parameters for draw n of start states and noise. It is large if the
        landscape is rough.
        """
        P = self.num_imagining
        if P == 0:
            return torch.empty(0)
        parameters = list(self.actor.parameters())
        gradients = []
        for draw in range(draws):
            # Iterations that training does not reach, so that their random numbers are new.
            index_MB, noise_HMBA = self._random(self._updates + draw)
            z_MBD = self._starts.z_KND[self._rows_M[:, None], index_MB]
            rollout, objective_HPB, raised_PB = self._imagine(z_MBD[:P], noise_HMBA)
            if not self._pathwise:
                raised_PB = self._score_function(rollout, self._critic_targets(rollout, objective_HPB), noise_HMBA)
            found = torch.autograd.grad(raised_PB.mean(1).sum(), parameters)
            gradients.append([g[:P].flatten(1) for g in found])
        stacked_NPX = torch.stack([torch.cat(one, 1) for one in gradients])
        return stacked_NPX.var(0).sum(1) / stacked_NPX.mean(0).square().sum(1)

    def _random(self, iteration: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Start indices [M, B] and action noise [H, P, B, A] of an iteration."""
        block, position = divmod(iteration, NOISE_BLOCK)
        if block != self._block:
            self._block, self._noise = block, self._draw_block(block)
        indices, noise = self._noise
        return indices[position], noise[position]

    def _draw_block(self, block: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw on the device, which would otherwise wait. A GPU draws other numbers than a CPU."""
        config, starts = self._config, self._starts
        B, A, device = config.batch_size, starts.action_KNA.shape[-1], starts.z_KND.device
        indices, noise = [], []
        for member in self.members:
            generator = torch.Generator(device).manual_seed(self._stream(f"block {block}", member))
            size = NOISE_BLOCK, B
            indices.append(torch.randint(starts.z_KND.shape[1], size, generator=generator, device=device))
            if member.imagines:
                noise.append(torch.randn(NOISE_BLOCK, config.horizon, B, A, generator=generator, device=device))
        stacked = torch.stack(noise, 2) if noise else torch.empty(NOISE_BLOCK, config.horizon, 0, B, A, device=device)
        return torch.stack(indices, 1), stacked
