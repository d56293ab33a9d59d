"""The memory that packing expects of a policy, beside what torch allocates while policies are trained."""

from __future__ import annotations

import pytest
import torch
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.stages.extraction.config import ActorCriticConfig, FirstOrderConfig
from orrery.stages.extraction.first_order import FirstOrderExtraction
from orrery.stages.extraction.packing import estimate
from orrery.stages.extraction.program import PolicySpec
from orrery.stages.extraction.starts import StartLatents
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.networks import WorldModel

TABLE = TaskTable([TaskSpec("toy/task", 10, 4, 200)])
NETWORKS = ActorCriticConfig(actor_units=(64, 32), critic_units=(64, 32), num_critics=2)


def peak_of_update(config: WorldModelConfig, first_order: FirstOrderConfig, members: int) -> int:
    """Bytes allocated at once, at most, from before the policies are built until after their first update."""
    model = WorldModel(config, TABLE).freeze()
    starts = StartLatents(
        torch.rand(1, 8, config.latent_dim), torch.rand(1, 8, 4), torch.rand(1, 4, config.latent_dim), torch.ones(1),
        {0: 0},
    )  # fmt: skip
    policies = [PolicySpec("pwm", "toy/task", seed, 0.0, True) for seed in range(members)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        FirstOrderExtraction(model, starts, policies, first_order, 10, 0).update(0)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    highest = allocated = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        highest = max(highest, allocated)
    return highest


@pytest.mark.parametrize(
    ("dynamics", "changes"),
    [
        ("step", {}),
        ("step", {"mlp_dim": 512}),
        ("awm", {}),
        ("awm", {"awm_width": 256, "awm_layers": 4}),
        ("awm", {"mlp_dim": 512, "awm_width": 48, "awm_layers": 1}),
        ("awm", {"latent_dim": 512}),
    ],
)
def test_the_estimate_is_0_9_to_1_6_times_what_torch_allocates(dynamics, changes):
    torch.manual_seed(0)
    config = WorldModelConfig(dynamics=dynamics, awm_horizon=16, **changes).complete()
    first_order = FirstOrderConfig(horizon=16, batch_size=64, critic_passes=1, networks=NETWORKS)
    measured = (peak_of_update(config, first_order, 3) - peak_of_update(config, first_order, 1)) / 2
    expected = estimate(config, 0, TABLE.action_dim, 0, 1, first_order).per_member
    assert 0.9 * measured <= expected <= 1.6 * measured
