"""Simulator steps per CPU-second against the suites' own loops: `python tests/benchmarks/simulators.py`.

Plays episodes with uniform actions, as the stage collect does by default (exploration, or Meta-World's scripted
expert), and with a policy of the quickstart's size, eight episodes at a time; then steps the suite's environment, below
every wrapper, through the same actions from the same seeds. One thread; prints one JSON line per task: native steps per
second, and CPU time of the native loop relative to ours, medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from orrery.datasets.collect import Variation, behaviour_act, uniform
from orrery.datasets.rollout import LANES, Act, play_episodes, policy_act
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.datasets.tasks import make_environment, task_spec
from orrery.datasets.tasks.task_env import TaskEnv
from orrery.stages.extraction.actor_critic import StackedActor
from orrery.stages.extraction.config import SVG_NETWORKS
from orrery.stages.extraction.policy import LatentPolicy
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.networks import WorldModel

TASKS = ["dmc/cartpole-balance", "dmc/cheetah-run", "metaworld/reach-v3", "metaworld/button-press-topdown-v3"]


def native_seconds(environment: TaskEnv, episodes: Sequence[tuple[int, np.ndarray]]) -> float:
    """CPU-seconds of the suite's own environment, below every wrapper, through the same episodes."""
    played = [(seed, [environment.to_native_action(action) for action in actions]) for seed, actions in episodes]
    native: Any = environment.native
    start = time.process_time()
    for seed, actions in played:
        native.reset(seed=seed)
        step = native._environment.step
        for action in actions:
            for _ in range(environment.task.action_repeat):
                step(action)
    return time.process_time() - start


def uniform_act(spec: TaskSpec) -> Act:
    controller = uniform(spec, np.random.default_rng(0))
    return lambda observation, episode: np.stack([controller(row) for row in observation])


def random_policy(spec: TaskSpec) -> LatentPolicy:
    torch.manual_seed(0)
    model = WorldModel(WorldModelConfig(activation="silu"), TaskTable([spec])).freeze()
    actor = StackedActor(1, model.config.latent_dim, spec.action_dim, SVG_NETWORKS)
    actor.mlp.initialise_uniform(0, torch.Generator().manual_seed(0))
    return LatentPolicy.from_member(model, actor, 0, spec, SVG_NETWORKS, {})


def measure(name: str, rounds: int) -> dict[str, object]:
    spec, below = task_spec(name), make_environment(task_spec(name))
    policy = random_policy(spec)
    ways: dict[str, tuple[int, Callable[[Sequence[int]], Act]]] = {
        "uniform": (1, lambda seeds: uniform_act(spec)),
        "collect": (1, lambda seeds: behaviour_act(spec, seeds, 0, Variation())),
        "evaluate": (LANES, lambda seeds: policy_act(policy)),
    }
    pools: dict[str, list[TaskEnv]] = {way: [] for way in ways}
    ratios: dict[str, list[float]] = {way: [] for way in ways}
    rates = []
    for number in range(rounds + 1):
        for way, (lanes, act) in ways.items():
            seeds = range(number * lanes, (number + 1) * lanes)
            start = time.process_time()
            results = [
                result
                for _, result in play_episodes(spec, act(seeds), seeds, record=True, lanes=lanes, pool=pools[way])
            ]
            ours = time.process_time() - start
            episodes = [(result.seed, result.episode.actions) for result in results if result.episode is not None]
            native = native_seconds(below, episodes)
            if number > 0:  # the first builds and fills caches
                ratios[way].append(native / ours)
                rates.append(sum(len(actions) for _, actions in episodes) * spec.action_repeat / native)
    return {
        "benchmark": "simulators",
        "task": name,
        "native_steps_per_cpu_second": round(statistics.median(rates)),
        "ratios": {way: round(statistics.median(values), 2) for way, values in ratios.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.tasks:
        print(json.dumps(measure(name, arguments.rounds)), flush=True)


if __name__ == "__main__":
    main()
