from __future__ import annotations

import pytest
import torch

from mmkd_plugin.losses.numerics.boxes import distance_iou, generalised_iou, overlap

A = torch.tensor([0.0, 0, 4, 2])


@pytest.mark.parametrize(
    ('box', 'iou', 'generalised', 'distance'),
    [
        ((0, 0, 4, 2), 1, 1, 1),
        ((2, 0, 6, 2), 1 / 3, 1 / 3, 1 / 3 - 4 / 40),
        ((8, 0, 12, 2), 0, -1 / 3, -64 / 148),
        ((1, 0, 3, 2), 0.5, 0.5, 0.5),
        ((4, 2, 4, 2), 0, 0, -5 / 20),  # a point in a corner
        ((3, 1, 1, 1), 0, 0, 0),  # inside out
    ],
)
def test_overlaps_by_hand(box, iou, generalised, distance):
    for pair in ((A, torch.tensor(box).float()), (torch.tensor(box).float(), A)):
        assert generalised_iou(*pair).item() == pytest.approx(generalised, abs=1e-6)
        assert [x.item() for x in distance_iou(*pair)] == pytest.approx([iou, distance], abs=1e-6)
        assert (overlap(*pair)[0] / overlap(*pair)[1]).item() == pytest.approx(iou)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('scale', [0.0, 1e-9, 1.0, 1e4])
def test_any_corners_give_a_number_in_range_and_a_finite_slope(scale, dtype):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 500, 4, generator=generator, dtype=torch.float64) * scale).to(dtype)
    a.requires_grad_()
    value = generalised_iou(a, b)
    value.sum().backward()
    assert (value >= -1 - 1e-6).all() and (value <= 1 + 1e-6).all() and a.grad.isfinite().all()


def test_equal_boxes_and_a_distance_between_others():
    x = torch.tensor([[5.0, 5, 5, 5], [1, 2, 3, 4]], requires_grad=True)
    generalised_iou(x, x.detach()).sum().backward()
    assert x.grad.isfinite().all()
