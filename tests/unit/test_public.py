"""`import orrery`: what users import, what it costs, and policies in an environment's own units."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import orrery
import pytest
import torch
from gymnasium import spaces
from orrery.datasets.schema import TaskSpec
from orrery.datasets.tasks import make_environment, task_spec
from orrery.pipeline.errors import StageError, TaskError

from . import deployed

README = Path(__file__).parents[2] / "README.md"


def test_importing_orrery_imports_nothing_else():
    code = "import sys; before = set(sys.modules); import orrery; print(*sorted(set(sys.modules) - before))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name.partition(".")[0] for name in found} <= {"orrery", *sys.stdlib_module_names}
    assert [name for name in found if name.startswith("orrery")] == ["orrery"]


def test_every_public_name_is_there():
    assert set(orrery.__all__) < set(dir(orrery))
    for name in orrery.__all__:
        assert getattr(orrery, name).__doc__
    assert re.fullmatch(r"\d+\.\d+\.\d+", orrery.__version__)
    with pytest.raises(AttributeError, match="no attribute 'Modle'"):
        orrery.Modle  # noqa: B018


@pytest.mark.parametrize(
    "policy",
    [deployed.latent(deployed.arm_task()), deployed.state(deployed.arm_task()), deployed.mrq(deployed.arm_task())],
    ids=["latent", "state", "mrq"],
)
def test_predict_takes_and_gives_what_the_environment_does(policy):
    environment = orrery.make_env(policy.task)
    observation, _ = environment.reset(seed=1)
    action = policy.predict(observation)
    assert environment.action_space.contains(action)
    scaled = make_environment(policy.task)
    flat, _ = scaled.reset(seed=1)
    np.testing.assert_array_equal(action, scaled.to_native_action(policy.act(torch.from_numpy(flat)[None])[0].numpy()))
    batch = policy.predict(np.stack([observation, -observation]))
    assert batch.shape == (2, 2, 1)
    np.testing.assert_allclose(batch[0], action, rtol=1e-5, atol=1e-6)  # of a range of 10, in float32
    np.testing.assert_allclose(policy.predict(torch.from_numpy(observation).requires_grad_()), action)
    np.testing.assert_allclose(policy.predict(observation.tolist()), action)
    half = torch.from_numpy(observation).bfloat16()
    np.testing.assert_allclose(policy.predict(half), policy.predict(half.float()))
    # The same episode in both units, a step each.
    assert environment.step(action)[1] == scaled.step(policy.act(torch.from_numpy(flat)[None])[0].numpy())[1]


def test_predict_of_choices_and_numbered_states():
    policy = deployed.kernel(deployed.grid_task(), "delta")
    environment = orrery.make_env(policy.task)
    state, _ = environment.reset(seed=3)
    assert environment.action_space.contains(policy.predict(state))
    assert policy.predict(np.array([10, 11, 14])).shape == (3,)
    with pytest.raises(TaskError, match="test/grid"):
        policy.predict(3)


def test_predict_of_observations_in_parts():
    task = TaskSpec(
        "test/rooms", 5, 2, 8, action_kind="discrete", environment={"kind": "gymnasium", "id": "OrreryTest/Rooms-v0"}
    )
    policy = deployed.latent(task)
    place, room = np.array([0.2, 0.7], np.float32), 1
    action = policy.predict({"place": place, "room": room})
    assert action in (0, 1)
    assert policy.predict(np.array([0.2, 0.7, 0, 1, 0], np.float32)) == action  # flat, as stores have it
    many = policy.predict({"place": np.stack([place, place]), "room": np.array([room, room])})
    assert many.tolist() == [action, action]
    with pytest.raises(TaskError, match=r"found \{place: ndarray \(2,\) of float32\}"):
        policy.predict({"place": place})


@pytest.mark.parametrize(
    ("observation", "found"),
    [
        (np.zeros(4), r"ndarray \(4,\) of float64"),
        (np.zeros((2, 2, 3)), r"ndarray \(2, 2, 3\) of float64"),
        (torch.zeros(2, 5), r"ndarray \(2, 5\) of float32"),
        (["a", "b", "c"], r"\['a', 'b', 'c'\]"),
        (np.array([0, np.nan, 1]), "NaN or infinity"),
        (np.zeros(3, complex), r"ndarray \(3,\) of complex128"),
        (np.array([0.0, None, 1.0]), r"ndarray \(3,\) of object"),
        (np.zeros((0, 3)), r"ndarray \(0, 3\) of float64"),
    ],
)
def test_predict_says_what_it_expected(observation, found):
    with pytest.raises(TaskError, match=f"task 'test/arm'.*{found}"):
        deployed.latent(deployed.arm_task()).predict(observation)


def test_predict_without_an_environment_takes_flat_observations():
    policy = deployed.latent(deployed.arm_choices())
    assert policy.predict(np.zeros(3)) in range(4)


def test_make_env_of_names():
    environment = orrery.make_env("gymnasium/CartPole-v1")
    observation, _ = environment.reset(seed=0)
    assert observation.shape == (4,)
    assert isinstance(environment.action_space, spaces.Discrete)
    with pytest.raises(TaskError, match=r"unknown task 'dmc/walker-rum': the nearest are dmc/walker-run"):
        orrery.make_env("dmc/walker-rum")
    with pytest.raises(TaskError, match=r"environment 'no_envs:Arm-v0' cannot be imported.*PYTHONPATH"):
        orrery.make_env("gymnasium/no_envs:Arm-v0")
    with pytest.raises(TaskError, match=r"no environment 'json:Leg-v0'.*Importing json did not register it"):
        orrery.make_env("gymnasium/json:Leg-v0")


def test_encode_takes_a_task_by_its_name():
    model = deployed.world_model(deployed.arm_task())
    observation = torch.randn(2, 3)
    padded = torch.nn.functional.pad(observation, (0, 3))
    torch.testing.assert_close(model.encode(observation, "test/arm"), model.encode(padded, torch.tensor([1, 1])))
    torch.testing.assert_close(
        model.encode(observation.double().numpy(), "test/arm"), model.encode(observation, "test/arm")
    )
    with pytest.raises(TaskError, match="task 'test/arm' has observations of 3 numbers, found 4"):
        model.encode(torch.randn(2, 4), "test/arm")


def test_the_loop_in_the_readme_runs(tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"```python\n(import orrery.*?)```", README.read_text(), re.DOTALL)
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
    policy = deployed.latent(deployed.arm_task())
    monkeypatch.setattr(orrery, "load_policy", lambda reference, **which: policy, raising=False)
    monkeypatch.setattr(orrery, "make_env", lambda name: orrery.datasets.tasks.make_env(policy.task), raising=False)
    exec(block, {})
    assert float(capsys.readouterr().out)


def test_a_run_is_opened_and_started_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = tmp_path / "tiny.yaml"
    experiment.write_text(
        "stages: [collect, pack]\ntasks: [gymnasium/CartPole-v1]\ncollect: {episodes: 3}\nworkers: 1\nthreads: 1\n"
    )
    run = orrery.run(experiment, ["seed=1"])
    assert run.folder == Path("runs/tiny")
    assert run.config["collect"]["seed"] == 1
    assert run.store().table.names == ("gymnasium/CartPole-v1",)
    opened = orrery.load_run("runs/tiny")
    assert opened.config == run.config
    with pytest.raises(StageError, match="scores"):
        opened.scores()
    with pytest.raises(StageError, match="not a run folder"):
        orrery.load_run(tmp_path)


def test_a_policy_of_a_run(tmp_path):
    deployed.save_run(tmp_path)
    policy = orrery.load_policy(tmp_path / "extract", task="test/arm", algorithm="pwm")
    assert policy.predict(np.zeros(3)).shape == (2, 1)


def test_tasks_are_registered_with_gymnasium():
    environment = gymnasium.make("orrery.envs:orrery/dmc-cartpole-balance-v0")
    observation, _ = environment.reset(seed=0)
    assert environment.observation_space.contains(observation)
    environment.step(environment.action_space.sample())
    ids = [name for name in gymnasium.registry if name.startswith("orrery/")]
    assert {"orrery/metaworld-reach-v3", "orrery/myriad-cancer-v0", "orrery/dmc-ball_in_cup-catch-v0"} < set(ids)
    assert len(ids) > 100


def test_a_policy_is_evaluated_in_vectorised_environments():
    """Each lane plays the episode that the environment alone plays with its seed."""
    policy = deployed.latent(task_spec("dmc/cartpole-balance"))
    returns = np.zeros(3)
    vector = gymnasium.make_vec("orrery.envs:orrery/dmc-cartpole-balance-v0", num_envs=3, vectorization_mode="sync")
    observation, _ = vector.reset(seed=[4, 5, 6])
    for _ in range(20):
        observation, reward, _, _, _ = vector.step(policy.predict(observation))
        returns += reward
    vector.close()
    alone = gymnasium.make("orrery/dmc-cartpole-balance-v0")
    observation, _ = alone.reset(seed=5)
    expected = 0.0
    for _ in range(20):
        observation, reward, _, _, _ = alone.step(policy.predict(observation))
        expected += float(reward)
    assert returns[1] == pytest.approx(expected, rel=1e-4)
    assert len(set(returns)) == 3
