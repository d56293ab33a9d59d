"""Whether two-hot heads can show the rewards and values of a store."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...datasets.store import TaskRows


def beyond_bins(tasks: Iterable[TaskRows], bin_limit: float, key: str, *, values: bool) -> str | None:
    """What to warn of where rewards or values lie beyond symexp(bin_limit), the largest a head can predict; None if
    none do.

    Args:
        tasks: of the store; those packed by versions that did not record their range are passed over.
        bin_limit: of the bins, in symlog units.
        key: the setting that decides it.
        values: whether there are two-hot heads of values, too.
    """
    covered = math.expm1(bin_limit)
    rewards, returns = {}, {}
    for task in tasks:
        low, high = task.summary.reward_min, task.summary.reward_max
        if low is not None and high is not None:
            rewards[task.spec.name] = (low, high)
            returns[task.spec.name] = _largest_value(task, max(abs(low), abs(high))) if values else 0.0
    largest = max([*returns.values(), *(abs(bound) for bounds in rewards.values() for bound in bounds)], default=0.0)
    if largest <= covered:
        return None
    what, beyond = "rewards", {name: found for name, found in rewards.items() if max(map(abs, found)) > covered}
    listed = [f"{name} {low:,.6g} to {high:,.6g}" for name, (low, high) in beyond.items()]
    if not listed:
        what, listed = "values", [f"{name} up to {value:,.6g}" for name, value in returns.items() if value > covered]
    more = f" and {len(listed) - 5} more tasks" if len(listed) > 5 else ""
    return (
        f"{what} exceed the {what[:-1]} bins, which end at {covered:,.0f}, and would be clipped: "
        f"{'; '.join(listed[:5])}{more}. "
        f"Set {key}={math.ceil(math.log1p(largest))} (it is {bin_limit:g}), or scale the rewards"
    )


def _largest_value(task: TaskRows, reward: float) -> float:
    """Estimate of the largest |value|: that of an episode's return, or what the discounted sum of the largest |reward|
    over an episode cannot exceed if that is less."""
    discount = float(task.spec.discount or 0.0)
    discounted = reward * (1 - discount**task.spec.episode_length) / (1 - discount)
    return min(discounted, max(abs(task.summary.return_min), abs(task.summary.return_max)))
