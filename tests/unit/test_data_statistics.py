"""Statistics that training takes from the data: of random transitions, of the episodes that are not held out."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from orrery.datasets.schema import Episode
from orrery.stages.bpo.bpo import start_observations
from orrery.stages.powr import job as powr_job
from orrery.stages.powr.config import PowrConfig
from orrery.stages.powr.features import index_features
from orrery.stages.powr.offline import read_rows
from orrery.stages.sequence_model import losses
from orrery.stages.sequence_model.config import SequenceModelConfig
from orrery.stages.sequence_model.kinds import build_model
from orrery.stages.world_model import balance
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.networks import WorldModel
from orrery.stages.world_model.start_frames import draw_frames, load_frames, save_store_frames
from orrery.stages.world_model.task_encoder import TaskEncoder

from .stores import numbered_episode, point_mass_spec, write_store

LENGTH, EPISODES, LIMIT = 100, 40, 1000
"""One row in four is taken, or one in 40 episodes' worth: a stride that divides the length meets the same times."""


@pytest.fixture
def store(tmp_path):
    """Observations (episode, time); a reward of 1 at every tenth step."""
    spec = point_mass_spec(episode_length=LENGTH)
    rewards = (np.arange(LENGTH) % 10 == 0).astype(np.float32)
    numbered = [numbered_episode(spec, number, LENGTH) for number in range(EPISODES)]
    episodes = [Episode(one.observations, one.actions, rewards, False) for one in numbered]
    return write_store(tmp_path / "store", [(spec, episodes)])


@pytest.mark.parametrize("limit", [1, LENGTH, LIMIT, LENGTH * EPISODES, 10**6])
@pytest.mark.parametrize("held_out", [0.0, 0.25])
def test_a_sample_is_of_transitions_that_are_not_held_out(store, limit, held_out):
    (rows,) = store.tasks
    unseen = rows.held_out(held_out)
    chosen = rows.sample_transitions(limit, held_out)
    assert len(chosen) == min(limit, LENGTH * int((~unseen).sum())) == len(set(chosen.tolist()))
    assert (chosen.diff() > 0).all()
    assert not set(chosen.tolist()) & set((rows.offsets[1:] - 1).tolist())
    assert not unseen[rows.rows[chosen, 0].long().numpy()].any()
    assert torch.equal(chosen, rows.sample_transitions(limit, held_out))


def test_a_sample_spreads_over_the_times_of_an_episode(store):
    """1000 of 4000 times 0..99: their mean has a standard error of 0.8, and five of those are allowed."""
    (rows,) = store.tasks
    time = rows.rows[rows.sample_transitions(LIMIT), 1]
    assert time.mean().item() == pytest.approx(49.5, abs=4)
    assert time.std().item() == pytest.approx(28.87, abs=2)
    assert len(time.unique()) == LENGTH


def test_a_sample_knows_episodes_of_any_length(tmp_path):
    spec = point_mass_spec()
    lengths = [1, 7, 2, 25, 3]
    (rows,) = write_store(tmp_path, [(spec, [numbered_episode(spec, i, n) for i, n in enumerate(lengths)])]).tasks
    every = [row for first, after in pairwise(rows.offsets.tolist()) for row in range(first, after - 1)]
    assert rows.sample_transitions(1000).tolist() == every


@pytest.fixture
def few_rows(monkeypatch):
    """So few that a stride would be a whole episode, or all but its last row."""
    monkeypatch.setattr(losses, "STATISTICS_ROWS", EPISODES)
    monkeypatch.setattr(balance, "STATISTICS_ROWS", EPISODES)
    monkeypatch.setattr("orrery.stages.powr.job.FEATURE_ROWS", EPISODES)


def test_scales_do_not_depend_on_how_long_episodes_are(store, few_rows):
    """Evenly spaced, all rows had time 0: mean 0, scale 1. 40 random times: standard errors of 4.6 and 2."""
    model = build_model(SequenceModelConfig(kind="markov", mlp_units=(8,), horizon=5), store.table)
    losses.set_statistics(model, store)
    assert model.observation_mean_KO[0, 1].item() == pytest.approx(49.5, abs=20)
    assert model.observation_scale_KO[0, 1].item() == pytest.approx(28.87, abs=10)
    mean, scale = losses.observation_statistics(store.tasks[0], 2)
    assert (mean[1].item(), scale[1].item()) == (
        model.observation_mean_KO[0, 1].item(), model.observation_scale_KO[0, 1].item()
    )  # fmt: skip
    latent = WorldModel(WorldModelConfig(latent_dim=8, encoder_dim=8, mlp_dim=8, task_dim=4), store.table)
    balance.scale_observations(latent, 0, store.tasks[0], 0.0)
    assert latent.observation_scale_KO[0, 1].item() == pytest.approx(28.87, abs=10)
    features, _ = powr_job._features(PowrConfig(), store.tasks[0], None)
    assert features(torch.tensor([[0.0, 49.5]]))[0, 1].abs() < 1


def test_a_reward_at_every_tenth_decision_is_neither_never_nor_always_there(store, few_rows):
    bins_M = torch.tensor([0.0, 0.6931472])  # in symlog units: 0 and 1
    share = 0.1  # of 40 rewards; evenly spaced, all were 1, and the entropy 0
    expected = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    found = balance.reward_entropy(store, bins_M).item()
    assert 0.3 * expected < found < 1.9 * expected


def test_held_out_episodes_decide_nothing(store, tmp_path):
    (rows,) = store.tasks
    unseen = rows.held_out(0.25)
    seen = np.flatnonzero(~unseen).astype(float)
    model = build_model(SequenceModelConfig(kind="markov", mlp_units=(8,), horizon=5), store.table)
    losses.set_statistics(model, store, 0.25)
    assert model.observation_mean_KO[0, 0].item() == pytest.approx(seen.mean(), rel=1e-5)
    latent = WorldModel(WorldModelConfig(latent_dim=8, encoder_dim=8, mlp_dim=8, task_dim=4), store.table)
    balance.scale_observations(latent, 0, rows, 0.25)
    assert latent.observation_mean_KO[0, 0].item() == pytest.approx(seen.mean(), rel=1e-5)
    assert latent.observation_scale_KO[0, 0].item() == pytest.approx(seen.std(), rel=1e-5)

    save_store_frames(store, tmp_path, 0.25)
    saved = load_frames(tmp_path, [rows.spec])["toy/point"]
    drawn = draw_frames(store, "toy/point", 500, 100, 0, 0.25)
    begun = read_rows(rows, index_features(2), 2, PowrConfig().offline, 0).first_ND
    for frames in (
        saved.observation_NO, saved.initial_BO, drawn.observation_NO, drawn.initial_BO,
        start_observations(rows, 5, 500, 0, 0.25), start_observations(rows, LENGTH, 500, 0, 0.25),
    ):  # fmt: skip
        assert not unseen[frames[:, 0].long().numpy()].any()
    assert len(begun) == EPISODES - rows.held_out(PowrConfig().offline.held_out).sum()


@pytest.mark.parametrize("noise", [0, 0.02])
def test_an_angle_turns_without_limit_and_has_a_velocity(noise):
    """A driven, damped wheel, of which a whole turn is 2 pi; and all of it again at a hundredth of the size."""
    random = np.random.default_rng(0)
    torque = np.repeat(random.normal(0, 60, 100), 10)
    velocity = np.zeros(1001)
    for step in range(1000):
        velocity[step + 1] = 0.9 * velocity[step] + 0.1 * torque[step]
    angle = np.concatenate([[0], 0.05 * (velocity[1:] + velocity[:-1]).cumsum() / 2])
    constant = np.full(1001, 8.0)
    alone = 20 * np.sin(np.arange(1001) / 7)  # a wide column without a velocity
    columns = torch.tensor(np.stack([angle, velocity, angle / 100, constant, alone], 1))
    columns += noise * torch.tensor(random.normal(size=columns.shape))
    assert np.ptp(velocity) > 2 * np.pi
    assert np.ptp(angle) > 2 * np.pi > np.ptp(angle / 100)
    assert balance.turning(columns[:-1], columns[1:]).tolist() == [True, False, False, False, False]
    assert not balance.turning(columns[:-1, [0, 2, 3]], columns[1:, [0, 2, 3]]).any()


@pytest.mark.parametrize("normalized", [False, True])
def test_the_encoder_sees_whole_turns_as_equal(tmp_path, normalized):
    """The values of an angle, two turns apart, differ in the scaled column alone."""
    spec = point_mass_spec(observation_dim=2, episode_length=LENGTH)
    turning = numbered_episode(spec, 0, LENGTH)
    turning.observations[:, 0] = np.linspace(-3, 9, LENGTH + 1)
    turning.observations[:, 1] = 0.1 * turning.observations[:, 0].cumsum()
    store = write_store(tmp_path / "turning", [(spec, [turning])])
    config = WorldModelConfig(
        latent_dim=8, encoder_dim=8, mlp_dim=8, task_dim=4, wrap_angles=True, normalize_observations=normalized
    )
    model = WorldModel(config, store.table).freeze()
    balance.scale_observations(model, 0, store.tasks[0], 0.0)
    assert model.angle_KO.tolist() == [[0, 1]]
    assert bool((model.observation_scale_KO != 1).any()) == normalized
    model.encoder.layers[0].linear.weight[:, 1] = 0  # the column itself
    angle = torch.tensor([0.4, 0.4 + 4 * np.pi, 2.4])
    z = model.encode(torch.stack([torch.full((3,), 0.5), angle], 1), spec.name)
    torch.testing.assert_close(z[1], z[0], rtol=0, atol=1e-6)
    assert (z[2] - z[0]).abs().max() > 1e-4
    encoder = TaskEncoder.of(model, spec.name)
    restored = TaskEncoder(**json.loads(json.dumps(encoder.describe())))
    restored.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(restored(torch.stack([torch.full((3,), 0.5), angle], 1)), z)
