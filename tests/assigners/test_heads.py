"""What heads of mmdet hand over, against what they compute their own losses from."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from torch import nn

from mmkd_plugin.assigners import assigners_watched, find_head, heads
from mmkd_plugin.taps import Taps
from tests import stock_models
from tests.runs import needs_ops
from tests.stock_models import batch, build, distiller

HEADS = ('gfl', 'atss', 'retinanet', 'fcos', 'fcos in strides', 'rtmdet', 'retinanet, 9 anchors')


def config_of(name: str, width: int = 8) -> dict:
    config = getattr(stock_models, name.split()[0].strip(','))(width)
    if 'strides' in name:
        config['bbox_head'].update(norm_on_bbox=True)
    if 'anchors' in name:
        config['bbox_head']['anchor_generator'].update(scales_per_octave=3, ratios=[0.5, 1.0, 2.0])
    return config


def padded_batch(model: nn.Module):
    """Two images, the first without objects, the second with two and padded at the right."""
    inputs, samples = batch(model)
    inputs = F.pad(inputs, (0, 64))
    for sample in samples:
        sample.set_metainfo(dict(batch_input_shape=(128, 192), pad_shape=(128, 192)))
    boxes = torch.tensor([[16.0, 16, 112, 112], [8, 60, 40, 90]])
    for sample, count in zip(samples, (0, 2)):
        sample.gt_instances = InstanceData(
            bboxes=boxes[:count], labels=torch.tensor([0, 2])[:count]
        )
    return inputs, samples


def run(name: str):
    torch.manual_seed(0)
    model = build(config_of(name)).train()
    inputs, samples = padded_batch(model)
    with assigners_watched(model, ['bbox_head']) as found:
        losses = model(inputs, samples, mode='loss')
    with torch.no_grad():
        maps = model.bbox_head(model.extract_feat(inputs))
    return model, found['bbox_head'], maps, losses, samples


@needs_ops
@pytest.mark.parametrize('name', HEADS)
def test_positives_are_where_objects_are(name):
    _, found, (scores, boxes, *_), _, samples = run(name)
    assert len(found.labels) == len(scores) and found.classes == 4
    ground = samples[1].gt_instances
    count = 0
    for level, (score, box) in enumerate(zip(scores, boxes)):
        places = score.shape[1:].numel() // 4
        assert found.labels[level].shape == found.weights[level].shape == (2, places)
        assert found.priors[level].shape == (2, places, 4)
        assert found.decode(level, box, False).shape == (2, places, 4)
        positive = found.positive(level)
        assert not positive[0].any()
        count += positive.sum().item()
        boxes_of = dict(zip(ground.labels.tolist(), ground.bboxes))
        wanted = [boxes_of[label] for label in found.labels[level][positive].tolist()]
        target = found.target_boxes(level)[positive]
        for ours, theirs in zip(target, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert count > 0 and found.n_pos >= 1


@needs_ops
@pytest.mark.parametrize('name', HEADS)
def test_boxes_are_those_that_the_head_predicts(name):
    """A head at inference decodes what it would give a teacher's tap."""
    model, found, _, _, samples = run(name)
    head = model.eval().bbox_head
    with torch.no_grad():
        maps = head(model.extract_feat(padded_batch(model)[0]))
    metas = [dict(sample.metainfo, img_shape=(10**6, 10**6)) for sample in samples]
    cfg = copy.deepcopy(head.test_cfg)
    cfg.update(score_thr=0.0, nms_pre=10**6, min_bbox_size=-1)
    predicted = head.predict_by_feat(*maps, batch_img_metas=metas, cfg=cfg, with_nms=False)
    for n, one in enumerate(predicted):
        places = torch.cat([found.decode(i, x, True)[n] for i, x in enumerate(maps[1])])
        assert len(one.bboxes) == 4 * len(places)  # each class
        for ours, theirs in zip(places.T, one.bboxes.T):  # sorted by score, so as sets
            expected = theirs.clamp(min=0).sort().values
            ours = ours.repeat_interleave(4).clamp(min=0).sort().values
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-3)


@needs_ops
def test_a_student_in_strides_and_its_teacher_in_pixels_are_one_box():
    model, found, _, _, _ = run('fcos in strides')
    inputs, _ = padded_batch(model)
    with torch.no_grad():
        pixels = model.eval().bbox_head(model.extract_feat(inputs))[1]
        strides = model.bbox_head.train()(model.extract_feat(inputs))[1]
    for level, (ours, theirs) in enumerate(zip(strides, pixels)):
        torch.testing.assert_close(
            found.decode(level, ours, False), found.decode(level, theirs, True)
        )


@needs_ops
@pytest.mark.parametrize('name', ['gfl', 'atss', 'retinanet', 'fcos'])
def test_the_count_is_the_one_that_the_head_divides_by(name, monkeypatch):
    torch.manual_seed(0)
    model = build(config_of(name)).train()
    given = []
    forward = model.bbox_head.loss_cls.forward

    def noting(*args, **kwargs):
        given.append(float(kwargs['avg_factor']))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.bbox_head.loss_cls, 'forward', noting)
    monkeypatch.setattr(heads, 'all_reduce', lambda x, op: None)
    with assigners_watched(model, ['bbox_head']) as found:
        model(*padded_batch(model), mode='loss')
    assert set(given) == {found['bbox_head'].n_pos.item()} and given[0] > 1


@needs_ops
@pytest.mark.parametrize('name', ['fcos', 'fcos in strides', 'atss'])
def test_the_centerness_that_fcos_divides_boxes_by(name, monkeypatch):
    torch.manual_seed(0)
    model = build(config_of(name)).train()
    given = []
    forward = model.bbox_head.loss_bbox.forward

    def noting(*args, **kwargs):
        given.append(float(kwargs['avg_factor']))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.bbox_head.loss_bbox, 'forward', noting)
    monkeypatch.setattr(heads, 'all_reduce', lambda x, op: None)
    with assigners_watched(model, ['bbox_head']) as found:
        model(*padded_batch(model), mode='loss')
    if name == 'atss':
        assert found['bbox_head'].centerness is None
    else:
        assert found['bbox_head'].centerness.item() == pytest.approx(given[0]) and given[0] > 0


@needs_ops
def test_watching_changes_nothing_and_leaves_nothing():
    model = build(config_of('gfl')).train()
    inputs, samples = padded_batch(model)
    before = model(inputs, copy.deepcopy(samples), mode='loss')
    with pytest.raises(KeyError), assigners_watched(model, ['bbox_head']):
        after = model(inputs, samples, mode='loss')
        raise KeyError
    assert 'get_targets' not in vars(model.bbox_head)
    for key, value in before.items():
        assert all(torch.equal(a, b) for a, b in zip(value, after[key]))


# Which head ---------------------------------------------------------------------------------------


def find(model: nn.Module, tap: str) -> str:
    return find_head(model, Taps.parse(tap), 'distill.t: Loss needs it', 'the student')


@needs_ops
def test_the_head_around_a_tap_or_the_only_one():
    model = build(config_of('retinanet'))
    assert [find(model, tap) for tap in ('bbox_head.retina_cls', 'bbox_head', 'neck')] == [
        'bbox_head'
    ] * 3
    model.second = copy.deepcopy(model.bbox_head)
    assert find(model, 'second') == 'second'
    words = 'tap inside one of the student: bbox_head, second'
    with pytest.raises(ValueError, match=words):
        find(model, 'neck')


@needs_ops
@pytest.mark.parametrize('name', ['faster_rcnn', 'fcn', 'detr'])
def test_other_heads_are_refused_by_name(name):
    model = build(getattr(stock_models, name)())
    tap = dict(faster_rcnn='neck', fcn='decode_head.conv_seg', detr='bbox_head')[name]
    kind = dict(faster_rcnn='Shared2FCBBoxHead', fcn='FCNHead', detr='DETRHead')[name]
    words = (
        f'distill.t: Loss needs it; .*{kind} .* of the student does not give it. These heads do: '
    )
    with pytest.raises(ValueError, match=words + 'GFLHead, ATSSHead, RetinaHead, FCOSHead, RTMDet'):
        find(model, tap)


@needs_ops
@pytest.mark.parametrize('kind', ['PAAHead', 'FSAFHead', 'VFNetHead', 'TOODHead', 'RPNHead'])
def test_heads_that_assign_in_their_own_way_are_refused(kind):
    from mmdet.models import dense_heads

    head = getattr(dense_heads, kind)
    assert heads.reader_of(head.__new__(head)) is None


@needs_ops
def test_a_head_that_does_not_ask_its_assigner():
    student = config_of('retinanet')
    student['bbox_head'].update(type='FreeAnchorRetinaHead', loss_bbox=dict(type='SmoothL1Loss'))
    line = dict(tap='bbox_head', loss=dict(type='mmkd_plugin.ProtocolLoss'))
    words = (
        r"distill\.t: ProtocolLoss needs what the student's assigner found \(`assigned`\), and "
        r"FreeAnchorRetinaHead \('bbox_head'\) of the student did not ask one"
    )
    with pytest.raises(ValueError, match=words):
        distiller(student, config_of('retinanet'), dict(t=line))


@needs_ops
def test_a_head_of_rotated_boxes_is_of_no_known_kind() -> None:
    head = stock_models.build(stock_models.retinanet()).bbox_head
    assert heads.reader_of(head) is not None
    head.bbox_coder.encode_size = 5  # as the coders of mmrotate say
    assert heads.reader_of(head) is None
