"""From the policy's output to actions, for several members: squash, noise, and the components that are padding.

Dimension letters: M members, B batch, A action.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import losses


class Actions:
    """The action spaces of all members, of one kind, and their streams of noise."""

    def __init__(
        self, mask_MA: torch.Tensor, discrete: bool, temperature: float, generators: Sequence[torch.Generator]
    ) -> None:
        """Args:
        mask_MA: 1 if an action component, or a choice, is one of the member's own.
        temperature: of the relaxed choice where actions are discrete.
        generators: of each member.
        """
        self.mask_MA, self._discrete, self._temperature = mask_MA, discrete, temperature
        self._generators = generators

    def squash(self, pre_MBA: torch.Tensor, noise: bool = True) -> torch.Tensor:
        """The action of a policy's output; a discrete one is a relaxed sample, or without noise its softmax."""
        mask = self.mask_MA[:, None]
        if not self._discrete:
            return losses.squash(pre_MBA, None, self._temperature) * mask
        gumbel = torch.zeros_like(pre_MBA)
        if noise:
            uniform = self._uniform(pre_MBA.shape[1]).clamp(1e-20, 1 - 1e-7)
            gumbel = -torch.log(-torch.log(uniform))
        return losses.squash(pre_MBA.masked_fill(mask == 0, -torch.inf), gumbel, self._temperature)

    def perturb(self, action_MBA: torch.Tensor, deviation: float, clip: float = torch.inf) -> torch.Tensor:
        """Gaussian noise on the members' own components, clipped to [-clip, clip]; back among the actions.

        Deviation and clip are for actions in [-1, 1]; choices, in [0, 1], get half of both.
        """
        batch, actions = action_MBA.shape[1:]
        noise = torch.stack(
            [torch.randn(batch, actions, generator=g, device=action_MBA.device) for g in self._generators]
        )
        scale = 0.5 if self._discrete else 1.0
        return self._among_actions(action_MBA, (noise * deviation * scale).clamp(-clip * scale, clip * scale))

    def uniform(self, batch: int) -> torch.Tensor:
        """[M, batch, A] uniform over [-1, 1], or over the choices."""
        uniform = self._uniform(batch)
        if self._discrete:
            return self._among_actions(torch.zeros_like(uniform), uniform)
        return (2 * uniform - 1) * self.mask_MA[:, None]

    def _among_actions(self, action: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        mask = self.mask_MA[:, None]
        if self._discrete:
            noise = noise.masked_fill(mask == 0, -torch.inf)
        return losses.perturb(action, noise, self._discrete) * mask

    def _uniform(self, batch: int) -> torch.Tensor:
        size = batch, self.mask_MA.shape[1]
        return torch.stack([torch.rand(size, generator=g, device=self.mask_MA.device) for g in self._generators])
