"""Members split into groups that train in parallel, one CPU core each.

Batched matmuls of this size gain little from a second thread inside each operation (and lose where waiting threads
sleep: OMP_WAIT_POLICY=PASSIVE), so the second core takes half of the members. Torch releases the interpreter lock
while it computes. On a GPU one group is the fastest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain, repeat
from typing import Any

import torch

from .program import PolicySpec, Program


def split_members(members: Sequence[PolicySpec], groups: int) -> list[list[PolicySpec]]:
    """Deal members into at most `groups` lists, imagining and cloning ones evenly, those that imagine first in each."""
    imagining = [member for member in members if member.imagines]
    cloning = [member for member in members if not member.imagines]
    parts = [[*imagining[g::groups], *cloning[g::groups]] for g in range(groups)]
    return [part for part in parts if part]


class MemberGroups:
    """Several groups in step, each of them a program per algorithm."""

    def __init__(
        self,
        members: Sequence[PolicySpec],
        groups: int,
        build: Callable[[list[PolicySpec]], list[Program]],
        narrowed: Callable[[int], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """Args:
        narrowed: the context of the updates of a program, by the width of its critics.
        """
        self._narrowed = narrowed
        self.groups = [build(part) for part in split_members(members, groups)]

    @property
    def programs(self) -> list[Program]:
        """Of all groups."""
        return [program for group in self.groups for program in group]

    @contextmanager
    def running(self) -> Iterator[Callable[[int], list[dict[str, torch.Tensor]]]]:
        """Yields `update(iteration)`, which updates every group and returns the metrics of each program."""

        def update(group: list[Program], iteration: int) -> list[dict[str, torch.Tensor]]:
            metrics = []
            for program in group:
                started = time.thread_time()
                with self._narrowed(max(program.networks.critic_units, default=0)):
                    metrics.append(program.update(iteration))
                program.cpu_seconds += time.thread_time() - started
            return metrics

        with self._pool() as pool:
            yield lambda iteration: list(chain(*pool.map(update, self.groups, repeat(iteration))))

    def imagined_returns(self) -> Iterator[tuple[Program, tuple[torch.Tensor, torch.Tensor]]]:
        """Each program with its `Program.imagined_returns`."""
        with self._pool() as pool:
            found = pool.map(lambda group: [program.imagined_returns() for program in group], self.groups)
            yield from zip(self.programs, chain.from_iterable(found), strict=True)

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

    def state_dict(self) -> list[list[dict[str, Any]]]:
        return [[program.state_dict() for program in group] for group in self.groups]

    def load_state_dict(self, state: list[list[dict[str, Any]]]) -> None:
        for program, values in zip(self.programs, chain.from_iterable(state), strict=True):
            program.load_state_dict(values)
