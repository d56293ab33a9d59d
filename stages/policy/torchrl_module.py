"""A policy as a TorchRL module, for collectors, rollouts and losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict.nn import TensorDictModule
from torch import nn

from .policy import Policy


class PolicyModule(TensorDictModule):
    """`observation` [..., O] -> `action` [..., A], as `make_env(task, backend="torchrl")` has them; with
    `latents=True`, `latent` [..., D] -> `action`, for a `WorldModelEnv`. Deterministic."""

    def __init__(self, policy: Policy, *, latents: bool = False) -> None:
        """Args:
            policy: one without a memory.
            latents: act on the world model's latents; the policy must have been extracted from the model.
        Raises:
            TypeError: the policy does not act on latents.
        """
        if latents and not hasattr(policy, "act_on_latents"):
            raise TypeError(f"{type(policy).__name__} does not act on latents; expected a policy of the extract stage")
        act: Callable[[torch.Tensor], torch.Tensor] = getattr(policy, "act_on_latents" if latents else "act")
        super().__init__(_Batched(policy, act), in_keys=["latent" if latents else "observation"], out_keys=["action"])


class _Batched(nn.Module):
    """Any batch shape, also none, for a function of rows."""

    def __init__(self, policy: Any, act: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.policy, self._act = policy, act

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self._act(rows.reshape(-1, rows.shape[-1])).reshape(*rows.shape[:-1], -1)
