from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from allocations import Allocations
from loss_contract import LossContract, random_pair, value_and_grad
from memory import saved_bytes

from mmkd_plugin.losses import IntraClassVariationLoss
from mmkd_plugin.losses.intra_class_variation import intra_class_variation

IGNORED = 255
SHAPE = (2, 3, 4, 5)


def random_labels(batch, size=(6, 7), ids=(0, 1, 2, IGNORED)):
    generator = torch.Generator().manual_seed(1)
    return torch.tensor(ids)[torch.randint(len(ids), (batch, *size), generator=generator)]


def mean_gap(student, teacher, labels, ignore_index=IGNORED):
    """The formula for labels of any size."""
    batch, _, height, width = student.shape

    def cosines(x):
        classes = {}
        for n in range(batch):
            for row in range(height):
                for column in range(width):
                    label = int(labels[n, row * labels.shape[1] // height,
                                       column * labels.shape[2] // width])  # fmt: skip
                    classes.setdefault((n, label), []).append((row, column))
        found = {}
        for (n, label), members in classes.items():
            centre = sum(x[n, :, row, column] for row, column in members) / (len(members) + 1e-6)
            for row, column in members:
                vector = x[n, :, row, column]
                lengths = [max(np.sqrt(v @ v), 1e-8) for v in (vector, centre)]
                ignored = label == ignore_index or label < 0
                found[n, row, column] = 1 if ignored else vector @ centre / math.prod(lengths)
        return found

    of_student, of_teacher = cosines(student), cosines(teacher)
    gaps = [(of_student[place] - of_teacher[place]) ** 2 for place in of_student]
    assert len(gaps) == batch * height * width
    return sum(gaps) / len(gaps)


class TestIntraClassVariationLoss(LossContract):
    name = 'IntraClassVariationLoss'
    variants = (dict(), dict(ignore_index=1))
    pairs = (  # all of one batch size, for a sequence shares its labels
        (SHAPE, (2, 5, 4, 5)),
        ((2, 2, 6, 7), (2, 2, 6, 7)),  # the size of the labels
        ((2, 3, 9, 3), (2, 1, 9, 3)),
        ((2, 3, 1, 1), (2, 4, 1, 1)),
        ((2, 1, 1, 6), (2, 4, 1, 6)),
    )
    same_channels = False

    @staticmethod
    def reference(student, teacher, ignore_index=IGNORED):
        labels = random_labels(student.shape[0]).numpy()
        return mean_gap(student, teacher, labels, ignore_index)

    def call(self, loss, student, teacher):
        one = student[0] if isinstance(student, (list, tuple)) and student else student
        batch = one.shape[0] if isinstance(one, torch.Tensor) else 1
        return loss(student, teacher, random_labels(batch))


@pytest.fixture
def pair():
    return random_pair((SHAPE, (2, 6, 4, 5)))


@pytest.fixture
def labels():
    return random_labels(2, SHAPE[2:])


# --- the formula -----------------------------------------------------------------------------


def test_known_value():
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2)  # centre (1/2, 1/2)
    teacher = torch.tensor([3.0, 5.0]).view(1, 1, 1, 2)  # one direction: cosine 1
    gap = 1 - math.sqrt(1 / 2)
    loss = intra_class_variation(student, teacher, torch.zeros(1, 1, 2, dtype=torch.int64))
    assert loss.item() == pytest.approx(gap**2)
    # ignored positions are counted: two more of them halve the loss
    wider = [torch.cat([x, torch.randn_like(x)], dim=3) for x in (student, teacher)]
    loss = intra_class_variation(*wider, torch.tensor([[[7, 7, 255, 255]]]))
    assert loss.item() == pytest.approx(gap**2 / 2)
    # alone in its class, a position is its own centre
    loss = intra_class_variation(student, teacher, torch.tensor([[[0, 1]]]))
    assert loss.item() == pytest.approx(0, abs=1e-12)


def test_one_image():
    student, teacher = random_pair(((1, 3, 6, 7), (1, 4, 6, 7)))
    labels = random_labels(1)
    expected = mean_gap(student.detach().numpy(), teacher.numpy(), labels.numpy())
    value = intra_class_variation(student, teacher, labels)
    assert value.item() == pytest.approx(expected, rel=1e-9)


def test_each_image_has_centres_of_its_own(pair, labels):
    student, teacher = pair
    whole = intra_class_variation(student, teacher, labels)
    parts = [
        intra_class_variation(student[n : n + 1], teacher[n : n + 1], labels[n : n + 1])
        for n in range(2)
    ]
    torch.testing.assert_close(whole, sum(parts) / 2)


def test_gradient_flows_through_the_centre(labels):
    labels = labels.clamp(max=2)  # nothing ignored
    student, teacher = random_pair((SHAPE, (2, 6, 4, 5)))
    _, grad = value_and_grad(lambda s, t: intra_class_variation(s, t, labels), student, teacher)

    def with_masks(x, fixed):
        """One class after the other; the centres may be held fixed."""
        masks = [(labels == k)[:, None].double() for k in range(3)]
        centres = 0
        for mask in masks:
            mean = (mask * x).sum((2, 3), keepdim=True) / (mask.sum((2, 3), keepdim=True) + 1e-6)
            centres = centres + mask * (mean.detach() if fixed else mean)
        return F.cosine_similarity(x, centres, dim=1)

    def slope(fixed):
        def loss(s, t):
            return (with_masks(s, fixed) - with_masks(t, fixed)).square().mean()

        return value_and_grad(loss, student, teacher)[1]

    torch.testing.assert_close(grad, slope(fixed=False))
    assert not torch.allclose(grad, slope(fixed=True))


@pytest.mark.parametrize('scale', [1e-5, 1e-3, 1e3, 1e6])
def test_the_scale_of_the_maps_does_not_matter(pair, labels, scale):
    student, teacher = pair
    expected = intra_class_variation(student, teacher, labels)
    torch.testing.assert_close(intra_class_variation(student * scale, teacher, labels), expected)
    torch.testing.assert_close(intra_class_variation(student, teacher * scale, labels), expected)


# --- short vectors ---------------------------------------------------------------------------


@pytest.mark.parametrize('scale', [1e-9, 1e-8, 1e-7])
def test_short_vectors_are_divided_by_1e_8(pair, labels, scale):
    student, teacher = (x.detach() * scale for x in pair)
    expected = mean_gap(student.numpy(), teacher.numpy(), labels.numpy())
    value, grad = value_and_grad(lambda s, t: intra_class_variation(s, t, labels), student, teacher)
    assert value.item() == pytest.approx(expected, rel=1e-9) and value > 0
    assert grad.isfinite().all()


def test_zero_vectors_get_small_gradients():
    student, teacher = random_pair(((1, 3, 3, 3), (1, 3, 3, 3)), torch.float32)
    student = student.detach()
    student[0, :, 0] = 0  # some of class 0: they move its centre
    student[0, :, 2] = torch.tensor([[1.0, -1.0, 0.0]])  # class 1 has its centre at zero
    labels = torch.tensor([[[0, 0, 0], [0, 0, 0], [1, 1, 1]]])
    loss = IntraClassVariationLoss()
    value, grad = value_and_grad(lambda s, t: loss(s, t, labels), student, teacher)
    expected = mean_gap(student.double().numpy(), teacher.double().numpy(), labels.numpy())
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert grad.abs().max() < 1
    assert grad[0, :, :2].any() and not grad[0, :, 2].any()


# --- labels ----------------------------------------------------------------------------------


def test_ignored_positions_get_no_gradient(pair, labels):
    student, teacher = pair
    intra_class_variation(student, teacher, labels).backward()
    ignored = (labels == IGNORED)[:, None].expand(SHAPE)
    assert ignored.any() and not student.grad[ignored].any() and student.grad[~ignored].all()


def test_an_ignored_zero_vector_costs_nothing(pair):
    student, teacher = pair
    labels = torch.full((2, 4, 5), IGNORED)
    student = student.detach()
    student[:, :, 0] = 0
    value, grad = value_and_grad(lambda s, t: intra_class_variation(s, t, labels), student, teacher)
    assert value.item() == 0 and not grad.any()


@pytest.mark.parametrize('ignore_index', [255, 0, -100])
@pytest.mark.parametrize('negative', [-1, -100, -(2**40)])
def test_negative_labels_are_no_class(pair, labels, negative, ignore_index):
    student, teacher = pair
    loss = IntraClassVariationLoss(ignore_index=ignore_index)
    marked = torch.where(labels == 2, negative, labels)
    expected = mean_gap(
        student.detach().numpy(), teacher.numpy(), marked.numpy(), ignore_index=ignore_index
    )
    assert loss(student, teacher, marked).item() == pytest.approx(expected, rel=1e-9)
    if ignore_index == IGNORED:
        as_ignored = torch.where(labels == 2, IGNORED, labels)
        torch.testing.assert_close(loss(student, teacher, as_ignored).item(), expected)


def test_255_is_a_class_where_another_label_is_ignored(pair, labels):
    student, teacher = pair
    renamed = torch.where(labels == IGNORED, 3, labels)
    for ignore_index in (-1, 254):
        loss = IntraClassVariationLoss(ignore_index=ignore_index)
        expected = loss(student, teacher, renamed)
        torch.testing.assert_close(loss(student, teacher, labels), expected)
        # as uint8, -1 is 255
        torch.testing.assert_close(loss(student, teacher, labels.to(torch.uint8)), expected)


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int16, torch.int32])
def test_any_integers_are_labels(pair, labels, dtype):
    expected = intra_class_variation(*pair, labels)
    assert torch.equal(intra_class_variation(*pair, labels.to(dtype)), expected)


@pytest.mark.parametrize('ids', [(3, 1, 0, IGNORED), (10**6, 2**40, 2**60, IGNORED)])
def test_the_numbers_of_the_classes_do_not_matter(pair, labels, ids):
    renamed = random_labels(2, SHAPE[2:], ids)
    torch.testing.assert_close(
        intra_class_variation(*pair, renamed), intra_class_variation(*pair, labels)
    )


def test_labels_are_resized_by_nearest(pair, labels):
    large = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    torch.testing.assert_close(
        intra_class_variation(*pair, large), intra_class_variation(*pair, labels)
    )


def test_labels_serve_every_map_of_a_sequence(pair, labels):
    small = random_pair(((2, 3, 2, 2), (2, 3, 2, 2)))
    students, teachers = zip(pair, small)
    loss = IntraClassVariationLoss(loss_weight=[1, 10])
    expected = [intra_class_variation(*maps, labels) for maps in (pair, small)]
    assert all(expected)
    value = loss(students, teachers, labels)
    torch.testing.assert_close(value, expected[0] + 10 * expected[1])


def test_labels_are_asked_for_and_checked(pair, labels):
    loss = IntraClassVariationLoss()
    assert loss.needs == ('labels',)
    with pytest.raises(TypeError, match='labels must be a tensor of integers, got NoneType'):
        loss(*pair, None)
    with pytest.raises(TypeError, match=r'labels must be integers, got torch\.float64'):
        loss(*pair, labels.double())
    for wrong in (labels[:1], labels[:, None]):
        with pytest.raises(ValueError, match='labels do not fit the maps') as error:
            loss(*pair, wrong)
        assert f'labels {tuple(wrong.shape)}, student {SHAPE}' in str(error.value)


@pytest.mark.parametrize('index', [None, 255.0, '255', True])
def test_ignore_index_is_checked(index):
    with pytest.raises(TypeError, match='ignore_index must be an int, got'):
        IntraClassVariationLoss(ignore_index=index)


# --- precision and cost ----------------------------------------------------------------------


@pytest.mark.parametrize('distance', [1e-1, 1e-2, 1e-3])
def test_close_maps_keep_their_digits(distance):
    student, noise = random_pair(((2, 32, 16, 16), (2, 32, 16, 16)), torch.float32)
    student = student.detach().relu()
    teacher = student + distance * noise
    labels = random_labels(2, (16, 16))
    expected, slope = value_and_grad(
        lambda s, t: intra_class_variation(s.double(), t.double(), labels), student, teacher
    )
    value, grad = value_and_grad(lambda s, t: intra_class_variation(s, t, labels), student, teacher)
    assert value.item() == pytest.approx(expected.item(), rel=1e-3)
    assert (grad - slope).norm() <= 1e-2 * slope.norm()


def test_many_classes_cost_what_few_do():
    shape = (2, 64, 32, 64)
    size = 4 * 2 * 64 * 32 * 64
    pair = student, teacher = random_pair((shape, shape), torch.float32)
    watched = []
    for classes, stride in ((2, 1), (19, 1), (150, 1), (150, 2**40)):
        labels = random_labels(2, shape[2:], [stride * k for k in range(classes)])
        assert len(labels.unique()) == classes
        student.grad = None
        compute = partial(intra_class_variation, *pair, labels)
        assert saved_bytes(compute, *pair) == size  # the gradient alone
        with Allocations() as made:
            intra_class_variation(student, teacher, labels).backward()
        watched.append(made)
    few, *others = watched
    for made in others:
        assert made.calls <= few.calls + 20 < 250  # no loop
        assert made.largest == size  # no table of classes and positions
        assert made.peak < 1.25 * few.peak < 4 * size


def test_as_many_classes_as_positions_need_no_more_than_the_map():
    shape = (2, 64, 16, 16)
    student, teacher = random_pair((shape, shape), torch.float32)
    labels = torch.arange(2 * 16 * 16).view(2, 16, 16) * 1000
    with Allocations() as made:
        intra_class_variation(student, teacher, labels).backward()
    assert made.largest == 4 * 2 * 64 * 16 * 16
