"""Teacher agreement: counts by hand and by loops, real segmentors and detectors, wrong configs."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from mmkd_plugin.metrics import TeacherAgreement
from mmkd_plugin.metrics.teacher_agreement import agreement_counts, matched_boxes
from mmkd_plugin.registry import METRICS
from tests import stock_models
from tests.metrics.runs import detector, run_test, segmentor, weighted
from tests.runs import needs_ops

AGREEMENT = 'mmkd_plugin.TeacherAgreement'


# --- the mathematics ----------------------------------------------------------------------------


def test_counts_by_loops():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randint(0, 4, (2, 5, 7), generator=generator)
    counted = torch.rand(5, 7, generator=generator) > 0.3
    expected = np.zeros((3, 6), int)
    for s, t, c in zip(*(x.flatten().tolist() for x in (student, teacher, counted)), strict=True):
        if c:
            expected[0, s] += s == t
            expected[1, s] += 1
            expected[2, t] += 1
    assert agreement_counts(student, teacher, 6, counted).tolist() == expected.tolist()
    everything = agreement_counts(student, teacher, 6)
    assert everything[1:].sum(1).tolist() == [35, 35]
    assert everything[:, 4:].sum() == 0


def test_maps_of_two_sizes():
    with pytest.raises(ValueError, match=r'\(2, 3\) cannot be compared with one of \(3, 2\)'):
        agreement_counts(torch.zeros(2, 3).long(), torch.zeros(3, 2).long(), 1)


def boxes(*corners: tuple[float, ...]) -> Tensor:
    return torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


def test_one_to_one():
    teacher = boxes((0, 0, 10, 10))
    twice = boxes((0, 0, 10, 9), (0, 1, 10, 10))
    assert matched_boxes(twice, ints(2, 2), teacher, ints(2), 0.5).tolist() == [2]
    assert matched_boxes(twice, ints(1, 3), teacher, ints(2), 0.5).tolist() == []
    half = boxes((0, 0, 10, 5))  # the threshold itself is enough
    assert matched_boxes(half, ints(2), teacher, ints(2), 0.5).tolist() == [2]
    assert matched_boxes(half, ints(2), teacher, ints(2), 0.51).tolist() == []


def test_as_many_pairs_as_possible():
    """The best pair first would leave the other two boxes alone."""
    teacher = boxes((0, 0, 10, 10), (3, 0, 13, 10))
    student = boxes((1, 0, 11, 10), (-2, 0, 8, 10))
    assert len(matched_boxes(student, ints(0, 0), teacher, ints(0, 0), 0.5)) == 2


def test_no_boxes():
    some, none = boxes((0, 0, 4, 4)), boxes()
    for s, t in ((some, none), (none, some), (none, none)):
        matched = matched_boxes(s, torch.zeros(len(s)).long(), t, torch.zeros(len(t)).long(), 0.5)
        assert matched.tolist() == []


def iou(a: list[float], b: list[float]) -> float:
    width, height = (max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return width * height / (sum(areas) - width * height)


def most_pairs(s: list, s_labels: list, t: list, t_labels: list, iou_thr: float) -> int:
    """By trying every order."""
    s, s_labels = s + [None] * len(t), s_labels + [-1] * len(t)
    return max(
        sum(
            label == t_labels[i] and iou(s[j], t[i]) >= iou_thr
            for i, j in enumerate(order)
            for label in [s_labels[j]]
        )
        for order in permutations(range(len(s)), len(t))
    )


def test_pairs_by_brute_force():
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(30):
        s, t = (rng.integers(0, 6, (3, 4)).astype(float) for _ in range(2))
        s[:, 2:], t[:, 2:] = s[:, :2] + 8, t[:, :2] + 8
        s_labels, t_labels = rng.integers(0, 2, (2, 3))
        pairs = matched_boxes(*map(torch.from_numpy, (s, s_labels, t, t_labels)), 0.4)
        lists = (x.tolist() for x in (s, s_labels, t, t_labels))
        assert len(pairs) == most_pairs(*lists, 0.4)
        found += len(pairs)
    assert 10 < found < 80


# --- real models --------------------------------------------------------------------------------


def shares(counts: np.ndarray) -> tuple[list[float], list[float]]:
    both, student, teacher = counts
    found, confirmed = (
        [100 * b / n for b, n in zip(both, ns, strict=True) if n] for ns in (teacher, student)
    )
    return found, confirmed


def test_a_segmentor_as_if_both_were_tested_alone(data, tmp_path):
    """The same weights, but the teacher is fed by its own preprocessor."""
    student = weighted(segmentor(), tmp_path)
    teacher = weighted(segmentor(mean=[90.0] * 3, std=[40.0] * 3, bgr_to_rgb=False), tmp_path)
    metric = dict(type=AGREEMENT, teacher=teacher, ignore_index=2)
    result, ours = run_test(student, data, tmp_path, metric)
    _, theirs = run_test(teacher, data, tmp_path)
    counts, ignored = np.zeros((3, 3), int), 0
    for s, t in zip(ours.kept, theirs.kept, strict=True):
        label = s['gt_sem_seg']['data'].flatten().tolist()
        maps = (one['pred_sem_seg']['data'].flatten().tolist() for one in (s, t))
        assert len(label) == 64 * 64
        for a, b, gt in zip(*maps, label, strict=True):
            if gt == 2:
                ignored += 1
                continue
            counts[0, a] += a == b
            counts[1, a] += 1
            counts[2, b] += 1
    assert ignored and min((counts[1:] > 0).sum(1)) > 1  # both predict several classes
    assert 0 < counts[0].sum() < counts[1].sum()
    found, confirmed = shares(counts)
    assert result == pytest.approx(
        {
            'agreement/pixel': 100 * counts[0].sum() / counts[1].sum(),
            'agreement/mean_found': np.mean(found),
            'agreement/mean_confirmed': np.mean(confirmed),
        }
    )


@needs_ops
def test_a_detector_as_if_both_were_tested_alone(data, tmp_path):
    student = weighted(detector(), tmp_path, seed=3)
    teacher = weighted(detector(mean=[90.0] * 3, std=[40.0] * 3, bgr_to_rgb=False), tmp_path)
    score_thr = 0.0100
    metric = dict(type=AGREEMENT, teacher=teacher, score_thr=score_thr)
    result, ours = run_test(student, data, tmp_path, metric)
    _, theirs = run_test(teacher, data, tmp_path)
    counts = np.zeros((3, 2), int)
    for s, t in zip(ours.kept, theirs.kept, strict=True):
        lists = []
        for one in (s['pred_instances'], t['pred_instances']):
            sure = [i for i, score in enumerate(one['scores'].tolist()) if score >= score_thr]
            lists += [one['bboxes'][sure].tolist(), one['labels'][sure].tolist()]
        for c in range(2):
            in_class = [
                [box for box, label in zip(*pair, strict=True) if label == c]
                for pair in (lists[:2], lists[2:])
            ]
            counts[0, c] += flow(*in_class, 0.5)
            counts[1:, c] += [len(one) for one in in_class]
    assert 0 < counts[0].sum() < counts[1:].sum(1).min()
    found, confirmed = shares(counts)
    assert result == pytest.approx(
        {
            'agreement/found': 100 * counts[0].sum() / counts[2].sum(),
            'agreement/confirmed': 100 * counts[0].sum() / counts[1].sum(),
            'agreement/mean_found': np.mean(found),
            'agreement/mean_confirmed': np.mean(confirmed),
        }
    )


def flow(s: list, t: list, iou_thr: float) -> int:
    """The most pairs, by augmenting paths."""
    partner: dict[int, int] = {}

    def place(i: int, seen: set[int]) -> bool:
        for j, box in enumerate(t):
            if j not in seen and iou(s[i], box) >= iou_thr:
                seen.add(j)
                if j not in partner or place(partner[j], seen):
                    partner[j] = i
                    return True
        return False

    return sum(place(i, set()) for i in range(len(s)))


@pytest.mark.parametrize('make', [segmentor, pytest.param(detector, marks=needs_ops)])
def test_a_teacher_agrees_with_itself(make, data, tmp_path, capfd):
    model = weighted(make(), tmp_path)
    metric = dict(type=AGREEMENT, teacher=model, score_thr=0.01)
    result, _ = run_test(model, data, tmp_path, metric)
    assert set(result.values()) == {100.0}
    log = capfd.readouterr()
    assert '│ disc' in log.out + log.err


@needs_ops
def test_no_confident_boxes(data, tmp_path, capfd):
    model = weighted(detector(), tmp_path)
    metric = dict(type=AGREEMENT, teacher=model, score_thr=0.9)
    result, _ = run_test(model, data, tmp_path, metric)
    assert len(result) == 4 and all(np.isnan(value) for value in result.values())
    log = capfd.readouterr()
    assert '│     - │         - │' in log.out + log.err


def test_only_one_has_a_class(data, tmp_path):
    """A class that one of the two never predicts is part of one mean alone."""
    student, teacher = weighted(segmentor(), tmp_path), weighted(segmentor(), tmp_path, seed=3)
    state = torch.load(teacher['checkpoint'])
    state['state_dict']['decode_head.conv_seg.weight'].zero_()
    state['state_dict']['decode_head.conv_seg.bias'].copy_(torch.tensor([1.0, 0.0, 0.0]))
    torch.save(state, teacher['checkpoint'])  # it sees the first class everywhere
    result, ours = run_test(student, data, tmp_path, dict(type=AGREEMENT, teacher=teacher))
    predicted = torch.stack([sample['pred_sem_seg']['data'] for sample in ours.kept])
    seen, share = predicted.unique().tolist(), float((predicted == 0).float().mean())
    assert 0 in seen and len(seen) > 1
    expected = dict(pixel=100 * share, mean_found=100 * share, mean_confirmed=100 / len(seen))
    assert result == pytest.approx({f'agreement/{key}': x for key, x in expected.items()})


# --- what can be wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('teacher', 'message'),
    [
        (None, r'TeacherAgreement needs a teacher: teacher=dict\(.*tools/test.py'),
        ('large', "got 'large'"),
        (dict(type='mmkd_plugin.SelfTeacher'), "run alone: .* not type='mmkd_plugin.SelfTeacher'"),
        (dict(config='a.py', chekpoint='b.pth'), 'unknown key `chekpoint`; .*`checkpoint`'),
        (dict(config='nowhere.py', checkpoint=None), 'no config at nowhere.py'),
    ],
)
def test_no_usable_teacher(teacher, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        METRICS.build(dict(type=AGREEMENT, teacher=teacher))


def test_a_teacher_of_other_classes(data, tmp_path):
    metric = dict(
        type=AGREEMENT,
        teacher=dict(config=stock_models.pspnet(classes=5), checkpoint=None),
    )
    with pytest.raises(ValueError, match=r'predicts 5 classes and the data set has 3 \(ground, '):
        run_test(weighted(segmentor(), tmp_path), data, tmp_path, metric)


def test_a_model_that_predicts_something_else():
    metric = TeacherAgreement(dict(config=segmentor(), checkpoint=None))
    metric.dataset_meta = dict(classes=('a',))
    with pytest.raises(ValueError, match='the model gives pred_panoptic_seg'):
        metric.process({}, [dict(pred_panoptic_seg={}, gt_instances={})])


def test_the_random_state_stays(tmp_path):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    TeacherAgreement(teacher=dict(config=segmentor(), checkpoint=None))
    assert torch.equal(torch.get_rng_state(), state)
