from __future__ import annotations

import math
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
from allocations import Allocations
from loss_contract import LossContract, random_pair, value_and_grad
from memory import saved_bytes
from torch import nn

from mmkd_plugin.losses import RKDAngleLoss, RKDDistanceLoss
from mmkd_plugin.losses.numerics import relational
from mmkd_plugin.losses.relational import RelationalLoss
from mmkd_plugin.losses.traits import LossTraits
from tests.leaving import leave

BOTH = (RKDDistanceLoss, RKDAngleLoss)


def smooth_l1(a, b):
    gap = abs(a - b)
    return gap**2 / 2 if gap < 1 else gap - 0.5


def clouds(x, embed):
    """The sets of points whose relations are compared."""
    if embed == 'positions':
        places = [(i, j) for i in range(x.shape[2]) for j in range(x.shape[3])]
        return [[image[:, i, j] for i, j in places] for image in x]
    if embed == 'pool' and x.ndim == 4:
        return [[image.mean(axis=(1, 2)) for image in x]]
    return [[image.ravel() for image in x]]


def distances_of(points):
    distances = [[np.sqrt(((a - b) ** 2).sum()) for b in points] for a in points]
    positive = [d for row in distances for d in row if d > 0]
    return [d / np.mean(positive) if positive else 0.0 for row in distances for d in row]


def angles_of(points):
    def unit(v):
        length = np.sqrt((v**2).sum())
        return v / length if length > 0 else v

    return [unit(b - a) @ unit(c - a) for a in points for b in points for c in points]


def mean_gap(relations, student, teacher, embed):
    gaps = [
        np.mean([smooth_l1(a, b) for a, b in zip(relations(s), relations(t))])
        for s, t in zip(clouds(student, embed), clouds(teacher, embed))
    ]
    return float(np.mean(gaps))


def distances_between(x):
    """As above, for the gradient: nothing comes from where points coincide."""
    squares = (x[None] - x[:, None]).square().sum(2)
    apart = squares > 0
    distances = squares.masked_fill(~apart, math.inf).sqrt().masked_fill(~apart, 0)
    return distances / distances[apart].mean()


def angles_between(x):
    gaps = x[None] - x[:, None]
    squares = gaps.square().sum(2, keepdim=True)
    unit = gaps / squares.masked_fill(squares == 0, math.inf).sqrt()
    return unit @ unit.mT


class RKDContract(LossContract):
    variants = (dict(), dict(embed='pool'), dict(gather=True), dict(normalize=True))
    pairs = (
        ((4, 3, 2, 3), (4, 5, 2, 3)),
        ((3, 2, 5, 3), (3, 2, 5, 3)),
        ((1, 3, 4, 4), (1, 2, 4, 4)),
        ((2, 3, 3, 1), (2, 3, 3, 1)),
        ((5, 3, 1, 1), (5, 2, 1, 1)),
    )
    same_channels = False
    same_size = False
    least = 1e-18  # the gradient grows as the points shrink
    base = RelationalLoss
    relations = staticmethod(distances_of)
    between = staticmethod(distances_between)

    @classmethod
    def reference(cls, student, teacher, embed='flatten', gather=False, normalize=False):
        if normalize:
            student, teacher = (
                np.stack([sample / np.sqrt((sample**2).sum()) for sample in x])
                for x in (student, teacher)
            )
        return mean_gap(cls.relations, student, teacher, embed)

    def test_vectors_and_maps_of_other_sizes(self):
        pairs = (((5, 4), (5, 7)), ((2, 3), (2, 3)), ((4, 3, 5, 2), (4, 2, 3, 3)))
        for options in ({}, dict(embed='pool')):
            for shapes in pairs:
                student, teacher = random_pair(shapes)
                expected = mean_gap(
                    self.relations,
                    student.detach().numpy(),
                    teacher.numpy(),
                    options.get('embed', 'flatten'),
                )
                loss = self.build(**options)
                assert loss(student, teacher).item() == pytest.approx(expected, abs=1e-15)
                assert torch.autograd.gradcheck(loss, (student, teacher))

    def test_lengths_do_not_matter_once_they_are_1(self):
        student, teacher = (x.detach() for x in random_pair(((5, 4), (5, 3))))
        longer = torch.rand(5, 1, dtype=torch.float64) + 0.5
        loss = self.build(normalize=True)
        torch.testing.assert_close(loss(student * longer, teacher), loss(student, teacher))
        unit = (nn.functional.normalize(x) for x in (student, teacher))
        torch.testing.assert_close(loss(student, teacher), self.build()(*unit))
        maps = random_pair(((5, 4, 2, 3), (5, 3, 2, 3)), seed=1)
        dense = self.build(embed='positions', normalize=True)
        longer = torch.rand(5, 1, 2, 3, dtype=torch.float64) + 0.5
        torch.testing.assert_close(dense(maps[0] * longer, maps[1]), dense(*maps))
        assert torch.autograd.gradcheck(dense, maps)

    def test_moved_turned_and_scaled_points_cost_nothing(self):
        teacher = torch.randn(6, 4, dtype=torch.float64)
        rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
        student = 3 * teacher @ rotation + 100
        assert self.build()(student, teacher).item() == pytest.approx(0, abs=1e-20)

    def test_too_few_samples_cost_nothing(self):
        for count in (1, 2):
            for dtype in (torch.float32, torch.float64):
                student, teacher = random_pair(((count, 5), (count, 3)), dtype)
                value, grad = self.value_and_grad(self.build(), student, teacher)
                assert value.item() == pytest.approx(0, abs=1e-12) and grad.abs().max() < 1e-6

    def test_points_that_coincide(self):
        student, teacher = (x.detach() for x in random_pair(((5, 4), (5, 3))))
        student[1] = student[3]
        teacher[0] = teacher[2]
        loss = self.build()
        value, grad = self.value_and_grad(loss, student, teacher)
        expected = mean_gap(self.relations, student.numpy(), teacher.numpy(), '')
        assert value.item() == pytest.approx(expected)
        single, slope = self.value_and_grad(loss, student.float(), teacher.float())
        assert single.item() == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(slope, grad.float(), rtol=1e-4, atol=1e-7)
        student.requires_grad_()
        relations = (self.between(x) for x in (student, teacher))
        (slope,) = torch.autograd.grad(nn.functional.smooth_l1_loss(*relations), student)
        torch.testing.assert_close(grad, slope)

    def test_all_points_in_one_place(self):
        student, teacher = (x.detach() for x in random_pair(((5, 4), (5, 3)), torch.float32))
        student[:] = student[1]
        value, grad = self.value_and_grad(self.build(), student, teacher)
        expected = mean_gap(self.relations, student.double().numpy(), teacher.double().numpy(), '')
        assert value.item() == pytest.approx(expected, rel=1e-5) and not grad.any()

    @pytest.mark.parametrize('offset', [0, 1e2, 1e3])
    def test_points_that_lie_close_together_keep_their_digits(self, offset):
        generator = torch.Generator().manual_seed(0)
        centres = torch.randn(3, 1, 64, generator=generator).repeat(1, 4, 1).flatten(0, 1)
        for spread in (1.0, 1e-2, 1e-4):
            noise = torch.randn(12, 64, generator=generator)
            student = centres + spread * noise + offset
            teacher = centres + spread * torch.randn(12, 64, generator=generator)
            value, grad = self.value_and_grad(self.build(), student, teacher)
            expected = mean_gap(
                self.relations, student.double().numpy(), teacher.double().numpy(), ''
            )
            assert value.item() == pytest.approx(expected, rel=1e-5)
            _, slope = self.value_and_grad(self.build(), student.double(), teacher.double())
            assert (grad - slope).norm() <= 1e-5 * slope.norm()

    @pytest.mark.parametrize('options', [dict(), dict(gather=True)])
    def test_flattened_maps_are_not_held_in_pairs(self, options):
        student, teacher = random_pair(((12, 64, 32, 32), (12, 64, 32, 32)), torch.float32)
        loss = self.build(**options)
        # nothing but the relations
        assert saved_bytes(lambda: loss(student, teacher), student, teacher) <= 8 * 12**2
        with Allocations() as made:
            loss(student, teacher).backward()
        assert made.largest == student.numel() * 4  # the gradient; pairs take 12 of them
        assert made.peak < 2.5 * student.numel() * 4

    def test_not_a_number_is_not_hidden(self):
        student, teacher = random_pair(((4, 3), (4, 3)))
        for bad in (math.nan, math.inf):
            broken = student.detach().clone()
            broken[2, 1] = bad
            assert self.build()(broken, teacher).isnan()

    @pytest.mark.parametrize(
        ('options', 'error', 'text'),
        [
            (dict(embed='mean'), ValueError, "embed must be one of 'flatten', 'pool', 'positions'"),
            (dict(embed=None), ValueError, 'embed must be one of'),
            (dict(num_positions=2), ValueError, 'num_positions must be at least 3, got 2'),
            (dict(num_positions=64.0), TypeError, r'num_positions must be an int, got 64\.0'),
            (dict(num_positions=True), TypeError, 'num_positions must be an int'),
            (dict(normalize=1), TypeError, 'normalize must be True or False, got 1'),
            (dict(gather=1), TypeError, 'gather must be a bool, got 1'),
            (dict(embed='positions', gather=True), ValueError, 'gather=True must not be used with'),
        ],
    )
    def test_options_are_checked(self, options, error, text):
        with pytest.raises(error, match=text):
            self.build(**options)


class PositionsContract(LossContract):
    """The dense form: it wants equal sizes."""

    variants = (dict(embed='positions'), dict(embed='positions', num_positions=99))
    pairs = RKDContract.pairs
    same_channels = False
    least = 1e-18
    base = RelationalLoss
    relations = staticmethod(distances_of)

    @classmethod
    def reference(cls, student, teacher, embed='positions', num_positions=64):
        return mean_gap(cls.relations, student, teacher, embed)

    def build(self, **options):
        return super().build(**{'embed': 'positions', **options})

    def test_vectors_have_no_positions(self):
        with pytest.raises(
            ValueError, match=r'expected two tensors \(N, C, H, W\): student \(4, 3\)'
        ):
            self.build()(torch.ones(4, 3), torch.ones(4, 3))

    def test_drawn_positions(self):
        student, teacher = random_pair(((2, 3, 7, 5), (2, 4, 7, 5)))
        loss = self.build(num_positions=6)
        expected = []
        for seed in range(4):
            torch.manual_seed(seed)
            value = loss(student, teacher)
            torch.manual_seed(seed)
            chosen = torch.randperm(35)[:6].view(6, 1)
            parts = [x.detach().flatten(2)[:, :, chosen].numpy() for x in (student, teacher)]
            expected.append(mean_gap(self.relations, *parts, 'positions'))
            assert value.item() == pytest.approx(expected[-1])
        assert len(set(expected)) == 4  # drawn afresh
        (grad,) = torch.autograd.grad(loss(student, teacher), student)
        assert (grad.abs().sum(1).flatten(1) > 0).sum(1).tolist() == [6, 6]  # no position twice

    def test_a_map_with_no_more_positions_is_taken_as_a_whole(self):
        student, teacher = random_pair(((2, 3, 4, 4), (2, 4, 4, 4)))
        state = torch.get_rng_state()
        values = [self.build(num_positions=n)(student, teacher) for n in (16, 17, 64)]
        assert torch.equal(torch.get_rng_state(), state)
        assert values[0] == values[1] == values[2]


class TestRKDDistanceLoss(RKDContract):
    name = 'RKDDistanceLoss'


class TestRKDAngleLoss(RKDContract):
    name = 'RKDAngleLoss'
    relations = staticmethod(angles_of)
    between = staticmethod(angles_between)


class TestRKDDistanceLossOfPositions(PositionsContract):
    name = 'RKDDistanceLoss'


class TestRKDAngleLossOfPositions(PositionsContract):
    name = 'RKDAngleLoss'
    relations = staticmethod(angles_of)

    def test_no_loop_over_images_or_channels(self, monkeypatch):
        monkeypatch.setattr(relational, 'TRIPLES', 2**30)  # all vertices at once
        super().test_no_loop_over_images_or_channels()


def test_known_distances():
    student = torch.tensor([[0.0], [1.0], [3.0]])  # 1, 3, 2 over their mean 2
    teacher = torch.tensor([[0.0], [1.0], [2.0]])  # 1, 2, 1 over their mean 4/3
    gaps = [1 / 2 - 3 / 4, 3 / 2 - 3 / 2, 1 - 3 / 4]
    expected = 2 * sum(gap**2 / 2 for gap in gaps) / 9
    assert RKDDistanceLoss()(student, teacher).item() == pytest.approx(expected)
    far = torch.tensor([[0.0], [1e-6], [1.0], [1.0], [1.0], [1.0], [1.0]])
    assert RKDDistanceLoss()(far, torch.eye(7)).item() > 0


def test_known_angles():
    student = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]])
    # a right angle and two of 45 degrees against three of 60, each at b, c and at c, b
    gaps = [0.5, math.sqrt(0.5) - 0.5, math.sqrt(0.5) - 0.5]
    expected = 2 * sum(gap**2 / 2 for gap in gaps) / 27
    assert RKDAngleLoss()(student, teacher).item() == pytest.approx(expected)


def test_large_gaps_count_linearly():
    student = torch.tensor([[0.0], [0.0], [0.0], [0.0], [0.0], [1.0]])
    teacher = torch.tensor([[0.0], [0.0], [1.0], [0.0], [0.0], [0.0]])
    value = RKDDistanceLoss()(student, teacher).item()
    # one is far from the others in both, but not the same one: 4 pairs each way have a gap of 1
    assert value == pytest.approx(2 * 2 * 4 * 0.5 / 36)


@pytest.mark.parametrize('triples', [2**17, 30, 1])
def test_angles_vertex_by_vertex(triples, monkeypatch):
    student, teacher = random_pair(((6, 3), (6, 4)))
    expected = mean_gap(angles_of, student.detach().numpy(), teacher.numpy(), '')
    monkeypatch.setattr('mmkd_plugin.losses.numerics.relational.TRIPLES', triples)
    assert RKDAngleLoss()(student, teacher).item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(RKDAngleLoss(), (student, teacher))


@pytest.mark.parametrize('kind', BOTH)
def test_many_points_are_compared_as_few_are(kind, monkeypatch):
    student, teacher = (x.detach() for x in random_pair(((6, 3), (6, 4))))
    student[1] = student[4]
    student.requires_grad_()
    few = value_and_grad(kind(), student, teacher)
    monkeypatch.setattr(relational, 'FEW', 0)
    torch.testing.assert_close(few, value_and_grad(kind(), student, teacher))


def test_a_second_derivative_is_refused():
    student, teacher = random_pair(((6, 3), (6, 4)))
    for loss in (RKDDistanceLoss(), RKDAngleLoss()):
        with pytest.raises(RuntimeError, match='this loss has no second derivative'):
            torch.autograd.grad(loss(student, teacher), student, create_graph=True)


# --- several processes -----------------------------------------------------------------------

COUNTS = ((3, 3), (4, 2), (1, 5), (6, 0))


def student_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(6, n, generator=generator, dtype=torch.float64) for n in (5, 7))


def process(rank: int, port: int, folder: str) -> None:
    """Computes the losses of a part of the batch, and their gradients as DDP averages them."""
    torch.set_num_threads(1)
    address = f'tcp://127.0.0.1:{port}'
    dist.init_process_group('gloo', init_method=address, rank=rank, world_size=2)
    results = {}
    images, targets = batch()
    for kind in BOTH:
        for counts in COUNTS:
            own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
            model = nn.parallel.DistributedDataParallel(student_model())
            loss = kind(gather=True, loss_weight=3)(model(images[own]), targets[own])
            loss.backward()
            with torch.no_grad():
                alone = kind(gather=True)(model.module(images[own]), targets[own])
            results[kind.__name__, counts] = (
                loss.detach(),
                [parameter.grad for parameter in model.parameters()],
                alone,
            )
    try:
        RKDDistanceLoss(gather=True)(images[:, : 3 + rank].requires_grad_(), targets)
    except ValueError as error:
        results['error'] = str(error)
    torch.save(results, f'{folder}/{rank}.pt')
    leave()


@pytest.fixture(scope='module')
def processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('processes')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, (port, str(folder)), nprocs=2, join=True)
    return [torch.load(folder / f'{rank}.pt') for rank in (0, 1)]


@pytest.mark.parametrize('kind', BOTH)
@pytest.mark.parametrize('counts', COUNTS)
def test_gathered_samples_are_compared_as_one_batch(processes, kind, counts):
    model, (images, targets) = student_model(), batch()
    expected = kind(loss_weight=3)(model(images), targets)
    expected.backward()
    assert expected.item() > 1e-3
    for results in processes:
        value, grads, _ = results[kind.__name__, counts]
        torch.testing.assert_close(value, expected.detach())
        for grad, parameter in zip(grads, model.parameters()):
            torch.testing.assert_close(grad, parameter.grad)


@pytest.mark.parametrize('kind', BOTH)
def test_without_gradients_nothing_is_gathered(processes, kind):
    # a dry forward runs on the CPU, where the processes may not be able to exchange anything
    model, (images, targets) = student_model(), batch()
    for results, own in zip(processes, (slice(0, 4), slice(4, 6))):
        _, _, value = results[kind.__name__, (4, 2)]
        torch.testing.assert_close(value, kind()(model(images[own]), targets[own]).detach())


def test_maps_of_other_sizes_cannot_be_gathered(processes):
    for results in processes:
        assert results['error'] == (
            'gather=True: the embeddings of the processes have different lengths: [3, 4]; give all '
            "of them maps of one size, or set embed='pool'"
        )


@pytest.mark.parametrize('loss', [RKDDistanceLoss, RKDAngleLoss])
def test_auto_means_a_small_share(loss):
    assert LossTraits.of(loss()).auto_share == 0.5
