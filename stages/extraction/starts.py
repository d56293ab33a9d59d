"""Where imagination starts: frames encoded once, with the action that was taken there.

The encoder and the frames are fixed during extraction, so encoding at every iteration (or loading whole windows to use
their first frame, as the released code does) would repeat the same work. Where the frames come from (a store, or what
was saved of one beside a model) is decided in start_frames.py.

Dimension letters: K tasks, N frames kept per task, B first frames of episodes, D latent, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..world_model.networks import WorldModel
from ..world_model.start_frames import StartFrames

_ENCODE_ROWS = 4096


@dataclass(frozen=True)
class StartLatents:
    """Latents and actions of frames, and latents of the first frames of episodes."""

    z_KND: torch.Tensor
    action_KNA: torch.Tensor
    initial_z_KBD: torch.Tensor
    """Encoded first observations of B episodes."""
    value_scale_K: torch.Tensor
    """Root mean square reward / (1 - discount): the typical size of a value in this data."""
    row_of_task: dict[int, int]
    """Position in the K dimension by task id."""
    disagreement_K: torch.Tensor | None = None
    """Mean disagreement of the model's heads on these latents and actions; None if it has none."""


def encode_starts(
    model: WorldModel,
    task_ids: Sequence[int],
    frames_of: Callable[[str], StartFrames],
    advance: Callable[[], None] = lambda: None,
) -> StartLatents:
    """Encode the frames of each task, which `frames_of` gives by its name, equally many for all of them.

    `advance` is called after each task.
    """
    device = next(model.parameters()).device
    latents, actions, initials, scales, disagreements = [], [], [], [], []
    for k in task_ids:
        spec = model.table[k]
        frames = frames_of(spec.name)
        latents.append(encode_frames(model, frames.observation_NO, k, device))
        actions.append(F.pad(frames.action_NA, (0, model.table.action_dim - spec.action_dim)))
        initials.append(encode_frames(model, frames.initial_BO, k, device))
        assert spec.discount is not None
        scales.append(torch.tensor(max(frames.reward_rms / (1 - spec.discount), 1e-3)))
        if model.config.disagreement_heads:
            disagreements.append(_mean_disagreement(model, latents[-1], actions[-1].to(device), k))
        advance()
    return StartLatents(
        torch.stack(latents),
        torch.stack(actions).to(device),
        torch.stack(initials),
        torch.stack(scales).to(device),
        {k: row for row, k in enumerate(task_ids)},
        torch.stack(disagreements) if disagreements else None,
    )


@torch.no_grad()
def encode_frames(model: WorldModel, observation_NO: torch.Tensor, task: int, device: torch.device) -> torch.Tensor:
    """Latents [N, D] of unpadded observations of a task, on `device`."""
    latents = []
    padding = model.table.observation_dim - observation_NO.shape[1]
    for part in observation_NO.split(_ENCODE_ROWS):
        padded = F.pad(part, (0, padding)).to(device)
        latents.append(model.encode(padded, torch.full((len(part),), task, device=device)))
    return torch.cat(latents)


@torch.no_grad()
def _mean_disagreement(model: WorldModel, z_ND: torch.Tensor, action_NA: torch.Tensor, task: int) -> torch.Tensor:
    parts = []
    for z, action in zip(z_ND.split(_ENCODE_ROWS), action_NA.split(_ENCODE_ROWS), strict=True):
        parts.append(model.disagreement(z, action, torch.full((len(z),), task, device=z.device)))
    return torch.cat(parts).mean()
