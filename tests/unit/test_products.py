"""Stacked products, and the precision that the settings of extract and MR.Q ask for."""

from __future__ import annotations

import pytest
import torch
from orrery.pipeline import accelerator
from orrery.stages.layers.products import LEAST_WIDTH, stacked_linear


def factors(width):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(shape, generator=generator) for shape in ((2, 1, width), (2, 8, 64), (2, 64, width)))


def test_wide_products_are_narrowed_and_their_biases_are_not():
    bias, x, weight = factors(LEAST_WIDTH)
    bias = bias + 1000  # in bfloat16, its spacing is 4
    with torch.autocast("cpu", torch.bfloat16):
        found = stacked_linear(bias, x, weight)
    assert found.dtype == torch.float32
    exact = torch.baddbmm(bias, x, weight)
    assert 1e-4 < (found - exact).norm() / (exact - bias).norm() < 0.01


def test_products_of_few_columns_are_as_exact_as_without_autocast():
    bias, x, weight = factors(LEAST_WIDTH - 1)
    exact = torch.baddbmm(bias, x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(stacked_linear(bias, x, weight), exact)


@pytest.mark.parametrize(
    ("precision", "width", "units", "narrow"),
    [
        ("32-true", 512, True, False),
        ("bf16-mixed", 128, False, True),
        ("auto", 384, True, True),
        ("auto", 383, True, False),
        ("auto", 512, False, False),
    ],
)
def test_precision(monkeypatch, precision, width, units, narrow):
    monkeypatch.setattr(accelerator, "multiplies_bfloat16", lambda: units)
    with accelerator.autocast(precision, torch.device("cpu"), width):
        assert (torch.randn(2, 2) @ torch.randn(2, 2)).dtype == (torch.bfloat16 if narrow else torch.float32)


def test_narrowed_weights_do_not_outlast_a_step():
    """Autocast keeps them by default, and a second product would read those before the step."""
    weight = torch.nn.Parameter(torch.zeros(1, 64, 64))
    with accelerator.autocast("bf16-mixed", torch.device("cpu"), 64):
        x = torch.ones(1, 1, 64)
        stacked_linear(torch.zeros(1, 1, 64), x, weight)
        with torch.no_grad():
            weight.add_(1)
        assert float(stacked_linear(torch.zeros(1, 1, 64), x, weight)[0, 0, 0].detach()) == 64
