"""The eleven control problems of Myriad as pure, batched, differentiable functions of torch tensors.

Each is an ordinary differential equation dx/dt = F(x, u), a running cost and, for some, a cost of the final state. The
action a in [-1, 1] is scaled to the control's bounds, time is cut into H steps of dt = T / H (a longer horizon is
a finer cut of the same problem), and a step is one Euler step:

    u = a (high - low) / 2 + (high + low) / 2
    x_{t+1} = clip(x_t + dt F(x_t, u_t))
    r_t = -dt cost(x_t, u_t, t dt), and at t = H - 1 also -Phi(x_H)

A state is [x, t], t counted in steps, and the observation is the state. Start states are fixed.

Dimension letters: B batch (any leading dimensions), N components of x, A action, S state.
Source: Howe et al., Myriad (arXiv 2202.04600), in the form of Ma et al. (arXiv 2402.05290), whose released code charges
Phi(x_{H-1}), the state before the last transition: `terminal_on_final_state=False`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch


class DifferentiableTask(Protocol):
    """A simulator that gradients pass through. Everything is a function of its arguments; only `horizon` is fixed."""

    horizon: int
    """H, steps of an episode."""
    observation_dim: int
    action_dim: int

    def initial_state(
        self, count: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64
    ) -> torch.Tensor:
        """`count` start states [B, S]."""
        ...

    def next_state(self, state: torch.Tensor, action: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """State [B, S] after an action [B, A] in [-1, 1]; `noise` [B, S - 1] is added to what moves, never the time."""
        ...

    def observe(self, state: torch.Tensor) -> torch.Tensor:
        """Observation [B, O] of a state; its last column is the time in steps."""
        ...

    def reward(self, observation: torch.Tensor, action: torch.Tensor, next_observation: torch.Tensor) -> torch.Tensor:
        """Reward [B] of a transition, also of one that a model has predicted."""
        ...


@dataclass(frozen=True)
class ControlProblem:
    """One row of the table of problems. Functions take x [B, N] and u [B, A] in units of the problem."""

    start: tuple[float, ...]
    duration: float
    """T, in units of the problem."""
    control_bounds: tuple[tuple[float, float], ...]
    derivative: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """F(x, u), [B, N]."""
    cost: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    """Running cost of (x, u, time [B] in units of the problem) per unit of time, [B]."""
    state_bounds: tuple[tuple[float, float], ...] | None = None
    """x is clipped to these; None if nothing clips it."""
    final_cost: Callable[[torch.Tensor], torch.Tensor] | None = None
    """Phi(x), [B]; not multiplied by dt."""


class MyriadTask:
    """A ControlProblem in H steps; see the module's equations."""

    def __init__(
        self,
        problem: ControlProblem,
        horizon: int,
        *,
        duration: float | None = None,
        terminal_on_final_state: bool = True,
    ) -> None:
        """Args:
        horizon: H.
        duration: T, in place of the problem's own.
        terminal_on_final_state: Phi of the state that the last step leads to; False charges the state before it,
            as the released code does.
        """
        self.problem, self.horizon = problem, horizon
        self.observation_dim, self.action_dim = len(problem.start) + 1, len(problem.control_bounds)
        self.dt = (problem.duration if duration is None else duration) / horizon
        self._terminal_on_final_state = terminal_on_final_state

    def initial_state(
        self, count: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64
    ) -> torch.Tensor:
        return torch.tensor([*self.problem.start, 0.0], dtype=dtype).expand(count, -1)

    def control(self, action: torch.Tensor) -> torch.Tensor:
        """u [B, A] of an action in [-1, 1]."""
        low, high = action.new_tensor(self.problem.control_bounds).unbind(-1)
        return action * ((high - low) / 2) + (high + low) / 2

    def next_state(self, state: torch.Tensor, action: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        x, time = state[..., :-1], state[..., -1:]
        x = x + self.dt * self.problem.derivative(x, self.control(action))
        if noise is not None:
            x = x + noise
        if self.problem.state_bounds is not None:
            low, high = x.new_tensor(self.problem.state_bounds).unbind(-1)
            x = torch.clamp(x, low, high)
        return torch.cat([x, time + 1], -1)

    def observe(self, state: torch.Tensor) -> torch.Tensor:
        return state

    def reward(self, observation: torch.Tensor, action: torch.Tensor, next_observation: torch.Tensor) -> torch.Tensor:
        x, time = observation[..., :-1], observation[..., -1]
        reward = -self.dt * self.problem.cost(x, self.control(action), time * self.dt)
        if self.problem.final_cost is None:
            return reward
        charged = next_observation[..., :-1] if self._terminal_on_final_state else x
        return reward - torch.where(is_last(time, self.horizon), self.problem.final_cost(charged), 0.0)


def is_last(time: torch.Tensor, horizon: int) -> torch.Tensor:
    """Whether a step taken at `time` is the last of its episode; bool, of the same shape."""
    return time.round() == horizon - 1


def _cancer(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Tumour density under a drug (Gompertz growth)."""
    return 0.3 * x * torch.log(1 / x) - 0.45 * u * x


_BEAR_GROWTH, _BEAR_CAPACITY, _PARK_SHARE, _FOREST_SHARE = 0.1, 0.75, 0.5, 0.5


def _bear(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Bears in a park, in the forest around it, and those that end up among people; hunting in the first two."""
    park, forest = x[..., 0], x[..., 1]
    k, k2 = _BEAR_GROWTH / _BEAR_CAPACITY, _BEAR_GROWTH / _BEAR_CAPACITY**2
    in_park = (
        _BEAR_GROWTH * park
        - k * park**2
        + k * _FOREST_SHARE * (1 - park / _BEAR_CAPACITY) * forest**2
        - u[..., 0] * park
    )
    in_forest = (
        _BEAR_GROWTH * forest
        - k * forest**2
        + k * _PARK_SHARE * (1 - forest / _BEAR_CAPACITY) * park**2
        - u[..., 1] * forest
    )
    outside = (
        k * (1 - _PARK_SHARE) * park**2
        + k * (1 - _FOREST_SHARE) * forest**2
        + k2 * _FOREST_SHARE * park * forest**2
        + k2 * _PARK_SHARE * park**2 * forest
    )
    return torch.stack([in_park, in_forest, outside], -1)


def _hiv(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Healthy cells, infected cells, free virus; u = 1 is no therapy."""
    healthy, infected, virus = x.unbind(-1)
    infection = 2.4e-5 * u[..., 0] * healthy * virus
    growth = 10 / (1 + virus) - 0.02 * healthy + 0.03 * healthy * (1 - (healthy + infected) / 1500)
    return torch.stack([growth - infection, infection - 0.5 * infected, 150 * infected - 4.4 * virus], -1)


def _predator_prey(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Pests, their predators, pesticide spent so far."""
    prey, predator, _ = x.unbind(-1)
    spray = u[..., 0]
    return torch.stack([(1 - predator) * prey - 0.1 * prey * spray, (prey - 1) * predator - 0.1 * predator * spray,
                        spray], -1)  # fmt: skip


def _glucose(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Blood glucose and insulin."""
    glucose, insulin = x.unbind(-1)
    return torch.stack([-glucose - insulin, -insulin + u[..., 0]], -1)


_GLUCOSE_TARGET = 0.4
"""Ma et al.'s; Myriad has 0.5."""


PROBLEMS: dict[str, ControlProblem] = {
    "cancer": ControlProblem(
        start=(0.975,),
        duration=20,
        control_bounds=((0, 2),),
        state_bounds=((1e-3, 1),),
        derivative=_cancer,
        cost=lambda x, u, _: 3 * x[..., 0] ** 2 + u[..., 0] ** 2,
    ),
    "bear": ControlProblem(
        start=(0.4, 0.2, 0),
        duration=25,
        control_bounds=((0, 0.2), (0, 0.2)),
        state_bounds=((0, 2), (0, 2), (0, 2)),
        derivative=_bear,
        cost=lambda x, u, _: x[..., 2] + 1e4 * u[..., 0] ** 2 + 10 * u[..., 1] ** 2,
    ),
    "bioreactor": ControlProblem(
        start=(0.5,),
        duration=2,
        control_bounds=((0, 1),),
        state_bounds=((0, 1),),
        derivative=lambda x, u: u * x - x**2,
        cost=lambda x, u, _: u[..., 0] - 2 * x[..., 0],
    ),
    "hiv": ControlProblem(
        start=(800, 0.04, 1.5),
        duration=20,
        control_bounds=((0, 1),),
        state_bounds=((0, 1600), (0, 100), (0, 100)),
        derivative=_hiv,
        cost=lambda x, u, _: (1 - u[..., 0]) ** 2 - 0.05 * x[..., 0],
    ),
    "mould": ControlProblem(
        start=(1,),
        duration=5,
        control_bounds=((0, 5),),
        state_bounds=((0, 5),),
        derivative=lambda x, u: 0.3 * (10 - x) - u * x,
        cost=lambda x, u, _: 10 * x[..., 0] ** 2 + u[..., 0] ** 2,
    ),
    "bacteria": ControlProblem(
        start=(1,),
        duration=1,
        control_bounds=((0, 2),),
        state_bounds=((0, 10),),
        derivative=lambda x, u: x + u * x - 12 * u**2 * torch.exp(-x),
        cost=lambda x, u, _: u[..., 0] ** 2,
        final_cost=lambda x: -x[..., 0],
    ),
    "predator_prey": ControlProblem(
        start=(10, 1, 0),
        # Myriad's. With the 100 of Ma et al. and 100 steps, the first Euler steps empty the field.
        duration=10,
        control_bounds=((0, 1),),
        state_bounds=((0, 11), (0, 11), (0, 5)),
        derivative=_predator_prey,
        cost=lambda x, u, _: 0.5 * u[..., 0] ** 2,
        final_cost=lambda x: x[..., 0],
    ),
    "glucose": ControlProblem(
        start=(0.75, 0),
        duration=0.2,
        control_bounds=((0, 0.01),),
        state_bounds=((0, 1), (0, 1)),
        derivative=_glucose,
        cost=lambda x, u, _: 1e5 * (2 * (x[..., 0] - _GLUCOSE_TARGET) ** 2 + u[..., 0] ** 2),
    ),
    "harvest": ControlProblem(
        start=(0.4,),
        duration=10,
        control_bounds=((0, 1),),
        derivative=lambda x, u: -(0.2 + u) * x,
        cost=lambda x, u, time: u[..., 0] ** 2 - 50 * time / (time + 1) * x[..., 0] * u[..., 0],
    ),
    "timber": ControlProblem(
        start=(100,),
        duration=5,
        control_bounds=((0, 1),),
        state_bounds=((0, 20000),),
        derivative=lambda x, u: x * u,
        cost=lambda x, u, _: -x[..., 0] * (1 - u[..., 0]),
    ),
    "invasive_plant": ControlProblem(
        start=(0.5, 1, 1.5, 2, 10),
        duration=10,
        control_bounds=((0, 1),) * 5,
        derivative=lambda x, u: (x + x / (0.01 + x)) * (1 - u) - x,
        cost=lambda x, u, _: (u**2).sum(-1),
        final_cost=lambda x: x.sum(-1),
    ),
}
