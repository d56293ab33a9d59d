"""Small policies of every kind, with random weights and an environment each, for tests of what is done with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.stages.baselines.mlp_policy import MlpPolicy, MlpPolicyConfig
from orrery.stages.bpo.policy import StackedPolicy, StatePolicy
from orrery.stages.extraction.actor_critic import StackedActor
from orrery.stages.extraction.config import ActorCriticConfig
from orrery.stages.extraction.policy import LatentPolicy
from orrery.stages.mrq.config import NetworkConfig
from orrery.stages.mrq.policy import MrqPolicy, MrqPolicyConfig
from orrery.stages.powr.features import Features, index_features, raw_features
from orrery.stages.powr.kernels import StateKernel
from orrery.stages.powr.policy import Behaviour, KernelPolicy, Penalty
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.networks import WorldModel
from orrery.stages.world_model.task_encoder import TaskEncoder

F64 = torch.float64


class Arm(gymnasium.Env[np.ndarray, np.ndarray]):
    """Three numbers to see, two joints to move in units and a shape of their own; success where both are high."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 60}
    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = spaces.Box(np.array([[-2.0], [0.0]]), np.array([[2.0], [10.0]]), (2, 1), np.float64)

    def __init__(self, render_mode: str | None = None, broken: str = "") -> None:
        self.render_mode, self.broken = render_mode, broken

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._state, self._steps = np.random.default_rng(seed).standard_normal(3), 0
        return self._state.copy(), {}

    def step(self, action: np.ndarray) -> Any:
        assert self.action_space.contains(action)
        if self.broken == "step":
            raise RuntimeError("the joint is stuck")
        self._steps += 1
        self._state = np.tanh(self._state + np.array([0.1, *(0.1 * action[:, 0])]))
        return self._state.copy(), float(self._state[2]), False, False, {"success": bool(self._state[1] > 0)}

    def render(self) -> np.ndarray:
        if self.broken == "render":
            raise RuntimeError("no display")
        picture = np.zeros((32, 48, 3), np.uint8)
        picture[2 * self._steps : 2 * self._steps + 2] = 255  # a bar that falls with time
        return picture


class Grid(gymnasium.Env[int, int]):
    """Five numbered states from 10 on, three choices from 5 on."""

    observation_space = spaces.Discrete(5, start=10)
    action_space = spaces.Discrete(3, start=5)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._state = 10 + (seed or 0) % 5
        return self._state, {}

    def step(self, action: int) -> Any:
        assert 5 <= action < 8
        self._state = 10 + (self._state + action) % 5
        return self._state, float(self._state == 12), False, False, {}


class Rooms(gymnasium.Env[Any, Any]):
    """A room's number, and where in it one stands."""

    observation_space = spaces.Dict({"place": spaces.Box(0, 1, (2,)), "room": spaces.Discrete(3)})
    action_space = spaces.Discrete(2)


gymnasium.register("OrreryTest/Arm-v0", Arm)
gymnasium.register("OrreryTest/Rooms-v0", Rooms)
gymnasium.register("OrreryTest/Grid-v0", Grid)


def arm_task(**changes: Any) -> TaskSpec:
    kwargs = changes.pop("kwargs", {})
    values = {
        "observation_dim": 3,
        "action_dim": 2,
        "episode_length": 8,
        "reports_success": True,
        "environment": {"kind": "gymnasium", "id": "OrreryTest/Arm-v0", "kwargs": kwargs},
    }
    return TaskSpec("test/arm", **(values | changes))


def arm_choices() -> TaskSpec:
    """The arm's observations, with choices instead of joints, and no environment."""
    return arm_task(action_kind="discrete", action_dim=4, environment={})


def grid_task() -> TaskSpec:
    environment = {"kind": "gymnasium", "id": "OrreryTest/Grid-v0"}
    return TaskSpec("test/grid", 5, 3, 8, action_kind="discrete", environment=environment)


def world_model(task: TaskSpec) -> WorldModel:
    """Of the task and a wider one, none of its parts degenerate."""
    config = WorldModelConfig(
        latent_dim=16, task_dim=4, encoder_dim=24, encoder_layers=2, mlp_dim=8, num_q=0, activation="mish",
        wrap_angles=True,
    )  # fmt: skip
    model = WorldModel(config, TaskTable([TaskSpec("test/wide", 6, 5, 10), task]))
    _disturb(model)
    model.set_observation_statistics(1, torch.randn(task.observation_dim), 1 + torch.rand(task.observation_dim))
    model.angle_KO[1, 1 : task.observation_dim] = 1
    return model.freeze()


def latent(task: TaskSpec) -> LatentPolicy:
    model, networks = world_model(task), ActorCriticConfig(actor_units=[12, 8])
    actor = StackedActor(2, 16, 5, networks)
    _disturb(actor)
    return LatentPolicy.from_member(model, actor, 1, task, networks, {"algorithm": "pwm", "seed": 3})


def state(task: TaskSpec) -> StatePolicy:
    stacked = StackedPolicy(2, task.observation_dim, task.action_dim, (12,))
    _disturb(stacked)
    return StatePolicy.from_member(stacked, 1, task, (12,), {"algorithm": "bpo", "seed": 0})


def perceptron(task: TaskSpec) -> MlpPolicy:
    policy = MlpPolicy(MlpPolicyConfig("mlp", task.to_dict(), [12], {"algorithm": "sac", "seed": 0}))
    _disturb(policy)
    return policy.eval().requires_grad_(False)


def mrq(task: TaskSpec, on_latents: bool = False) -> MrqPolicy:
    networks = NetworkConfig(latent_dim=12, encoder_dim=16, policy_dim=10)
    encoder = TaskEncoder.of(world_model(task), task.name) if on_latents else None
    described = None if encoder is None else encoder.describe()
    width = 16 if on_latents else 6
    made = {"algorithm": "mrq", "seed": 0}
    config = MrqPolicyConfig("mrq", task.to_dict(), vars(networks), [width], 5, described, made)
    policy = MrqPolicy(config)
    _disturb(policy)
    return policy.eval().requires_grad_(False)


def pixels() -> MrqPolicy:
    """On images of the shape that MR.Q's encoder takes."""
    task = TaskSpec("test/pixels", 2 * 84 * 84, 2, 8)
    config = MrqPolicyConfig(
        "mrq", task.to_dict(), vars(NetworkConfig(latent_dim=12, policy_dim=10)), [2, 84, 84], 2, None, {}
    )
    policy = MrqPolicy(config)
    _disturb(policy)
    return policy.eval().requires_grad_(False)


def kernel(task: TaskSpec, kind: str, action: str = "mode", full: bool = False, encoder: bool = False) -> KernelPolicy:
    choices = task.action_dim if task.action_kind == "discrete" else 4
    features = index_features(task.observation_dim) if kind == "delta" else raw_features(task.observation_dim)
    if encoder:
        features = Features(torch.randn(16), torch.randn(16, 3), TaskEncoder.of(world_model(task), task.name))
    width = features.projection_ED.shape[1]
    centre_MD = torch.arange(task.observation_dim, dtype=F64)[:, None] if kind == "delta" else torch.randn(9, width)
    behaviour = penalty = None
    if full:
        behaviour = Behaviour(torch.randn(7, width, dtype=F64), torch.softmax(torch.randn(7, choices), 1), 0.8, 0.1)
        penalty = Penalty(0.7, torch.eye(choices, dtype=F64)[torch.arange(9) % choices].T, 0.1 * torch.eye(9))
    candidates = None if task.action_kind == "discrete" else torch.rand(choices, task.action_dim) * 2 - 1
    return KernelPolicy.of(
        task, features, StateKernel.of(kind, [0.5] * width if kind == "gaussian" else 1.5), centre_MD,
        torch.randn(len(centre_MD), choices), {"algorithm": "powr", "seed": 0},
        candidate_UA=candidates, action=action, behaviour=behaviour, penalty=penalty,
    )  # fmt: skip


def save_run(folder: Path) -> Path:
    """A run with a stage that made two policies of the arm, of two algorithms, and one of the grid."""
    entries = []
    for algorithm, policy, seed in [("pwm", latent(arm_task()), 3), ("bpo", state(arm_task()), 0),
                                    ("powr", kernel(grid_task(), "delta"), 0)]:  # fmt: skip
        path = f"{algorithm}/{policy.task.slug}/seed_{seed}"
        policy.save(folder / "extract" / path)
        entries.append({"algorithm": algorithm, "task": policy.task.name, "seed": seed, "path": path})
    index = {"tasks": [arm_task().to_dict(), grid_task().to_dict()], "policies": entries}
    (folder / "extract" / "policies.json").write_text(json.dumps(index))
    return folder


def _disturb(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
