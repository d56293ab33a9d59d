"""The 11 dm_control tasks that TD-MPC2 adds, built from the suite's own models, so that they run without its code.

Observations, first states and time steps are those of the stock domain except where a class below says otherwise. The
models differ in two ways: the floors of walker and cheetah are twice as long, which shows in pictures only (a plane is
infinite in collisions), and the three-link reacher has a link and a hinge more. No time limit: `TaskEnv` keeps it.

Source: the released tasks of TD-MPC2 (arXiv 2310.16828). Importing this file imports dm_control's simulator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np
from dm_control.rl.control import Environment
from dm_control.suite import ball_in_cup, cheetah, hopper, pendulum, reacher, walker

from . import tdmpc2_rewards as rewards

SEED = 0
"""Of the tasks as built; `DmControl` replaces their random state at every reset."""

CUP_SHARE = 0.9
"""Share of the episodes of cup-spin that start with the ball in the cup."""

REACHER_LINK = 0.09
"""Metres from joint to joint of the three-link reacher."""


class WalkerBackwards(walker.PlanarWalker):
    """Walk or run backwards at a given speed."""

    def __init__(self, speed: float) -> None:
        super().__init__(move_speed=speed, random=SEED)
        self.speed = speed

    def get_reward(self, physics: walker.Physics) -> float:
        return rewards.walker_backwards(
            physics.torso_height(), physics.torso_upright(), physics.horizontal_velocity(), speed=self.speed
        )


class CheetahRunBackwards(cheetah.Cheetah):
    """Run backwards."""

    def get_reward(self, physics: cheetah.Physics) -> float:
        return rewards.cheetah_run_backwards(physics.speed())


class CheetahRunOnOneFoot(cheetah.Cheetah):
    """Run with one foot lifted."""

    def __init__(self, lifted_foot: str) -> None:
        super().__init__(random=SEED)
        self.lifted_foot = lifted_foot

    def get_reward(self, physics: cheetah.Physics) -> float:
        torso, foot = _heights(physics, "torso", self.lifted_foot)
        return rewards.cheetah_run_on_one_foot(torso, foot, physics.speed())


class CheetahJump(cheetah.Cheetah):
    """Jump high while standing still."""

    def get_reward(self, physics: cheetah.Physics) -> float:
        torso, back, front = _heights(physics, "torso", "bfoot", "ffoot")
        return rewards.cheetah_jump(torso, (back, front), physics.speed())


class HopperHopBackwards(hopper.Hopper):
    """Hop backwards."""

    def get_reward(self, physics: hopper.Physics) -> float:
        return rewards.hopper_hop_backwards(physics.height(), physics.speed())


class CupSpin(ball_in_cup.BallInCup):
    """Starts as the stock task; in `CUP_SHARE` of the episodes, as one of its starts with the ball in the cup."""

    def initialize_episode(self, physics: ball_in_cup.Physics) -> None:
        anywhere = self.random.uniform() < 1 - CUP_SHARE
        super().initialize_episode(physics)
        while not (anywhere or physics.in_target()):
            super().initialize_episode(physics)

    def get_reward(self, physics: ball_in_cup.Physics) -> float:
        distance = float(np.linalg.norm(physics.ball_to_target()))
        velocity = [physics.named.data.qvel[joint].item() for joint in ("ball_x", "ball_z")]
        return rewards.cup_spin(distance, float(np.linalg.norm(velocity)), bool(physics.in_target()))


class PendulumSpin(pendulum.SwingUp):
    """Spin at a high angular velocity."""

    def get_reward(self, physics: pendulum.Physics) -> float:
        return rewards.pendulum_spin(physics.angular_velocity().item())


def three_link_reacher() -> str:
    """XML of the stock reacher with a third link, the forearm, between arm and hand.

    Neighbouring joints lie `REACHER_LINK` apart, and so does the finger from the wrist (stock: 0.12 m); elbow and wrist
    turn by 80 degrees each way (stock: the wrist by 160).
    """
    xml, _ = reacher.get_model_and_assets()
    model = ElementTree.fromstring(xml)
    part = {(element.tag, element.get("name")): element for element in model.iter()}
    arm, hand = part["body", "arm"], part["body", "hand"]
    link, end = f"0 0 0 {REACHER_LINK} 0 0", f"{REACHER_LINK} 0 0"
    turn = {"limited": "true", "range": "-80 80"}

    forearm = ElementTree.Element("body", name="forearm", pos=end)
    ElementTree.SubElement(forearm, "geom", {**part["geom", "arm"].attrib, "name": "forearm", "fromto": link})
    ElementTree.SubElement(forearm, "joint", {"name": "elbow", **turn})
    arm.remove(hand)
    forearm.append(hand)
    arm.append(forearm)
    part["geom", "arm"].set("fromto", link)
    part["joint", "wrist"].attrib.update(turn)
    hand.set("pos", end)
    part["body", "finger"].set("pos", end)

    motors = next(model.iter("actuator"))
    motors.insert(1, ElementTree.Element("motor", name="elbow", joint="elbow"))
    return ElementTree.tostring(model, encoding="unicode")


def _walker(speed: float) -> Environment:
    physics = walker.Physics.from_xml_string(*walker.get_model_and_assets())
    physics.named.model.geom_size["floor", 0] = 500
    return Environment(physics, WalkerBackwards(speed), control_timestep=0.025)


def _cheetah(task: cheetah.Cheetah) -> Environment:
    physics = cheetah.Physics.from_xml_string(*cheetah.get_model_and_assets())
    physics.named.model.geom_size["ground", 0] = 200
    return Environment(physics, task)


def _hopper() -> Environment:
    physics = hopper.Physics.from_xml_string(*hopper.get_model_and_assets())
    return Environment(physics, HopperHopBackwards(hopping=True, random=SEED), control_timestep=0.02)


def _reacher(target_size: float) -> Environment:
    _, assets = reacher.get_model_and_assets()
    physics = reacher.Physics.from_xml_string(three_link_reacher(), assets)
    return Environment(physics, reacher.Reacher(target_size=target_size, random=SEED))


def _cup() -> Environment:
    physics = ball_in_cup.Physics.from_xml_string(*ball_in_cup.get_model_and_assets())
    return Environment(physics, CupSpin(random=SEED), control_timestep=0.02)


def _pendulum() -> Environment:
    physics = pendulum.Physics.from_xml_string(*pendulum.get_model_and_assets())
    return Environment(physics, PendulumSpin(random=SEED))


BUILD: dict[tuple[str, str], Callable[[], Any]] = {
    ("walker", "walk-backwards"): lambda: _walker(speed=1),
    ("walker", "run-backwards"): lambda: _walker(speed=8),
    ("cheetah", "run-backwards"): lambda: _cheetah(CheetahRunBackwards(random=SEED)),
    ("cheetah", "run-front"): lambda: _cheetah(CheetahRunOnOneFoot(lifted_foot="bfoot")),
    ("cheetah", "run-back"): lambda: _cheetah(CheetahRunOnOneFoot(lifted_foot="ffoot")),
    ("cheetah", "jump"): lambda: _cheetah(CheetahJump(random=SEED)),
    ("hopper", "hop-backwards"): _hopper,
    ("reacher", "three-easy"): lambda: _reacher(target_size=0.05),
    ("reacher", "three-hard"): lambda: _reacher(target_size=0.015),
    ("ball_in_cup", "spin"): _cup,
    ("pendulum", "spin"): _pendulum,
}
"""Domain and task -> a function that builds the dm_control environment."""


def _heights(physics: cheetah.Physics, *bodies: str) -> list[float]:
    return [float(physics.named.data.xpos[body, "z"]) for body in bodies]
