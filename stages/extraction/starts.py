"""Where imagination starts: dataset frames encoded once, with the action that the data took there.

The encoder and the data are fixed during extraction, so encoding at every iteration (or loading whole windows to
use their first frame, as the released code does) would repeat the same work.

Dimension letters: K tasks, N frames kept per task, D latent, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ...datasets.store import TaskRows, TaskStore
from ...datasets.windows import WindowIndex
from ...pipeline.seeding import derive_seed
from ..world_model.networks import WorldModel

_ENCODE_ROWS = 4096


@dataclass(frozen=True)
class Starts:
    """Latents and actions of dataset frames, and latents of the first frames of episodes."""

    z_KND: torch.Tensor
    action_KNA: torch.Tensor
    initial_z_KBD: torch.Tensor
    """Encoded first observations of B episodes."""
    value_scale_K: torch.Tensor
    """Root mean square reward / (1 - discount): the size of a value in this data."""
    row_of_task: dict[int, int]
    """Position in the K dimension by task id."""
    disagreement_K: torch.Tensor | None = None
    """Mean disagreement of the model's heads on these latents and actions; None where it has none."""


def encode_starts(
    model: WorldModel,
    store: TaskStore,
    task_ids: list[int],
    count: int,
    initial: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> Starts:
    """Draw `count` frames of each task (with replacement only where the task has fewer) and encode them.

    The draw depends on (seed, task name) alone, so a task gets the same frames whichever others it runs with.
    `advance` is called after each task.
    """
    device = next(model.parameters()).device
    latents, actions, initials, scales, disagreements = [], [], [], [], []
    for k in task_ids:
        rows = store.tasks[k]
        random = np.random.default_rng(derive_seed("starts", rows.spec.name, seed))
        index = WindowIndex.build([rows], 1, "all", 0.0)
        total = int(index.counts[0])
        windows = random.choice(total, min(count, total), replace=False)
        windows = np.sort(np.concatenate([windows, random.integers(total, size=count - len(windows))]))
        frames, _, _ = index.locate(windows)
        latents.append(_encode(model, rows, frames, k, device))
        taken = rows.rows[torch.from_numpy(frames)]
        actions.append(taken[:, model.table.observation_dim : -1])
        first = rows.offsets[:-1][random.integers(len(rows.terminated), size=initial)]
        initials.append(_encode(model, rows, first, k, device))
        assert rows.spec.discount is not None
        scale = taken[:, -1].double().square().mean().sqrt() / (1 - rows.spec.discount)
        scales.append(scale.clamp(min=1e-3).float())
        if model.config.disagreement_heads:
            disagreements.append(_mean_disagreement(model, latents[-1], actions[-1].to(device), k))
        advance()
    return Starts(
        torch.stack(latents),
        torch.stack(actions).to(device),
        torch.stack(initials),
        torch.stack(scales).to(device),
        {k: row for row, k in enumerate(task_ids)},
        torch.stack(disagreements) if disagreements else None,
    )


@torch.no_grad()
def _encode(model: WorldModel, rows: TaskRows, frames: np.ndarray, task: int, device: torch.device) -> torch.Tensor:
    latents = []
    for part in torch.from_numpy(frames).split(_ENCODE_ROWS):
        observation = rows.rows[part][:, : model.table.observation_dim]
        latents.append(model.encode(observation.to(device), torch.full((len(part),), task, device=device)))
    return torch.cat(latents)


@torch.no_grad()
def _mean_disagreement(model: WorldModel, z_ND: torch.Tensor, action_NA: torch.Tensor, task: int) -> torch.Tensor:
    parts = []
    for z, action in zip(z_ND.split(_ENCODE_ROWS), action_NA.split(_ENCODE_ROWS), strict=True):
        parts.append(model.disagreement(z, action, torch.full((len(z),), task, device=z.device)))
    return torch.cat(parts).mean()
