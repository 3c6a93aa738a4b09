from __future__ import annotations

import numpy as np
import pytest
import torch
from learning_contract import SEED, LearningContract, set_up
from loss_contract import alike, random_pair

from mmkd_plugin.losses import MaskedGenerationLoss
from mmkd_plugin.losses.masked_generation import kept
from mmkd_plugin.losses.numerics.drawing import some_of, uniform
from mmkd_plugin.terms.compiled import compiled


def convolved(x, weight, bias):
    """A 3×3 convolution with zeros around, in plain loops over the kernel."""
    _, _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(x), len(weight), height, width)) + bias[:, None, None]
    for row in range(3):
        for column in range(3):
            window = padded[:, :, row : row + height, column : column + width]
            out += np.einsum('oc,nchw->nohw', weight[:, :, row, column], window)
    return out


def generated(loss, student, seen):
    (first, _, second) = loss.generators[0]
    weights = [p.detach().numpy() for m in (first, second) for p in (m.weight, m.bias)]
    hidden = convolved(student * seen, *weights[:2])
    return convolved(np.maximum(hidden, 0), *weights[2:])


class TestMaskedGenerationLoss(LearningContract):
    name = 'MaskedGenerationLoss'
    variants = (dict(), dict(mask_ratio=0), dict(mask='channel', mask_ratio=0.3))
    pairs = alike((2, 3, 4, 5), (1, 4, 6, 7), (2, 3, 1, 1), (3, 1, 1, 6))

    @staticmethod
    def reference(student, teacher, mask_ratio=0.65, mask='position'):
        x = torch.tensor(student)
        loss = set_up(MaskedGenerationLoss(), x, x)
        seen = kept(x, SEED, mask_ratio, mask).numpy()
        return ((generated(loss, student, seen) - teacher) ** 2).sum() / len(student)

    def given(self, student):
        return dict(seed=SEED)

    @pytest.mark.parametrize('kind', [list, tuple])
    def test_sequence_is_the_sum_over_its_pairs(self, kind, monkeypatch):
        monkeypatch.setattr(type(self), 'variants', (dict(mask_ratio=0),))  # masks differ
        super().test_sequence_is_the_sum_over_its_pairs(kind)

    def test_loss_weight_for_each_map(self, monkeypatch):
        monkeypatch.setattr(type(self), 'variants', (dict(mask_ratio=0),))
        super().test_loss_weight_for_each_map()


@pytest.mark.parametrize(
    ('mask', 'shape'), [('position', (8, 1, 40, 50)), ('channel', (8, 40, 1, 1))]
)
def test_what_is_hidden(mask, shape):
    x = torch.zeros(8, 40, 40, 50, dtype=torch.bfloat16)
    found = [kept(x, SEED + i, 0.65, mask, stream=n) for i in range(2) for n in range(2)]
    assert {tuple(m.shape) for m in found} == {shape} and found[0].dtype == x.dtype
    for i, one in enumerate(found):
        assert set(one.unique().tolist()) == {0, 1}
        assert one.float().mean() == pytest.approx(0.35, abs=5 * (0.65 * 0.35 / one.numel()) ** 0.5)
        assert not any(torch.equal(one, other) for other in found[:i])


def test_random_numbers_are_uniform_unrelated_and_the_same_when_compiled():
    seeds = [torch.tensor(n) for n in (0, 1, 2, 2**62, -5)]
    rows = torch.stack([uniform(seed, (20000,), s) for seed in seeds for s in range(3)])
    assert rows.min() >= 0 and rows.max() < 1
    assert (rows.mean(1) - 0.5).abs().max() < 0.012 and (rows.var(1) - 1 / 12).abs().max() < 0.004
    related = torch.corrcoef(torch.cat([rows, rows.roll(1, 1)])) - torch.eye(30)
    assert related.abs().max() < 0.04
    call = torch.compile(uniform, backend='eager', fullgraph=True)
    assert torch.equal(call(seeds[3], (7, 11), 2), uniform(seeds[3], (7, 11), 2))
    for place in range(1, 4):
        x = mixed((mixed(mixed(2**62) + 2) + place * 0x9E3779B97F4A7C15) % 2**64)
        assert uniform(seeds[3], (3,), 2)[place - 1].item() == (x >> 40) / 2**24


def mixed(x):
    """SplitMix64, as its authors write it."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def test_some_of_many():
    found = some_of(SEED, 100, 30)
    assert len(set(found.tolist())) == 30 and found.max() < 100 and found.tolist() != sorted(found)
    assert sorted(some_of(SEED, 5, 30).tolist()) == [*range(5)]


def test_the_seed_decides():
    student, teacher = random_pair(((2, 3, 8, 8), (2, 3, 8, 8)))
    loss = set_up(MaskedGenerationLoss(), student, teacher)
    values = [loss(student, teacher, torch.tensor(n)).item() for n in (1, 1, 2)]
    assert values[0] == values[1] != values[2]
    drawn = [loss(student, teacher).item() for _ in range(2)]
    assert drawn[0] != drawn[1]


def test_the_seed_decides_in_one_graph():
    student, teacher = random_pair(((2, 3, 8, 8), (2, 3, 8, 8)))
    loss, seed = set_up(MaskedGenerationLoss(), student, teacher), torch.tensor(1)
    torch._dynamo.reset()
    call = compiled(loss, 'eager')
    assert call(student, teacher, seed).item() == pytest.approx(loss(student, teacher, seed).item())


def test_hidden_positions_get_no_gradient_and_all_channels_of_the_others_do():
    student, teacher = random_pair(((1, 3, 8, 8), (1, 3, 8, 8)))
    loss = set_up(MaskedGenerationLoss(), student, teacher)
    loss(student, teacher, SEED).backward()
    seen = kept(student, SEED, 0.65).bool().expand_as(student)
    assert not student.grad[~seen].any() and student.grad[seen].all()


def test_maps_with_fewer_modules():
    x = torch.ones(1, 3, 4, 4)
    loss = set_up(MaskedGenerationLoss(), x, x)
    with pytest.raises(ValueError, match='there are modules for 1 maps, and 2 maps'):
        loss([x, x], [x, x], SEED)


@pytest.mark.parametrize('ratio', [-0.1, 1, float('nan'), '0.5', True])
def test_mask_ratio_is_checked(ratio):
    with pytest.raises((TypeError, ValueError), match='mask_ratio must be'):
        MaskedGenerationLoss(mask_ratio=ratio)


def test_mask_is_checked():
    with pytest.raises(ValueError, match="mask must be one of 'position', 'channel'"):
        MaskedGenerationLoss(mask='pixel')
