"""Rounds of an experiment: train, extract policies, collect with them, train again on everything collected so far.

Every round is an ordinary run in `RUN/round_<k>`. A round after the first differs from the experiment in this:

    collect.policy           the policies of the previous round, with exploration on top
    collect.seed             its own, so that no episode starts as one of another round did
    inputs.datasets          the data of all previous rounds; `pack` adds its own
    inputs.references        the first round's scores: 0 and 1 mean the same in all rounds
    pretrain.start_from      the model of the previous round, if `warm_start`
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..config.load import RunConfig, load_config
from ..config.overrides import merge
from ..config.schema import nearest
from ..errors import ConfigError
from ..paths import CONFIG_DIR, user_path
from ..seeding import derive_seed
from ..stage import Stage
from .config import Series, Variant, in_series

COLLECT, PRETRAIN = "collect", "pretrain"
LATER = "later."
REFERENCES = "references"
"""Input of a stage that computes scores: earlier scores, whose references it takes."""
EXPLORATION = ("collect.policy_noise=[0.0,0.4]", "collect.policy_random_share=0.1")
"""How policies explore by default: hardly in some episodes, since the model has to predict what the policy itself does,
and a lot in others."""


def load_rounds(
    experiment: str,
    overrides: Sequence[str],
    stages: Mapping[str, type[Stage]],
    config_dir: Path = CONFIG_DIR,
) -> Series:
    """Compose the config of every round. Writes nothing.

    Args:
        experiment: as `load_config` takes it; its stages have to collect data and train policies.
        overrides: `rounds=N`, `warm_start=true|false`, `policies=STAGE`, `later.KEY=VALUE` for all rounds but the
            first, `run_dir=PATH`, and key=value for all rounds.
    Raises:
        ConfigError: what is wrong with any of them.
    """
    # Not the folder of `orrery run`, whose run.json would be overwritten by that of the comparison.
    folder = Path("runs") / f"{Path(experiment).stem}_rounds"
    own = {"rounds": "3", "warm_start": "false", "policies": "", "run_dir": str(folder)}
    shared, later = [], []
    for override in overrides:
        key, equals, value = override.partition("=")
        if key in own and equals:
            own[key] = value
        elif key.startswith(LATER):
            later.append(override.removeprefix(LATER))
        else:
            shared.append(override)
    if not own["rounds"].isdecimal() or int(own["rounds"]) < 1:
        raise ConfigError(f"rounds must be a number of rounds, at least 1, found {own['rounds']!r}")
    if own["warm_start"] not in ("true", "false"):
        raise ConfigError(f"warm_start: expected true or false, found {own['warm_start']!r}")
    run_dir = user_path(own["run_dir"]).absolute()

    def compose(number: int, more: Sequence[str]) -> RunConfig:
        config = load_config(experiment, merge(more), stages=stages, config_dir=config_dir)
        return in_series(config, run_dir, folder_of(number))

    first = compose(0, shared)
    maker = _policy_stage(first, stages, own["policies"])
    if own["warm_start"] == "true" and PRETRAIN not in first.settings.stages:
        raise ConfigError(
            f"warm_start=true: the experiment has no stage {PRETRAIN!r}, so there is no model to start from"
        )
    judge = next((name for name in first.settings.stages if REFERENCES in stages[name].inputs), None)
    preview = compose(1, [*EXPLORATION, *shared, *later]) if int(own["rounds"]) > 1 else None
    if preview is not None:
        _check_algorithm(first, preview, maker, stages[maker].algorithms)
    rounds = [_round(0, first, "")]
    for number in range(1, int(own["rounds"])):
        before = run_dir / folder_of(number - 1)
        seed = derive_seed("iterate", getattr(first.stage_configs[COLLECT], "seed", 0), number) % 2**31
        given = first.settings.inputs.get("datasets")
        collected = [*([given] if given else []), *(str(run_dir / folder_of(k) / COLLECT) for k in range(number))]
        links = [
            f"collect.policy={before / maker}",
            f"collect.seed={seed}",
            f"inputs.datasets={os.pathsep.join(collected)}",
        ]
        if judge is not None and REFERENCES not in first.settings.inputs:
            links.append(f"inputs.{REFERENCES}={run_dir / folder_of(0) / judge}")
        if own["warm_start"] == "true":
            links.append(f"pretrain.start_from={before / PRETRAIN}")
        config = compose(number, [*EXPLORATION, *shared, *links, *later])
        rounds.append(_round(number, config, f", with policies of {before.name}/{maker}", preview))
    return Series(
        command="iterate",
        name=Path(experiment).stem,
        source=first.experiment,
        description="Rounds, each trained on its own data and those of all rounds before it.",
        run_dir=run_dir,
        overrides=tuple(one for one in overrides if not one.startswith("run_dir=")),
        variants=tuple(rounds),
    )


def folder_of(number: int) -> str:
    """Folder of a round below that of the iteration."""
    return f"round_{number}"


def _round(number: int, config: RunConfig, policies: str, preview: RunConfig | None = None) -> Variant:
    name, before = folder_of(number), folder_of(number - 1) if number else None
    episodes = getattr(config.stage_configs[COLLECT], "episodes", None)
    note = f": {episodes} episodes per task{policies}" if episodes is not None else ""
    # The first round is the experiment itself: an error needs no label.
    return Variant(name, name, {"round": str(number)}, config, name if number else "", note, before, preview)


def _check_algorithm(before: RunConfig, config: RunConfig, maker: str, known: Sequence[str]) -> None:
    """Raise a ConfigError if a round collects with an algorithm that the previous round trains no policies with."""
    asked = getattr(config.stage_configs[COLLECT], "policy_algorithm", "")
    trained = getattr(before.stage_configs[maker], "algorithms", known)
    # What follows the @ tells policies of one algorithm apart, pwm@0 and pwm@1 by their anchors for instance.
    if asked and trained and asked.partition("@")[0] not in trained:
        raise ConfigError(
            f"collect.policy_algorithm={asked}: stage {maker!r} trains {', '.join(trained)}.{nearest(asked, trained)}"
        )


def _policy_stage(config: RunConfig, stages: Mapping[str, type[Stage]], asked: str) -> str:
    """The stage whose policies collect: the one asked for, or the first that trains any."""
    listed = config.settings.stages
    makers = [name for name in listed if stages[name].output_kind == "policies"]
    if COLLECT not in listed or not makers:
        lacking = f"stage {COLLECT!r}" if COLLECT not in listed else "stage that makes policies"
        raise ConfigError(
            f"orrery iterate collects with the policies of each round, but {config.experiment} has no {lacking}; its "
            f"stages: {', '.join(listed)}"
        )
    if asked and asked not in makers:
        raise ConfigError(f"policies={asked}: expected a stage that makes policies: {', '.join(makers)}")
    return asked or makers[0]
