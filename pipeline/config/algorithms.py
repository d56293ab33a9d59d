"""Which stages the run's `algorithms` ask for: one list, shared among all stages that train policies."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from ..stage import Stage
from .schema import nearest


def select_stages(
    requested: Sequence[str],
    listed: Sequence[str],
    stage_values: Mapping[str, dict[str, Any]],
    stages: Mapping[str, type[Stage]],
    *,
    typed: Container[str],
) -> tuple[list[str], list[str]]:
    """The stages to run, in order, and the algorithms that they train.

    An algorithm names its stage. If none is requested, every listed stage runs, with its own default. Otherwise the
    policy stages are those of the requested algorithms: others do not run, and missing ones are added after the last
    listed policy stage. A run that lists no policy stage trains no policies.

    Of `stages` on the command line all run, and no others: with those of the experiment's algorithms that are theirs,
    or their own default.

    A stage with a key `algorithms` is left with its own there, so that another stage's algorithms never make its
    artifact stale. Unknown names stay, for the stage to reject.

    Args:
        requested: the run's `algorithms`.
        listed: the run's `stages`.
        stage_values: plain values by stage; their `algorithms` are changed here.
        stages: all known stages by name.
        typed: keys set on the command line.
    Raises:
        ConfigError: an algorithm of no stage, or both `stages` and `algorithms` were typed, and an algorithm's stage is
            missing.
    """
    if repeated := sorted({name for name in requested if requested.count(name) > 1}):
        raise ConfigError(f"algorithms must not repeat: {', '.join(repeated)}")
    makers = {algorithm: name for name, stage in stages.items() for algorithm in stage.algorithms}
    for algorithm in requested if makers else ():
        if algorithm not in makers:
            known = ", ".join(f"{one} ({name})" for one, name in makers.items())
            raise ConfigError(
                f"algorithms: unknown algorithm {algorithm!r}.{nearest(algorithm, makers)} "
                f"Known, with their stages: {known}"
            )
    candidates, as_listed = list(listed), "stages" in typed and "algorithms" not in typed
    if not as_listed and (policy_stages := [name for name in listed if stages[name].algorithms]):
        missing = {makers[one]: one for one in reversed(requested) if makers[one] not in listed}
        for name, algorithm in missing.items():
            if "stages" in typed:
                raise ConfigError(
                    f"algorithms: {algorithm!r} is trained by stage {name!r}, which is missing from "
                    f"stages=[{','.join(listed)}]. Add it, or choose algorithms=[...] of the listed stages"
                )
            candidates.insert(candidates.index(policy_stages[-1]) + 1, name)
    selected, trained = [], []
    for name in candidates:
        own, values = stages[name].algorithms, stage_values[name]
        by_default = not requested or (as_listed and not set(own) & set(requested))
        if own and "algorithms" in values:
            asked = [one for one in values["algorithms"] if one in own or one not in requested]
            values["algorithms"] = asked = asked or (stages[name].Config().algorithms if by_default else [])
        else:
            asked = [one for one in own if by_default or one in requested]
        if asked or not own:
            selected.append(name)
            trained += asked
    return selected, trained
