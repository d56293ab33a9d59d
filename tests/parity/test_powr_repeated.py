"""Where next states repeat, a system over them gives what the system over all centres gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from orrery.stages.powr import improvement
from orrery.stages.powr.actions import CandidateActions, DiscreteActions
from orrery.stages.powr.evaluation import Centres, KernelBlocks, fit
from orrery.stages.powr.improvement import mirror_descent, uniform_logits
from orrery.stages.powr.kernels import StateKernel
from orrery.stages.powr.repeated import next_state_model
from orrery.stages.powr.stability import SingularSystemError
from orrery.stages.powr.transitions import Transitions

from .powr_problems import cells, close, copies, counted, delta_fit, every, relative, shrunk_mdp, small_problem


def both(monkeypatch, blocks, model, logits, sizes, discount, **options):
    """Mirror descent by the short way and by the long one."""
    assert next_state_model(blocks, model) is not None
    short = mirror_descent(blocks, model, logits, sizes, discount, **options)
    monkeypatch.setattr(improvement, "next_state_model", lambda *_: None)
    return short, mirror_descent(blocks, model, logits, sizes, discount, **options)


@pytest.mark.parametrize("kernel", [StateKernel.of("delta"), StateKernel.of("laplace", 0.7)])
@pytest.mark.parametrize("penalised", [False, True])
def test_discrete_actions(monkeypatch, kernel, penalised):
    rows = small_problem()
    blocks = KernelBlocks(kernel, DiscreteActions(3), Centres.of(rows, every(rows)[::2]), rows, block_rows=70)
    model = fit(blocks, 1e-4, 1e-6)
    of_state_SU = torch.from_numpy(np.random.default_rng(2).random((6, 3)))
    penalty_NU = of_state_SU[rows.next_state_NO[:, 0].long()] if penalised else None
    short, long = both(
        monkeypatch, blocks, model, uniform_logits(3, rows.next_state_NO), [0.3, 0.6, 1.2], 0.9, penalty_NU=penalty_NU
    )
    for weight in ("weight_M", "value_weight_M"):
        relative(
            model.features(cells(6), getattr(short, weight)), model.features(cells(6), getattr(long, weight)), 1e-10
        )
    close(torch.softmax(short.next_logits_NU, 1), torch.softmax(long.next_logits_NU, 1), 1e-10)
    assert short.radius == pytest.approx(long.radius, abs=1e-8)


def test_candidate_actions(monkeypatch):
    rows = small_problem()
    points = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    rows = Transitions(rows.state_NO, points[rows.action], rows.next_state_NO, rows.reward_N)
    actions = CandidateActions(points, torch.tensor([0.8], dtype=torch.float64))
    index = every(rows)[::4]
    blocks = KernelBlocks(StateKernel.of("gaussian", 0.8), actions, Centres.of(rows, index), rows)
    model = fit(blocks, 1e-4, 1e-6)
    short, long = both(monkeypatch, blocks, model, uniform_logits(3, rows.next_state_NO), [0.3, 0.6], 0.9)
    relative(model.features(cells(6), short.weight_M), model.features(cells(6), long.weight_M), 1e-9)


def test_with_a_delta_kernel_it_is_the_counted_process():
    rows = small_problem()
    blocks, model = delta_fit(rows, every(rows), 3, 1e-3, 1e-2)
    process = next_state_model(blocks, model)
    assert process is not None
    counts = counted(rows, 6, 3)
    mdp = shrunk_mdp(counts, 1e-3, 1e-2, copies(rows, every(rows), 6, 3))
    state_Y = rows.next_state_NO[process.first_Y, 0].long().numpy()
    close(process.reward_UY.T, mdp.reward_SA[state_Y], 1e-12)
    close(process.step_UYY.permute(1, 0, 2), mdp.transition_SAS[state_Y][:, :, state_Y], 1e-12)


def test_is_not_used_where_states_do_not_repeat():
    rows = small_problem()
    spread = Transitions(rows.state_NO, rows.action, torch.arange(len(rows))[:, None].double(), rows.reward_N)
    blocks, model = delta_fit(spread, every(rows), 3)
    assert next_state_model(blocks, model) is None


def test_a_singular_process_names_its_centres():
    """Without ridge and discount, a state that leads to itself has no value."""
    rows = Transitions(
        torch.tensor([[0.0], [1.0]], dtype=torch.float64),
        torch.tensor([0, 0]),
        torch.tensor([[1.0], [1.0]], dtype=torch.float64),
        torch.ones(2, dtype=torch.float64),
    )
    blocks, model = delta_fit(rows, every(rows), 1, 0.0, 0.0)
    assert next_state_model(blocks, model) is not None
    with pytest.raises(SingularSystemError, match=r"singular at centre 1 \(row 1 of the data\)"):
        mirror_descent(blocks, model, uniform_logits(1, rows.next_state_NO), [1.0], 1.0)
