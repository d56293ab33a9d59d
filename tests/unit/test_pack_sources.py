"""What `pack.sources` says of a dataset reaches the store."""

from __future__ import annotations

import json
import logging
import shlex
import shutil

import gymnasium
import h5py
import numpy as np
import pytest
from orrery.datasets.facts import DataFacts, read_dataset_facts
from orrery.datasets.store import TaskStore
from orrery.pipeline.cli import main
from orrery.pipeline.errors import ConfigError, DatasetError, OrreryError, StageError
from orrery.pipeline.logging import ConsoleProgress
from orrery.pipeline.stage import Context
from orrery.stages.data.config import CollectConfig, PackConfig, SourceConfig
from orrery.stages.data.stage_collect import Collect
from orrery.stages.data.stage_pack import Pack
from rich.console import Console


class Arm(gymnasium.Env):
    """Two observation columns, two torques."""

    observation_space = gymnasium.spaces.Box(-99, 99, (2,))
    action_space = gymnasium.spaces.Box(-4, 8, (2,))

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, False, {}


class Unready(Arm):
    def reset(self, *, seed=None, options=None):
        raise ValueError("no assets")


class Untrue(Arm):
    def reset(self, *, seed=None, options=None):
        return np.zeros(5, np.float32), {}


class Unplayed(Arm):
    def step(self, action):
        raise RuntimeError("no contact solver")


class Unbuilt(Arm):
    def __init__(self):
        raise OSError("no display")


class Texts(Arm):
    observation_space = gymnasium.spaces.Dict({"words": gymnasium.spaces.Text(5)})


class Choosing(Arm):
    action_space = gymnasium.spaces.Discrete(3)


for environment in (Arm, Unready, Untrue, Unplayed, Unbuilt, Texts, Choosing):
    gymnasium.register(f"{environment.__name__}-v0", environment)
gymnasium.register("LimitedArm-v0", Arm, max_episode_steps=500)
gymnasium.register("ShortArm-v0", Arm, max_episode_steps=2)


@pytest.fixture
def packed(tmp_path):
    """Packs one HDF5 file of two episodes of three transitions, with the settings given, and opens the store."""

    def packed(actions, observations=None, **settings):
        observations = np.arange(12.0).reshape(6, 2) if observations is None else observations
        path = tmp_path / "own.hdf5"
        with h5py.File(path, "w") as file:
            file["observations"] = observations
            file["next_observations"] = observations + 1
            file["actions"] = actions
            file["rewards"] = np.ones(6)
            file["timeouts"] = np.arange(6) % 3 == 2
        out = tmp_path / "store"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        stage = Pack(PackConfig(window=2, sources={"lab/arm": SourceConfig(path=str(path), **settings)}))
        stage.check()
        progress = ConsoleProgress(Console(quiet=True))
        stage.run(Context(out, {"datasets": ()}, 1, 1, logging.getLogger("test"), progress))
        return TaskStore.open(out)

    return packed


@pytest.mark.parametrize("name", ["a,b.hdf5", "a, b.hdf5", "a,b,c.hdf5", "it's a,b.hdf5", "x.hdf5,y.hdf5"])
def test_a_file_with_a_comma_in_its_name_is_quoted_as_the_error_says(name, packed, tmp_path, monkeypatch, capsys):
    packed(np.zeros((6, 1)))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work").mkdir()
    shutil.copy("own.hdf5", f"work/{name}")
    items = ["own.hdf5", *(part.strip() for part in f"work/{name}".split(","))]
    with pytest.raises(DatasetError, match="File names with a comma need quotes") as refused:
        Pack(PackConfig(tasks=items)).check()
    (said,) = shlex.split(str(refused.value).rpartition("need quotes: ")[2])
    assert main(["plan", "offline", "stages=[pack]", f"run_dir={tmp_path}/run", said]) == 0, capsys.readouterr().err


def test_an_absent_file_is_not_taken_for_part_of_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(DatasetError, match="no dataset 'work/a'") as refused:
        Pack(PackConfig(tasks=["work/a", "b.hdf5"])).check()
    assert "comma" not in str(refused.value)


def test_native_bounds_scale_the_actions_and_are_kept_for_the_environment(packed):
    torques = np.linspace(-2, 4, 12).reshape(6, 2)
    store = packed(torques, action_low=[-4.0], action_high=[4.0, 8.0], environment="Arm-v0", score_random=0.0)
    found = store.tasks[0].rows[:, 2:4].numpy().reshape(2, 4, 2)[:, :3].reshape(6, 2)
    np.testing.assert_allclose(found, (torques - [0, 2]) / [4, 6], atol=1e-6)
    assert store.table[0].environment == {
        "kind": "gymnasium", "id": "Arm-v0", "action_low": [-4.0, -4.0], "action_high": [4.0, 8.0]
    }  # fmt: skip
    assert store.table[0].score_random == 0


def test_choices_may_be_more_than_the_data_shows_and_stored_as_floats(packed):
    store = packed(np.array([0.0, 1, 0, 1, 0, 0]), choices=4)
    assert (store.table[0].action_kind, store.table[0].action_dim) == ("discrete", 4)
    np.testing.assert_array_equal(store.tasks[0].rows[1, 2:6], [0, 1, 0, 0])


def test_bounds_and_choices_that_cannot_be_meant(packed):
    with pytest.raises(ConfigError, match=r"pack\.sources\.lab/arm: action_low and action_high must be set together"):
        packed(np.zeros((6, 2)), action_low=[-1.0])
    with pytest.raises(ConfigError, match=r"pack\.sources\.lab/arm: choices is for discrete actions"):
        packed(np.zeros((6, 2)), action_low=[-1.0], action_high=[1.0], choices=2)
    with pytest.raises(ConfigError, match=r"pack\.sources\.lab/arm\.choices must not be negative"):
        packed(np.zeros((6, 2)), choices=-2)
    with pytest.raises(DatasetError, match="2 numbers, one per component"):
        packed(np.zeros((6, 2)), action_low=[-1.0, 0, 1], action_high=[1.0])


def test_two_files_of_the_same_name_are_refused_with_both_paths(tmp_path):
    """robomimic#115: every task's file is called low_dim_v141.hdf5."""
    paths = [tmp_path / task / "low_dim.hdf5" for task in ("lift", "can")]
    for path in paths:
        path.parent.mkdir()
        with h5py.File(path, "w") as file:
            file["observations"] = np.zeros((6, 2))
            file["actions"] = np.linspace(-1, 1, 6)[:, None]
            file["rewards"] = np.ones(6)
            file["timeouts"] = np.arange(6) % 3 == 2
    with pytest.raises(ConfigError, match=r"lift/low_dim.*can/low_dim.*task 'hdf5/low_dim'.*pack\.sources\.NAME\.path"):
        Pack(PackConfig(window=2, tasks=[str(path) for path in paths])).check()


def test_settings_of_a_file_that_is_named_by_its_path(packed, tmp_path, monkeypatch, capsys):
    packed(np.linspace(-3, 3, 12).reshape(6, 2))
    monkeypatch.chdir(tmp_path)
    given = ["run", "offline", "stages=[pack]", "run_dir=run", "pack.window=2", "tasks=[own.hdf5]"]
    low, high = (f"pack.sources.own.hdf5.action_{end}=[{bound}]" for end, bound in (("low", -4), ("high", 4)))
    assert main([*given, low, high]) == 0, capsys.readouterr().err
    store = TaskStore.open(tmp_path / "run" / "pack")
    assert store.table.names == ("hdf5/own",)
    assert store.tasks[0].summary.source["actions"]["high"] == [4, 4]
    said = store.tasks[0].summary.findings["warnings"]
    assert any("evaluated: no environment is known. Set pack.sources.own.hdf5.environment" in text for text in said)
    capsys.readouterr()
    for name, message in (("hdf5/own", "'hdf5/own', which is not in tasks: own.hdf5"), ("own", "'own', which is not")):
        assert main([*given, f"pack.sources.{name}.episode_length=3"]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert main([*given[:-1], "tasks=[lab/a]", "pack.sources.lab/a.episode_length=3"]) == 2
    assert "pack.sources.lab/a.path is empty, and 'lab/a' is not the path" in " ".join(capsys.readouterr().err.split())


def test_the_environment_says_how_long_an_episode_may_be(packed):
    (task,) = packed(np.zeros((6, 2)), environment="LimitedArm-v0").table
    assert (task.episode_length, task.discount) == (500, 0.99)
    (task,) = packed(np.zeros((6, 2)), environment="LimitedArm-v0", episode_length=60).table
    assert (task.episode_length, task.discount) == (60, pytest.approx(11 / 12, abs=0.04))
    (task,) = packed(np.zeros((6, 2)), environment="Arm-v0").table
    assert task.episode_length == 3, "without a limit, the longest episode"


def test_episodes_beyond_the_limit_are_warned_of(packed):
    store = packed(np.zeros((6, 2)), environment="ShortArm-v0")
    (said,) = [text for text in store.tasks[0].summary.findings["warnings"] if "steps" in text]
    assert said == "the longest episode of the data has 3 steps, but the environment ends an episode after 2 steps"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ("absent_module:Arm-v0", r"ModuleNotFoundError.*PYTHONPATH"),
        ("broken_module:Arm-v0", r"module of environment .* cannot be imported \(RuntimeError: no licence\)"),
        ("exiting_module:Arm-v0", r"cannot be imported \(SystemExit: 3\)"),
        ("Amr-v0", r"gymnasium has no environment 'Amr-v0' .*nearest are .*Arm-v0.*MODULE:Amr-v0"),
        ("dmc/walker-rnu", r"unknown task 'dmc/walker-rnu': the nearest are dmc/walker-run"),
        ("Pendulum-v1", "observations of 3 numbers, but the data has 2 numbers"),
        ("Unbuilt-v0", r"'Unbuilt-v0' cannot be built: OSError: no display"),
        ("Unready-v0", r"'Unready-v0' cannot be reset: ValueError: no assets"),
        ("Untrue-v0", r"'Untrue-v0' cannot be reset: .*shape \(5,\), expected \(2,\)"),
        ("Unplayed-v0", r"'Unplayed-v0' cannot be stepped: RuntimeError: no contact solver"),
        ("Texts-v0", r"cannot flatten observation\.words of space Text"),
        ("Choosing-v0", r"its action space is Discrete\(3\), but the data has continuous actions of 2 components"),
    ],
)
def test_an_environment_that_does_not_serve_is_named_with_its_key(packed, environment, message, tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("raise RuntimeError('no licence')")
    (tmp_path / "exiting_module.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OrreryError, match=message) as raised:
        packed(np.full((6, 2), 0.5), environment=environment)
    assert str(raised.value).startswith(f"pack.sources.lab/arm.environment={environment}: ")


def test_data_of_a_suite_takes_over_its_protocol(packed):
    (task,) = packed(np.zeros((6, 4)), environment="metaworld/reach-v3", observations=np.zeros((6, 39))).table
    assert (task.action_repeat, task.episode_length, task.score_kind) == (2, 100, "success")
    assert task.environment == {"kind": "metaworld", "task": "reach-v3"}


def check(config, *datasets):
    stage = Pack(config)
    stage.check()
    stage.check_inputs({"datasets": datasets})
    return stage.promise({"datasets": datasets})


def test_a_task_without_data_is_refused_before_anything_runs(tmp_path):
    here = Collect(CollectConfig(tasks=["dmc/cup-catch"])).promise({})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "datasets.json").write_text(json.dumps({"tasks": {"dmc/reacher-easy": {}}}))
    other = read_dataset_facts(tmp_path / "other")
    unknown = None

    with pytest.raises(StageError, match=r"pack\.tasks is empty"):
        check(PackConfig())
    with pytest.raises(StageError, match=r"no data for 'dmc/walker-run'.*Collected: nothing"):
        check(PackConfig(tasks=["dmc/walker-run"]))
    with pytest.raises(StageError, match=r"'dmc/walker-run'.*Collected: dmc/ball_in_cup-catch, dmc/reacher-easy"):
        check(PackConfig(tasks=["dmc/walker-run"]), here, other)
    check(PackConfig(tasks=["dmc/ball_in_cup-catch", "dmc/reacher-easy"]), here, other)
    assert check(PackConfig(), here) == DataFacts(("dmc/ball_in_cup-catch",))
    assert check(PackConfig(), here, unknown) is None
    check(PackConfig(tasks=["dmc/walker-run"]), here, unknown)


@pytest.mark.parametrize("expert", [1.0, 0.5])
def test_an_expert_that_is_not_above_random_is_refused(expert):
    with pytest.raises(ConfigError, match=r"pack\.sources\.a\.score_expert must be above score_random.*found .* and 1"):
        PackConfig(sources={"a": SourceConfig(path="a.hdf5", score_random=1.0, score_expert=expert)})
