"""MR.Q's stages: the order of a step, members side by side, continuing, policies, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from orrery.datasets.sources import open_reader
from orrery.datasets.tasks import make_environment, task_spec
from orrery.pipeline.errors import CheckpointError, ConfigError, DatasetError, StageError, TaskError
from orrery.pipeline.logging import ConsoleProgress
from orrery.pipeline.stage import Context
from orrery.pipeline.study_config import load_study
from orrery.stages.mrq import Mrq, MrqConfig
from orrery.stages.mrq_datasets import MrqDatasets, MrqDatasetsConfig
from orrery.stages.mrq_learning.config import DESIGN_STUDY, DesignConfig, LearnConfig, NetworkConfig, vary
from orrery.stages.mrq_learning.learner import Learner, Shapes
from orrery.stages.mrq_learning.networks import Encoder
from orrery.stages.mrq_learning.offline import OfflineMember, OfflineTraining
from orrery.stages.mrq_learning.online import OnlineTraining
from orrery.stages.mrq_learning.pixels import pixel_spec
from orrery.stages.mrq_online import MrqOnline, MrqOnlineConfig
from orrery.stages.policy import load_policy
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.networks import WorldModel

from .stores import numbered_episode, point_mass_episodes, point_mass_spec, write_store

SMALL = NetworkConfig(12, 12, 6, 10, 10, 10, num_bins=9, bin_limit=3.0)
LEARN = LearnConfig(networks=SMALL, batch_size=8, period=4)
ONLINE = MrqOnlineConfig(
    learn=LEARN, steps=60, warmup=30, replay_size=200, evaluate_every=1000, evaluation_episodes=1, accelerator="cpu"
)
OFFLINE = MrqConfig(learn=LEARN, encoder_updates=8, updates=10, log_every=5, checkpoint_every=3, accelerator="cpu")
CARTPOLE, PENDULUM = "gymnasium/CartPole-v1", "gymnasium/Pendulum-v1"


class Images(gymnasium.Env):
    """Two frames of one channel, stacked; the newest frame's pixels are the number of decisions so far."""

    def __init__(self, size: int) -> None:
        self.observation_space = spaces.Box(0, 255, (2, size, size), np.uint8)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)

    def _stack(self):
        size = self.observation_space.shape[1]
        return np.stack([np.full((size, size), max(self._time + back, 0), np.uint8) for back in (-1, 0)])

    def reset(self, *, seed=None, options=None):
        self._time = 0
        return self._stack(), {}

    def step(self, action):
        self._time += 1
        return self._stack(), 1.0, False, False, {}


class Switches(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.MultiDiscrete([3, 3])


gymnasium.register("OrreryImages84-v0", entry_point=Images, kwargs={"size": 84}, max_episode_steps=9)
gymnasium.register("OrreryImages96-v0", entry_point=Images, kwargs={"size": 96}, max_episode_steps=9)
gymnasium.register("OrrerySwitches-v0", entry_point=Switches)


def run_to(training, steps):
    while training.steps < steps:
        training.advance()
    return training


def assert_same(left, right):
    """Equal bit for bit, whatever the nesting; seconds are left out."""
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left.keys() - {"seconds", "training_seconds"}:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert left == right


# The training step


def test_targets_are_copied_and_the_encoder_trained_at_the_first_step_of_a_period():
    training = run_to(OnlineTraining(task_spec(PENDULUM), ONLINE, "mrq", 0), 30)
    learner, replay = training.learner, training.replay
    events = []
    copy, encode = learner._copy_targets, learner._update_encoder
    learner._copy_targets = lambda: (events.append("copy"), copy())[1]
    learner._update_encoder = lambda *a: (events.append("encoder"), encode(*a))[1]
    scales = []
    for _ in range(5):
        learner.train([replay])
        events.append("step")
        scales.append((float(learner._scale_M), float(learner._target_scale_M)))
    burst = ["copy", *["encoder"] * 4]
    assert events == [*burst, *["step"] * 4, *burst, "step"]
    mean = float(replay.reward.abs().sum()) / replay.num_decisions
    assert scales[0] == (pytest.approx(mean, rel=1e-5), 1.0)  # the targets' scale is the one before
    assert scales[4] == (pytest.approx(mean, rel=1e-5), pytest.approx(mean, rel=1e-5))
    # The last copy was made before the last step of values and policy, not of the encoder's burst.
    online, target = learner.values.state_dict(), learner.target_values.state_dict()
    assert any(not torch.equal(online[name], target[name]) for name in online)


@pytest.mark.parametrize("variant", ["mrq", "dynamics_target"])
def test_targets_embedded_once_per_period_are_those_of_every_draw(tmp_path, variant):
    """Two members, of tasks of different sizes."""
    tasks = [(point_mass_spec(f"toy/{n}"), point_mass_episodes(point_mass_spec(f"toy/{n}"), n, n)) for n in (2, 3)]
    store = write_store(tmp_path / "store", tasks)
    config = dataclasses.replace(OFFLINE, learn=dataclasses.replace(LEARN, period=8))
    training = OfflineTraining(store, [OfflineMember(spec.name, 0) for spec, _ in tasks], config, variant)
    learner, sources = training.learner, training._sources
    learner.train(sources)
    starts = learner._starts(sources, 5, 8)
    shared = learner._shared_targets(sources, starts)
    assert shared is not None
    for number, start_MB in enumerate(starts):
        drawn = learner._observations(sources, start_MB, list(range(1, 6)))
        expected = torch.stack([learner._dynamics_target(drawn[:, t]) for t in range(5)], 1)
        torch.testing.assert_close(shared.of_update(number), expected)
    few = starts[:1, :, :2]  # as many observations as draws
    assert learner._shared_targets(sources, few) is None


@pytest.fixture(scope="module")
def plain():
    return run_to(OnlineTraining(task_spec(CARTPOLE), ONLINE, "mrq", 0), 36)


@pytest.mark.parametrize("variant", [*DESIGN_STUDY, "released"])
def test_every_variant_of_the_design_study_trains(variant, plain):
    training = run_to(OnlineTraining(task_spec(CARTPOLE), ONLINE, variant, 0), 36)
    assert all(bool(value.isfinite().all()) for value in training._metrics.values())
    same = training.learner.policy.state_dict(), plain.learner.policy.state_dict()
    assert any(not torch.equal(same[0][name], same[1][name]) for name in same[0])


def test_the_study_of_the_design_takes_away_what_its_variants_do():
    expected = {name: overrides_of(changes) for name, changes in DESIGN_STUDY.items()}
    assert load_study("mrq_design").named == {"mrq": [], **expected}


def overrides_of(changes, prefix="mrq_online.learn"):
    overrides = []
    for key, value in changes.items():
        nested = isinstance(value, Mapping)
        overrides += overrides_of(value, f"{prefix}.{key}") if nested else [f"{prefix}.{key}={value}".lower()]
    return overrides


def test_without_the_model_the_value_loss_trains_the_encoder():
    training = run_to(OnlineTraining(task_spec(PENDULUM), ONLINE, "no_mr", 0), 30)
    before = {name: value.clone() for name, value in training.learner.encoder.state_dict().items()}
    training.learner.train([training.replay])
    after = training.learner.encoder.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "state.l1.weight" in moved
    assert "joint.l3.weight" in moved


def test_a_member_learns_the_same_beside_others_as_alone(tmp_path):
    """A task of two observations beside one of three, padded to the same widths: equal up to rounding."""
    wide = point_mass_spec("toy/wide", observation_dim=3)
    tasks = [(spec, point_mass_episodes(spec, 6, seed)) for seed, spec in enumerate([point_mass_spec(), wide])]
    store = write_store(tmp_path / "store", tasks)
    members = [OfflineMember(point_mass_spec().name, 1), OfflineMember("toy/wide", 0)]
    together = OfflineTraining(store, members, OFFLINE, "mrq")
    alone = [OfflineTraining(store, [member], OFFLINE, "mrq") for member in members]
    for training in (together, *alone):
        while training.done < training.encoder_periods + 6:
            training.advance()
    for m, single in enumerate(alone):
        for module in ("encoder", "values", "policy"):
            stacked, own = (getattr(t.learner, module).state_dict() for t in (together, single))
            for name, value in own.items():
                count = len(value)
                torch.testing.assert_close(stacked[name][m * count : (m + 1) * count], value, rtol=1e-3, atol=1e-4)


def test_progress_counts_updates_of_the_encoder_alone_and_of_everything(tmp_path):
    store = write_store(tmp_path / "store", [(point_mass_spec(), point_mass_episodes(point_mass_spec(), 6))])
    training = OfflineTraining(store, [OfflineMember(point_mass_spec().name, 0)], OFFLINE, "mrq")
    found = []
    while training.completed < training.total:
        training.advance()
        found.append(training.completed)
    period, updates = OFFLINE.learn.period, OFFLINE.updates
    assert found == [period * (i + 1) for i in range(training.encoder_periods)] + [
        period * training.encoder_periods + i + 1 for i in range(updates)
    ]


def test_clamped_targets_stay_in_the_range_of_the_period_before(tmp_path):
    spec = point_mass_spec()
    store = write_store(tmp_path / "store", [(spec, point_mass_episodes(spec, 6))])
    training = OfflineTraining(store, [OfflineMember(spec.name, 0)], OFFLINE, "mrq")
    learner = training.learner
    observation = torch.randn(1, 50, 2, generator=torch.Generator().manual_seed(0))
    learner._clamp_M2 = torch.tensor([[-0.1, 0.2]])
    found = learner._next_value(observation)
    assert found.min() >= -0.1
    assert found.max() <= 0.2
    for _ in range(4):  # the first period bootstraps with 0, and sees targets
        learner.train(training._sources)
    assert learner._clamp_M2.tolist() == [[0, 0]]
    learner.train(training._sources)
    assert learner._clamp_M2[0, 1] > 0


# Continuing


@pytest.mark.parametrize(("task", "environments"), [(PENDULUM, 1), (CARTPOLE, 3)])
def test_an_interrupted_run_continues_in_the_middle_of_an_episode_bit_for_bit(tmp_path, task, environments):
    config = dataclasses.replace(ONLINE, environments=environments, evaluate_every=30)
    whole = run_to(OnlineTraining(task_spec(task), config, "mrq", 0), 60)
    first = run_to(OnlineTraining(task_spec(task), config, "mrq", 0), 43)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = OnlineTraining(task_spec(task), config, "mrq", 0)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same(run_to(second, 60).state_dict(), whole.state_dict())


def test_offline_continues_bit_for_bit(tmp_path):
    spec = point_mass_spec()
    store = write_store(tmp_path / "store", [(spec, point_mass_episodes(spec, 6))])
    whole, first, second = (OfflineTraining(store, [OfflineMember(spec.name, 0)], OFFLINE, "mrq") for _ in range(3))
    for training, count in ((whole, 11), (first, 7)):
        for _ in range(count):
            training.advance()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(4):
        second.advance()
    assert_same(second.state_dict(), whole.state_dict())


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
    with pytest.raises(CheckpointError, match=r"played again from its seed, .* in another observation"):
        other.load_state_dict(state)


# Policies and data


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


def context_of(folder, name, **inputs):
    (folder / name).mkdir(parents=True)
    found = {key: [value] if value else [] for key, value in inputs.items()}
    return Context(folder / name, found, 1, 1, logging.getLogger("test"), ConsoleProgress())


def test_replays_become_datasets_that_pack_can_read(tmp_path):
    config = dataclasses.replace(ONLINE, tasks=[CARTPOLE], seeds=2, keep_replay=True, steps=80)
    MrqOnline(config).run(context_of(tmp_path, "online"))
    context = context_of(tmp_path, "data", policies=tmp_path / "online")
    MrqDatasets(MrqDatasetsConfig()).run(context)
    entry = json.loads((tmp_path / "data" / "datasets.json").read_text())["tasks"][CARTPOLE]
    reader = open_reader(tmp_path / "data" / entry["path"])
    episodes = list(reader)
    assert len(episodes) == entry["episodes"]
    assert reader.task == task_spec(CARTPOLE)
    assert reader.behaviour == "exploration"
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
    index = json.loads((tmp_path / "online" / "policies.json").read_text())
    assert [entry["seed"] for entry in index["policies"]] == [0, 1]


def test_offline_policies_with_and_without_a_world_model(tmp_path):
    cart, swing = task_spec(CARTPOLE), point_mass_spec()
    write_store(tmp_path / "store", [(cart, cartpole_episodes(cart)), (swing, point_mass_episodes(swing, 6))])
    from orrery.datasets.schema import TaskTable

    widths = WorldModelConfig(latent_dim=16, encoder_dim=12, mlp_dim=12, task_dim=4)
    WorldModel(widths, TaskTable([cart, swing])).save(_made(tmp_path / "model"))
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


def _made(folder):
    folder.mkdir()
    return folder


def cartpole_episodes(spec):
    random = np.random.default_rng(0)
    episodes = [numbered_episode(spec, number, 12, terminated=True) for number in range(4)]
    for episode in episodes:
        episode.actions[:] = np.eye(2, dtype=np.float32)[random.integers(2, size=12)]
        episode.rewards[:] = 1
    return episodes


def test_images_are_stacked_again_from_single_frames():
    training = run_to(OnlineTraining(task_spec("gymnasium/OrreryImages84-v0"), _frames(2), "mrq", 0), 24)
    replay = training.replay
    assert replay.observation.shape[1:] == (1, 84, 84)
    starts = replay.priorities.starts[3].nonzero()[:, 0]
    seen = replay.observations(starts, torch.arange(4))[..., 0, 0]
    expected = replay.age[starts][:, None] + torch.arange(4)
    assert torch.equal(seen[..., 1].long(), expected)
    assert torch.equal(seen[..., 0].long(), (expected - 1).clamp(min=0))
    policy = training.policy({})
    assert policy.act(torch.zeros(2, 2 * 84 * 84)).shape == (2, 1)


def _frames(frames):
    small = dataclasses.replace(LEARN, batch_size=2)
    return dataclasses.replace(ONLINE, frames=frames, learn=small, warmup=20)


def test_pixel_tasks_say_how_they_are_built():
    spec = pixel_spec(task_spec("dmc/cartpole-balance"), 3)
    assert (spec.name, spec.observation_dim, spec.action_repeat) == ("dmc_pixels/cartpole-balance", 9 * 84 * 84, 1)
    assert spec.environment["kwargs"]["repeat"] == 2
    with pytest.raises(ConfigError, match=r"images are rendered of dm_control tasks only"):
        pixel_spec(task_spec(PENDULUM), 3)


# What is refused


def test_actions_that_are_several_choices_are_refused():
    with pytest.raises(TaskError, match=r"its actions are MultiDiscrete\(\[3 3\]\), expected Box or Discrete"):
        task_spec("gymnasium/OrrerySwitches-v0")


def test_a_pixel_size_that_the_encoder_cannot_take_is_refused():
    with pytest.raises(ConfigError, match=r"takes images of shape \(channels, 84, 84\), found \(2, 96, 96\)"):
        OnlineTraining(task_spec("gymnasium/OrreryImages96-v0"), _frames(2), "mrq", 0)
    with pytest.raises(ConfigError, match="2 channels, which is no multiple of mrq_online"):
        OnlineTraining(task_spec("gymnasium/OrreryImages84-v0"), _frames(3), "mrq", 0)
    with pytest.raises(ConfigError, match="by one member at a time, found 2 members"):
        Encoder(2, (3, 84, 84), 1, SMALL, DesignConfig())


def test_a_store_without_rewards_is_refused(tmp_path):
    spec = point_mass_spec()
    episodes = point_mass_episodes(spec, 3)
    for episode in episodes:
        episode.rewards[:] = 0
    store = write_store(tmp_path / "store", [(spec, episodes)])
    with pytest.raises(DatasetError, match="task 'toy/point': every reward in the store is zero"):
        OfflineTraining(store, [OfflineMember(spec.name, 0)], OFFLINE, "mrq")


def test_a_store_of_episodes_shorter_than_a_window_is_refused(tmp_path):
    spec = point_mass_spec()
    store = write_store(tmp_path / "store", [(spec, point_mass_episodes(spec, 3, length=4))])
    training = OfflineTraining(store, [OfflineMember(spec.name, 0)], OFFLINE, "mrq")
    with pytest.raises(DatasetError, match="no window of 5 decisions"):
        training.advance()


def test_a_world_model_that_is_not_there_is_asked_for(tmp_path):
    spec = point_mass_spec()
    write_store(tmp_path / "store", [(spec, point_mass_episodes(spec, 3))])
    config = dataclasses.replace(OFFLINE, start_from_world_model=True)
    with pytest.raises(StageError, match="list the stage pretrain before mrq"):
        Mrq(config).run(context_of(tmp_path, "mrq", store=tmp_path / "store", world_model=None))


def test_data_without_a_kept_replay_is_refused(tmp_path):
    index = {"tasks": [], "policies": [{"algorithm": "mrq_online", "task": CARTPOLE, "seed": 0, "path": "x"}]}
    (_made(tmp_path / "policies") / "policies.json").write_text(json.dumps(index))
    with pytest.raises(StageError, match=r"mrq_online\.keep_replay=true"):
        MrqDatasets(MrqDatasetsConfig()).run(context_of(tmp_path, "data", policies=tmp_path / "policies"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MrqOnlineConfig(warmup=5), "warmup must be at least 6, one window, found 5"),
        (lambda: MrqOnlineConfig(steps=0), "mrq_online.steps must be at least 1"),
        (lambda: MrqOnlineConfig(variants=["no_lpa"]), r"unknown \['no_lpa'\]; known: mrq, linear_value"),
        (lambda: MrqConfig(variants=[]), "must name each variant once, and at least one"),
        (lambda: MrqConfig(freeze_encoder=True, encoder_updates=0), "would leave the encoder untrained"),
        (lambda: MrqConfig(behaviour_weight=-1.0), "behaviour_weight must not be negative"),
        (lambda: LearnConfig(discount=1.5), r"discount must lie in \[0, 1\]"),
        (lambda: NetworkConfig(latent_dim=0), "latent_dim must be at least 1"),
        (lambda: MrqDatasetsConfig(behaviour="expertise"), "behaviour: expected exploration"),
        (lambda: MrqOnline(MrqOnlineConfig()).check(), "mrq_online.tasks is empty"),
        (lambda: MrqOnline(MrqOnlineConfig(tasks=[PENDULUM], pixels=True)).check(), r"renders dm_control tasks"),
        (lambda: vary(LearnConfig(networks=NetworkConfig(state_action_dim=8)), "revert"), "must be equal"),
    ],
)
def test_settings_that_cannot_be_meant(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_losses_that_are_not_numbers_stop_the_run():
    shapes = Shapes((2,), False, torch.ones(1, 1), torch.tensor([0.9]))
    learner = Learner(shapes, LEARN, [0])
    with pytest.raises(StageError, match="value_loss is not finite after 0 training steps"):
        learner.check_finite({"value": torch.zeros(1), "value_loss": torch.tensor([torch.nan])})
