from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from orrery.datasets.rollout import play_episodes
from orrery.datasets.schema import TaskSpec
from orrery.datasets.tasks import make_environment, resolve_name, task_names, task_spec
from orrery.datasets.tasks.myriad import simulator
from orrery.datasets.tasks.myriad_dynamics import PROBLEMS, MyriadTask
from orrery.datasets.tasks.myriad_mechanics import DrivenPendulum, OneBounce, ReleasedPendulum, integrate
from orrery.pipeline.errors import TaskError


@pytest.mark.parametrize("name", task_names("myriad"))
def test_every_task_keeps_the_contract_and_its_environment_is_its_simulator(name):
    spec = task_spec(name)
    assert TaskSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    task = simulator(spec)
    assert (task.observation_dim, task.action_dim, task.horizon) == (
        spec.observation_dim, spec.action_dim, spec.episode_length,
    )  # fmt: skip
    random = np.random.default_rng(0)
    taken = []

    def act(observation, _):
        taken.append(random.uniform(-1, 1, (len(observation), spec.action_dim)).astype(np.float32))
        return taken[-1]

    ((_, result),) = play_episodes(spec, act, [7], record=True)
    assert result.error is None
    assert result.length == spec.episode_length
    state = task.initial_state(1, torch.Generator().manual_seed(7))
    for t, action in enumerate(taken):
        action = torch.from_numpy(action).double()
        observation = task.observe(state)
        np.testing.assert_allclose(result.episode.observations[t], observation[0].float())
        state = task.next_state(state, action)
        reward = task.reward(observation, action, task.observe(state))
        np.testing.assert_allclose(result.episode.rewards[t], reward.float()[0])
    assert state[0, -1] == spec.episode_length


def test_the_name_sets_the_horizon():
    assert resolve_name("myriad/cancer@50") == "myriad/cancer@50"
    assert resolve_name("myriad/cancer@0100") == "myriad/cancer"
    assert resolve_name("myriad/cancer@050+0.10") == "myriad/cancer@50+0.1"
    assert dict(task_spec("myriad/cancer+0.1").environment)["noise"] == 0.1
    spec = task_spec("myriad/cancer@50")
    assert spec.episode_length == 50
    task = simulator(spec)
    assert isinstance(task, MyriadTask)
    assert task.dt == 20 / 50
    for wrong in ("myriad/cancr", "myriad/cancer@0", "myriad/cancer@ten", "myriad/cancer@", "myriad/cancer+"):
        with pytest.raises(TaskError, match=r"nearest are .*myriad/cancer"):
            resolve_name(wrong)


def test_arguments_of_the_environment_reach_the_simulator_and_wrong_ones_are_named():
    spec = task_spec("myriad/predator_prey")
    longer = TaskSpec.from_dict(spec.to_dict() | {"environment": dict(spec.environment) | {"duration": 100.0}})
    assert simulator(longer).dt == 1.0
    wrong = TaskSpec.from_dict(spec.to_dict() | {"environment": dict(spec.environment) | {"tempo": 1}})
    with pytest.raises(TaskError, match="tempo"):
        simulator(wrong)
    with pytest.raises(TaskError, match="no differentiable simulator"):
        simulator(TaskSpec("gymnasium/Pendulum-v1", 3, 1, 200, environment={"kind": "gymnasium", "id": "Pendulum-v1"}))


def test_noise_is_decided_by_the_seed_and_leaves_the_time_alone():
    spec = task_spec("myriad/one_bounce")
    spec = TaskSpec.from_dict(spec.to_dict() | {"environment": dict(spec.environment) | {"noise": 0.1}})
    environment = make_environment(spec)

    def episode(seed):
        environment.reset(seed=seed)
        return np.stack([environment.step(np.zeros(1))[0] for _ in range(5)])

    np.testing.assert_array_equal(episode(3), episode(3))
    assert not np.array_equal(episode(3), episode(4))
    np.testing.assert_array_equal(episode(3)[:, 2:], [[-1, np.float32(0.3), t] for t in range(1, 6)])


def test_the_final_cost_is_charged_on_the_final_state():
    problem = PROBLEMS["bacteria"]
    now, before = MyriadTask(problem, 4), MyriadTask(problem, 4, terminal_on_final_state=False)
    last = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    # u = 1 after scaling, cost u^2 = 1 for dt = 1/4; Phi(x) = -x is a bonus.
    action = torch.zeros(1, 1, dtype=torch.float64)
    following = now.next_state(last, action)
    assert following[0, 0] == pytest.approx(1 + 0.25 * (2 - 12 / math.e))
    assert now.reward(last, action, following).item() == pytest.approx(-0.25 + following[0, 0].item())
    assert before.reward(last, action, following).item() == pytest.approx(-0.25 + 1.0)
    earlier = last - torch.tensor([0.0, 1.0])
    assert now.reward(earlier, action, following).item() == pytest.approx(-0.25)


def test_the_ball_bounces_where_it_should():
    task = OneBounce(20)
    state = torch.tensor([[-0.9, -20.0, -1.0, 0.3, 5.0]], dtype=torch.float64)
    # -0.9 - 0.2 would lie 0.1 behind the wall: the ball ends 0.1 before it and turns.
    assert task.next_state(state, torch.zeros(1, 1))[0].tolist() == pytest.approx([-0.9, 20, -1, 0.3, 6])
    free = torch.tensor([[0.0, -20.0, -1.0, 0.3, 5.0]], dtype=torch.float64)
    assert task.next_state(free, torch.zeros(1, 1))[0].tolist() == pytest.approx([-0.2, -18, -1, 0.3, 6])


def test_a_free_pendulum_keeps_its_energy():
    state = torch.tensor([[2.0, 0.5, 1.0, -0.3]], dtype=torch.float64)

    def energy(s):
        th1, w1, th2, w2 = s[0].tolist()
        kinetic = w1**2 + w2**2 / 2 + w1 * w2 * math.cos(th1 - th2)
        return kinetic - 9.8 * (2 * math.cos(th1) + math.cos(th2))

    swung = integrate(state, torch.zeros(1, dtype=torch.float64), 1.0, 400)
    assert not torch.allclose(swung, state, atol=0.5)
    assert energy(swung) == pytest.approx(energy(state), abs=1e-5)


def test_the_best_release_is_the_goal_and_pays_nothing():
    task = ReleasedPendulum(10, goal_action=0.7)
    state = task.initial_state(2)
    action = torch.tensor([[0.7], [0.2]], dtype=torch.float64)
    for _ in range(10):
        before, state = state, task.next_state(state, action)
    reward = task.reward(task.observe(before), action, task.observe(state))
    assert reward[0].item() == 0
    assert reward[1].item() < -0.1


def test_the_driven_pendulum_starts_high_and_is_paid_for_height():
    task = DrivenPendulum(100)
    start = task.initial_state(200, torch.Generator().manual_seed(0))
    low, high = math.pi / 2 + 0.3, math.pi / 2 + 1.3
    assert (start[:, [0, 2]] > low).all()
    assert (start[:, [0, 2]] < high).all()
    assert (start[:, [1, 3, 4]] == 0).all()
    upright = task.observe(torch.tensor([[math.pi, 0, math.pi, 0, 1]], dtype=torch.float64))
    assert task.reward(upright, torch.zeros(1, 1), upright).item() == pytest.approx(1)
