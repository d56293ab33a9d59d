"""Flattening keeps the space's own order and agrees with gymnasium's, for one observation and for a whole episode."""

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.spaces.utils import flatten
from gymnasium.vector.utils import concatenate, create_empty_array
from orrery.datasets.spaces import flat_columns, flat_dim, flatten_observation
from orrery.pipeline.errors import TaskError

NESTED = spaces.Dict(
    {
        "velocity": spaces.Box(-1, 1, (2, 2)),
        "arm": spaces.Tuple([spaces.Discrete(3, start=5), spaces.Box(-1, 1, ())]),
    }
)


def test_a_nested_observation_is_written_in_the_order_of_the_space():
    # A gymnasium Dict sorts the keys of a plain dict: arm comes first.
    observation = {"velocity": np.array([[0.1, 0.2], [0.3, 0.4]]), "arm": (6, np.array(0.5))}
    flat = flatten_observation(NESTED, observation)
    np.testing.assert_array_equal(flat, np.float32([0, 1, 0, 0.5, 0.1, 0.2, 0.3, 0.4]))
    assert flat.dtype == np.float32
    assert flat_columns(NESTED)[:5] == [
        "observation.arm.0[0]",
        "observation.arm.0[1]",
        "observation.arm.0[2]",
        "observation.arm.1[0]",
        "observation.velocity[0]",
    ]


def test_one_observation_and_a_stack_of_them_agree_with_gymnasium():
    NESTED.seed(0)
    samples = [NESTED.sample() for _ in range(4)]
    stacked = concatenate(NESTED, samples, create_empty_array(NESTED, 4))
    expected = np.stack([flatten(NESTED, sample) for sample in samples])
    assert expected.shape == (4, flat_dim(NESTED)) == (4, len(flat_columns(NESTED)))
    np.testing.assert_allclose(flatten_observation(NESTED, stacked), expected, rtol=1e-6)
    np.testing.assert_allclose(flatten_observation(NESTED, samples[2]), expected[2], rtol=1e-6)


def test_what_cannot_be_flattened_is_refused_by_name():
    with pytest.raises(TaskError, match=r"cannot flatten.*Text"):
        flat_dim(spaces.Dict({"words": spaces.Text(5)}))
    with pytest.raises(TaskError, match=r"shape \(3,\), expected \(2,\)"):
        flatten_observation(spaces.Box(-1, 1, (2,)), np.zeros(3))
    with pytest.raises(TaskError, match="outside Discrete"):
        flatten_observation(spaces.Discrete(3), 3)


def test_a_value_beyond_float32_becomes_infinite_without_a_warning():
    assert np.isinf(flatten_observation(spaces.Box(-np.inf, np.inf, (1,), np.float64), np.array([1e300]))).all()
