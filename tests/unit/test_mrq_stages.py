"""MR.Q's stages: continuing, policies, replays as datasets, and images."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from orrery.datasets.formats.sources import open_reader
from orrery.datasets.tasks import make_environment, task_spec
from orrery.pipeline.errors import ConfigError
from orrery.pipeline.jobs.config import FanoutConfig
from orrery.pipeline.jobs.job import read_status
from orrery.stages.data.config import ReplayDatasetsConfig
from orrery.stages.data.stage_replay_datasets import ReplayDatasets
from orrery.stages.mrq.offline import OfflineMember, OfflineTraining
from orrery.stages.mrq.online import OnlineTraining
from orrery.stages.mrq.pixels import pixel_spec
from orrery.stages.mrq.stage_mrq import Mrq
from orrery.stages.mrq.stage_mrq_online import MrqOnline
from orrery.stages.policy.policy import load_policy
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.networks import WorldModel

from .grown import pack_store
from .mrq_cases import CARTPOLE, OFFLINE, ONLINE, PENDULUM, context_of, made, run_to, with_frames
from .stores import numbered_episode, point_mass_episodes, point_mass_spec, write_store


def assert_same(left, right):
    """Equal bit for bit, whatever the nesting."""
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert left == right


# Continuing


@pytest.mark.parametrize(
    ("task", "stopped", "changes"),
    [
        (PENDULUM, 43, {"update_every": 4}),
        (CARTPOLE, 43, {"environments": 3}),
        (PENDULUM, 17, {"warmup_actions": "exploration"}),
        (CARTPOLE, 17, {"warmup_actions": "exploration"}),
    ],
)
def test_an_interrupted_run_continues_in_the_middle_of_an_episode_bit_for_bit(tmp_path, task, stopped, changes):
    config = dataclasses.replace(ONLINE, **changes, evaluate_every=30)
    whole = run_to(OnlineTraining(task_spec(task), config, "mrq", 0), 60)
    assert whole.learner.steps == 60 // config.update_every - config.warmup // config.update_every
    first = run_to(OnlineTraining(task_spec(task), config, "mrq", 0), stopped)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    # Settings that are not hashed may change meanwhile.
    other = dataclasses.replace(config, evaluate_every=7, checkpoint_every=3)
    second = OnlineTraining(task_spec(task), other, "mrq", 0)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    run_to(second, 60)
    assert len(second.curve) > len(whole.curve)
    second.curve = whole.curve
    assert_same(second.state_dict(), whole.state_dict())


def test_offline_continues_bit_for_bit(tmp_path):
    spec = point_mass_spec()
    store = write_store(tmp_path / "store", [(spec, point_mass_episodes(spec, 6))])
    # Settings that are not hashed may change meanwhile.
    other = dataclasses.replace(OFFLINE, load_up_to_gb=0.0, log_every=1, checkpoint_every=3)
    configs = (OFFLINE, OFFLINE, other)
    whole, first, second = (OfflineTraining(store, [OfflineMember(spec.name, 0)], c, "mrq") for c in configs)
    for training, count in ((whole, 11), (first, 7)):
        for _ in range(count):
            training.advance()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(4):
        second.advance()
    assert_same(second.state_dict() | {"curve": whole.curve}, whole.state_dict())


# Policies and data


def test_one_more_seed_and_task_train_only_their_own_policies(tmp_path):
    swing, other = point_mass_spec(), point_mass_spec("toy/other")
    tasks = [(spec, point_mass_episodes(spec, 6)) for spec in (swing, other)]
    pack_store(tmp_path / "store", tasks)
    pack_store(tmp_path / "small", tasks[1:])
    config = dataclasses.replace(OFFLINE, seeds=2, log_every=3, tasks=[swing.name, other.name])
    smaller = dataclasses.replace(config, seeds=1, checkpoint_every=2, tasks=[other.name])
    Mrq(smaller).run(context_of(tmp_path, "grown", store=tmp_path / "small"))
    shutil.rmtree(tmp_path / "grown")
    for name in ("grown", "whole"):
        context = context_of(tmp_path, name, store=tmp_path / "store")
        Mrq(config).run(context)
        assert {read_status(path).attempts for path in context.jobs.iterdir()} == {1}
        assert len(list(context.jobs.iterdir())) == 4
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    files, same = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (whole, grown)
    )
    for found in (files, same):
        del found[Path("logs/costs.csv")]
    assert same == files


def test_one_more_seed_plays_only_its_own(tmp_path):
    config = dataclasses.replace(ONLINE, tasks=[CARTPOLE], steps=35, keep_replay=True)
    policies = []
    for name, folder in (("smaller", "grown"), ("larger", "grown"), ("larger", "whole")):
        seeds = 1 if name == "smaller" else 2
        shutil.rmtree(tmp_path / folder, ignore_errors=True)
        context = context_of(tmp_path, folder)
        MrqOnline(dataclasses.replace(config, seeds=seeds, checkpoint_every=10 * seeds)).run(context)
        assert [read_status(path).attempts for path in context.jobs.iterdir()] == [1] * seeds
        policies.append({p.relative_to(context.folder): p.read_bytes() for p in context.folder.rglob("seed_*/*")})
    assert policies[1] == policies[2]
    assert policies[0].items() < policies[1].items()


@pytest.mark.parametrize("task", [PENDULUM, CARTPOLE])
def test_a_saved_policy_acts_as_the_learner_without_noise(tmp_path, task):
    training = run_to(OnlineTraining(task_spec(task), ONLINE, "mrq", 0), 40)
    training.policy({"algorithm": "mrq_online", "seed": 0}).save(tmp_path / "policy")
    policy = load_policy(tmp_path / "policy")
    observation = torch.randn(5, training.spec.observation_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        head = training.learner.policy(training.learner.encoder.encode(observation[None]))[0]
    found = policy.act(observation)
    if task == PENDULUM:
        torch.testing.assert_close(found, torch.tanh(head))
    else:
        assert torch.equal(found.argmax(-1), head.argmax(-1))
        assert torch.equal(found.sum(-1), torch.ones(5))


def test_replays_become_datasets_that_pack_can_read(tmp_path):
    config = dataclasses.replace(ONLINE, tasks=[CARTPOLE], seeds=2, keep_replay=True, steps=80, loggers=["csv"])
    MrqOnline(config).run(context_of(tmp_path, "online"))
    context = context_of(tmp_path, "data", policies=tmp_path / "online")
    ReplayDatasets(ReplayDatasetsConfig()).run(context)
    entry = json.loads((tmp_path / "data" / "datasets.json").read_text())["tasks"][CARTPOLE]
    reader = open_reader(tmp_path / "data" / entry["path"])
    episodes = list(reader)
    assert len(episodes) == entry["episodes"]
    assert reader.task == task_spec(CARTPOLE)
    assert reader.behaviour == "replay"
    # What is written is what the environment does: each episode, played again from its first state.
    environment = make_environment(reader.task)
    for episode in episodes[:3]:
        assert episode.terminated
        environment.reset(seed=0)
        environment.native.unwrapped.state = tuple(episode.observations[0].astype(np.float64))
        for t, action in enumerate(episode.actions):
            observation, reward, terminated, _, _ = environment.step(action)
            np.testing.assert_allclose(observation, episode.observations[t + 1], atol=1e-4)
            assert (reward, terminated) == (episode.rewards[t], t == len(episode) - 1)
    curve = (tmp_path / "online" / "training.csv").read_text().splitlines()
    assert curve[0].startswith("algorithm,task,seed,iteration,return_mean")
    logged = list(tmp_path.glob("logs/csv/**/metrics.csv"))
    assert len(logged) == 2
    assert logged[0].read_text().splitlines()[0].count("gymnasium/CartPole-v1/seed_") == curve[0].count(",") - 3
    index = json.loads((tmp_path / "online" / "policies.json").read_text())
    assert [entry["seed"] for entry in index["policies"]] == [0, 1]


def test_offline_policies_with_and_without_a_world_model(tmp_path):
    cart, swing = task_spec(CARTPOLE), point_mass_spec()
    write_store(tmp_path / "store", [(cart, cartpole_episodes(cart)), (swing, point_mass_episodes(swing, 6))])
    from orrery.datasets.schema import TaskTable

    widths = WorldModelConfig(latent_dim=16, encoder_dim=12, mlp_dim=12, task_dim=4)
    WorldModel(widths, TaskTable([cart, swing])).save(made(tmp_path / "model"))
    for name, start in (("plain", False), ("latent", True)):
        config = dataclasses.replace(OFFLINE, seeds=1, start_from_world_model=start, variants=["mrq", "no_lap"])
        Mrq(config).run(context_of(tmp_path, name, store=tmp_path / "store", world_model=tmp_path / "model"))
        index = json.loads((tmp_path / name / "policies.json").read_text())
        algorithms = {(entry["algorithm"], entry["task"]) for entry in index["policies"]}
        assert algorithms == {(a, t) for a in ("mrq", "mrq@no_lap") for t in (CARTPOLE, swing.name)}
        for entry in index["policies"]:
            policy = load_policy(tmp_path / name / entry["path"])
            action = policy.act(torch.randn(3, policy.task.observation_dim))
            assert action.shape == (3, policy.task.action_dim)
            assert (policy.features is None) is not start


def test_a_cluster_gpu_trains_policies_together_though_this_machine_has_none(tmp_path):
    spec = point_mass_spec()
    store = write_store(tmp_path / "store", [(spec, point_mass_episodes(spec, 6))])
    slurm = FanoutConfig(executor="slurm", time_limit_min=1.0, options={"gpus": 1})
    stage = Mrq(dataclasses.replace(OFFLINE, seeds=3, accelerator="cuda", fanout=slurm))
    (program,) = stage._programs(store, [spec.name])
    assert [len(members) for members in program.pack(program.members).values()] == [3]


def cartpole_episodes(spec):
    random = np.random.default_rng(0)
    episodes = [numbered_episode(spec, number, 12, terminated=True) for number in range(4)]
    for episode in episodes:
        episode.actions[:] = np.eye(2, dtype=np.float32)[random.integers(2, size=12)]
        episode.rewards[:] = 1
    return episodes


def test_images_are_stacked_again_from_single_frames():
    training = run_to(OnlineTraining(task_spec("gymnasium/OrreryImages84-v0"), with_frames(2), "mrq", 0), 24)
    replay = training.replay
    assert replay.observation.shape[1:] == (1, 84, 84)
    starts = replay.priorities.starts[3].nonzero()[:, 0]
    seen = replay.observations(starts, torch.arange(4))[..., 0, 0]
    expected = replay.age[starts][:, None] + torch.arange(4)
    assert torch.equal(seen[..., 1].long(), expected)
    assert torch.equal(seen[..., 0].long(), (expected - 1).clamp(min=0))
    policy = training.policy({})
    assert policy.act(torch.zeros(2, 2 * 84 * 84)).shape == (2, 1)


def test_pixel_tasks_say_how_they_are_built():
    spec = pixel_spec(task_spec("dmc/cartpole-balance"), 3)
    assert (spec.name, spec.observation_dim, spec.action_repeat) == ("dmc_pixels/cartpole-balance", 9 * 84 * 84, 1)
    assert spec.environment["kwargs"]["repeat"] == 2
    with pytest.raises(ConfigError, match=r"pixels are supported for dm_control tasks only"):
        pixel_spec(task_spec(PENDULUM), 3)
