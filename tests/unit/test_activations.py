"""The CPU kernels of mish and SimNorm give PyTorch's numbers and derivatives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from orrery.stages.layers.activations import mish, simnorm


def reference_simnorm(x, group):
    return torch.softmax(x.unflatten(-1, (-1, group)), -1).flatten(-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mish(dtype):
    x = torch.linspace(-40, 40, 4001, dtype=dtype, requires_grad=True)
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-13}
    torch.testing.assert_close(mish(x), F.mish(x), **close)
    with torch.no_grad():
        torch.testing.assert_close(mish(x), F.mish(x), **close)
    ours, theirs = (torch.autograd.grad(f(x).square().sum(), x)[0] for f in (mish, F.mish))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("group", [2, 8, 24])
def test_simnorm(group):
    x = (8 * torch.randn(5, 3, 48, generator=torch.Generator().manual_seed(0))).requires_grad_()
    torch.testing.assert_close(simnorm(x, group), reference_simnorm(x, group), rtol=1e-5, atol=1e-6)
    weight = torch.randn(48, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad((simnorm(x, group) * weight).sum(), x)[0]
    theirs = torch.autograd.grad((reference_simnorm(x, group) * weight).sum(), x)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shift", [-300.0, 61.0, 300.0])
def test_simnorm_of_large_inputs(shift):
    """What counts is how far apart the numbers of a group are, not how large they are."""
    x = (shift + torch.randn(3, 16, generator=torch.Generator().manual_seed(2))).requires_grad_()
    torch.testing.assert_close(simnorm(x, 8), reference_simnorm(x, 8), rtol=1e-5, atol=1e-6)
    ours, theirs = (torch.autograd.grad(f(x, 8)[:, ::3].sum(), x)[0] for f in (simnorm, reference_simnorm))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_simnorm_is_not_narrowed():
    """Its sums are matrix products, which autocast would round to 8 bits, and their backward pass with them."""
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.arange(64.0)
    expected = [simnorm(x, 8), torch.autograd.grad((simnorm(x, 8) * weight).sum(), x)[0]]
    with torch.autocast("cpu", torch.bfloat16):
        found = [simnorm(x, 8), torch.autograd.grad((simnorm(x, 8) * weight).sum(), x)[0]]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_simnorm_survives_huge_inputs():
    y = simnorm(torch.tensor([[1e6, 0.0, -1e6, 0.0]]), 4)
    torch.testing.assert_close(y, torch.tensor([[1.0, 0.0, 0.0, 0.0]]))


def test_simnorm_of_nothing():
    assert simnorm(torch.empty(0, 16), 8).shape == (0, 16)


def test_jacobians_of_batches():
    """Gradient diagnostics take Jacobians with torch.func."""
    x = torch.randn(3, 8, dtype=torch.float64)
    for ours, theirs in ((mish, F.mish), (lambda v: simnorm(v, 4), lambda v: reference_simnorm(v, 4))):
        found = torch.func.vmap(torch.func.jacrev(ours))(x)
        torch.testing.assert_close(found, torch.func.vmap(torch.func.jacrev(theirs))(x))


def test_a_second_derivative_of_mish_is_refused():
    x = torch.ones(1, requires_grad=True)
    (slope,) = torch.autograd.grad(mish(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        slope.backward()
