"""The training step of MR.Q, for several members at once, in the order of the published algorithm.

One call of `train` is one step: every `period` steps the targets are copied and the encoder is trained for as many
updates in a row, each on windows of its own; every step then updates the values, the policy, and the priorities of the
windows that the values saw.

Dimension letters: M members, B batch, T steps of a window, O observation, A action, D latent.
Source: MR.Q (arXiv 2501.16142), algorithm 1. Deviations are in `config.ReleasedMrqConfig`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ...pipeline.accelerator import autocast
from ...pipeline.errors import CheckpointError, StageError
from ..layers.gradients import clip_members
from . import losses
from .actions import Actions
from .config import LearnConfig
from .gradients import frozen
from .networks import MrqEncoder, PolicyNetwork, TwinValues, initialise
from .priorities import Priorities
from .replay import ReplayWindows
from .targets import SharedTargets, shared_targets


class WindowSource(Protocol):
    """Where windows come from: a Replay, or the stored episodes of a task."""

    priorities: Priorities

    @property
    def used(self) -> int: ...
    @property
    def has_terminated(self) -> bool: ...
    def reward_scale(self, released: bool) -> float: ...
    def windows(self, start_B: torch.Tensor, horizon: int) -> ReplayWindows: ...
    def unpadded_windows(self, start_B: torch.Tensor, horizon: int) -> ReplayWindows: ...
    def slots_of(self, start_B: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor: ...
    def observations(self, start_B: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class Shapes:
    """Sizes that all members share, and masks and discounts per member."""

    observation: tuple[int, ...]
    """(O,) of vectors, (C, 84, 84) of images."""
    discrete: bool
    action_mask_MA: torch.Tensor
    """1 if an action component is one of the member's own."""
    discount_M: torch.Tensor
    """Per step."""


@dataclass(frozen=True)
class OfflineTerms:
    """Settings for learning from fixed data."""

    behaviour_weight_M: torch.Tensor
    """lambda in lambda * mean|Q| * distance to the data's action, added to the policy loss."""
    clamp_targets: bool
    """Keep the bootstrap within the range of the targets of the previous period; 0 in the first."""


class Learner:
    """Networks, their targets and optimisers, and the order of their updates."""

    def __init__(
        self,
        shapes: Shapes,
        config: LearnConfig,
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
        offline: OfflineTerms | None = None,
    ) -> None:
        """Args:
        seeds: of each member; sets its initial weights, windows and noise, independent of the other members.
        offline: None while an environment keeps adding data.
        """
        self.shapes, self.config, self._offline = shapes, config, offline
        members, action_dim = shapes.action_mask_MA.shape
        self.members, self.device = members, torch.device(device)
        design, widths = config.design, config.networks
        at_first = [torch.Generator().manual_seed(seed % 2**63) for seed in seeds]
        self.encoder = MrqEncoder(members, shapes.observation, action_dim, widths, design)
        self.values = TwinValues(members, widths, design.linear_value)
        self.policy = PolicyNetwork(members, action_dim, widths)
        for module in (self.encoder, self.values, self.policy):
            initialise(module, members, at_first)
            module.to(self.device)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.target_values = copy.deepcopy(self.values).requires_grad_(False)
        self.target_policy = copy.deepcopy(self.policy).requires_grad_(False)
        trained = (
            ("encoder", self.encoder, config.encoder_lr),
            ("values", self.values, config.value_lr),
            ("policy", self.policy, config.policy_lr),
        )
        self._optimizers = {
            name: torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=config.weight_decay, fused=True)
            for name, module, lr in trained
        }
        self._generators = [torch.Generator(self.device).manual_seed(seed % 2**63) for seed in seeds]
        self.actions = Actions(
            shapes.action_mask_MA.to(self.device), shapes.discrete, config.gumbel_temperature, self._generators
        )
        self._discount_M = shapes.discount_M.to(self.device)
        self._bins_K = losses.reward_bins(widths.num_bins, widths.bin_limit).to(self.device)
        self._scale_M = torch.ones(members, device=self.device)
        self._target_scale_M = torch.zeros(members, device=self.device)
        self._clamp_M2 = torch.zeros(members, 2, device=self.device)
        self._behaviour_weight_M = None if offline is None else offline.behaviour_weight_M.to(self.device)
        self._seen_M2 = torch.zeros(members, 2, device=self.device)
        self.steps = 0
        """Calls of `train` so far."""

    # Steps

    def train(self, sources: Sequence[WindowSource], *, update_encoder: bool = True) -> dict[str, torch.Tensor]:
        """One training step. Returns [M] tensors: value_loss, value, policy_loss, reward_scale (rbar, environment
        units), and after a copy the model's losses.

        Args:
            sources: of each member.
            update_encoder: False leaves the encoder as it is.
        """
        with autocast(self.config.precision, self.device, self.config.networks.value_dim):
            return self._train(sources, update_encoder)

    def _train(self, sources: Sequence[WindowSource], update_encoder: bool) -> dict[str, torch.Tensor]:
        metrics: dict[str, torch.Tensor] = {}
        if self.steps % self.config.period == 0:
            self._copy_targets()
            self._check_windows(sources, self.config.return_horizon)
            self._update_scales(sources)
            if update_encoder and self.config.design.model_based:
                metrics |= self._train_encoder(sources, self.config.period)
        self.steps += 1
        metrics["reward_scale"] = self._scale_M
        start_MB = self._starts(sources, self.config.return_horizon, 1)[0]
        z, state_part, values, target, more = self._update_values(sources, start_MB)
        metrics |= more
        metrics |= self._update_policy(z, state_part, self._actions_of(sources, start_MB))
        if self.config.design.prioritised:
            exponent, minimum = self.config.priority_exponent, self.config.min_priority
            priority_MB = losses.lap_priority(values, target, exponent, minimum)
            for source, start_B, priority_B in zip(sources, start_MB, priority_MB, strict=True):
                source.priorities.update(start_B, priority_B)
        return metrics

    def pretrain_encoder(self, sources: Sequence[WindowSource]) -> dict[str, torch.Tensor]:
        """Train the encoder for one period against targets copied at its start; no policy or values are needed."""
        self._copy_targets()
        with autocast(self.config.precision, self.device, self.config.networks.value_dim):
            return self._train_encoder(sources, self.config.period)

    def _copy_targets(self) -> None:
        pairs = (
            (self.target_encoder, self.encoder),
            (self.target_values, self.values),
            (self.target_policy, self.policy),
        )
        with torch.no_grad():
            for target, online in pairs:
                for old, new in zip(target.parameters(), online.parameters(), strict=True):
                    old.copy_(new)

    def _update_scales(self, sources: Sequence[WindowSource]) -> None:
        """rbar' <- rbar, rbar <- mean |r|; with fixed data, both are its mean from the start."""
        self._clamp_M2, self._seen_M2 = self._seen_M2, torch.zeros_like(self._seen_M2)
        if not self.config.design.scale_rewards:
            self._target_scale_M = torch.ones_like(self._scale_M)
            return
        released = self.config.released.reward_scale
        found = torch.tensor([source.reward_scale(released) for source in sources], device=self.device)
        self._target_scale_M = self._scale_M if self._offline is None else found
        self._scale_M = found

    def _train_encoder(self, sources: Sequence[WindowSource], updates: int) -> dict[str, torch.Tensor]:
        self._check_windows(sources, self.config.encoder_horizon)
        starts = self._starts(sources, self.config.encoder_horizon, updates)
        has_terminated_M = torch.tensor([float(source.has_terminated) for source in sources], device=self.device)
        shared = self._shared_targets(sources, starts)
        sums: dict[str, torch.Tensor] = {}
        for number, start_MB in enumerate(starts):
            target = None if shared is None else shared.of_update(number)
            for name, value in self._update_encoder(sources, start_MB, has_terminated_M, target).items():
                sums[name] = sums.get(name, 0) + value / updates
        return sums

    def _shared_targets(self, sources: Sequence[WindowSource], start_KMB: torch.Tensor) -> SharedTargets | None:
        """Return the targets of all updates of a burst if they are the same for every update and draw, else None."""
        if not self.config.design.target_encoder or len(self.shapes.observation) > 1:
            return None
        config, widths = self.config, self.config.networks
        width = widths.state_action_dim if config.design.state_action_target else widths.latent_dim
        return shared_targets(sources, start_KMB, config.encoder_horizon, self._dynamics_target, width)

    def _update_encoder(
        self,
        sources: Sequence[WindowSource],
        start_MB: torch.Tensor,
        has_terminated_M: torch.Tensor,
        target: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """Make one update towards `target` [M, T, B, D]; by default, embeddings of the windows' next observations."""
        config, horizon = self.config, self.config.encoder_horizon
        windows = [s.windows(start_B, horizon) for s, start_B in zip(sources, start_MB, strict=True)]
        action, reward, not_done = (
            torch.stack([getattr(one, name) for one in windows]).transpose(1, 2)
            for name in ("action", "reward", "not_done")
        )
        observation = self._observations(sources, start_MB, list(range(1 if target is not None else horizon + 1)))
        if target is None:
            target = self._dynamics_target(observation[:, 1:].flatten(1, 2)).unflatten(1, (horizon, -1))
        prediction = self.encoder.unroll(self.encoder.encode(observation[:, 0]), action)
        terms = losses.encoder_losses(prediction, target, reward, not_done, self._bins_K)
        sums = {name: value.sum(1) for name, value in terms.items()}
        # Untrained until a terminal state occurs: what it says before drifts with the latents, and is not logged.
        sums["done"] = has_terminated_M * sums["done"]
        total_M = (
            config.dynamics_weight * sums["dynamics"]
            + config.reward_weight * sums["reward"]
            + config.done_weight * sums["done"]
        )
        self._step("encoder", total_M)
        return {f"model_{name}": value.detach() for name, value in sums.items()}

    @torch.no_grad()
    def _dynamics_target(self, observation: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [M, B, D] of next observations [M, B, ...], which the model learns to predict."""
        encoder = self.target_encoder if self.config.design.target_encoder else self.encoder
        target = encoder.encode(observation)
        if self.config.design.state_action_target:
            action = self.actions.squash(self.target_policy(target), noise=False)
            target = encoder.state_action(target, action)
        return target

    def _update_values(
        self, sources: Sequence[WindowSource], start_MB: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Returns z_s of the windows' first states, its part of g's first layer, both values there before the update,
        their target, and metrics."""
        config, horizon = self.config, self.config.return_horizon
        kind = "windows" if config.released.return_form == "masked" else "unpadded_windows"
        windows = [getattr(s, kind)(start_B, horizon) for s, start_B in zip(sources, start_MB, strict=True)]
        reward = torch.stack([one.reward for one in windows]).transpose(1, 2)
        not_done = torch.stack([one.not_done for one in windows]).transpose(1, 2)
        action = torch.stack([one.action[:, 0] for one in windows])
        observation = self._observations(sources, start_MB, [0, horizon])
        with torch.no_grad():
            return_MB, bootstrap_MB = losses.n_step_return(
                reward, not_done, self._discount_M, config.released.return_form
            )
            next_value = self._next_value(observation[:, 1])
            target = losses.value_target(return_MB, bootstrap_MB, next_value, self._scale_M, self._target_scale_M)
            self._seen_M2 = torch.stack(
                [
                    torch.minimum(self._seen_M2[:, 0], target.amin(1)),
                    torch.maximum(self._seen_M2[:, 1], target.amax(1)),
                ],
                1,
            )
        with torch.set_grad_enabled(not config.design.model_based):
            z = self.encoder.encode(observation[:, 0])
            state_part = self.encoder.state_part(z)
            z_sa = self.encoder.with_action(state_part, action)
        values = self.values(z_sa)
        loss_M = losses.value_loss(values, target, huber=config.design.prioritised)
        self._step("values", loss_M)
        if not config.design.model_based:  # the encoder has just changed
            with torch.no_grad():
                state_part = self.encoder.state_part(z)
        return (
            z.detach(),
            state_part,
            values.detach(),
            target,
            {"value_loss": loss_M.detach(), "value": values.detach().mean((1, 2))},
        )

    def _next_value(self, observation: torch.Tensor) -> torch.Tensor:
        """Q' of the target networks at the target policy's perturbed action, [M, B]."""
        z = self.target_encoder.encode(observation)
        action = self.actions.squash(self.target_policy(z))
        action = self.actions.perturb(action, self.config.target_noise, self.config.target_noise_clip)
        values = self.target_values(self.target_encoder.state_action(z, action))
        value = values.amin(-1) if self.config.design.min_of_values else values.mean(-1)
        if self._offline is not None and self._offline.clamp_targets:
            value = value.clamp(self._clamp_M2[:, :1], self._clamp_M2[:, 1:])
        return value

    def _update_policy(
        self, z: torch.Tensor, state_part: torch.Tensor, data_action_MBA: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        with frozen(self.encoder, self.values):
            pre = self.policy(z)
            values = self.values(self.encoder.with_action(state_part, self.actions.squash(pre)))
            loss_M = losses.policy_loss(values, pre, self.actions.mask_MA, self.config.pre_activation_weight)
            if self._behaviour_weight_M is not None and data_action_MBA is not None:
                weight_M = self._behaviour_weight_M * values.detach().abs().mean((1, 2))
                distance_M = losses.behaviour_loss(pre, data_action_MBA, self.actions.mask_MA, self.shapes.discrete)
                loss_M = loss_M + weight_M * distance_M
            self._step("policy", loss_M)
        return {"policy_loss": loss_M.detach()}

    def _step(self, name: str, loss_M: torch.Tensor) -> None:
        """One optimiser step on the members' summed loss; each member's gradient is that of its own loss."""
        optimizer = self._optimizers[name]
        stepped = [optimizer]
        if name == "values" and not self.config.design.model_based:
            stepped.append(self._optimizers["encoder"])
        for one in stepped:
            one.zero_grad(set_to_none=True)
        loss_M.sum().backward()
        if name == "values":
            clip_members(list(self.values.parameters()), self.members, self.config.value_clip_norm)
        for one in stepped:
            one.step()

    # Data and noise

    def _check_windows(self, sources: Sequence[WindowSource], horizon: int) -> None:
        """Raise a DatasetError if there is no window to draw. Once per period: it waits for the device."""
        for source in sources:
            source.priorities.check(horizon, source.used)

    def _starts(self, sources: Sequence[WindowSource], horizon: int, batches: int) -> torch.Tensor:
        """[batches, M, B] first slots of windows; priorities do not change between these batches."""
        size = batches, self.config.batch_size
        drawn = []
        for source, generator in zip(sources, self._generators, strict=True):
            uniform = torch.rand(size, generator=generator, device=self.device, dtype=torch.float64)
            cumulative = source.priorities.cumulative(horizon, source.used)
            drawn.append(losses.draw_by_priority(cumulative, uniform))
        return torch.stack(drawn, 1)

    def _observations(
        self, sources: Sequence[WindowSource], start_MB: torch.Tensor, offsets: list[int]
    ) -> torch.Tensor:
        """[M, T, B, ...] at `offsets` [T] into each window; images are shifted, each by its own offset."""
        at = torch.tensor(offsets).to(self.device, non_blocking=True)
        stacked = torch.stack(
            [source.observations(start_B, at) for source, start_B in zip(sources, start_MB, strict=True)]
        ).transpose(1, 2)
        pad = self.config.shift
        if stacked.dim() == 4 or pad == 0:
            return stacked
        images = stacked.flatten(0, 2)
        generator = self._generators[0]  # images are learned from by one member
        offset = torch.randint(2 * pad + 1, (len(images), 2), generator=generator, device=self.device)
        return losses.random_shift(images, offset, pad).unflatten(0, stacked.shape[:3])

    def _actions_of(self, sources: Sequence[WindowSource], start_MB: torch.Tensor) -> torch.Tensor | None:
        if self._offline is None:
            return None
        return torch.stack([s.windows(b, 1).action[:, 0] for s, b in zip(sources, start_MB, strict=True)])

    @torch.no_grad()
    def explore(self, observation: torch.Tensor) -> torch.Tensor:
        """Actions [M, B, A] for collecting data: the policy's with noise."""
        action = self.actions.squash(self.policy(self.encoder.encode(observation)))
        return self.actions.perturb(action, self.config.exploration_noise)

    # Saving

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on, except the data."""
        return {
            "networks": {name: module.state_dict() for name, module in self._modules().items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()},
            "generators": [generator.get_state() for generator in self._generators],
            **{name: getattr(self, name) for name in _SAVED},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, module in self._modules().items():
            module.load_state_dict(state["networks"][name])
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for generator, saved in zip(self._generators, state["generators"], strict=True):
            if len(saved) != len(generator.get_state()):  # a GPU's generator is another one than a CPU's
                raise CheckpointError(
                    f"the checkpoint was written on another kind of device than {self.device.type}, so its random "
                    "numbers cannot continue here; resume on that device, or start the stage from scratch with --from"
                )
            generator.set_state(saved.cpu())
        for name in _SAVED:
            value = state[name]
            setattr(self, name, value.to(self.device) if isinstance(value, torch.Tensor) else value)

    def _modules(self) -> dict[str, nn.Module]:
        names = ("encoder", "values", "policy", "target_encoder", "target_values", "target_policy")
        return {name: getattr(self, name) for name in names}

    def check_finite(self, metrics: dict[str, torch.Tensor]) -> None:
        """Raise a StageError that names the first loss that is not finite."""
        for name, value in metrics.items():
            if not bool(value.isfinite().all()):
                raise StageError(
                    f"{name} is not finite after {self.steps} training steps: {value.tolist()}. Check the data for "
                    "extreme values, or lower the learning rates"
                )


_SAVED = ("steps", "_scale_M", "_target_scale_M", "_clamp_M2", "_seen_M2")
