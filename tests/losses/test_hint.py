from __future__ import annotations

import numpy as np
import pytest
import torch
from detection_contract import assigned_for
from loss_contract import LossContract, alike, random_pair, value_and_grad
from test_box_distribution import boxes_of, iou_of

from mmkd_plugin.losses import HintLoss
from mmkd_plugin.losses.numerics.compiling import formulas_as_written


class TestHintLoss(LossContract):
    name = 'HintLoss'
    variants = (dict(),)
    pairs = alike((2, 3, 4, 4), (1, 2, 5, 3), (2, 3, 1, 1), (1, 1, 1, 6), (3, 5))

    @staticmethod
    def reference(student, teacher):
        total = 0.0
        for index in np.ndindex(student.shape):
            total += (student[index] - teacher[index]) ** 2
        return total / student.size


def test_known_value():
    student = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(2, 1, 1, 2).requires_grad_()
    teacher = torch.tensor([1.0, 0.0, 6.0, 3.0]).view(2, 1, 1, 2)
    value, grad = value_and_grad(HintLoss(), student, teacher)
    assert value.item() == (0 + 4 + 9 + 1) / 4
    assert grad.flatten().tolist() == [0, 1, -1.5, 0.5]  # 2/4 of the gap


@pytest.mark.parametrize('copies', [2, 5])
def test_the_size_of_batch_map_and_channels_does_not_matter(copies):
    student, teacher = random_pair(((2, 3, 4, 4), (2, 3, 4, 4)))
    expected = HintLoss()(student, teacher)
    for dim in range(4):
        times = [copies if d == dim else 1 for d in range(4)]
        torch.testing.assert_close(
            HintLoss()(student.repeat(times), teacher.repeat(times)), expected
        )


def test_close_maps_keep_their_digits():
    teacher = torch.full((1, 4, 64, 64), 1e4)
    student = teacher + 2**-9  # a step of float32 at 1e4 is 2^-10
    assert HintLoss()(student, teacher).item() == pytest.approx(2**-18, rel=1e-6)


SIZES = (8, 9), (4, 5), (2, 1)


def pyramid(each, dtype=torch.float64):
    """Maps of three images, with an assigner's results for ``each`` anchors at a position."""
    pairs = [random_pair(((3, 2, *size),) * 2, dtype, seed=n) for n, size in enumerate(SIZES)]
    found = assigned_for([torch.zeros(3, 2 * each, *size) for size in SIZES], each)
    priors = [level * 2**i for i, level in enumerate(found.priors)]
    return *(list(maps) for maps in zip(*pairs)), found._replace(priors=priors)


def near_objects(assigned, each, share):
    """Levels of (N, H*W), anchor by anchor and object by object."""
    near = [np.zeros((3, height * width), bool) for height, width in SIZES]
    for n, boxes in enumerate(boxes_of(3)):
        for box in boxes.numpy():
            ious = [[iou_of(a, box) for a in level[n].numpy()] for level in assigned.priors]
            largest = max(max(level) for level in ious)
            for level, values in zip(near, ious):
                for i, iou in enumerate(values):
                    level[n, i // each] |= iou > share * largest
    return near


@pytest.mark.parametrize(('each', 'share'), [(1, 0.5), (3, 0.5), (1, 0.9), (1, 0.0)])
def test_a_region_position_by_position(each, share):
    students, teachers, assigned = pyramid(each)
    expected, regions = 0.0, near_objects(assigned, each, share)
    for near, student, teacher in zip(regions, students, teachers):
        gap = (student.detach() - teacher).flatten(2).numpy()
        squares = [gap[n, :, i] ** 2 for n, i in zip(*near.nonzero())]
        expected += np.mean(squares) if squares else 0
    assert any(near[0].any() and not near[0].all() for near in regions)
    assert not any(near[1].any() for near in regions)  # an image without objects

    loss, boxes = HintLoss(region=share), boxes_of(3)
    assert loss.needs == ('assigned', 'padded_boxes') and HintLoss().needs == ()
    value = loss(students, teachers, assigned, boxes)
    assert value.item() == pytest.approx(expected, rel=1e-9)
    grads = torch.autograd.grad(value, students)
    for near, grad in zip(regions, grads):
        assert np.array_equal(grad.flatten(2).any(1).numpy(), near)
    with formulas_as_written():
        torch.testing.assert_close(
            torch.autograd.grad(loss(students, teachers, assigned, boxes), students), grads
        )
    weighted = HintLoss(region=share, loss_weight=[1, 0, 2])(students, teachers, assigned, boxes)
    assert 0 < weighted < 2 * value

    def of_maps(*maps):
        return loss(list(maps), teachers, assigned, boxes)

    assert torch.autograd.gradcheck(of_maps, students)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_a_region_in_low_precision(dtype):
    students, teachers, assigned = pyramid(1, dtype)
    loss, boxes = HintLoss(region=0.5), boxes_of(3)
    value = loss(students, teachers, assigned, boxes)
    exact = [[x.double() for x in maps] for maps in (students, teachers)]
    expected = loss(*exact, assigned, boxes)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_region_without_objects_costs_nothing():
    students, teachers, assigned = pyramid(1)
    value = HintLoss(region=0.5)(students, teachers, assigned, [torch.zeros(0, 4)] * 3)
    assert value.item() == 0 and not any(g.any() for g in torch.autograd.grad(value, students))


def test_a_region_needs_the_levels_and_anchors_of_a_head():
    students, teachers, assigned = pyramid(1)
    loss, boxes = HintLoss(region=0.5), boxes_of(3)
    with pytest.raises(ValueError, match=r'region=0.5 needs a map for each level.*\(3, 72\)'):
        loss(students[:2], teachers[:2], assigned, boxes)
    narrow = [[x[..., :5] for x in maps] for maps in (students, teachers)]  # 40 places of 72
    with pytest.raises(ValueError, match=r'the maps are \[\(3, 2, 8, 5\)'):
        loss(*narrow, assigned, boxes)
    points = assigned._replace(priors=[x[..., [0, 1, 0, 1]] for x in assigned.priors])
    with pytest.raises(ValueError, match='this head has points; leave `region` out'):
        loss(students, teachers, points, boxes)
    with pytest.raises(ValueError, match='needs `assigned` and `padded_boxes`'):
        loss(students, teachers)


@pytest.mark.parametrize(
    ('share', 'error'), [(1, ValueError), (-0.1, ValueError), ('1', TypeError)]
)
def test_the_share_of_a_region_is_checked(share, error):
    with pytest.raises(error, match='region must be'):
        HintLoss(region=share)
