"""The stage baselines_offline: agents of d3rlpy on the transitions of a store, as policies of ours."""

from __future__ import annotations

import dataclasses
import importlib.util
import json

import numpy as np
import pandas as pd
import pytest
import torch
from orrery.datasets.facts import DataFacts
from orrery.pipeline.config.load import discover_stages, load_config
from orrery.pipeline.errors import ConfigError, DatasetError, StageError
from orrery.stages.baselines.config import D3RLPY, BaselinesOfflineConfig
from orrery.stages.baselines.offline import OfflineBatches, build_agent, policy_of
from orrery.stages.baselines.stage_baselines_offline import BaselinesOffline
from orrery.stages.policy.policy import load_policy

from .mrq_cases import context_of
from .stores import numbered_episode, point_mass_episodes, point_mass_spec, write_store

SMALL = BaselinesOfflineConfig(seeds=1, updates=6, batch_size=8, units=[8, 8], log_every=4, checkpoint_every=3)
needs_d3rlpy = pytest.mark.skipif(importlib.util.find_spec("d3rlpy") is None, reason="needs the extra baselines")


def two_tasks(folder):
    """Of different widths, so that both are padded in one of their parts."""
    specs = [point_mass_spec("toy/a", observation_dim=3), point_mass_spec("toy/b", action_dim=2)]
    return write_store(folder, [(spec, point_mass_episodes(spec, 4)) for spec in specs])


@needs_d3rlpy
@pytest.mark.parametrize("algorithm", D3RLPY)
def test_a_policy_acts_as_its_agent_does(tmp_path, algorithm):
    store = two_tasks(tmp_path)
    task = store.rows_of("toy/b")
    data = OfflineBatches(task, store.table.observation_dim)
    agent = build_agent(algorithm, task.spec, SMALL)
    draws = torch.Generator().manual_seed(0)
    before = policy_of(agent, data, task.spec, {})
    for update in range(4):
        assert np.isfinite(list(agent.impl.update(data.draw(8, draws), update).values())).all()
    policy = policy_of(agent, data, task.spec, {"algorithm": algorithm, "seed": 0})
    observation = 3 * torch.randn(50, 2)
    scaled = (observation - data.mean_O) / data.scale_O
    torch.testing.assert_close(policy.act(observation), torch.from_numpy(agent.predict(scaled.numpy())))
    assert not torch.equal(policy.act(observation), before.act(observation))
    policy.save(tmp_path / "policy")
    torch.testing.assert_close(load_policy(tmp_path / "policy").act(observation), policy.act(observation))


@needs_d3rlpy
def test_transitions_end_where_their_episodes_do(tmp_path):
    """numbered_episode says of each number which episode and time it is of: 7 steps that terminate, then 5 that do
    not."""
    spec = point_mass_spec("toy/a", terminates=True, episode_length=7)
    wide = point_mass_spec("toy/wide", observation_dim=4, action_dim=2)
    episodes = [numbered_episode(spec, 0, 7, terminated=True), numbered_episode(spec, 1, 5)]
    store = write_store(tmp_path, [(spec, episodes), (wide, point_mass_episodes(wide, 2))])
    data = OfflineBatches(store.rows_of("toy/a"), store.table.observation_dim)
    batch = data.draw(500, torch.Generator().manual_seed(0))
    assert (batch.observations.shape, batch.actions.shape) == ((500, 2), (500, 1))
    raw, after = (one * data.scale_O + data.mean_O for one in (batch.observations, batch.next_observations))
    episode, time = raw[:, 0].round(), raw[:, 1].round()
    torch.testing.assert_close(after, torch.stack([episode, time + 1], 1), rtol=0, atol=1e-4)
    assert {(int(e), int(t)) for e, t in zip(episode, time, strict=True)} == {
        (e, t) for e, length in ((0, 7), (1, 5)) for t in range(length)
    }
    torch.testing.assert_close(batch.actions[:, 0], (time + 1) / 1000)
    torch.testing.assert_close(batch.terminals[:, 0], ((episode == 0) & (time == 6)).float())
    ended = time == torch.where(episode == 0, 6, 4)
    torch.testing.assert_close(batch.next_actions[:, 0], torch.where(ended, time + 1, time + 2) / 1000)
    # Returns are 0 + ... + 6 = 21 and 5000 + 10: over the 7 steps of an episode they span 4989.
    torch.testing.assert_close(batch.rewards[:, 0], (1000 * episode + time) * 7 / 4989)


@needs_d3rlpy
def test_a_killed_job_continues_bit_for_bit_and_one_more_algorithm_trains_only_its_own(tmp_path, monkeypatch):
    two_tasks(tmp_path / "store")
    drawn = []

    def draw(self, *arguments, real=OfflineBatches.draw):
        drawn.append(self)
        if len(drawn) == stop_at:
            raise RuntimeError("killed")
        return real(self, *arguments)

    monkeypatch.setattr(OfflineBatches, "draw", draw)
    settings = dataclasses.replace(SMALL, algorithms=["td3_bc"])
    weights = {}
    for name, stop_at in (("whole", 0), ("killed", 5)):
        context = context_of(tmp_path, name, store=tmp_path / "store")
        drawn.clear()
        if stop_at:
            with pytest.raises(StageError, match="killed"):
                BaselinesOffline(settings).run(context)
        summary = BaselinesOffline(settings).run(context)
        assert summary == "2 policies for 2 tasks, 6 updates each"
        entries = json.loads((tmp_path / name / "policies.json").read_text())["policies"]
        assert [(one["algorithm"], one["task"], one["seed"]) for one in entries] == [
            ("td3_bc", "toy/a", 0), ("td3_bc", "toy/b", 0)
        ]  # fmt: skip
        weights[name] = [(tmp_path / name / one["path"] / "policy.safetensors").read_bytes() for one in entries]
    assert weights["killed"] == weights["whole"]
    costs = pd.read_csv(tmp_path / "killed" / "logs" / "costs.csv")
    assert costs[["algorithm", "task", "seed"]].values.tolist() == [["td3_bc", "toy/a", 0], ["td3_bc", "toy/b", 0]]
    assert (costs.cpu_seconds > 0).all()
    assert len(drawn) == 5 + 3 + 6, "4 updates and a kill, those behind the checkpoint at 3, and the other task"
    curve = pd.read_csv(tmp_path / "killed" / "training.csv")
    assert curve[["iteration", "task"]].values.tolist() == [[4, "toy/a"], [6, "toy/a"], [4, "toy/b"], [6, "toy/b"]]
    assert curve.notna().all().all()

    drawn.clear()
    stop_at = 0
    BaselinesOffline(dataclasses.replace(settings, algorithms=["td3_bc", "td3"])).run(context)
    assert len(drawn) == 2 * 6
    entries = json.loads((tmp_path / "killed" / "policies.json").read_text())["policies"]
    assert [one["algorithm"] for one in entries] == ["td3_bc", "td3"] * 2


def test_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    expected = (
        r"needs the package d3rlpy, .* pip install 'orrery\[baselines\]', or remove its algorithms \(td3_bc, iql\)"
    )
    with pytest.raises(ConfigError, match=expected):
        BaselinesOffline(BaselinesOfflineConfig()).check()


def test_it_refuses_what_it_cannot_learn_before_training(tmp_path):
    with pytest.raises(ConfigError, match=r"baselines_offline.algorithms: expected some of td3_bc, .*, found bc"):
        BaselinesOfflineConfig(algorithms=["bc"])
    with pytest.raises(ConfigError, match=r"baselines_offline.settings: expected some of td3_bc, .*, found td3_cb"):
        BaselinesOfflineConfig(settings={"td3_cb": {}})
    with pytest.raises(ConfigError, match=r"baselines_offline.units must be widths of at least 1, found \[\]"):
        BaselinesOfflineConfig(units=[])
    facts = DataFacts(("gymnasium/CartPole-v1", "dmc/walker-run"))
    discrete = r"need continuous actions, and those of gymnasium/CartPole-v1 are discrete; exclude such tasks"
    with pytest.raises(ConfigError, match=discrete):
        BaselinesOffline(SMALL).check_input("store", tmp_path, facts)
    BaselinesOffline(dataclasses.replace(SMALL, tasks=["dmc/walker-run"])).check_input("store", tmp_path, facts)
    spec = point_mass_spec("toy/choice", action_dim=2, action_kind="discrete")
    write_store(tmp_path / "choices", [(spec, point_mass_episodes(spec, 2))])
    with pytest.raises(ConfigError, match="those of toy/choice are discrete"):
        BaselinesOffline(SMALL).run(context_of(tmp_path, "a", store=tmp_path / "choices"))
    spec = point_mass_spec()
    episodes = point_mass_episodes(spec, 2)
    for episode in episodes:
        episode.rewards[:] = 0
    write_store(tmp_path / "unpaid", [(spec, episodes)])
    with pytest.raises(DatasetError, match=r"'toy/point': every reward in the store is zero.*baselines_offline.tasks"):
        BaselinesOffline(SMALL).run(context_of(tmp_path, "b", store=tmp_path / "unpaid"))


@needs_d3rlpy
def test_a_setting_that_the_library_lacks_is_named():
    overrides = ["algorithms=[iql]", "baselines_offline.settings={iql: {expectil: 0.9}}"]
    config = load_config("quickstart", overrides, stages=discover_stages())
    stage = BaselinesOffline(config.stage_configs["baselines_offline"])
    with pytest.raises(ConfigError, match=r"settings.iql: d3rlpy's IQLConfig has no 'expectil'. .*expectile"):
        stage.check_machine()
    BaselinesOffline(dataclasses.replace(SMALL, settings={"iql": {"expectile": 0.9}})).check_machine()
