"""ReviewFusion: alone, and as the connector of all maps of a term."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmkd_plugin.connectors import ReviewFusion
from mmkd_plugin.terms import Term

SHAPES = ((2, 4, 8, 10), (2, 6, 4, 5), (2, 3, 2, 3))


def maps(channels=None, requires_grad=False, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = [(n, c, h, w) for (n, _, h, w), c in zip(SHAPES, channels or (4, 6, 3))]
    return [torch.randn(shape, dtype=dtype, requires_grad=requires_grad) for shape in shapes]


def test_the_formula():
    fusion = ReviewFusion([4, 6, 3], [5, 7, 9], mid_channels=8).double()
    students = maps()
    got = fusion(students)

    def normed(x, conv):
        x = F.conv2d(x, conv[0].weight, padding=conv[0].weight.shape[-1] // 2)
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
        return (x - mean) / (var + 1e-5).sqrt()

    y = None
    for level in (2, 1, 0):
        z = normed(students[level], fusion.inner[level])
        if y is not None:
            rows = torch.arange(z.shape[2]) * y.shape[2] // z.shape[2]
            columns = torch.arange(z.shape[3]) * y.shape[3] // z.shape[3]
            y = y[:, :, rows][:, :, :, columns]
            layer = fusion.attention[level]
            a = torch.einsum('oc,nchw->nohw', layer.weight[:, :, 0, 0], torch.cat([z, y], 1))
            a = 1 / (1 + (-a - layer.bias.view(1, 2, 1, 1)).exp())
            z = z * a[:, :1] + y * a[:, 1:]
        y = z
        torch.testing.assert_close(got[level], normed(z, fusion.outer[level]))


def test_gradients_reach_every_level_and_weight():
    students = maps(requires_grad=True)
    fusion = ReviewFusion([4, 6, 3], [5, 7, 9], mid_channels=8).double()
    out = fusion(students)
    sum((x * torch.randn_like(x)).sum() for x in out).backward()
    assert all(x.grad.any() for x in students)
    assert all(p.grad.any() for p in fusion.parameters())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (([4, 4], [4]), 'must be equally many, got 2 and 1'),
        (([4], [4], 0), 'mid_channels must be at least 1, got 0'),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ReviewFusion(*arguments)


def term(**changes):
    config = dict(
        tap=['a', 'b', 'c'],
        connector=dict(type='mmkd_plugin.ReviewFusion', mid_channels=8),
        loss=dict(type='mmkd_plugin.ReviewLoss'),
        **changes,
    )
    return Term.from_config('review', config, ['teacher'])


def test_one_connector_for_all_maps_of_a_term():
    students = maps(requires_grad=True, dtype=torch.float32)
    teachers = maps((5, 7, 9), dtype=torch.float32)
    teachers[1] = torch.randn(2, 7, 6, 5)  # the fused map is resized to it
    one = term()
    one.connect([x.detach() for x in students], teachers)
    assert one.training
    assert one.describe_connectors() == 'ReviewFusion of 3 maps, 8 channels'
    (fusion,) = one.connectors
    assert all(int(m.num_batches_tracked) == 0 for m in fusion.modules() if hasattr(m, 'momentum'))
    one(students, teachers).backward()
    assert all(x.grad.any() for x in students) and all(p.grad.any() for p in fusion.parameters())
    fused = copy.deepcopy(fusion)([x.detach() for x in students])
    fused[1] = F.interpolate(fused[1], size=(6, 5), mode='bilinear', align_corners=False)
    expected = one.loss(fused, teachers)
    assert one([x.detach() for x in students], teachers).item() == pytest.approx(expected.item())
    with pytest.raises(ValueError, match='where the dry forward at build time gave 3'):
        one(students[:2], teachers[:2])


def test_a_single_map_is_fused_too():
    one = Term.from_config(
        'review',
        dict(
            tap='a',
            connector=dict(type='mmkd_plugin.ReviewFusion', mid_channels=8),
            loss=dict(type='mmkd_plugin.ReviewLoss'),
        ),
        ['teacher'],
    )
    (student, *_), (teacher, *_) = maps(dtype=torch.float32), maps((5, 7, 9), dtype=torch.float32)
    one.connect(student, teacher)
    assert one(student, teacher).isfinite() and isinstance(one.connectors[0], nn.Module)


def test_a_list_of_connectors_cannot_hold_one_for_all():
    students, teachers = maps(dtype=torch.float32), maps((5, 7, 9), dtype=torch.float32)
    one = Term.from_config(
        'review',
        dict(
            tap=['a', 'b', 'c'],
            connector=[dict(type='mmkd_plugin.ReviewFusion')] * 3,
            loss=dict(type='mmkd_plugin.ReviewLoss'),
        ),
        ['teacher'],
    )
    with pytest.raises(ValueError, match='ReviewFusion takes all maps together: give one dict'):
        one.connect(students, teachers)
