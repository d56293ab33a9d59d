"""The action that evaluation applies for a packed action is the recorded one, whatever the bounds are."""

from pathlib import Path
from tempfile import TemporaryDirectory

import gymnasium
import h5py
import numpy as np
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from orrery.datasets.formats.hdf5 import Hdf5Reader
from orrery.datasets.tasks import make_environment


class Echo(gymnasium.Env):
    """Takes actions in the bounds given; applies nothing."""

    observation_space = spaces.Box(-1, 1, (1,))

    def __init__(self, low=(), high=(), choices=0, start=0):
        bounds = np.array(low, np.float32), np.array(high, np.float32)
        self.action_space = spaces.Discrete(choices, start=start) if choices else spaces.Box(*bounds)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, False, {}


gymnasium.register("Echo-v0", Echo)


def applied(actions: np.ndarray, overrides) -> tuple[Hdf5Reader, np.ndarray]:
    """Write recorded actions [T, ...] to a file, read them, and give each to the environment that evaluation builds."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "data.hdf5"
        with h5py.File(path, "w") as file:
            file["observations"] = file["next_observations"] = np.zeros((len(actions), 1))
            file["actions"], file["rewards"] = actions, np.zeros(len(actions))
            file["timeouts"] = np.arange(len(actions)) == len(actions) - 1
        reader = Hdf5Reader(path, overrides=overrides)
        (episode,) = reader
    assert np.abs(episode.actions).max() <= 1 + 1e-6
    environment = make_environment(reader.task)
    return reader, np.stack([environment.to_native_action(action) for action in episode.actions])


finite = st.floats(-1e4, 1e4, width=32)


@st.composite
def bounds(draw, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Low and high [components], neither the same for all nor symmetric; infinite in some."""
    low = np.array([draw(finite) for _ in range(components)], np.float32)
    width = np.array([draw(st.floats(np.float32(0.01), 1e4, width=32)) for _ in range(components)], np.float32)
    free = np.array([draw(st.sampled_from([False, False, False, True])) for _ in range(components)])
    return np.where(free, -np.inf, low), np.where(free, np.inf, low + width)


@st.composite
def continuous(draw) -> tuple[np.ndarray, dict]:
    """Recorded actions and what the user says of them; now and then beyond the environment's bounds."""
    components, steps = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    low, high = draw(bounds(components))
    kwargs = {"low": low.tolist(), "high": high.tolist()}
    overrides = {"environment": {"kind": "gymnasium", "id": "Echo-v0", "kwargs": kwargs}}
    inside = np.array([[draw(st.floats(0, 1)) for _ in range(components)] for _ in range(steps)])
    bounded = np.isfinite(low)
    at = np.where(bounded, low, -5), np.where(bounded, high, 5)
    actions = at[0] + inside * (at[1] - at[0]) * draw(st.sampled_from([1.0, 1.0, 1.5]))
    if draw(st.booleans()):
        # The user's own bounds, around the data, say nothing of the environment's.
        room = draw(st.floats(np.float32(0.01), 100, width=32))
        overrides |= {"action_low": actions.min(0) - room, "action_high": actions.max(0) + room}
    return actions.astype(np.float32), overrides


@settings(deadline=None, max_examples=80)
@given(continuous())
def test_continuous_actions_come_back(case):
    actions, overrides = case
    reader, native = applied(actions, overrides)
    scale = reader.source["actions"]
    # float32 in [-1, 1] resolves 1e-7 of the range.
    tolerance = 1e-6 * (np.abs(scale["low"]) + np.abs(scale["high"]))
    assert (np.abs(native - actions) <= tolerance + 1e-6).all()


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.integers(-4, 4), st.booleans(), st.data())
def test_choices_come_back(choices, start, as_floats, data):
    environment = {"kind": "gymnasium", "id": "Echo-v0", "kwargs": {"choices": choices, "start": start}}
    taken = np.array(data.draw(st.lists(st.integers(start, start + choices - 1), min_size=1, max_size=6)))
    _, native = applied(taken.astype(np.float32) if as_floats else taken, {"environment": environment})
    np.testing.assert_array_equal(native, taken)
