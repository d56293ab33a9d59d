"""Every environment keeps the contract of TaskEnv: flat float32, [-1, 1], repeats and limits inside, exact seeds."""

import json
import os
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from orrery.datasets.schema import TaskSpec
from orrery.datasets.tasks import make_environment, resolve_name, task_names, task_spec
from orrery.pipeline.errors import TaskError


class Counter(gymnasium.Env):
    """Observes [native action, number of steps]; reward 1 per step; terminal after `end` steps."""

    def __init__(self, end=100, low=2.0, high=6.0):
        self.action_space = spaces.Box(low, high, (1,))
        self.observation_space = spaces.Dict({"action": spaces.Box(low, high, (1,)), "steps": spaces.Box(0, 100, (1,))})
        self.end = end

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observation([0.0]), {}

    def step(self, action):
        self.steps += 1
        return self._observation(action), 1.0, self.steps == self.end, False, {}

    def _observation(self, action):
        return {"action": np.asarray(action), "steps": np.array([self.steps])}


class Chooser(Counter):
    """As Counter, with choices 5, 6 and 7."""

    def __init__(self):
        super().__init__()
        self.action_space = spaces.Discrete(3, start=5)

    def step(self, action):
        assert self.action_space.contains(action)
        return super().step([action])


gymnasium.register("OrreryTest/Counter-v0", Counter, max_episode_steps=50)
gymnasium.register("OrreryTest/Chooser-v0", Chooser)


def counter(**fields):
    values = {"observation_dim": 2, "action_dim": 1, "episode_length": 4, "action_repeat": 3, "terminates": True}
    environment = {"kind": "gymnasium", "id": "OrreryTest/Counter-v0", "kwargs": fields.pop("kwargs", {})}
    return TaskSpec("test/counter", **{**values, "environment": environment, **fields})


def test_a_decision_repeats_the_scaled_action_and_sums_the_reward():
    environment = make_environment(counter())
    observation, _ = environment.reset(seed=0)
    assert observation.dtype == np.float32
    observation, reward, terminated, truncated, _ = environment.step(np.float32([0.5]))
    # The middle of [2, 6] plus half of its half width; three simulator steps of one step.
    np.testing.assert_array_equal(observation, [5, 3])
    assert (reward, terminated, truncated) == (3.0, False, False)
    observation, *_ = environment.step(np.float32([-7]))
    np.testing.assert_array_equal(observation, [2, 6])


def test_the_time_limit_truncates_and_a_terminal_state_ends_the_repeats():
    environment = make_environment(counter())
    environment.reset(seed=0)
    ends = [environment.step(np.zeros(1))[2:4] for _ in range(4)]
    assert ends == [(False, False)] * 3 + [(False, True)]
    with pytest.raises(gymnasium.error.ResetNeeded, match="the episode is over"):
        environment.step(np.zeros(1))

    environment = make_environment(counter(kwargs={"end": 5}))
    environment.reset(seed=0)
    environment.step(np.zeros(1))
    assert environment.step(np.zeros(1))[1:4] == (2.0, True, False)


def test_bounds_of_a_dataset_replace_those_of_the_space_and_unbounded_actions_pass_unscaled():
    stated = counter().environment | {"action_low": [3.0], "action_high": [4.0]}
    environment = make_environment(counter(environment=stated))
    environment.reset(seed=0)
    assert environment.step(np.ones(1))[0][0] == 4
    environment = make_environment(counter(kwargs={"low": -np.inf, "high": np.inf}))
    environment.reset(seed=0)
    assert environment.step(np.float32([0.25]))[0][0] == 0.25


def test_a_discrete_action_is_taken_by_argmax():
    spec = task_spec("gymnasium/OrreryTest/Chooser-v0")
    assert (spec.action_kind, spec.action_dim, spec.episode_length) == ("discrete", 3, 1000)
    environment = make_environment(spec)
    environment.reset(seed=0)
    assert environment.step(np.float32([-1, 0.2, 0.1]))[0][0] == 6


def test_sizes_that_do_not_match_the_data_are_refused():
    with pytest.raises(TaskError, match="2 observation columns, expected 3"):
        make_environment(counter(observation_dim=3))
    with pytest.raises(TaskError, match="1 action components or discrete actions, expected 4"):
        make_environment(counter(action_dim=4))
    with pytest.raises(TaskError, match="expected discrete actions"):
        make_environment(counter(action_kind="discrete"))
    with pytest.raises(TaskError, match="has no environment"):
        make_environment(counter(environment={}))


def test_an_environment_is_rebuilt_from_a_minari_spec_without_running_what_the_file_names(monkeypatch):
    recorded = json.loads(gymnasium.spec("Pendulum-v1").to_json())
    recorded["max_episode_steps"] = 7
    spec = TaskSpec("minari/p", 3, 1, 7, environment={"kind": "gymnasium", "spec_json": json.dumps(recorded)})
    assert make_environment(spec).reset(seed=0)[0].shape == (3,)

    recorded |= {"id": "Innocent-v0", "entry_point": "os:system", "kwargs": {"command": "touch pwned"}}
    called = []
    monkeypatch.setattr("os.system", called.append)
    hostile = TaskSpec("minari/p", 3, 1, 7, environment={"kind": "gymnasium", "spec_json": json.dumps(recorded)})
    with pytest.raises(TaskError, match="Innocent"):
        make_environment(hostile)
    assert called == []

    recorded = json.loads(gymnasium.spec("Pendulum-v1").to_json())
    recorded["additional_wrappers"] = [{"name": "RecordVideo", "entry_point": "gymnasium.wrappers:RecordVideo"}]
    wrapped = TaskSpec("minari/p", 3, 1, 7, environment={"kind": "gymnasium", "spec_json": json.dumps(recorded)})
    with pytest.raises(TaskError, match="RecordVideo"):
        make_environment(wrapped)


def test_a_missing_box2d_is_named_by_the_extra_that_installs_it(monkeypatch):
    for name in [one for one in sys.modules if one.startswith(("Box2D", "gymnasium.envs.box2d"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "Box2D", None)  # as where it is not installed
    with pytest.raises(TaskError, match=r"'LunarLander-v3'.*needs Box2D.*: pip install 'orrery\[box2d\]'$"):
        task_spec("gymnasium/LunarLander-v3")


def test_an_unknown_task_is_refused_with_the_nearest_names():
    with pytest.raises(TaskError, match=r"unknown task 'dmc/cartpol-balance': the nearest are dmc/cartpole-balance"):
        resolve_name("dmc/cartpol-balance")
    with pytest.raises(TaskError, match=r"nearest are metaworld/reach-v3"):
        resolve_name("metawolrd/reach-v3")
    with pytest.raises(TaskError, match=r"unknown suite 'atari'.*dmc, metaworld, gymnasium"):
        task_names("atari")
    assert resolve_name("dmc/cup-catch") == "dmc/ball_in_cup-catch"


def episode(environment, actions, seed):
    observations, rewards = [environment.reset(seed=seed)[0]], []
    for action in actions:
        observation, reward, terminated, truncated, info = environment.step(action)
        assert observation.dtype == np.float32
        assert np.isfinite(observation).all()
        observations.append(observation)
        rewards.append(reward)
        if environment.task.reports_success:
            assert isinstance(info["success"], bool)
        if terminated or truncated:
            break
    return np.array(observations), np.array(rewards)


def check_task(name):
    """A task constructs, matches its spec, and its seed decides the episode also in a used environment."""
    spec = task_spec(name)
    assert TaskSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    actions = np.random.default_rng(0).uniform(-1, 1, (8, spec.action_dim)).astype(np.float32)
    used, fresh = make_environment(spec), make_environment(spec)
    episode(used, actions, seed=3)
    first, again = episode(used, actions, seed=11), episode(fresh, actions, seed=11)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert first[0].shape[1] == spec.observation_dim
    assert not np.array_equal(first[0][0], episode(used, actions, seed=12)[0][0])


@pytest.mark.parametrize(
    "name", ["dmc/cartpole-balance", "dmc/quadruped-walk", "metaworld/reach-v3", "gymnasium/Pendulum-v1"]
)
def test_a_seed_decides_the_episode(name):
    check_task(name)


def test_the_protocols_are_those_of_td_mpc2():
    cartpole, reach = task_spec("dmc/cartpole-balance"), task_spec("metaworld/reach-v3")
    assert (cartpole.episode_length, cartpole.action_repeat, cartpole.discount) == (500, 2, 0.99)
    assert (reach.episode_length, reach.action_repeat, reach.discount) == (100, 2, 0.95)
    assert (cartpole.score(500, None), reach.score(500, 0.3)) == (0.5, 0.3)
    environment = make_environment(cartpole)
    environment.reset(seed=0)
    outcomes = [environment.step(np.zeros(1))[2:4] for _ in range(500)]
    assert outcomes == [(False, False)] * 499 + [(False, True)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*task_names("dmc"), *task_names("metaworld")])
def test_every_task_keeps_the_contract(name):
    if name == "dmc/quadruped-escape" and not os.environ.get("MUJOCO_GL"):
        pytest.skip("needs MUJOCO_GL=egl")
    check_task(name)


def test_the_one_task_that_needs_a_renderer_says_so(monkeypatch):
    for variable in ("MUJOCO_GL", "DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(TaskError, match="MUJOCO_GL=egl"):
        make_environment(task_spec("dmc/quadruped-escape"))


@pytest.mark.slow
def test_the_names_written_out_are_those_of_the_suites():
    from dm_control import suite
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from orrery.datasets.tasks.tdmpc2_environments import BUILD

    assert task_names("dmc") == sorted(f"dmc/{domain}-{task}" for domain, task in [*suite.ALL_TASKS, *BUILD])
    assert task_names("metaworld") == sorted(f"metaworld/{task}" for task in ALL_V3_ENVIRONMENTS)


@pytest.mark.parametrize(
    ("name", "expert"), [("Hopper-v5", 3234.3), ("Walker2d-v5", 4592.3), ("HalfCheetah-v5", 12135.0)]
)
def test_mujoco_tasks_have_the_references_of_d4rl(name, expert):
    spec = task_spec(f"gymnasium/{name}")
    assert (spec.score_kind, spec.score(expert, None), spec.score_problem) == ("normalised", 1.0, "")
    assert abs(spec.score(0.0, None)) < 0.03
    assert make_environment(spec).reset(seed=0)[0].shape == (spec.observation_dim,)
