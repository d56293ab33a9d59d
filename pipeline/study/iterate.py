"""Runs an experiment in rounds: train, make policies, collect with them, train again on everything collected so far.

Every round is an ordinary run in `RUN/round_<k>`, so that each is skipped while up to date and continued where it was
interrupted. A round after the first differs from the experiment in this:

    collect.policy           the policies of the round before, with exploration on top
    collect.seed             its own, so that no episode begins as one of another round did
    inputs.datasets          what all rounds before have collected; `pack` puts it together with its own
    inputs.references        the first round's scores: what counts as 0 and 1 is the same in all rounds
    pretrain.start_from      the model of the round before, if `warm_start`

The comparison of the rounds is the stage `compare` in RUN, as for a study.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from .. import artifact
from ..config.load import CONFIG_DIR, RunConfig, load_config
from ..errors import ConfigError, OrreryError, StageError
from ..paths import user_path
from ..plan import Decision, check_machine, plan
from ..reading import decode, read_json, reading
from ..run_folder import disk_errors, locked
from ..runner import Outcome, run_on_console
from ..seeding import derive_seed
from ..stage import Stage
from ..termination import handled
from .config import merge
from .study import comparison_run
from .tree import COMPARE_STAGE

ITERATION_FILE = "iteration.json"
COLLECT, PRETRAIN = "collect", "pretrain"
LATER = "later."
REFERENCES = "references"
"""Input of a stage that makes scores: earlier ones, whose references of normalised scores it takes."""
EXPLORATION = ("collect.policy_noise=[0.0,0.4]", "collect.policy_random_share=0.1")
"""How policies explore where neither the experiment's overrides nor `later.` say it: some episodes hardly, since what
the policy itself does is what the model has to predict, and some a lot."""


@dataclass(frozen=True)
class Iteration:
    """All rounds, completely described."""

    experiment: str
    typed: tuple[str, ...]
    """What was asked for, but for `run_dir`."""
    run_dir: Path
    policies: str
    """Stage whose policies collect."""
    rounds: tuple[RunConfig, ...]
    later: RunConfig | None
    """The second round without what it takes from the first, which can be checked before that has run; None where there
    is one round only."""


def load_iteration(
    experiment: str,
    overrides: Sequence[str],
    stages: Mapping[str, type[Stage]],
    config_dir: Path = CONFIG_DIR,
) -> Iteration:
    """Compose and check the config of every round. Writes nothing.

    Args:
        experiment: as `load_config` takes it; its stages have to collect and to make policies.
        overrides: `rounds=N`, `warm_start=true|false`, `policies=STAGE`, `later.KEY=VALUE` for all rounds but the
            first, `run_dir=PATH`, and key=value for all rounds.
    Raises:
        ConfigError: what is wrong with any of them.
    """
    # Not the folder of `orrery run`, whose record of the run is the comparison's here.
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
    if os.pathsep in str(run_dir):
        raise ConfigError(f"the folder of an iteration must not have {os.pathsep!r} in its path, found {run_dir}")

    def compose(number: int, more: Sequence[str]) -> RunConfig:
        given = [*merge(more), f"run_dir={run_dir / folder_of(number)}"]
        return load_config(experiment, given, stages=stages, config_dir=config_dir)

    first = compose(0, shared)
    maker = _maker_of_policies(first, stages, own["policies"])
    if own["warm_start"] == "true" and PRETRAIN not in first.settings.stages:
        raise ConfigError(
            f"warm_start=true: the experiment has no stage {PRETRAIN!r}, so there is no model to go on from"
        )
    judge = next((name for name in first.settings.stages if REFERENCES in stages[name].inputs), None)
    rounds = [first]
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
        rounds.append(compose(number, [*EXPLORATION, *shared, *links, *later]))
    typed = tuple(one for one in overrides if not one.startswith("run_dir="))
    apart = compose(1, [*EXPLORATION, *shared, *later]) if len(rounds) > 1 else None
    return Iteration(first.experiment, typed, run_dir, maker, tuple(rounds), apart)


def folder_of(number: int) -> str:
    """Return the name of a round's run folder."""
    return f"round_{number}"


def is_iteration(folder: Path) -> bool:
    """Return whether a folder holds rounds of `orrery iterate`."""
    return (folder / ITERATION_FILE).is_file()


def plan_rounds(iteration: Iteration, stages: Mapping[str, type[Stage]]) -> list[list[Decision] | None]:
    """What each round would do; None where that is known only when the round before has finished.

    Raises:
        OrreryError: what `run` would raise before the first stage of any round.
    """
    decisions: list[list[Decision] | None] = []
    for number, config in enumerate(iteration.rounds):
        ready = not decisions or (decisions[-1] is not None and all(one.action == "fresh" for one in decisions[-1]))
        if ready:
            with _named(number):
                decisions.append(_plan_here(config, stages))
        else:
            decisions.append(None)
    if None in decisions and iteration.later is not None:
        with _named(decisions.index(None)):
            _plan_here(iteration.later, stages)
    return decisions


def _plan_here(config: RunConfig, stages: Mapping[str, type[Stage]]) -> list[Decision]:
    decisions = plan(config, stages)
    check_machine(config, stages, decisions)
    return decisions


@contextlib.contextmanager
def _named(number: int) -> Iterator[None]:
    """Say of an error which round has it, except for the first, which is the experiment as it is."""
    try:
        yield
    except OrreryError as error:
        if number == 0:
            raise
        raise type(error)(f"{folder_of(number)}: {error}") from error


def run_rounds(
    iteration: Iteration,
    stages: Mapping[str, type[Stage]],
    console: Console,
    on_round: Callable[[int], None] = lambda number: None,
    on_start: Callable[[Decision], None] = lambda decision: None,
    on_end: Callable[[Outcome], None] = lambda outcome: None,
) -> bool:
    """Bring every round up to date in turn, and the comparison after each that was not.

    Returns:
        Whether anything was done.
    Raises:
        OrreryError: a round failed; those before it are there, and the same call goes on from it.
        StageInterrupted, StageTerminated: Ctrl-C, or one of `termination.SIGNALS`; the same call continues.
    """
    plan_rounds(iteration, stages)  # raises for what is wrong before anything is written
    worked = False
    record = {"experiment": iteration.experiment, "overrides": iteration.typed, "rounds": len(iteration.rounds)}
    with handled(), locked(iteration.run_dir):
        with disk_errors(iteration.run_dir):
            artifact.write_json(iteration.run_dir / ITERATION_FILE, record)
        for number, config in enumerate(iteration.rounds):
            on_round(number)
            with locked(config.run_dir):
                outcomes = run_on_console(config, stages, console, on_start=on_start, on_end=on_end)
            new = any(outcome.status != "fresh" for outcome in outcomes)
            worked = worked or new
            if new or config is iteration.rounds[-1]:
                _compare(iteration, number + 1, stages, console)
    return worked


@dataclass(frozen=True)
class _IterationRecord:
    """iteration.json."""

    experiment: str
    overrides: list[str]
    rounds: int


def read_iteration_file(folder: Path) -> dict[str, object]:
    """What iteration.json says: experiment, overrides, rounds.

    Raises:
        StageError: there is none, or it is damaged.
    """
    path, remedy = folder / ITERATION_FILE, "`orrery iterate` writes it again"
    with reading(path, StageError, remedy):
        record: dict[str, object] = read_json(path, StageError, remedy)
        decode(_IterationRecord, record)
    return record


def _maker_of_policies(config: RunConfig, stages: Mapping[str, type[Stage]], asked: str) -> str:
    """The stage whose policies collect: the one asked for, or the first that makes any."""
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


def _compare(iteration: Iteration, finished: int, stages: Mapping[str, type[Stage]], console: Console) -> None:
    """Run the stage `compare` on the rounds that have finished."""
    if COMPARE_STAGE not in stages:
        return
    wanted = stages[COMPARE_STAGE].inputs
    given: dict[str, list[str]] = {name: [] for name in wanted}
    variants = {}
    for number, config in enumerate(iteration.rounds[:finished]):
        artifacts: dict[str, list[str]] = {
            name: [
                f"{folder_of(number)}/{stage}"
                for stage in config.settings.stages
                if stages[stage].output_kind == one.kind
            ]
            for name, one in wanted.items()
        }
        for name, paths in artifacts.items():
            given[name] += [str(iteration.run_dir / path) for path in paths]
        variants[folder_of(number)] = {
            "group": folder_of(number),
            "parameters": {"round": str(number)},
            "artifacts": artifacts,
            "problem": "",
        }
    name = Path(iteration.experiment).stem
    values = {"title": f"{name} in rounds", "description": "each trained on its own data and all before it"}
    first, run_dir = iteration.rounds[0], iteration.run_dir
    comparison = comparison_run(first, run_dir, iteration.typed, values, variants, given, stages)
    if comparison is not None:
        run_on_console(comparison, stages, console)
