from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from allocations import Allocations
from loss_contract import random_pair, value_and_grad
from memory import saved_bytes

import mmkd_plugin.losses.memory_contrast
from mmkd_plugin.losses import MemoryContrastLoss
from mmkd_plugin.losses.memory_contrast import drawn_pixels, memory_contrast, region_means
from mmkd_plugin.losses.numerics import relations
from mmkd_plugin.losses.numerics.compiling import formulas_as_written
from mmkd_plugin.losses.numerics.drawing import some_of
from mmkd_plugin.losses.numerics.memory import ClassMemory

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


def test_the_formula_position_by_position():
    student, teacher = random_pair(SHAPES)
    labels, loss = labels_of(), loss_of(tau=0.3)
    value = loss(student, teacher, labels, SEED)
    projected = loss.projectors[0](student).detach().numpy()
    expected = 0.0
    for kind, memory in enumerate(loss.memories[0]):
        places = some_of(SEED, memory.rows.shape[1], (4096, 1024)[kind] // 4 + 1, kind)
        rows = memory.rows[:, places].reshape(-1, 5).numpy()
        found = []
        for n, row, column in np.argwhere(labels.numpy() != 255):
            p_s, p_t = (
                softmax(rows @ unit(x[n, :, row, column]) / 0.3)
                for x in (projected, teacher.numpy())
            )
            found.append((p_t * np.log(p_t / p_s)).sum())
        expected += np.mean(found)
    assert value.item() == pytest.approx(expected, rel=1e-9)


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


def test_gradcheck():
    student, teacher = random_pair(SHAPES)
    loss = loss_of().eval()

    def compute(x, *weights):
        named = dict(zip(dict(loss.named_parameters()), weights))
        return torch.func.functional_call(loss, named, (x, teacher, labels_of(), SEED))

    assert torch.autograd.gradcheck(compute, (student, *loss.parameters()))


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


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize('scale', [0, 1e-4, 1e4])
def test_it_is_finite(dtype, scale):
    student, teacher = random_pair(SHAPES, dtype, scale)
    loss = loss_of().float()
    value, grad = value_and_grad(lambda s, t: loss(s, t, labels_of(), SEED), student, teacher)
    assert value.dtype == torch.float32 and value.isfinite() and grad.isfinite().all()


def test_a_sequence_and_its_weights():
    pairs = [random_pair(SHAPES, seed=n) for n in range(2)]
    loss = MemoryContrastLoss(4, 40, 9, loss_weight=[1.0, 10.0])
    loss.setup([3, 3], [5, 5])
    loss.double()
    value = loss(*zip(*pairs), labels_of(), SEED)
    assert value.isfinite() and value > 0


@pytest.mark.parametrize(
    'options',
    [dict(classes=0), dict(pixels=0), dict(regions=1.5), dict(tau=0), dict(draw='all')],
)
def test_arguments_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        loss_of(**options)


def test_errors_in_forward():
    student, teacher = random_pair(SHAPES)
    with pytest.raises(ValueError, match=r'call setup\(student_channels, teacher_channels\)'):
        MemoryContrastLoss(4)(student, teacher, labels_of())
    with pytest.raises(TypeError, match='labels must be a tensor of integers'):
        loss_of()(student, teacher, None)
    with pytest.raises(ValueError, match='map sizes differ'):
        loss_of()(student[..., :3], teacher, labels_of())


def test_examples():
    results = doctest.testmod(mmkd_plugin.losses.memory_contrast)
    assert results.attempted >= 5 and results.failed == 0
