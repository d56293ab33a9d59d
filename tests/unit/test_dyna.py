"""Generated data: what the model says, from states of the data, behind the real episodes and never in place of them."""

from __future__ import annotations

import dataclasses
import logging
from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from orrery.datasets.schema import TaskSpec
from orrery.datasets.store import TaskStore
from orrery.pipeline.artifact import finish
from orrery.pipeline.errors import CheckpointError, ConfigError, DatasetError
from orrery.pipeline.stage import Context
from orrery.stages.dyna.config import DynaConfig
from orrery.stages.dyna.generation import explored, generate
from orrery.stages.dyna.stage_dyna import Dyna
from orrery.stages.policy.policy_index import policy_entry, write_index
from orrery.stages.sequence_model.config import SequenceModelConfig
from orrery.stages.sequence_model.dynamics import ModelDynamics
from orrery.stages.sequence_model.kinds import build_model
from orrery.stages.sequence_model.losses import set_statistics
from orrery.stages.world_model.facts import ModelFacts

from .stores import point_mass_episodes, point_mass_spec, write_store

NARROW, WIDE = point_mass_spec("toy/narrow"), point_mass_spec("toy/wide", observation_dim=3, action_dim=2)


def make(folder, specs=(NARROW, WIDE), **changes):
    """A store of ten episodes per task, and an untrained model of it."""
    store = write_store(folder / "store", [(spec, point_mass_episodes(spec, 10)) for spec in specs])
    torch.manual_seed(0)
    model = build_model(
        SequenceModelConfig(**({"kind": "markov", "mlp_units": (8,), "horizon": 25} | changes)), store.table
    )
    set_statistics(model, store)
    model.save(folder / "model")
    return store, model.eval().requires_grad_(False)


def run(folder, policies=None, **settings):
    def progress(*_, **__):
        return nullcontext(SimpleNamespace(advance=lambda amount=1: None, note=lambda text: None))

    out = folder / "out"
    out.mkdir()
    inputs = {"store": [folder / "store"], "world_model": [folder / "model"], "policies": policies or []}
    summary = Dyna(DynaConfig(**settings)).run(Context(out, inputs, 1, 1, logging.getLogger("test"), progress))
    return summary, TaskStore.open(out)


def test_real_episodes_come_first_and_the_store_says_their_returns(tmp_path):
    store, _ = make(tmp_path)
    summary, made = run(tmp_path, share=0.5, length=4)
    assert summary == "248 transitions generated beside 500"
    for real, both in zip(store.tasks, made.tasks, strict=True):
        torch.testing.assert_close(both.rows[: len(real.rows)], real.rows, rtol=0, atol=0)
        assert both.lengths.tolist() == [25] * 10 + [4] * 31
        assert not both.terminated.any()
        for name in ("return_mean", "return_max", "length_mean", "success_rate", "behaviour"):
            assert getattr(both.summary, name) == getattr(real.summary, name)
        assert both.summary.transitions == 250 + 124
        assert both.summary.source["generated"] == {"episodes": 31, "length": 4, "actions": "data", "model": "markov"}


def test_the_same_episodes_are_held_out_and_nothing_is_generated_from_them(tmp_path):
    """Which matters: a model that learns from both would be validated on other episodes than the first one."""
    store, _ = make(tmp_path)
    config = {"held_out": 0.4}
    model = tmp_path / "model"
    finish(model, kind="world_model", stage="pretrain", key="", config=config, inputs={}, seconds=0, summary="")
    _, made = run(tmp_path, share=1.0, length=4)
    for real, both in zip(store.tasks, made.tasks, strict=True):
        assert both.summary.generated == 62
        for fraction in (0.0, 0.05, 0.4):
            assert both.held_out(fraction)[:10].tolist() == real.held_out(fraction).tolist()
            assert not both.held_out(fraction)[10:].any()
        unseen = real.held_out(0.4)
        assert unseen.sum() == 4
        at = [np.arange(first, after - 4) for first, after in pairwise(real.offsets.tolist())]
        kept = np.concatenate([rows for rows, one in zip(at, unseen, strict=True) if not one])
        own = real.spec.observation_dim
        starts = {tuple(row) for row in real.rows[kept, :own].tolist()}
        assert {tuple(row) for row in both.rows[both.offsets[10:-1], :own].tolist()} <= starts


def test_success_rates_are_the_real_datas(tmp_path):
    spec = point_mass_spec(reports_success=True)
    episodes = [
        dataclasses.replace(episode, success=np.arange(25) == 3 * number)
        for number, episode in enumerate(point_mass_episodes(spec, 10))
    ]
    store = write_store(tmp_path / "store", [(spec, episodes)])
    assert (store.tasks[0].summary.success_rate, store.tasks[0].summary.success_rate_last) == (0.9, 0.1)
    make(tmp_path / "other", [spec])[1].save(tmp_path / "model")
    _, made = run(tmp_path, share=0.5, length=4)
    assert (made.tasks[0].summary.success_rate, made.tasks[0].summary.success_rate_last) == (0.9, 0.1)


def test_generated_episodes_are_the_models_predictions_from_states_of_the_data(tmp_path):
    store, model = make(tmp_path)
    _, made = run(tmp_path, share=0.5, length=4, noise=[0, 0])
    for k, (real, both) in enumerate(zip(store.tasks, made.tasks, strict=True)):
        states = {tuple(row[: real.spec.observation_dim].tolist()) for row in real.rows}
        task = torch.tensor([k])
        for first in both.offsets[10:-1].tolist():
            part = both.rows[first : first + 5]
            assert tuple(part[0, : real.spec.observation_dim].tolist()) in states
            observation, action = part[:, :3], part[:4, 3:5]
            torch.testing.assert_close(model.predict(observation[:1], action[None], task)[0], observation[1:])
            reward = model.reward(observation[:-1], action, observation[1:], task.expand(4))
            torch.testing.assert_close(part[:4, -1], reward)


def test_a_gaussian_model_is_sampled_from(tmp_path):
    _, model = make(tmp_path, [NARROW], likelihood="gaussian")
    start, force = torch.tensor([[0.3, -0.2]]), torch.tensor([[0.5]])
    mean, std = model.next_distribution(start, force, torch.tensor([0]))
    found = generate(
        ModelDynamics(model, NARROW.name, "learned"), start.expand(4000, 2), lambda t, _: force.expand(4000, 1), 1,
        torch.Generator().manual_seed(0),
    ).observation_NTO[:, 1]  # fmt: skip
    # Of 4000: the mean within four of its standard errors, the deviation within 5%, which is four and a half of them.
    assert ((found.mean(0) - mean[0]).abs() < 4 * std[0] / 4000**0.5).all()
    torch.testing.assert_close(found.std(0), std[0], rtol=0.05, atol=0)


class Push:
    """What a folder's policy does: always the force that its last folder is named after."""

    def __init__(self, folder):
        self.force = {"seed_0": 0.5, "seed_1": -0.5}[folder.name]

    def act(self, observation):
        return observation.new_full((len(observation), 1), self.force)


def test_policies_act_in_turn(tmp_path, monkeypatch):
    make(tmp_path, [NARROW])
    monkeypatch.setattr("orrery.stages.policy.policy.load_policy", Push)
    artifact = tmp_path / "policies"
    artifact.mkdir()
    write_index(artifact, [NARROW], [policy_entry("bpo", NARROW, seed) for seed in (0, 1)])
    _, made = run(tmp_path, [artifact], share=0.2, length=5, noise=[0, 0])
    (task,) = made.tasks
    assert [float(task.rows[first, 2]) for first in task.offsets[10:-1]] == [0.5, -0.5] * 5
    assert task.summary.source["generated"]["actions"] == "bpo"
    with pytest.raises(ConfigError, match="no policy of 'mrq' for toy/narrow; it has: bpo for toy/narrow"):
        Dyna(DynaConfig(algorithm="mrq"))._policies(
            Context(tmp_path, {"policies": [artifact]}, 1, 1, logging.getLogger("test"), None), NARROW.name
        )


def test_noise_on_choices_is_the_share_of_uniform_ones():
    spec = TaskSpec("toy/choices", 2, 2, 25, action_kind="discrete")
    level = torch.tensor([[0.0]] * 2000 + [[0.4]] * 2000)
    noisy = explored(
        lambda t, x: torch.tensor([[1.0, 0.0]]).expand(4000, 2), spec, level, torch.Generator().manual_seed(0)
    )
    action = noisy(0, torch.zeros(4000, 2))
    assert (action.sum(1) == 1).all()
    assert action[:2000, 1].sum() == 0
    assert float(action[2000:, 1].mean()) == pytest.approx(0.2, abs=0.036)  # four standard errors


def test_refuses(tmp_path):
    make(tmp_path, [NARROW])
    with pytest.raises(DatasetError, match=r"no episode of its data has 26 steps \(longest: 25\)"):
        run(tmp_path, length=26)
    (tmp_path / "out").rmdir()
    with pytest.raises(ConfigError, match=r"dyna.actions=policies, but the run has none"):
        run(tmp_path, actions="policies")
    with pytest.raises(CheckpointError, match=r"predicts observations, but .* predicts latents; pretrain one"):
        Dyna(DynaConfig()).check_input("world_model", tmp_path, ModelFacts())
    with pytest.raises(ConfigError, match="share must be positive, found 0"):
        DynaConfig(share=0)
    with pytest.raises(ConfigError, match="reward: expected auto, simulator, learned, found 'true'"):
        DynaConfig(reward="true")  # what the help named, and what was silently read as auto
    ends = tmp_path / "ends"
    ends.mkdir()
    make(ends, [dataclasses.replace(NARROW, terminates=True)])
    with pytest.raises(ConfigError, match="toy/narrow can end in a terminal state, which sequence models do not"):
        run(ends)
