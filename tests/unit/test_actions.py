"""How recorded actions are read where data, environment and settings say different things of them."""

import numpy as np
import pytest
from gymnasium import spaces
from orrery.datasets.actions import ActionExtent, ActionScale, Choices, read_actions
from orrery.pipeline.errors import DatasetError, TaskError

TORQUE = spaces.Box(-0.4, 0.4, (1,))


def read(actions, space=None, **settings):
    actions = np.asarray(actions)
    actions = actions.reshape(len(actions), -1)
    fields = {key: settings.pop(key) for key in ("action_kind", "action_dim") if key in settings}
    return read_actions(ActionExtent.of([actions], actions.shape[1]), fields, settings, space, "data")


def test_the_bounds_of_the_environment_decide_and_those_given_win():
    data = [[-0.1], [0.3]]
    scale, said = read(data, TORQUE)
    assert (scale.low.item(), scale.origin, said) == (pytest.approx(-0.4), "environment", [])
    assert scale.environment_bounds() == {}
    scale, (said,) = read(data, TORQUE, action_low=-1, action_high=1)
    assert scale.environment_bounds() == {"action_low": [-1.0], "action_high": [1.0]}
    assert "action_low and action_high are [-1]..[1], the environment's bounds [-0.4]..[0.4]" in said
    scale, said = read(data)
    assert (scale.origin, said, scale.environment_bounds()) == (
        "data",
        [],
        {"action_low": [-1.0], "action_high": [1.0]},
    )


def test_actions_beyond_the_environment_widen_the_scale_with_a_warning():
    scale, (said,) = read([[-1.0, 0.1], [0.2, 0.2]], spaces.Box(-0.4, 0.4, (2,)))
    np.testing.assert_allclose(np.stack([scale.low, scale.high]), [[-1, -0.4], [0.4, 0.4]], rtol=1e-6)
    assert "actions lie in [-1, 0.1]..[0.2, 0.2], the environment's bounds are [-0.4, -0.4]..[0.4, 0.4]" in said
    _, said = read([[0.4 + 1e-6], [0.0]], TORQUE)
    assert said == [], "rounding is no disagreement"
    _, (said,) = read([[-1.0], [1.0]], spaces.Box(-2, 2, (1,)))
    assert "as if normalised" in said
    assert read([[-1.9], [1.0]], spaces.Box(-2, 2, (1,)))[1] == []


def test_whole_numbers_are_quantities_where_bounds_or_the_environment_say_so():
    scale, said = read([0, 100, 400], action_low=[0], action_high=[400])
    np.testing.assert_allclose(scale(np.array([[0], [100], [400]])), [[-1], [-0.5], [1]])
    assert said == []
    scale, (said,) = read([0, 1, 2], spaces.Box(0, 4, (1,)))
    assert (scale.high.item(), "treated as continuous" in said) == (4, True)
    choices, (said,) = read(np.arange(1, 400))
    assert (choices, "treated as 400 discrete actions" in said) == (Choices(400, 0), True)


def test_several_whole_numbers_per_step_are_continuous_with_a_warning():
    scale, (said,) = read([[0, 4], [2, 1]])
    assert isinstance(scale, ActionScale)
    assert "integers in 2 columns" in said
    assert read([[0, 4], [2, 1]], action_low=0, action_high=4)[1] == []
    scale, (said,) = read(np.eye(4)[[0, 2, 1]])
    assert isinstance(scale, ActionScale)
    assert "one-hot with 4 columns" in said
    assert "pack.sources.NAME.choices=4" in said


@pytest.mark.parametrize(
    "settings", [{"action_kind": "discrete", "action_dim": 4}, {"space": spaces.Discrete(4, start=1)}]
)
def test_one_hot_rows_are_choices_where_settings_or_the_environment_say_so(settings):
    rows = np.eye(4, dtype=np.int8)[[0, 2, 1]]
    choices, said = read(rows, **settings)
    assert (choices.count, said) == (4, [])
    np.testing.assert_array_equal(choices(rows, "data"), rows)


def test_the_first_choice_is_found_or_given():
    assert read([1, 2, 1], spaces.Discrete(2, start=1)) == (Choices(2, 1), [])
    assert read([1.0, 2.0], spaces.Discrete(2, start=1)) == (Choices(2, 1), [])
    assert read([1, 2], action_kind="discrete", action_dim=2) == (Choices(2, 1), [])
    assert read([-1, 0, 1], action_kind="discrete", choices_start=-1) == (Choices(3, -1), [])
    assert read([0, 2, 3]) == (Choices(4, 0), [])
    assert read([1, 2], spaces.Discrete(4), action_kind="discrete", choices_start=1) == (Choices(4, 1), [])
    choices, (said,) = read([1, 2])
    assert (choices, "Set pack.sources.NAME.choices_start=1 if 1 is the first" in said) == (Choices(3, 0), True)


@pytest.mark.parametrize(
    ("actions", "settings", "error", "message"),
    [
        (
            [-1, 0, 1],
            {},
            DatasetError,
            r"numbered -1\.\.1, expected 0 and above; set pack.*choices_start=-1 for 3 act",
        ),
        (
            [0, 1],
            {"space": spaces.Discrete(2, start=1)},
            DatasetError,
            r"expected 1\.\.2 \(Discrete\(2, start=1\) of the",
        ),
        (
            [0, 1],
            {"action_kind": "discrete", "choices_start": 1},
            DatasetError,
            r"set pack.*choices_start=0 if 0 is the",
        ),
        (
            [0, 5],
            {"space": spaces.Discrete(3)},
            DatasetError,
            r"expected 0\.\.2 \(Discrete\(3\).*; name the environment",
        ),
        ([0, 5], {"action_kind": "discrete", "action_dim": 3}, DatasetError, r"expected 0\.\.2; set pack.*choices=6"),
        (
            [0.5, 1],
            {"space": spaces.Discrete(3)},
            TaskError,
            r"action space is Discrete\(3\), but the data has continuous actions of 1 component",
        ),
        (
            [0.5, 1],
            {"action_kind": "discrete", "action_dim": 2},
            DatasetError,
            r"lie in 0\.5\.\.1 and are not integers",
        ),
        (
            np.eye(4),
            {"space": spaces.Discrete(3)},
            TaskError,
            r"Discrete\(3\), but the data has a discrete action out of 4",
        ),
        (
            [[0.5, 1]],
            {"space": TORQUE},
            TaskError,
            r"action space is Box.*, but the data has continuous actions of 2 components",
        ),
        (
            [[1, 2]],
            {"space": spaces.MultiDiscrete([3, 3])},
            TaskError,
            r"MultiDiscrete.*, but the data has continuous actions",
        ),
        (
            [0, 1],
            {"space": spaces.Discrete(2), "action_low": 0, "action_high": 1},
            TaskError,
            "but the data has continuous act",
        ),
        (
            [0, 1],
            {"space": TORQUE, "action_kind": "discrete", "action_dim": 2},
            DatasetError,
            "choices is 2, but the environment's action space is Box",
        ),
        (
            [0, 1],
            {"space": spaces.Discrete(2), "action_kind": "discrete", "action_dim": 3},
            DatasetError,
            r"choices is 3, but the environment's action space is Discrete\(2\); remove choices",
        ),
        (
            [[0, 3], [1, 2]],
            {"action_kind": "discrete", "action_dim": 2},
            DatasetError,
            "2 columns; expected one integer",
        ),
    ],
)
def test_contradictions_are_refused(actions, settings, error, message):
    with pytest.raises(error, match=message):
        read(actions, **settings)
