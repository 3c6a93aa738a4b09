"""The Distiller on real models: losses, weights, names, state, errors."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.logging import MessageHub
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import OptimWrapper
from torch import Tensor

from mmkd_plugin.losses.overhaul import margin_from_norm
from tests import stock_models
from tests.runs import needs_ops
from tests.stock_models import batch, build, calls_of, cwd, distiller

LOGITS = dict(cwd=dict(tap='decode_head.conv_seg', loss=cwd(tau=4, loss_weight=3)))
NECK = dict(cwd=dict(tap='neck', loss=cwd(tau=1, loss_weight=10)))
FEATURES = dict(cwd=dict(tap='decode_head.bottleneck', loss=cwd(tau=4, loss_weight=50)))


pytestmark = pytest.mark.usefixtures('counters')


def step(model, inputs, samples, lr=0.01):
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9))
    losses = model(inputs, samples, mode='loss')
    loss, log = model.parse_losses(losses)
    optimizer.update_params(loss)
    return losses, log


def test_the_losses_are_the_students_and_the_terms():
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), LOGITS)
    inputs, samples = batch(model)
    alone = copy.deepcopy(model.student).train()(inputs, samples, mode='loss')
    losses = model.train()(inputs, samples, mode='loss')
    assert set(losses) == {*alone, 'distill.cwd.loss'}
    for key, value in alone.items():
        assert torch.equal(losses[key], value)
    total, log = model.parse_losses(losses)
    assert total.item() == pytest.approx(sum(v.item() for k, v in losses.items() if 'loss' in k))
    assert 'distill.cwd.loss' in log


def test_a_term_compares_what_both_models_see():
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), LOGITS)
    inputs, samples = batch(model)
    loss = model(inputs, samples, mode='loss')['distill.cwd.loss']
    student, teacher = model.student, model.teachers['teacher'].model
    expected = build(LOGITS['cwd']['loss'])(
        student(inputs, mode='tensor'), teacher(inputs, mode='tensor')
    )
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ('student', 'teacher', 'distill'),
    [
        ('pspnet', 'pspnet', LOGITS),
        ('fcn', 'segformer', LOGITS),
        ('segformer', 'pspnet', LOGITS),
        ('retinanet', 'retinanet', NECK),
        ('faster_rcnn', 'faster_rcnn', NECK),
        ('fcos', 'fcos', NECK),
        ('gfl', 'gfl', NECK),
        ('fcos', 'retinanet', NECK),
    ],
)
def test_one_step_teaches_the_student_and_leaves_the_teacher(student, teacher, distill):
    model = distiller(
        getattr(stock_models, student)(), getattr(stock_models, teacher)(16), distill
    ).train()
    frozen = model.teachers['teacher'].model
    before = copy.deepcopy(frozen.state_dict())
    weights = {name: value.clone() for name, value in model.named_parameters()}
    inputs, samples = batch(model)
    _, log = step(model, inputs, samples, lr=1e-4)
    assert all(torch.isfinite(torch.as_tensor(value)) for value in log.values())
    assert log['distill.cwd.loss'] > 0
    changed = {
        name for name, value in model.named_parameters() if not torch.equal(value, weights[name])
    }
    assert any(name.startswith('backbone.') for name in changed)
    assert not frozen.training
    for key, value in frozen.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_other_families_strides_and_widths_just_work():
    model = distiller(
        stock_models.fcn(),
        stock_models.segformer(16),
        dict(
            logits=LOGITS['cwd'],
            features=dict(student_tap='backbone[3]', teacher_tap='backbone[2]', loss=cwd()),
            attention=dict(
                student_tap='backbone.layer4',
                teacher_tap='backbone[2]',
                loss=dict(type='mmkd_plugin.AttentionLoss'),
            ),
            pairs=dict(tap='backbone[3]', loss=dict(type='mmkd_plugin.PairWiseLoss', pool=0.5)),
        ),
    )
    terms = model.distill
    assert [p.shape for p in terms.attention.parameters()] == []
    inputs, samples = batch(model)
    losses = model.train()(inputs, samples, mode='loss')
    assert all(losses[f'distill.{name}.loss'] > 0 for name in terms)


def test_channels_that_differ_get_a_convolution_that_is_trained():
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), FEATURES).train()
    connector = model.distill.cwd.connectors[0]
    assert (connector.in_channels, connector.out_channels) == (16, 32)
    before = connector.weight.clone()
    step(model, *batch(model))
    assert not torch.equal(connector.weight, before)


@needs_ops
def test_a_student_that_overrides_the_methods_of_modules():
    model = distiller(stock_models.ld(), stock_models.gfl(), NECK)  # its `train` returns nothing
    inputs, samples = batch(model)
    losses, _ = step(model.train(), inputs, samples)
    assert losses['loss_ld'] and losses['distill.cwd.loss'] > 0
    assert not model.student.teacher_model.training
    model.to('meta')  # the student's own `to` takes its teacher along, which is no module of it
    assert next(model.student.teacher_model.parameters()).is_meta


def test_predictions_are_the_students():
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), LOGITS).eval()
    inputs, samples = batch(model, 1)
    assert torch.equal(model(inputs, mode='tensor'), model.student(inputs, mode='tensor'))
    data = dict(inputs=[torch.randint(0, 256, (3, 64, 64)).byte()], data_samples=samples)
    got, expected = model.test_step(copy.deepcopy(data)), model.student.test_step(data)
    assert torch.equal(got[0].pred_sem_seg.data, expected[0].pred_sem_seg.data)


# Weights ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(('name', 'distill'), [('pspnet', FEATURES), ('retinanet', NECK)])
def test_the_student_starts_as_it_would_alone(name, distill):
    torch.manual_seed(3)
    alone = build(getattr(stock_models, name)())
    alone.init_weights()
    after = torch.rand(1)
    model = distiller(
        getattr(stock_models, name)(), getattr(stock_models, name)(16), distill, seed=3
    )
    model.init_weights()
    assert torch.equal(torch.rand(1), after), 'the order of the data would change'
    for key, value in alone.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_the_dry_forward_leaves_no_trace():
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), LOGITS)
    assert model.student.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(int(buffer) == 0 for name, buffer in model.named_buffers() if 'num_batches' in name)


def test_the_teacher_is_nowhere_in_the_module_tree():
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), LOGITS)
    frozen = model.teachers['teacher'].model
    ids = {id(p) for p in frozen.parameters()} | {id(b) for b in frozen.buffers()}
    assert not ids & {id(p) for p in model.parameters()}
    assert not ids & {id(b) for b in model.buffers()}
    assert all(module is not frozen for _, module in model.named_modules())
    assert set(model.state_dict()) == set(build(stock_models.pspnet()).state_dict())
    ema = ExponentialMovingAverage(model)
    assert all(module is not frozen for _, module in ema.named_modules())
    assert ema.module.teachers['teacher'].model is frozen  # shared, not copied
    wrapped = sum(p.numel() for p in ema.parameters())
    assert wrapped == sum(p.numel() for p in model.parameters())


def test_the_teacher_follows_the_student_and_stays_in_eval_mode():
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), LOGITS)
    frozen = model.teachers['teacher'].model
    for move, expected in (
        (lambda m: m.to(torch.bfloat16), torch.bfloat16),
        (lambda m: m.float(), torch.float32),
        (lambda m: m.half(), torch.float16),
        (lambda m: m.to(dtype=torch.float64), torch.float64),
    ):
        move(model)
        assert {p.dtype for p in frozen.parameters()} == {expected}
    model.to('meta')
    assert {p.device.type for p in frozen.parameters()} == {'meta'}
    for mode in (True, False, True):
        model.train(mode)
        assert not any(module.training for module in frozen.modules())


def test_parameters_have_the_students_own_names():
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), FEATURES)
    names = [name for name, _ in model.named_parameters()]
    alone = [name for name, _ in build(stock_models.pspnet()).named_parameters()]
    assert names == [*alone, 'distill.cwd.connectors.0.weight', 'distill.cwd.connectors.0.bias']
    assert next(model.named_parameters(prefix='module'))[0] == f'module.{alone[0]}'
    assert len(list(model.parameters())) == len(names)


def test_hooks_find_the_students_parts():
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), LOGITS)
    assert model.decode_head is model.student.decode_head
    assert model.with_auxiliary_head is False
    with pytest.raises(AttributeError, match='no_such_part'):
        _ = model.no_such_part


def test_nothing_is_held_after_a_step():
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), FEATURES).train()
    inputs, samples = batch(model)
    seen: list[weakref.ref] = []

    def watch(_, __, output):
        seen.append(weakref.ref(output))

    handles = [
        model.student.decode_head.bottleneck.register_forward_hook(watch),
        model.teachers['teacher'].model.decode_head.bottleneck.register_forward_hook(watch),
    ]
    step(model, inputs, samples)
    for handle in handles:
        handle.remove()
    gc.collect()
    assert len(seen) == 2 and all(ref() is None for ref in seen)


def test_in_place_activations_do_not_reach_what_a_tap_kept():
    distill = dict(
        norm=dict(tap='backbone.layer1.0.bn1', loss=dict(type='mmkd_plugin.AttentionLoss')),
        sum=dict(tap='backbone.layer4.1.bn2', loss=dict(type='mmkd_plugin.AttentionLoss')),
    )
    model = distiller(stock_models.fcn(), stock_models.fcn(16), distill).train()
    kept: dict[str, Tensor] = {}
    handles = [
        model.student.get_submodule(f'backbone.{path}').register_forward_hook(
            lambda _, __, output, path=path: kept.update({path: output.detach().clone()})
        )
        for path in ('layer1.0.bn1', 'layer4.1.bn2')
    ]
    given = []
    for term in model.distill.values():
        term.loss.register_forward_pre_hook(lambda _, args: given.append(args[0].detach().clone()))
    inputs, samples = batch(model)
    step(model, inputs, samples)
    for handle in handles:
        handle.remove()
    assert torch.equal(given[0], kept['layer1.0.bn1']) and (given[0] < 0).any()
    assert torch.equal(given[1], kept['layer4.1.bn2'])


# Several teachers ---------------------------------------------------------------------------------


def two_teachers(**second):
    return [
        dict(name='wide', config=stock_models.pspnet(16), checkpoint=None),
        dict(name='other', config=stock_models.segformer(16), checkpoint=None, **second),
    ]


def test_two_teachers_each_with_its_terms():
    distill = dict(
        logits=dict(LOGITS['cwd'], teacher='wide'),
        more=dict(LOGITS['cwd'], teacher='other'),
        features=dict(
            student_tap='backbone[3]', teacher_tap='backbone[3]', teacher='other', loss=cwd()
        ),
    )
    model = distiller(stock_models.pspnet(), two_teachers(), distill).train()
    losses, _ = step(model, *batch(model))
    assert {f'distill.{name}.loss' for name in distill} <= set(losses)
    assert losses['distill.logits.loss'] != losses['distill.more.loss']


# Schedules ----------------------------------------------------------------------------------------


def test_a_term_that_is_off_costs_nothing(counters):
    distill = dict(
        early=dict(LOGITS['cwd'], schedule=dict(stop=10)),
        late=dict(FEATURES['cwd'], schedule=dict(start=20, ramp=10)),
    )
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), distill).train()
    runs = []
    model.teachers['teacher'].model.backbone.register_forward_hook(lambda *_: runs.append(1))
    inputs, samples = batch(model)

    def at(iteration):
        counters.update_info('iter', iteration)
        losses = model(inputs, samples, mode='loss')
        return {key for key, x in losses.items() if key.startswith('distill') and x != 0}

    assert at(0) == {'distill.early.loss'} and len(runs) == 1
    assert at(10) == set() and at(20) == set() and len(runs) == 1, 'the teacher ran for nothing'
    assert at(25) == {'distill.late.loss'} and len(runs) == 2


def test_the_ramp_scales_the_loss(counters):
    distill = dict(cwd=dict(LOGITS['cwd'], schedule=dict(start=2, ramp=4, by_epoch=True)))
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), distill).eval()
    inputs, samples = batch(model)
    values = []
    for epoch in (3, 4, 6, 9):
        counters.update_info('epoch', epoch)
        values.append(float(model(inputs, samples, mode='loss')['distill.cwd.loss']))
    full = values[-1]
    assert values == pytest.approx([0.25 * full, 0.5 * full, full, full])


@pytest.mark.parametrize(
    ('schedule', 'message'),
    [
        (
            dict(start=100),
            'never comes on: its schedule is "from iteration 100" and the run has 50',
        ),
        (dict(start=1, by_epoch=True), 'run has 1 epochs; a run by iterations has one epoch'),
    ],
)
def test_a_schedule_beyond_the_run_is_an_error(counters, schedule, message):
    counters.update_info('max_iters', 50)
    counters.update_info('max_epochs', 1)
    distill = dict(cwd=dict(LOGITS['cwd'], schedule=schedule))
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), distill)
    with pytest.raises(ValueError, match=message):
        model(*batch(model), mode='loss')


# What a step refuses ------------------------------------------------------------------------------


def test_a_connector_with_a_norm_is_tried_without_a_trace():
    distill = dict(
        cwd=dict(
            NECK['cwd'],
            connector=dict(type=ConvModule, kernel_size=1, norm_cfg=dict(type='BN')),
        )
    )
    model = distiller(stock_models.retinanet(), stock_models.retinanet(16), distill)
    norms = [m for m in model.distill.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 5 and all(int(norm.num_batches_tracked) == 0 for norm in norms)
    assert all(norm.training for norm in norms)


def test_a_tap_without_gradient_is_named():
    student = stock_models.fcn()
    student['backbone']['frozen_stages'] = 4
    distill = dict(cwd=dict(tap='backbone.layer2', loss=dict(type='mmkd_plugin.AttentionLoss')))
    model = distiller(student, stock_models.fcn(16), distill).train()
    with pytest.raises(ValueError, match=r"no gradient flows into 'backbone.layer2'"):
        model(*batch(model), mode='loss')


def test_a_loss_that_is_not_finite_stops_the_run(counters):
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), LOGITS).train()
    counters.update_info('iter', 17)
    with torch.no_grad():
        model.student.decode_head.conv_seg.weight[0] = float('nan')
    with pytest.raises(FloatingPointError) as error:
        model(*batch(model), mode='loss')
    text = str(error.value)
    assert text.startswith('distill.cwd: the loss is nan at iteration 17.')
    assert "'decode_head.conv_seg' of the student: (2, 5, 16, 16) nan to nan" in text
    assert 'of the teacher: (2, 5, 16, 16) -' in text and ' 0 of 2560 not finite' in text


def test_ignored_positions_are_left_out():
    loss = dict(type='mmkd_plugin.PixelWiseLoss', ignore_index=255)
    model = distiller(
        stock_models.pspnet(), stock_models.pspnet(16), dict(pi=dict(LOGITS['cwd'], loss=loss))
    )
    inputs, samples = batch(model.eval())
    kept = model(inputs, samples, mode='loss')['distill.pi.loss']
    for sample in samples:
        sample.gt_sem_seg.data[:] = 255
    assert float(model(inputs, samples, mode='loss')['distill.pi.loss']) == 0 < float(kept)


def test_in_mixed_precision_the_loss_is_float32():
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), FEATURES).train()
    inputs, samples = batch(model)
    with torch.autocast('cpu', torch.bfloat16):
        losses = model(inputs, samples, mode='loss')
    assert losses['distill.cwd.loss'].dtype == torch.float32
    model.parse_losses(losses)[0].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


# The task loss by a schedule ----------------------------------------------------------------------

BACKBONE = dict(init=dict(tap='backbone.layer4', loss=cwd()))


def at(hub, iteration):
    hub.update_info('iter', iteration)


def test_the_task_is_off_until_its_schedule_starts(counters):
    late = dict(schedule=dict(start=10))
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), BACKBONE, task=late).train()
    inputs, samples = batch(model)
    at(counters, 0)
    head_runs = []
    model.student.decode_head.conv_seg.register_forward_hook(lambda *_: head_runs.append(1))
    losses = model(inputs, samples, mode='loss')
    assert set(losses) == {'distill.init.loss'} and not head_runs
    losses['distill.init.loss'].backward()
    grads = {name for name, p in model.student.named_parameters() if p.grad is not None}
    assert 'backbone.layer4.0.conv1.weight' in grads
    assert not any(name.startswith('decode_head') for name in grads)
    at(counters, 10)
    assert 'decode.loss_ce' in model(inputs, samples, mode='loss') and head_runs


def test_an_initialisation_stage_then_the_task_alone(counters):
    terms = dict(init=dict(BACKBONE['init'], schedule=dict(stop=5)))
    task = dict(schedule=dict(start=5))
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), terms, task=task).train()
    inputs, samples = batch(model)
    for iteration, expected in ((0, 'distill.init.loss'), (4, 'distill.init.loss')):
        at(counters, iteration)
        assert set(model(inputs, samples, mode='loss')) == {expected}
    at(counters, 5)
    alone = copy.deepcopy(model.student)(inputs, samples, mode='loss')
    losses = model(inputs, samples, mode='loss')
    assert losses.pop('distill.init.loss') == 0  # without it the log would keep the last value
    assert losses.keys() == alone.keys()
    assert all(torch.equal(losses[key], value) for key, value in alone.items())


def test_the_weight_of_the_task_leaves_the_accuracy_alone():
    model = distiller(
        stock_models.pspnet(), stock_models.pspnet(16), LOGITS, task=dict(loss_weight=0.25)
    ).train()
    inputs, samples = batch(model)
    alone = copy.deepcopy(model.student)(inputs, samples, mode='loss')
    losses = model(inputs, samples, mode='loss')
    torch.testing.assert_close(losses['decode.loss_ce'], alone['decode.loss_ce'] * 0.25)
    assert torch.equal(losses['decode.acc_seg'], alone['decode.acc_seg'])


def test_lists_of_losses_are_weighted_too():
    model = distiller(
        stock_models.retinanet(), stock_models.retinanet(16), NECK, task=dict(loss_weight=0.5)
    ).train()
    inputs, samples = batch(model)
    alone = copy.deepcopy(model.student)(inputs, samples, mode='loss')
    losses = model(inputs, samples, mode='loss')
    assert isinstance(alone['loss_cls'], list)
    for ours, theirs in zip(losses['loss_cls'], alone['loss_cls'], strict=True):
        torch.testing.assert_close(ours, theirs * 0.5)


def test_nothing_to_learn_is_an_error(counters):
    terms = dict(init=dict(BACKBONE['init'], schedule=dict(stop=5)))
    model = distiller(
        stock_models.pspnet(), stock_models.pspnet(16), terms, task=dict(schedule=dict(start=8))
    ).train()
    inputs, samples = batch(model)
    message = (
        'nothing is learnt in iteration 5: the schedule of distill.init is "from iteration 0 to 5"'
        ', the schedule of task is "from iteration 8"; let them meet'
    )
    with pytest.raises(ValueError, match=message):
        model(inputs, samples, mode='loss')


def test_a_loop_without_a_runner_sets_the_counter_of_schedules(counters):
    terms = dict(init=dict(BACKBONE['init'], schedule=dict(start=2)))
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), terms).train()
    inputs, samples = batch(model)
    hub, seen = MessageHub.get_current_instance(), []
    for number in range(3):
        hub.update_info('iter', number)
        seen.append('distill.init.loss' in model(inputs, samples, mode='loss'))
    assert seen == [False, False, True]


def test_a_task_that_never_comes_on_is_an_error(counters):
    model = distiller(
        stock_models.pspnet(), stock_models.pspnet(16), BACKBONE, task=dict(schedule=dict(start=80))
    ).train()
    counters.update_info('max_iters', 80)
    with pytest.raises(ValueError, match=r'task never comes on: .* the run has 80 iters'):
        model(*batch(model), mode='loss')


# Lists of taps, and what losses need --------------------------------------------------------------


def test_a_list_of_taps_is_one_list_of_maps():
    weights = [0.5, 1, 2]
    stages = ['backbone.layer2', 'backbone.layer3', 'backbone.layer4']
    attention = dict(type='mmkd_plugin.AttentionLoss')
    terms = {
        f'at{n}': dict(tap=tap, loss=dict(attention, loss_weight=w))
        for n, (tap, w) in enumerate(zip(stages, weights, strict=True))
    }
    terms['all'] = dict(tap=stages, loss=dict(attention, loss_weight=weights))
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), terms).train()
    losses = model(*batch(model), mode='loss')
    expected = sum(losses[f'distill.at{n}.loss'] for n in range(3))
    torch.testing.assert_close(losses['distill.all.loss'], expected)


def test_a_list_of_taps_in_one_model_and_a_sequence_in_the_other():
    term = dict(
        student_tap=[f'backbone.layer{n}' for n in (1, 2, 3, 4)],
        teacher_tap='backbone',
        loss=dict(type='mmkd_plugin.AttentionLoss'),
    )
    model = distiller(stock_models.fcn(), stock_models.fcn(16), dict(at=term)).train()
    assert model(*batch(model), mode='loss')['distill.at.loss'] > 0


def test_two_taps_for_a_flow():
    term = dict(tap=['backbone.layer2', 'backbone.layer3'], loss=dict(type='mmkd_plugin.FSPLoss'))
    model = distiller(stock_models.fcn(), stock_models.fcn(16), dict(fsp=term)).train()
    assert len(model.distill.fsp.connectors) == 2
    assert model(*batch(model), mode='loss')['distill.fsp.loss'] > 0
    with pytest.raises(ValueError, match=r"distill\.fsp: .*tap=\['backbone\.layer1', 'backbone"):
        distiller(
            stock_models.fcn(), stock_models.fcn(16), dict(fsp=dict(term, tap='backbone.layer2'))
        )


def test_a_loss_gets_the_labels_it_asks_for():
    term = dict(tap='decode_head.bottleneck', loss=dict(type='mmkd_plugin.IntraClassVariationLoss'))
    model = distiller(stock_models.pspnet(), stock_models.pspnet(16), dict(ifv=term)).eval()
    inputs, samples = batch(model)
    for sample in samples:
        sample.gt_sem_seg.data = torch.randint(5, sample.gt_sem_seg.data.shape)
    loss = model(inputs, samples, mode='loss')['distill.ifv.loss']
    features = []
    for net in (model.student, model.teachers['teacher'].model):
        handle = net.decode_head.bottleneck.register_forward_hook(
            lambda _, __, out: features.append(out)
        )
        net(inputs)
        handle.remove()
    labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
    torch.testing.assert_close(loss, build(term['loss'])(*features, labels))


def test_labels_that_a_batch_does_not_have():
    term = dict(tap='neck', loss=dict(type='mmkd_plugin.IntraClassVariationLoss'))
    model = distiller(stock_models.retinanet(), stock_models.retinanet(16), dict(ifv=term)).train()
    inputs, samples = batch(model)
    for sample in samples:
        sample.pop('gt_sem_seg', None)
    with pytest.raises(ValueError, match=r'distill\.ifv: .* needs segmentation labels'):
        model(inputs, samples, mode='loss')


OVERHAUL = dict(
    tap=[f'backbone.layer{n}@pre_relu' for n in (1, 2, 3, 4)],
    connector=dict(type='mmkd_plugin.ConvConnector', bias=False, norm=True),
    loss=dict(type='mmkd_plugin.OverhaulLoss', loss_weight=[1e-3, 2e-3, 4e-3, 8e-3]),
)


def test_the_margin_comes_from_the_norm_that_feeds_the_tap():
    model = distiller(stock_models.fcn(), stock_models.fcn(16), dict(ofd=OVERHAUL)).train()
    term = model.distill.ofd
    assert term.norms.names == [f'backbone.layer{n}.1.bn2' for n in (1, 2, 3, 4)]
    named = distiller(
        stock_models.fcn(), stock_models.fcn(16), dict(ofd=dict(OVERHAUL, norm=term.norms.names))
    ).train()
    inputs, samples = batch(model)
    calls = calls_of(term.loss)
    loss = model(inputs, samples, mode='loss')['distill.ofd.loss']
    assert torch.equal(loss, named(inputs, samples, mode='loss')['distill.ofd.loss'])
    teacher = model.teachers['teacher'].model
    for name, margin in zip(term.norms.names, calls[0][1]['margin'], strict=True):
        norm = teacher.get_submodule(name)
        assert torch.equal(margin, margin_from_norm(norm.weight, norm.bias))
    assert not [key for key in model.state_dict() if 'margin' in key]
    loss.backward()
    assert term.connectors[0].norm.weight.grad is not None


def test_margins_follow_the_model():
    model = distiller(stock_models.fcn(), stock_models.fcn(16), dict(ofd=OVERHAUL)).train().double()
    inputs, samples = batch(model)
    calls = calls_of(model.distill.ofd.loss)
    model(inputs.double(), samples, mode='loss')
    ((_, given),) = calls
    assert all(margin.dtype == torch.float64 for margin in given['margin'])
