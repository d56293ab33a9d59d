"""What MR.Q refuses, and what the message says."""

from __future__ import annotations

import dataclasses
import json

import pytest
from orrery.datasets.tasks import task_spec
from orrery.pipeline.errors import CheckpointError, ConfigError, DatasetError, StageError, TaskError
from orrery.stages.data.config import ReplayDatasetsConfig
from orrery.stages.data.stage_replay_datasets import ReplayDatasets
from orrery.stages.mrq.config import (
    DesignConfig,
    LearnConfig,
    MrqConfig,
    MrqOnlineConfig,
    NetworkConfig,
    vary,
)
from orrery.stages.mrq.networks import MrqEncoder
from orrery.stages.mrq.offline import OfflineMember, OfflineTraining
from orrery.stages.mrq.online import OnlineTraining
from orrery.stages.mrq.stage_mrq import Mrq
from orrery.stages.mrq.stage_mrq_online import MrqOnline

from .mrq_cases import CARTPOLE, OFFLINE, ONLINE, PENDULUM, SMALL, context_of, made, run_to, with_frames
from .stores import point_mass_episodes, point_mass_spec, write_store


def test_resume_with_another_task_names_what_differs():
    state = run_to(OnlineTraining(task_spec(PENDULUM), ONLINE, "mrq", 0), 5).state_dict()
    other = OnlineTraining(dataclasses.replace(task_spec(PENDULUM), action_repeat=2), ONLINE, "mrq", 0)
    with pytest.raises(CheckpointError, match="differs from 'gymnasium/Pendulum-v1' in: action_repeat 1 -> 2"):
        other.load_state_dict(state)


def test_resume_with_an_environment_that_behaves_otherwise_is_noticed(monkeypatch):
    training = run_to(OnlineTraining(task_spec(PENDULUM), ONLINE, "mrq", 0), 5)
    state = training.state_dict()
    other = OnlineTraining(task_spec(PENDULUM), ONLINE, "mrq", 0)
    other._lanes[0].environment.native.unwrapped.m = 1.3
    with pytest.raises(CheckpointError, match=r"replayed from its seed, .* in another observation"):
        other.load_state_dict(state)


def test_actions_that_are_several_choices_are_refused():
    with pytest.raises(TaskError, match=r"its actions are MultiDiscrete\(\[3 3\]\), expected Box or Discrete"):
        task_spec("gymnasium/OrrerySwitches-v0")


def test_a_pixel_size_that_the_encoder_cannot_take_is_refused():
    with pytest.raises(ConfigError, match=r"takes images of shape \(channels, 84, 84\), found \(2, 96, 96\)"):
        OnlineTraining(task_spec("gymnasium/OrreryImages96-v0"), with_frames(2), "mrq", 0)
    with pytest.raises(ConfigError, match="2 channels, which is not a multiple of mrq_online"):
        OnlineTraining(task_spec("gymnasium/OrreryImages84-v0"), with_frames(3), "mrq", 0)
    with pytest.raises(ConfigError, match="support one policy per program, found 2"):
        MrqEncoder(2, (3, 84, 84), 1, SMALL, DesignConfig())


def test_a_store_without_rewards_is_refused(tmp_path):
    spec = point_mass_spec()
    episodes = point_mass_episodes(spec, 3)
    for episode in episodes:
        episode.rewards[:] = 0
    write_store(tmp_path / "store", [(spec, episodes)])
    with pytest.raises(DatasetError, match=r"task 'toy/point': every reward in the store is zero.* with mrq.tasks"):
        Mrq(OFFLINE).run(context_of(tmp_path, "mrq", store=tmp_path / "store", world_model=None))


def test_a_store_of_episodes_shorter_than_a_window_is_refused(tmp_path):
    spec = point_mass_spec()
    store = write_store(tmp_path / "store", [(spec, point_mass_episodes(spec, 3, length=4))])
    training = OfflineTraining(store, [OfflineMember(spec.name, 0)], OFFLINE, "mrq")
    with pytest.raises(DatasetError, match="no window of 5 steps"):
        training.advance()


def test_a_world_model_that_is_not_there_is_asked_for(tmp_path):
    spec = point_mass_spec()
    write_store(tmp_path / "store", [(spec, point_mass_episodes(spec, 3))])
    config = dataclasses.replace(OFFLINE, start_from_world_model=True)
    with pytest.raises(StageError, match="add the stage pretrain before mrq"):
        Mrq(config).run(context_of(tmp_path, "mrq", store=tmp_path / "store", world_model=None))


@pytest.mark.parametrize(
    ("algorithms", "kept", "message"),
    [
        (["mrq_online"], False, r"no replay buffer \(policies: mrq_online\); .* mrq_online\.keep_replay=true"),
        (
            ["mrq_online", "no_lap"],
            True,
            "buffers of mrq_online, no_lap; .* replay_datasets.algorithm=mrq_onl",
        ),
    ],
)
def test_data_without_one_algorithms_replay_is_refused(tmp_path, algorithms, kept, message):
    replay = {"episodes": "x.npz"} if kept else {}
    policies = [{"algorithm": one, "task": CARTPOLE, "seed": 0, "path": "x"} | replay for one in algorithms]
    (made(tmp_path / "policies") / "policies.json").write_text(json.dumps({"tasks": [], "policies": policies}))
    with pytest.raises(StageError, match=message):
        ReplayDatasets(ReplayDatasetsConfig()).run(context_of(tmp_path, "data", policies=tmp_path / "policies"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MrqOnlineConfig(warmup=5), "warmup must be at least 6, one window, found 5"),
        (lambda: MrqOnlineConfig(steps=0), "steps must be at least 1"),
        (lambda: MrqOnlineConfig(variants=["no_lpa"]), r"unknown \['no_lpa'\]; known: mrq, linear_value"),
        (lambda: MrqConfig(variants=[]), "must be a non-empty list without repetitions"),
        (lambda: MrqConfig(freeze_encoder=True, encoder_updates=0), "would leave the encoder untrained"),
        (lambda: MrqConfig(behaviour_weight=-1.0), "behaviour_weight must not be negative"),
        (lambda: LearnConfig(discount=1.5), r"discount must lie in \[0, 1\]"),
        (lambda: NetworkConfig(latent_dim=0), "latent_dim must be at least 1"),
        (lambda: ReplayDatasetsConfig(behaviour="expertise"), "behaviour: expected exploration"),
        (lambda: MrqOnline(MrqOnlineConfig()).check(), "mrq_online.tasks is empty"),
        (lambda: MrqOnline(MrqOnlineConfig(tasks=[PENDULUM], pixels=True)).check(), r"renders dm_control tasks"),
        (lambda: vary(LearnConfig(networks=NetworkConfig(state_action_dim=8)), "revert"), "must be equal"),
    ],
)
def test_settings_that_cannot_be_meant(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
