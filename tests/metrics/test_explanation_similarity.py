"""Similarity of explanations: real models against loops, a teacher like the student, wrong ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmkd_plugin.metrics import ExplanationSimilarity
from mmkd_plugin.metrics.explanation_metric import in_parts, seen_classes
from mmkd_plugin.registry import METRICS, MODELS
from tests import stock_models
from tests.metrics import by_hand
from tests.metrics.runs import detector, run_test, segmentor, weighted
from tests.runs import needs_ops

CAM = dict(type='mmkd_plugin.GradCAM', scores='decode_head.conv_seg')
BOXES = dict(type='mmkd_plugin.GradCAM', scores='bbox_head.retina_cls', score_thr=0.0099)
SIMILARITY = dict(type='mmkd_plugin.ExplanationSimilarity', explainer=CAM, tap='backbone.layer3')


def cosines(student, teacher, keep, tap, scores, classes, thr=0.0) -> dict[int, list[float]]:
    """For each class that the teacher sees in each image; both at the teacher's positions."""
    found = {c: [] for c in range(classes)}
    for batch in keep.batches:
        for i in range(len(batch['inputs'])):
            ours, theirs = (by_hand.alone(model, batch, i) for model in (student, teacher))
            for c in range(classes):
                at = by_hand.seen(teacher, theirs, scores, c, thr)
                if not any(x.any() for x in at):
                    continue
                s, t = (
                    by_hand.grad_cam(model, inputs, tap, scores, c, at)[:48, :48].flatten()
                    for model, inputs in ((student, ours), (teacher, theirs))
                )
                norms = float(s.norm() * t.norm())
                found[c].append(float(s @ t) / norms if norms else 0.0)
    return found


CASES = [
    (segmentor, CAM, 3),
    pytest.param(detector, BOXES, 2, marks=needs_ops),
]


@pytest.mark.parametrize(('make', 'explainer', 'classes'), CASES)
def test_against_loops(make, explainer, classes, data, tmp_path):
    """Each is fed by its own preprocessor."""
    student = weighted(make(), tmp_path, seed=3)
    teacher = weighted(make(mean=[90.0] * 3, std=[40.0] * 3, bgr_to_rgb=False), tmp_path)
    metric = dict(SIMILARITY, explainer=explainer, teacher=teacher)
    result, keep = run_test(student, data, tmp_path, metric)
    both = by_hand.loaded(student), by_hand.loaded(teacher)
    thr = explainer.get('score_thr', 0)
    found = cosines(*both, keep, 'backbone.layer3', explainer['scores'], classes, thr)
    expected = {
        'explanation/cosine': np.mean([x for own in found.values() for x in own]),
        'explanation/mean_cosine': np.mean([np.mean(own) for own in found.values() if own]),
    }
    assert result == pytest.approx(expected, abs=1e-4)
    assert sum(bool(own) for own in found.values()) > 1
    assert 0 < result['explanation/cosine'] < 1


def test_a_teacher_like_the_student(data, tmp_path, capfd):
    """1 for each pair of maps, or 0 if they are all zero; for two taps, the mean."""
    taps = ['backbone.layer3', 'backbone.layer4']
    model = weighted(segmentor(), tmp_path)
    result, keep = run_test(model, data, tmp_path, dict(SIMILARITY, tap=taps, teacher=model))
    alone = by_hand.loaded(model)
    found = [cosines(alone, alone, keep, tap, CAM['scores'], 3) for tap in taps]
    pairs = np.mean([one[0] + one[2] for one in found], axis=0)
    assert set(np.round(pairs, 6)) > {1.0}
    assert result['explanation/cosine'] == pytest.approx(np.mean(pairs))
    log = capfd.readouterr()
    assert '│ box    │      - │      0 │' in log.out + log.err


@needs_ops
def test_nothing_is_seen(data, tmp_path):
    """A detector that is sure of nothing explains nothing."""
    model = weighted(detector(), tmp_path)
    explainer = dict(BOXES, score_thr=0.9)
    result, _ = run_test(
        model, data, tmp_path, dict(SIMILARITY, explainer=explainer, teacher=model)
    )
    assert all(np.isnan(value) for value in result.values())


def test_classes_in_the_order_of_their_positions_and_among_some(data, tmp_path):
    model = by_hand.loaded(weighted(segmentor(), tmp_path)).float()
    explainer = MODELS.build(CAM)
    torch.manual_seed(0)
    inputs = torch.randn(3, 3, 64, 64)
    logits = torch.randn(3, 3, 8, 8)
    logits[0, 2] += 9  # the first image shows one class alone
    logits[1:, 0] += 0.5
    model.decode_head.conv_seg.register_forward_hook(lambda *_: logits)
    every = seen_classes(model, inputs, None, explainer)
    labels = logits.argmax(1)
    assert every.classes[0].tolist() == [2, -1, -1]
    for i, row in enumerate(every.classes.tolist()):
        counts = [int((labels[i] == c).sum()) for c in row if c >= 0]
        assert counts == sorted(counts, reverse=True) and sum(counts) == 64
        for k, c in enumerate(row):
            where = every.positions[0][i, k, 0]
            assert torch.equal(where, (labels[i] == c) if c >= 0 else torch.zeros(8, 8).bool())
    among = torch.tensor([[True, True, False], [True, False, True], [False, False, True]])
    some = seen_classes(model, inputs, None, explainer, among=among)
    assert some.classes.shape == (3, 2)
    for i, row in enumerate(some.classes.tolist()):
        wanted = {c for c in range(3) if among[i, c] and (labels[i] == c).any()}
        assert set(row[: len(wanted)]) == wanted and set(row[len(wanted) :]) <= {-1}
        for k, c in enumerate(row):
            where = some.positions[0][i, k, 0]
            assert c < 0 or torch.equal(where, labels[i] == c)
    parts = list(in_parts(every, 2))
    assert [part.classes.shape[1] for part in parts] == [2, 1]
    assert torch.equal(torch.cat([part.positions[0] for part in parts], 1), every.positions[0])


# --- what can be wrong --------------------------------------------------------------------------


def test_no_teacher():
    with pytest.raises(ValueError, match='ExplanationSimilarity needs a teacher'):
        METRICS.build(SIMILARITY)


def test_a_teacher_without_the_tap(data, tmp_path):
    teacher = weighted(segmentor(), tmp_path)
    with pytest.raises(ValueError, match=r"the teacher .*'backbone.layer9'.* Closest: backbone"):
        ExplanationSimilarity(CAM, 'backbone.layer3', 'backbone.layer9', teacher)


def test_a_teacher_of_other_classes(data, tmp_path):
    teacher = dict(config=stock_models.pspnet(classes=5), checkpoint=None)
    with pytest.raises(ValueError, match='ExplanationSimilarity: the teacher predicts 5 classes'):
        run_test(weighted(segmentor(), tmp_path), data, tmp_path, dict(SIMILARITY, teacher=teacher))
