"""Self-teachers: what they learn from, what they teach, where their weights go."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.structures import PixelData
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmkd_plugin.checkpoint import distillation_state
from mmkd_plugin.losses.overhaul import margin_from_norm
from tests import stock_models
from tests.conftest import OLD_TORCH
from tests.runs import needs_ops
from tests.stock_models import batch, build, calls_of, distiller

SELF = dict(
    type='mmkd_plugin.SelfTeacher',
    tap='backbone',
    neck=dict(type='mmkd_plugin.BiFPNSelfTeacher', width=2, depth=2),
)
LEVELS = dict(SELF, tap='neck', neck=dict(type='mmkd_plugin.BiFPNSelfTeacher', width=1))
FEATURES = dict(
    student_tap='backbone',
    teacher_tap='neck',
    loss=dict(type='mmkd_plugin.AttentionLoss', loss_weight=100),
)
LOGITS = dict(tap='decode_head.conv_seg', loss=dict(type='mmkd_plugin.PixelWiseLoss'))
TERMS = dict(features=FEATURES, logits=LOGITS)


pytestmark = pytest.mark.usefixtures('counters')


def segmentor(terms=None, student=None, **changes):
    return distiller(student or stock_models.fcn(), dict(SELF, **changes), terms or TERMS).train()


def own(model):
    return model.self_teachers['self_teacher'].model


def test_the_losses_of_student_self_teacher_and_terms():
    model = segmentor()
    inputs, samples = batch(model)
    alone = copy.deepcopy(model.student)(inputs, samples, mode='loss')
    losses = model(inputs, samples, mode='loss')
    assert set(losses) == {
        *alone,
        *(f'self_teacher.{key}' for key in alone),
        'distill.features.loss',
        'distill.logits.loss',
    }
    for key, value in alone.items():
        assert torch.equal(losses[key], value)


def test_its_task_loss_is_that_of_a_model_on_the_students_maps():
    model = segmentor()
    model.eval()
    inputs, samples = batch(model)
    losses = model(inputs, samples, mode='loss')
    teacher, maps = own(model), model.student.backbone(inputs)
    refined = teacher.neck(maps)
    expected = teacher.decode_head.loss(refined, samples, None)
    torch.testing.assert_close(losses['self_teacher.decode.loss_ce'], expected['loss_ce'])
    attention = build(FEATURES['loss'])(list(maps), list(refined))
    torch.testing.assert_close(losses['distill.features.loss'], attention)
    logits = build(LOGITS['loss'])(model.student.decode_head(maps), teacher.decode_head(refined))
    torch.testing.assert_close(losses['distill.logits.loss'], logits)


# Which loss trains which part: (student backbone, student head, self-teacher neck, its head).
TRAINS = {
    'decode.loss_ce': (True, True, False, False),
    'self_teacher.decode.loss_ce': (True, False, True, True),
    'distill.features.loss': (True, False, False, False),
    'distill.logits.loss': (True, True, False, False),
}


@pytest.mark.parametrize('loss', TRAINS)
def test_what_each_loss_trains(loss):
    model = segmentor()
    losses = model(*batch(model), mode='loss')
    losses[loss].backward()
    student, teacher = model.student, own(model)
    parts = student.backbone, student.decode_head, teacher.neck, teacher.decode_head
    reached = tuple(
        any(p.grad is not None and bool(p.grad.any()) for p in part.parameters()) for part in parts
    )
    assert reached == TRAINS[loss]


@needs_ops
@pytest.mark.parametrize(
    ('family', 'scores'),
    [
        ('retinanet', 'bbox_head.retina_cls'),
        ('fcos', 'bbox_head.conv_cls'),
        ('gfl', 'bbox_head.gfl_cls'),
        ('faster_rcnn', 'rpn_head.rpn_cls'),
    ],
)
def test_detectors(family, scores):
    terms = dict(
        features=dict(FEATURES, student_tap='neck'),
        scores=dict(tap=scores, loss=dict(type='mmkd_plugin.ChannelWiseLoss')),
    )
    model = distiller(getattr(stock_models, family)(), LEVELS, terms).train()
    inputs, samples = batch(model)
    alone = copy.deepcopy(model.student)(inputs, samples, mode='loss')
    losses = model(inputs, samples, mode='loss')
    assert {f'self_teacher.{key}' for key in alone} < set(losses)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    before = {name: value.clone() for name, value in model.named_parameters()}
    model.parse_losses(losses)[0].backward()
    for name, value in model.named_parameters():
        assert value.grad is not None, name
    optimizer.step()
    moved = {n for n, value in model.named_parameters() if not torch.equal(value, before[n])}
    for part in ('backbone.', 'self_teachers.self_teacher.model.neck.'):
        assert any(name.startswith(part) for name in moved)
    model.eval()
    with torch.no_grad():
        assert model(inputs[:1], samples[:1], mode='predict')[0].pred_instances is not None


def test_detectors_on_the_maps_of_the_backbone_get_one_width():
    neck = dict(type='mmkd_plugin.BiFPNSelfTeacher', out_channels=24)
    terms = dict(features=dict(FEATURES, student_tap='backbone', teacher_tap='neck'))
    model = distiller(
        stock_models.faster_rcnn(),
        dict(SELF, tap=['backbone', 'neck[4]'], neck=neck),
        dict(features=dict(FEATURES, student_tap=['backbone', 'neck[4]'])),
    ).train()
    teacher = own(model)
    assert teacher.rpn_head.in_channels == teacher.roi_head.bbox_head.in_channels == 24
    assert model(*batch(model), mode='loss')['self_teacher.loss_rpn_cls'] is not None
    with pytest.raises(ValueError, match='read levels of one width, and its neck gives'):
        distiller(stock_models.retinanet(), SELF, terms)


def test_at_inference_it_is_gone():
    model = segmentor()
    model.eval()
    inputs, samples = batch(model)
    plain = build(stock_models.fcn()).eval()
    plain.load_state_dict(model.state_dict(), strict=True)
    calls = []
    own(model).neck.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        for mode in ('tensor', 'predict'):
            ours, theirs = (m(inputs, samples, mode=mode) for m in (model, plain))
            if mode == 'predict':
                ours, theirs = (x[0].seg_logits.data for x in (ours, theirs))
            assert torch.equal(ours, theirs)
        counts = []
        for one in (model, plain):
            with FlopCounterMode(display=False) as counter:
                one(inputs, mode='tensor')
            counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0 and not calls


def test_its_weights_lie_beside_the_student_and_come_back():
    model = segmentor()
    state = model.state_dict()
    assert list(state) == list(build(stock_models.fcn()).state_dict())
    beside = distillation_state(state)['state']
    neck = [key for key in beside if '.neck.' in key]
    assert len(neck) == len(own(model).neck.state_dict())
    other = distiller(stock_models.fcn(), SELF, TERMS, seed=5)
    other.load_state_dict(copy.deepcopy(state))
    for ours, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_averaged_weights():
    model = segmentor()
    average = ExponentialMovingAverage(model, momentum=0.5)
    before = own(model).decode_head.conv_seg.weight.clone()
    with torch.no_grad():
        own(model).decode_head.conv_seg.weight += 1
    average.update_parameters(model)
    average.update_parameters(model)
    after = average.module.self_teachers['self_teacher'].model.decode_head.conv_seg.weight
    assert not torch.equal(after, before)
    with torch.no_grad():
        assert average.module(*batch(model), mode='loss')['distill.logits.loss'].isfinite()


def test_the_student_starts_as_it_would_alone():
    torch.manual_seed(0)
    plain = build(stock_models.fcn())
    plain.init_weights()
    drawn = torch.rand(1)
    model = segmentor()  # from the same seed
    model.init_weights()
    assert torch.equal(torch.rand(1), drawn)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_two_heads_do_not_start_alike():
    model = segmentor(neck=dict(type='mmkd_plugin.BiFPNSelfTeacher', width=1))
    model.init_weights()
    ours, theirs = model.student.decode_head.conv_seg, own(model).decode_head.conv_seg
    assert ours.weight.shape == theirs.weight.shape
    assert not torch.equal(ours.weight, theirs.weight)


def test_its_task_loss_has_a_weight_and_goes_on_while_terms_are_off(counters):
    ramp = dict(start=10, ramp=10)
    off = {name: dict(term, schedule=ramp) for name, term in TERMS.items()}
    half, whole = (segmentor(off, loss_weight=w) for w in (0.5, 1.0))
    inputs, samples = batch(half)
    ours, theirs = (model(inputs, samples, mode='loss') for model in (half, whole))
    torch.testing.assert_close(
        ours['self_teacher.decode.loss_ce'], theirs['self_teacher.decode.loss_ce'] / 2
    )
    torch.testing.assert_close(
        ours['self_teacher.decode.acc_seg'], theirs['self_teacher.decode.acc_seg']
    )
    assert not any(key.startswith('distill') for key in ours)


@pytest.mark.parametrize(
    ('loss', 'connector'),
    [('HintLoss', 'auto'), ('ChannelWiseLoss', 'auto'), ('PairWiseLoss', 'auto')],
)
def test_the_feature_term_is_any_term(loss, connector):
    term = dict(FEATURES, loss=dict(type=f'mmkd_plugin.{loss}'), connector=connector)
    model = segmentor(dict(features=term))
    assert model(*batch(model), mode='loss')['distill.features.loss'] > 0


def test_overhaul_reads_the_margin_as_it_is_now():
    term = dict(
        student_tap=[f'backbone.layer{n}@pre_relu' for n in (1, 2, 3, 4)],
        teacher_tap=['neck.top_down.0', *(f'neck.bottom_up.{n}' for n in (0, 1, 2))],
        connector=dict(type='mmkd_plugin.ConvConnector', bias=False, norm=True),
        loss=dict(type='mmkd_plugin.OverhaulLoss', loss_weight=1e-4),
    )
    model = segmentor(dict(features=term))
    line, neck = model.distill.features, own(model).neck
    assert line.norms.names[0].startswith('neck.top_down.0.')
    norm, calls = neck.bottom_up[0][-1], calls_of(line.loss)
    for _ in range(2):
        assert model(*batch(model), mode='loss')['distill.features.loss'] > 0
        margin = calls[-1][1]['margin'][1]
        assert torch.equal(margin, margin_from_norm(norm.weight, norm.bias))
        with torch.no_grad():
            norm.bias += 2
    assert not torch.equal(calls[0][1]['margin'][1], margin)


def test_beside_a_pretrained_teacher():
    teachers = [
        dict(SELF, name='me'),
        dict(name='large', config=stock_models.fcn(16), checkpoint=None),
    ]
    terms = dict(
        features=dict(FEATURES, teacher='me'),
        logits=dict(LOGITS, teacher='large'),
        both=dict(LOGITS, teacher='me'),
    )
    model = distiller(stock_models.fcn(), teachers, terms).train()
    losses = model(*batch(model), mode='loss')
    assert all(losses[f'distill.{name}.loss'] > 0 for name in terms)
    assert 'me.decode.loss_ce' in losses


def test_another_head():
    head = dict(
        type='FCNHead',
        channels=6,
        num_convs=1,
        concat_input=False,
        norm_cfg=dict(type='BN'),
        in_index=0,
    )
    model = segmentor(dict(features=FEATURES), student=stock_models.pspnet(), head=head)
    built = own(model).decode_head
    assert type(built).__name__ == 'FCNHead' and built.channels == 6
    assert built.num_classes == 5 and built.in_channels == 16
    changed = segmentor(dict(features=FEATURES), head=dict(channels=6))
    assert own(changed).decode_head.channels == 6
    assert own(changed).decode_head.num_convs == 1


def test_norms_over_all_processes_where_the_student_has_them():
    student = stock_models.fcn()
    student['backbone']['norm_cfg'] = dict(type='SyncBN')
    model = segmentor(dict(features=FEATURES), student=student)
    kinds = {
        type(m) for m in own(model).modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
    }
    assert kinds == {nn.SyncBatchNorm}


def test_half_precision():
    model = segmentor()
    with torch.autocast('cpu', torch.bfloat16):
        losses = model(*batch(model), mode='loss')
    assert all(losses[f'distill.{name}.loss'].dtype == torch.float32 for name in TERMS)
    model.parse_losses(losses)[0].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('size', [(65, 97), (33, 64)])
def test_any_size(size):
    model = segmentor()
    inputs, samples = batch(model)
    inputs = torch.rand(2, 3, *size)
    for sample in samples:
        sample.gt_sem_seg = PixelData(data=torch.zeros(1, *size, dtype=torch.long))
    assert model(inputs, samples, mode='loss')['distill.features.loss'].isfinite()


def test_the_plan_says_what_it_costs(caplog):
    model = segmentor()
    text = model.self_teachers['self_teacher'].work()
    assert "self-teacher 'self_teacher' on 'backbone' of the student" in text
    neck = own(model).neck
    millions = sum(p.numel() for p in neck.parameters()) / 1e6
    assert f'neck (BiFPNSelfTeacher) {millions:.2f} M parameters' in text
    if OLD_TORCH:  # it counts no part of a model alone
        assert ' G' not in text
        return
    inputs = [torch.rand(1, 8 * 2**i, 32 // 2**i, 32 // 2**i) for i in range(4)]
    with FlopCounterMode(display=False) as counter:
        neck.eval()(inputs)
    assert f'M parameters, {counter.get_total_flops() / 2e9:.3f} G' in text


def test_the_cost_does_not_depend_on_the_taps():
    pre_relu = dict(FEATURES, student_tap='backbone[3]', teacher_tap='decode_head.convs@pre_relu')
    pre_relu['loss'] = dict(type='mmkd_plugin.PairWiseLoss', pool=0.5)
    costs = [
        segmentor(terms).self_teachers['self_teacher'].costs for terms in (TERMS, dict(f=pre_relu))
    ]
    assert costs[0] == costs[1]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            dict(type='mmkd_plugin.Teacher'),
            "not a kind of teacher; did you mean 'mmkd_plugin.SelfTeacher'?",
        ),
        (dict(checkpoint='a.pth'), 'teacher has an unknown key `checkpoint`'),
        (dict(tap='backbone.layer9'), "the student has no module 'backbone.layer9'"),
        (dict(tap='neck'), "the student has no module 'neck'"),
        (dict(neck=dict(type='mmkd_plugin.BiFPNSelfTeachr')), 'did you mean mmkd_plugin.BiFPNSelf'),
        (dict(neck=dict(type='mmkd_plugin.BiFPNSelfTeacher', deep=1)), 'unknown key `deep`'),
        (
            dict(tap=['backbone', 'backbone']),
            'backbone, backbone names a tap twice; name each once',
        ),
        (dict(tap='backbone[3]'), 'must name at least two maps'),
        (dict(loss_weight=0), 'loss_weight=0: .* teach noise; give a number above 0'),
        (dict(neck=dict(type='mmkd_plugin.BiFPNSegSelfTeacher')), 'does not take what .backbone.'),
        (dict(head=dict(in_index=7)), 'reads map 7, and the neck of the self-teacher gives 4'),
    ],
)
def test_mistakes(change, message):
    with pytest.raises(ValueError, match=message):
        segmentor(**change)


def test_more_mistakes():
    with pytest.raises(ValueError, match='teacher has no `neck`'):
        distiller(stock_models.fcn(), dict(type='mmkd_plugin.SelfTeacher', tap='backbone'), TERMS)
    gradients = dict(
        tap='decode_head.conv_seg', loss=dict(type='mmkd_plugin.GradientAttentionLoss')
    )
    with pytest.raises(ValueError, match='which a self-teacher cannot show'):
        segmentor(dict(g=gradients))
    with pytest.raises(ValueError, match=r"self-teacher 'self_teacher' has no module 'nekc'"):
        segmentor(dict(features=dict(FEATURES, teacher_tap='nekc')))
    with pytest.raises(ValueError, match="built from the student's config"):
        build(
            dict(
                _scope_='mmseg',
                type='mmkd_plugin.Distiller',
                student=build(stock_models.fcn()),
                teacher=SELF,
                distill=TERMS,
            )
        )
