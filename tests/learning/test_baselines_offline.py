"""An agent of d3rlpy learns from random actions what the point mass asks for."""

from __future__ import annotations

import pytest
import torch
from orrery.stages.baselines.config import BaselinesOfflineConfig
from orrery.stages.baselines.offline import OfflineBatches, build_agent, policy_of

from ..unit.stores import point_mass_episodes, point_mass_spec, write_store
from .test_mrq import ENOUGH, mean_return


def test_td3_from_random_actions(tmp_path):
    pytest.importorskip("d3rlpy")
    spec = point_mass_spec()
    store = write_store(tmp_path / "store", [(spec, point_mass_episodes(spec, 80))])
    settings = {"td3": {"critic_learning_rate": 3e-3, "tau": 0.05}}
    config = BaselinesOfflineConfig(units=[32, 32], batch_size=64, discount=0.9, settings=settings)
    data, draws = OfflineBatches(store.tasks[0], 2), torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        agent = build_agent("td3", spec, config)
        for update in range(1000):
            agent.impl.update(data.draw(64, draws), update)
    policy = policy_of(agent, data, spec, {})
    found = mean_return(lambda s: policy.act(torch.from_numpy(s)).numpy()[:, 0])
    assert found > ENOUGH, found
