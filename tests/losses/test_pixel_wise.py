from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loss_contract import LossContract, alike, random_pair, value_and_grad

from mmkd_plugin.losses import PixelWiseLoss


def mean_kl(student, teacher, tau, labels=None, ignore_index=None, sigmoid=False):
    """``tau^2 * mean over the positions of a map of KL`` over the channels, or of each of them."""
    total, count = 0.0, 0
    for n in range(student.shape[0]):
        for y in range(student.shape[2]):
            for x in range(student.shape[3]):
                if labels is not None and labels[n, y, x] == ignore_index:
                    continue
                s, t = student[n, :, y, x] / tau, teacher[n, :, y, x] / tau
                count += 1
                if sigmoid:
                    for c in range(s.size):
                        for sign in (-1, 1):  # yes, no
                            q, p = 1 / (1 + np.exp(sign * s[c])), 1 / (1 + np.exp(sign * t[c]))
                            total += p * (np.log(p) - np.log(q))
                    continue
                q, p = np.exp(s) / np.exp(s).sum(), np.exp(t) / np.exp(t).sum()
                total += sum(p[c] * (np.log(p[c]) - np.log(q[c])) for c in range(p.size))
    return tau**2 * total / max(count, 1)


class TestPixelWiseLoss(LossContract):
    name = 'PixelWiseLoss'
    variants = (dict(), dict(tau=4), dict(sigmoid=True), dict(tau=4, sigmoid=True))
    pairs = alike((2, 3, 4, 4), (1, 2, 5, 3), (2, 3, 1, 1), (1, 1, 2, 3))

    @staticmethod
    def reference(student, teacher, tau=1.0, sigmoid=False):
        return mean_kl(student, teacher, tau, sigmoid=sigmoid)


SHAPE = (2, 3, 4, 5)


@pytest.fixture
def labels():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 3, (SHAPE[0], *SHAPE[2:]), generator=generator)


@pytest.mark.parametrize('tau', [1.0, 4.0])
@pytest.mark.parametrize('dtype', [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize('sigmoid', [False, True])
def test_ignored_positions_leave_sum_and_count(labels, tau, dtype, sigmoid):
    student, teacher = random_pair((SHAPE, SHAPE))
    loss = PixelWiseLoss(tau=tau, ignore_index=2, sigmoid=sigmoid)
    expected = mean_kl(student.detach().numpy(), teacher.numpy(), tau, labels.numpy(), 2, sigmoid)
    value = loss(student, teacher, labels.to(dtype))
    assert value.item() == pytest.approx(expected, rel=1e-9)
    value.backward()
    ignored = (labels == 2)[:, None].expand(SHAPE)
    assert ignored.any() and not student.grad[ignored].any() and student.grad[~ignored].all()
    assert torch.autograd.gradcheck(lambda s, t: loss(s, t, labels), (student, teacher))


def test_nothing_ignored_is_the_plain_loss(labels):
    student, teacher = random_pair((SHAPE, SHAPE))
    value = PixelWiseLoss(ignore_index=255)(student, teacher, labels)
    torch.testing.assert_close(value, PixelWiseLoss()(student, teacher))
    # labels without an ignore_index have no say
    torch.testing.assert_close(value, PixelWiseLoss()(student, teacher, labels))


@pytest.mark.parametrize('sigmoid', [False, True])
def test_everything_ignored_is_zero_with_a_graph(sigmoid):
    student, teacher = random_pair((SHAPE, SHAPE))
    labels = torch.full((2, 4, 5), 255)
    loss = PixelWiseLoss(ignore_index=255, sigmoid=sigmoid)
    value, grad = value_and_grad(lambda s, t: loss(s, t, labels), student, teacher)
    assert value.item() == 0 and not grad.any()


def test_one_channel_with_a_sigmoid_says_something(labels):
    student, teacher = random_pair(((2, 1, 4, 5), (2, 1, 4, 5)))
    assert PixelWiseLoss()(student, teacher).item() == 0
    loss = PixelWiseLoss(sigmoid=True, ignore_index=0)
    value, grad = value_and_grad(lambda s, t: loss(s, t, labels), student, teacher)
    assert value.item() > 0 and torch.equal(grad[:, 0] != 0, labels != 0)


def test_labels_are_resized_by_nearest(labels):
    student, teacher = random_pair((SHAPE, SHAPE))
    loss = PixelWiseLoss(ignore_index=0)
    large = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    torch.testing.assert_close(loss(student, teacher, large), loss(student, teacher, labels))
    odd = torch.randint(0, 3, (2, 9, 7))
    rows, columns = [int(i * 9 / 4) for i in range(4)], [int(i * 7 / 5) for i in range(5)]
    picked = odd[:, rows][:, :, columns]
    torch.testing.assert_close(loss(student, teacher, odd), loss(student, teacher, picked))


def test_ignore_index_out_of_the_range_of_the_labels_type():
    student, teacher = random_pair((SHAPE, SHAPE))
    labels = torch.full((2, 4, 5), 255, dtype=torch.uint8)  # as uint8, -1 is 255
    value = PixelWiseLoss(ignore_index=-1)(student, teacher, labels)
    torch.testing.assert_close(value, PixelWiseLoss()(student, teacher))


def test_labels_serve_every_map_of_a_sequence(labels):
    small = (2, 3, 2, 2)
    (s1, t1), (s2, t2) = random_pair((SHAPE, SHAPE)), random_pair((small, small))
    loss = PixelWiseLoss(ignore_index=1)
    expected = loss(s1, t1, labels) + loss(s2, t2, labels)
    torch.testing.assert_close(loss([s1, s2], [t1, t2], labels), expected)


def test_empty_batch_with_labels_of_another_size():
    student, teacher = random_pair(((0, *SHAPE[1:]), (0, *SHAPE[1:])))
    loss = PixelWiseLoss(ignore_index=0)
    labels = torch.zeros(0, 9, 7, dtype=torch.int64)
    value, grad = value_and_grad(lambda s, t: loss(s, t, labels), student, teacher)
    assert value.item() == 0 and grad.shape == student.shape


def test_labels_are_asked_for():
    student, teacher = random_pair((SHAPE, SHAPE))
    assert PixelWiseLoss(ignore_index=0).needs == ('labels',) and not PixelWiseLoss().needs
    with pytest.raises(ValueError, match='ignore_index=0 needs `labels`'):
        PixelWiseLoss(ignore_index=0)(student, teacher)


def test_labels_are_checked(labels):
    student, teacher = random_pair((SHAPE, SHAPE))
    loss = PixelWiseLoss(ignore_index=0)
    for wrong in (labels[:1], labels[:, None], labels[0], labels[:, :0]):
        with pytest.raises(ValueError, match='labels do not fit the maps') as error:
            loss(student, teacher, wrong)
        assert f'labels {tuple(wrong.shape)}, student {SHAPE}' in str(error.value)
    for wrong in (labels.double(), labels > 0):
        with pytest.raises(TypeError, match=f'labels must be integers, got {wrong.dtype}'):
            loss(student, teacher, wrong)


def test_at_the_size_of_the_images():
    student, teacher = random_pair((SHAPE, (2, 3, 2, 5)))
    labels = torch.randint(0, 3, (2, 9, 13), generator=torch.Generator().manual_seed(0))
    loss = PixelWiseLoss(ignore_index=2, upsample=True)
    assert loss.needs == ('labels', 'image_size') and not loss.needs_same_size
    large = [
        F.interpolate(x, (9, 13), mode='bilinear', align_corners=False) for x in (student, teacher)
    ]
    expected = mean_kl(*(x.detach().numpy() for x in large), 1.0, labels.numpy(), 2)

    def call(s, t):
        return loss(s, t, labels, (9, 13))

    value, grad = value_and_grad(call, student, teacher)
    assert value.item() == pytest.approx(expected, rel=1e-9) and grad.shape == SHAPE
    assert torch.autograd.gradcheck(call, (student, teacher))
    half = call(student.half(), teacher.half())
    assert half.dtype == torch.float32 and half.item() == pytest.approx(expected, rel=1e-2)
    assert PixelWiseLoss(upsample=True).needs == ('image_size',)
    with pytest.raises(ValueError, match='upsample=True needs `image_size`'):
        PixelWiseLoss(upsample=True)(student, teacher)
    empty = torch.zeros(0, *SHAPE[1:], requires_grad=True)
    PixelWiseLoss(upsample=True)(empty, empty, image_size=(9, 13)).backward()
    assert empty.grad.shape == empty.shape


def test_pixel_wise_loss_wants_maps():
    with pytest.raises(ValueError, match=r'expected two tensors \(N, C, H, W\)'):
        PixelWiseLoss()(torch.ones(2, 3), torch.ones(2, 3))


@pytest.mark.parametrize(('tau', 'error'), [(0, ValueError), (-2, ValueError), ('1', TypeError)])
def test_tau_is_checked(tau, error):
    with pytest.raises(error, match='tau must be'):
        PixelWiseLoss(tau=tau)


@pytest.mark.parametrize('index', [255.0, '255', True])
def test_ignore_index_is_checked(index):
    with pytest.raises(TypeError, match='ignore_index must be an int or None'):
        PixelWiseLoss(ignore_index=index)
