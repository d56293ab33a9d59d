"""POWR's identities hold; delta kernels make the tabular solution an exact oracle for most of them.

Numbered as in the list that the published code was examined with. Those that golden files show are in test_powr.
"""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from orrery.stages.powr.actions import CandidateActions, DiscreteActions
from orrery.stages.powr.centres import choose_centres, distinct_rows
from orrery.stages.powr.evaluation import (
    Centres,
    KernelBlocks,
    Statistics,
    fit,
    statistics,
    successor_matrix,
)
from orrery.stages.powr.improvement import (
    kernel_sum,
    mirror_descent,
    policy_weights,
    transition_radius,
    uniform_logits,
)
from orrery.stages.powr.kernels import StateKernel
from orrery.stages.powr.transitions import Transitions, with_sinks
from orrery.stages.tabular.counts import MDP, empirical_mdp
from orrery.stages.tabular.solve import (
    action_values,
    state_values,
    value_iteration,
)

from .powr_problems import (
    CARTPOLE,
    cells,
    close,
    copies,
    counted,
    delta_fit,
    every,
    indices,
    load,
    mirror_descent_gap,
    policy_values,
    random_policy,
    relative,
    shrunk_mdp,
    small_problem,
)


@pytest.mark.parametrize("every_other", [1, 2])
def test_identity_3_every_policy_has_the_tabular_values(every_other):
    """q = (I - discount P Pi)^-1 r with P = N(x, a, y) / den: of any policy, with all centres and with some."""
    rows = small_problem(n=60)
    index = every(rows)[::every_other]
    blocks, model = delta_fit(rows, index, 3, 1e-3, 1e-2)
    mdp = shrunk_mdp(counted(rows, 6, 3), 1e-3, 1e-2, copies(rows, index, 6, 3))
    for seed in range(5):
        policy = random_policy(6, 3, seed)
        logits = torch.log(torch.from_numpy(policy))[rows.next_state_NO[:, 0].long()]
        step = mirror_descent(blocks, model, logits, [1.0], 0.95)
        close(model.features(cells(6), step.value_weight_M), policy_values(mdp, policy, 0.95), 1e-10)


def test_identity_4_reward_regression_shrinks():
    """mean x N / (N + n ridge + jitter / C)."""
    rows = small_problem()
    ridge, jitter = 1e-3, 1e-2
    _, model = delta_fit(rows, every(rows), 3, ridge, jitter)
    counts = counted(rows, 6, 3)
    mean = counts.reward_SA / counts.visits_SA
    expected = mean * counts.visits_SA / (counts.visits_SA + len(rows) * ridge + jitter / counts.visits_SA)
    close(model.features(cells(6), model.reward_weights()), expected, 1e-12)


def test_identity_5_delta_kernels_are_always_solvable():
    rows = small_problem(n=60)
    blocks, model = delta_fit(rows, every(rows)[::2], 3)
    visits, centres = counted(rows, 6, 3).visits_SA, copies(rows, every(rows)[::2], 6, 3)
    mdp = shrunk_mdp(counted(rows, 6, 3), 1e-6, 1e-6, centres)
    seen = centres > 0
    assert (~seen).any()
    shrinkage = visits[seen] / (visits[seen] + 60 * 1e-6 + 1e-6 / centres[seen])
    close(mdp.transition_SAS.sum(2)[seen], shrinkage, 1e-15)
    close(mdp.transition_SAS.sum(2)[~seen], np.zeros(int((~seen).sum())), 0)
    assert shrinkage.max() < 1
    policy = random_policy(6, 3)
    successor = successor_matrix(blocks, torch.from_numpy(policy)[rows.next_state_NO[:, 0].long()])
    radius = transition_radius(model, successor, 0.99)
    next_SASA = (mdp.transition_SAS[..., None] * policy).reshape(18, 18)
    assert radius == pytest.approx(0.99 * np.abs(np.linalg.eigvals(next_SASA)).max(), abs=1e-8)
    assert radius < 1


def test_identity_6_copies_of_centres_change_nothing_but_the_jitter():
    rows = small_problem(n=400)
    counts = counted(rows, 6, 3)
    blocks, model = delta_fit(rows, every(rows), 3)
    distinct = torch.from_numpy(distinct_rows(rows))
    assert len(distinct) == 18
    few_blocks, few = delta_fit(rows, distinct, 3)
    logits = uniform_logits(3, rows.next_state_NO)
    q, few_q = (
        m.features(cells(6), mirror_descent(b, m, logits, [0.5], 0.9).value_weight_M)
        for b, m in ((blocks, model), (few_blocks, few))
    )
    close(few_q, q, 3e-7)
    assert float((few_q - q).abs().max()) > 0
    uniform = np.full((6, 3), 1 / 3)
    for found, copied in ((q, counts.visits_SA), (few_q, np.ones((6, 3)))):
        close(found, policy_values(shrunk_mdp(counts, 1e-6, 1e-6, copied), uniform, 0.9), 1e-10)


def test_identity_7_order_of_rows_and_centres():
    rows = small_problem()
    shuffled = torch.from_numpy(np.random.default_rng(3).permutation(len(rows)))
    mixed = rows[shuffled]
    index = every(rows)[::3]
    position = torch.argsort(shuffled)[index]  # the same centres among the shuffled rows
    found = []
    for data, chosen in ((rows, index), (mixed, position.flip(0))):
        blocks, model = delta_fit(data, chosen, 3)
        step = mirror_descent(blocks, model, uniform_logits(3, data.next_state_NO), [0.5, 0.5], 0.9)
        q = model.features(cells(6), step.value_weight_M)
        found.append((q, torch.softmax(model.features(cells(6), step.weight_M), 1)))
    close(found[0][0], found[1][0], 1e-14)
    close(found[0][1], found[1][1], 1e-15)


def test_identity_8_statistics_add_up():
    values, meta = load(CARTPOLE[0])
    rows = Transitions(values["X"], values["A"], values["Y"], values["R"])
    kernel, actions = StateKernel.of("laplace", meta["sigma"]), DiscreteActions(2)
    centres = Centres.of(rows, torch.arange(0, 200, 4))

    def of(part):
        return statistics(KernelBlocks(kernel, actions, centres, part, block_rows=30))

    whole = of(rows)
    parts = of(rows[:70])
    for start, stop in ((70, 100), (100, 101), (101, len(rows))):
        parts = parts + of(rows[start:stop])
    assert isinstance(parts, Statistics)
    assert parts.num_rows == whole.num_rows == len(rows)
    close(parts.gram_MM, whole.gram_MM, 1e-10)
    close(parts.target_M, whole.target_M, 1e-10)


def test_identity_9_one_weight_array_is_the_sum_of_all_epochs():
    rows = small_problem(n=200)
    kernel, actions = StateKernel.of("gaussian", 1.5), DiscreteActions(3)
    weight, logits, stored = torch.zeros(len(rows), dtype=torch.float64), uniform_logits(3, rows.next_state_NO), []
    for epoch in range(4):
        index = choose_centres(rows, 20, "uniform", epoch, kernel, actions)
        blocks = KernelBlocks(kernel, actions, Centres.of(rows, index), rows)
        model = fit(blocks, 1e-4, 1e-6)
        step = mirror_descent(blocks, model, logits, [0.1, 0.2], 0.9)
        logits = step.next_logits_NU
        weight[index] += step.weight_M
        stored.append((model, step.weight_M))
    query = torch.linspace(-1, 7, 30, dtype=torch.float64)[:, None]
    summed = sum(model.features(query, weights) for model, weights in stored)
    merged = policy_weights(actions, rows, weight)
    together = kernel_sum(kernel, *merged, query, block_bytes=1000)
    relative(together, summed, 1e-12)
    close(torch.softmax(together, 1), torch.softmax(summed, 1), 1e-12)
    # what mirror descent kept for the next states is that policy, too
    at_next = kernel_sum(kernel, *merged, rows.next_state_NO)
    close(torch.softmax(logits, 1), torch.softmax(at_next, 1), 1e-12)


def test_identity_10_without_a_future_values_are_the_reward_regression():
    rows = small_problem()
    blocks, model = delta_fit(rows, every(rows)[:40], 3)
    step = mirror_descent(blocks, model, uniform_logits(3, rows.next_state_NO), [1.0], 0.0)
    close(model.features(cells(6), step.value_weight_M), model.features(cells(6), model.reward_weights()), 1e-14)


def test_identity_11_constant_reward():
    rows = small_problem(reward=1.0)
    blocks, model = delta_fit(rows, torch.from_numpy(distinct_rows(rows)), 3, 1e-12, 1e-10)
    step = mirror_descent(blocks, model, uniform_logits(3, rows.next_state_NO), [1.0], 0.9)
    close(model.features(cells(6), step.value_weight_M), torch.full((6, 3), 10.0, dtype=torch.float64), 1e-8)


def frozenlake_rows():
    values, meta = load("powr_frozenlake_det")
    return Transitions(values["X"], values["A"], values["Y"], values["R"]), meta


def test_identity_12_converges_to_value_iteration():
    rows, meta = frozenlake_rows()
    mdp = empirical_mdp(counted(rows, 16, 4))
    best = value_iteration(mdp, meta["gamma"]).max(1)
    blocks, model = delta_fit(rows, torch.from_numpy(distinct_rows(rows)), 4, 1e-12, 1e-9)
    start = uniform_logits(4, rows.next_state_NO)

    def distance(sizes):
        step = mirror_descent(blocks, model, start, sizes, meta["gamma"], watch_radius=False)
        policy = torch.softmax(model.features(cells(16), step.weight_M), 1).numpy()
        return np.abs(best - state_values(mdp, policy, meta["gamma"])).max()

    assert distance([50.0] * 300) < 1e-3
    assert distance([1000.0] * 20) < 1e-8
    growing = [1.0 * 2**t for t in range(20)]  # as policy iteration
    assert distance(growing) < 1e-8


def slippery_rows():
    """600 random transitions of FrozenLake that slips, from its own tables."""
    outcomes = gymnasium.make("FrozenLake-v1", is_slippery=True).unwrapped.P
    random = np.random.default_rng(0)
    state, taken = random.integers(16, size=600), random.integers(4, size=600)
    following, paid = np.zeros(600, int), np.zeros(600)
    for i, (s, a) in enumerate(zip(state, taken, strict=True)):
        chances = outcomes[int(s)][int(a)]
        _, following[i], paid[i], _ = chances[random.choice(len(chances), p=[chance[0] for chance in chances])]
    to = torch.from_numpy
    return Transitions(indices(to(state)), to(taken), indices(to(following)), to(paid))


def test_identity_12_where_outcomes_are_random():
    rows = slippery_rows()
    mdp = empirical_mdp(counted(rows, 16, 4))
    best = value_iteration(mdp, 0.99).max(1)
    blocks, model = delta_fit(rows, torch.from_numpy(distinct_rows(rows)), 4, 1e-12, 1e-9)
    start = uniform_logits(4, rows.next_state_NO)

    def distance(sizes):
        step = mirror_descent(blocks, model, start, sizes, 0.99, watch_radius=False)
        policy = torch.softmax(model.features(cells(16), step.weight_M), 1).numpy()
        return np.abs(best - state_values(mdp, policy, 0.99)).max()

    assert distance([50.0] * 300) < 1e-3
    assert distance([1000.0] * 300) < 1e-3
    assert distance([1.0 * 2**t for t in range(20)]) < 1e-8


def test_identity_13_gap_falls_below_its_bound():
    rows, meta = frozenlake_rows()
    gap = mirror_descent_gap(empirical_mdp(counted(rows, 16, 4)), meta["gamma"], 200)
    assert (np.diff(gap) <= 1e-12).all()
    t = np.arange(1, 200)
    bound = (np.log(4) / (1 - meta["gamma"]) + 1 / (1 - meta["gamma"]) ** 2) / t
    assert (gap[1:] <= bound).all()
    assert gap[-1] < 0.1 * gap[0]


def test_identity_14_policy_is_the_softmax_of_summed_values():
    rows = small_problem()
    blocks, model = delta_fit(rows, every(rows)[::2], 3)
    start = torch.log(torch.from_numpy(random_policy(6, 3)))
    at_next = start[rows.next_state_NO[:, 0].long()]
    eta, total, logits = 0.7, start.clone(), at_next
    for _ in range(4):
        step = mirror_descent(blocks, model, logits, [eta], 0.9)
        total += eta * model.features(cells(6), step.value_weight_M)
        logits = step.next_logits_NU
    together = mirror_descent(blocks, model, at_next, [eta] * 4, 0.9)
    found = torch.softmax(start + model.features(cells(6), together.weight_M), 1)
    close(found, torch.softmax(total, 1), 1e-12)


@pytest.mark.parametrize("every_action", [False, True])
def test_identity_15_terminal_states(every_action):
    """Q(sink, .) = 0 and Q(s, a_term) = r_term N / den: the released code stores the terminal reward as 0."""
    raw = Transitions(
        indices(torch.tensor([0, 1, 0, 1, 0])),
        torch.tensor([0, 1, 0, 1, 1]),
        indices(torch.tensor([1, 2, 1, 2, 0])),
        torch.tensor([0.0, 5.0, 0.0, 5.0, 1.0], dtype=torch.float64),
    )
    terminated = torch.tensor([False, True, False, True, False])
    choices = torch.arange(2) if every_action else None
    rows = with_sinks(raw, terminated, choices)
    assert len(rows) == 5 + 2 * (2 if every_action else 1)
    ridge, jitter = 1e-3, 1e-6
    blocks, model = delta_fit(rows, torch.from_numpy(distinct_rows(rows)), 2, ridge, jitter)
    step = mirror_descent(blocks, model, uniform_logits(2, rows.next_state_NO), [1.0], 0.9)
    q = model.features(cells(3), step.value_weight_M)
    close(q[2], torch.zeros(2, dtype=torch.float64), 1e-14)
    assert float(q[1, 1]) == pytest.approx(5 * 2 / (2 + len(rows) * ridge + jitter), abs=1e-12)
    assert float(q[0, 0]) > 1


def test_identity_16_time_limits_bootstrap():
    """The last state of a truncated episode keeps the value that the model gives it."""
    raw = Transitions(
        indices(torch.tensor([0, 1])),
        torch.tensor([0, 0]),
        indices(torch.tensor([1, 0])),  # row 1 is cut by the time limit on its way back to 0
        torch.ones(2, dtype=torch.float64),
    )
    q = {}
    for name, ended in (("truncated", False), ("terminated", True)):
        rows = with_sinks(raw, torch.tensor([False, ended]))
        assert len(rows) == 2 + ended
        blocks, model = delta_fit(rows, torch.from_numpy(distinct_rows(rows)), 1, 1e-12, 1e-10)
        step = mirror_descent(blocks, model, uniform_logits(1, rows.next_state_NO), [1.0], 0.9)
        q[name] = model.features(cells(2), step.value_weight_M)[:, 0]
    close(q["truncated"], torch.full((2,), 10.0, dtype=torch.float64), 1e-6)
    assert float(q["terminated"].max()) < 9


def test_a_constant_on_every_reward_moves_all_values_alike():
    """Sinks included: what makes unseen pairs the best or the worst there is without changing the problem."""
    raw = small_problem(n=400)
    terminated = torch.from_numpy(np.random.default_rng(5).random(400) < 0.1)
    terminated &= raw.next_state_NO[:, 0] == 5
    raw = raw[raw.state_NO[:, 0] != 5]
    terminated = raw.next_state_NO[:, 0] == 5
    found = []
    for offset in (0.0, 3.0):
        shifted = Transitions(raw.state_NO, raw.action, raw.next_state_NO, raw.reward_N + offset)
        rows = with_sinks(shifted, terminated, torch.arange(3), offset)
        blocks, model = delta_fit(rows, torch.from_numpy(distinct_rows(rows)), 3, 1e-12, 1e-10)
        step = mirror_descent(blocks, model, uniform_logits(3, rows.next_state_NO), [0.3] * 3, 0.9)
        found.append(model.features(cells(6), step.value_weight_M))
    close(found[1] - found[0], torch.full((6, 3), 30.0, dtype=torch.float64), 1e-6)


def test_narrow_action_kernels_are_the_discrete_ones():
    """Candidates that are the actions, with a kernel that tells them apart: POWR with discrete actions."""
    rows = small_problem()
    points = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    continuous = Transitions(rows.state_NO, points[rows.action], rows.next_state_NO, rows.reward_N)
    index = every(rows)[::2]
    kernel = StateKernel.of("gaussian", 0.8)
    narrow = CandidateActions(points, torch.tensor([0.02], dtype=torch.float64))
    found = []
    for data, actions in ((rows, DiscreteActions(3)), (continuous, narrow)):
        blocks = KernelBlocks(kernel, actions, Centres.of(data, index), data, block_rows=70)
        model = fit(blocks, 1e-3, 1e-6)
        step = mirror_descent(blocks, model, uniform_logits(3, data.next_state_NO), [0.2, 0.2], 0.9)
        found.append(model.features(cells(6), step.value_weight_M))
    relative(found[1], found[0], 1e-9)


def test_policy_values_and_mirror_descent_agree_with_brute_force():
    """The oracle itself: Neumann series of a small MDP, written out."""
    random = np.random.default_rng(7)
    mdp = MDP(random.dirichlet(np.ones(4), (4, 2)), random.normal(size=(4, 2)))
    policy = random_policy(4, 2)
    q = np.zeros((4, 2))
    for _ in range(400):
        q = mdp.reward_SA + 0.9 * mdp.transition_SAS @ (policy * q).sum(1)
    close(policy_values(mdp, policy, 0.9), q, 1e-12)
    close(action_values(mdp, state_values(mdp, policy, 0.9), 0.9), q, 1e-12)
