"""Members split into groups that are trained side by side, each on a CPU core of its own.

Batched matmuls of this size gain little from a second thread inside each operation (and lose where waiting threads
sleep: OMP_WAIT_POLICY=PASSIVE), so the second core takes half of the members. Torch releases the interpreter lock
while it computes. On a GPU one group is the fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from .first_order import FirstOrderExtraction, Member


def split_members(members: Sequence[Member], groups: int) -> list[list[Member]]:
    """Deal members into at most `groups` lists, imagining and cloning ones evenly, those that imagine first in each."""
    imagining = [member for member in members if member.imagines]
    cloning = [member for member in members if not member.imagines]
    parts = [[*imagining[g::groups], *cloning[g::groups]] for g in range(groups)]
    return [part for part in parts if part]


class MemberGroups:
    """Several FirstOrderExtraction programs in step."""

    def __init__(
        self, members: Sequence[Member], groups: int, build: Callable[[list[Member]], FirstOrderExtraction]
    ) -> None:
        self.groups = [build(part) for part in split_members(members, groups)]

    @contextmanager
    def running(self) -> Iterator[Callable[[int], list[dict[str, torch.Tensor]]]]:
        """Yields `update(iteration)`, which updates every group and returns their metrics."""
        with self._pool() as pool:
            yield lambda iteration: list(pool.map(lambda group: group.update(iteration), self.groups))

    def imagined_returns(self) -> Iterator[tuple[FirstOrderExtraction, torch.Tensor]]:
        """Each group with `FirstOrderExtraction.imagined_returns`, [members of the group]."""
        with self._pool() as pool:
            yield from zip(self.groups, pool.map(lambda group: group.imagined_returns(), self.groups), strict=True)

    @contextmanager
    def _pool(self) -> Iterator[ThreadPoolExecutor]:
        """A thread per group; the torch threads of this process are shared out among them meanwhile."""
        threads = torch.get_num_threads()
        torch.set_num_threads(max(threads // len(self.groups), 1))
        try:
            with ThreadPoolExecutor(len(self.groups), thread_name_prefix="extract") as pool:
                yield pool
        finally:
            torch.set_num_threads(threads)

    def state_dict(self) -> list[dict[str, Any]]:
        return [group.state_dict() for group in self.groups]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        for group, values in zip(self.groups, state, strict=True):
            group.load_state_dict(values)
