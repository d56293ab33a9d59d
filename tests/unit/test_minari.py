"""MinariReader: spaces to flat numbers, the task made from a dataset, and what it says of bad ones."""

import json
import shutil
import warnings
from collections import OrderedDict
from pathlib import Path

import gymnasium as gym
import gymnasium.spaces as gs
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer
from orrery.datasets.formats.minari import BEHAVIOUR_KEY, TASK_KEY, MinariReader
from orrery.datasets.formats.sources import dataset_task, open_reader
from orrery.datasets.schema import TaskSpec
from orrery.datasets.tasks import make_environment
from orrery.pipeline.errors import DatasetError, TaskError

VECTOR = gs.Box(-np.inf, np.inf, (3,), np.float64)
UNIT_ACTION = gs.Box(-1, 1, (2,), np.float32)


def episode(length: int = 5, *, seed: int = 0, ends: str = "truncated", **changes) -> EpisodeBuffer:
    """Random numbers for VECTOR and UNIT_ACTION; `ends` is `terminated` or `truncated`."""
    rng = np.random.default_rng(seed)
    last = np.arange(length) == length - 1
    values = {
        "observations": rng.normal(size=(length + 1, 3)),
        "actions": rng.uniform(-1, 1, size=(length, 2)).astype(np.float32),
        "rewards": rng.normal(size=length),
        "terminations": last & (ends == "terminated"),
        "truncations": last & (ends == "truncated"),
        "infos": {},
    }
    return EpisodeBuffer(**(values | changes))


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a dataset to Minari's folder, here a temporary one, and returns the dataset's own."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))

    def write(dataset_id, episodes, observation_space=VECTOR, action_space=UNIT_ACTION, **options) -> Path:
        with warnings.catch_warnings():
            # Minari warns about each piece of authorship that is not given.
            warnings.simplefilter("ignore", UserWarning)
            minari.create_dataset_from_buffers(
                dataset_id, episodes, observation_space=observation_space, action_space=action_space, **options
            )
        return tmp_path / dataset_id

    return write


def test_episodes_keep_their_alignment_and_become_float32(write):
    given = [episode(5, seed=1), episode(7, seed=2, ends="terminated")]
    write("point/random-v0", given)
    reader = MinariReader("point/random-v0")
    episodes = list(reader)
    assert len(reader) == 2
    assert [len(e) for e in episodes] == [5, 7]
    assert [e.terminated for e in episodes] == [False, True]
    for read, buffer in zip(episodes, given, strict=True):
        assert {read.observations.dtype, read.actions.dtype, read.rewards.dtype} == {np.dtype(np.float32)}
        np.testing.assert_array_equal(read.observations, buffer.observations.astype(np.float32))
        np.testing.assert_array_equal(read.actions, buffer.actions)
        np.testing.assert_array_equal(read.rewards, buffer.rewards.astype(np.float32))
    assert episodes[1].label == "point/random-v0:episode_1"
    assert reader.task == TaskSpec(
        "minari/point/random-v0", observation_dim=3, action_dim=2, episode_length=7, terminates=True
    )
    assert reader.behaviour == "unknown"
    assert json.loads(json.dumps(reader.source))["columns"] == ["observation[0]", "observation[1]", "observation[2]"]
    assert [e.label for e in reader] == [e.label for e in episodes], "may be read again"


def test_numbers_beyond_float32_are_left_to_validation(write):
    write("large/random-v0", [episode(rewards=np.full(5, 1e300), actions=np.full((5, 2), 1e300))],
          action_space=gs.Box(-np.inf, np.inf, (2,), np.float64))  # fmt: skip
    reader = MinariReader("large/random-v0", overrides={"action_low": -1, "action_high": 1})
    read = next(iter(reader))
    assert np.isinf(read.rewards).all()
    assert np.isinf(read.actions).all()


def test_dict_and_tuple_observations_flatten_in_a_recorded_order(write):
    space = gs.Dict({"goal": gs.Box(-9, 9, (2,)), "arm": gs.Tuple([gs.Box(-9, 9, (1,)), gs.Discrete(3)])})
    goal, arm = np.arange(12, dtype=np.float32).reshape(6, 2), np.full((6, 1), 7, np.float32)
    observations = {"goal": goal, "arm": (arm, np.array([0, 1, 2, 0, 1, 2]))}
    write("nested/random-v0", [episode(observations=observations)], observation_space=space)
    reader = MinariReader("nested/random-v0")
    expected = np.concatenate([arm, np.eye(3)[[0, 1, 2, 0, 1, 2]], goal], axis=1)
    np.testing.assert_array_equal(next(iter(reader)).observations, expected)
    assert reader.source["columns"] == [
        "observation.arm.0[0]",
        *(f"observation.arm.1[{i}]" for i in range(3)),
        *(f"observation.goal[{i}]" for i in range(2)),
    ]
    assert reader.task.observation_dim == 6


def test_discrete_actions_become_one_hot(write):
    actions = np.array([3, 1, 2, 1, 3])
    write("chain/random-v0", [episode(actions=actions)], action_space=gs.Discrete(3, start=1))
    reader = MinariReader("chain/random-v0")
    np.testing.assert_array_equal(next(iter(reader)).actions, np.eye(3)[actions - 1])
    assert (reader.task.action_kind, reader.task.action_dim) == ("discrete", 3)
    assert reader.source["actions"] == "one-hot from 1"


def test_bounded_actions_are_scaled_from_their_space(write):
    space = gs.Box(np.array([-2, 0], np.float32), np.array([2, 10], np.float32))
    actions = np.array([[-2, 0], [2, 10], [0, 5], [1, 2.5], [0, 0]], np.float32)
    write("scaled/random-v0", [episode(actions=actions)], action_space=space)
    reader = MinariReader("scaled/random-v0")
    expected = [[-1, -1], [1, 1], [0, 0], [0.5, -0.5], [0, -1]]
    np.testing.assert_allclose(next(iter(reader)).actions, expected, atol=1e-6)
    assert reader.source["actions"] == {"low": [-2.0, 0.0], "high": [2.0, 10.0], "origin": "action space"}


@pytest.mark.parametrize(("largest", "high"), [(0.5, 1.0), (4.0, 4.0)])
def test_unbounded_actions_are_scaled_only_where_the_data_needs_it(write, largest, high):
    actions = np.array([[0.25, -largest]] * 5, np.float32)
    write("free/random-v0", [episode(actions=actions)], action_space=gs.Box(-np.inf, np.inf, (2,)), env="Pendulum-v1")
    reader = MinariReader("free/random-v0")
    np.testing.assert_allclose(next(iter(reader)).actions, [[0.25, -largest / high]] * 5)
    bounds = {key: reader.task.environment.get(key) for key in ("action_low", "action_high")}
    assert bounds == {"action_low": [-1, -high], "action_high": [1, high]}, (
        "evaluation must undo exactly this scaling, whatever the environment's own bounds are"
    )


def test_environment_length_and_references_come_from_the_metadata(write):
    env = gym.make("Pendulum-v1")
    rng = np.random.default_rng(0)
    observations, rewards = [env.reset(seed=0)[0]], []
    actions = rng.uniform(-2, 2, (20, 1)).astype(np.float32)
    for action in actions:
        observation, reward, *_ = env.step(action)
        observations.append(observation)
        rewards.append(reward)
    env.close()
    buffer = episode(20, observations=np.array(observations), actions=actions, rewards=np.array(rewards))
    folder = write("pendulum/random-v0", [buffer], None, None, env="Pendulum-v1")
    metadata = json.loads((folder / "data" / "metadata.json").read_text())
    (folder / "data" / "metadata.json").write_text(
        json.dumps(metadata | {"ref_min_score": -1200, "ref_max_score": -150})
    )

    task = MinariReader(folder).task
    assert (task.name, task.observation_dim, task.action_dim) == ("minari/pendulum/random-v0", 3, 1)
    assert (task.episode_length, task.terminates, task.reports_success) == (200, False, False)
    assert (task.score_random, task.score_expert, task.score_kind) == (-1200, -150, "normalised")
    recovered = gym.make(gym.envs.registration.EnvSpec.from_json(task.environment["spec_json"]))
    assert recovered.spec.id == "Pendulum-v1"
    recovered.close()
    assert TaskSpec.from_dict(json.loads(json.dumps(task.to_dict()))) == task

    for limit, expected in ((33, 33), (None, 200)):
        recorded = json.loads(metadata["env_spec"]) | {"max_episode_steps": limit}
        (folder / "data" / "metadata.json").write_text(json.dumps(metadata | {"env_spec": json.dumps(recorded)}))
        assert MinariReader(folder).task.episode_length == expected, "evaluation builds the registered environment"


@pytest.mark.parametrize("extra", [0, 1])
def test_success_has_one_flag_per_action(write, extra):
    success = np.array([False, False, True, True, False])
    infos = {"success": np.concatenate([np.zeros(extra, bool), success])}
    write("goal/random-v0", [episode(infos=infos)])
    reader = MinariReader("goal/random-v0")
    assert reader.task.reports_success
    np.testing.assert_array_equal(next(iter(reader)).success, success)


def test_an_episode_that_goes_on_after_a_termination_is_cut_there(write):
    early = np.array([False, False, True, False, False])
    write("past/random-v0", [episode(terminations=early), episode(seed=1)])
    reader = MinariReader("past/random-v0")
    cut, whole = reader
    assert (len(cut), len(cut.observations), len(cut.rewards), cut.terminated) == (3, 4, 3, True)
    assert (len(whole), whole.terminated) == (5, False)


def test_a_stored_task_is_used_and_settings_go_over_it(write):
    folder = write("dmc/toy-v0", [episode()])
    task = TaskSpec("dmc/toy", 3, 2, episode_length=500, action_repeat=2, score_kind="return_per_1000")
    path = folder / "data" / "metadata.json"
    stored = {TASK_KEY: json.dumps(task.to_dict()), BEHAVIOUR_KEY: "exploration"}
    path.write_text(json.dumps(json.loads(path.read_text()) | stored))
    reader = MinariReader(folder)
    assert reader.task == task
    assert reader.behaviour == "exploration"
    changed = MinariReader(folder, name="dmc/other", behaviour="expert", overrides={"episode_length": 9}).task
    assert (changed.name, changed.episode_length, changed.action_repeat) == ("dmc/other", 9, 2)
    with pytest.raises(DatasetError, match=r"observation_dim 4 .* spaces give 3 and 2"):
        _ = MinariReader(folder, overrides={"observation_dim": 4}).task
    with pytest.raises(DatasetError, match=r"unknown task settings \['lenght'\]"):
        MinariReader(folder, overrides={"lenght": 4})


def test_given_action_bounds_replace_those_of_the_space(write):
    write("bounds/random-v0", [episode(actions=np.full((5, 2), 3, np.float32))])
    reader = MinariReader("bounds/random-v0", overrides={"action_low": -6, "action_high": [6, 3]})
    np.testing.assert_allclose(next(iter(reader)).actions, [[0.5, 1]] * 5)
    with pytest.raises(DatasetError, match="below its action_high"):
        _ = MinariReader("bounds/random-v0", overrides={"action_low": 1, "action_high": 1}).task
    with pytest.raises(DatasetError, match="must be set together"):
        MinariReader("bounds/random-v0", overrides={"action_low": 1})


def test_a_missing_id_names_the_nearest_and_how_to_fetch_it(write, tmp_path):
    write("point/random-v0", [episode()])
    with pytest.raises(DatasetError) as raised:
        open_reader("minari/point/randon-v0")
    message = str(raised.value)
    assert f"under {tmp_path}" in message
    assert "nearest there: point/random-v0" in message
    assert "minari download point/randon-v0" in message


def test_images_and_unknown_actions_are_refused(write):
    image = gs.Dict({"camera": gs.Box(0, 255, (4, 4, 3), np.uint8)})
    write("pixel/random-v0", [episode(observations={"camera": np.zeros((6, 4, 4, 3), np.uint8)})], image)
    with pytest.raises(DatasetError, match=r"observation\.camera has shape \(4, 4, 3\), which looks like images"):
        MinariReader("pixel/random-v0")
    write("multi/random-v0", [episode(actions=np.zeros((5, 2), int))], action_space=gs.MultiDiscrete([2, 2]))
    with pytest.raises(DatasetError, match="expected Box or Discrete"):
        MinariReader("multi/random-v0")


def test_damaged_datasets_name_the_folder_or_the_episode(write):
    folder = write("cut/random-v0", [episode(400), episode(400, seed=1)])
    data = folder / "data" / "main_data.hdf5"
    reader = MinariReader(folder)
    data.write_bytes(data.read_bytes()[:5000])
    with pytest.raises(DatasetError, match=r"main_data\.hdf5 cannot be read \(.*truncated file"):
        list(reader)
    (folder / "data" / "metadata.json").write_text("{}")
    with pytest.raises(DatasetError, match="cannot be opened as a Minari dataset"):
        MinariReader(folder)
    write("short/random-v0", [episode(terminations=np.zeros(4, bool))])
    with pytest.raises(DatasetError, match="short/random-v0:episode_0: 4 terminations for 5 actions"):
        list(MinariReader("short/random-v0"))


def test_open_reader_knows_each_way_to_name_a_dataset(write):
    folder = write("point/random-v0", [episode()])
    ways = [
        "point/random-v0",
        "minari/point/random-v0",
        folder,
        str(folder / "data"),
        folder / "data" / "main_data.hdf5",
    ]
    assert {open_reader(way).task.name for way in ways} == {"minari/point/random-v0"}
    assert {dataset_task(str(way)) for way in ways} == {"minari/point/random-v0"}


def test_open_reader_says_what_it_was_looking_for(write, tmp_path):
    folder = write("point/random-v0", [episode()])
    with pytest.raises(DatasetError, match="run the stage collect"):
        open_reader("dmc/walker-run")
    with pytest.raises(DatasetError, match="a column map does not apply"):
        open_reader(folder, columns={"reward": "r"})
    (tmp_path / "data.pkl").write_bytes(b"")
    with pytest.raises(DatasetError, match="not a supported dataset"):
        open_reader(tmp_path / "data.pkl")
    with pytest.raises(DatasetError, match="no HDF5 file at"):
        open_reader(tmp_path / "absent.h5")


class Named(gym.Env):
    """An environment that a user names in place of the dataset's: half its action bounds, goal first."""

    observation_space = gs.Dict(OrderedDict(goal=gs.Box(-9, 9, (1,)), arm=gs.Box(-9, 9, (2,))))
    action_space = gs.Box(-0.5, 0.5, (2,))

    def reset(self, *, seed=None, options=None):
        return {"goal": np.zeros(1), "arm": np.zeros(2)}, {}

    def step(self, action):
        return {"goal": np.zeros(1), "arm": np.zeros(2)}, 0.0, False, False, {}


gym.register("Named-v0", Named, max_episode_steps=70)
NAMED = {"environment": "Named-v0"}


def test_an_environment_that_is_named_decides_in_place_of_the_dataset(write):
    space = gs.Dict({"arm": gs.Box(-9, 9, (2,), np.float64), "goal": gs.Box(-9, 9, (1,), np.float64)})
    parts = {"arm": np.arange(12.0).reshape(6, 2), "goal": np.arange(6.0)[:, None] + 20}
    taken = np.full((5, 2), 0.25, np.float32)
    write("named/random-v0", [episode(observations=parts, actions=taken)], space, env="Pendulum-v1")
    assert MinariReader("named/random-v0").task.episode_length == 200
    reader = MinariReader("named/random-v0", overrides=NAMED)
    (read,) = reader
    np.testing.assert_array_equal(read.observations[:2], [[20, 0, 1], [21, 2, 3]])
    np.testing.assert_array_equal(read.actions, np.full((5, 2), 0.5))
    assert reader.source["columns"] == ["observation.goal[0]", "observation.arm[0]", "observation.arm[1]"]
    assert (reader.task.episode_length, reader.task.environment["id"]) == (70, "Named-v0")
    order, bounds = reader.warnings
    assert "are reordered to match the environment: 3 numbers (goal 1, arm 2)" in order
    assert "which determines the scaling" in bounds
    environment = make_environment(reader.task)
    np.testing.assert_allclose(environment.to_native_action(read.actions[0]), taken[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"observations": np.zeros((6, 4))}, "observations of 3 numbers .*, but the data has 4 numbers"),
        (
            {"observations": np.zeros((6, 3)), "actions": np.zeros(5, int)},
            "but the data has a discrete action out of 2",
        ),
        (
            {"observations": np.zeros((6, 3)), "actions": np.zeros((5, 3))},
            "actions of 3 components",
        ),
    ],
)
def test_an_environment_of_another_task_is_refused(write, fields, message):
    width = fields["observations"].shape[1]
    actions = fields.get("actions", np.zeros((5, 2)))
    space = gs.Discrete(2) if actions.ndim == 1 else gs.Box(-1, 1, actions.shape[1:], np.float64)
    write("wrong/random-v0", [episode(**fields | {"actions": actions})], gs.Box(-9, 9, (width,)), action_space=space)
    with pytest.raises(TaskError, match=message):
        MinariReader("wrong/random-v0", overrides=NAMED)


def test_settings_that_do_not_apply_are_refused(write):
    write("chain/random-v0", [episode(actions=np.zeros(5, int))], action_space=gs.Discrete(2))
    with pytest.raises(DatasetError, match=r"actions are Discrete\(2\), to which action_high and action_low cannot"):
        MinariReader("chain/random-v0", overrides={"action_low": 0, "action_high": 1})
    write("box/random-v0", [episode()])
    overrides = {"action_kind": "discrete", "action_dim": 2, "choices_start": 1}
    with pytest.raises(DatasetError, match=r"actions are Box.*, to which choices and choices_start cannot apply"):
        MinariReader("box/random-v0", overrides=overrides)


def test_a_dataset_is_called_by_the_id_that_was_given(write, tmp_path):
    folder = write("tree/base-v0", [episode()])
    shutil.copytree(folder, tmp_path / "other" / "renamed-v3")
    assert MinariReader("other/renamed-v3").task.name == "minari/other/renamed-v3"
    assert MinariReader(tmp_path / "other" / "renamed-v3").name == "minari/other/renamed-v3"
    for elsewhere, name in (("base-v0", "minari/tree/base-v0"), ("mine-v0", "minari/mine-v0")):
        moved = shutil.copytree(folder, tmp_path.with_name(f"{tmp_path.name}-elsewhere") / elsewhere)
        assert MinariReader(moved).name == name


def test_episodes_that_the_metadata_does_not_count_are_said(write):
    folder = write("tree/base-v0", [episode(seed=seed) for seed in range(3)])
    path = folder / "data" / "metadata.json"
    counts = json.loads(path.read_text())
    path.write_text(json.dumps(counts | {"total_episodes": 2}))
    reader = MinariReader(folder)
    assert (len(reader), "holds 1 more episode than the 2" in reader.warnings[0]) == (2, True)
    path.write_text(json.dumps(counts | {"total_episodes": 5}))
    with pytest.raises(DatasetError, match="episode_3 is missing, the first of 2 out of the 5 episodes"):
        MinariReader(folder)


def test_a_grey_frame_is_an_image_and_flags_are_numbers(write):
    write("grey/random-v0", [episode(observations=np.zeros((6, 16, 16), np.uint8))], gs.Box(0, 255, (16, 16), np.uint8))
    with pytest.raises(DatasetError, match=r"observation has shape \(16, 16\), which looks like images"):
        MinariReader("grey/random-v0")
    write("table/random-v0", [episode(observations=np.zeros((6, 5, 5)))], gs.Box(-1, 1, (5, 5), np.float64))
    assert MinariReader("table/random-v0").task.observation_dim == 25
    flags = gs.Dict({"lamps": gs.MultiBinary(3), "levels": gs.MultiDiscrete([2, 3])})
    seen = {"lamps": np.eye(3, dtype=np.int8)[[0, 1, 2, 0, 1, 2]], "levels": np.array([[1, 2]] * 6)}
    write("flags/random-v0", [episode(observations=seen)], flags)
    np.testing.assert_array_equal(next(iter(MinariReader("flags/random-v0"))).observations[1], [0, 1, 0, 0, 1, 0, 0, 1])
