"""POWR's numbers are those of the published implementation.

golden/powr_*.npz were produced by CSML-IIT-UCL/powr @9c76bb1 in float64 (settings in each file's `meta`). Every file of
that name is checked, so a new one needs no new test. The sixteen identities are numbered as in the list that the
published code was examined with; those that golden files show are here, the others in test_powr_identities.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from orrery.stages.powr.actions import DiscreteActions
from orrery.stages.powr.evaluation import (
    Centres,
    KernelBlocks,
    fit,
    successor_matrix,
)
from orrery.stages.powr.improvement import mirror_descent, uniform_logits
from orrery.stages.powr.kernels import StateKernel
from orrery.stages.powr.transitions import Transitions, with_sinks
from orrery.stages.tabular.counts import empirical_mdp
from orrery.stages.tabular.solve import mirror_descent as exact_mirror_descent
from orrery.stages.tabular.solve import (
    policy_iteration,
    value_iteration,
)

from .powr_problems import (
    CARTPOLE,
    DELTA,
    FROZENLAKE,
    RANDOM_MDP,
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
    random_mdp,
    random_policy,
    relative,
    shrunk_mdp,
)


def test_kernels():
    """Identity 1."""
    values, meta = load("powr_kernels")
    assert "0.2" in meta["exp"]
    x, y = values["X"], values["Y"]
    close(StateKernel.of("laplace", 0.2)(x, y), values["exp_sigma0p2"], 1e-12)
    scale = values["rbf_diag_sigma"].tolist()
    close(StateKernel.of("gaussian", scale)(x, y), values["rbf_diag"], 1e-12)
    close(StateKernel.of("product_laplace", scale)(x, y), values["abel_diag"], 1e-12)
    close(DELTA(indices(values["dirac_x"]), indices(values["dirac_y"])), values["dirac"], 0)


@pytest.mark.parametrize("name", CARTPOLE)
@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_cartpole(name, cache_bytes):
    """Rows with sinks, the regression, three evaluations and policies; identities 2 and 14."""
    values, meta = load(name)
    raw = Transitions(values["raw_s"], values["raw_a"], values["raw_s2"], values["raw_r"])
    rows = with_sinks(raw, values["raw_terminated"])
    for found, key in ((rows.state_NO, "X"), (rows.action, "A"), (rows.next_state_NO, "Y"), (rows.reward_N, "R")):
        assert torch.equal(found, values[key])
    kernel, actions = StateKernel.of("laplace", meta["sigma"]), DiscreteActions(2)
    centres = Centres.of(rows, values["centre_idx"])
    blocks = KernelBlocks(kernel, actions, centres, rows, block_rows=50, cache_bytes=cache_bytes)
    model = fit(blocks, meta["lam"], meta["jitter"])
    k_nm = kernel(rows.state_NO, centres.state_MO) * actions.between(rows.action, centres.action)
    close(k_nm, values["K_nm"], 1e-12)
    # The published B and b are 1e-10 of their own reference at the smaller ridge: condition 6e5.
    relative(model.solve(k_nm.T.contiguous()), values["B"], 1e-9)
    relative(model.reward_weights(), values["b"], 1e-9)
    logits = uniform_logits(2, rows.next_state_NO)
    test, total = values["test_states"], torch.zeros(len(centres), dtype=torch.float64)
    for t in range(meta["pmd_iters"]):
        step = mirror_descent(blocks, model, logits, [meta["eta"]], meta["gamma"])
        q = model.features(test, step.value_weight_M)
        close(q, values["Q_test_iters"][t], 1e-9)
        relative(step.value_weight_M, values["c_iters"][t], 1e-9)
        # identity 2: one solve against (I - gamma B M)^-1 b
        successor = successor_matrix(blocks, torch.softmax(logits, 1))
        system = torch.eye(len(centres)) - meta["gamma"] * model.solve(successor)
        two_solves = torch.linalg.solve(system, model.reward_weights())
        close(model.features(test, two_solves), q, 1e-9)
        logits, total = step.next_logits_NU, total + step.weight_M
        close(torch.softmax(model.features(test, total), 1), values["pi_test_iters"][t], 1e-12)
    relative(total / meta["eta"], values["W_cum"].sum(1), 1e-9)
    # the same three steps in one call, and with the reward that the released code zeroes
    together = mirror_descent(blocks, model, uniform_logits(2, rows.next_state_NO), [meta["eta"]] * 3, meta["gamma"])
    close(together.weight_M, total, 1e-12 * float(total.abs().max()))
    close(together.next_logits_NU, logits, 1e-11)
    zeroed = Transitions(rows.state_NO, rows.action, rows.next_state_NO, values["R_official_zeroed"])
    blocks = KernelBlocks(kernel, actions, centres, zeroed)
    model, logits = fit(blocks, meta["lam"], meta["jitter"]), uniform_logits(2, rows.next_state_NO)
    relative(model.reward_weights(), values["b_official_zeroed"], 1e-9)
    for expected in values["Q_test_iters_official_zeroed"]:
        step = mirror_descent(blocks, model, logits, [meta["eta"]], meta["gamma"])
        close(model.features(test, step.value_weight_M), expected, 1e-9)
        logits = step.next_logits_NU
    assert float((expected - values["Q_test_iters"][-1]).abs().max()) > 0.1


@pytest.mark.parametrize("name", RANDOM_MDP)
def test_random_mdp(name):
    """Golden values and policies; identity 3, the tabular oracle, full and with Nystrom centres."""
    values, meta, rows = random_mdp(name)
    states, actions = meta["S"], meta["A"]
    blocks, model = delta_fit(rows, values["centre_idx"], actions, meta["lam"], meta["jitter"])
    counts = counted(rows, states, actions)
    found = copies(rows, values["centre_idx"], states, actions)
    mdp = shrunk_mdp(counts, meta["lam"], meta["jitter"], found)
    close(mdp.transition_SAS, values["tab_P"], 1e-14)
    close(mdp.reward_SA, values["tab_r"], 1e-14)
    logits, policy = uniform_logits(actions, rows.next_state_NO), np.full((states, actions), 1 / actions)
    total = torch.zeros(len(model.centres), dtype=torch.float64)
    for t in range(3):
        step = mirror_descent(blocks, model, logits, [meta["eta"]], meta["gamma"])
        q = model.features(cells(states), step.value_weight_M)
        close(q, values["Q_iters"][t], 1e-10)
        close(q, values["tab_Q_iters"][t], 1e-10)
        close(q, policy_values(mdp, policy, meta["gamma"]), 1e-10)
        logits, total = step.next_logits_NU, total + step.weight_M
        policy = torch.softmax(model.features(cells(states), total), 1).numpy()
        close(policy, values["pi_iters"][t], 1e-12)
    # any policy, not only those on the way
    policy = random_policy(states, actions)
    successor = successor_matrix(blocks, torch.from_numpy(policy)[rows.next_state_NO[:, 0].long()])
    q = model.features(cells(states), model.value_weights(successor, meta["gamma"]))
    close(q, policy_values(mdp, policy, meta["gamma"]), 1e-10)


@pytest.mark.parametrize("name", FROZENLAKE)
def test_frozenlake(name):
    """Golden rows, values and policies, the tabular twin, value iteration and the gap of exact mirror descent."""
    values, meta = load(name)
    raw = Transitions(values["raw_s"], values["raw_a"], values["raw_s2"], values["raw_r"])
    rows = with_sinks(raw, values["raw_terminated"])
    for found, key in ((rows.state_NO, "X"), (rows.action, "A"), (rows.next_state_NO, "Y"), (rows.reward_N, "R")):
        assert torch.equal(found, values[key])
    counts = counted(rows, 16, 4)
    close(counts.visits_SA, values["counts_N"], 0)
    close(counts.next_SAS, values["counts_NN"], 0)
    close(counts.reward_SA, values["counts_NR"], 0)
    mdp = shrunk_mdp(counts, meta["lam"], meta["jitter"], counts.visits_SA)
    close(mdp.transition_SAS, values["tab_P"], 1e-14)
    close(mdp.reward_SA, values["tab_r"], 1e-14)
    blocks, model = delta_fit(rows, every(rows), 4, meta["lam"], meta["jitter"])
    steps = [meta["eta"]] * 3
    descent = exact_mirror_descent(mdp, meta["gamma"], steps)
    close(descent.q_TSA, values["tab_Q_iters"], 1e-12)
    close(descent.policy_TSA[1:], values["tab_pi_iters"], 1e-12)
    total, logits = torch.zeros(len(rows), dtype=torch.float64), uniform_logits(4, rows.next_state_NO)
    for t in range(3):
        step = mirror_descent(blocks, model, logits, [meta["eta"]], meta["gamma"])
        logits, total = step.next_logits_NU, total + step.weight_M
        q = model.features(cells(16), step.value_weight_M)
        close(model.features(values["test_states"], step.value_weight_M), values["Q_test_iters"][t], 1e-10)
        close(torch.softmax(model.features(values["test_states"], total), 1), values["pi_test_iters"][t], 1e-12)
        close(q, descent.q_TSA[t], 1e-10)
    exact = empirical_mdp(counts)
    close(value_iteration(exact, meta["gamma"]), values["vi_qstar_emp"], 1e-9)
    close(policy_iteration(exact, meta["gamma"])[0], values["vi_qstar_emp"], 1e-9)
    close(value_iteration(exact, meta["gamma"]).max(1), values["vi_vstar_emp"], 1e-9)
    gap = mirror_descent_gap(exact, meta["gamma"], len(values["pmd_gap_eta1"]))
    close(gap, values["pmd_gap_eta1"], 1e-9)
