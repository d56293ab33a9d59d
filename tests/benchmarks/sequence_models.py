"""CPU cost of one training update of each sequence model: `python tests/benchmarks/sequence_models.py`.

Batch 32, 50 and 100 steps, 7 observation columns, one action, default sizes with reward head, Adam and gradient
clipping, one thread. Prints one JSON line: milliseconds of CPU time per update, median over rounds that alternate
between the kinds.
"""

from __future__ import annotations

import json
import statistics
import time

import torch
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.stages.sequence_model.config import KINDS, SequenceLossConfig, SequenceModelConfig
from orrery.stages.sequence_model.kinds import build_model
from orrery.stages.sequence_model.losses import sequence_losses
from tensordict import TensorDict

BATCH, HORIZONS, COLUMNS, ROUNDS, WARM_UP = 32, (50, 100), 7, 25, 3


def updates(kind: str, horizon: int):
    """A function that makes one update."""
    model = build_model(SequenceModelConfig(kind=kind, horizon=horizon), TaskTable([TaskSpec("bench/a", 7, 1, 100)]))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = TensorDict(
        {
            "observation": torch.randn(BATCH, horizon + 1, COLUMNS),
            "action": torch.rand(BATCH, horizon, 1) * 2 - 1,
            "reward": torch.randn(BATCH, horizon),
            "valid": torch.ones(BATCH, horizon, dtype=torch.bool),
            "task": torch.zeros(BATCH, dtype=torch.int64),
        },
        batch_size=[BATCH],
    )

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        sequence_losses(model, batch, SequenceLossConfig())["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 20)
        optimizer.step()

    return update


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    functions = {(kind, horizon): updates(kind, horizon) for kind in KINDS for horizon in HORIZONS}
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in functions}
    for round_ in range(WARM_UP + ROUNDS):
        for key, update in functions.items():
            start = time.process_time()
            update()
            if round_ >= WARM_UP:
                seconds[key].append(time.process_time() - start)
    found = {
        f"{kind}_{horizon}": round(1e3 * statistics.median(seconds[kind, horizon]), 1) for kind, horizon in seconds
    }
    print(json.dumps({"benchmark": "sequence_models", "batch": BATCH, "threads": 1, "cpu_ms_per_update": found}))


if __name__ == "__main__":
    main()
