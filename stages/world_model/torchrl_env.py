"""A task inside a frozen world model as a TorchRL environment: latents for observations, predicted rewards.

Dimension letters: B environments, N start observations, O observation, A action (the task's own), D latent.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.data import Binary, Bounded, Composite, OneHot, Unbounded
from torchrl.envs import ModelBasedEnvBase

from ...pipeline.errors import ConfigError
from .networks import WorldModel


class WorldModelEnv(ModelBasedEnvBase):
    """Episodes of one task, imagined by a world model.

    Observations are latents under the key `latent` [D]; actions are in [-1, 1], or one-hot where they are discrete.
    An episode ends (terminated) where the model gives it less than half a chance to continue, and is truncated after
    `max_steps`. Gradients flow through `step` to the actions.
    """

    def __init__(
        self,
        model: WorldModel,
        task: str,
        starts_NO: torch.Tensor,
        *,
        max_steps: int | None = None,
        batch_size: tuple[int, ...] | int = (),
        device: str | torch.device | None = None,
    ) -> None:
        """Args:
            model: with step dynamics; its parameters get no gradient if it is frozen, as `from_pretrained` gives it.
            starts_NO: [N, O] observations, environment units, of which each reset draws with replacement.
            max_steps: steps of an episode; None is the task's own limit.
            batch_size: environments that advance together; an int is one dimension.
            device: None is the model's.
        Raises:
            TaskError: the model has no such task, or the start observations are of another width.
            ConfigError: the model predicts whole action sequences, not steps.
        """
        if model.config.dynamics != "step":
            raise ConfigError(f"WorldModelEnv: expected a model with dynamics=step, found {model.config.dynamics}")
        spec = model.table.spec_of(task)
        spec.check_observation(starts_NO.shape[-1])
        device = model.bins_M.device if device is None else torch.device(device)
        shape = torch.Size([batch_size] if isinstance(batch_size, int) else batch_size)
        step = TensorDictModule(
            _Step(model, model.table.id_of(task), spec.action_dim, max_steps or spec.episode_length),
            in_keys=["latent", "action", "step_count"],
            out_keys=["latent", "reward", "terminated", "truncated", "done", "step_count"],
        )
        super().__init__(step, device=device, batch_size=shape)
        self.task = spec
        self._starts_NO = starts_NO.to(device)
        self._generator = torch.Generator(device)
        state = {
            "latent": Unbounded((*shape, model.config.latent_dim), device=device),
            "step_count": Unbounded((*shape, 1), dtype=torch.int64, device=device),
        }
        self.observation_spec = Composite(state, shape=shape)
        self.state_spec = Composite(state, shape=shape)
        width = (*shape, spec.action_dim)
        self.action_spec = (
            OneHot(spec.action_dim, shape=width, dtype=torch.float32, device=device)
            if spec.action_kind == "discrete"
            else Bounded(-1.0, 1.0, width, device=device)
        )
        self.reward_spec = Unbounded((*shape, 1), device=device)
        flag = Binary(shape=(*shape, 1), dtype=torch.bool, device=device)
        self.done_spec = Composite(
            {"done": flag, "terminated": flag.clone(), "truncated": flag.clone()}, shape=shape, device=device
        )

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDict:
        dynamics: Any = self.world_model.module
        count = self.batch_size.numel()
        drawn = torch.randint(len(self._starts_NO), (count,), generator=self._generator, device=self.device)
        with torch.no_grad():
            latent = dynamics.model.encode(self._starts_NO[drawn], self.task.name).reshape(*self.batch_size, -1)
        fresh = TensorDict(
            {"latent": latent, "step_count": torch.zeros(*self.batch_size, 1, dtype=torch.int64, device=self.device)},
            batch_size=self.batch_size,
            device=self.device,
        )
        if tensordict is not None and "_reset" in tensordict and "latent" in tensordict:
            for name in ("latent", "step_count"):  # the other environments of the batch continue
                fresh[name] = torch.where(tensordict["_reset"], fresh[name], tensordict[name])
        return fresh.update(self.full_done_spec.zero())

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self._generator.manual_seed(seed)


class _Step(torch.nn.Module):
    """One step of the model, on any batch shape."""

    def __init__(self, model: WorldModel, task: int, action_dim: int, max_steps: int) -> None:
        super().__init__()
        self.model, self._task, self._max_steps = model, task, max_steps
        self._padding = model.table.action_dim - action_dim

    def forward(self, latent: torch.Tensor, action: torch.Tensor, step_count: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[..., D], [..., A], [..., 1] -> latent, reward, terminated, truncated, done, step_count."""
        shape = latent.shape[:-1]
        z_BD = latent.reshape(-1, latent.shape[-1])
        padded_BA = F.pad(action.reshape(len(z_BD), -1).to(z_BD.dtype), (0, self._padding))
        task_B = torch.full((len(z_BD),), self._task, device=z_BD.device)
        next_BD, reward_BM, continue_B = self.model.step(z_BD, padded_BA, task_B)
        reward = self.model.decode_reward(reward_BM).reshape(*shape, 1)
        terminated = torch.zeros_like(step_count, dtype=torch.bool)
        if continue_B is not None and bool(self.model.terminates_K[self._task]):
            terminated = (continue_B < 0).reshape(*shape, 1)
        step_count = step_count + 1
        truncated = ~terminated & (step_count >= self._max_steps)
        return next_BD.reshape(latent.shape), reward, terminated, truncated, terminated | truncated, step_count
