"""CPU-seconds of one update: `python tests/benchmarks/updates.py`.

Model updates at sizes 1 and 5 (batch 256, horizon 3, 30 tasks of 24 + 6, values and policy prior) and PWM extraction
updates of one policy on the size 5 model (batch 64 and 512, horizon 16, published networks and critic passes). One
thread, random data; prints one JSON line: median over rounds of process CPU-seconds. On a comparable core the published
code needs 0.243 and 0.851, and 1.10 and 6.76.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import lightning
import torch
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.stages.extraction.config import FirstOrderConfig
from orrery.stages.extraction.first_order import FirstOrderExtraction
from orrery.stages.extraction.program import PolicySpec
from orrery.stages.extraction.starts import StartLatents
from orrery.stages.training.config import OptimizerConfig
from orrery.stages.training.progress import quiet_lightning
from orrery.stages.world_model.config import LossConfig, WorldModelConfig
from orrery.stages.world_model.module import WorldModelTraining
from orrery.stages.world_model.networks import WorldModel
from tensordict import TensorDict

TASKS, ROUNDS = 30, 7
TABLE = TaskTable([TaskSpec(f"bench/{i}", 24, 6, 500) for i in range(TASKS)])


def make_model(size: str) -> WorldModel:
    torch.manual_seed(0)
    return WorldModel(WorldModelConfig(size=size, task_dim={"1": 96}.get(size, 64)), TABLE)


class Timer(lightning.Callback):
    """CPU-seconds of each training batch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *args: object) -> None:
        self._start = time.process_time()

    def on_train_batch_end(self, *args: object) -> None:
        self.seconds.append(time.process_time() - self._start)


def model_update(size: str, batch_size: int = 256, horizon: int = 3) -> float:
    batch = TensorDict(
        {
            "observation": torch.randn(batch_size, horizon + 1, 24),
            "action": torch.rand(batch_size, horizon, 6) * 2 - 1,
            "reward": torch.rand(batch_size, horizon),
            "terminated": torch.zeros(batch_size, horizon, dtype=torch.bool),
            "valid": torch.ones(batch_size, horizon, dtype=torch.bool),
            "task": torch.randint(TASKS, (batch_size,)).sort().values,
        },
        batch_size=[batch_size],
    )
    module = WorldModelTraining(
        make_model(size), LossConfig(), OptimizerConfig(), torch.ones(TASKS), total_steps=ROUNDS + 2, log_every=10**9
    )
    timer = Timer()
    trainer = lightning.Trainer(
        max_steps=ROUNDS + 2,
        limit_val_batches=0,
        gradient_clip_val=20,
        accelerator="cpu",
        logger=False,
        callbacks=[timer],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = torch.utils.data.DataLoader([batch] * (ROUNDS + 2), batch_size=None, collate_fn=lambda one: one)
    trainer.fit(module, loader)
    return statistics.median(timer.seconds[2:])


def extraction_update(batch_size: int) -> float:
    model = make_model("5").eval().requires_grad_(False)
    latents = model.encode(torch.randn(1024, 24), torch.zeros(1024, dtype=torch.long))
    starts = StartLatents(latents[None], torch.rand(1, 1024, 6) * 2 - 1, latents[None, :16], torch.ones(1), {0: 0})
    extraction = FirstOrderExtraction(
        model, starts, [PolicySpec("pwm", "bench/0", 0, 0.0, True)], FirstOrderConfig(batch_size=batch_size), 100, 0
    )
    return median_seconds(extraction.update)


def median_seconds(update: Callable[[int], object]) -> float:
    seconds = []
    for step in range(ROUNDS + 1):
        start = time.process_time()
        update(step)
        seconds.append(time.process_time() - start)
    return statistics.median(seconds[1:])


def main() -> None:
    quiet_lightning()
    torch.set_num_threads(1)
    result = {
        "benchmark": "updates",
        "model_update_size_1": model_update("1"),
        "model_update_size_5": model_update("5"),
        "extraction_update_batch_64": extraction_update(64),
        "extraction_update_batch_512": extraction_update(512),
    }
    print(json.dumps({name: round(value, 4) if isinstance(value, float) else value for name, value in result.items()}))


if __name__ == "__main__":
    main()
