"""Terms whose student's maps run through a part of the teacher."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import nn

from mmkd_plugin.connectors import ConvConnector
from mmkd_plugin.registry import MODELS
from mmkd_plugin.terms.through import Through, with_statistics_of
from tests import stock_models
from tests.runs import needs_ops
from tests.stock_models import batch, distiller

pytestmark = pytest.mark.usefixtures('counters')

HINT = dict(type='mmkd_plugin.HintLoss')
BEFORE = 'decode_head.bottleneck.activate@input'


def cross(**changes):
    line = dict(student_tap=BEFORE, through=BEFORE, teacher_tap='decode_head.conv_seg', loss=HINT)
    return dict(cross={**line, **changes})


def pspnets(teacher=8, **changes):
    return distiller(stock_models.pspnet(), stock_models.pspnet(teacher), cross(**changes)).train()


def branches(place='activate@input'):
    return [f'bbox_head.{branch}_convs.0.{place}' for branch in ('cls', 'reg')]


SCALES = [f'bbox_head.scales.{n}' for n in range(5)]
OPTIONS = dict(
    atss=dict(centerness=1), fcos=dict(cls=0.4, overlap='log_iou', divide_by='centerness')
)


def detector(kind, width=8):
    config = getattr(stock_models, kind)(width)
    if kind == 'fcos':
        config['bbox_head'].update(norm_cfg=dict(type='GN', num_groups=4))
    return config


def detectors(kind, teacher=16, **changes):
    """CrossKD on small detectors."""
    taps, boxes, weight = {
        'retinanet': (['bbox_head.retina_cls', 'bbox_head.retina_reg'], 'decoded', 1),
        'gfl': (['bbox_head.gfl_cls', *SCALES], 'bins', 4),
        'atss': (['bbox_head.atss_cls', *SCALES, 'bbox_head.atss_centerness'], 'decoded', 1),
        'fcos': (['bbox_head.conv_cls', *SCALES], 'decoded', 0.75),
    }[kind]
    loss = dict(type='mmkd_plugin.CrossHeadLoss', boxes=boxes, box=weight, **OPTIONS.get(kind, {}))
    line = dict(student_tap=branches(), through=branches(), teacher_tap=taps, loss=loss)
    model = distiller(detector(kind), detector(kind, teacher), dict(cross={**line, **changes}))
    model.init_weights()
    return model.train()


# The pass -----------------------------------------------------------------------------------------


def read(model, inputs, *paths):
    """What modules of a model give for images."""
    found, handles = {}, []
    for path in paths:
        hook = lambda _, __, output, path=path: found.__setitem__(path, output.clone())  # noqa: E731
        handles.append(model.get_submodule(path).register_forward_hook(hook))
    model(inputs, mode='tensor')
    for handle in handles:
        handle.remove()
    return [found[path] for path in paths]


@pytest.mark.parametrize('align', [True, False])
def test_it_is_the_rest_of_the_teacher_on_the_students_map(align):
    model = pspnets(through=dict(tap=BEFORE, align=align))
    inputs, samples = batch(model)
    student = copy.deepcopy(model.student)
    loss = model(inputs, samples, mode='loss')['distill.cross.loss']
    head = model.teachers['teacher'].model.decode_head
    with torch.no_grad():
        (ours,) = read(student, inputs, 'decode_head.bottleneck.bn')
        theirs, scores = read(
            model.teachers['teacher'].model,
            inputs,
            'decode_head.bottleneck.bn',
            'decode_head.conv_seg',
        )
        maps = with_statistics_of(ours, theirs) if align else ours
        expected = (head.conv_seg(maps.relu()) - scores).square().mean()
    torch.testing.assert_close(loss, expected, rtol=5e-2, atol=0)  # the teacher is in bf16


def test_gradients_reach_the_student_and_not_the_teacher():
    model = pspnets(16)
    inputs, samples = batch(model)
    teacher = model.teachers['teacher'].model
    before = copy.deepcopy(teacher.state_dict())
    model(inputs, samples, mode='loss')['distill.cross.loss'].backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert model.student.backbone.layer1[0].conv1.weight.grad.any()
    assert model.student.decode_head.bottleneck.conv.weight.grad.any()
    assert model.student.decode_head.conv_seg.weight.grad is None  # the teacher's takes its place
    assert all(p.grad.any() for p in model.distill.cross.connectors.parameters())


def test_the_students_map_stays_as_it_is():
    """The first module of the teacher may work in place."""
    for align in (True, False):
        model = pspnets(through=dict(tap=BEFORE, align=align))
        inputs, samples = batch(model)
        alone = copy.deepcopy(model.student)(inputs, samples, mode='loss')
        losses = model(inputs, samples, mode='loss')
        for key, value in alone.items():
            assert torch.equal(losses[key], value)


def test_nothing_is_held_after_a_step():
    model = pspnets()
    inputs, samples = batch(model)
    model(inputs, samples, mode='loss')['distill.cross.loss'].backward()
    teacher = model.teachers['teacher']
    held = [x for x in vars(teacher).values() if torch.is_tensor(x)]
    assert not held and not [x for x in vars(model.distill.cross).values() if torch.is_tensor(x)]


def test_other_terms_of_the_same_teacher():
    lines = dict(
        **cross(),
        plain=dict(tap='decode_head.conv_seg', loss=HINT),
        again=dict(
            cross(through='decode_head.conv_seg@input')['cross'],
            student_tap='decode_head.conv_seg@input',
        ),
    )
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), lines).train()
    alone = distiller(stock_models.pspnet(), stock_models.pspnet(16), cross()).train()
    alone.load_state_dict(model.state_dict(), strict=False)
    alone.teachers['teacher'].model.load_state_dict(model.teachers['teacher'].model.state_dict())
    alone.distill.cross.load_state_dict(model.distill.cross.state_dict())
    inputs, samples = batch(model)
    losses = model(inputs, samples, mode='loss')
    expected = alone(inputs, samples, mode='loss')
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value)
    assert {'distill.plain.loss', 'distill.again.loss'} <= set(losses)


def test_a_term_that_is_off_costs_nothing(counters):
    model = pspnets(schedule=dict(start=5))
    counters.update_info('max_iters', 10)
    calls = stock_models.calls_of(model.teachers['teacher'].model.decode_head.conv_seg)
    inputs, samples = batch(model)
    counters.update_info('iter', 0)
    model(inputs, samples, mode='loss')
    assert not calls
    counters.update_info('iter', 5)
    model(inputs, samples, mode='loss')
    assert len(calls) == 2


def test_in_mixed_precision_the_loss_is_float32():
    model = pspnets(16)
    inputs, samples = batch(model)
    with torch.autocast('cpu', torch.bfloat16):
        loss = model(inputs, samples, mode='loss')['distill.cross.loss']
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert model.student.backbone.layer1[0].conv1.weight.grad.isfinite().all()


def test_the_weight_can_find_itself():
    model = pspnets(16, loss=dict(HINT, loss_weight='auto'))
    inputs, samples = batch(model)
    model(inputs, samples, mode='loss')
    assert model.distill.cross.auto.weight > 0


def test_class_scores_of_the_teacher_need_no_classes_of_the_student():
    student, teacher = stock_models.pspnet(classes=5), stock_models.pspnet(16, classes=7)
    model = distiller(student, teacher, cross()).train()
    inputs, samples = batch(model)
    assert model(inputs, samples, mode='loss')['distill.cross.loss'].isfinite()


def test_an_average_shares_the_teacher():
    model = pspnets()
    copied = copy.deepcopy(model)
    assert copied.teachers['teacher'] is model.teachers['teacher']
    inputs, samples = batch(model)
    ours, theirs = (m(inputs, samples, mode='loss')['distill.cross.loss'] for m in (model, copied))
    assert torch.equal(ours, theirs)


# Statistics ---------------------------------------------------------------------------------------


def test_statistics_by_the_authors_code():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 4, 5).double() * 3 + 1, torch.randn(2, 3, 4, 5).double()
    expected = torch.empty_like(student)
    for c in range(3):
        s, t = student[:, c].flatten(), teacher[:, c].flatten()
        moved = (student[:, c] - s.sum() / 40) / ((((s - s.mean()) ** 2).sum() / 39).sqrt() + 1e-6)
        expected[:, c] = moved * ((t - t.mean()) ** 2).sum().div(39).sqrt() + t.mean()
    torch.testing.assert_close(with_statistics_of(student, teacher), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize('shape', [(1, 3, 1, 1), (2, 3, 1, 1), (0, 3, 2, 2)])
def test_statistics_of_few_values_are_finite(shape):
    student = torch.rand(shape, requires_grad=True)
    found = with_statistics_of(student, torch.rand(shape))
    found.sum().backward()
    assert found.shape == shape and found.isfinite().all() and student.grad.isfinite().all()


def test_a_constant_channel_gets_the_mean_of_the_teacher():
    student, teacher = torch.full((1, 1, 2, 2), 3.0, requires_grad=True), torch.rand(1, 1, 2, 2)
    found = with_statistics_of(student, teacher)
    found.sum().backward()
    torch.testing.assert_close(found.mean(), teacher.mean())
    assert student.grad.isfinite().all()


def test_statistics_of_half_precision_are_those_of_float32():
    torch.manual_seed(0)
    student, teacher = torch.rand(2, 3, 8, 8) * 1e3, torch.rand(2, 3, 8, 8)
    with torch.autocast('cpu', torch.bfloat16):
        found = with_statistics_of(student.bfloat16(), teacher)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, with_statistics_of(student.bfloat16().float(), teacher))


@MODELS.register_module()
class NotesBoxes(nn.Module):
    """Notes the boxes that come out of the teacher, as its head would finish them."""

    needs = ('assigned',)
    needs_raw_maps = needs_same_channels = True

    def forward(self, student, teacher, assigned):
        pairs = enumerate(student[len(student) // 2 :])
        self.boxes = [assigned.finish(level, x).detach() for level, x in pairs]
        return sum((s - t).square().mean() for s, t in zip(student, teacher))


# CrossKD ------------------------------------------------------------------------------------------


@needs_ops
@pytest.mark.parametrize(
    ('kind', 'teacher'),
    [('retinanet', 8), ('retinanet', 16), ('gfl', 8), ('gfl', 16), ('atss', 16), ('fcos', 16)],
)
def test_crosskd_teaches_the_student(kind, teacher):
    model = detectors(kind, teacher)
    widths = {type(connector) for connector in model.distill.cross.connectors}
    assert widths == {nn.Identity if teacher == 8 else ConvConnector}
    inputs, samples = batch(model)
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01))
    before, values = copy.deepcopy(model.student.bbox_head.state_dict()), []
    for _ in range(3):
        losses = model(inputs, samples, mode='loss')
        values.append(losses['distill.cross.loss'].item())
        optimizer.update_params(losses['distill.cross.loss'])
    assert values[-1] < values[0]
    now = model.student.bbox_head.state_dict()
    moved = {key.partition('.')[0] for key in before if not torch.equal(before[key], now[key])}
    assert moved == {'cls_convs', 'reg_convs'}  # the teacher's last layers take the place of ours


@needs_ops
@pytest.mark.parametrize('norm_on_bbox', [False, True])
def test_boxes_of_fcos_are_those_that_its_head_predicts(norm_on_bbox):
    """A student that is its teacher: the maps behind the passage are the teacher's own boxes."""
    config = detector('fcos')
    config['bbox_head'].update(norm_on_bbox=norm_on_bbox)
    line = dict(student_tap=branches(), through=branches())
    line.update(teacher_tap=['bbox_head.conv_cls', *SCALES], loss=dict(type='NotesBoxes'))
    model = distiller(config, config, dict(cross=line)).train()
    teacher = model.teachers['teacher'].model
    model.student.load_state_dict(teacher.state_dict())
    for module in model.student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    inputs, samples = batch(model)
    model(inputs, samples, mode='loss')
    with torch.no_grad():
        expected = teacher.bbox_head(teacher.extract_feat(inputs))[1]
    for ours, theirs in zip(model.distill.cross.loss.boxes, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@needs_ops
def test_a_batch_without_objects():
    model = detectors('gfl')
    inputs, samples = batch(model)
    for sample in samples:
        sample.gt_instances = sample.gt_instances[:0]
    loss = model(inputs, samples, mode='loss')['distill.cross.loss']
    loss.backward()
    assert loss.isfinite()


@needs_ops
def test_the_student_is_left_as_it_was():
    model = detectors('retinanet')
    inputs, samples = batch(model)
    model(inputs, samples, mode='loss')
    assert 'get_targets' not in vars(model.student.bbox_head)


# The plan -----------------------------------------------------------------------------------------


def test_the_plan_says_what_runs_again():
    work = pspnets(16).teachers['teacher'].work()
    assert 'runs decode_head.bottleneck.activate, decode_head.conv_seg again on maps of' in work
    assert 'forward and backward (0.00 M parameters)' in work


def test_the_plan_says_nothing_without_it():
    model = distiller(
        stock_models.pspnet(),
        stock_models.pspnet(16),
        dict(hint=dict(tap='decode_head.conv_seg', loss=HINT)),
    )
    assert 'again' not in model.teachers['teacher'].work()


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            dict(connector=None),
            rf"distill.cross: '{BEFORE}' of the student has 16 channels and '{BEFORE}', where they "
            r'go into the teacher, has 32; leave `connector` out so that a 1×1 convolution is '
            r'added, or name one that gives 32',
        ),
        (
            dict(connector=dict(type='Conv2d', out_channels=24, kernel_size=1)),
            'has 24 channels behind its connector and',
        ),
        (
            dict(through='decode_head.botleneck'),
            "distill.cross: teacher 'teacher' has no module 'decode_head.botleneck'.*Closest",
        ),
        (
            dict(through='backbone.layer4', student_tap='backbone.layer4'),
            "distill.cross: teacher 'teacher': no modules lead from 'backbone.layer4' to",
        ),
        (
            dict(through=['decode_head.bottleneck', 'backbone.layer4']),
            "distill.cross: teacher 'teacher' has 2 maps at .* and 1 at",
        ),
        (dict(through=5), 'distill.cross.through is the place in the teacher'),
        (dict(through=dict(align=True)), 'distill.cross.through is the place in the teacher'),
        (dict(through='a b'), "distill.cross.through: 'a b' is not a tap"),
        (dict(through=dict(tap=BEFORE, aling=True)), 'unknown key `aling`; did you mean `align`?'),
        (dict(through=dict(tap=BEFORE, align=1)), 'distill.cross.through.align must be True or'),
        (
            dict(teacher_connector=dict(type='mmkd_plugin.Paraphraser', checkpoint=None)),
            'distill.cross.through: .* leave `teacher_connector` out',
        ),
        (
            dict(loss=dict(type='mmkd_plugin.GradientAttentionLoss')),
            'distill.cross.through: only maps go through the teacher, and this term compares grad',
        ),
        (
            dict(loss=dict(type='mmkd_plugin.CrossHeadLoss')),
            r"distill.cross: CrossHeadLoss needs what the student's assigner found",
        ),
    ],
)
def test_mistakes_are_named_at_build_time(changes, message):
    with pytest.raises(ValueError, match=message):
        pspnets(16, **changes)


def test_a_self_teacher_cannot_do_it():
    teacher = dict(
        type='mmkd_plugin.SelfTeacher',
        tap=['backbone.layer3', 'backbone.layer4'],
        neck=dict(type='mmkd_plugin.BiFPNSegSelfTeacher'),
    )
    with pytest.raises(ValueError, match=r'distill.cross.through: .* learns along'):
        distiller(stock_models.pspnet(), teacher, cross())


@needs_ops
@pytest.mark.parametrize(
    ('loss', 'message'),
    [
        (dict(boxes='bins'), '4 numbers are no distributions'),
        (dict(boxes='decoded', box=0, cls=0), 'all 0'),
        (dict(boxes='decoded', centerness=1), 'and then their centerness, got 10 maps'),
        (dict(boxes='decoded', divide_by='centerness'), 'a head that teaches a centerness'),
    ],
)
def test_a_loss_for_other_heads(loss, message):
    with pytest.raises(ValueError, match=f'distill.cross.*{message}'):
        detectors('retinanet', loss=dict(type='mmkd_plugin.CrossHeadLoss', **loss))


def test_the_short_form():
    assert Through.from_config('t', 'neck') == Through.from_config('t', dict(tap=['neck']))
    assert Through.from_config('t', None) is None
