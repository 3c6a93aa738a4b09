"""Batch augmentations: a pixel and its labels are from the same place, and configs use them."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from torch import Tensor

from mmkd_plugin.models.batch_augments import (
    CutMix,
    Mixup,
    cutmix_box,
    mix,
    mix_targets,
    mixing_ratio,
    other_images,
    paste,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def segmentation_batch(count: int = 4, height: int = 20, width: int = 28) -> tuple[Tensor, list]:
    """Images whose pixels tell image, row and column of their origin, and labels that do so too."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    inputs = torch.stack(
        [torch.stack([torch.full_like(rows, n), rows, columns]) for n in range(count)]
    )
    samples = []
    for n in range(count):
        labels = torch.full((1, height, width), n)
        labels[:, n::5] = 255
        samples.append(
            SegDataSample(
                gt_sem_seg=PixelData(data=labels),
                gt_edge_map=PixelData(data=(labels + rows) % 7),
                gt_depth_map=PixelData(data=(10.0 * n + columns)[None], sure=labels < 9),
                weight=torch.full((height, width), float(n)),
                name=torch.tensor([n]),
                metainfo=dict(img_shape=(height, width), img_path=f'{n}.png'),
            )
        )
    return inputs.float(), samples


def maps_of(sample: SegDataSample) -> dict[str, Tensor]:
    depth = sample.gt_depth_map
    return dict(
        labels=sample.gt_sem_seg.data,
        edges=sample.gt_edge_map.data,
        depth=depth.data,
        sure=depth.sure,
        weight=sample.weight[None],
    )


def assert_traced(mixed: Tensor, mixed_samples: list, samples: list) -> None:
    """Every pixel stays in its place, and all its maps are from the image it is from."""
    height, width = mixed.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    assert (mixed[:, 1] == rows).all() and (mixed[:, 2] == columns).all()
    originals = [maps_of(sample) for sample in samples]
    for image, sample in zip(mixed, mixed_samples, strict=True):
        source = image[0].long()
        for name, value in maps_of(sample).items():
            expected = torch.stack([maps[name][0] for maps in originals])[source, rows, columns]
            assert value.dtype == expected.dtype and value.shape == (1, height, width), name
            assert torch.equal(value[0], expected), name


# The mathematics ----------------------------------------------------------------------------------


@pytest.mark.parametrize('alpha', [0.2, 1.0, 3.0])
def test_the_ratio_has_the_beta_distribution(alpha):
    generator = seeded()
    ours = torch.tensor([mixing_ratio(alpha, generator) for _ in range(20000)])
    assert ours.min() >= 0 and ours.max() <= 1
    assert ours.mean().item() == pytest.approx(0.5, abs=0.01)
    assert ours.var().item() == pytest.approx(0.25 / (2 * alpha + 1), rel=0.04)
    torch.manual_seed(1)
    theirs = torch.distributions.Beta(alpha, alpha).sample((200000,))
    for level in (0.02, 0.1, 0.3, 0.6, 0.9):  # the share below, at quantiles of the other sample
        assert (ours <= theirs.quantile(level)).double().mean().item() == pytest.approx(
            level, abs=0.015
        )


@pytest.mark.parametrize('alpha', [1e-6, 1e-3, 1e6])
def test_extreme_ratios_are_numbers(alpha):
    drawn = [mixing_ratio(alpha, seeded(i)) for i in range(500)]
    assert all(math.isfinite(lam) and 0 <= lam <= 1 for lam in drawn)
    if alpha < 1:
        assert sum(lam in (0, 1) or min(lam, 1 - lam) < 1e-3 for lam in drawn) > 480
        assert 200 < sum(lam > 0.5 for lam in drawn) < 300
    else:
        assert all(abs(lam - 0.5) < 0.01 for lam in drawn)


def test_everyone_else_is_as_likely_a_partner():
    generator, counts = seeded(), torch.zeros(4, 4)
    for _ in range(6000):
        partners = other_images(4, generator)
        assert sorted(partners.tolist()) == [0, 1, 2, 3]
        counts[torch.arange(4), partners] += 1
    assert counts.diagonal().sum() == 0
    assert ((counts + 2000 * torch.eye(4) - 2000).abs() < 150).all()
    assert other_images(2).tolist() == [1, 0] and other_images(1).tolist() == [0]
    assert other_images(0).tolist() == []


def expected_extent(side: int, lam: float) -> float:
    """By hand: mean over all centres of what is left of one side of the box."""
    half = int(side * math.sqrt(1 - lam)) // 2
    return np.mean([min(c + half, side) - max(c - half, 0) for c in range(side)])


@pytest.mark.parametrize('lam', [0.05, 0.3, 0.64, 0.9])
def test_the_box_has_the_area_that_lambda_asks_for(lam):
    height, width, generator = 90, 160, seeded()
    boxes = np.array([cutmix_box(height, width, lam, generator) for _ in range(5000)])
    top, bottom, left, right = boxes.T
    assert (top >= 0).all() and (bottom <= height).all() and (top <= bottom).all()
    assert (left >= 0).all() and (right <= width).all() and (left <= right).all()
    areas = (bottom - top) * (right - left)
    expected = expected_extent(height, lam) * expected_extent(width, lam)
    assert areas.mean() == pytest.approx(expected, rel=0.03)
    inside = (top > 0) & (bottom < height) & (left > 0) & (right < width)
    whole = (1 - lam) * height * width
    assert areas.max() <= whole + 1e-6
    if lam > 0.1:
        assert inside.any() and areas[inside] / whole == pytest.approx(1, abs=0.06)


def test_the_box_is_anywhere():
    generator = seeded()
    boxes = np.array([cutmix_box(40, 10, 0.99, generator) for _ in range(8000)])
    for low, high, side in ((boxes[:, 0], boxes[:, 1], 40), (boxes[:, 2], boxes[:, 3], 10)):
        half = int(side * 0.1) // 2
        centres = np.where(low > 0, low + half, high - half)
        counts = np.bincount(centres, minlength=side)
        assert len(counts) == side and np.allclose(counts, 8000 / side, rtol=0.35)


def test_the_ends_of_lambda():
    generator = seeded()
    for _ in range(50):
        top, bottom, left, right = cutmix_box(31, 17, 1.0, generator)
        assert top == bottom and left == right
        top, bottom, left, right = cutmix_box(32, 16, 0.0, generator)
        assert (bottom - top) * (right - left) >= 32 * 16 / 4
    assert cutmix_box(1, 1, 0.0, generator)[::2] == (0, 0)
    for lam in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match='lam must be'):
            cutmix_box(8, 8, lam)
    with pytest.raises(ValueError, match='no pixels: height 0, width 4'):
        cutmix_box(0, 4, 0.5)


def test_generators_leave_the_global_one_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    drawn = [
        (mixing_ratio(0.4, g), other_images(5, g).tolist(), cutmix_box(50, 60, 0.4, g))
        for g in (seeded(3), seeded(3), seeded(4))
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.get_rng_state(), before)
    again = []
    for _ in range(2):
        torch.manual_seed(5)
        again.append((mixing_ratio(0.4), other_images(5).tolist(), cutmix_box(50, 60, 0.4)))
    assert again[0] == again[1]


def test_known_mixtures():
    images = torch.arange(2 * 1 * 3 * 3.0).view(2, 1, 3, 3)
    partners = torch.tensor([1, 0])
    pasted = paste(images, partners, (0, 2, 1, 2))
    assert pasted[0, 0].tolist() == [[0, 10, 2], [3, 13, 5], [6, 7, 8]]
    assert pasted[1, 0].tolist() == [[9, 1, 11], [12, 4, 14], [15, 16, 17]]
    assert torch.equal(paste(images, partners, (1, 1, 0, 3)), images)
    targets = torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5]])
    torch.testing.assert_close(
        mix_targets(targets, partners, 0.75),
        torch.tensor([[0.75, 0.125, 0.125], [0.25, 0.375, 0.375]]),
    )
    torch.testing.assert_close(mix(images, partners, 0.75)[:, 0, 0, 0], torch.tensor([2.25, 6.75]))
    for lam, expected in ((1.0, images), (0.0, images.flip(0))):
        assert torch.equal(mix(images, partners, lam), expected)
    for wrong in (torch.tensor([0, 1]), torch.eye(2, dtype=torch.long), torch.rand(2, 1, 4, 4)):
        with pytest.raises(ValueError, match=r'expected soft targets \(N, classes\)'):
            mix_targets(wrong, partners, 0.5)
    with pytest.raises(ValueError, match='only floating point'):
        mix(images.byte(), partners, 0.5)


# CutMix on segmentation ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('count', 'height', 'width'), [(4, 20, 28), (2, 33, 7), (3, 1, 9), (5, 64, 64), (2, 1, 1)]
)
def test_pixels_bring_their_labels(count, height, width):
    torch.manual_seed(0)
    inputs, samples = segmentation_batch(count, height, width)
    given, kept = inputs.clone(), copy.deepcopy(samples)
    fractions, ignored = [], []
    for _ in range(30):
        mixed, mixed_samples = CutMix(prob=1.0)(inputs, samples)
        assert_traced(mixed, mixed_samples, samples)
        foreign = mixed[:, 0] != inputs[:, 0]
        fractions.append(foreign.double().mean().item())
        assert len({int(image.sum()) for image in foreign}) == 1  # one box for all
        labels = torch.cat([sample.gt_sem_seg.data for sample in mixed_samples])
        ignored.append(((labels == 255) & foreign).any().item())
        for n, (sample, image) in enumerate(zip(mixed_samples, mixed, strict=True)):
            sources = set(image[0].unique().tolist())
            assert len(sources) <= 2 and (n in sources or foreign[n].all())
            assert sample.img_path == f'{n}.png' and sample.name.tolist() == [n]
            assert type(sample) is SegDataSample
    assert torch.equal(inputs, given)
    for sample, before in zip(samples, kept, strict=True):
        for name, value in maps_of(before).items():
            assert torch.equal(maps_of(sample)[name], value), name
    if height * width > 100:
        assert min(fractions) < 0.1 and max(fractions) > 0.4 and any(ignored)


def test_what_comes_out_shares_nothing_that_was_mixed():
    torch.manual_seed(0)
    inputs, samples = segmentation_batch()
    mixed, mixed_samples = CutMix(prob=1.0)(inputs, samples)
    mixed.zero_()
    for sample in mixed_samples:
        sample.set_metainfo(dict(img_path='x'))
        for value in maps_of(sample).values():
            value.zero_()
    assert_traced(inputs, samples, segmentation_batch()[1])
    assert samples[1].img_path == '1.png'


def test_lambda_in_expectation():
    """With alpha 1 the share pasted is that of boxes whose λ is uniform, clipped."""
    torch.manual_seed(0)
    inputs, samples = segmentation_batch(2, 60, 60)
    shares = []
    for _ in range(600):
        mixed, _ = CutMix(prob=1.0, alpha=1.0)(inputs, samples)
        shares.append((mixed[0, 0] != 0).double().mean().item())
    lams = (np.arange(500) + 0.5) / 500
    expected = np.mean([expected_extent(60, lam) ** 2 for lam in lams]) / 3600
    assert np.mean(shares) == pytest.approx(expected, abs=0.03)
    small = [
        (CutMix(1.0, 1000.0)(inputs, samples)[0][0, 0] != 0).double().mean() for _ in range(300)
    ]
    assert np.mean(small) == pytest.approx(expected_extent(60, 0.5) ** 2 / 3600, abs=0.03)


@pytest.mark.parametrize('prob', [0.0, 0.3, 1.0])
def test_how_often(prob):
    torch.manual_seed(0)
    inputs, samples = segmentation_batch(2, 16, 16)
    augment, mixed = CutMix(prob=prob), 0
    for _ in range(1000):
        images, labels = augment(inputs, samples)
        assert (images is inputs) == (labels is samples)
        mixed += images is not inputs
    assert mixed == pytest.approx(1000 * prob, abs=0 if prob in (0, 1) else 50)


def test_seeds_repeat():
    inputs, samples = segmentation_batch()
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        mixed = [CutMix(prob=0.7)(inputs, samples) for _ in range(8)]
        runs.append(
            torch.stack(
                [
                    torch.cat([i[:, :1], torch.stack([s.gt_sem_seg.data for s in x])])
                    for i, x in mixed
                ]
            )
        )
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_nothing_to_mix_with():
    inputs, samples = segmentation_batch(1)
    images, labels = CutMix(prob=1.0)(inputs, samples)
    assert images is inputs and labels is samples
    images, labels = CutMix(prob=1.0)(inputs[:0], [])
    assert len(images) == 0 and labels == []
    for augment in (CutMix(prob=1.0), Mixup()):
        targets = torch.ones(1, 1)
        assert augment(inputs, targets)[1] is targets


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64, torch.uint8])
def test_types_and_layouts(dtype):
    torch.manual_seed(0)
    inputs, samples = segmentation_batch()
    inputs = inputs.to(dtype).to(memory_format=torch.channels_last)
    mixed, mixed_samples = CutMix(prob=1.0)(inputs, samples)
    assert mixed.dtype == dtype and mixed.is_contiguous(memory_format=torch.channels_last)
    assert_traced(mixed, mixed_samples, samples)
    assert (mixed != inputs).any()


def test_maps_in_numpy_are_mixed_too():
    torch.manual_seed(0)
    inputs, samples = segmentation_batch(2)
    before = []
    for sample in samples:
        sample.gt_edge_map = PixelData(data=sample.gt_edge_map.data.numpy())
        before.append(sample.gt_edge_map.data.copy())
    mixed, labels = CutMix(prob=1.0)(inputs, samples)
    foreign = (mixed[0, 0] == 1).numpy()
    assert foreign.any()
    np.testing.assert_array_equal(labels[0].gt_edge_map.data, np.where(foreign, *before[::-1]))
    assert all((s.gt_edge_map.data == b).all() for s, b in zip(samples, before, strict=True))


def test_depth_alone_will_do():
    torch.manual_seed(0)
    inputs, samples = segmentation_batch(2)
    samples = [
        SegDataSample(gt_depth_map=s.gt_depth_map, metainfo=dict(img_shape=(20, 28)))
        for s in samples
    ]
    mixed, labels = CutMix(prob=1.0)(inputs, samples)
    foreign = mixed[:, 0] != inputs[:, 0]
    depths = torch.cat([sample.gt_depth_map.data for sample in samples])
    given = torch.cat([sample.gt_depth_map.data for sample in labels])
    assert foreign.any() and torch.equal(given, torch.where(foreign, depths.flip(0), depths))


def test_what_cannot_be_mixed():
    inputs, samples = segmentation_batch(2)

    def message(change: Any = None, images: Tensor = inputs, **kwargs: Any) -> str:
        given = kwargs.get('targets', copy.deepcopy(samples))
        if change is not None:
            change(given)
        errors = set()
        for prob in (0.0, 1.0):  # at once, even if chance leaves the images alone
            with pytest.raises(ValueError) as caught:
                CutMix(prob=prob)(images, given)
            errors.add(str(caught.value))
        return errors.pop()

    def low_resolution(given: list) -> None:
        for sample in given:
            sample.gt_edge_map = PixelData(data=torch.zeros(1, 10, 14))

    assert '2 images need as many targets, got none' in message(targets=None)
    assert '2 images need as many targets, got 1' in message(targets=samples[:1])
    assert '`gt_edge_map` of a data sample has the size (10, 14)' in message(low_resolution)
    assert 'the same pixel maps' in message(lambda given: given[1].pop('gt_edge_map'))
    assert 'no pixel maps' in message(targets=[SegDataSample(), SegDataSample()])
    boxes = InstanceData(bboxes=torch.rand(3, 4))
    assert 'the objects in `gt_instances`' in message(
        targets=[SegDataSample(gt_instances=boxes) for _ in range(2)]
    )
    assert 'expected soft targets (N, classes)' in message(targets=torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ('kind', 'arguments', 'words'),
    [
        (CutMix, dict(prob=1.5), 'prob must be from 0 to 1, got 1.5'),
        (CutMix, dict(prob='often'), "prob must be a number, got 'often'"),
        (CutMix, dict(alpha=0), 'alpha must be above 0, got 0'),
        (Mixup, dict(alpha=-1), 'alpha must be above 0, got -1'),
        (Mixup, dict(alpha=math.inf), 'alpha must be finite, got inf'),
    ],
)
def test_wrong_arguments(kind, arguments, words):
    with pytest.raises((TypeError, ValueError), match=words):
        kind(**arguments)


# Classification -----------------------------------------------------------------------------------


def classification_batch(count: int = 4) -> tuple[Tensor, Tensor]:
    inputs = torch.arange(float(count)).view(-1, 1, 1, 1).repeat(1, 3, 24, 36)
    return inputs, torch.eye(count)


def test_targets_are_mixed_by_the_area_kept():
    torch.manual_seed(0)
    inputs, targets = classification_batch()
    shares = []
    for _ in range(50):
        mixed, soft = CutMix(prob=1.0)(inputs, targets)
        area = torch.stack([(mixed[:, 0] == n).double().mean((1, 2)) for n in range(4)], 1)
        torch.testing.assert_close(soft.double(), area)
        assert (area.diagonal() == area[0, 0]).all()
        shares.append(area[0, 0].item())
    assert min(shares) < 0.6 and max(shares) > 0.9
    assert torch.equal(targets, torch.eye(4)) and torch.equal(inputs, classification_batch()[0])


def test_images_and_targets_are_blended_alike():
    torch.manual_seed(0)
    inputs, targets = classification_batch()
    ratios = []
    for _ in range(300):
        mixed, soft = Mixup(alpha=0.2)(inputs, targets)
        torch.testing.assert_close(mixed[:, 1, 2, 3], soft @ torch.arange(4.0))
        torch.testing.assert_close(soft.sum(1), torch.ones(4))
        assert (soft.diagonal() == soft[0, 0]).all() and ((soft > 0).sum(1) <= 2).all()
        ratios.append(soft[0, 0].item())
    assert np.mean(ratios) == pytest.approx(0.5, abs=0.08)
    assert np.var(ratios) == pytest.approx(0.25 / 1.4, rel=0.15)  # Beta(0.2, 0.2)
    assert torch.equal(targets, torch.eye(4)) and torch.equal(inputs, classification_batch()[0])


def test_soft_targets_of_a_teacher_are_blended():
    torch.manual_seed(0)
    targets = torch.rand(4, 7).softmax(1)
    mixed, soft = Mixup(alpha=2.0)(classification_batch()[0][:2], targets[:2])
    share = mixed[0, 0, 0, 0]  # of the second image, which is 1 everywhere; the first is 0
    assert 0 < share < 1
    torch.testing.assert_close(soft[0], (1 - share) * targets[0] + share * targets[1])
    torch.testing.assert_close(soft[1], (1 - share) * targets[1] + share * targets[0])


def test_hard_labels_cannot_be_blended():
    inputs, samples = segmentation_batch(2)
    with pytest.raises(ValueError, match=r"soft targets \(N, classes\).*mmkd_plugin\.CutMix'"):
        Mixup()(inputs, samples)
    with pytest.raises(ValueError, match=r'expected soft targets \(N, classes\)'):
        Mixup()(inputs, torch.zeros(2, 20, 28, dtype=torch.long))
    with pytest.raises(ValueError, match='2 images need as many targets, got 3'):
        Mixup()(inputs, torch.eye(3))
