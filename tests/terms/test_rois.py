"""Terms that compare RoI heads, on the RoIs that the student samples in its own training step."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from mmengine.structures import InstanceData
from torch import nn

from mmkd_plugin.cache.wiring import names_of
from mmkd_plugin.taps.tap import map_tensors
from mmkd_plugin.teachers.classes import classes_of_the_student
from mmkd_plugin.terms import Term
from mmkd_plugin.visualization.gallery import places_of
from tests import stock_models
from tests.runs import assert_same, needs_ops
from tests.stock_models import batch, distiller

pytestmark = [pytest.mark.usefixtures('counters'), needs_ops]

SCORES, BOXES = 'roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg'
MASKS = 'roi_head.mask_head.conv_logits'
MODELS = {
    'faster': (stock_models.faster_rcnn, {}),
    'mask': (stock_models.mask_rcnn, {}),
    'cascade': (stock_models.cascade_rcnn, {}),
    'cascade mask': (stock_models.cascade_rcnn, dict(masks=True)),
}


def detector(name: str, width: int = 8, **changes) -> dict:
    build, given = MODELS[name]
    return build(width, **given, **changes)


def line(tap=SCORES, name: str = 'SoftTargetLoss', **changes) -> dict:
    taps = tap if isinstance(tap, dict) else dict(tap=tap)
    return dict(taps, loss=dict(type=f'mmkd_plugin.{name}', **changes))


def detectors(student: dict, teacher: dict, *, exact: bool = True, **kwargs) -> nn.Module:
    """A Distiller around two-stage detectors with heads that say something."""
    given = teacher
    if 'config' not in teacher and 'tap' not in teacher:
        given = dict(config=teacher, checkpoint=None)
    if exact and 'tap' not in teacher:
        given = dict(given, inference=dict(precision='fp32', fuse_conv_bn=False))
    model = distiller(student, given, **kwargs)
    generator = torch.Generator().manual_seed(3)
    for one in (model.student, model.teachers['teacher'].model):
        for name, weight in one.named_parameters():
            if 'roi_head' in name and weight.ndim > 1:
                weight.data.normal_(0, weight[0].numel() ** -0.5, generator=generator)
    return model.train()


def given_to(model: nn.Module) -> dict[str, list]:
    """What the losses of the terms get from now on."""
    given: dict[str, list] = {name: [] for name in model.distill}
    for name, term in model.distill.items():
        term.loss.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: given[name].append((*args, kwargs)),
            with_kwargs=True,
        )
    return given


def scene(model: nn.Module, objects: tuple[int, ...] = (2, 1)):
    """Images with some objects each."""
    from mmdet.structures.mask import BitmapMasks

    inputs, samples = batch(model, len(objects))
    boxes = torch.tensor([[16.0, 16, 112, 112], [8, 60, 40, 90]])
    for sample, count in zip(samples, objects):
        masks = torch.zeros(count, 128, 128, dtype=torch.uint8)
        masks[:, 60:100, 10:100] = 1
        sample.gt_instances = InstanceData(
            bboxes=boxes[:count],
            labels=torch.tensor([0, 2])[:count],
            masks=BitmapMasks(masks.numpy(), 128, 128),
        )
    return inputs, samples


class Stock:
    """What mmdetection itself trains the RoI head of a student with, stage by stage."""

    def __init__(self, model: nn.Module) -> None:
        self.stages: list[dict] = []
        heads = model.roi_head.bbox_head
        for head in heads if isinstance(heads, nn.ModuleList) else [heads]:
            head.loss_and_target = self._noting(head, head.loss_and_target)

    def _noting(self, head: nn.Module, method):
        def noting(**given):
            labels = head.get_targets(given['sampling_results'], given['rcnn_train_cfg'])[0]
            self.stages.append({**given, 'labels': labels, 'coder': head.bbox_coder})
            return method(**given)

        return noting


def own_class(values: torch.Tensor, stage: dict) -> torch.Tensor:
    """Of values ``(P, C, ...)`` or ``(P, 1, ...)``, those of each positive's class."""
    labels = stage['labels'][stage['labels'] < 4]
    return torch.stack([x[label if len(x) > 1 else 0] for x, label in zip(values, labels)])


# What is compared ---------------------------------------------------------------------------------


@pytest.mark.parametrize('name', MODELS)
def test_the_loss_gets_what_mmdetection_says_of_the_same_rois(name):
    stages = (0, 1) if 'cascade' in name else (None,)
    at = ['' if stage is None else f'.{stage}' for stage in stages]
    terms = dict(
        scores=line([f'roi_head.bbox_head{stage}.fc_cls' for stage in at]),
        boxes=line([f'roi_head.bbox_head{stage}.fc_reg' for stage in at], 'HintLoss'),
        features=line([f'roi_head.bbox_head{stage}.shared_fcs.0' for stage in at], 'HintLoss'),
    )
    if 'mask' in name:
        taps = [f'roi_head.mask_head{stage}.conv_logits' for stage in at]
        terms['masks'] = line(taps, 'PixelWiseLoss', sigmoid=True)
    model = detectors(detector(name), detector(name, 16), distill=terms)
    stock, given = Stock(model.student), given_to(model)
    inputs, samples = scene(model)
    model(inputs, samples, mode='loss')
    frozen = model.teachers['teacher'].model
    pairs = {
        key: [x if isinstance(x, list) else [x] for x in calls[0][:2]]
        for key, calls in given.items()
    }
    with torch.no_grad():
        features = frozen.extract_feat(inputs)
        for number, (stage, found) in enumerate(zip(stages, stock.stages)):
            where = () if stage is None else (stage,)
            answer = frozen.roi_head._bbox_forward(*where, features, found['rois'])
            student, teacher = (x[number] for x in pairs['scores'])
            assert torch.equal(student, found['cls_score'])
            torch.testing.assert_close(teacher, answer['cls_score'])
            assert student.requires_grad and not teacher.requires_grad
            positive = found['labels'] < 4
            assert positive.sum() >= 3
            for ours, whole in zip(pairs['boxes'], (found['bbox_pred'], answer['bbox_pred'])):
                expected = own_class(whole[positive].unflatten(1, (-1, 4)), found)
                torch.testing.assert_close(ours[number], expected)
            assert all(len(x[number]) == len(found['rois']) for x in pairs['features'])
            if 'masks' in pairs:
                rois = found['rois'][positive]
                masks = frozen.roi_head._mask_forward(*where, features, rois)['mask_preds']
                expected = own_class(masks, found)[:, None]
                torch.testing.assert_close(pairs['masks'][1][number], expected)
                assert pairs['masks'][0][number].shape == expected.shape


def test_a_cascade_teaches_a_single_stage_in_the_students_coding():
    terms = dict(
        scores=line(dict(student_tap=SCORES, teacher_tap='roi_head.bbox_head.1.fc_cls')),
        boxes=line(dict(student_tap=BOXES, teacher_tap='roi_head.bbox_head.1.fc_reg'), 'HintLoss'),
    )
    model = detectors(detector('faster'), detector('cascade', 16), distill=terms)
    stock, given = Stock(model.student), given_to(model)
    inputs, samples = scene(model)
    model(inputs, samples, mode='loss')
    (found,) = stock.stages
    frozen = model.teachers['teacher'].model
    with torch.no_grad():
        answer = frozen.roi_head._bbox_forward(1, frozen.extract_feat(inputs), found['rois'])
    torch.testing.assert_close(given['scores'][0][1], answer['cls_score'])
    positive = found['labels'] < 4
    rois = found['rois'][positive, 1:]
    boxes = frozen.roi_head.bbox_head[1].bbox_coder.decode(rois, answer['bbox_pred'][positive])
    expected = found['coder'].encode(rois, boxes)
    torch.testing.assert_close(given['boxes'][0][1], expected, rtol=1e-3, atol=1e-3)


def test_one_stage_teaches_both_stages_of_a_cascade():
    taps = [f'roi_head.bbox_head.{stage}.fc_cls' for stage in (0, 1)]
    pairs = dict(student_tap=taps, teacher_tap=[SCORES, SCORES])
    model = detectors(detector('cascade'), detector('faster', 16), distill=dict(scores=line(pairs)))
    given = given_to(model)
    model(*scene(model), mode='loss')
    students, teachers, _ = given['scores'][0]
    assert [len(x) for x in students] == [len(x) for x in teachers]
    assert not torch.equal(teachers[0][:8], teachers[1][:8])  # other RoIs


def test_a_loss_gets_the_classes_of_the_rois_of_each_stage():
    taps = [f'roi_head.bbox_head.{stage}.fc_cls' for stage in (0, 1)]
    model = detectors(
        detector('cascade'), detector('cascade', 16), distill=dict(dkd=line(taps, 'DecoupledLoss'))
    )
    stock, given = Stock(model.student), given_to(model)
    model(*scene(model), mode='loss')
    labels = given['dkd'][0][2]['labels']
    assert len(labels) == len(stock.stages) == 2
    for ours, stage in zip(labels, stock.stages):
        assert torch.equal(ours, stage['labels']) and 4 in ours


def test_the_head_as_a_whole_gives_scores_and_boxes():
    model = detectors(
        detector('faster'),
        detector('faster', 16),
        distill=dict(
            both=line('roi_head.bbox_head', 'HintLoss'),
            scores=line('roi_head.bbox_head[0]'),
            boxes=line('roi_head.bbox_head[1]', 'HintLoss'),
        ),
    )
    given = given_to(model)
    model(*scene(model), mode='loss')
    for scores, boxes, side in zip(given['scores'][0], given['boxes'][0], (0, 1)):
        for ours, expected in zip(given['both'][0][side], (scores, boxes)):
            assert torch.equal(ours, expected)
        assert scores.shape[1] == 5 and boxes.shape[1] == 4


# The training step --------------------------------------------------------------------------------


@pytest.fixture
def masked() -> nn.Module:
    """Mask R-CNN with a term on scores, boxes and masks each, and automatic weights."""
    terms = dict(
        scores=line(loss_weight='auto'),
        boxes=line(BOXES, 'HintLoss', loss_weight='auto'),
        masks=line(MASKS, 'PixelWiseLoss', sigmoid=True, loss_weight='auto'),
    )
    return detectors(detector('mask'), detector('mask', 16), exact=False, distill=terms)


def test_the_student_trains_as_it_would_alone_and_samples_once(masked):
    inputs, samples = scene(masked)
    sampled, sampler = [], masked.student.roi_head.bbox_sampler
    sample = sampler.sample
    sampler.sample = lambda *args, **kwargs: sampled.append(0) or sample(*args, **kwargs)
    torch.manual_seed(5)
    losses = masked(inputs, copy.deepcopy(samples), mode='loss')
    assert len(sampled) == len(samples)
    torch.manual_seed(5)
    alone = masked.student(inputs, copy.deepcopy(samples), mode='loss')
    assert set(losses) == {*alone, *(f'distill.{name}.loss' for name in masked.distill)}
    assert_same({key: losses[key] for key in alone}, alone)


def test_it_teaches_the_student_and_leaves_the_teacher(masked):
    frozen = masked.teachers['teacher'].model
    inputs, samples = scene(masked)
    masked(inputs, copy.deepcopy(samples), mode='loss')  # which fuses nothing more
    before = copy.deepcopy(frozen.state_dict())
    own = {name: p.detach().clone() for name, p in masked.student.named_parameters()}
    optimizer = OptimWrapper(torch.optim.AdamW(masked.parameters(), lr=1e-3))
    values = []
    for _ in range(6):
        torch.manual_seed(5)
        losses = masked(inputs, copy.deepcopy(samples), mode='loss')
        kept = [losses[f'distill.{name}.loss'] for name in masked.distill]
        values.append(kept[0].item())
        optimizer.update_params(sum(kept))
    assert values[-1] < values[0]
    assert_same(dict(before), dict(frozen.state_dict()))
    moved = {
        '.'.join(name.split('.')[:2])
        for name, p in masked.student.named_parameters()
        if not torch.equal(own[name], p)
    }
    assert {'roi_head.bbox_head', 'roi_head.mask_head', 'neck.fpn_convs'} <= moved
    assert all(p.grad is None for p in frozen.parameters())


def test_images_without_objects_and_mixed_precision(masked):
    for part in (masked.student.neck, masked.student.rpn_head):  # mmcv's operations want float32
        part.register_forward_hook(lambda _, __, out: map_tensors(out, torch.Tensor.float))
    inputs, samples = scene(masked, (0, 0))
    with torch.autocast('cpu', torch.bfloat16):
        losses = masked(inputs, samples, mode='loss')
    found = {name: losses[f'distill.{name}.loss'] for name in masked.distill}
    assert found['scores'] > 0 and found['boxes'] == found['masks'] == 0
    assert all(x.dtype == torch.float32 and x.isfinite() for x in found.values())
    masked.parse_losses(losses)[0].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in masked.parameters())
    inputs, samples = scene(masked, (2, 0))
    losses = masked(inputs, samples, mode='loss')
    assert all(losses[f'distill.{name}.loss'] > 0 for name in masked.distill)


def test_the_second_run_is_left_out_while_the_terms_are_off(masked, counters):
    terms = dict(kd=line(), neck=dict(tap='neck', loss=stock_models.cwd()))
    terms['kd']['schedule'] = dict(start=5)
    counters.update_info('max_iters', 10)
    model = detectors(detector('faster'), detector('faster', 16), distill=terms)
    calls = stock_models.calls_of(model.teachers['teacher'].model.roi_head.bbox_head)
    losses = model(*scene(model), mode='loss')
    assert 'distill.kd.loss' not in losses and 'distill.neck.loss' in losses and not calls
    counters.update_info('iter', 5)
    assert model(*scene(model), mode='loss')['distill.kd.loss'] > 0 and len(calls) == 1


def test_the_rois_are_sampled_while_the_task_loss_is_off():
    model = detectors(
        detector('faster'),
        detector('faster', 16),
        distill=dict(kd=line()),
        task=dict(loss_weight=0),
    )
    losses = model(*scene(model), mode='loss')
    assert set(losses) == {'distill.kd.loss'} and losses['distill.kd.loss'] > 0


def test_the_plan_says_what_it_costs_and_shows_the_shapes(masked, caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    work = masked.teachers['teacher'].work()
    assert 'runs its roi_head on the RoIs of the student (0.02 M parameters)' in work
    detectors(detector('mask'), detector('mask', 16), distill=dict(m=line(MASKS, 'HintLoss')))
    logger.removeHandler(caplog.handler)
    assert '(P, 1, 8, 8)' in caplog.text
    assert 'on the RoIs that the student samples (R), P of them positive' in caplog.text


# Classes ------------------------------------------------------------------------------------------


def test_classes_in_another_order():
    teacher = dict(config=detector('faster', 16), checkpoint=None, classes=tuple('bacd'))
    with classes_of_the_student(tuple('abcd')):
        model = detectors(detector('faster'), teacher, distill=dict(kd=line()))
        with pytest.raises(ValueError, match=r'distill.kd: .* or the same in another order'):
            detectors(detector('faster'), teacher, distill=dict(kd=line(BOXES, 'HintLoss')))
    stock, given = Stock(model.student), given_to(model)
    inputs, samples = scene(model)
    model(inputs, samples, mode='loss')
    frozen = model.teachers['teacher'].model
    with torch.no_grad():
        rois = stock.stages[0]['rois']
        scores = frozen.roi_head._bbox_forward(frozen.extract_feat(inputs), rois)['cls_score']
    torch.testing.assert_close(given['kd'][0][1], scores[:, [1, 0, 2, 3, 4]])


@pytest.mark.parametrize(
    ('tap', 'name', 'message'),
    [
        (SCORES, 'SoftTargetLoss', 'gives scores of 4 classes in the student and 3 in the teacher'),
        (BOXES, 'HintLoss', 'gives boxes of 3 classes, and the student has 4'),
    ],
)
def test_other_numbers_of_classes(tap, name, message):
    teacher = detector('faster', 16, classes=3)
    with pytest.raises(ValueError, match=message):
        detectors(detector('faster'), teacher, distill=dict(kd=line(tap, name)))


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('term', 'message'),
    [
        (
            line(dict(student_tap=SCORES, teacher_tap='rpn_head.rpn_cls')),
            'distill.kd: the tap of the student lies behind the proposals .* that of the teacher',
        ),
        (
            line([SCORES, 'neck[0]']),
            'distill.kd: some taps of the student lie behind the proposals',
        ),
        (
            line(dict(student_tap=SCORES, teacher_tap=[SCORES, BOXES])),
            'distill.kd: .* are 1 and 2 taps; each tap of the teacher is asked on the RoIs of one',
        ),
        (
            line('roi_head.bbox_roi_extractor', 'FocalGlobalLoss'),
            'distill.kd: FocalGlobalLoss needs `.*` of maps of the image',
        ),
    ],
)
def test_a_term_that_makes_no_sense(term, message):
    with pytest.raises(ValueError, match=message):
        Term.from_config('kd', term, ['teacher'])


def htc() -> dict:
    config = detector('cascade')
    config['roi_head'].update(type='HybridTaskCascadeRoIHead')
    return config


def with_hard_examples() -> dict:
    config = detector('faster')
    config['train_cfg']['rcnn']['sampler'].update(type='OHEMSampler')
    return config


def with_other_boxes() -> dict:
    config = detector('faster', 16)
    config['roi_head']['bbox_head']['bbox_coder'] = dict(type='TBLRBBoxCoder')
    return config


@pytest.mark.parametrize(
    ('student', 'teacher', 'tap', 'message'),
    [
        (
            lambda: stock_models.retinanet(),
            lambda: detector('faster', 16),
            SCORES,
            r"distill\.kd: the student has no module 'roi_head.bbox_head.fc_cls'",
        ),
        (
            lambda: detector('faster'),
            lambda: detector('cascade', 16),
            SCORES,
            r"teacher 'teacher' has no module '.*'. Closest: .*roi_head.bbox_head.0.fc_cls",
        ),
        (
            htc,
            htc,
            'roi_head.bbox_head.0.fc_cls',
            r'distill.kd: the student: .* lies in a HybridTaskCascadeRoIHead, .*StandardRoI',
        ),
        (
            with_hard_examples,
            lambda: detector('faster', 16),
            SCORES,
            r"the student: 'roi_head.bbox_head.fc_cls' runs \d times .* Take the RandomSampler",
        ),
        (
            lambda: detector('faster'),
            with_other_boxes,
            BOXES,
            r'gives boxes, .* and one is a TBLRBBoxCoder; compare scores alone',
        ),
        (
            lambda: detector('faster'),
            lambda: detector('faster', 16),
            'roi_head.bbox_head.shared_fcs.0@pre_relu',
            r'cannot be read for the RoIs of a student; tap the output or the input of',
        ),
        (
            lambda: detector('faster'),
            lambda: dict(tap='backbone', neck=dict(type='mmkd_plugin.BiFPNSelfTeacher')),
            SCORES,
            r'distill.kd: SoftTargetLoss compares RoI heads, which a self-teacher cannot show',
        ),
    ],
)
def test_models_that_cannot_be_asked(student, teacher, tap, message):
    teacher = teacher()
    name = 'SoftTargetLoss' if tap != BOXES else 'HintLoss'
    if 'tap' in teacher:
        teacher.update(type='mmkd_plugin.SelfTeacher', name='teacher')
    with pytest.raises(ValueError, match=message):
        distiller(student(), teacher, dict(kd=line(tap, name)))


def test_a_cache_cannot_replace_the_teacher():
    words = r"distill\.kd: teacher 'teacher' is a cache. It asks the teacher itself about"
    with pytest.raises(ValueError, match=words):
        names_of(dict(kd=line()), 'teacher')


def test_a_picture_shows_maps_and_no_rois():
    terms = [Term.from_config('kd', one, ['teacher']) for one in (line(), line('neck', 'HintLoss'))]
    assert [str(place) for place in places_of(terms)] == ['neck']
