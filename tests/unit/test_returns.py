"""Returns of imagined rollouts against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from orrery.stages.extraction.returns import bootstrapped_return, lambda_return

REWARD = torch.tensor([[1.0], [2.0], [3.0]])
VALUE = torch.tensor([[10.0], [20.0], [30.0]])
ONE = torch.ones(3, 1)
HALF = torch.tensor([0.5])


@pytest.mark.parametrize(
    ("lambda_", "continue_", "expected"),
    [
        (0.0, ONE, [1 + 5, 2 + 10, 3 + 15]),
        (1.0, ONE, [1 + 0.5 * (2 + 0.5 * 18), 2 + 0.5 * 18, 18]),
        # G_2 = 18; G_1 = 2 + .5 (.5 * 20 + .5 * 18) = 11.5; G_0 = 1 + .5 (.5 * 10 + .5 * 11.5) = 6.375
        (0.5, ONE, [6.375, 11.5, 18]),
        # The episode ends after the second reward: nothing later counts before it.
        (0.5, torch.tensor([[1.0], [0.0], [1.0]]), [1 + 0.5 * (0.5 * 10 + 0.5 * 2), 2, 18]),
    ],
)
def test_lambda_return(lambda_, continue_, expected):
    result = lambda_return(REWARD, VALUE, continue_, HALF, lambda_)
    torch.testing.assert_close(result[:, 0], torch.tensor(expected, dtype=torch.float32))


def test_bootstrapped_return():
    result = bootstrapped_return(REWARD, VALUE[-1], ONE, HALF)
    torch.testing.assert_close(result, torch.tensor([1 + 0.5 * 2 + 0.25 * 3 + 0.125 * 30]))
    cut = bootstrapped_return(REWARD, VALUE[-1], torch.tensor([[1.0], [0.0], [1.0]]), HALF)
    torch.testing.assert_close(cut, torch.tensor([1 + 0.5 * 2.0]))


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 12), st.integers(0, 99))
def test_lambda_return_is_its_explicit_sum(lambda_, discount, horizon, seed):
    generator = torch.Generator().manual_seed(seed)
    reward, value = torch.randn(2, horizon, 3, dtype=torch.float64, generator=generator)
    result = lambda_return(
        reward, value, torch.ones_like(reward), torch.full((3,), discount, dtype=torch.float64), lambda_
    )
    # G_0 = (1 - lambda) sum_{n<T} lambda^(n-1) R^(n) + lambda^(T-1) R^(T), R^(n) the n-step return (Sutton 12.3).
    n_step = []
    for n in range(1, horizon + 1):
        total = sum(discount**i * reward[i] for i in range(n)) + discount**n * value[n - 1]
        n_step.append(total)
    expected = lambda_ ** (horizon - 1) * n_step[-1]
    expected = expected + (1 - lambda_) * sum(lambda_ ** (n - 1) * n_step[n - 1] for n in range(1, horizon))
    torch.testing.assert_close(result[0], expected)


def test_one_lambda_is_the_bootstrapped_return():
    torch.testing.assert_close(
        lambda_return(REWARD, VALUE, ONE, HALF, 1.0)[0], bootstrapped_return(REWARD, VALUE[-1], ONE, HALF)
    )
