"""Agents of d3rlpy, trained on the transitions of one task of a store.

d3rlpy's own loop draws transitions one at a time in Python; here a batch is one gather of the store's rows, and what is
d3rlpy's are the networks, the losses and their optimisers.

Dimension letters: R rows, N transitions, B batch, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ...datasets.schema import TaskSpec
from ...datasets.store import TaskRows, TaskStore
from ...pipeline import termination
from ...pipeline.artifact import replacing
from ...pipeline.config.schema import build, nearest
from ...pipeline.errors import ConfigError
from ...pipeline.jobs.job import JobContext
from ...pipeline.seeding import derive_seed
from ..sequence_model.losses import observation_statistics
from .config import D3RLPY, BaselinesOfflineConfig
from .library import library
from .mlp_policy import MlpPolicy

CHECKPOINT = "checkpoint.pt"


def build_agent(algorithm: str, spec: TaskSpec, config: BaselinesOfflineConfig) -> Any:
    """An agent of d3rlpy with fresh networks.

    Raises:
        ConfigError: the library has no such setting.
    """
    d3rlpy = library("d3rlpy")
    name = D3RLPY[algorithm]
    config_type = getattr(d3rlpy.algos, f"{name}Config")
    encoder = d3rlpy.models.VectorEncoderFactory
    own = config.settings.get(algorithm, {})
    known = config_type.__dataclass_fields__
    if unknown := sorted(set(own) - set(known)):
        raise ConfigError(
            f"baselines_offline.settings.{algorithm}: d3rlpy's {name}Config has no {unknown[0]!r}."
            f"{nearest(unknown[0], known)} Known: {', '.join(known)}"
        )
    given = {
        "batch_size": config.batch_size,
        "gamma": config.discount or spec.discount,
        "actor_encoder_factory": encoder(hidden_units=config.units),
        "critic_encoder_factory": encoder(hidden_units=config.units, use_layer_norm=algorithm == "rebrac"),
        "value_encoder_factory": encoder(hidden_units=config.units),
    }
    agent = config_type(**{key: value for key, value in given.items() if key in known} | own).create(device=False)
    agent.create_impl((spec.observation_dim,), spec.action_dim)
    return agent


class OfflineBatches:
    """Batches of a task's transitions, with observations in standard deviations from their mean and scaled rewards.

    Rewards are scaled so that the returns of the data span the steps of an episode: IQL's normalisation (arXiv
    2110.06169), under which rewards of a step are about 1 in every task.
    """

    def __init__(self, task: TaskRows, observation_dim: int) -> None:
        """Args:
        observation_dim: O of the store's table.
        """
        spec, self._rows = task.spec, task.rows
        mean, scale = observation_statistics(task, observation_dim)
        self.mean_O, self.scale_O = mean[: spec.observation_dim], scale[: spec.observation_dim]
        self._observation = slice(spec.observation_dim)
        self._action = slice(observation_dim, observation_dim + spec.action_dim)
        span = float(np.ptp(task.returns))
        self._reward_scale = spec.episode_length / span if span > 0 else 1.0
        last = torch.from_numpy(task.offsets[1:] - 1)
        """Row of each episode's final observation."""
        self._final = torch.zeros(len(self._rows), dtype=torch.bool)
        self._final[last] = True
        self._terminal = torch.zeros(len(self._rows))
        self._terminal[last[torch.from_numpy(task.terminated)] - 1] = 1
        self._first_N = (~self._final).nonzero()[:, 0]

    def draw(self, batch_size: int, generator: torch.Generator) -> Any:
        """A TorchMiniBatch of random transitions."""
        row = self._first_N[torch.randint(len(self._first_N), (batch_size,), generator=generator)]
        here, after = self._rows[row], self._rows[row + 1]
        # No action follows the final observation; ReBRAC compares it with the policy's there, as it does elsewhere.
        next_action = torch.where(self._final[row + 1, None], here[:, self._action], after[:, self._action])
        return library("d3rlpy.torch_utility").TorchMiniBatch(
            observations=self._scaled(here),
            actions=here[:, self._action].contiguous(),
            rewards=here[:, -1:] * self._reward_scale,
            next_observations=self._scaled(after),
            next_actions=next_action,
            returns_to_go=torch.zeros(batch_size, 1),
            terminals=self._terminal[row, None],
            intervals=torch.ones(batch_size, 1),
            device="cpu:0",
        )

    def _scaled(self, rows: torch.Tensor) -> torch.Tensor:
        return (rows[:, self._observation] - self.mean_O) / self.scale_O


def learn_offline(payload: Mapping[str, Any], job: JobContext) -> None:
    """Job of the stage: train one agent; leaves `policy` and curve.csv. Continues from a checkpoint bit for bit.

    Args:
        payload: algorithm, task (name), seed, config (a BaselinesOfflineConfig's dict).
    """
    import pandas as pd

    config: BaselinesOfflineConfig = build(BaselinesOfflineConfig, dict(payload["config"]), "baselines_offline")
    algorithm, name, seed = payload["algorithm"], payload["task"], payload["seed"]
    torch.set_num_threads(job.threads)
    store = TaskStore.open(job.inputs["store"])
    task = store.rows_of(name)
    data = OfflineBatches(task, store.table.observation_dim)
    own_seed = derive_seed(algorithm, config.seed, name, seed) % 2**63
    draws = torch.Generator().manual_seed(own_seed)
    curve: list[dict[str, Any]] = []
    losses: dict[str, float] = {}
    """Latest of each: an actor is not updated every time."""
    first, checkpoint = 0, job.folder / CHECKPOINT
    with torch.random.fork_rng(devices=[]):  # d3rlpy draws initial weights and noise from torch's own generator
        torch.manual_seed(own_seed)
        agent = build_agent(algorithm, task.spec, config)
        trained = agent.impl.modules.create_checkpointer("cpu:0").modules
        if checkpoint.is_file():
            saved = torch.load(checkpoint, weights_only=True)
            for key, module in trained.items():
                module.load_state_dict(saved["modules"][key])
            draws.set_state(saved["draws"])
            torch.set_rng_state(saved["noise"])
            first, curve, losses = saved["updates"], saved["curve"], saved["losses"]
        with (
            termination.deferred(),
            job.progress(f"{algorithm} {name}, seed {seed}", total=config.updates, completed=first) as progress,
        ):
            for done in range(first + 1, config.updates + 1):
                losses |= agent.impl.update(data.draw(config.batch_size, draws), done - 1)
                progress.advance(1)
                if done % config.log_every == 0 or done == config.updates:
                    curve.append({"iteration": done, "algorithm": algorithm, "task": name, "seed": seed, **losses})
                    progress.note(", ".join(f"{key} {value:.3g}" for key, value in losses.items()))
                if done % config.checkpoint_every == 0 or termination.requested():
                    with replacing(checkpoint) as temporary:
                        torch.save(
                            {
                                "modules": {key: module.state_dict() for key, module in trained.items()},
                                "draws": draws.get_state(),
                                "noise": torch.get_rng_state(),
                                "updates": done,
                                "curve": curve,
                                "losses": losses,
                            },
                            temporary,
                        )
                if termination.requested():
                    break
    policy_of(agent, data, task.spec, {"algorithm": algorithm, "seed": seed}).save(job.folder / "policy")
    pd.DataFrame(curve).to_csv(job.folder / "curve.csv", index=False)
    checkpoint.unlink(missing_ok=True)


def policy_of(agent: Any, data: OfflineBatches, spec: TaskSpec, trained_by: dict[str, Any]) -> MlpPolicy:
    """What the agent does without noise: tanh of its mean."""
    actor = agent.impl.policy
    hidden = len(agent.config.actor_encoder_factory.hidden_units)
    # A stochastic actor has one more, of its standard deviation.
    linears = [layer for layer in actor.modules() if isinstance(layer, nn.Linear)][: hidden + 1]
    return MlpPolicy.from_linears(linears, (data.mean_O, data.scale_O), spec, trained_by)
