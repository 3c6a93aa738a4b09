from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from allocations import Allocations
from learning_contract import LearningContract, set_up
from loss_contract import alike, random_pair

from mmkd_plugin.losses import FocalGlobalLoss
from mmkd_plugin.losses.focal_global import scale_masks
from mmkd_plugin.losses.numerics.boxes import checked_boxes, pad_boxes

SIZE = (60, 90)
BOXES = [
    [[3, 5, 40, 20], [30.5, 2, 89, 59], [50, 50, 50, 50]],
    [],
    [[0, 0, 90, 60], [10, 10, 30, 41]],
]


def boxes_of(batch, dtype=torch.float64):
    return [torch.tensor(BOXES[n % 3], dtype=dtype).view(-1, 4) for n in range(batch)]


PADDED = pad_boxes(boxes_of(7))


def masks_of(boxes, size, height, width):
    """Box after box, as the authors' code does, with the padded size for the unpadded one."""
    front = np.zeros((height, width))
    for x1, y1, x2, y2 in boxes:
        left, right = math.floor(x1 * width / size[1]), math.ceil(x2 * width / size[1])
        top, bottom = math.floor(y1 * height / size[0]), math.ceil(y2 * height / size[0])
        share = 1 / (bottom + 1 - top) / (right + 1 - left)
        part = front[top : bottom + 1, left : right + 1]
        np.maximum(part, share, out=part)
    behind = np.where(front > 0, 0.0, 1.0)
    return front, behind / max(behind.sum(), 1)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def context(block, x):
    """x of one image, (C, H, W)."""
    k, w1, w2 = (
        [p.detach().numpy() for p in m.parameters()] for m in (block.k, block.w1, block.w2)
    )
    gain, shift = (p.detach().numpy().ravel() for p in block.norm.parameters())
    flat = x.reshape(len(x), -1)
    drawn = flat @ softmax(k[0][0, :, 0, 0] @ flat)
    hidden = w1[0][:, :, 0, 0] @ drawn + w1[1]
    hidden = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5) * gain + shift
    return x + (w2[0][:, :, 0, 0] @ np.maximum(hidden, 0) + w2[1])[:, None, None]


class TestFocalGlobalLoss(LearningContract):
    name = 'FocalGlobalLoss'
    has_fast_form = True
    variants = (
        dict(alpha=1.0, beta=0.5, gamma=0.3, lam=0.2),
        dict(temperature=2.0, alpha=0.3, beta=3, gamma=0.1, lam=1e-3),
    )
    pairs = alike((2, 6, 3, 4), (2, 8, 2, 5), (2, 4, 1, 1), (2, 4, 1, 6))

    @staticmethod
    def reference(student, teacher, temperature=0.5, alpha=1e-3, beta=5e-4, gamma=5e-4, lam=5e-6):
        x = torch.tensor(student)
        loss = set_up(FocalGlobalLoss(), x, x)
        total = 0.0
        channels, height, width = student.shape[1:]
        for s, t, boxes in zip(student, teacher, boxes_of(len(student))):
            front, behind = masks_of(boxes.tolist(), SIZE, height, width)
            (a_s, c_s), (a_t, c_t) = (
                (
                    height * width * softmax(np.abs(x).mean(0) / temperature),
                    channels * softmax(np.abs(x).mean((1, 2)) / temperature),
                )
                for x in (s, t)
            )
            gap = (s - t) ** 2 * a_t * c_t[:, None, None]
            total += alpha * (front * gap).sum() + beta * (behind * gap).sum()
            total += gamma * (np.abs(a_s - a_t).sum() + np.abs(c_s - c_t).sum())
            apart = context(loss.of_student[0], s) - context(loss.of_teacher[0], t)
            total += lam * (apart**2).sum()
        return total / len(student)

    def given(self, student):
        batch = student.shape[0] if isinstance(student, torch.Tensor) and student.dim() else 1
        return dict(padded_boxes=PADDED[:batch], image_size=SIZE)


@pytest.mark.parametrize('size', [(1, 1), (6, 9), (7, 5), (15, 20)])
def test_masks(size):
    x = torch.zeros(3, 2, *size, dtype=torch.float64)
    front, behind = scale_masks(checked_boxes(boxes_of(3), x), SIZE, x)
    for n, boxes in enumerate(boxes_of(3)):
        expected = masks_of(boxes.tolist(), SIZE, *size)
        np.testing.assert_allclose(front[n, 0].numpy(), expected[0], rtol=1e-12)
        np.testing.assert_allclose(behind[n, 0].numpy(), expected[1], rtol=1e-12)
    assert not front[1].any() and behind[1].sum() == pytest.approx(1)


def test_a_padded_image_has_its_boxes_where_they_are():
    """A box of 32 to 64 pixels covers positions 2 to 4 of stride 16, whatever was padded."""
    x = torch.zeros(1, 1, 8, 16)
    boxes = checked_boxes([torch.tensor([[32.0, 32.0, 64.0, 64.0]])], x)
    front, _ = scale_masks(boxes, (128, 256), x)
    assert torch.nonzero(front[0, 0]).tolist() == [[r, c] for r in (2, 3, 4) for c in (2, 3, 4)]


def test_the_smallest_box_counts_and_boxes_outside_do_nothing():
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    boxes = torch.tensor([[0.0, 0, 7, 7], [2, 2, 3, 3], [-9, -9, -5, -5], [20, 20, 30, 30]])
    front, behind = scale_masks(checked_boxes([boxes], x), (8, 8), x)
    assert front[0, 0, 2, 2] == 1 / 4 and front[0, 0, 0, 0] == 1 / 64 and not behind.any()


def test_without_any_box_and_image():
    student, teacher = random_pair(((2, 4, 5, 5), (2, 4, 5, 5)))
    loss = set_up(FocalGlobalLoss(), student, teacher)
    value = loss(student, teacher, [torch.zeros(0, 4)] * 2, SIZE)
    assert value.isfinite() and value > 0


def test_many_boxes_cost_few_operations():
    student, teacher = random_pair(((2, 4, 16, 16), (2, 4, 16, 16)), torch.float32)
    loss = set_up(FocalGlobalLoss(), student, teacher)
    calls = []
    for count in (1, 200):
        boxes = [torch.rand(count, 4).sort(1).values * 60] * 2
        with Allocations() as made:
            loss(student, teacher, boxes, SIZE)
        calls.append(made.calls)
    assert calls[1] <= calls[0] + 2


def test_it_starts_without_context():
    student, teacher = random_pair(((2, 4, 5, 5), (2, 4, 5, 5)))
    loss = FocalGlobalLoss(alpha=0, beta=0, gamma=0, lam=1)
    loss.setup([4], [4])
    value = loss.double()(student, teacher, boxes_of(2), SIZE)
    assert value.item() == pytest.approx((student - teacher).square().sum().item() / 2)


def test_the_teachers_block_learns_on_the_teacher():
    student, teacher = random_pair(((2, 4, 5, 5), (2, 4, 5, 5)))
    loss = set_up(FocalGlobalLoss(), student, teacher)
    loss(student, teacher, boxes_of(2), SIZE).backward()
    assert all(p.grad.any() for p in loss.of_teacher[0].w1.parameters())


def test_boxes_are_checked():
    x = torch.ones(2, 3, 4, 4)
    loss = set_up(FocalGlobalLoss(), x, x)
    for wrong in (
        [torch.zeros(1, 4)],
        [torch.zeros(4)] * 2,
        [torch.zeros(2, 5)] * 2,
        torch.zeros(1, 2, 4),
    ):
        with pytest.raises(ValueError, match='boxes do not fit the maps: boxes'):
            loss(x, x, wrong, SIZE)


@pytest.mark.parametrize('name', ['alpha', 'beta', 'gamma', 'lam', 'temperature'])
def test_factors_are_checked(name):
    for value in (-1, math.nan, '1', None):
        with pytest.raises((TypeError, ValueError), match=name):
            FocalGlobalLoss(**{name: value})
