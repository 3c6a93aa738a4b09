from __future__ import annotations

import numpy as np
import pytest
import torch
from learning_contract import LearningContract, set_up
from loss_contract import random_pair

from mmkd_plugin.losses import AttentionGuidedLoss
from mmkd_plugin.losses.attention_guided import NonLocalBlock


def weights_of(layer):
    weight, bias = (p.detach().numpy() for p in (layer.weight, layer.bias))
    return (weight[:, :, 0, 0] if weight.ndim == 4 else weight), bias


def apply(layer, x):
    """A 1×1 convolution or a linear layer, on (N, C, ...)."""
    weight, bias = weights_of(layer)
    bias = bias.reshape(-1, *[1] * (x.ndim - 2))
    return np.einsum('oc,nc...->no...', weight, x) + bias


def pooled(x, pool):
    kernel = [min(pool, side) for side in x.shape[2:]]
    rows, columns = (side // k for side, k in zip(x.shape[2:], kernel))
    out = np.zeros((*x.shape[:2], rows, columns))
    for r, c in np.ndindex(rows, columns):
        part = x[:, :, r * kernel[0] :, c * kernel[1] :][:, :, : kernel[0], : kernel[1]]
        out[:, :, r, c] = part.max((2, 3))
    return out.reshape(*x.shape[:2], -1)


def non_local(block, x):
    """Position by position."""
    phi, g = (pooled(apply(layer, x), block.pool) for layer in (block.phi, block.g))
    theta, drawn = apply(block.theta, x), None
    drawn = np.zeros_like(theta)
    for n, r, c in np.ndindex(len(x), *x.shape[2:]):
        like = phi[n].T @ theta[n, :, r, c] / phi.shape[2]
        drawn[n, :, r, c] = g[n] @ like
    y = apply(block.w, drawn)
    mean, var = y.mean((0, 2, 3), keepdims=True), y.var((0, 2, 3), keepdims=True)
    gain, shift = (p.detach().numpy()[:, None, None] for p in block.norm.parameters())
    return x + (y - mean) / np.sqrt(var + 1e-5) * gain + shift


def attention(x, temperature):
    size = np.exp(np.abs(x).mean(1) / temperature)
    return x[0, 0].size * size / size.sum((1, 2), keepdims=True)


def smoothed(layer, x):
    """A 3×3 convolution of one channel with zeros around it."""
    weight, bias = (p.detach().numpy() for p in (layer.weight, layer.bias))
    around = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    out = np.full_like(x, bias[0])
    for i, j in np.ndindex(3, 3):
        out += weight[0, 0, i, j] * around[:, i : i + x.shape[1], j : j + x.shape[2]]
    return out


class TestAttentionGuidedLoss(LearningContract):
    name = 'AttentionGuidedLoss'
    variants = (dict(pool=2), dict(reduction=2, pool=3, temperature=2.0))
    pairs = (
        ((2, 4, 4, 5), (2, 4, 4, 5)),
        ((2, 6, 5, 3), (2, 9, 5, 3)),
        ((2, 4, 1, 6), (2, 2, 1, 6)),
        ((3, 8, 2, 3), (3, 5, 2, 3)),
    )
    same_channels = False

    def test_gradcheck(self):
        """With an attention that does not depend on the map: its gradient is left out."""
        loss = self.build(pool=2, temperature=1e3)
        for seed, shapes in enumerate(self.pairs):
            self.gradcheck(loss, *random_pair(shapes, seed=seed), atol=1e-7)

    @staticmethod
    def reference(student, teacher, reduction=4, pool=8, temperature=0.5):
        loss = AttentionGuidedLoss(reduction, pool, temperature)
        layers = set_up(loss, torch.tensor(student), torch.tensor(teacher)).adaptions[0]
        m = (attention(student, temperature) + attention(teacher, temperature)) / 2
        places = np.sqrt(m)[:, None] * (teacher - apply(layers.values, student))
        channels = teacher.mean((2, 3)) - apply(layers.channels, student.mean((2, 3)))
        positions = teacher.mean(1) - smoothed(layers.positions, student.mean(1))
        related = apply(layers.relations, non_local(layers.of_student, student))
        relations = non_local(layers.of_teacher, teacher) - related
        parts = ((7e-5, places), (4e-3, channels), (4e-3, positions), (7e-5, relations))
        return sum(factor * np.sqrt((gap**2).sum()) for factor, gap in parts)


def test_the_block_of_the_teacher_learns():
    student, teacher = random_pair(((2, 4, 5, 5), (2, 6, 5, 5)))
    loss = set_up(AttentionGuidedLoss(pool=2), student, teacher)
    loss(student, teacher).backward()
    assert all(
        p.grad is not None and p.grad.any() for p in loss.adaptions[0].of_teacher.parameters()
    )


def test_maps_that_agree_have_a_gradient():
    """No part of it is the square root of 0, whose slope is none."""
    x = torch.zeros(2, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    loss = set_up(AttentionGuidedLoss(pool=2), x, x)
    for parameter in loss.parameters():
        parameter.data.zero_()
    value = loss(x, x.detach())
    value.backward()
    assert value.item() == 0 and not x.grad.isnan().any()


def test_numbers_for_each_map():
    loss = AttentionGuidedLoss(reduction=[4, 2], pool=[8, 1])
    loss.setup([8, 8], [16, 16])
    blocks = [layers.of_teacher for layers in loss.adaptions]
    assert [block.theta.out_channels for block in blocks] == [4, 8]
    assert [block.pool for block in blocks] == [8, 1]
    with pytest.raises(ValueError, match='reduction has 2 numbers for 1 maps'):
        loss.setup([8], [8])


def test_a_block_starts_by_giving_its_input():
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(NonLocalBlock(4, reduction=2, pool=2)(x), x)


def test_few_channels_and_small_maps():
    block = NonLocalBlock(2, reduction=4, pool=8)
    assert block(torch.randn(2, 2, 3, 3)).shape == (2, 2, 3, 3)
    assert block(torch.randn(1, 2, 1, 1)).isfinite().all()


@pytest.mark.parametrize(
    'options', [dict(reduction=0), dict(pool=2.0), dict(pool=[0]), dict(reduction=[4, True])]
)
def test_whole_numbers(options):
    with pytest.raises(ValueError, match='must be at least 1 and whole'):
        AttentionGuidedLoss(**options)
