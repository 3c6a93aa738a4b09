"""Localization of explanations: by hand, by loops, real models, wrong configs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData

from mmkd_plugin.cli import read_config
from mmkd_plugin.explanations import explain
from mmkd_plugin.metrics import ExplanationLocalization
from mmkd_plugin.metrics.explanation_localization import (
    attribution_iou,
    energy_pointing_game,
    regions_of,
)
from mmkd_plugin.metrics.explanation_metric import seen_classes
from mmkd_plugin.registry import METRICS
from tests import stock_models
from tests.metrics import by_hand
from tests.metrics.runs import detector, run_test, segmentor, weighted
from tests.runs import needs_ops

CPU = torch.device('cpu')
CAM = dict(type='mmkd_plugin.GradCAM', scores='decode_head.conv_seg')
BOXES = dict(type='mmkd_plugin.GradCAM', scores='bbox_head.retina_cls', score_thr=0.0099)


# --- the mathematics ----------------------------------------------------------------------------


def epg(attribution: list[list[float]], region: list[list[bool]]) -> float:
    inside = everything = 0.0
    for row, where in zip(attribution, region, strict=True):
        for value, is_inside in zip(row, where, strict=True):
            inside += max(value, 0) * is_inside
            everything += max(value, 0)
    return inside / everything if everything else math.nan


def iou(attribution: list[list[float]], region: list[list[bool]], threshold: float) -> float:
    largest = max(map(max, attribution))
    pairs = [
        (value >= threshold * largest, is_inside)
        for row, where in zip(attribution, region, strict=True)
        for value, is_inside in zip(row, where, strict=True)
    ]
    if largest <= 0:
        return math.nan
    return sum(a and b for a, b in pairs) / sum(a or b for a, b in pairs)


def test_against_loops():
    generator = torch.Generator().manual_seed(0)
    attribution = torch.randn(4, 5, 6, generator=generator, dtype=torch.float64)
    region = torch.rand(4, 5, 6, generator=generator) > 0.6
    lists = list(zip(attribution.tolist(), region.tolist(), strict=True))
    expected = [epg(*pair) for pair in lists]
    assert energy_pointing_game(attribution, region).tolist() == pytest.approx(expected)
    expected = [iou(*pair, 0.3) for pair in lists]
    assert attribution_iou(attribution, region, 0.3).tolist() == pytest.approx(expected)
    assert 0 < min(expected) < max(expected) < 1


def test_all_inside_and_all_outside():
    attribution = torch.zeros(1, 4, 4)
    attribution[0, :2, :2] = 5
    region = attribution > 0
    assert energy_pointing_game(attribution, region) == attribution_iou(attribution, region, 1) == 1
    assert energy_pointing_game(attribution, ~region) == 0
    assert attribution_iou(attribution, ~region, 0.1) == 0


@pytest.mark.parametrize('value', [0.0, -1.0])
def test_nothing_positive(value):
    attribution, region = torch.full((2, 3, 3), value), torch.ones(2, 3, 3, dtype=torch.bool)
    assert energy_pointing_game(attribution, region).isnan().all()
    assert attribution_iou(attribution, region, 0.5).isnan().all()


def test_an_empty_region():
    attribution, region = torch.ones(3, 3), torch.zeros(3, 3, dtype=torch.bool)
    assert energy_pointing_game(attribution, region) == attribution_iou(attribution, region, 1) == 0


def test_regions_of_boxes():
    """A box holds the pixels whose centre it holds; boxes of a class are united."""
    boxes = torch.tensor([[0.0, 0, 2, 1], [1, 0, 3.5, 2], [3, 1, 4, 2], [-9, -9, 9, 9]])
    instances = dict(bboxes=boxes, labels=torch.tensor([1, 1, 0, 3]))
    sample = dict(gt_instances=instances, ori_shape=(2, 4))
    regions, counted = regions_of(sample, 4, 255, CPU)
    assert regions.int().tolist() == [
        [[0, 0, 0, 0], [0, 0, 0, 1]],
        [[1, 1, 1, 0], [0, 1, 1, 0]],
        [[0] * 4] * 2,
        [[1] * 4] * 2,
    ]
    assert counted.shape == (2, 4) and counted.all()


def test_an_image_without_boxes():
    instances = dict(InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long()).items())
    regions, _ = regions_of(dict(gt_instances=instances, ori_shape=(2, 4)), 2, 255, CPU)
    assert regions.shape == (2, 2, 4) and not regions.any()


# --- real models --------------------------------------------------------------------------------


def expected_of(model, keep, tap, scores, classes, truth, thr=0.0, ignore=None):
    """EPG and IoU of each class in each image, or None where there is no explanation."""
    found = {c: [] for c in range(classes)}
    samples = iter(keep.kept)
    for batch in keep.batches:
        for i in range(len(batch['inputs'])):
            sample = next(samples)
            inputs = by_hand.alone(model, batch, i)
            for c in range(classes):
                region = truth(sample, c)
                if not region.any():
                    continue
                at = by_hand.seen(model, inputs, scores, c, thr)
                cam = by_hand.grad_cam(model, inputs, tap, scores, c, at)[:48, :48]
                cam = F.interpolate(cam[None, None], (64, 64), mode='bilinear')[0, 0]
                if ignore is not None:
                    cam[sample['gt_sem_seg']['data'][0] == ignore] = 0
                lists = cam.tolist(), region.tolist()
                pair = (epg(*lists), iou(*lists, 0.4)) if cam.max() > 0 else None
                found[c].append(pair)
    return found


def means(found: dict) -> dict:
    pairs = [[pair for pair in found[c] if pair] for c in found]
    epgs, ious = (np.mean([np.mean([p[k] for p in own]) for own in pairs if own]) for k in (0, 1))
    every = [pair for own in found.values() for pair in own]
    return {
        'localization/epg': 100 * epgs,
        'localization/iou': 100 * ious,
        'localization/explained': 100 * sum(p is not None for p in every) / len(every),
    }


def test_a_segmentor(data, tmp_path, capfd):
    """Pixels of class 0 do not count, so it is not explained although the model sees it."""
    model = weighted(segmentor(), tmp_path)
    metric = dict(
        type='mmkd_plugin.ExplanationLocalization',
        explainer=CAM,
        tap='backbone.layer3',
        threshold=0.4,
        ignore_index=0,
    )
    result, keep = run_test(model, data, tmp_path, metric)
    found = expected_of(
        by_hand.loaded(model),
        keep,
        'backbone.layer3',
        'decode_head.conv_seg',
        3,
        lambda sample, c: (sample['gt_sem_seg']['data'][0] == c) & (c != 0),
        ignore=0,
    )
    assert result == pytest.approx(means(found), rel=1e-4)
    assert not found[0] and not any(found[1]) and any(found[2])
    assert 0 < result['localization/epg'] < 100
    log = capfd.readouterr()
    assert '│ ground │     - │     - │         - │' in log.out + log.err


@needs_ops
def test_a_detector(data, tmp_path):
    """Images of 48 pixels are padded to 64; the padding is no part of the attribution."""
    model = weighted(detector(), tmp_path)
    metric = dict(
        type='mmkd_plugin.ExplanationLocalization',
        explainer=BOXES,
        tap='backbone.layer3',
        threshold=0.4,
    )
    result, keep = run_test(model, data, tmp_path, metric)

    def region(sample: dict, c: int) -> torch.Tensor:
        found = torch.zeros(64, 64, dtype=torch.bool)
        instances = sample['gt_instances']
        for box, label in zip(
            instances['bboxes'].tolist(), instances['labels'].tolist(), strict=True
        ):
            left, top, right, bottom = map(round, box)
            if label == c:
                found[top:bottom, left:right] = True
        return found

    found = expected_of(
        by_hand.loaded(model),
        keep,
        'backbone.layer3',
        'bbox_head.retina_cls',
        2,
        region,
        thr=BOXES['score_thr'],
    )
    assert len(found[0]) == len(found[1]) == 6
    assert result == pytest.approx(means(found), rel=1e-4)
    assert result['localization/explained'] > 0


def test_what_positions_add_to_a_score_of_a_bcos_model():
    """All positions together give the score of a model whose only bias is removed."""
    path = 'configs/digit_scenes/bcos-fpn_r18-w16_1k_digit-scenes-128x128.py'
    model = stock_models.build(dict(read_config(path).model, _scope_='mmseg')).eval()
    torch.nn.init.zeros_(model.decode_head.conv_seg.bias)
    explainer = dict(type='mmkd_plugin.BcosWeights', scores='decode_head.conv_seg')
    metric = ExplanationLocalization(explainer, 'backbone.add_inverse')
    metric.use_model(model)
    torch.manual_seed(0)
    inputs = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        chosen = seen_classes(model, inputs, None, metric.explainer)
        explained = explain(model, inputs, None, metric.explainer, metric.tap, chosen)
        found = metric._attribution(explained.maps, inputs, None).sum((2, 3))
        (scores,) = by_hand.outputs(model, inputs, 'decode_head.conv_seg')[0]
    assert chosen.present.any()
    for i, k in chosen.present.nonzero().tolist():
        c = int(chosen.classes[i, k])
        expected = scores[i, c][scores[i].argmax(0) == c].sum()
        assert float(found[i, k]) == pytest.approx(float(expected), rel=1e-3)


def test_a_class_that_is_not_seen():
    """The means leave out what has no explanation, and classes without images."""
    metric = ExplanationLocalization(CAM, 'backbone.layer4')
    metric.dataset_meta = dict(classes=('a', 'b', 'c'))
    first = [[1, 1, 0], [1, 0, 0], [0.5, 0, 0], [0.25, 0, 0], [0.1, 0.2, 0]]
    second = [[1, 1, 0], [1, 1, 0], [0.7, 0.2, 0], [0.35, 0.1, 0], [0.3, 0.2, 0]]
    result = metric.compute_metrics([torch.tensor(x, dtype=torch.float64) for x in (first, second)])
    assert result == pytest.approx(dict(epg=(60 + 20) / 2, iou=(30 + 10) / 2, explained=75))


# --- what can be wrong --------------------------------------------------------------------------

WRONG = [
    (dict(explainer=dict(type='mmkd_plugin.GradCAN', scores='a')), 'did you mean mmkd_plugin.Grad'),
    (dict(explainer=dict(CAM, score='a')), 'unknown key `score`; did you mean `scores`'),
    (dict(explainer=dict(type='mmkd_plugin.HintLoss')), 'HintLoss is not an explainer'),
    (dict(tap='a b'), "'a b' is not a tap"),
    (dict(threshold=0), 'threshold must be above 0 and at most 1, got 0'),
]


@pytest.mark.parametrize(('change', 'message'), WRONG)
def test_wrong_arguments(change, message):
    config = dict(type='mmkd_plugin.ExplanationLocalization', explainer=CAM, tap='backbone')
    with pytest.raises(ValueError, match=message):
        METRICS.build({**config, **change})


def test_a_tap_that_the_model_lacks(data, tmp_path):
    metric = dict(type='mmkd_plugin.ExplanationLocalization', explainer=CAM, tap='backbone.layer5')
    with pytest.raises(ValueError, match=r"ExplanationLocalization: the model .*'backbone.layer5'"):
        run_test(weighted(segmentor(), tmp_path), data, tmp_path, metric)


def test_without_the_model():
    metric = ExplanationLocalization(CAM, 'backbone.layer4')
    metric.dataset_meta = dict(classes=('a',))
    with pytest.raises(ValueError, match=r'tools/test.py of this plugin, or add .*ModelForMetrics'):
        metric.process({}, [])


def test_without_ground_truth():
    with pytest.raises(ValueError, match='LoadAnnotations in the pipeline'):
        regions_of(dict(ori_shape=(4, 4)), 3, 255, CPU)
    with pytest.raises(ValueError, match='LoadAnnotations in the pipeline'):
        regions_of(dict(gt_instances={}, ori_shape=(4, 4)), 3, 255, CPU)
