from __future__ import annotations

import numpy as np
import pytest
import torch
from allocations import Allocations
from learning_contract import LearningContract, set_up
from loss_contract import random_pair, value_and_grad
from memory import saved_bytes

from mmkd_plugin.losses import MemoryContrastLoss
from mmkd_plugin.losses.memory_contrast import drawn_pixels, memory_contrast, region_means
from mmkd_plugin.losses.numerics import relations
from mmkd_plugin.losses.numerics.compiling import formulas_as_written
from mmkd_plugin.losses.numerics.drawing import some_of
from mmkd_plugin.losses.numerics.memory import ClassMemory
from mmkd_plugin.terms.compiled import compiled

SEED = torch.tensor(7)
SHAPES = ((2, 3, 6, 7), (2, 5, 6, 7))


def labels_of(batch=2, size=(6, 7)):
    generator = torch.Generator().manual_seed(1)
    return torch.tensor([0, 1, 2, 255])[torch.randint(4, (batch, *size), generator=generator)]


def loss_of(channels=(3, 5), **options):
    torch.manual_seed(0)
    loss = MemoryContrastLoss(**{'classes': 4, 'pixels': 40, 'regions': 9, **options})
    loss.setup([channels[0]], [channels[1]])
    return loss.double()


def unit(x):
    return x / (np.linalg.norm(x) or 1)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


class TestMemoryContrastLoss(LearningContract):
    """Without remembering, so that each call meets the same memories; its projector is trained."""

    name = 'MemoryContrastLoss'
    variants = (
        dict(classes=4, pixels=12, regions=5, tau=0.3),
        dict(classes=3, pixels=5, regions=7, tau=1.0, draw='first'),
    )
    pairs = (
        ((2, 3, 4, 5), (2, 4, 4, 5)),
        ((2, 4, 3, 2), (2, 3, 3, 2)),
        ((2, 2, 1, 1), (2, 3, 1, 1)),
        ((2, 3, 1, 6), (2, 2, 1, 6)),
    )
    same_channels = False

    def build(self, **options):
        return super().build(**{'classes': 4, 'pixels': 12, 'regions': 5, **options}).eval()

    @staticmethod
    def reference(student, teacher, classes=4, pixels=12, regions=5, tau=0.1, draw='class'):
        loss = MemoryContrastLoss(classes, pixels, regions, tau).eval()
        set_up(loss, torch.tensor(student), torch.tensor(teacher))
        labels = labels_of(len(student))
        projected = loss.projectors[0](torch.tensor(student)).detach().numpy()
        expected = 0.0
        for kind, memory in enumerate(loss.memories[0]):
            places = some_of(SEED, memory.rows.shape[1], (4096, 1024)[kind] // classes + 1, kind)
            rows = memory.rows[:, places].reshape(-1, teacher.shape[1]).numpy()
            found = []
            for n, *place in np.ndindex(len(student), *student.shape[2:]):
                at = (i * old // new for i, old, new in zip(place, (6, 7), student.shape[2:]))
                if labels[(n, *at)] < classes:
                    p_s, p_t = (
                        softmax(rows @ unit(x[(n, slice(None), *place)]) / tau)
                        for x in (projected, teacher)
                    )
                    found.append((p_t * np.log(p_t / p_s)).sum())
            expected += np.mean(found) if found else 0.0
        return expected

    def given(self, student):
        batch = student.shape[0] if isinstance(student, torch.Tensor) and student.dim() else 1
        return dict(labels=labels_of(batch), seed=SEED)


def test_compiled_it_remembers_the_same_in_one_graph():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    eager, traced = loss_of(), loss_of()
    call = compiled(traced, backend)
    for n, size in ((2, (6, 7)), (3, (8, 5))):
        student, teacher = random_pair(((n, 3, *size), (n, 5, *size)))
        labels = labels_of(n, size)
        results = [one(student, teacher, labels, SEED) for one in (eager, call)]
        torch.testing.assert_close(*results)
        torch.testing.assert_close(eager.state_dict(), traced.state_dict())
    assert len(graphs) == 1


@pytest.mark.parametrize('room', [1, 300, 2**20])
@pytest.mark.parametrize('zero', [False, True])
def test_the_fast_form_is_the_formula(monkeypatch, room, zero):
    monkeypatch.setattr(relations, 'ROOM', room)
    student, teacher = random_pair(SHAPES)
    student.data[:, :, 0] *= not zero
    loss = loss_of().eval()
    value, grad = value_and_grad(lambda s, t: loss(s, t, labels_of(), SEED), student, teacher)
    with formulas_as_written():
        expected = value_and_grad(lambda s, t: loss(s, t, labels_of(), SEED), student, teacher)
    torch.testing.assert_close((value, grad), expected)


def test_no_matrix_of_similarities_is_held(monkeypatch):
    monkeypatch.setattr(relations, 'ROOM', 2**14)
    student, teacher = random_pair(((2, 16, 1024),) * 2, torch.float32)
    memories, kept = [torch.randn(n, 16) for n in (3000, 500)], torch.ones(2, 1024).bool()

    def compute():
        return memory_contrast(student, teacher, memories, kept, 0.1)

    assert saved_bytes(compute, student, teacher) == 4 * student.numel()
    with Allocations() as made:
        compute().backward()
    assert made.peak < 2e6  # one matrix would take 24 MB


def known(rows, classes, count=4):
    """Without the rows of no class."""
    return rows[classes < count], classes[classes < count]


def test_what_is_remembered():
    _, teacher = random_pair(SHAPES)
    x, labels = teacher.flatten(2), labels_of().flatten(1)
    labels[labels == 255] = 4
    means, classes = known(*region_means(x, labels, 4))
    expected = [(n, c) for n in range(2) for c in range(4) if (labels[n] == c).any()]
    assert classes.tolist() == [c for _, c in expected]
    for mean, (n, c) in zip(means, expected):
        np.testing.assert_allclose(mean, unit(x[n][:, labels[n] == c].mean(1).numpy()))
    rows, classes = known(*drawn_pixels(x, labels, 4, SEED))
    for n, c in expected:
        own = x[n][:, labels[n] == c].T
        mine = [row for row, k in zip(rows, classes) if k == c and (own == row).all(1).any()]
        assert len(mine) == len({tuple(row.tolist()) for row in mine}) == min(16, len(own))
    assert len(rows) == sum(min(16, int((labels[n] == c).sum())) for n, c in expected)
    first, same = known(*drawn_pixels(x, labels, 4, SEED, 'first'))
    assert sorted(same.tolist()) == sorted(classes.tolist())
    for row, c in zip(first, same):  # among the first positions of its image, of whatever class
        assert any((row == x[n, :, : int((labels[n] == c).sum())].T).all(1).any() for n in range(2))


def test_more_than_sixteen_pixels_of_a_class():
    x = torch.arange(100.0).view(1, 1, 100)
    labels = torch.zeros(1, 100).long()
    draws = [known(*drawn_pixels(x, labels, 3, torch.tensor(n)), 3)[0] for n in (1, 1, 2)]
    assert draws[0].shape == (16, 1) and torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_one_position_of_one_image():
    """Its projector has a batch norm, and a single value has no deviation."""
    student, teacher = random_pair(((1, 3, 1, 1), (1, 5, 1, 1)))
    loss = loss_of()
    value = loss(student, teacher, torch.zeros(1, 1, 1).long(), SEED)
    value.backward()
    assert value > 0 and student.grad.isfinite().all()


def test_a_memory_is_a_ring_for_each_class():
    memory = ClassMemory(3, 4, 1)
    expected = [memory.rows[c, :, 0].tolist() for c in range(3)]
    places, number = [0, 0, 0], 0
    for count in (1, 3, 2, 0, 9, 5):
        classes = torch.tensor([(7 * n + count) % 2 for n in range(count)], dtype=torch.int64)
        rows = torch.arange(number, number + count).float()[:, None]
        memory.push(rows, classes)
        for row, c in zip(rows[:, 0].tolist(), classes.tolist()):
            expected[c][places[c] % 4] = row
            places[c] += 1
        number += count
        assert memory.rows[:, :, 0].tolist() == expected
        assert memory.next.tolist() == [n % 4 for n in places]
    memory.push(torch.ones(3, 1), torch.tensor([3, -1, 3]))  # no class
    assert memory.rows[:, :, 0].tolist() == expected
    memory.push(torch.full((4, 1), 7.0), torch.tensor([3, 2, 3, 0]))
    for c in (0, 2):
        expected[c][places[c] % 4] = 7
    assert memory.rows[:, :, 0].tolist() == expected
    assert memory.nbytes == 3 * 4 * 4 + 3 * 8


def test_only_training_remembers_and_the_state_goes_on():
    student, teacher = random_pair(SHAPES)
    loss = loss_of()
    before = {k: v.clone() for k, v in loss.state_dict().items() if 'memories' in k}
    loss.eval()(student, teacher, labels_of(), SEED)
    assert all(torch.equal(loss.state_dict()[k], v) for k, v in before.items())
    loss.train()(student, teacher, labels_of(), SEED)
    assert not any(torch.equal(loss.state_dict()[k], v) for k, v in before.items())
    other = loss_of()
    other.load_state_dict(loss.state_dict())
    values = [one(student, teacher, labels_of(), SEED).item() for one in (loss, other)]
    assert values[0] == values[1]


@pytest.mark.parametrize('fill', [255, -1, 4, 200])
def test_without_a_single_class_it_is_zero(fill):
    student, teacher = random_pair(SHAPES)
    loss = loss_of()
    value = loss(student, teacher, torch.full((2, 6, 7), fill), SEED)
    value.backward()
    assert value.item() == 0 and all(p.grad is not None for p in loss.parameters())
    assert student.grad is not None and not student.grad.any()


@pytest.mark.parametrize(
    'options',
    [dict(classes=0), dict(pixels=0), dict(regions=1.5), dict(tau=0), dict(draw='all')],
)
def test_arguments_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        loss_of(**options)


def test_labels_are_needed():
    student, teacher = random_pair(SHAPES)
    with pytest.raises(TypeError, match='labels must be a tensor of integers'):
        loss_of()(student, teacher, None)
