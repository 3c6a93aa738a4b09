from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from memory import saved_bytes

from mmkd_plugin.losses import SharedMasksLoss
from mmkd_plugin.losses.numerics.drawing import uniform
from mmkd_plugin.losses.shared_masks import at_points, masks_apart, unsure_first
from mmkd_plugin.registry import MODELS
from mmkd_plugin.terms.compiled import compiled

SEED = torch.tensor(7)


def answers(layers=2, images=2, queries=3, classes=4, size=(6, 5), theirs=(6, 5), groups=1, seed=0):
    """Answers of a student, and of the last layer of a teacher, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def made(count, size):
        for shape in ((count, images, queries, classes + 1), (count, images, queries, *size)):
            yield 2 * torch.randn(shape, generator=generator, dtype=torch.float64)

    students = [x.requires_grad_() for _ in range(groups) for x in made(layers, size)]
    return students, [x for _ in range(groups) for x in made(1, theirs)]


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def bilinear(image, x, y):
    """A value of an image between the centres of its pixels, 0 outside of it."""
    height, width = image.shape
    column, row = x * width - 0.5, y * height - 0.5
    total = 0.0
    for i in (int(np.floor(row)), int(np.floor(row)) + 1):
        for j in (int(np.floor(column)), int(np.floor(column)) + 1):
            if 0 <= i < height and 0 <= j < width:
                total += image[i, j] * (1 - abs(row - i)) * (1 - abs(column - j))
    return total


def reference(students, teachers, tau=1.0, weights=(2.0, 5.0, 5.0), no_object=0.1, points=12544):
    """Query by query, as the formula says, with points behind as many that none is chosen from."""
    total = 0.0
    for n in range(0, len(students), 2):
        scores, masks, own, theirs = (
            x.detach().double().numpy() for x in (*students[n : n + 2], *teachers[n : n + 2])
        )
        for layer in range(len(scores)):
            drawn = uniform(SEED, (2 * points, 2), 100 * n + layer)[points:].double().numpy()
            kl, cross, dice, counts, sure = 0.0, 0.0, 0.0, 0.0, 0.0
            for place in np.ndindex(*scores.shape[1:3]):
                seen = 1 - softmax(own[0][place])[-1]
                count = seen + no_object * (1 - seen)
                p, q = softmax(scores[layer][place] / tau), softmax(own[0][place] / tau)
                kl += count * tau**2 * (q * (np.log(q) - np.log(p))).sum()
                s = sigmoid(np.array([bilinear(masks[layer][place], *xy) for xy in drawn]))
                t = sigmoid(np.array([bilinear(theirs[0][place], *xy) for xy in drawn]))
                between = t * np.log(t / s) + (1 - t) * np.log((1 - t) / (1 - s))
                cross += seen * between.mean()
                dice += seen * np.abs(s - t).sum() / (s.sum() + t.sum() + 1)
                counts, sure = counts + count, sure + seen
            parts = kl / counts, cross / sure, dice / sure
            total += sum(weight * part for weight, part in zip(weights, parts))
    return total


@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(tau=4.0, weights=(3.0, 0, 0), no_object=1.0),
        dict(weights=(0, 1.0, 0)),
        dict(weights=(0, 0, 2), no_object=0),
    ],
)
def test_value(options):
    for shape in (dict(groups=2), dict(theirs=(3, 9)), dict(layers=1, images=1, queries=1)):
        students, teachers = answers(**shape)
        options = dict(options, points=20)
        loss = SharedMasksLoss(oversample=1.0, importance=0, **options)
        value = loss(students, teachers, SEED)
        assert value.shape == () and value.dtype == torch.float64
        # the places of points are float32
        assert value.item() == pytest.approx(reference(students, teachers, **options), rel=1e-5)


def test_points_are_read_as_mask2former_reads_them():
    point_sample = pytest.importorskip('mmcv.ops').point_sample
    masks, points = torch.randn(2, 3, 6, 5), torch.rand(40, 2)
    each = point_sample(masks.flatten(0, 1)[:, None], points.expand(6, -1, -1))
    torch.testing.assert_close(at_points(masks, points), each.view(2, 3, 40))


def test_unsure_points_come_first():
    logits = torch.tensor([[[5.0, -0.1, 3, 0.2, -4, 0.3, 9, 9, 9]]])
    chosen = unsure_first(logits, points=4, oversample=1.5, importance=0.75)
    assert sorted(chosen[0, 0, :3].tolist()) == [1, 3, 5] and chosen[0, 0, 3] == 6


def test_hard_masks_are_compared_as_mask2former_does():
    student, hard = torch.randn(2, 3, 50), torch.rand(2, 3, 50).round()
    cross, dice = masks_apart(student, 200 * (hard - 0.5), torch.ones(2, 3))
    p = student.sigmoid()
    expected = torch.nn.functional.binary_cross_entropy(p, hard)
    torch.testing.assert_close(cross, expected)
    naive = (2 * (p * hard).sum(-1) + 1) / (p.sum(-1) + hard.sum(-1) + 1)
    torch.testing.assert_close(dice, (1 - naive).mean())


def test_gradcheck():
    students, teachers = answers(groups=2, layers=1, queries=2)
    loss = SharedMasksLoss(points=6)
    assert torch.autograd.gradcheck(lambda *x: loss(list(x), teachers, SEED), students)


def test_what_is_saved_for_the_backward_pass():
    students, teachers = answers(layers=3, size=(40, 30), theirs=(40, 30))
    students = [x.detach().float().requires_grad_() for x in students]
    saved = saved_bytes(
        lambda: SharedMasksLoss(points=200)(students, teachers, SEED), *students, *teachers
    )
    assert saved <= sum(x.untyped_storage().nbytes() for x in students) * 2  # float64, as teachers


def test_the_teacher_gets_no_gradient():
    students, teachers = answers()
    teachers = [x.requires_grad_() for x in teachers]
    SharedMasksLoss(points=20)(students, teachers).backward()
    assert all(x.grad.any() for x in students) and all(x.grad is None for x in teachers)


def test_a_seed_decides_the_points():
    students, teachers = answers(size=(20, 20), theirs=(20, 20))
    loss = SharedMasksLoss(points=20)
    first, again, other = (loss(students, teachers, torch.tensor(x)) for x in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_compared_in_float32(dtype):
    students, teachers = ([x.detach().to(dtype) for x in part] for part in answers())
    students = [x.requires_grad_() for x in students]
    loss = SharedMasksLoss(points=20, importance=0)
    expected = loss([x.double() for x in students], [x.double() for x in teachers], SEED)
    with torch.autocast('cpu', torch.bfloat16):
        value = loss(students, teachers, SEED)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)


def test_equal_answers_cost_nothing_and_teach_nothing():
    _, teachers = answers()
    students = [x.repeat(3, *[1] * (x.ndim - 1)).requires_grad_() for x in teachers]
    value = SharedMasksLoss(points=20)(students, teachers)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-9)
    assert students[0].grad.abs().max() < 1e-9


@pytest.mark.parametrize('scale', [0, 1e-4, 1e4])
def test_extremes_are_finite(scale):
    students, teachers = answers()
    students = [(x.detach() * scale).float().requires_grad_() for x in students]
    value = SharedMasksLoss(points=20)(students, [-scale * x.float() for x in teachers])
    value.backward()
    assert value.isfinite() and all(x.grad.isfinite().all() for x in students)


def test_a_teacher_that_sees_nothing_and_no_images():
    students, teachers = answers()
    nothing = torch.zeros_like(teachers[0])
    nothing[..., -1] = 1e4
    masks = SharedMasksLoss(points=20, weights=(0, 1, 1))
    assert masks(students, [nothing, teachers[1]]).item() == 0
    value = SharedMasksLoss(points=20)(*answers(images=0))
    value.backward()
    assert value.item() == 0


def test_weights():
    students, teachers = answers(groups=2)
    whole = SharedMasksLoss(points=20, loss_weight=[1, 0])(students, teachers, SEED)
    torch.testing.assert_close(whole, SharedMasksLoss(points=20)(students[:2], teachers[:2], SEED))


def test_compiled_in_one_graph():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    loss = SharedMasksLoss(points=20)
    call = compiled(loss, backend)
    students, teachers = answers()
    torch.testing.assert_close(
        call(students, teachers, seed=SEED), loss(students, teachers, seed=SEED)
    )
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s, t: (s[:1], t[:1]), 'takes scores and masks in turn, got 1'),
        (lambda s, t: (s[::-1], t), 'answers do not fit'),
        (lambda s, t: (s, [x.expand(2, *x.shape[1:]) for x in t]), 'answers do not fit'),
        (lambda s, t: (s, [x[:, :, :2] for x in t]), 'answers do not fit'),
        (lambda s, t: ([s[0], s[1][..., 0]], t), 'for boxes take mmkd_plugin.SharedQueriesLoss'),
        (
            lambda s, t: (s, [t[0][..., :3], t[1]]),
            'numbers of classes differ: student 4, teacher 2',
        ),
    ],
)
def test_answers_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        SharedMasksLoss(points=20)(*change(*answers()))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(tau=0), 'tau must'),
        (dict(weights=(1, 2)), 'weights must be three numbers'),
        (dict(weights=(0, 0, 0)), 'weights are all 0'),
        (dict(no_object=2), 'no_object must be from 0 to 1'),
        (dict(points=0), 'points must be at least 1'),
        (dict(oversample=0.5), 'oversample must be at least 1'),
        (dict(importance=-1), 'importance must be from 0 to 1'),
        (dict(loss_weight='1'), 'loss_weight must be'),
    ],
)
def test_arguments(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        SharedMasksLoss(**options)


def test_config_docstring_and_row():
    loss = MODELS.build(dict(type='mmkd_plugin.SharedMasksLoss', tau=5, loss_weight=2))
    assert 'tau=5' in repr(loss) and 'loss_weight=2' in repr(loss)
    assert not list(loss.parameters()) and not loss.state_dict()
    results = doctest.testmod(importlib.import_module(SharedMasksLoss.__module__))
    assert results.attempted >= 5 and results.failed == 0
    page = Path(__file__).parents[2].joinpath('docs', 'losses.md').read_text(encoding='utf-8')
    assert any(x.startswith('|') and '`SharedMasksLoss`' in x for x in page.splitlines())
    assert "type='mmkd_plugin.SharedMasksLoss'" in page
