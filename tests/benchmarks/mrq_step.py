"""CPU seconds of one MR.Q training step: `python tests/benchmarks/mrq_step.py`.

Published widths (512), batch 256, observation 17, action 6, replay of 100,000 random steps, one thread. A step is
one update of values and policy with its share of the encoder's: whole periods are timed (250 steps with 250 encoder
updates), so nothing is left out. Prints one JSON line: CPU seconds per step, median and range over periods.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from orrery.stages.mrq.config import LearnConfig
from orrery.stages.mrq.learner import Learner, Shapes
from orrery.stages.mrq.replay import Replay

OBSERVATION, ACTION, EPISODE = 17, 6, 500


def filled_replay(config: LearnConfig, decisions: int) -> Replay:
    replay = Replay(1_000_000, (OBSERVATION,), ACTION, config.horizons)
    generator = torch.Generator().manual_seed(0)
    observation = torch.randn(decisions + 1, OBSERVATION, generator=generator)
    action = torch.rand(decisions, ACTION, generator=generator) * 2 - 1
    reward = torch.rand(decisions, generator=generator)
    for t in range(decisions):
        replay.add(
            0, observation[t], action[t], float(reward[t]), observation[t + 1], False, t % EPISODE == EPISODE - 1
        )
    return replay


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--periods", type=int, default=3)
    parser.add_argument("--period", type=int, default=250, help="250 as published; fewer steps for a quick look")
    parser.add_argument("--steps", type=int, default=100_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = LearnConfig(period=arguments.period)
    replay = filled_replay(config, arguments.steps)
    shapes = Shapes((OBSERVATION,), False, torch.ones(1, ACTION), torch.tensor([config.discount]))
    learner = Learner(shapes, config, [0])
    seconds = []
    for _ in range(arguments.periods + 1):
        start = time.process_time()
        for _ in range(config.period):
            learner.train([replay])
        seconds.append((time.process_time() - start) / config.period)
    seconds = seconds[1:]  # the first period allocates
    print(
        json.dumps(
            {
                "benchmark": "mrq_step",
                "cpu_seconds_per_step": round(statistics.median(seconds), 4),
                "min": round(min(seconds), 4),
                "max": round(max(seconds), 4),
                "periods": arguments.periods,
                "steps_per_period": config.period,
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
