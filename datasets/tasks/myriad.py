"""`myriad/<problem>`, `...@<H>`, `...+<noise>`: differentiable tasks, the eleven of Myriad and three mechanical ones.

Their equations are in `myriad_dynamics` and `myriad_mechanics`, as functions of torch tensors that gradients pass
through; `simulator(spec)` gives those. This file adds names, TaskSpecs and gymnasium environments on top. H is the
number of steps of an episode; for Myriad's problems more of them cut the same time span finer. The noise is the
standard deviation of what is added to each state component at each step: `myriad/cancer@50+0.02`.

Protocol: one episode of H steps that never ends early, the observation is the state and the time in steps, the
final cost is charged on the final state. `spec.environment` may set the simulator's other arguments by name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces

from ...pipeline.errors import TaskError
from ..schema import TaskSpec

if TYPE_CHECKING:
    from .myriad_dynamics import DifferentiableTask

_SIZES = {
    "cancer": (1, 1),
    "bear": (3, 2),
    "bioreactor": (1, 1),
    "hiv": (3, 1),
    "mould": (1, 1),
    "bacteria": (1, 1),
    "predator_prey": (3, 1),
    "glucose": (2, 1),
    "harvest": (1, 1),
    "timber": (1, 1),
    "invasive_plant": (5, 5),
    "one_bounce": (4, 1),
    "released_pendulum": (6, 1),
    "driven_pendulum": (6, 1),
}
"""Observed components without the time, and action components; written out so that names can be read without torch."""

_DEFAULT_HORIZON = {"one_bounce": 20, "released_pendulum": 50}
"""Steps per episode; 100 for all others."""


def _default_horizon(problem: str) -> int:
    return _DEFAULT_HORIZON.get(problem, 100)


def names() -> list[str]:
    """Return the names of all tasks of the suite."""
    return [f"myriad/{problem}" for problem in _SIZES]


_NAME = re.compile(r"myriad/([a-z_]+)(?:@0*([1-9][0-9]*))?(?:\+([0-9]*\.?[0-9]+))?")


def _parse(name: str) -> tuple[str, int, float] | None:
    """Problem, steps and noise."""
    found = _NAME.fullmatch(name)
    if found is None or found[1] not in _SIZES:
        return None
    return found[1], int(found[2] or _default_horizon(found[1])), float(found[3] or 0)


def resolve(name: str) -> str | None:
    """Return the canonical name of a task; None if the suite has no such task."""
    if (parsed := _parse(name)) is None:
        return None
    problem, horizon, noise = parsed
    at = "" if horizon == _default_horizon(problem) else f"@{horizon}"
    return f"myriad/{problem}{at}" + (f"+{noise:g}" if noise else "")


def spec(name: str) -> TaskSpec:
    """Describe a task, given its canonical name."""
    parsed = _parse(name)
    assert parsed is not None  # `name` is one that `resolve` gives
    problem, horizon, noise = parsed
    components, action_dim = _SIZES[problem]
    return TaskSpec(
        name=name,
        observation_dim=components + 1,
        action_dim=action_dim,
        episode_length=horizon,
        environment={"kind": "myriad", "problem": problem} | ({"noise": noise} if noise else {}),
    )


def make(spec: TaskSpec, picture: int | None = None) -> MyriadEnvironment:
    """Build the suite's environment; `picture` is the edge of rendered frames in pixels."""
    if picture is not None:
        raise TaskError(f"task {spec.name!r} is a system of equations and cannot be rendered; it has curves only")
    return MyriadEnvironment(simulator(spec), float(spec.environment.get("noise", 0.0)))


def simulator(spec: TaskSpec) -> DifferentiableTask:
    """The differentiable simulator of a task of this suite, in steps of `spec`.

    Raises:
        TaskError: the spec's environment is of another kind, or has arguments that its simulator does not take.
    """
    from . import myriad_dynamics, myriad_mechanics

    arguments = dict(spec.environment)
    if arguments.pop("kind", None) != "myriad":
        raise TaskError(
            f"task {spec.name!r} has no differentiable simulator (its environment is {dict(spec.environment)}); "
            "the tasks of the suite `myriad` have one"
        )
    problem = arguments.pop("problem", None)
    arguments.pop("noise", None)
    try:
        if problem in myriad_dynamics.PROBLEMS:
            return myriad_dynamics.MyriadTask(myriad_dynamics.PROBLEMS[problem], spec.episode_length, **arguments)
        mechanical: dict[Any, Any] = {
            "one_bounce": myriad_mechanics.OneBounce,
            "released_pendulum": myriad_mechanics.ReleasedPendulum,
            "driven_pendulum": myriad_mechanics.DrivenPendulum,
        }
        if problem in mechanical:
            return mechanical[problem](spec.episode_length, **arguments)
    except TypeError as error:
        raise TaskError(f"task {spec.name!r}: {error}; its environment is {dict(spec.environment)}") from error
    raise TaskError(f"task {spec.name!r}: unknown problem {problem!r}, expected one of {', '.join(_SIZES)}")


class MyriadEnvironment(gymnasium.Env[np.ndarray, np.ndarray]):
    """One episode at a time of a DifferentiableTask, in float64. A seed decides its start state and its noise."""

    def __init__(self, task: DifferentiableTask, noise: float = 0.0) -> None:
        import torch

        self.task, self._noise = task, noise
        self.observation_space = spaces.Box(-np.inf, np.inf, (task.observation_dim,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (task.action_dim,), np.float64)
        self._generator = torch.Generator()
        self._state: torch.Tensor | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None:
            self._generator.manual_seed(seed)
        self._state = self.task.initial_state(1, self._generator)
        return self.task.observe(self._state)[0].numpy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        import torch

        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        noise = None
        if self._noise > 0:
            width = self._state.shape[1] - 1
            noise = self._noise * torch.randn(1, width, generator=self._generator, dtype=torch.float64)
        with torch.no_grad():
            taken = torch.as_tensor(np.asarray(action, np.float64)).clamp(-1, 1)[None]
            following = self.task.next_state(self._state, taken, noise)
            before, after = self.task.observe(self._state), self.task.observe(following)
            reward = float(self.task.reward(before, taken, after))
        self._state = following
        return after[0].numpy(), reward, False, bool(following[0, -1] >= self.task.horizon), {}
