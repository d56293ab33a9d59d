"""World-model losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from orrery.stages.layers.activations import simnorm
from orrery.stages.world_model.losses import (
    horizon_mean,
    soft_cross_entropy,
    symexp,
    symlog,
    two_hot,
    two_hot_decode,
)
from orrery.stages.world_model.values import prior_loss

BINS = torch.linspace(-2, 2, 5)  # -2, -1, 0, 1, 2 in symlog units


def test_symlog_and_its_inverse():
    x = torch.tensor([-100.0, -1.0, 0.0, 0.5, math.e - 1])
    torch.testing.assert_close(symlog(x)[-1], torch.tensor(1.0))
    torch.testing.assert_close(symexp(symlog(x)), x)


@pytest.mark.parametrize(
    ("symlog_value", "expected"),
    [
        (0.0, [0, 0, 1, 0, 0]),
        (0.25, [0, 0, 0.75, 0.25, 0]),
        (-1.5, [0.5, 0.5, 0, 0, 0]),
        (2.0, [0, 0, 0, 0, 1]),
        (7.0, [0, 0, 0, 0, 1]),
        (-7.0, [1, 0, 0, 0, 0]),
    ],
)
def test_two_hot(symlog_value, expected):
    value = symexp(torch.tensor(symlog_value))
    torch.testing.assert_close(two_hot(value, BINS), torch.tensor(expected, dtype=torch.float32), atol=1e-6, rtol=0)


def test_two_hot_decodes_to_the_value():
    value = torch.tensor([-3.0, 0.0, 0.1, 2.5])
    logits = two_hot(value, BINS).clamp(min=1e-30).log()
    torch.testing.assert_close(two_hot_decode(logits, BINS), value, atol=1e-5, rtol=1e-5)


def test_decoding_is_exact_under_mixed_precision():
    """A product in bfloat16 would round bins to 8 bits, and values by percents: they are the targets of others."""
    logits = torch.randn(64, 101, generator=torch.Generator().manual_seed(0)).bfloat16()
    bins = torch.linspace(-10, 10, 101)
    with torch.autocast("cpu", torch.bfloat16):
        decoded = two_hot_decode(logits, bins)
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, two_hot_decode(logits.float(), bins))


def test_soft_cross_entropy_of_uniform_logits_is_log_of_the_bins():
    torch.testing.assert_close(
        soft_cross_entropy(torch.zeros(3, 5), torch.randn(3), BINS), torch.full((3,), math.log(5))
    )


def test_simnorm_is_a_softmax_per_group():
    x = torch.tensor([[0.0, 0.0, math.log(3.0), 0.0]])
    torch.testing.assert_close(simnorm(x, 2), torch.tensor([[0.5, 0.5, 0.75, 0.25]]))


def test_horizon_mean_averages_valid_entries_of_each_step():
    loss_TB = torch.tensor([[1.0, 3.0], [5.0, 100.0]])
    weight_TB = torch.tensor([[1.0, 2.0], [1.0, 0.0]])
    # step 0: (1 * 1 + 2 * 3) / 2 entries, step 1: 5 / 1 entry, at rho = 0.5, over two steps
    assert float(horizon_mean(loss_TB, weight_TB, 0.5)) == pytest.approx((3.5 + 0.5 * 5) / 2)


def test_ranks_that_share_their_counts_have_the_mean_of_all_windows():
    """Where windows end early, the ranks have different numbers of valid entries: a mean of means is another number."""
    generator = torch.Generator().manual_seed(0)
    loss_TB = torch.rand(4, 6, generator=generator)
    valid_TB = (torch.arange(4)[:, None] < torch.tensor([4, 1, 2, 1, 3, 1])).float()
    whole = horizon_mean(loss_TB, valid_TB, 0.9)
    count_T = valid_TB.sum(1) / 2
    parts = [(loss_TB[:, rank::2], valid_TB[:, rank::2]) for rank in range(2)]
    torch.testing.assert_close(sum(horizon_mean(*part, 0.9, count_T) for part in parts) / 2, whole)
    assert abs(float(sum(horizon_mean(*part, 0.9) for part in parts) / 2 - whole)) > 0.01
    entropy_TB = torch.rand(4, 6, generator=generator)
    whole = prior_loss(loss_TB, entropy_TB, valid_TB, 0.1, 0.9)
    split = [prior_loss(loss_TB[:, r::2], entropy_TB[:, r::2], valid_TB[:, r::2], 0.1, 0.9, count_T) for r in range(2)]
    torch.testing.assert_close(sum(split) / 2, whole)
