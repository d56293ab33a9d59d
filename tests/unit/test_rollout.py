"""Episodes are the same however many are played together, and one that fails costs only itself."""

import dataclasses

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from orrery.datasets.rollout import kept_environments, play_episodes
from orrery.datasets.schema import TaskSpec
from orrery.datasets.tasks import task_spec


class Moody(gymnasium.Env):
    """The seed sets the mood: 1 raises at reset, 2 in the third step, 3 observes NaN, 4 rewards with NaN."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        self.mood, self.steps = seed, 0
        if seed == 1:
            raise ValueError("no\nreset")
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        bad = self.steps == 3
        if self.mood == 2 and bad:
            raise RuntimeError("simulation unstable")
        observation = np.array([self.steps, np.nan if self.mood == 3 and bad else 0.0])
        reward = float("nan") if self.mood == 4 and bad else float(action[0])
        return observation, reward, self.mood == 5 and bad, False, {"success": self.steps == 2}


gymnasium.register("OrreryTest/Moody-v0", Moody)
MOODY = TaskSpec(
    "test/moody", 2, 1, 5, reports_success=True, environment={"kind": "gymnasium", "id": "OrreryTest/Moody-v0"}
)


def half(observation, episode):
    return np.full((len(observation), 1), 0.5, np.float32)


@pytest.mark.parametrize("lanes", [1, 3, 8])
def test_a_failure_ends_its_own_episode_and_says_why(lanes):
    results = dict(play_episodes(MOODY, half, [0, 1, 2, 3, 4, 5], record=True, lanes=lanes))
    assert [results[i].seed for i in range(6)] == [0, 1, 2, 3, 4, 5]
    assert results[1].error == "ValueError: no reset (step 0, episode seed 1)"
    assert results[2].error == "RuntimeError: simulation unstable (step 2, episode seed 2)"
    assert results[3].error == "observation column 1 is nan (step 3, episode seed 3)"
    assert results[4].error == "the reward is nan (step 2, episode seed 4)"
    assert [results[i].episode is None for i in range(6)] == [False, True, True, True, True, False]
    assert (results[0].return_, results[0].length) == (2.5, 5)
    assert (results[0].success_any, results[0].success_last) == (True, False)
    assert (results[1].success_any, results[1].success_last) == (None, None)


def test_environments_are_kept_until_another_task_is_played():
    dict(play_episodes(MOODY, half, [0, 5], lanes=1, pool=kept_environments(MOODY)))
    (environment,) = kept_environments(MOODY)
    dict(play_episodes(MOODY, half, [0, 1], lanes=1, pool=kept_environments(MOODY)))
    assert kept_environments(MOODY) == []  # that of the episode that failed is gone
    dict(play_episodes(MOODY, half, [0], pool=kept_environments(MOODY)))
    longer = dataclasses.replace(MOODY, episode_length=6)
    assert kept_environments(longer) == []
    assert kept_environments(MOODY) == []
    assert environment.task == MOODY


def test_a_recorded_episode_is_aligned():
    ((_, result),) = play_episodes(MOODY, half, [5], record=True)
    assert result.episode is not None
    np.testing.assert_array_equal(result.episode.observations[:, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(result.episode.actions, np.full((3, 1), 0.5, np.float32))
    np.testing.assert_array_equal(result.episode.success, [False, True, False])
    assert result.episode.terminated
    assert result.episode.observations.dtype == result.episode.rewards.dtype == np.float32


def test_an_action_that_is_not_finite_is_reported_as_such():
    ((_, result),) = play_episodes(MOODY, lambda observation, _: observation[:, :1] * np.nan, [0])
    assert result.error == "the action is not finite: [nan] (step 0, episode seed 0)"


def test_what_the_policy_raises_is_not_hidden():
    def broken(observation, episode):
        raise KeyError("weights")

    with pytest.raises(KeyError, match="weights"):
        list(play_episodes(MOODY, broken, [0]))


def test_episodes_do_not_depend_on_how_many_are_played_together_nor_on_used_environments():
    spec = task_spec("gymnasium/Pendulum-v1")

    def act(observation, episode):
        # Row by row: a matrix product rounds differently for other batch sizes.
        return np.tanh(0.1 * observation[:, :1] + observation[:, 1:2]) * (1 + episode[:, None] % 2) / 2

    seeds = [3, 1, 4, 1, 5]
    pool = []
    alone = dict(play_episodes(spec, act, seeds, lanes=1, pool=pool))
    together = dict(play_episodes(spec, act, seeds, lanes=4, pool=pool))
    assert len(pool) == 4
    assert alone == together
    assert len({result.return_ for result in alone.values()}) == 4  # two seeds are equal
