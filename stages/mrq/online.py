"""Train one policy online: environments, replay, training steps, evaluation, and exact resume.

Once the warm-up of random actions is over, a training step follows every `update_every` steps. The state holds
everything, so that an interrupted run ends with the same numbers as an uninterrupted one: an unfinished episode is
restored by replaying its actions from its seed.

Dimension letters: B environments, O observation, A action.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ...datasets.collect import Controller, exploration
from ...datasets.recorded import write_episodes
from ...datasets.rollout import play_episodes, policy_act
from ...datasets.schema import TaskSpec
from ...datasets.tasks import make_environment
from ...datasets.tasks.task_env import TaskEnv
from ...pipeline import termination
from ...pipeline.accelerator import device_of
from ...pipeline.artifact import replacing
from ...pipeline.config.schema import build
from ...pipeline.errors import CheckpointError, ConfigError, StageError
from ...pipeline.jobs.job import JobContext
from ...pipeline.memory import reuse_freed_memory
from ...pipeline.seeding import derive_seed
from ..training.loggers import logging_rows
from .config import MrqOnlineConfig, vary
from .learner import Learner, Shapes
from .networks import check_image
from .policy import MrqPolicy, policy_of_member
from .replay import Replay

CHECKPOINT = "checkpoint.pt"


def learn_online(payload: Mapping[str, Any], job: JobContext) -> None:
    """Job of the stage: train one policy, and leave it in `policy/`, its curve in curve.csv and on request its data.

    Args:
        payload: task (a TaskSpec's dict), algorithm, variant, seed, config (a MrqOnlineConfig's dict).
    """
    import pandas as pd

    config: MrqOnlineConfig = build(MrqOnlineConfig, dict(payload["config"]), "mrq_online")
    torch.set_num_threads(job.threads)
    reuse_freed_memory()
    spec = TaskSpec.from_dict(payload["task"])
    training = OnlineTraining(spec, config, payload["variant"], payload["seed"])
    checkpoint = job.folder / CHECKPOINT
    if checkpoint.is_file():
        training.load_state_dict(torch.load(checkpoint, map_location=training.learner.device, weights_only=True))
    name = f"{payload['algorithm']} {spec.name}, seed {payload['seed']}"
    of_policy = {"algorithm": payload["algorithm"], "task": spec.name, "seed": payload["seed"]}
    with (
        job.progress(name, total=config.steps, completed=training.steps) as progress,
        termination.deferred(),
        logging_rows(config.loggers, job, config) as log,
    ):
        while training.steps < config.steps and not termination.requested():
            before, logged = training.steps, len(training.curve)
            training.advance()
            log([{**of_policy, **row} for row in training.curve[logged:]])
            progress.advance(training.steps - before)
            if training.curve:
                progress.note(f"return {training.curve[-1]['return_mean']:.1f} at {training.curve[-1]['iteration']}")
            if _passed(before, training.steps, config.evaluate_every):
                pd.DataFrame(training.curve).to_csv(job.folder / "curve.csv", index=False)
            if _passed(before, training.steps, config.checkpoint_every) or termination.requested():
                with replacing(checkpoint) as temporary:
                    torch.save(training.state_dict(), temporary)
    pd.DataFrame([{**of_policy, **row} for row in training.curve]).to_csv(job.folder / "curve.csv", index=False)
    training.policy({"algorithm": payload["algorithm"], "seed": payload["seed"]}).save(job.folder / "policy")
    if config.keep_replay:
        write_episodes(
            job.folder / "episodes.npz",
            list(training.replay.episodes()),
            "mrq_online.steps or a larger mrq_online.replay_size",
        )
    checkpoint.unlink(missing_ok=True)


def _passed(before: int, now: int, every: int) -> bool:
    return now // every > before // every


@dataclass
class _Lane:
    """An environment with its current episode."""

    environment: TaskEnv
    number: int = -1
    """Episodes begun, counted from 0."""
    observation: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    actions: list[np.ndarray] = field(default_factory=list)
    explore: Controller | None = None
    """Of this episode's warm-up; None where its actions are uniform."""


class OnlineTraining:
    """A Learner of one member with its replay and environments."""

    def __init__(self, spec: TaskSpec, config: MrqOnlineConfig, variant: str, seed: int) -> None:
        """Raises:
        ConfigError: observations or actions that MR.Q cannot take.
        TaskError: the environment cannot be built.
        """
        self.spec, self.config, self.seed = spec, config, seed
        learn = vary(config.learn, variant)
        self._lanes = [_Lane(make_environment(spec)) for _ in range(config.environments)]
        self._image = image_shape(self._lanes[0].environment, config.frames)
        shape = (spec.observation_dim,) if self._image is None else self._image
        assert spec.discount is not None
        discount = learn.discount or spec.discount
        shapes = Shapes(shape, spec.action_kind == "discrete", torch.ones(1, spec.action_dim), torch.tensor([discount]))
        self._shape = shape
        device = device_of(config.accelerator)
        self.learner = Learner(
            shapes, learn, [derive_seed("mrq_online", config.seed, spec.name, variant, seed)], device
        )
        stored = shape if self._image is None else (shape[0] // config.frames, *shape[1:])
        self.replay = Replay(
            config.replay_size,
            stored,
            spec.action_dim,
            learn.horizons,
            lanes=config.environments,
            frames=1 if self._image is None else config.frames,
            device=device,
            prioritised=learn.design.prioritised,
            released_starts=learn.released.starts,
        )
        self.steps = 0
        """Steps played, over all environments."""
        self.curve: list[dict[str, Any]] = []
        """One row per evaluation."""
        self._evaluation: list[TaskEnv] = []
        self._metrics: dict[str, torch.Tensor] = {}

    def advance(self) -> None:
        """Step every environment, make the training steps that follow, and evaluate if due."""
        if self.steps == 0 and not self.curve:
            self._begin()
        before = self.steps
        actions = self._choose()
        for index, (lane, action) in enumerate(zip(self._lanes, actions, strict=True)):
            self._step(index, lane, action)
        for _ in range(self.config.environments):
            self.steps += 1
            if self.steps > self.config.warmup and self.steps % self.config.update_every == 0:
                self._metrics |= self.learner.train([self.replay])
        if _passed(before, self.steps, self.config.evaluate_every) or self.steps >= self.config.steps:
            self._evaluate()

    def _begin(self) -> None:
        for index, lane in enumerate(self._lanes):
            self._reset(index, lane)
        self._evaluate()

    def _choose(self) -> np.ndarray:
        """[B, A]."""
        if self.steps < self.config.warmup:
            explored = [lane.explore(lane.observation) for lane in self._lanes if lane.explore is not None]
            if explored:
                return np.stack(explored)
            return self.learner.actions.uniform(len(self._lanes))[0].cpu().numpy()
        observation = torch.from_numpy(np.stack([lane.observation for lane in self._lanes])).to(self.replay.device)
        return self.learner.explore(observation.unflatten(-1, self._shape)[None])[0].cpu().numpy()

    def _step(self, index: int, lane: _Lane, action: np.ndarray) -> None:
        try:
            observation, reward, terminated, truncated, info = lane.environment.step(action)
        except Exception as error:
            # Simulators raise what they like; what was learned so far is in the last checkpoint.
            raise StageError(f"{self._place(index, lane)}: {type(error).__name__}: {error}") from error
        if not math.isfinite(reward) or not np.isfinite(observation).all():
            raise StageError(f"{self._place(index, lane)}: reward {reward}, expected finite rewards and observations")
        self.replay.add(
            index,
            self._stored(lane.observation),
            torch.from_numpy(action),
            reward,
            self._stored(observation),
            terminated,
            truncated,
            bool(info.get("success", False)),
        )
        lane.observation = observation
        lane.actions.append(action)
        if terminated or truncated:
            self._reset(index, lane)

    def _stored(self, observation: np.ndarray) -> torch.Tensor:
        """Return what the replay stores: a vector, or the newest frame of a stack."""
        if self._image is None:
            return torch.from_numpy(observation)
        channels = self._image[0] // self.config.frames
        return torch.from_numpy(observation.reshape(self._image)[-channels:].astype(np.uint8))

    def _reset(self, index: int, lane: _Lane) -> None:
        lane.number += 1
        lane.actions = []
        seed = self._episode_seed(index, lane)
        lane.observation, _ = lane.environment.reset(seed=seed)
        if self.config.warmup_actions == "exploration":
            lane.explore = exploration(self.spec, np.random.default_rng([seed, 1]))

    def _episode_seed(self, index: int, lane: _Lane) -> int:
        """Below 2**31, where evaluation has none."""
        return derive_seed("mrq_episode", self.config.seed, self.spec.name, self.seed, index, lane.number) % 2**31

    def _place(self, index: int, lane: _Lane) -> str:
        return f"task {self.spec.name!r}, environment {index}, episode {lane.number}, step {len(lane.actions)}"

    def _evaluate(self) -> None:
        """Play the policy without noise, in separate environments with separate seeds."""
        seeds = [
            2**31 + derive_seed("mrq_evaluate", self.config.seed, self.spec.name, self.seed, episode) % 2**31
            for episode in range(self.config.evaluation_episodes)
        ]
        act = policy_act(self.policy({}))
        results = dict(play_episodes(self.spec, act, seeds, pool=self._evaluation))
        failed = [result.error for result in results.values() if result.error is not None]
        if failed:
            raise StageError(f"task {self.spec.name!r}: an evaluation episode failed: {failed[0]}")
        returns = [result.return_ for result in results.values()]
        self.learner.check_finite(self._metrics)
        self.curve.append(
            {
                "iteration": self.steps,
                "return_mean": float(np.mean(returns)),
                "return_std": float(np.std(returns)),
                **{name: float(value[0]) for name, value in self._metrics.items()},
            }
        )

    def policy(self, trained_by: dict[str, Any]) -> MrqPolicy:
        """Return a copy of the current policy on the CPU."""
        learner = self.learner
        return policy_of_member(
            learner.encoder,
            learner.policy,
            0,
            self.spec,
            learner.config.networks,
            self._shape,
            self.spec.action_dim,
            trained_by,
        )

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only."""
        return {
            "task": self.spec.to_dict(),
            "learner": self.learner.state_dict(),
            "replay": self.replay.state_dict(),
            "lanes": [
                {
                    "number": lane.number,
                    "observation": torch.from_numpy(lane.observation),
                    "actions": torch.from_numpy(np.array(lane.actions, np.float32)),
                }
                for lane in self._lanes
            ],
            "steps": self.steps,
            "curve": self.curve,
            "metrics": self._metrics,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of the same task.

        Raises:
            CheckpointError: it is of another task or another environment.
        """
        check_same_task(state["task"], self.spec)
        if len(state["lanes"]) != len(self._lanes):
            raise CheckpointError(
                f"the checkpoint has {len(state['lanes'])} environments, this run has {len(self._lanes)}; resume with "
                "the same number"
            )
        self.replay.load_state_dict(state["replay"])
        self.learner.load_state_dict(state["learner"])
        self.steps, self.curve = state["steps"], state["curve"]
        self._metrics = state["metrics"]
        for index, (lane, saved) in enumerate(zip(self._lanes, state["lanes"], strict=True)):
            lane.number = saved["number"] - 1
            self._reset(index, lane)
            for action in saved["actions"].numpy():
                if lane.explore is not None:  # its actions depend on how often it was asked
                    lane.explore(lane.observation)
                lane.observation = lane.environment.step(action)[0]
                lane.actions.append(action)
            if not np.array_equal(lane.observation, saved["observation"].numpy()):
                raise CheckpointError(
                    f"{self._place(index, lane)}: replayed from its seed, the current episode ends in another "
                    "observation than in the checkpoint. The environment or its version has changed, or its episodes "
                    "do not depend on seeds only: resume with the same environment, or start from scratch"
                )


def image_shape(environment: TaskEnv, frames: int) -> tuple[int, ...] | None:
    """Shape (C, 84, 84) of image observations; None if observations are vectors.

    Raises:
        ConfigError: images that the encoder cannot take, or whose channels are not a multiple of `frames`.
    """
    space = environment.native.observation_space
    shape = space.shape
    if shape is None or len(shape) < 3:
        return None
    check_image(shape)
    if space.dtype != np.uint8:
        raise ConfigError(f"task {environment.task.name!r}: images must be uint8 in 0..255, found {space.dtype}")
    if shape[0] % frames:
        raise ConfigError(
            f"task {environment.task.name!r}: images have {shape[0]} channels, which is not a multiple of "
            f"mrq_online.frames={frames}, the frames that the environment stacks"
        )
    return tuple(shape)


def check_same_task(saved: Mapping[str, Any], spec: TaskSpec) -> None:
    """Raise a CheckpointError that names what differs between a checkpoint's task and the one to be resumed."""
    now = dataclasses.asdict(spec)
    differences = [f"{name} {saved.get(name)!r} -> {now[name]!r}" for name in now if saved.get(name) != now[name]]
    if differences:
        raise CheckpointError(
            f"the checkpoint is of task {saved['name']!r}, which differs from {spec.name!r} in: "
            f"{'; '.join(differences)}. Resume with the same environment, or start in another run folder"
        )
