from __future__ import annotations

import torch

from mmkd_plugin.losses.numerics.vectors import unit_samples


def test_unit_samples_brings_each_sample_to_unit_length():
    x = torch.randn(3, 2, 4, 5)
    x[1] = 0
    x[2] *= 1e-3
    x = x.requires_grad_()
    out = unit_samples(x)
    torch.testing.assert_close(out[0], (x[0] / x[0].square().sum().sqrt()).flatten())
    torch.testing.assert_close(out.norm(dim=1), torch.tensor([1.0, 0.0, 1.0]))
    out.pow(3).sum().backward()
    assert x.grad[0].any() and x.grad[2].any() and x.grad.isfinite().all()
    assert not torch.autograd.grad(unit_samples(x)[1].sum(), x)[0].any()  # not 1e12
    assert unit_samples(x[:0]).shape == (0, 40)
