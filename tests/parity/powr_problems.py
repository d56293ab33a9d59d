"""Golden files and small problems for the tests of POWR, with what they are compared by."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from orrery.stages.powr.actions import DiscreteActions
from orrery.stages.powr.evaluation import (
    Centres,
    KernelBlocks,
    fit,
)
from orrery.stages.powr.kernels import StateKernel
from orrery.stages.powr.transitions import Transitions
from orrery.stages.tabular.counts import MDP, count
from orrery.stages.tabular.solve import mirror_descent as exact_mirror_descent
from orrery.stages.tabular.solve import (
    state_values,
    value_iteration,
)

GOLDEN = Path(__file__).parents[1] / "golden"
CARTPOLE = sorted(path.stem for path in GOLDEN.glob("powr_cartpole_*.npz"))
FROZENLAKE = sorted(path.stem for path in GOLDEN.glob("powr_frozenlake_*.npz"))
RANDOM_MDP = sorted(path.stem for path in GOLDEN.glob("powr_randommdp_*.npz"))
DELTA = StateKernel.of("delta")


def load(name):
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        values = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta"}
        return values, json.loads(str(file["meta"]))


def close(found, expected, tolerance):
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), rtol=0, atol=tolerance)


def relative(found, expected, tolerance):
    """Within `tolerance` of the largest entry."""
    close(found, expected, tolerance * float(torch.as_tensor(expected).abs().max()))


def indices(state):
    """Integer states [N] as the float column that kernels compare."""
    return state.double()[:, None]


def random_mdp(name="powr_randommdp_full"):
    values, meta = load(name)
    rows = Transitions(indices(values["X"]), values["A"], indices(values["Y"]), values["R"])
    return values, meta, rows


def small_problem(n=300, states=6, actions=3, seed=0, reward=None):
    """Random rows of a random MDP."""
    random = np.random.default_rng(seed)
    next_SAS = random.dirichlet(np.full(states, 0.5), (states, actions))
    state, action = random.integers(states, size=n), random.integers(actions, size=n)
    following = np.array([random.choice(states, p=next_SAS[s, a]) for s, a in zip(state, action, strict=True)])
    paid = random.normal(size=n) if reward is None else np.full(n, reward)
    to = torch.from_numpy
    return Transitions(indices(to(state)), to(action), indices(to(following)), to(paid))


def counted(rows, states, actions):
    return count(*(values.long().numpy().reshape(-1) for values in (rows.state_NO, rows.action, rows.next_state_NO)),
                 rows.reward_N.numpy(), states, actions)  # fmt: skip


def copies(rows, index, states, actions):
    """Centres per cell [S, A]."""
    found = np.zeros((states, actions))
    np.add.at(found, (rows.state_NO[index, 0].long().numpy(), rows.action[index].numpy()), 1)
    return found


def shrunk_mdp(counts, ridge, jitter, copies_SA):
    """What POWR's regression is with a delta kernel, exactly: P = N(x, a, y) / den, r = sum of rewards / den, den =
    N(x, a) + n ridge + jitter / copies. Pairs without a centre get zero rows."""
    known_SA = (copies_SA > 0) & (counts.visits_SA > 0)
    total = counts.visits_SA.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        shrunk_SA = counts.visits_SA + total * ridge + jitter / copies_SA
        scale_SA = np.where(known_SA, 1 / shrunk_SA, 0.0)
    return MDP(counts.next_SAS * scale_SA[..., None], counts.reward_SA * scale_SA)


def policy_values(mdp, policy_SA, discount):
    """Q of a policy: (I - discount P Pi)^-1 r, [S, A]."""
    states, actions = mdp.reward_SA.shape
    next_SASA = mdp.transition_SAS[..., None] * policy_SA
    system = np.eye(states * actions) - discount * next_SASA.reshape(states * actions, states * actions)
    return np.linalg.solve(system, mdp.reward_SA.ravel()).reshape(states, actions)


def delta_fit(rows, index, actions, ridge=1e-6, jitter=1e-6):
    blocks = KernelBlocks(DELTA, DiscreteActions(actions), Centres.of(rows, index), rows, block_rows=64)
    return blocks, fit(blocks, ridge, jitter)


def every(rows):
    return torch.arange(len(rows))


def cells(states):
    return torch.arange(states, dtype=torch.float64)[:, None]


def random_policy(states, actions, seed=1):
    return np.random.default_rng(seed).dirichlet(np.ones(actions), states)


def mirror_descent_gap(mdp, discount, steps, eta=1.0):
    """max_s V* - V^pi_t for t = 0 to steps - 1."""
    best = value_iteration(mdp, discount).max(1)
    policies = exact_mirror_descent(mdp, discount, [eta] * (steps - 1)).policy_TSA
    return np.array([(best - state_values(mdp, policy, discount)).max() for policy in policies])
