"""Three small mechanical systems on which Ma et al. (arXiv 2402.05290) show what a long gradient path does.

`OneBounce`: the first action throws a ball at a wall; what counts is where it is at the end. `ReleasedPendulum`: the
first action is the angle at which a double pendulum is let go. `DrivenPendulum`: a torque at every step (ours).
All satisfy `DifferentiableTask` of `myriad_dynamics`: batched, differentiable, the state's last column is the time.

Dimension letters: B batch (any leading dimensions), S state, O observation.
"""

from __future__ import annotations

import math

import torch

from .myriad_dynamics import is_last

GRAVITY = 9.8
"""Metres per second squared; both rods are 1 m, both masses 1 kg."""


class OneBounce:
    """State and observation: position, velocity, wall, goal, time.

    The first step sets the velocity to 10 (a - 2), in [-30, -10]; then the ball flies with friction,

        x' = x + v dt,  v' = v - k v dt;    at the wall  x' = x + 2 (wall - x) - v dt,  v' = -v

    and the reward -(x - goal)^2 comes with the last step. The later actions do nothing.
    """

    observation_dim, action_dim = 5, 1
    dt, friction, wall = 0.01, 10.0, -1.0

    def __init__(self, horizon: int, *, goal: float = 0.3, terminal_on_final_state: bool = True) -> None:
        """terminal_on_final_state: False rewards the position before the last transition, as the released code."""
        self.horizon, self.goal = horizon, goal
        self._terminal_on_final_state = terminal_on_final_state

    def initial_state(
        self, count: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64
    ) -> torch.Tensor:
        return torch.tensor([0, 0, self.wall, self.goal, 0], dtype=dtype).expand(count, -1)

    def next_state(self, state: torch.Tensor, action: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        x, v, wall, goal, time = state.unbind(-1)
        moved = v * self.dt
        hits = x + moved <= wall
        flown = torch.where(hits, x + 2 * (wall - x) - moved, x + moved)
        slowed = torch.where(hits, -v, v - self.friction * v * self.dt)
        first = time.round() == 0
        x, v = torch.where(first, 0.0, flown), torch.where(first, 10 * (action[..., 0] - 2), slowed)
        following = torch.stack([x, v, wall, goal, time + 1], -1)
        return following if noise is None else torch.cat([following[..., :2] + noise[..., :2], following[..., 2:]], -1)

    def observe(self, state: torch.Tensor) -> torch.Tensor:
        return state

    def reward(self, observation: torch.Tensor, action: torch.Tensor, next_observation: torch.Tensor) -> torch.Tensor:
        judged = next_observation if self._terminal_on_final_state else observation
        miss = (judged[..., 0] - observation[..., 3]).square()
        return -torch.where(is_last(observation[..., -1], self.horizon), miss, 0.0)


def pendulum_derivative(state_B4: torch.Tensor, torque_B: torch.Tensor) -> torch.Tensor:
    """Time derivative [B, 4] of (angle 1, speed 1, angle 2, speed 2), radians from hanging and radians per second.

    With D = th2 - th1 and den = 2 - cos^2 D:

        w1' = (w1^2 sinD cosD + G sin(th2) cosD + w2^2 sinD - 2 G sin(th1)) / den + torque
        w2' = (-w2^2 sinD cosD + 2 G sin(th1) cosD - 2 w1^2 sinD - 2 G sin(th2)) / den
    """
    th1, w1, th2, w2 = state_B4.unbind(-1)
    sin_d, cos_d = torch.sin(th2 - th1), torch.cos(th2 - th1)
    sin1, sin2 = GRAVITY * torch.sin(th1), GRAVITY * torch.sin(th2)
    both, w1w1, w2w2, den = sin_d * cos_d, w1 * w1, w2 * w2, 2 - cos_d * cos_d
    first = (w1w1 * both + sin2 * cos_d + w2w2 * sin_d - 2 * sin1) / den + torque_B
    second = (2 * sin1 * cos_d - w2w2 * both - 2 * w1w1 * sin_d - 2 * sin2) / den
    return torch.stack([w1, first, w2, second], -1)


def integrate(state_B4: torch.Tensor, torque_B: torch.Tensor, dt: float, substeps: int) -> torch.Tensor:
    """The pendulum [B, 4] after `dt` seconds of constant torque, by `substeps` steps of Runge and Kutta's RK4."""
    h = dt / substeps
    for _ in range(substeps):
        k1 = pendulum_derivative(state_B4, torque_B)
        k2 = pendulum_derivative(state_B4 + h / 2 * k1, torque_B)
        k3 = pendulum_derivative(state_B4 + h / 2 * k2, torque_B)
        k4 = pendulum_derivative(state_B4 + h * k3, torque_B)
        state_B4 = state_B4 + h / 6 * (k1 + 2 * (k2 + k3) + k4)
    return state_B4


class _DoublePendulum:
    """State: angle 1, speed 1, angle 2, speed 2, time. Observation: sine, cosine, speed / 5 of each rod, time."""

    observation_dim, action_dim = 7, 1
    dt = 0.05

    def __init__(self, horizon: int, substeps: int) -> None:
        self.horizon, self._substeps = horizon, substeps

    def observe(self, state: torch.Tensor) -> torch.Tensor:
        th1, w1, th2, w2, time = state.unbind(-1)
        return torch.stack([th1.sin(), th1.cos(), w1 / 5, th2.sin(), th2.cos(), w2 / 5, time], -1)

    def _swing(self, state: torch.Tensor, torque_B: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        swung = integrate(state[..., :4], torque_B, self.dt, self._substeps)
        return torch.cat([swung if noise is None else swung + noise, state[..., 4:] + 1], -1)


class ReleasedPendulum(_DoublePendulum):
    """The first step sets angle 1 to `angle_scale` a and angle 2 to `second_angle`, at rest; then it swings freely.

    The last step's reward is -mean((s - goal)^2) over the observation without its time, where the goal is what the
    release `goal_action` ends in. The later actions do nothing.
    """

    def __init__(
        self,
        horizon: int,
        *,
        angle_scale: float = math.pi,
        second_angle: float = math.pi / 4,
        goal_action: float = 0.7,
        goal_state: tuple[float, ...] | None = None,
        observe_angles: bool = False,
        substeps: int = 4,
        terminal_on_final_state: bool = True,
    ) -> None:
        """Args:
        goal_state: (angle 1, speed 1, angle 2, speed 2) in place of `goal_action`; episodes then start there.
        observe_angles: the state itself is observed, as in the released code, which also has angle_scale 180 and takes
            the result for radians.
        substeps: of RK4 per step; 4 are within 1.3e-4 of the exact path over 20 steps, 50 within 3e-6.
        terminal_on_final_state: False judges the state before the last transition, as the released code does.
        """
        super().__init__(horizon, substeps)
        self._angle_scale, self._second_angle = angle_scale, second_angle
        self._terminal_on_final_state = terminal_on_final_state
        self._observe_angles = observe_angles
        if observe_angles:
            self.observation_dim = 5
        self._start = goal_state or (0.0, 0.0, 0.0, 0.0)
        if goal_state is None:
            goal = self.initial_state(1)
            for _ in range(horizon):
                goal = self.next_state(goal, goal.new_full((1, 1), goal_action))
        else:
            goal = torch.tensor([[*goal_state, 0.0]], dtype=torch.float64)
        self.goal = self.observe(goal)[0, :-1]

    def initial_state(
        self, count: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64
    ) -> torch.Tensor:
        return torch.tensor([*self._start, 0.0], dtype=dtype).expand(count, -1)

    def next_state(self, state: torch.Tensor, action: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        angle, rest = self._angle_scale * action[..., 0], torch.zeros_like(action[..., 0])
        released = torch.stack([angle, rest, rest + self._second_angle, rest, rest + 1], -1)
        swung = self._swing(state, rest, noise)
        return torch.where(state[..., 4:].round() == 0, released, swung)

    def observe(self, state: torch.Tensor) -> torch.Tensor:
        return state if self._observe_angles else super().observe(state)

    def reward(self, observation: torch.Tensor, action: torch.Tensor, next_observation: torch.Tensor) -> torch.Tensor:
        judged = next_observation if self._terminal_on_final_state else observation
        miss = (judged[..., :-1] - self.goal.to(judged)).square().mean(-1)
        return -torch.where(is_last(observation[..., -1], self.horizon), miss, 0.0)


class DrivenPendulum(_DoublePendulum):
    """A torque of 2 a on the first rod, from rest near the top: both angles uniform in pi/2 + 0.8 +- 0.5.

    Reward: the height of the tip, -(cos th1 + cos th2) / 2 in [-1, 1], after every step. Over 100 steps a small
    change of the first action grows some 500-fold.
    """

    def __init__(self, horizon: int, *, substeps: int = 4) -> None:
        super().__init__(horizon, substeps)

    def initial_state(
        self, count: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64
    ) -> torch.Tensor:
        angle = math.pi / 2 + 0.3 + torch.rand(count, 2, generator=generator, dtype=dtype)
        rest = torch.zeros(count, dtype=dtype)
        return torch.stack([angle[:, 0], rest, angle[:, 1], rest, rest], -1)

    def next_state(self, state: torch.Tensor, action: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        return self._swing(state, 2 * action[..., 0], noise)

    def reward(self, observation: torch.Tensor, action: torch.Tensor, next_observation: torch.Tensor) -> torch.Tensor:
        return -(next_observation[..., 1] + next_observation[..., 4]) / 2
