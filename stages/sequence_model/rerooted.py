"""An AWM that restarts every K steps from its own prediction: between a Markov model (K = 1) and an AWM (K = H).

The gradient path through predicted states has length t / K. K trades the accuracy of
state-based models against the bounded gradients of action-based ones.

Dimension letters: B batch, T steps, R roots, O observation, A action.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ..layers.gradients import scale_gradient
from .sequence import ActionModel


class ReRootedModel(ActionModel):
    """Trained on segments of `stride` steps, each from an observation of the data."""

    in_parallel = False

    def _span(self) -> int:
        return self.config.stride

    def fit(self, observation_BTO: torch.Tensor, action_BTA: torch.Tensor, task_B: torch.Tensor) -> torch.Tensor:
        T, K = action_BTA.shape[1], self.config.stride
        padded = F.pad(action_BTA, (0, 0, 0, -T % K)).unflatten(1, (-1, K))
        root_BRO = observation_BTO[:, ::K]
        task_BR = task_B[:, None].expand(root_BRO.shape[:2])
        stretches = self._all_at_once(root_BRO.flatten(0, 1), padded.flatten(0, 1), task_BR.flatten())
        return stretches.unflatten(0, task_BR.shape).flatten(1, 2)[:, :T]

    def _predict(self, first_BO: torch.Tensor, action_BTA: torch.Tensor, task_B: torch.Tensor) -> torch.Tensor:
        parts = []
        for stretch_BKA in action_BTA.split(self.config.stride, 1):
            parts.append(self.complete_all(self._all_at_once(first_BO, stretch_BKA, task_B), first_BO, task_B))
            first_BO = scale_gradient(parts[-1][:, -1], self.config.feedback_gradient)
        return torch.cat(parts, 1)

    def _begin(self, first_BO: torch.Tensor, task_B: torch.Tensor) -> Any:
        return super()._begin(first_BO, task_B), first_BO, 0

    def _advance(self, carry: Any, action_BA: torch.Tensor, task_B: torch.Tensor) -> tuple[torch.Tensor, Any]:
        inner, root_BO, steps = carry
        observation_BO, inner = super()._advance(inner, action_BA, task_B)
        observation_BO = self.complete(observation_BO, root_BO, steps + 1, task_B)
        if steps + 1 < self.config.stride:
            return observation_BO, (inner, root_BO, steps + 1)
        root_BO = scale_gradient(observation_BO, self.config.feedback_gradient)
        return observation_BO, self._begin(root_BO, task_B)
