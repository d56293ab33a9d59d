"""Collected episodes depend on seed, task and number only; Minari and our reader both read what is written."""

import dataclasses
import json
import logging
from contextlib import contextmanager
from pathlib import Path

import minari
import numpy as np
import pytest
from orrery.datasets.collect import Variation, dataset_id, episode_seed, expert, exploration, noisy
from orrery.datasets.formats.minari import MinariReader
from orrery.datasets.rollout import _Running, play_episodes
from orrery.datasets.schema import TaskSpec
from orrery.datasets.store import TaskStore
from orrery.datasets.tasks import make_environment, task_spec
from orrery.pipeline.artifact import finish
from orrery.pipeline.errors import ConfigError, StageError, TaskError
from orrery.pipeline.jobs.config import FanoutConfig
from orrery.pipeline.stage import Context
from orrery.stages.data.config import CollectConfig, PackConfig
from orrery.stages.data.stage_collect import Collect
from orrery.stages.data.stage_pack import Pack
from orrery.stages.policy import episodes_job

PENDULUM = "gymnasium/Pendulum-v1"


class Line:
    def __init__(self):
        self.done = 0

    def advance(self, amount=1):
        self.done += amount

    def note(self, text): ...


def context(folder: Path, workers=1, earlier=()) -> Context:
    @contextmanager
    def progress(description, total, completed=0):
        line = Line()
        yield line
        assert line.done + completed == total

    folder.mkdir(exist_ok=True)
    return Context(folder, {}, workers, 1, logging.getLogger("test"), progress, earlier=earlier)


def collect(folder, workers=1, earlier=(), **settings):
    stage = Collect(CollectConfig(**settings))
    stage.check()
    summary = stage.run(context(folder, workers, earlier))
    return summary, json.loads((folder / "datasets.json").read_text())["tasks"]


def episodes(folder, record):
    return list(MinariReader(folder / record["path"]))


def test_a_collected_dataset_replays_in_its_environment(tmp_path):
    tasks = ["gymnasium/Pendulum-v1", "gymnasium/CartPole-v1"]
    summary, records = collect(tmp_path, tasks=tasks, episodes=3, seed=7)
    assert list(records) == tasks
    assert summary.endswith("in 6 episodes of 2 tasks")
    for task, record in records.items():
        reader = MinariReader(tmp_path / record["path"])
        assert reader.task.name == task
        assert (reader.behaviour, record["behaviour"]) == ("exploration", "exploration")
        assert record["transitions"] == sum(len(episode) for episode in reader)
        assert record["return_mean"] == pytest.approx(np.mean([episode.rewards.sum() for episode in reader]), rel=1e-5)
        environment = make_environment(reader.task)
        for number, episode in enumerate(reader):
            observation, _ = environment.reset(seed=episode_seed(7, task, number))
            np.testing.assert_array_equal(observation, episode.observations[0])
            for t, action in enumerate(episode.actions):
                observation, _, terminated, _, _ = environment.step(action)
                np.testing.assert_array_equal(observation, episode.observations[t + 1])
            assert terminated == episode.terminated


def test_minari_itself_reads_what_was_collected(tmp_path, monkeypatch):
    _, records = collect(tmp_path, tasks=["gymnasium/CartPole-v1", "metaworld/reach-v3"], episodes=2)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    cartpole = minari.load_dataset(records["gymnasium/CartPole-v1"]["dataset_id"])
    assert cartpole.action_space.n == 2
    assert set(cartpole[0].actions) <= {0, 1}
    assert cartpole[0].terminations[-1]
    reach = minari.load_dataset(records["metaworld/reach-v3"]["dataset_id"])
    assert reach[0].observations.shape == (101, 39)
    assert reach[0].observations.dtype == np.float32
    assert reach[0].infos["success"].shape == (101,)
    assert records["metaworld/reach-v3"]["behaviour"] == "expert"
    assert records["metaworld/reach-v3"]["success_rate"] is not None


def test_episodes_do_not_depend_on_workers_or_on_how_many_are_asked_for(tmp_path, monkeypatch):
    settings = {"tasks": ["gymnasium/Pendulum-v1"], "seed": 3}
    _, few = collect(tmp_path / "few", episodes=3, **settings)
    monkeypatch.setattr("orrery.stages.data.stage_collect.CHUNK", 2)
    _, many = collect(tmp_path / "many", episodes=5, workers=2, **settings)
    pairs = zip(episodes(tmp_path / "few", *few.values()), episodes(tmp_path / "many", *many.values()), strict=False)
    for one, other in pairs:
        np.testing.assert_array_equal(one.observations, other.observations)
        np.testing.assert_array_equal(one.actions, other.actions)
    _, other_seed = collect(tmp_path / "other", episodes=1, **(settings | {"seed": 4}))
    (first,) = episodes(tmp_path / "other", *other_seed.values())
    assert not np.array_equal(first.actions, episodes(tmp_path / "few", *few.values())[0].actions)


@pytest.mark.parametrize(
    ("former", "count"),
    [
        ({"tasks": [PENDULUM]}, 5),
        ({"episodes": 3}, 3),
        ({"episodes": 7}, 7),
        ({"episodes": 2, "behaviour_mixture": {"exploration": 1.5}}, 3),
        ({"episodes": 10, "behaviour_mixture": {"exploration": 0.5, "expert": 2}}, 5),
    ],
)
def test_a_larger_collect_plays_only_what_is_missing(tmp_path, monkeypatch, former, count):
    """Byte for byte."""
    monkeypatch.setattr("orrery.stages.data.stage_collect.CHUNK", 2)
    settings = {"tasks": [PENDULUM, "gymnasium/CartPole-v1"], "episodes": 5}
    observe = _Running._observe

    def failing(self, observation):  # every third episode of one task
        observe(self, observation)
        if self.environment.task.name == PENDULUM and self.seed % 3 == 0:
            self._fail(ValueError("the pendulum broke"))

    monkeypatch.setattr(_Running, "_observe", failing)
    collect(tmp_path / "collect", **(settings | former))
    finish(tmp_path / "collect", kind="datasets", stage="collect", key="", inputs={}, seconds=0, summary="",
           config=dataclasses.asdict(CollectConfig(**(settings | former))))  # fmt: skip
    played = []
    play = episodes_job._play
    monkeypatch.setattr(
        episodes_job, "_play", lambda one: played.extend((one.spec.name, n) for n in one.numbers) or play(one)
    )
    collect(tmp_path / "grown", earlier=[tmp_path / "gone", tmp_path / "collect"], **settings)
    old = {(task, n) for task in (settings | former)["tasks"] for n in range(count)}
    assert sorted(played) == sorted({(task, n) for task in settings["tasks"] for n in range(5)} - old)
    collect(tmp_path / "whole", **settings)
    assert _files(tmp_path / "grown") == _files(tmp_path / "whole")


def test_a_kill_after_the_datasets_are_written_leaves_no_jobs(tmp_path, monkeypatch):
    settings = {"tasks": [PENDULUM], "episodes": 2}
    with monkeypatch.context() as patch:
        patch.setattr("orrery.stages.data.stage_collect.remove", killed)
        with pytest.raises(KeyboardInterrupt):
            collect(tmp_path / "collect", **settings)
    assert list(tmp_path.glob("*.jobs/*"))
    collect(tmp_path / "collect", **settings)
    assert not list(tmp_path.glob("*.jobs/*"))


def killed(*_):
    raise KeyboardInterrupt


def test_episodes_by_behaviour_name_one_that_collect_has():
    with pytest.raises(ConfigError, match="behaviour_mixture: expected exploration, expert, policy, found replay"):
        CollectConfig(behaviour_mixture={"replay": 3})
    with pytest.raises(ConfigError, match=r"behaviour_mixture must be positive, found \{'expert': 0\}"):
        CollectConfig(behaviour_mixture={"expert": 0})


def test_jobs_of_a_task_each_play_the_same_bytes(tmp_path):
    settings = {"tasks": [PENDULUM, "gymnasium/CartPole-v1"], "episodes": 3}
    collect(tmp_path / "inline", **settings)
    collect(tmp_path / "local", fanout=FanoutConfig("local"), **settings)
    assert _files(tmp_path / "local") == _files(tmp_path / "inline")
    assert not list(tmp_path.glob("*.jobs/*"))  # their episodes are in the datasets


def _files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_interrupted_collect_keeps_finished_tasks_and_replaces_half_written_ones(tmp_path, monkeypatch):
    settings = {"tasks": ["gymnasium/Pendulum-v1", "gymnasium/CartPole-v1"], "episodes": 2}

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("orrery.stages.data.stage_collect.Collect._finish", killed)
        with pytest.raises(KeyboardInterrupt):
            collect(tmp_path, **settings)
    finished = tmp_path / "minari" / dataset_id("gymnasium/Pendulum-v1") / "data" / "main_data.hdf5"
    before = finished.stat().st_mtime_ns
    (tmp_path / "minari" / dataset_id("gymnasium/CartPole-v1") / "data" / "metadata.json").unlink()
    (tmp_path / "minari" / dataset_id("gymnasium/CartPole-v1")).rename(tmp_path / "minari.tmp")
    _, records = collect(tmp_path, **settings)
    assert finished.stat().st_mtime_ns == before
    assert [record["episodes"] for record in records.values()] == [2, 2]
    assert not (tmp_path / "minari.tmp").exists()


def test_wrong_settings_are_refused_before_anything_runs():
    with pytest.raises(TaskError, match="unknown task 'dmc/cartpole-balanc'"):
        Collect(CollectConfig(tasks=["dmc/cartpole-balanc"])).check()
    with pytest.raises(ConfigError, match="repeats a task: dmc/ball_in_cup-catch"):
        Collect(CollectConfig(tasks=["dmc/cup-catch", "dmc/ball_in_cup-catch"])).check()
    with pytest.raises(ConfigError, match=r"collect\.tasks is empty"):
        Collect(CollectConfig()).check()
    with pytest.raises(ConfigError, match="expert_noise must be two numbers"):
        CollectConfig(expert_noise=[0.5, 0.1])
    with pytest.raises(ConfigError, match="expected a policies artifact"):
        Collect(CollectConfig(tasks=["dmc/cartpole-balance"], policy="/nowhere")).check()


class Push:
    """Always the same action, that of its folder's name in tenths: `pwm_5` pushes with 0.5."""

    def __init__(self, folder):
        self.force = int(str(folder).rpartition("_")[2]) / 10

    def act(self, observation):
        return observation.new_full((len(observation), 1), self.force)


def write_policies(folder, *entries):
    folder.mkdir()
    listed = [{"algorithm": one, "task": task, "seed": seed, "path": path} for one, task, seed, path in entries]
    (folder / "policies.json").write_text(json.dumps({"tasks": [], "policies": listed}))
    return str(folder)


PENDULUM = "gymnasium/Pendulum-v1"


def test_the_policies_of_a_task_collect_in_turn(tmp_path, monkeypatch):
    monkeypatch.setattr("orrery.stages.policy.policy.load_policy", Push)
    policy = write_policies(
        tmp_path / "policies", ("pwm", PENDULUM, 0, "pwm_5"), ("bc", PENDULUM, 0, "bc_9"), ("pwm", PENDULUM, 1, "pwm_3")
    )
    _, records = collect(tmp_path / "out", tasks=[PENDULUM], episodes=3, policy=policy)
    (record,) = records.values()
    assert record["behaviour"] == "policy"
    forces = [set(episode.actions.ravel().tolist()) for episode in episodes(tmp_path / "out", record)]
    assert forces == [{np.float32(0.5).item()}, {np.float32(0.3).item()}, {np.float32(0.5).item()}]
    _, records = collect(tmp_path / "bc", tasks=[PENDULUM], episodes=1, policy=policy, policy_algorithm="bc")
    (episode,) = episodes(tmp_path / "bc", *records.values())
    assert set(episode.actions.ravel().tolist()) == {np.float32(0.9).item()}
    with pytest.raises(ConfigError, match=r"no policy of 'pwm' for dmc/cartpole-balance; it has: bc for gymnasium/Pen"):
        Collect(CollectConfig(tasks=["dmc/cartpole-balance"], policy=policy)).check()
    with pytest.raises(ConfigError, match=r"no policy of 'mrq' for gymnasium/Pendulum-v1"):
        Collect(CollectConfig(tasks=[PENDULUM], policy=policy, policy_algorithm="mrq")).check()


def test_policies_explore_as_much_as_they_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("orrery.stages.policy.policy.load_policy", Push)
    policy = write_policies(tmp_path / "policies", ("pwm", PENDULUM, 0, "pwm_0"))

    def deviations(name, **settings):
        _, records = collect(tmp_path / name, tasks=[PENDULUM], episodes=30, policy=policy, **settings)
        return np.array([episode.actions.std() for episode in episodes(tmp_path / name, *records.values())])

    # Over 200 steps a standard deviation is found within 20%: its own error is 5%.
    found = deviations("noise", policy_noise=[0.1, 0.3])
    assert 0.08 < found.min() < 0.15
    assert 0.24 < found.max() < 0.36
    # Of 30 episodes with probability 0.5 between 5 and 25 in all but 3 of 10,000 runs; this one is seeded.
    random = deviations("random", policy_random_share=0.5) > 0
    assert 5 <= random.sum() <= 25
    with pytest.raises(ConfigError, match=r"policy_noise must be two numbers 0 <= low <= high, found \[0.3, 0.1\]"):
        CollectConfig(policy_noise=[0.3, 0.1])
    with pytest.raises(ConfigError, match=r"policy_random_share must lie in \[0, 1\]"):
        CollectConfig(policy_random_share=1.5)


def test_noise_on_choices_is_the_share_of_uniform_ones():
    spec = task_spec("gymnasium/CartPole-v1")
    act = noisy(lambda observation, _: np.tile([[1.0, 0.0]], (len(observation), 1)), spec, [0, 1], 0, (0.4, 0.4), 0.0)
    rows = [act(np.zeros((2, 4), np.float32), np.array([0, 1])) for _ in range(1000)]
    taken = np.concatenate(rows)
    assert set(map(tuple, taken)) == {(1.0, 0.0), (0.0, 1.0)}
    assert taken[:, 1].mean() == pytest.approx(0.2, abs=0.04)  # four standard errors


def test_a_task_whose_episodes_all_fail_stops_the_stage(tmp_path, monkeypatch):
    class Broken:
        def act(self, observation):
            return observation.new_full((len(observation), 1), float("nan"))

    artifact = tmp_path / "policies"
    artifact.mkdir()
    entry = {"algorithm": "pwm", "task": "gymnasium/Pendulum-v1", "seed": 0, "path": "pwm"}
    (artifact / "policies.json").write_text(json.dumps({"tasks": [], "policies": [entry]}))
    monkeypatch.setattr("orrery.stages.policy.policy.load_policy", lambda folder: Broken())
    with pytest.raises(StageError, match="all 2 episodes failed; the first: the action is not finite"):
        collect(tmp_path / "out", tasks=["gymnasium/Pendulum-v1"], episodes=2, policy=str(artifact))


def correlation(actions):
    centred = actions - actions.mean(0)
    return (centred[1:] * centred[:-1]).sum() / (centred**2).sum()


def test_exploration_covers_time_scales_and_stays_in_range():
    spec = TaskSpec("test/t", 1, 3, 500)
    observations = np.random.default_rng(0).standard_normal((400, 1))
    runs = []
    for number in range(60):
        controller = exploration(spec, np.random.default_rng(number))
        runs.append(np.stack([controller(observation) for observation in observations]))
    assert max(np.abs(run).max() for run in runs) <= 1
    memory = np.array([correlation(run) for run in runs])
    assert (memory < 0.3).mean() > 0.2
    assert (memory > 0.8).mean() > 0.2
    bang_bang = [run for run in runs if (np.abs(run) == 1).all()]
    assert 0.15 < len(bang_bang) / len(runs) < 0.55
    held = [400 / max((np.diff(run, axis=0) != 0).any(1).sum(), 1) for run in bang_bang]
    assert min(held) < 4
    assert max(held) > 6


def test_a_third_of_exploration_acts_by_what_it_observes():
    """At two distant observations, a random policy acts differently, whatever their units; noise does not."""
    spec = TaskSpec("test/t", 2, 1, 500)
    for scale in (1e-3, 1e3):
        side = np.where(np.random.default_rng(0).random(2000) < 0.5, -1.0, 1.0)
        observations = scale * np.stack([5 + side, np.full(2000, 7.0)], axis=1)
        by_observation = []
        for number in range(60):
            controller = exploration(spec, np.random.default_rng(number))
            action = np.array([controller(observation)[0] for observation in observations])
            high, low = action[side > 0][:100].mean(), action[side < 0][:100].mean()
            again = abs(action[side > 0][:100:2].mean() - action[side > 0][1:100:2].mean())
            by_observation.append(abs(high - low) > 0.3 + again)
        assert 0.15 < np.mean(by_observation) < 0.5


def test_discrete_exploration_is_one_hot_and_tries_every_choice():
    spec = TaskSpec("test/t", 1, 3, 500, action_kind="discrete")
    controller = exploration(spec, np.random.default_rng(0))
    actions = np.stack([controller(np.zeros(1)) for _ in range(400)])
    np.testing.assert_array_equal(np.sort(actions, axis=1), np.tile([0, 0, 1], (400, 1)))
    assert (actions.sum(0) > 20).all()


def test_the_scripted_expert_solves_its_task_and_noise_spoils_it():
    spec = task_spec("metaworld/reach-v3")

    def success(variation):
        controllers = [expert(spec, np.random.default_rng(number), variation) for number in range(4)]

        def act(observation, episode):
            return np.stack([controllers[i](row) for i, row in zip(episode, observation, strict=True)])

        return [result.success_any for _, result in play_episodes(spec, act, range(4), lanes=1)]

    assert success(Variation(noise=(0, 0), random_share=0)) == [True] * 4
    assert success(Variation(random_share=1)) != [True] * 4


def test_packing_takes_as_many_episodes_as_it_is_told_the_first_ones(tmp_path):
    collect(tmp_path / "data", tasks=[PENDULUM], episodes=3, seed=1)
    stores = []
    for limit in (2, 0):
        folder = tmp_path / f"store_{limit}"
        stage = Pack(PackConfig(episodes=limit))
        data = {"datasets": [tmp_path / "data"]}
        stage.run(dataclasses.replace(context(folder), inputs=data))
        stores.append(TaskStore.open(folder).tasks[0])
    few, every = stores
    assert (few.summary.episodes, every.summary.episodes) == (2, 3)
    assert np.array_equal(few.rows, every.rows[: len(few.rows)])
    with pytest.raises(ConfigError, match="must not be negative"):
        PackConfig(episodes=-1)
