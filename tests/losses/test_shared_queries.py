from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from mmkd_plugin.losses import SharedQueriesLoss
from mmkd_plugin.registry import MODELS
from mmkd_plugin.terms.compiled import compiled


def answers(layers=3, images=2, queries=5, classes=4, groups=1, dtype=torch.float64, seed=0):
    """Answers of a student, and of the last layer of a teacher."""
    generator = torch.Generator().manual_seed(seed)

    def made(count):
        shape = count, images, queries
        scores = torch.randn(*shape, classes, generator=generator, dtype=torch.float64)
        boxes = torch.rand(*shape, 4, generator=generator, dtype=torch.float64)
        return [(2 * scores).to(dtype), boxes.to(dtype)]

    students = [x.requires_grad_() for _ in range(groups) for x in made(layers)]
    return students, [x for _ in range(groups) for x in made(1)]


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def giou(a, b):
    a, b = ((x[0] - x[2] / 2, x[1] - x[3] / 2, x[0] + x[2] / 2, x[1] + x[3] / 2) for x in (a, b))
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = max(sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - shared, 1e-12)
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return shared / union - (max(hull, 1e-12) - union) / max(hull, 1e-12)


def reference(students, teachers, tau=10.0, weights=(1.0, 5.0, 2.0)):
    """Query by query, as the formula says."""
    total = 0.0
    for n in range(0, len(students), 2):
        scores, boxes, own, theirs = (
            x.detach().double().numpy() for x in (*students[n : n + 2], *teachers[n : n + 2])
        )
        sure = 1 / (1 + np.exp(-own[0].max(-1)))
        for layer in range(len(scores)):
            kl, gap = 0.0, 0.0
            for place in np.ndindex(*sure.shape):
                p, q = (softmax(x[place] / tau) for x in (scores[layer], own[0]))
                kl += sure[place] * tau**2 * (q * (np.log(q) - np.log(p))).mean()
                b, t = boxes[layer][place], theirs[0][place]
                l1, iou = np.abs(b - t).mean(), 1 - giou(b, t)
                gap += sure[place] * (weights[1] * l1 + weights[2] * iou)
            total += weights[0] * kl + gap / sure.sum()
    return total


@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(tau=1.0),
        dict(weights=(2.0, 0, 0)),
        dict(weights=(0, 1.0, 0)),
        dict(tau=3, weights=(0, 0, 3)),
    ],
)
@pytest.mark.parametrize('groups', [1, 2])
def test_value(options, groups):
    for shape in (dict(), dict(layers=1, images=1, queries=1), dict(classes=1, queries=3)):
        students, teachers = answers(groups=groups, **shape)
        loss = SharedQueriesLoss(**options)
        expected = reference(students, teachers, **options)
        value = loss(students, teachers)
        assert value.shape == () and value.dtype == torch.float64
        assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        value = loss([x.float() for x in students], [x.float() for x in teachers])
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_gradcheck():
    students, teachers = answers(layers=2, queries=3, groups=2)
    loss = SharedQueriesLoss(tau=2)
    assert torch.autograd.gradcheck(lambda *x: loss(list(x), teachers), students)


def test_the_teacher_gets_no_gradient():
    students, teachers = answers()
    teachers = [x.requires_grad_() for x in teachers]
    SharedQueriesLoss()(students, teachers).backward()
    assert all(x.grad.any() for x in students) and all(x.grad is None for x in teachers)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_compared_in_float32(dtype):
    students, teachers = answers(dtype=dtype)
    wide = [x.detach().double().requires_grad_() for x in students]
    expected = SharedQueriesLoss()(wide, [x.double() for x in teachers])
    with torch.autocast('cpu', torch.bfloat16):
        value = SharedQueriesLoss()(students, teachers)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    expected.backward()
    value.backward()
    for x, y in zip(students, wide):
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=2e-2, atol=1e-5)


def test_equal_answers_cost_nothing():
    _, teachers = answers(dtype=torch.float32)
    students = [x.repeat(3, 1, 1, 1).requires_grad_() for x in teachers]
    value = SharedQueriesLoss()(students, teachers)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-5)
    assert all(x.grad.abs().max() < 1e-5 for x in students[:1])


@pytest.mark.parametrize('scale', [0, 1e-4, 1e4])
def test_extremes_are_finite(scale):
    students, teachers = answers(dtype=torch.float32)
    students = [(x.detach() * s).requires_grad_() for x, s in zip(students, (scale, 1))]
    students[1] = (students[1].detach() * min(scale, 1)).requires_grad_()  # boxes without area
    teachers = [teachers[0] * -scale, teachers[1] * min(scale, 1)]
    value = SharedQueriesLoss()(students, teachers)
    value.backward()
    assert value.isfinite() and all(x.grad.isfinite().all() for x in students)


def test_a_teacher_that_sees_nothing_and_no_images():
    students, teachers = answers(dtype=torch.float32)
    value = SharedQueriesLoss()(students, [torch.full_like(teachers[0], -1e4), teachers[1]])
    assert value.item() == 0
    students, teachers = answers(images=0)
    value = SharedQueriesLoss()(students, teachers)
    value.backward()
    assert value.item() == 0


def test_weights():
    students, teachers = answers(groups=2)
    parts = [SharedQueriesLoss()(students[n : n + 2], teachers[n : n + 2]) for n in (0, 2)]
    torch.testing.assert_close(SharedQueriesLoss()(students, teachers), sum(parts))
    weighted = SharedQueriesLoss(loss_weight=[1, 3])(students, teachers)
    torch.testing.assert_close(weighted, parts[0] + 3 * parts[1])


def test_compiled_in_one_graph():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    call = compiled(SharedQueriesLoss(), backend)
    for images, queries in ((2, 6), (3, 9)):
        students, teachers = answers(images=images, queries=queries)
        expected = SharedQueriesLoss()(students, teachers)
        torch.testing.assert_close(call(students, teachers), expected)
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s, t: (s[:1], t[:1]), 'takes scores and boxes in turn, got 1'),
        (lambda s, t: (s[:1], t), 'numbers of maps differ'),
        (lambda s, t: (s[::-1], t), 'answers do not fit'),
        (lambda s, t: (s, [x.expand(2, -1, -1, -1) for x in t]), 'answers do not fit'),
        (lambda s, t: (s, [x[:, :, :2] for x in t]), 'answers do not fit'),
        (
            lambda s, t: (s, [t[0][..., :3], t[1]]),
            'numbers of classes differ: student 5, teacher 3',
        ),
        (lambda s, t: (s[0][0], t[0][0]), 'takes scores and boxes in turn'),
    ],
)
def test_answers_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        SharedQueriesLoss()(*change(*answers(classes=5)))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(tau=0), 'tau must'),
        (dict(weights=(1, 2)), 'weights must be three numbers'),
        (dict(weights=(0, 0, 0)), 'weights are all 0'),
        (dict(weights=(1, -2, 0)), 'weights cannot be negative'),
        (dict(loss_weight='1'), 'loss_weight must be'),
    ],
)
def test_arguments(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        SharedQueriesLoss(**options)


def test_config_docstring_and_row():
    loss = MODELS.build(dict(type='mmkd_plugin.SharedQueriesLoss', tau=5, loss_weight=2))
    assert 'tau=5' in repr(loss) and 'loss_weight=2' in repr(loss)
    assert not list(loss.parameters()) and not loss.state_dict()
    results = doctest.testmod(importlib.import_module(SharedQueriesLoss.__module__))
    assert results.attempted >= 5 and results.failed == 0
    page = Path(__file__).parents[2].joinpath('docs', 'losses.md').read_text(encoding='utf-8')
    assert any(x.startswith('|') and '`SharedQueriesLoss`' in x for x in page.splitlines())
    assert "type='mmkd_plugin.SharedQueriesLoss'" in page
