"""Steps per second of planning, at TD-MPC2's settings: `python tests/benchmarks/planner.py`.

512 trajectories of 3 steps, 6 rounds, 24 trajectories of the policy prior, on a task with 6 action components of a
table of 12; random weights, one thread. `whole_model` imagines the same trajectories with WorldModel itself, which
looks embeddings up and pads actions for each of them. Prints one JSON line: steps per second of CPU time, median
over rounds that alternate between the candidates.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import torch
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.stages.planning.config import PlannerConfig
from orrery.stages.planning.planner import Planner
from orrery.stages.planning.task_model import TaskModel
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.networks import WorldModel

ROUNDS = 5
SIZES = {
    "small, 2 values, silu": WorldModelConfig(num_q=2, activation="silu"),
    "small, 2 values": WorldModelConfig(num_q=2),
    "5": WorldModelConfig(size="5"),
}
TABLE = TaskTable([TaskSpec(f"bench/task{i}", 24, 6 - i % 3, 500) for i in range(12)])


class WholeModel(TaskModel):
    """The same returns from the world model as it is."""

    def __init__(self, model: WorldModel, task: int) -> None:
        super().__init__(model, task)
        self._whole = [model]  # in a list, so that it is no submodule
        self._task = task

    def returns(self, z_BD: torch.Tensor, action_HBNA: torch.Tensor, noise_BNA: torch.Tensor) -> torch.Tensor:
        (model,), z = self._whole, z_BD[:, None].expand(-1, action_HBNA.shape[2], -1)
        task = torch.full(z.shape[:2], self._task)
        total = torch.zeros(z.shape[:2])
        for t, action in enumerate(action_HBNA):
            total += self.discount**t * model.decode_reward(model.reward_logits(z, action, task))
            z = model.next_latent(z, action, task)
        action = model.sample_prior(z, task, noise_BNA).action
        value = model.decode_value(model.value_logits(z, action, task, frozen=True)).mean(0)
        return total + self.discount ** len(action_HBNA) * value


def candidates(config: WorldModelConfig) -> dict[str, tuple[Callable[[], object], int]]:
    """What to time, and the steps that a call makes."""
    torch.manual_seed(0)
    model = WorldModel(config, TABLE).freeze()
    planner, fast, whole = (
        Planner(model, TABLE[0], PlannerConfig(matmul_precision=precision), 0)
        for precision in ("highest", "medium", "highest")
    )
    whole.model = WholeModel(model, 0)
    observation = torch.randn(8, 24)
    memory = [planner.begin(episode) for episode in range(8)]
    return {
        "1 environment": (lambda: planner.act(observation[:1], memory[:1]), 1),
        "8 environments": (lambda: planner.act(observation, memory), 8),
        "8 environments, bfloat16 products": (lambda: fast.act(observation, memory), 8),
        "1 environment, whole_model": (lambda: whole.act(observation[:1], memory[:1]), 1),
    }


def main() -> None:
    torch.set_num_threads(1)
    report: dict[str, object] = {"benchmark": "planner", "unit": "steps per CPU-second"}
    with torch.inference_mode():
        for size, config in SIZES.items():
            timed = candidates(config)
            rates: dict[str, list[float]] = {name: [] for name in timed}
            for round_ in range(ROUNDS + 1):
                for name, (act, decisions) in timed.items():
                    start = time.process_time()
                    act()
                    if round_ > 0:  # the first fills caches
                        rates[name].append(decisions / (time.process_time() - start))
            report[size] = {name: round(statistics.median(values), 2) for name, values in rates.items()}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
