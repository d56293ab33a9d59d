"""Rewards per step of the dm_control tasks that TD-MPC2 adds to the suite, as functions of what they measure.

Written `x >= b | m, v` below: 1 if it holds, else falling with the distance to b, and v at the distance m. It falls
in a straight line (to 0, which v = 0.5 reaches at twice m), except for heights of the cheetah and the walker, where it
is a Gaussian with v = 0.1, dm_control's default. Every reward lies in [0, 1]. Metres, seconds, radians.

Source: the released tasks of TD-MPC2 (arXiv 2310.16828, appendix on tasks); the soft inequality is dm_control's
`rewards.tolerance` (arXiv 1801.00690, section 2).
"""

from __future__ import annotations

from math import inf

from dm_control.utils.rewards import tolerance

LIFTED = 1.2
"""Height at which the walker stands and a part of the cheetah is lifted."""


def walker_backwards(height: float, upright: float, velocity: float, *, speed: float) -> float:
    """Walk or run backwards, standing: the stock reward with the velocity's sign turned.

        stand * (5 move + 1) / 6,   stand = (3 (height >= 1.2 | 0.6, 0.1) + (1 + upright) / 2) / 4
                                    move  = (-velocity >= speed | speed / 2, 0.5)

    Args:
        height: of the torso.
        upright: cosine of the angle between the torso and the vertical, in [-1, 1].
        velocity: of the centre of mass, forward.
        speed: backward speed of full reward, 1 to walk and 8 to run.
    """
    stand = (3 * _lifted(height) + (1 + upright) / 2) / 4
    return stand * (5 * _at_least(-velocity, speed, margin=speed / 2, at_margin=0.5) + 1) / 6


def cheetah_run_backwards(velocity: float) -> float:
    """-velocity >= 8 | 8, 0."""
    return _at_least(-velocity, 8, margin=8, at_margin=0)


def cheetah_run_on_one_foot(torso: float, foot: float, velocity: float) -> float:
    """Run forward with the torso and one foot in the air.

        up * (5 (velocity >= 6 | 6, 0) + 1) / 6,   up = (3 (foot >= 1.2 | 0.6, 0.1) + 2 (torso >= 1.2 | 0.6, 0.1)) / 5

    Args:
        torso: its height.
        foot: height of the foot that is not run on.
        velocity: of the centre of mass, forward.
    """
    up = (3 * _lifted(foot) + 2 * _lifted(torso)) / 5
    return up * (5 * _at_least(velocity, 6, margin=6, at_margin=0) + 1) / 6


def cheetah_jump(torso: float, feet: tuple[float, float], velocity: float) -> float:
    """Be in the air on the spot: the mean over the feet of

        (5 ((torso + foot) / 2 >= 1.2 | 0.6, 0.1) + (|velocity| <= 0.5 | 0.5, 0)) / 6

    Args:
        torso: its height.
        feet: heights of both.
        velocity: of the centre of mass, forward.
    """
    height = sum(_lifted((torso + foot) / 2) for foot in feet) / len(feet)
    return (5 * height + _at_least(-abs(velocity), -0.5, margin=0.5, at_margin=0)) / 6


def hopper_hop_backwards(height: float, velocity: float) -> float:
    """[0.6 <= height <= 2] * (-velocity >= 1 | 0.5, 0.5): half of the speed that the stock task asks for forward.

    Args:
        height: of the torso over the foot.
        velocity: of the centre of mass, forward.
    """
    return float(0.6 <= height <= 2) * _at_least(-velocity, 1, margin=0.5, at_margin=0.5)


def cup_spin(distance: float, speed: float, inside: bool) -> float:
    """Swing the ball round the cup.

        [not inside] * ((distance >= 0.5 | 0.25, 0.5) + 2 (speed >= 6 | 3, 0.5)) / 3

    Args:
        distance: from the ball to the middle of the cup.
        speed: of the ball.
        inside: whether the ball is in the cup.
    """
    if inside:
        return 0.0
    far = _at_least(distance, 0.5, margin=0.25, at_margin=0.5)
    return (far + 2 * _at_least(speed, 6, margin=3, at_margin=0.5)) / 3


def pendulum_spin(angular_velocity: float) -> float:
    """|angular_velocity| >= 9 | 4.5, 0.5."""
    return _at_least(abs(angular_velocity), 9, margin=4.5, at_margin=0.5)


def _at_least(x: float, bound: float, *, margin: float, at_margin: float) -> float:
    return float(tolerance(x, bounds=(bound, inf), margin=margin, value_at_margin=at_margin, sigmoid="linear"))


def _lifted(height: float) -> float:
    return float(tolerance(height, bounds=(LIFTED, inf), margin=LIFTED / 2))
