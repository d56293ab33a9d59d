"""Which stages the run's `algorithms` ask for: one list, shared out among all stages that make policies."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from ..stage import Stage


def select_stages(
    requested: Sequence[str],
    listed: Sequence[str],
    stage_values: Mapping[str, dict[str, Any]],
    stages: Mapping[str, type[Stage]],
) -> list[str]:
    """The listed stages without those that make algorithms none of which is asked for, in order.

    A stage that makes algorithms and has a setting `algorithms` (`algorithms: ${algorithms}` in base.yaml) keeps there
    what is its own to make, so that what other stages make never makes its artifact stale. What nobody makes stays, for
    the stage to refuse.

    Args:
        requested: the run's `algorithms`.
        listed: the run's `stages`.
        stage_values: settings by stage, as plain values; their `algorithms` are changed here.
        stages: all that are known, by name.
    Raises:
        ConfigError: an algorithm that no stage makes, or only one that is not listed; nothing left to run.
    """
    if repeated := sorted({name for name in requested if requested.count(name) > 1}):
        raise ConfigError(f"algorithms: each may be listed once; repeated: {', '.join(repeated)}")
    makers = {algorithm: name for name, stage in stages.items() for algorithm in stage.algorithms}
    any_made = any(stages[name].algorithms for name in listed)
    for algorithm in requested if makers else ():
        if algorithm not in makers:
            close = difflib.get_close_matches(algorithm, makers, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            known = ", ".join(f"{one} ({name})" for one, name in makers.items())
            raise ConfigError(f"algorithms: no stage makes {algorithm!r}.{hint} Known, with their stages: {known}")
        # A run that makes no policies at all, only a store or a model, leaves the default list alone.
        if any_made and makers[algorithm] not in listed:
            raise ConfigError(
                f"algorithms: {algorithm!r} is made by stage {makers[algorithm]!r}, which `stages` does not list; "
                f"list it, or leave {algorithm!r} out"
            )
    selected = []
    for name in listed:
        if own := stages[name].algorithms:
            values = stage_values[name]
            asked = [one for one in values.get("algorithms", requested) if one in own or one not in requested]
            if "algorithms" in values:
                values["algorithms"] = asked
            if not asked:
                continue
        selected.append(name)
    if not selected:
        raise ConfigError(f"the run's algorithms ({', '.join(requested) or 'none'}) leave no stage to run")
    return selected
