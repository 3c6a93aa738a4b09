"""FRSKD for classification: logits, the four losses against numpy, and what each of them trains."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from mmkd_plugin.losses import HintLoss
from mmkd_plugin.models.necks import BiFPNClassifier, frskd_losses
from mmkd_plugin.registry import MODELS

NAMES = ['student_loss', 'self_teacher_loss', 'soft_target_loss', 'feature_loss']


class Student(nn.Module):
    """Three stages and a linear head."""

    def __init__(self, classes=5):
        super().__init__()
        widths = [3, 8, 16, 24]
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 3, stride=1 + (number > 0), padding=1, bias=False),
                nn.BatchNorm2d(b),
                nn.ReLU(),
            )
            for number, (a, b) in enumerate(itertools.pairwise(widths))
        )
        self.head = nn.Linear(24, classes)

    def forward(self, x):
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps, self.head(x.mean((2, 3)))


@pytest.fixture
def models():
    torch.manual_seed(0)
    return Student().double(), BiFPNClassifier([8, 16, 24], num_classes=5).double()


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=generator)


def classes_of(kind):
    """Six targets: integers, or probabilities as after Mixup."""
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    if kind == 'classes':
        return labels
    one_hot = nn.functional.one_hot(labels, 5).double()
    return 0.3 * one_hot + 0.7 * one_hot.flip(0)


# --- in numpy --------------------------------------------------------------------------------


def log_softmax(row):
    return row - np.log(np.exp(row).sum())


def cross_entropy_by_hand(logits, target):
    total = 0.0
    for row, wanted in zip(logits, target, strict=True):
        if np.ndim(wanted) == 0:
            total -= log_softmax(row)[int(wanted)]
        else:
            total -= sum(p * q for p, q in zip(wanted, log_softmax(row), strict=True))
    return total / len(logits)


def soft_targets_by_hand(student, teacher, tau):
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        log_s, log_t = log_softmax(s / tau), log_softmax(t / tau)
        total += sum(np.exp(b) * (b - a) for a, b in zip(log_s, log_t, strict=True))
    return tau**2 * total / len(student)


def attention_by_hand(student, teacher):
    gaps = []
    for s, t in zip(student, teacher, strict=True):
        maps = [(x**2).mean(0).ravel() for x in (s, t)]
        a, b = (x / np.sqrt((x**2).sum()) for x in maps)
        gaps += [(p - q) ** 2 for p, q in zip(a, b, strict=True)]
    return sum(gaps) / len(gaps)


# --- values ----------------------------------------------------------------------------------


def test_logits_are_those_of_the_mean_of_the_last_map(models, images):
    student, self_teacher = models
    maps, _ = student(images)
    refined, logits = self_teacher(maps)
    assert [tuple(x.shape) for x in refined] == [(6, 16, 8, 8), (6, 32, 4, 4), (6, 48, 2, 2)]
    assert all((x >= 0).all() and x.any() for x in refined)
    expected = self_teacher.neck(maps)
    assert all(map(torch.equal, refined, expected))
    mean = refined[-1].detach().numpy().mean((2, 3))
    weight, bias = (p.detach().numpy() for p in self_teacher.head.parameters())
    np.testing.assert_allclose(logits.detach().numpy(), mean @ weight.T + bias, rtol=1e-12)


@pytest.mark.parametrize('kind', ['classes', 'probabilities'])
@pytest.mark.parametrize('factors', [{}, dict(tau=1.5, alpha=0.5, beta=7), dict(alpha=0, beta=0)])
def test_values(models, images, kind, factors):
    student, self_teacher = models
    maps, logits = student(images)
    refined, their_logits = self_teacher(maps)
    target = classes_of(kind)
    losses = frskd_losses(maps, logits, refined, their_logits, target, **factors)
    assert list(losses) == NAMES
    s, t = (x.detach().numpy() for x in (logits, their_logits))
    pairs = [(a.detach().numpy(), b.detach().numpy()) for a, b in zip(maps, refined, strict=True)]
    tau, alpha, beta = (factors.get(k, v) for k, v in dict(tau=4, alpha=2, beta=100).items())
    expected = dict(
        student_loss=cross_entropy_by_hand(s, target.numpy()),
        self_teacher_loss=cross_entropy_by_hand(t, target.numpy()),
        soft_target_loss=alpha * soft_targets_by_hand(s, t, tau),
        feature_loss=beta * sum(attention_by_hand(*pair) for pair in pairs),
    )
    for name, loss in losses.items():
        assert loss.shape == () and loss.dtype == torch.float64
        assert loss.item() == pytest.approx(expected[name], rel=1e-9, abs=1e-15), name
        assert factors.get('alpha') == 0 or expected[name] > 1e-4


def test_mixed_targets_are_mixed_losses(models, images):
    student, self_teacher = models
    maps, logits = student(images)
    first, second = classes_of('classes'), classes_of('classes').flip(0)
    several = [
        frskd_losses(maps, logits, *self_teacher(maps), target)
        for target in (classes_of('probabilities'), first, second)
    ]
    for name in NAMES[:2]:
        mixed, a, b = (losses[name] for losses in several)
        torch.testing.assert_close(mixed, 0.3 * a + 0.7 * b)
    for name in NAMES[2:]:  # the distillation knows no labels
        assert torch.equal(several[0][name], several[1][name])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('kind', ['classes', 'probabilities'])
def test_low_precision_is_computed_in_float32(dtype, kind):
    generator = torch.Generator().manual_seed(0)
    logits, theirs = ((10 * torch.randn(6, 5, generator=generator)).to(dtype) for _ in range(2))
    maps, refined = ([torch.rand(6, c, 4, 4, generator=generator).to(dtype)] for c in (3, 6))
    target = classes_of(kind)
    expected = frskd_losses(
        [x.double() for x in maps],
        logits.double(),
        [x.double() for x in refined],
        theirs.double(),
        target,
    )
    with torch.autocast('cpu', dtype):
        inside = frskd_losses(maps, logits, refined, theirs, target)
    losses = frskd_losses(maps, logits, refined, theirs, target)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32 and torch.equal(loss, inside[name])
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-4)


def test_certain_logits_are_finite():
    logits = torch.tensor([[1e4, -1e4, 0], [-1e4, 1e4, 0]], requires_grad=True)
    theirs = logits.detach().flip(0).requires_grad_()
    maps = [torch.rand(2, 3, 4, 4, requires_grad=True)]
    losses = frskd_losses(maps, logits, [torch.zeros(2, 6, 4, 4)], theirs, torch.tensor([0, 0]))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(x.grad.isfinite().all() for x in (logits, theirs, *maps))


# --- gradients -------------------------------------------------------------------------------

TRAINS = {
    #                    backbone  head  neck   its head
    'student_loss': (True, True, False, False),
    'self_teacher_loss': (True, False, True, True),
    'soft_target_loss': (True, True, False, False),
    'feature_loss': (True, False, False, False),
}


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('kind', ['classes', 'probabilities'])
def test_what_each_loss_trains(models, images, name, kind):
    student, self_teacher = models
    maps, logits = student(images)
    loss = frskd_losses(maps, logits, *self_teacher(maps), classes_of(kind))[name]
    loss.backward()
    parts = student.stages, student.head, self_teacher.neck, self_teacher.head
    for part, wanted in zip(parts, TRAINS[name], strict=True):
        grads = [p.grad for p in part.parameters()]
        assert grads and any(g is not None and bool(g.any()) for g in grads) == wanted
        if not wanted:
            assert all(g is None for g in grads)
        if wanted:  # every parameter
            assert all(g is not None and bool(g.any()) for g in grads)


@pytest.mark.parametrize('name', NAMES[2:])
def test_the_self_teacher_is_a_constant_in_the_distillation(models, images, name):
    """These two reach the backbone through its own maps, not through the refined ones."""
    student, self_teacher = models
    maps, logits = student(images)
    refined, theirs = self_teacher(maps)
    weights = list(student.stages.parameters())
    constants = [x.detach().clone() for x in refined], theirs.detach().clone()
    grads = [
        torch.autograd.grad(
            frskd_losses(maps, logits, *teacher, classes_of('classes'))[name],
            weights,
            retain_graph=True,
        )
        for teacher in ((refined, theirs), constants)
    ]
    for a, b in zip(*grads, strict=True):
        assert a.any() and torch.equal(a, b)


def test_gradient_against_finite_differences(models, images):
    """Only losses without constants: both cross entropies, through both networks."""
    student, self_teacher = (model.eval() for model in models)

    def run(image):
        maps, logits = student(image)
        losses = frskd_losses(maps, logits, *self_teacher(maps), torch.tensor([2]))
        return losses['student_loss'], losses['self_teacher_loss']

    assert torch.autograd.gradcheck(run, (images[:1, :, :4, :4].clone().requires_grad_(),))


# --- training --------------------------------------------------------------------------------


def test_overfits_random_images():
    torch.manual_seed(0)
    student, self_teacher = Student(10), BiFPNClassifier([8, 16, 24], num_classes=10)
    images, labels = torch.randn(16, 3, 8, 8), torch.randint(10, (16,))
    parameters = [*student.parameters(), *self_teacher.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.02, momentum=0.9)
    history = []
    for _ in range(80):
        maps, logits = student(images)
        refined, theirs = self_teacher(maps)
        losses = frskd_losses(maps, logits, refined, theirs, labels)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    assert (logits.argmax(1) == labels).all() and (theirs.argmax(1) == labels).all()
    for name in NAMES[:2]:
        assert history[0][name] > 1.5 and history[-1][name] < 0.1, name
    assert history[-1]['feature_loss'] < history[0]['feature_loss'] / 2


# --- options and messages --------------------------------------------------------------------


def test_another_feature_loss(images):
    torch.manual_seed(0)
    student, self_teacher = Student().double(), BiFPNClassifier([8, 16, 24], 5, width=1).double()
    maps, logits = student(images)
    refined, theirs = self_teacher(maps)
    losses = frskd_losses(
        maps, logits, refined, theirs, classes_of('classes'), beta=3, features=HintLoss()
    )
    expected = 3 * sum((a - b).square().mean() for a, b in zip(maps, refined, strict=True))
    torch.testing.assert_close(losses['feature_loss'], expected)


def test_a_feature_loss_that_does_not_detach(models, images):
    student, self_teacher = models
    maps, logits = student(images)

    def gap(student, teacher):
        return sum((a.mean() - b.mean()).square() for a, b in zip(student, teacher, strict=True))

    losses = frskd_losses(maps, logits, *self_teacher(maps), classes_of('classes'), features=gap)
    losses['feature_loss'].backward()
    assert all(p.grad is None for p in self_teacher.parameters())
    assert all(p.grad.any() for p in student.stages.parameters())


def test_built_from_config():
    config = dict(type='mmkd_plugin.BiFPNClassifier', in_channels=[4, 8], num_classes=3)
    classifier = MODELS.build(dict(config, width=1, depth=1))
    assert classifier.neck.out_channels == [4, 8] and classifier.head.out_features == 3
    classifier = MODELS.build(dict(config, out_channels=6))
    assert classifier.neck.out_channels == [6, 6] and classifier.head.in_features == 6
    own = sum(p.numel() for p in BiFPNClassifier([4, 8], 3).parameters())
    neck = sum(p.numel() for p in BiFPNClassifier([4, 8], 3).neck.parameters())
    assert own - neck == 16 * 3 + 3


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        (([4, 8], 0), ValueError, 'num_classes must be at least 1, got 0'),
        (([4, 8], 2.0), TypeError, 'num_classes must be a whole number, got 2.0'),
        (([4], 2), ValueError, 'in_channels must name at least two maps'),
    ],
)
def test_arguments_are_checked(arguments, error, message):
    with pytest.raises(error, match=message):
        BiFPNClassifier(*arguments)


@pytest.mark.parametrize(
    'target',
    [
        torch.zeros(5, dtype=torch.int64),
        torch.zeros(6, 5, dtype=torch.int64),
        torch.zeros(6),
        torch.zeros(6, 4),
        torch.zeros(6, 5, 1),
    ],
)
def test_targets_are_checked(models, images, target):
    student, self_teacher = models
    maps, logits = student(images)
    with pytest.raises(ValueError, match='target must be integers') as error:
        frskd_losses(maps, logits, *self_teacher(maps), target)
    assert f'got {target.dtype} {tuple(target.shape)} for logits (6, 5)' in str(error.value)


def test_numbers_of_maps_are_checked(models, images):
    student, self_teacher = models
    maps, logits = student(images)
    refined, theirs = self_teacher(maps)
    with pytest.raises(ValueError, match='numbers of maps differ: student 2, teacher 3'):
        frskd_losses(maps[:2], logits, refined, theirs, classes_of('classes'))
    with pytest.raises(ValueError, match='map sizes differ'):
        frskd_losses(maps[::-1], logits, refined, theirs, classes_of('classes'))
    with pytest.raises(ValueError, match=r'BiFPNSelfTeacher was built for 3 maps with \[8, 16, 24'):
        self_teacher(maps[:2])
