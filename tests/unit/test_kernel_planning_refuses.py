"""What the pieces of POWR refuse, and what they say then."""

from __future__ import annotations

import math

import pytest
import torch
from orrery.pipeline.errors import ConfigError, DatasetError
from orrery.stages.powr.actions import (
    CandidateActions,
    DiscreteActions,
)
from orrery.stages.powr.centres import choose_centres
from orrery.stages.powr.config import KernelPlannerConfig, OfflineConfig
from orrery.stages.powr.improvement import (
    mirror_descent,
    uniform_logits,
)
from orrery.stages.powr.kernels import StateKernel, median_distance
from orrery.stages.powr.stability import SingularSystemError, check_pivots, solve_general
from orrery.stages.powr.transitions import Transitions

from .kernel_problems import F64, make_rows, model_of


@pytest.mark.parametrize(
    ("kind", "scale", "message"),
    [
        ("gaussian", [0.1, 0.0], "must be positive, found 0 for state component 1"),
        ("laplace", -1.0, "must be positive, found -1"),
        ("laplace", math.nan, "must be positive, found nan"),
        ("rbf", 1.0, "expected one of delta, laplace"),
    ],
)
def test_refuses_kernels(kind, scale, message):
    with pytest.raises(ConfigError, match=message):
        StateKernel.of(kind, scale)


def test_refuses_scales_of_another_width():
    with pytest.raises(ConfigError, match="3 scales, expected one per state component, 2"):
        StateKernel.of("gaussian", [1.0, 1.0, 1.0])(torch.zeros(1, 2, dtype=F64), torch.zeros(1, 2, dtype=F64))


def test_refuses_a_median_of_zero():
    with pytest.raises(DatasetError, match="median distance between 50 states is 0"):
        median_distance(torch.zeros(50, 3, dtype=F64), 0)


def test_refuses_more_centres_than_rows():
    rows = make_rows(10)
    with pytest.raises(ConfigError, match=r"11 centres of 10 rows: .* at most 10"):
        choose_centres(rows, 11, "uniform", 0, StateKernel.of("gaussian"), DiscreteActions(2))
    with pytest.raises(ConfigError, match="uniform, distinct, cholesky, found 'best'"):
        choose_centres(rows, 5, "best", 0, StateKernel.of("gaussian"), DiscreteActions(2))


def test_refuses_continuous_actions_without_candidates():
    rows = make_rows()
    continuous = Transitions(rows.state_NO, torch.rand(60, 2, dtype=F64), rows.next_state_NO, rows.reward_N)
    with pytest.raises(ConfigError, match=r"continuous \(2 components\) and there are no candidates.* kmeans"):
        model_of(continuous, torch.arange(5))
    with pytest.raises(ConfigError, match=r"actions 0\.\.1, expected 0\.\.0"):
        model_of(rows, torch.arange(5), actions=DiscreteActions(1))
    wide = CandidateActions(torch.zeros(4, 3, dtype=F64), torch.ones(3, dtype=F64))
    with pytest.raises(ConfigError, match=r"candidates have 3 components, the data's actions \[2\]"):
        model_of(continuous, torch.arange(5), actions=wide)


@pytest.mark.parametrize(
    ("name", "value"), [("reward_N", math.nan), ("state_NO", math.inf), ("next_state_NO", math.nan)]
)
def test_refuses_values_that_are_not_finite(name, value):
    rows = make_rows()
    parts = {key: getattr(rows, key).clone() for key in ("state_NO", "action", "next_state_NO", "reward_N")}
    parts[name][7] = value
    with pytest.raises(DatasetError, match=r"of row 7 is .* must be finite"):
        Transitions(**parts)


def test_refuses_a_singular_system_and_names_the_centres():
    rows = make_rows()
    twice = Transitions(*(torch.cat([part, part[5:6]]) for part in
                          (rows.state_NO, rows.action, rows.next_state_NO, rows.reward_N)))  # fmt: skip
    index = torch.cat([torch.arange(10), torch.tensor([60])])  # row 60 is row 5 again
    blocks, model = model_of(twice, index, ridge=0.0, jitter=0.0)
    with pytest.raises(SingularSystemError, match=r"row 5 of the data\).*row 60|row 60 of the data\).*row 5\b"):
        mirror_descent(blocks, model, uniform_logits(2, twice.next_state_NO), [0.1], 0.9, watch_radius=False)
    with pytest.raises(SingularSystemError, match=r"raise ridge \(now 0\) or jitter \(now 0\)"):
        _ = model.factors
    # the published jitter is enough
    blocks, model = model_of(twice, index, ridge=0.0, jitter=1e-6)
    mirror_descent(blocks, model, uniform_logits(2, twice.next_state_NO), [0.1], 0.9)


def test_names_the_first_singular_system_of_several():
    """Pivots are looked at after the last step: one that is singular must not spoil what is said of it."""
    regular, target = torch.eye(4, dtype=F64), torch.ones(4, dtype=F64)
    systems = [regular.clone() for _ in range(4)]
    systems[1][2, 2] = 0.0
    systems[2][3, 3] = torch.nan
    solved = [solve_general(system, target) for system in systems]
    assert [x.tolist() for x, _ in solved] == [[1.0] * 4, [0.0] * 4, [0.0] * 4, [1.0] * 4]
    pivots, rows = [pivot for _, pivot in solved], torch.arange(10, 14)
    check_pivots([pivots[0], pivots[3]], regular, rows, "ridge")
    with pytest.raises(SingularSystemError, match=r"singular at centre 2 \(row 12 of the data\).* or raise ridge"):
        check_pivots(pivots, regular, rows, "ridge")
    with pytest.raises(SingularSystemError, match=r"singular at centre 3"):
        check_pivots(pivots[2:], regular, rows, "ridge")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection": "all"}, "selection: expected uniform"),
        ({"sinks": "none"}, "sinks: expected all, taken"),
        ({"centres": 0}, "centres must be at least 1"),
        ({"ridge": -1.0}, "ridge must not be negative"),
        ({"step_size": 0.0}, "step_size must be positive"),
    ],
)
def test_refuses_planner_settings(changes, message):
    with pytest.raises(ConfigError, match=message):
        KernelPlannerConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": "all"}, "candidates: expected kmeans, grid, none"),
        ({"grid": [-2.0, 2.0]}, r"actions lie in \[-1, 1\]"),
        ({"held_out": 1.0}, "held_out must lie in"),
        ({"penalty": -0.1}, "penalty must not be negative"),
        ({"behaviour_floor": 0.0}, "behaviour_floor must be positive"),
        ({"num_candidates": 0}, "num_candidates must be at least 1"),
    ],
)
def test_refuses_offline_settings(changes, message):
    with pytest.raises(ConfigError, match=message):
        OfflineConfig(**changes)
