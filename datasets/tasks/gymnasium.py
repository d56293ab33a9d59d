"""`gymnasium/<Id>`: any registered gymnasium environment with flattenable observations and Box or Discrete actions.

Also builds the environments that datasets name: `{"kind": "gymnasium", "id": ...}` or `{"kind": "gymnasium",
"spec_json": ...}`, the JSON of a gymnasium EnvSpec as Minari stores it, both with optional "action_low" and
"action_high".

A dataset is somebody else's file, so its EnvSpec is not obeyed blindly: gymnasium would import and call whatever its
`entry_point` names. Only the id, the keyword arguments and the time limit are taken from it; the code that runs is the
one that an installed package has registered under that id.
"""

from __future__ import annotations

import difflib
import importlib
import json
import warnings
from typing import Any

import gymnasium
from gymnasium import spaces

from ...pipeline.errors import TaskError
from ..schema import TaskSpec
from ..spaces import flat_dim

DEFAULT_EPISODE_LENGTH = 1000
"""Episode length in steps if an environment states no time limit."""

D4RL_REFERENCES = {
    "HalfCheetah": (-280.178953, 12135.0),
    "Hopper": (-20.272305, 3234.3),
    "Walker2d": (1.629008, 4592.3),
    "Ant": (-325.6, 3879.7),
}
"""Returns that score 0 and 1 in D4RL (arXiv 2004.07219; infos.py of its code): of a random policy, and of a SAC policy.
They were measured on -v2; later versions differ slightly."""

_HARMLESS_WRAPPERS = {"FlattenObservation", "FilterObservation", "TimeAwareObservation", "RescaleAction", "ClipAction"}
"""gymnasium.wrappers that an EnvSpec may ask for; others write files or keep state over episodes."""


def names() -> list[str]:
    """Return the names of all tasks of the suite."""
    return [
        f"gymnasium/{name}"
        for name, spec in gymnasium.registry.items()
        # Functions of gymnasium.envs only raise, about where a task has moved (Ant-v2, GymV21Environment-v0).
        if getattr(spec.entry_point, "__module__", "") != "gymnasium.envs"
    ]


def resolve(name: str) -> str | None:
    """Return the canonical name of a task; None if the suite has no such task."""
    try:
        _registered(name.removeprefix("gymnasium/"))
    except TaskError:
        return None
    return name


def spec(name: str) -> TaskSpec:
    """Describe a task, given its canonical name."""
    identifier = name.removeprefix("gymnasium/")
    environment = _make(name, identifier, {})
    action_space = environment.action_space
    if isinstance(action_space, spaces.Discrete):
        action_dim = int(action_space.n)
    elif isinstance(action_space, spaces.Box):
        action_dim = flat_dim(action_space)
    else:
        raise TaskError(f"task {name!r}: its actions are {action_space}, expected Box or Discrete")
    limit = environment.spec.max_episode_steps if environment.spec else None
    random, expert = D4RL_REFERENCES.get(identifier.partition("-v")[0], (None, None))
    return TaskSpec(
        name=name,
        observation_dim=flat_dim(environment.observation_space),
        action_dim=action_dim,
        action_kind="discrete" if isinstance(action_space, spaces.Discrete) else "continuous",
        episode_length=limit or DEFAULT_EPISODE_LENGTH,
        terminates=True,
        score_random=random,
        score_expert=expert,
        environment={"kind": "gymnasium", "id": identifier},
    )


def make(spec: TaskSpec, picture: int | None = None) -> gymnasium.Env[Any, Any]:
    """Build the suite's environment; `picture` is the edge of rendered frames in pixels."""
    pictures = {} if picture is None else {"render_mode": "rgb_array"}
    if "spec_json" not in spec.environment:
        if "id" not in spec.environment:
            raise TaskError(f"task {spec.name!r}: expected 'id' or 'spec_json' in {dict(spec.environment)}")
        return _make(spec.name, spec.environment["id"], dict(spec.environment.get("kwargs", {})) | pictures)
    recorded = json.loads(spec.environment["spec_json"])
    _import_owner(recorded)
    kwargs = dict(recorded.get("kwargs") or {})
    if (limit := recorded.get("max_episode_steps")) is not None:
        kwargs["max_episode_steps"] = limit
    environment = _make(spec.name, recorded["id"], kwargs | pictures)
    for wrapper in recorded.get("additional_wrappers") or ():
        environment = _wrap(spec.name, environment, wrapper)
    return environment


def _registered(identifier: str) -> gymnasium.envs.registration.EnvSpec:
    """The registered spec of an id, which may name the module that registers it: `package.module:Name-v0`."""
    module, _, bare = identifier.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:  # a module of the user's runs here
            missing = isinstance(error, ModuleNotFoundError)
            raise TaskError(
                f"the module of environment {identifier!r} cannot be imported ({type(error).__name__}: {error})"
                + ("; install it, or add its folder to the environment variable PYTHONPATH" if missing else "")
            ) from error
    try:
        return gymnasium.spec(bare)
    except gymnasium.error.Error as error:
        nearest = difflib.get_close_matches(bare, gymnasium.registry, n=3, cutoff=0.7)
        near = f"; the nearest are {', '.join(nearest)}" if nearest else ""
        way_out = f"If your own module registers it, write MODULE:{bare} and add MODULE to PYTHONPATH"
        raise TaskError(
            f"gymnasium has no environment {identifier!r} ({error}){near}. "
            + (f"Importing {module} did not register it" if module else way_out)
        ) from error


def _import_owner(recorded: dict[str, Any]) -> None:
    """Import the top package of a recorded entry point: that is when packages register their environments."""
    package = str(recorded.get("entry_point") or "").split(":")[0].split(".")[0]
    if recorded["id"] in gymnasium.registry or not package.isidentifier():
        return
    try:
        importlib.import_module(package)
    except (Exception, SystemExit) as error:
        raise TaskError(
            f"environment {recorded['id']!r} is not registered and its package {package!r} cannot be imported "
            f"({type(error).__name__}: {error}); install the package that provides it"
        ) from error


def _make(name: str, identifier: str, kwargs: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    registered = _registered(identifier)
    with warnings.catch_warnings():
        # A dataset or a config names a version on purpose; that a newer one exists is no news.
        warnings.filterwarnings("ignore", message=".*is out of date.*")
        try:
            # The checker repeats at each step what the space checks of `TaskEnv` settle once, and prints warnings.
            return gymnasium.make(registered, disable_env_checker=True, **kwargs)
        except Exception as error:  # an environment's constructor raises what it likes
            said = f"{type(error).__name__}: {error}"
            if isinstance(error, gymnasium.error.DependencyNotInstalled) and "gymnasium[box2d]" in said:
                said = "it needs Box2D, which is not installed: pip install 'orrery[box2d]'"
            raise TaskError(f"task {name!r}: its environment {identifier!r} cannot be built: {said}") from error


def _wrap(name: str, environment: gymnasium.Env[Any, Any], wrapper: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    entry, kind = str(wrapper.get("entry_point")), wrapper.get("name")
    if kind not in _HARMLESS_WRAPPERS or not entry.startswith("gymnasium.wrappers."):
        raise TaskError(
            f"task {name!r}: its dataset was recorded with the wrapper {entry!r}, which is not one of "
            f"{', '.join(sorted(_HARMLESS_WRAPPERS))}; register an environment that includes the wrapper and name that "
            "one in pack.sources.NAME.environment"
        )
    try:
        return getattr(gymnasium.wrappers, kind)(environment, **(wrapper.get("kwargs") or {}))
    except Exception as error:  # its arguments are somebody else's
        raise TaskError(
            f"task {name!r}: the wrapper {entry!r} of its dataset cannot be built: {type(error).__name__}: {error}"
        ) from error
