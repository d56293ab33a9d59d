"""Small problems for the tests of kernel planning."""

from __future__ import annotations

import numpy as np
import torch
from orrery.stages.powr.actions import (
    DiscreteActions,
)
from orrery.stages.powr.evaluation import Centres, KernelBlocks, fit
from orrery.stages.powr.kernels import StateKernel
from orrery.stages.powr.transitions import Transitions

F64 = torch.float64


def make_rows(n=60, seed=0, dim=2, actions=2):
    random = np.random.default_rng(seed)
    state = random.normal(size=(n, dim))
    to = torch.from_numpy
    return Transitions(
        to(state), to(random.integers(actions, size=n)), to(state + 0.1 * random.normal(size=(n, dim))),
        to(random.normal(size=n)),
    )  # fmt: skip


def model_of(rows, index, kernel=None, actions=None, ridge=1e-3, jitter=1e-6, **changes):
    kernel, actions = kernel or StateKernel.of("gaussian", 1.0), actions or DiscreteActions(2)
    blocks = KernelBlocks(kernel, actions, Centres.of(rows, index), rows, **changes)
    return blocks, fit(blocks, ridge, jitter)
