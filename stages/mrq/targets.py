"""Targets of a burst of encoder updates, embedded once per observation instead of once per draw.

The target encoder is fixed for a period, whose 250 updates sample 320,000 next observations at the published settings:
from a replay of 20,000, each about 16 times.

Dimension letters: K updates of a burst, M members, T steps of a window, B batch, N observations, D latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

LIMIT_BYTES = 2**29
"""Of the embeddings of all members; above it each draw is embedded."""


class Slots(Protocol):
    """The part of a `learner.WindowSource` used here."""

    def slots_of(self, start_B: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor: ...
    def observations(self, start_B: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class SharedTargets:
    """Embeddings of all observations that a burst samples, and the index of each sample among them."""

    embedding: torch.Tensor
    """[M N, D]."""
    index_KMTB: torch.Tensor

    def of_update(self, number: int) -> torch.Tensor:
        """[M, T, B, D]."""
        return F.embedding(self.index_KMTB[number], self.embedding)


def shared_targets(
    sources: Sequence[Slots],
    start_KMB: torch.Tensor,
    horizon: int,
    embed: Callable[[torch.Tensor], torch.Tensor],
    width: int,
) -> SharedTargets | None:
    """Embed the next observations of the windows that start at `start_KMB`.

    Args:
        sources: of each member, of observations that are vectors.
        horizon: T.
        embed: target of observations, [M, n, O] -> [M, n, D].
        width: D.
    Returns:
        None if it would not save half of the work, or take more than LIMIT_BYTES.
    """
    updates, members, batch = start_KMB.shape
    offsets = torch.arange(1, horizon + 1, device=start_KMB.device)
    slots = [source.slots_of(start_KMB[:, m].flatten(), offsets) for m, source in enumerate(sources)]
    drawn = [torch.zeros(int(own.max()) + 1, dtype=torch.bool, device=own.device) for own in slots]
    for seen, own in zip(drawn, slots, strict=True):
        seen[own] = True
    count = max(int(seen.sum()) for seen in drawn)
    if 2 * count > updates * batch * horizon or 4 * members * count * width > LIMIT_BYTES:
        return None
    first = torch.zeros(1, dtype=torch.int64, device=start_KMB.device)
    slot_MN = pad_sequence([seen.nonzero()[:, 0] for seen in drawn], batch_first=True)
    embedding = torch.empty(members, count, width, device=start_KMB.device)
    # In parts that stay in a core's cache.
    for part, place in zip(slot_MN.split(batch, 1), embedding.split(batch, 1), strict=True):
        observation = torch.stack([s.observations(own, first)[:, 0] for s, own in zip(sources, part, strict=True)])
        place.copy_(embed(observation))
    index = [(seen.cumsum(0) - 1)[own] + m * count for m, (seen, own) in enumerate(zip(drawn, slots, strict=True))]
    index_KMTB = torch.stack([one.unflatten(0, (updates, batch)).transpose(1, 2) for one in index], 1)
    return SharedTargets(embedding.flatten(0, 1), index_KMTB)
