"""The pieces of POWR, as far as the golden files do not cover them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from orrery.datasets.schema import Episode, TaskSpec
from orrery.pipeline.errors import CheckpointError, ConfigError
from orrery.stages.policy.policy import load_policy
from orrery.stages.powr.actions import (
    DiscreteActions,
    grid_candidates,
    kmeans_candidates,
)
from orrery.stages.powr.centres import choose_centres, distinct_rows
from orrery.stages.powr.config import KernelPlannerConfig
from orrery.stages.powr.curves import CurveRow, band, by_seed, draw_curves, read_curves, write_curves
from orrery.stages.powr.evaluation import successor_matrix
from orrery.stages.powr.features import (
    index_features,
    is_one_hot,
    raw_features,
    standardised_features,
)
from orrery.stages.powr.improvement import (
    behaviour_logits,
    mirror_descent,
    transition_radius,
    uncertainty,
    uncertainty_form,
    uniform_logits,
)
from orrery.stages.powr.kernels import StateKernel
from orrery.stages.powr.online import OnlineLearner
from orrery.stages.powr.policy import Behaviour, KernelPolicy, Penalty
from orrery.stages.powr.stability import radius_warning, spectral_radius
from orrery.stages.powr.transitions import Transitions, concatenate, with_sinks

from .kernel_problems import F64, make_rows, model_of

# ---- centres, candidates, features ----


def test_centres_are_a_function_of_the_seed():
    rows, kernel, actions = make_rows(200), StateKernel.of("gaussian", 0.5), DiscreteActions(2)
    for selection in ("uniform", "distinct", "cholesky"):
        first, again, other = (choose_centres(rows, 20, selection, seed, kernel, actions) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert len(set(first.tolist())) == 20


def test_distinct_centres_hold_no_copy():
    rows = make_rows(10)
    repeated = rows[torch.arange(10).repeat(5)]
    assert distinct_rows(repeated).tolist() == list(range(10))
    found = choose_centres(repeated, 30, "distinct", 0, StateKernel.of("delta"), DiscreteActions(2))
    assert found.tolist() == list(range(10))
    other = Transitions(rows.state_NO, 1 - rows.action, rows.next_state_NO, rows.reward_N)
    assert len(distinct_rows(concatenate([rows, other, rows]))) == 20


def test_pivoted_cholesky_covers_better_than_chance():
    """A crowd, and a few rows spread far apart: pivots leave less unexplained than as many uniform rows."""
    rows = make_rows(500, actions=1)
    rows.state_NO[:15] *= 20
    kernel, actions = StateKernel.of("gaussian", 1.5), DiscreteActions(1)
    left = {}
    for selection in ("uniform", "cholesky"):
        unexplained = []
        for seed in range(5):
            index = choose_centres(rows, 25, selection, seed, kernel, actions)
            k_nm = kernel(rows.state_NO, rows.state_NO[index])
            explained = (k_nm * torch.linalg.solve(k_nm[index] + 1e-10 * torch.eye(len(index)), k_nm.T).T).sum(1)
            unexplained.append(float((1 - explained).sum()))
        left[selection] = np.mean(unexplained)
    assert left["cholesky"] < 0.8 * left["uniform"]


def test_pivoted_cholesky_stops_when_nothing_is_left():
    rows = make_rows(6)
    repeated = rows[torch.arange(6).repeat(4)]
    found = choose_centres(repeated, 20, "cholesky", 0, StateKernel.of("delta"), DiscreteActions(2))
    assert found.tolist() == list(range(6))


def test_candidates():
    grid = grid_candidates([-1.0, 0.0, 1.0], 2)
    assert grid.shape == (9, 2)
    assert len(torch.unique(grid, dim=0)) == 9
    with pytest.raises(ConfigError, match="has 2187 candidates"):
        grid_candidates([-1.0, 0.0, 1.0], 7)
    groups = torch.tensor([[-0.8, 0.1], [0.5, 0.5], [0.9, -0.9]])
    taken = groups[torch.arange(300) % 3] + 0.01 * torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    found = kmeans_candidates(taken, 3, seed=4)
    assert torch.cdist(groups.double(), found).amin(1).max() < 0.01
    assert len(kmeans_candidates(groups[[0, 1, 0, 1]], 16, seed=0)) == 2


def test_features():
    one_hot = torch.eye(4)[torch.tensor([2, 0, 3])]
    assert is_one_hot(one_hot)
    assert not is_one_hot(torch.rand(3, 4))
    assert index_features(4)(one_hot)[:, 0].tolist() == [2, 0, 3]
    x = torch.tensor([[1.0, 10.0, 5.0], [3.0, 30.0, 5.0]])
    assert torch.equal(raw_features(3)(x), x.double())
    assert standardised_features(x)(x).tolist() == [[-1, -1, 0], [1, 1, 0]]


# ---- stability, behaviour, uncertainty ----


def test_spectral_radius_is_that_of_the_matrix():
    rows = make_rows(200)
    blocks, model = model_of(rows, torch.arange(0, 200, 2))
    successor = successor_matrix(blocks, torch.full((200, 2), 0.5, dtype=F64))
    exact = torch.linalg.eigvals(0.95 * model.solve(successor)).abs().max()
    assert transition_radius(model, successor, 0.95) == pytest.approx(float(exact), rel=1e-6)
    assert radius_warning(0.99) is None
    assert "spectral radius of the discounted transition operator is 1.200" in radius_warning(1.2)


@pytest.mark.parametrize("values", [[0.0], [0.7], [0.7, 0.2, 0.0]])
def test_spectral_radius_of_maps_whose_space_is_soon_complete(values):
    """What Arnoldi's iteration adds once nothing new is left says nothing of the map."""
    diagonal = torch.zeros(60, dtype=F64)
    diagonal[: len(values)] = torch.tensor(values, dtype=F64)
    assert spectral_radius(lambda x: diagonal * x, 60) == pytest.approx(max(values), abs=1e-12)


def test_behaviour_is_the_frequency_of_actions():
    point = torch.tensor([[0.0], [0.0], [0.0], [10.0]], dtype=F64)
    share = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=F64)
    kernel = StateKernel.of("gaussian", 0.1)
    found = torch.exp(behaviour_logits(kernel, point, share, torch.tensor([[0.0], [10.0], [5.0]], dtype=F64), 0.2))
    expected = [[(2 + 0.1) / 3.2, (1 + 0.1) / 3.2], [0.1 / 1.2, 1.1 / 1.2], [0.5, 0.5]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64))


def test_uncertainty_is_the_posterior_deviation():
    """With all rows as centres it is kk - k (K + n ridge)^-1 k, the Gaussian process's; far away it is 1."""
    rows = make_rows(30)
    ridge = 1e-2
    _, model = model_of(rows, torch.arange(30), ridge=ridge, jitter=1e-12)
    query = torch.tensor([[0.1, -0.2], [1.0, 1.0], [40.0, 0.0]], dtype=F64)
    choice = model.actions.of_choices(model.centres.action)
    found = uncertainty(model.kernel, query, model.centres.state_MO, choice, uncertainty_form(model))
    kernel = model.kernel
    for u in range(2):
        k = kernel(query, rows.state_NO) * (rows.action == u)
        gram = kernel(rows.state_NO, rows.state_NO) * (rows.action[:, None] == rows.action)
        variance = 1 - (k * torch.linalg.solve(gram + 30 * ridge * torch.eye(30, dtype=F64), k.T).T).sum(1)
        torch.testing.assert_close(found[:, u], variance.sqrt(), rtol=1e-4, atol=1e-5)
    assert found[2].tolist() == [1.0, 1.0]
    assert float(found[0].max()) < 0.5


def test_penalty_keeps_the_policy_off_unknown_pairs():
    rows = make_rows(80)
    rows = rows[rows.action == 0]  # action 1 was never taken
    rows = Transitions(rows.state_NO, rows.action, rows.next_state_NO, -torch.ones(len(rows), dtype=F64))
    blocks, model = model_of(rows, torch.arange(len(rows)))
    start, choice = uniform_logits(2, rows.next_state_NO), model.actions.of_choices(model.centres.action)
    form = uncertainty_form(model)
    sd = uncertainty(model.kernel, rows.next_state_NO, model.centres.state_MO, choice, form)
    free = mirror_descent(blocks, model, start, [1.0] * 5, 0.9)
    careful = mirror_descent(blocks, model, start, [1.0] * 5, 0.9, penalty_NU=20 * sd)
    assert torch.softmax(free.next_logits_NU, 1)[:, 1].mean() > 0.9  # 0 looks better than -1
    assert torch.softmax(careful.next_logits_NU, 1)[:, 1].mean() < 0.1


def test_streaming_and_keeping_blocks_give_the_same_numbers():
    rows = make_rows(300)
    found = []
    for block_rows, cache_bytes in ((300, 2**30), (37, 0), (37, 16 * 37 * 40 * 3)):
        blocks, model = model_of(rows, torch.arange(0, 160, 4), block_rows=block_rows, cache_bytes=cache_bytes)
        found.append(
            mirror_descent(blocks, model, uniform_logits(2, rows.next_state_NO), [0.3] * 3, 0.9).next_logits_NU
        )
        kept = sum("next_bM" in vars(block) for block in blocks._blocks)
        assert kept == {300: 1, 37: min(3, cache_bytes)}[block_rows]
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found[2], found[1], rtol=0, atol=0)


# ---- sinks, online buffer, policy files, curves ----


def test_sink_rows():
    rows = make_rows(3)
    ended = torch.tensor([False, True, True])
    taken = with_sinks(rows, ended)
    assert taken.reward_N.tolist() == [*rows.reward_N[:2].tolist(), 0.0, float(rows.reward_N[2]), 0.0]
    assert torch.equal(taken.state_NO[2], rows.next_state_NO[1])
    assert taken.action[2] == rows.action[1]
    everything = with_sinks(rows, ended, torch.arange(4), sink_reward=2.5)
    assert len(everything) == 3 + 2 * 4
    assert everything.action[2:6].tolist() == [0, 1, 2, 3]
    assert everything.reward_N[2:6].tolist() == [2.5] * 4
    candidates = torch.rand(5, 2, dtype=F64)
    continuous = Transitions(rows.state_NO, torch.rand(3, 2, dtype=F64), rows.next_state_NO, rows.reward_N)
    found = with_sinks(continuous, ended, candidates)
    assert torch.equal(found.action[2:7], candidates)
    assert torch.equal(found.action[8:], candidates)


def chain_episode(length, terminated=False):
    observations = np.linspace(0, 1, length + 1, dtype=np.float32)[:, None]
    actions = np.eye(2, dtype=np.float32)[np.arange(length) % 2]
    return Episode(observations, actions, np.ones(length, np.float32), terminated)


@pytest.mark.parametrize("memory", [0, 1, 2])
def test_online_policy_is_the_sum_of_the_epochs_it_remembers(memory):
    config = KernelPlannerConfig(centres=8, selection="uniform", steps=2, memory=memory)
    learner = OnlineLearner(raw_features(1), StateKernel.of("gaussian", 0.3), 2, 0.9, config, seed=3)
    query = torch.linspace(0, 1, 5, dtype=F64)[:, None]
    assert learner.logits(query).abs().max() == 0
    gains = []
    for epoch in range(4):
        learner.add([chain_episode(5 + epoch, terminated=epoch % 2 == 0)])
        learner._forget()
        before = learner.logits(query)
        learner.improve()
        gains.append(learner.logits(query) - before)
    kept = gains[-memory:] if memory else gains
    torch.testing.assert_close(learner.logits(query), sum(kept), rtol=1e-9, atol=1e-9)
    # terminated in epochs 0 and 2: a sink for each of 2 actions
    assert len(learner.rows) == 5 + 6 + 7 + 8 + 2 * 2
    at_next = learner.logits(learner.rows.next_state_NO)
    torch.testing.assert_close(
        torch.softmax(learner._next_logits_NU, 1), torch.softmax(at_next, 1), rtol=1e-9, atol=1e-9
    )
    centre, weight = learner.compressed()
    torch.testing.assert_close(learner.kernel(query, centre) @ weight, learner.logits(query), rtol=1e-9, atol=1e-9)


def spec_of(kind="discrete", width=2):
    return TaskSpec("toy/line", observation_dim=2, action_dim=width, episode_length=10, action_kind=kind)


@pytest.mark.parametrize("full", [False, True])
def test_policies_read_back_what_they_wrote(tmp_path, full):
    rows = make_rows(40)
    blocks, model = model_of(rows, torch.arange(12), StateKernel.of("laplace", [0.5, 2.0]))
    step = mirror_descent(blocks, model, uniform_logits(2, rows.next_state_NO), [0.5], 0.9)
    behaviour = penalty = None
    if full:
        behaviour = Behaviour(rows.state_NO[:9], torch.eye(2, dtype=F64)[rows.action[:9]], 0.4, 0.1)
        penalty = Penalty(0.7, model.actions.of_choices(model.centres.action), uncertainty_form(model))
    policy = KernelPolicy.of(
        spec_of(), standardised_features(rows.state_NO.float()), model.kernel, model.centres.state_MO,
        model.choice_weights(step.weight_M), {"algorithm": "powr", "seed": 0}, behaviour=behaviour, penalty=penalty,
    )  # fmt: skip
    policy.save(tmp_path)
    loaded = load_policy(tmp_path)
    observation = torch.randn(7, 2)
    assert torch.equal(loaded.logits(observation), policy.logits(observation))
    act = loaded.act(observation)
    assert act.dtype == torch.float32
    assert act.sum(1).tolist() == [1.0] * 7
    assert torch.equal(act.argmax(1), policy.logits(observation).argmax(1))
    (tmp_path / "policy.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"policy\.safetensors: cannot be read"):
        load_policy(tmp_path)


def test_continuous_policies_act_by_mode_or_mean():
    candidate = torch.tensor([[-1.0], [0.2], [0.6]], dtype=F64)
    weight = torch.tensor([[0.0, math.log(2.0), math.log(5.0)]], dtype=F64)
    zero = torch.zeros(1, 2)
    parts = (
        spec_of("continuous", 1),
        raw_features(2),
        StateKernel.of("gaussian"),
        torch.zeros(1, 2, dtype=F64),
        weight,
    )
    mode, mean = (
        KernelPolicy.of(*parts, {}, candidate_UA=candidate, action=action).act(zero) for action in ("mode", "mean")
    )
    assert mode.item() == pytest.approx(0.6)
    assert mean.item() == pytest.approx((-1 * 1 + 0.2 * 2 + 0.6 * 5) / 8)


def curve(seed, points, algorithm="a"):
    return [CurveRow(algorithm, "t", seed, x, 0.0, y, y, y, math.nan) for x, y in points]


def test_curves(tmp_path):
    rows = [*curve(0, [(10, 1.0), (30, 5.0)]), *curve(1, [(20, 3.0)]), *curve(0, [(5, 9.0)], "b")]
    write_curves(tmp_path / "curves.csv", rows)
    read = read_curves(tmp_path / "curves.csv")
    assert [(r.seed, r.transitions, r.greedy_return) for r in read] == [
        (r.seed, r.transitions, r.greedy_return) for r in rows
    ]
    mean, low, high = band(by_seed(read)["a"], np.array([15, 25, 40]))
    assert np.isnan(mean[0])
    assert mean[1:].tolist() == [2.0, 4.0]
    assert (low[2], high[2]) == (3.0, 5.0)
    draw_curves(read, 4.0, tmp_path / "curves.svg")
    assert "solved" in (tmp_path / "curves.svg").read_text()
