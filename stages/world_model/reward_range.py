"""Check that a two-hot reward head can represent the rewards of a store."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...datasets.store import TaskSummary


def rewards_beyond_bins(tasks: Iterable[TaskSummary], bin_limit: float, key: str) -> str | None:
    """What to warn of where rewards lie beyond symexp(bin_limit), the largest a head can predict; None if none do.

    Args:
        tasks: of the store; those packed by versions that did not record their range are passed over.
        bin_limit: of the bins, in symlog units.
        key: the setting that decides it.
    """
    covered = math.expm1(bin_limit)
    ranges = {
        task.task: (task.reward_min, task.reward_max)
        for task in tasks
        if task.reward_min is not None and task.reward_max is not None
    }
    beyond = {name: found for name, found in ranges.items() if max(map(abs, found)) > covered}
    if not beyond:
        return None
    largest = max(abs(bound) for found in beyond.values() for bound in found)
    listed = "; ".join(f"{name} {low:,.6g} to {high:,.6g}" for name, (low, high) in list(beyond.items())[:5])
    more = f" and {len(beyond) - 5} more tasks" if len(beyond) > 5 else ""
    return (
        f"rewards exceed the reward bins, which end at {covered:,.0f}, and would be clipped: {listed}{more}"
        f". Set {key}={math.ceil(math.log1p(largest))} (it is {bin_limit:g}), or scale the rewards"
    )
