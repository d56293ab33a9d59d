"""One policy per member by stochastic value gradients: critics that learn from real transitions in the latent space of
a frozen world model, actors that climb a mixture of returns over 0 to H steps through that model.

An update: draw windows of real data, fit the critics Q(z, a) to n-step targets of these, roll the policies out from the
same states and raise

    sum_h w_h J_h,    J_h = sum_{t<h} discount^t alive_t r(z_t, a_t) + discount^h alive_h Q(z_h, a_h)

by its gradient. J_0 is the model-free end of the family (DDPG on the model's latents), J_H is SVG(H). PWM's critics
learn from imagined states alone, so policy and critic can share the model's errors; these critics learn from the data
in the same states.

Dimension letters: M members, B windows of a member, N critics, H horizon, D latent, A action.
Source: SVG(H) (arXiv 1510.09142) and its form with critics learned off-policy (MAAC, arXiv 2005.08068; SAC-SVG, arXiv
2008.12775); targets and target noise as TD3's (arXiv 1802.09477).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ...pipeline.errors import ConfigError
from ..layers.gradients import clip_members
from ..world_model.networks import WorldModel
from .actor_critic import StackedActor, StackedCritic
from .config import SvgConfig
from .program import NOISE_BLOCK, PolicySpec, Program, anchor_loss
from .returns import bootstrapped_return
from .rollout import continue_probability, sample
from .starts import StartLatents
from .transitions import LatentTransitions, TransitionBatch

NOISE_CLIP = 0.5
"""Largest noise on a target's action."""
INITIAL_VALUES = 0.1
"""The last layer of a critic begins this much smaller than orthogonal: values near 0, of no state more than others."""

TRUST_EVERY, TRUST_WINDOWS = 25, 256
"""Iterations between measurements of how far the model is trusted, and windows of each."""
LEAST_PRIORITY = 0.1
"""Relative to the mean error: of transitions that the critics know."""


class SvgExtraction(Program):
    """State and update of all members, each of which has critics."""

    target: StackedCritic

    def __init__(
        self,
        model: WorldModel,
        starts: StartLatents,
        transitions: LatentTransitions,
        members: list[PolicySpec],
        config: SvgConfig,
        iterations: int,
        seed: int,
        held_out: LatentTransitions | None = None,
    ) -> None:
        """Args as those of Program, with `iterations` of `config.updates` updates each.

        transitions: of the tasks of `starts`, in the same order.
        held_out: likewise, of episodes that the model has not seen; needed for weights by trust.
        """
        joint_dim = model.config.latent_dim + model.table.action_dim
        super().__init__(model, starts, members, config.networks, joint_dim, iterations * config.updates, seed)
        self._config, self._transitions = config, transitions
        self._held_out = held_out if config.weights == "trust" else None
        with torch.no_grad():
            self.critic.mlp.weight[-1].mul_(INITIAL_VALUES)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self._average = copy.deepcopy(self.actor).requires_grad_(False)
        self._share_H = torch.tensor([config.lambda_**h for h in range(config.horizon + 1)], device=self._rows_M.device)
        self._counts_H = split_starts((self._share_H / self._share_H.sum()).tolist(), config.starts)
        self._set_weights(self._share_H.expand(len(members), -1))
        counts_M = transitions.count_K[self._rows_M]
        every_S = torch.arange(int(counts_M.max()), device=counts_M.device)
        self._priority_MS = (every_S < counts_M[:, None]).float()
        self._block = -1
        self._drawn: tuple[torch.Tensor, torch.Tensor] = (torch.empty(0), torch.empty(0))

    def update(self, iteration: int) -> dict[str, torch.Tensor]:
        """Iteration number `iteration`, of `updates` updates of actors and critics.

        Returns:
            Means over the updates, per member, on the device: critic_loss, value (of the data's actions, environment
            units), anchor_loss, actor_grad_norm; [M].
        """
        updates = self._config.updates
        if self._held_out is not None and iteration % TRUST_EVERY == 0:
            trust_MH = self._trust(self._held_out, iteration)
            self._set_weights(self._share_H * trust_MH)
        metrics = [self._update(iteration * updates + i) for i in range(updates)]
        return {name: torch.stack([one[name] for one in metrics]).mean(0) for name in metrics[0]}

    def _update(self, update: int) -> dict[str, torch.Tensor]:
        self._set_learning_rate(update)
        number_MB, noise_MBA = self._random(update)
        batch = self._transitions.batch(number_MB, self._rows_M, self.tasks.discount_M1, self._config.n_step)
        critic_loss_M, value_M, error_MB = self._update_critics(batch, noise_MBA)
        self._prioritise(number_MB, error_MB)
        rows = slice(0, self._config.starts)
        head_MBA = self.actor.head(batch.z_MBD)
        return_MB = self._returns(batch.z_MBD[:, rows], head_MBA[:, rows], noise_MBA[:, rows])
        anchor_M = anchor_loss(head_MBA, batch.action_MBA, self.tasks)
        # While no reward is found, actors climb noise; where tanh is flat, they would never come back.
        square_M = (head_MBA.square() * self.tasks.mask_M1A).sum(-1).mean(1) / self.tasks.mask_M1A.sum(-1)[:, 0]
        objective_M = (self._weight_MB * return_MB).sum(1) / self._loss_variance.update(return_MB)
        loss_M = self._anchor_M * anchor_M + self._config.pre_activation_weight * square_M - objective_M
        parameters = list(self.actor.mlp.parameters())
        norm_M = self._update_actors(loss_M.sum(), parameters)
        # The mean of all actors so far until the EMA covers as many, so that it does not remember the first weights.
        rate = max(self._config.average_rate, 1 / (update + 1))
        averages: list[torch.Tensor] = list(self._average.mlp.parameters())
        torch._foreach_lerp_(averages, [p.detach() for p in parameters], rate)
        return {
            "critic_loss": critic_loss_M,
            "value": value_M * self._value_scale_P1[:, 0],
            "anchor_loss": anchor_M.detach(),
            "actor_grad_norm": norm_M,
        }

    @property
    def policy(self) -> StackedActor:
        """Averages of the actors' weights: successive iterates differ in score, their average less so."""
        return self._average

    def _update_critics(self, batch: TransitionBatch, noise_MBA: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Fit the critics to the targets of a batch. In units of the value scale: their loss and mean value, [M], and
        the larger error of them, [M, B]."""
        with torch.no_grad():
            value_MB = self._q(self.target, batch.next_z_MBD, self._noisy_action(batch.next_z_MBD, noise_MBA)).amin(1)
            target_MB = batch.reward_MB / self._value_scale_P1 + batch.factor_MB * value_MB
        q_MNB = self._q(self.critic, batch.z_MBD, batch.action_MBA)
        loss_M = F.huber_loss(q_MNB, target_MB[:, None].expand_as(q_MNB), reduction="none").mean((1, 2))
        self._critic_optimizer.zero_grad(set_to_none=True)
        loss_M.sum().backward()
        parameters = list(self.critic.parameters())
        clip_members(parameters, len(self.members), self.networks.critic_clip_norm)
        self._critic_optimizer.step()
        targets: list[torch.Tensor] = list(self.target.parameters())
        torch._foreach_lerp_(targets, [p.detach() for p in parameters], self._config.target_rate)
        q_MNB = q_MNB.detach()
        return loss_M.detach(), q_MNB.mean((1, 2)), (q_MNB - target_MB[:, None]).abs().amax(1)

    def _returns(self, z_MBD: torch.Tensor, head_MBA: torch.Tensor, noise_MBA: torch.Tensor) -> torch.Tensor:
        """J_h of each state, [M, B], in units of the value scale, from the actors' heads there.

        A state is rolled out over one horizon only, the longest first. Over all horizons it would cost several times as
        much and say little more, since the next batch brings other states.
        """
        counts, discount_M1 = self._counts_H, self.tasks.discount_M1
        begins = [sum(counts[h + 1 :]) for h in range(len(counts))]  # of the states that are rolled out over h steps
        latents, actions = [z_MBD], [self._sample(head_MBA, noise_MBA)]
        for going in begins[:-1]:
            z_MBD = self.model.next_latent(latents[-1][:, :going], actions[-1][:, :going], self._task(going))
            latents.append(z_MBD)
            actions.append(self._action(z_MBD, noise_MBA[:, :going]))
        kept = [(z[:, :going], a[:, :going]) for z, a, going in zip(latents, actions, begins[:-1], strict=False)]
        last = [(z[:, begin:], a[:, begin:]) for z, a, begin in zip(latents, actions, begins, strict=True)]
        rewards = _together(self._reward, kept)
        continues = _together(self._continue, [(z,) for z in latents[1:]])
        values = _together(lambda z, a: self._q(self.critic, z, a).mean(1), last)
        returns = []
        for h, (begin, count) in enumerate(zip(begins, counts, strict=True)):
            rows = slice(begin, begin + count)
            along = [[x[:, rows] for x in steps[:h]] for steps in (rewards, continues)]
            returns.append(bootstrapped_return(along[0], values[h], along[1], discount_M1))
        return torch.cat(returns[::-1], 1)

    def _set_weights(self, weight_MH: torch.Tensor) -> None:
        """Give each state the weight of its horizon in the mixture, shared among the states of that horizon."""
        share_MH = weight_MH / weight_MH.sum(1, keepdim=True)
        columns = [share_MH[:, h, None].expand(-1, n) / n for h, n in reversed(list(enumerate(self._counts_H)))]
        self._weight_MB = torch.cat(columns, 1)

    @torch.no_grad()
    def _trust(self, data: LatentTransitions, iteration: int) -> torch.Tensor:
        """[M, H + 1] in [0, 1]: share of the advantage of the data's actions that the model explains over h steps,

            R^2 of  A_h = sum_{t<h} discount^t r_t + discount^h V(z_h) - V(z_0),    V(z) = Q(z, policy(z)),

        on windows of episodes that it has not seen: an error counts as far as the actor would climb it. 1 for h = 0.
        """
        discount_M1, scale_M1 = self.tasks.discount_M1, self._value_scale_P1
        begin_MB = self._windows(data, iteration)
        z_MBD, trust = data.z_FD[begin_MB], [torch.ones_like(discount_M1)]
        real_MB = imagined_MB = -self._value(z_MBD)
        for h in range(self._config.horizon):
            action_MBA = data.action_FA[begin_MB + h]
            step_MB = data.return_F[begin_MB + h] - discount_M1 * data.return_F[begin_MB + h + 1]
            real_MB = real_MB + discount_M1**h * step_MB.float() / scale_M1
            imagined_MB = imagined_MB + discount_M1**h * self._reward(z_MBD, action_MBA)
            z_MBD = self.model.next_latent(z_MBD, action_MBA, self._task(TRUST_WINDOWS))
            bootstrap_M1 = discount_M1 ** (h + 1)
            advantage_MB = real_MB + bootstrap_M1 * self._value(data.z_FD[begin_MB + h + 1])
            error_MB = imagined_MB + bootstrap_M1 * self._value(z_MBD) - advantage_MB
            explained_M1 = 1 - error_MB.square().mean(1, keepdim=True) / advantage_MB.var(1, keepdim=True).clamp(
                min=1e-12
            )
            trust.append(explained_M1.clamp(0, 1))
        return torch.cat(trust, 1)

    def _windows(self, data: LatentTransitions, iteration: int) -> torch.Tensor:
        """Frames [M, TRUST_WINDOWS] that are followed by more than H steps.

        Raises:
            ConfigError: a task has none.
        """
        begins = []
        for member, row in zip(self.members, self._rows_M.tolist(), strict=True):
            first, count = int(data.first_K[row]), int(data.count_K[row])
            frames = data.frame_S[first : first + count]
            frames = frames[data.left_F[frames] > self._config.horizon]
            if not len(frames):
                raise ConfigError(
                    f"extract.svg.weights=trust needs held-out episodes of more than {self._config.horizon} steps "
                    f"(extract.svg.horizon), and {member.task} has none; use weights=lambda"
                )
            generator = torch.Generator(frames.device).manual_seed(self._stream(f"trust {iteration}", member))
            size = (TRUST_WINDOWS,)
            begins.append(frames[torch.randint(len(frames), size, generator=generator, device=frames.device)])
        return torch.stack(begins)

    def _value(self, z_MBD: torch.Tensor) -> torch.Tensor:
        """Of the policy in a state, by the target critics: [M, B], in units of the value scale."""
        noise_MBA = torch.zeros(*z_MBD.shape[:2], self.model.table.action_dim, device=z_MBD.device)
        return self._q(self.target, z_MBD, self._action(z_MBD, noise_MBA)).mean(1)

    def _action(self, z_MBD: torch.Tensor, noise_MBA: torch.Tensor) -> torch.Tensor:
        """The policy's mean action, or a sample where actions are discrete: [M, B, A], masked."""
        return self._sample(self.actor.head(z_MBD), noise_MBA)

    def _sample(self, head_MBA: torch.Tensor, noise_MBA: torch.Tensor) -> torch.Tensor:
        return sample(self.actor, head_MBA, noise_MBA * self.tasks.discrete_M11, self.tasks, slice(None))

    def _noisy_action(self, z_MBD: torch.Tensor, noise_MBA: torch.Tensor) -> torch.Tensor:
        """That action with clipped noise, so that a target is a mean over actions close by."""
        clipped_MBA = (self._config.target_noise * noise_MBA).clamp(-NOISE_CLIP, NOISE_CLIP)
        clipped_MBA = clipped_MBA * self.tasks.mask_M1A * ~self.tasks.discrete_M11
        return (self._action(z_MBD, noise_MBA) + clipped_MBA).clamp(-1, 1)

    def _q(self, critic: StackedCritic, z_MBD: torch.Tensor, action_MBA: torch.Tensor) -> torch.Tensor:
        """[M, N, B], in units of the value scale."""
        values: torch.Tensor = critic(torch.cat([z_MBD, action_MBA], -1))
        return values

    def _reward(self, z_MBD: torch.Tensor, action_MBA: torch.Tensor) -> torch.Tensor:
        """[M, B], in units of the value scale."""
        logits = self.model.reward_logits(z_MBD, action_MBA, self._task(z_MBD.shape[1]))
        return self.model.decode_reward(logits) / self._value_scale_P1

    def _continue(self, z_MBD: torch.Tensor) -> torch.Tensor:
        return continue_probability(self.model, z_MBD, self._task(z_MBD.shape[1]))

    def _task(self, rows: int) -> torch.Tensor:
        return self.tasks.task_M1.expand(-1, rows)

    def _random(self, update: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers of transitions [M, B] and standard normal noise [M, B, A] of an update."""
        block, position = divmod(update, NOISE_BLOCK)
        if block != self._block:
            self._block, self._drawn = block, self._draw_block(block)
        numbers, noise = self._drawn
        return numbers[position], noise[position]

    def _draw_block(self, block: int) -> tuple[torch.Tensor, torch.Tensor]:
        device, size = self._transitions.z_FD.device, (NOISE_BLOCK, self._config.batch_size)
        numbers, noise = [], []
        for member, below_S in zip(self.members, self._priority_MS.double().cumsum(1), strict=True):
            generator = torch.Generator(device).manual_seed(self._stream(f"block {block}", member))
            # Below 1 in float64 as well, so that no number lies beyond the last transition of the member's task.
            share = torch.rand(size, generator=generator, device=device, dtype=torch.float64)
            numbers.append(torch.searchsorted(below_S, share * below_S[-1], right=True))
            noise.append(torch.randn(*size, self.model.table.action_dim, generator=generator, device=device))
        return torch.stack(numbers, 1), torch.stack(noise, 1)

    def _prioritise(self, number_MB: torch.Tensor, error_MB: torch.Tensor) -> None:
        """Draw transitions with large critic errors more often: (|error| / mean |error| + 0.1)^priority.

        Values of rare rewards spread along few transitions, which uniform sampling seldom draws.
        Source: prioritised replay (arXiv 1511.05952), without importance weights.
        """
        relative_MB = error_MB / error_MB.mean(1, keepdim=True).clamp(min=1e-8) + LEAST_PRIORITY
        self._priority_MS.scatter_(1, number_MB, relative_MB**self._config.priority)

    def _parts(self) -> dict[str, Any]:
        return {**super()._parts(), "average": self._average}

    def state_dict(self) -> dict[str, Any]:
        drawn = {"priority": self._priority_MS, "block": self._block, "drawn": list(self._drawn)}
        return {**super().state_dict(), **drawn, "weight": self._weight_MB}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._priority_MS, self._block, self._drawn = state["priority"], state["block"], tuple(state["drawn"])
        self._weight_MB = state["weight"]


def split_starts(weights: Sequence[float], states: int) -> list[int]:
    """How many of `states` are rolled out over each horizon: in proportion to the weights, at least one each."""
    counts = [max(round(weight * states), 1) for weight in weights]
    counts[0] += states - sum(counts)
    return counts


def _together(
    function: Callable[..., torch.Tensor], parts: Sequence[tuple[torch.Tensor, ...]]
) -> Sequence[torch.Tensor]:
    """Call `function` of tensors [M, B, ...] once for all parts, concatenated along B."""
    if not parts:
        return ()
    joined = function(*(torch.cat(column, 1) for column in zip(*parts, strict=True)))
    return joined.split([part[0].shape[1] for part in parts], 1)
