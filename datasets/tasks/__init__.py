"""From a task's name to its TaskSpec, and from a TaskSpec to its environment.

One file per suite: `names()` lists its tasks without importing a simulator, `resolve(name)` gives the canonical
spelling or None, `spec(name)` describes one, `make(spec)` builds the suite's own environment. This file dispatches on
the part of the name before the first slash, and puts every environment behind the same contract (see `task_env`).
Names as TD-MPC2 spells them are understood (`cup-spin`, `mw-reach`), and its sets of tasks have a name each (`tdmpc2`).
"""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, cast

import gymnasium

from ...pipeline.errors import TaskError
from ..schema import TaskSpec
from ..spaces import Space, flat_parts, flatten_observation
from .task_env import NativeEnv, TaskEnv
from .tdmpc2 import SETS, with_suite

_SUITES = {"dmc": "dm_control", "metaworld": "metaworld", "gymnasium": "gymnasium", "myriad": "myriad"}
"""Suite prefix of a task name -> file of this package, which is also the `kind` of its environments."""
SIMULATED = tuple(f"{prefix}/" for prefix in _SUITES)
"""What names of tasks begin with that have a simulator."""


class _Suite(Protocol):
    def names(self) -> Sequence[str]: ...
    def resolve(self, name: str) -> str | None: ...
    def spec(self, name: str) -> TaskSpec: ...
    def make(self, spec: TaskSpec, picture: int | None = None) -> gymnasium.Env[Any, Any]: ...


def _suite(kind: str) -> _Suite:
    return cast(_Suite, importlib.import_module(f".{kind}", __name__))


def suites() -> list[str]:
    """The first part of every task's name."""
    return list(_SUITES)


def task_names(suite: str) -> list[str]:
    """Names of every task of a suite: `dmc`, `metaworld`, `myriad`, or `gymnasium` (all registered ids).

    Raises:
        TaskError: the suite is unknown.
    """
    if suite not in _SUITES:
        raise TaskError(f"unknown suite {suite!r}; expected one of {', '.join(_SUITES)}")
    return sorted(_suite(_SUITES[suite]).names())


def resolve_name(name: str) -> str:
    """The canonical spelling of a task name. Starts no simulator, so it is cheap enough for a check before a run.

    Raises:
        TaskError: no suite has such a task; the message gives the nearest names.
    """
    if (canonical := _find(name)) is not None:
        return canonical
    prefix = name.split("/", 1)[0]
    if prefix == "gymnasium" and ":" in name:
        _suite(prefix).spec(name)  # raises, and says whether the module or what it registers is missing
    if prefix in _SUITES and "/" in name:
        candidates = task_names(prefix)
    else:
        candidates = [*task_names("dmc"), *task_names("metaworld"), *SETS]
    nearest = difflib.get_close_matches(name, candidates, n=3, cutoff=0.5)
    hint = f"the nearest are {', '.join(nearest)}" if nearest else f"task names start with one of: {', '.join(_SUITES)}"
    raise TaskError(f"unknown task {name!r}: {hint}; `orrery tasks` lists all")


def _find(name: str) -> str | None:
    """The canonical spelling of a task name, or None."""
    full = with_suite(name)
    prefix = full.split("/", 1)[0]
    return _suite(_SUITES[prefix]).resolve(full) if prefix in _SUITES else None


def expand_names(names: Iterable[str], keep: Container[str] = ()) -> list[str]:
    """A list of tasks as a config may write it: `mt30` and `mt80` by their tasks, simulated tasks by their canonical
    names, and what is neither (a dataset, a file, a task in `keep`) as it is. Starts no simulator.
    """
    expanded: list[str] = []
    for name in names:
        if name in keep:
            expanded.append(name)
        else:
            expanded += SETS.get(name) or [_find(name) or name]
    return expanded


def task_spec(name: str) -> TaskSpec:
    """Describe a task by name, in the evaluation protocol of its suite.

    Builds a gymnasium environment once to learn its sizes; the other suites' are known.

    Raises:
        TaskError: the name is unknown, or its environment cannot be built or has spaces that are not supported.
    """
    canonical = resolve_name(name)
    return _suite(_SUITES[canonical.split("/", 1)[0]]).spec(canonical)


def make_environment(spec: TaskSpec, *, picture: int | None = None) -> TaskEnv:
    """Build the environment that `spec.environment` describes, behind the contract of `TaskEnv`.

    Args:
        picture: edge in pixels of what `render()` will give, where the suite lets one choose; without it, an
            environment may have no `render()`.
    Raises:
        TaskError: the spec names no environment, or one that cannot be built or does not have the spec's sizes; a
            picture is asked for and the task has none.
    """
    return TaskEnv(_build(spec, picture), spec)


def make_env(task: str | TaskSpec, backend: str = "gymnasium", *, picture: int | None = None) -> Any:
    """An environment of a task. One step is one step: it repeats the action as the task says.

    Args:
        backend: gymnasium, with the task's own observations and actions, as `policy.predict` takes and gives them; or
            torchrl, an EnvBase with flat observations [O] and actions [A] in [-1, 1], as stores and `PolicyModule` have
            them.
        task: a name, such as dmc/walker-run, metaworld/reach-v3, gymnasium/CartPole-v1, or gymnasium/module:Id of your
            own; or the TaskSpec of a store, a model or a policy (`policy.task`).
        picture: edge in pixels of what `render()` gives.
    Raises:
        TaskError: there is no such task or backend, or its environment cannot be built.
    """
    if backend not in ("gymnasium", "torchrl"):
        raise TaskError(f"backend: expected gymnasium or torchrl, found {backend!r}")
    if not isinstance(task, str | TaskSpec):
        raise TaskError(f"task: expected a name, such as dmc/walker-run, or a TaskSpec, found {task!r}")
    spec = task if isinstance(task, TaskSpec) else task_spec(task)
    if backend == "gymnasium":
        return NativeEnv(_build(spec, picture), spec)
    from torchrl.envs import GymWrapper

    return GymWrapper(make_environment(spec, picture=picture))


def unplayable(spec: TaskSpec) -> str | None:
    """Why the environment of a task cannot be built, reset and stepped here; None if it can."""
    try:
        _try(make_environment(spec), f"task {spec.name!r}: its environment")
    except TaskError as error:
        return str(error)
    return None


def _try(environment: gymnasium.Env[Any, Any], what: str) -> None:
    """Reset an environment, step it once and close it.

    Raises:
        TaskError: it raises in doing so, or its observations are not of its space or cannot be flattened.
    """
    tried = "reset"
    try:
        observation, _ = environment.reset(seed=0)
        flatten_observation(environment.observation_space, observation)
        tried = "stepped"
        environment.action_space.seed(0)
        observation, reward, *_ = environment.step(environment.action_space.sample())
        flatten_observation(environment.observation_space, observation)
        float(reward)
    except Exception as error:  # an environment raises what it likes
        said = str(error) if isinstance(error, TaskError) else f"{type(error).__name__}: {error}"
        raise TaskError(f"{what} cannot be {tried}: {said}") from error
    finally:
        with suppress(Exception):
            environment.close()


def _build(spec: TaskSpec, picture: int | None = None) -> gymnasium.Env[Any, Any]:
    """The suite's own environment."""
    kind = spec.environment.get("kind")
    if kind is None:
        raise TaskError(
            f"task {spec.name!r} has no environment: its dataset does not say how to build one; set spec.environment, "
            "for example {'kind': 'gymnasium', 'id': 'Pendulum-v1'}"
        )
    if kind not in _SUITES.values():
        raise TaskError(
            f"task {spec.name!r}: unknown kind of environment {kind!r}, expected one of {', '.join(_SUITES.values())}"
        )
    return _suite(kind).make(spec, picture)


@dataclass(frozen=True)
class RecordedIn:
    """What an environment, in which somebody's data was recorded, says of the task."""

    fields: Mapping[str, Any]
    """Of TaskSpec: `environment`, and what follows from it; `episode_length` only where the environment has a limit."""
    observation_space: Space
    action_space: Space


def recorded_in(environment: str | Mapping[str, Any]) -> RecordedIn:
    """Build an environment, reset and step it once, and say what data that was recorded in it has to be.

    Args:
        environment: a task of a suite, such as `dmc/walker-run`, whose protocol then applies; a gymnasium id; or what
            `TaskSpec.environment` holds.

    Raises:
        TaskError: it cannot be built, reset or stepped, or its observations cannot be flattened.
    """
    return _recorded_in(json.dumps(environment, sort_keys=True))


@lru_cache(maxsize=64)
def _recorded_in(text: str) -> RecordedIn:
    given = json.loads(text)
    named = given if isinstance(given, str) else str(given.get("id", given))
    fields: dict[str, Any] = {"environment": given}
    if isinstance(given, str) and given.split("/", 1)[0] in _SUITES.keys() - {"gymnasium"}:
        spec = task_spec(given)
        same = ("environment", "action_repeat", "episode_length", "score_kind", "reports_success")
        fields = {name: getattr(spec, name) for name in same}
    elif isinstance(given, str):
        fields["environment"] = {"kind": "gymnasium", "id": given.removeprefix("gymnasium/")}
    # Its sizes are what is asked here, so none are stated.
    unsized = TaskSpec(named, observation_dim=1, action_dim=1, episode_length=1, environment=fields["environment"])
    native = _build(unsized)
    flat_parts(native.observation_space)
    _try(native, f"environment {named!r}")
    if native.spec is not None and native.spec.max_episode_steps is not None:
        fields.setdefault("episode_length", native.spec.max_episode_steps)
    return RecordedIn(fields, native.observation_space, native.action_space)
