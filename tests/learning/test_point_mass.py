"""The pipeline learns: on a point mass whose dynamics are known, extraction beats behaviour cloning and chance.

A point on a line, x' = x + 0.2 v, v' = 0.8 v + 0.4 a, reward exp(-4 x^2), 25 steps from x ~ U(-1, 1). Held random
actions make the data. Doing nothing earns about 11, random actions 9.5, a proportional-derivative controller 19.
"""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from orrery.pipeline.logging import ConsoleProgress
from orrery.pipeline.stage import Context
from orrery.stages.extraction.config import ActorCriticConfig, ExtractConfig, FirstOrderConfig
from orrery.stages.extraction.stage_extract import Extract
from orrery.stages.policy.policy import load_policy
from orrery.stages.pretrain.config import PretrainConfig
from orrery.stages.pretrain.stage_pretrain import Pretrain
from orrery.stages.training.config import OptimizerConfig, TrainerConfig
from orrery.stages.world_model.config import WorldModelConfig

from ..unit.stores import point_mass_episodes, point_mass_spec, write_store

# The second task pushes the other way and has a padded, idle observation: one model, two different tasks.
TASKS = {"toy/push": 1.0, "toy/pull": -1.0}


def play(act, sign, episodes=64, seed=1):
    """Mean return of `act`, a function of observations [B, 2], from fixed starts."""
    state = np.stack([np.random.default_rng(seed).uniform(-1, 1, episodes), np.zeros(episodes)], 1)
    total = np.zeros(episodes)
    for _ in range(25):
        action = act(state.astype(np.float32))
        total += np.exp(-4 * state[:, 0] ** 2)
        state = np.stack([state[:, 0] + 0.2 * state[:, 1], 0.8 * state[:, 1] + 0.4 * sign * action], 1)
    return total.mean()


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learning")
    tasks = []
    for seed, (name, sign) in enumerate(TASKS.items()):
        spec = point_mass_spec(name)
        episodes = point_mass_episodes(spec, 80, seed)
        for episode in episodes:
            episode.actions[:] *= sign
        tasks.append((spec, episodes))
    write_store(folder / "store", tasks)

    def context(name, **inputs):
        (folder / name).mkdir()
        log = logging.getLogger("test")
        return Context(folder / name, {k: [v] for k, v in inputs.items()}, 1, 1, log, ConsoleProgress())

    pretrain = PretrainConfig(
        model=WorldModelConfig(
            latent_dim=32, encoder_dim=48, mlp_dim=48, task_dim=8, num_bins=41, bin_limit=1, activation="silu"
        ),
        optimizer=OptimizerConfig(lr=3e-3, final_lr_scale=0.1),
        trainer=TrainerConfig(accelerator="cpu"),
        steps=600,
        batch_size=64,
        held_out=0.1,
        validate_every=600,
    )
    Pretrain(pretrain).run(context("model", store=folder / "store"))
    networks = ActorCriticConfig(activation="silu", actor_units=(32,), critic_units=(32,), num_critics=2, lr=2e-3)
    first_order = FirstOrderConfig(horizon=5, batch_size=32, critic_passes=2, critic_minibatches=1, networks=networks)
    extract = ExtractConfig(
        first_order=first_order, algorithms=["pwm", "bc"], iterations=250, starts_per_task=2000, groups=1, seeds=2
    )
    Extract(extract).run(context("policies", store=folder / "store", world_model=folder / "model"))
    return folder / "policies"


def test_first_order_policies_solve_both_tasks_with_every_seed(policies):
    for name, sign in TASKS.items():
        best = play(lambda s, sign=sign: np.clip(sign * (-8 * s[:, 0] - 3 * s[:, 1]), -1, 1), sign)
        random = play(lambda s: np.random.default_rng(3).uniform(-1, 1, len(s)), sign)
        for seed in (0, 1):
            policy = load_policy(policies / "pwm" / name.replace("/", ".") / f"seed_{seed}")
            found = play(lambda s, p=policy: p.act(torch.from_numpy(s)).numpy()[:, 0], sign)
            # 64 paired starts: the standard error of the mean return is about 0.5. An untrained policy, at random's
            # score, passes with odds below 1e-6.
            assert found > random + 0.8 * (best - random), (name, seed, found, best, random)


def test_cloning_random_actions_does_not(policies):
    for name, sign in TASKS.items():
        best = play(lambda s, sign=sign: np.clip(sign * (-8 * s[:, 0] - 3 * s[:, 1]), -1, 1), sign)
        random = play(lambda s: np.random.default_rng(3).uniform(-1, 1, len(s)), sign)
        policy = load_policy(policies / "bc" / name.replace("/", ".") / "seed_0")
        found = play(lambda s, p=policy: p.act(torch.from_numpy(s)).numpy()[:, 0], sign)
        assert found < random + 0.6 * (best - random), (name, found, best, random)
