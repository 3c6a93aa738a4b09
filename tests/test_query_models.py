"""Detectors with queries and masks, and detectors that teach segmentors."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope

from mmkd_plugin import Distiller
from tests import stock_models
from tests.runs import assert_same, needs_ops
from tests.stock_models import batch, build, cwd, distiller, has_gradient

pytestmark = needs_ops


@pytest.mark.parametrize(
    ('student', 'teacher', 'tap', 'maps'),
    [
        ('detr', 'detr', 'neck', 1),
        ('detr', 'detr', 'backbone', 1),
        ('dino', 'dino', 'backbone', 2),
        ('dino', 'retinanet', ('backbone[1]', 'backbone[3]'), 1),
        ('mask2former', 'mask2former', 'backbone', 4),
        ('mask2former', 'mask_rcnn', 'backbone', 4),
        ('retinanet', 'dino', ('neck[1]', 'neck[0]'), 1),
        ('faster_rcnn', 'mask2former', 'backbone', 4),
        ('mask_rcnn', 'mask_rcnn', 'neck', 5),
        ('fcn', 'retinanet', 'backbone', 4),
        ('fcn', 'detr', ('backbone[3]', 'neck[0]'), 1),
        ('pspnet', 'mask2former', 'backbone[3]', 1),
    ],
)
def test_one_step(student, teacher, tap, maps):
    student_tap, teacher_tap = (tap, tap) if isinstance(tap, str) else tap
    taps = dict(student_tap=student_tap, teacher_tap=teacher_tap)
    distill = dict(cwd=dict(loss=cwd(), **taps))
    model = distiller(
        getattr(stock_models, student)(), getattr(stock_models, teacher)(16), distill
    ).train()
    assert len(model.distill.cwd.connectors) == maps
    frozen = model.teachers['teacher'].model
    for part in (model, frozen):  # DINO's `level_embed` is raw memory until then, at times NaN
        part.init_weights()
    before = copy.deepcopy(frozen.state_dict())
    later = [name for name, _ in frozen.named_children() if 'head' in name or 'coder' in name]
    assert later
    for name in later:
        getattr(frozen, name).register_forward_hook(lambda *_: pytest.fail('it ran to the end'))
    weights = {name: value.clone() for name, value in model.named_parameters()}
    losses = model(*batch(model), mode='loss')
    loss, log = model.parse_losses(losses)
    OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-4)).update_params(loss)
    assert log['distill.cwd.loss'] > 0 and torch.isfinite(loss)
    assert set(losses) - {'distill.cwd.loss'}, 'the student has losses of its own'
    changed = [name for name, value in model.named_parameters() if (value != weights[name]).any()]
    assert any(name.startswith('backbone.layer4') for name in changed)
    assert any(name.startswith('distill.') for name in changed)
    for key, value in frozen.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_teacher_of_more_queries_than_a_made_up_image_has_positions_shows_its_features():
    teacher = stock_models.dino()
    teacher['num_queries'] = 5000
    taps = dict(student_tap='neck[1]', teacher_tap='neck[0]')
    model = distiller(stock_models.retinanet(), teacher, dict(cwd=dict(loss=cwd(), **taps)))
    assert model.train()(*batch(model), mode='loss')['distill.cwd.loss'].isfinite()


@pytest.mark.parametrize('name', ['detr', 'dino', 'mask2former'])
def test_the_student_predicts_and_saves_as_it_would_alone(name):
    config = getattr(stock_models, name)()
    model = distiller(
        config, getattr(stock_models, name)(16), dict(cwd=dict(tap='backbone', loss=cwd()))
    )
    model.init_weights()
    alone = build(config).eval()
    alone.load_state_dict(model.state_dict(), strict=True)
    inputs, samples = batch(model, 1)
    got = model.eval()(inputs, copy.deepcopy(samples), mode='predict')[0].pred_instances
    expected = alone(inputs, samples, mode='predict')[0].pred_instances
    assert torch.equal(got.scores, expected.scores)
    assert torch.equal(got.bboxes, expected.bboxes)


def test_what_queries_do_inside_is_refused_with_a_reason():
    for tap, message in (
        ('encoder', r'ChannelWiseLoss cannot compare .* \(1, 16, 16\) and \(1, 16, 32\)'),
        ('bbox_head', r"nothing can be read there.*Inside it these run: .*bbox_head.fc_reg"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            distiller(
                stock_models.detr(), stock_models.detr(16), dict(cwd=dict(tap=tap, loss=cwd()))
            )


#: Families that can be asked the same queries, narrow and with other numbers of queries.
ASKED = {
    'dab': stock_models.dab_detr,
    'dino': stock_models.dino,
    'deformable': stock_models.deformable_detr,
    'refined': partial(stock_models.deformable_detr, refine=True),
    'two stages': partial(stock_models.deformable_detr, refine=True, two_stage=True),
    'conditional': stock_models.conditional_detr,
    'detr': partial(stock_models.detr, embed=16),
}


def asked(student, teacher, seed=0):
    """A student that is asked five random queries and the seven of its teacher."""
    exact = dict(precision='fp32', fuse_conv_bn=False)
    teacher = dict(config=ASKED[teacher](16, queries=7), checkpoint=None, inference=exact)
    line = dict(queries=dict(random=5), loss=dict(type='mmkd_plugin.SharedQueriesLoss'))
    model = distiller(ASKED[student](), teacher, dict(kd=line), seed)
    frozen = model.teachers['teacher'].model
    for part in (model, frozen):
        part.init_weights()
        for name, weight in part.named_parameters():
            if 'fc_reg' in name or 'reg_branches' in name:  # which start at 0: all boxes are alike
                weight.data += 0.1 * torch.randn_like(weight)
    return model.train(), frozen


def plain_answers(student, group, teacher, inputs, samples):
    """What mmdetection computes if the queries of a group are the student's own."""
    plain = copy.deepcopy(student).eval()  # without queries for denoising
    for one, other in zip(plain.modules(), student.modules()):
        one.training = other.training and isinstance(one, torch.nn.BatchNorm2d)
    points, embeddings = group.places, group.embeddings
    pre_decoder, extra = plain.pre_decoder, {}
    if embeddings is not None:  # the points come out of the same layers as the teacher's
        plain.query_embedding = torch.nn.Embedding.from_pretrained(embeddings)
        if hasattr(plain, 'reference_points_fc'):
            plain.reference_points_fc = teacher.reference_points_fc
        elif hasattr(plain.decoder, 'ref_point_head'):
            plain.decoder.ref_point_head = teacher.decoder.ref_point_head
    elif type(plain).__name__ == 'DABDETR':
        plain.query_embedding = torch.nn.Embedding.from_pretrained(points)
    else:
        points = points.expand(len(inputs), *points.shape[-2:])
        extra['reference_points'] = points.sigmoid()
        if hasattr(plain, 'pos_trans_fc'):
            made = plain.pos_trans_fc(plain.get_proposal_pos_embed(points))
            extra['query_pos'], extra['query'] = plain.pos_trans_norm(made).split(256, 2)
        else:
            content = plain.query_embedding.weight
            content = torch.cat([content] * 2)[: points.shape[1]]  # begins again
            extra['query'] = content.expand(len(inputs), -1, -1)
    plain.num_queries = points.shape[-2]
    if extra:
        plain.num_queries = student.num_queries
        plain.pre_decoder = lambda **given: ({**pre_decoder(**given)[0], **extra}, {})
    with torch.no_grad():
        return of_classes(*plain(inputs, samples, mode='tensor'))


def of_classes(scores, boxes):
    """A score for each class whose sigmoid is its probability, and boxes."""
    if scores.shape[-1] == 5:  # DETR also scores the background
        scores = scores.softmax(-1)[..., :-1].logit()
    return scores, boxes


@pytest.mark.parametrize('name', ASKED)
def test_queries_are_asked_as_if_they_were_the_models_own(name, counters, monkeypatch):
    model, frozen = asked(name, name)
    student, inputs, samples = model.student, *batch(model)
    given, groups = [], []
    model.distill.kd.loss.register_forward_pre_hook(lambda _, args: given.append(args))
    run = type(model._run_student).__call__

    def noted(*args, **kwargs):
        groups.extend(next(iter(kwargs['queries'].values())))
        return run(*args, **kwargs)

    monkeypatch.setattr(type(model._run_student), '__call__', noted)
    before = copy.deepcopy(student)
    torch.manual_seed(1)
    alone = copy.deepcopy(student)(inputs, copy.deepcopy(samples), mode='loss')
    state = torch.get_rng_state()
    torch.manual_seed(1)
    losses = model(inputs, copy.deepcopy(samples), mode='loss')
    assert torch.equal(torch.get_rng_state(), state), 'the next denoising queries are others'
    value = losses.pop('distill.kd.loss')
    for key, one in alone.items():
        for x, y in zip(*([z] if isinstance(z, torch.Tensor) else z for z in (losses[key], one))):
            assert torch.equal(x, y), key

    ((students, teachers),) = given
    with torch.no_grad():
        expected = of_classes(*frozen(inputs, copy.deepcopy(samples), mode='tensor'))
    for got, plain in zip(teachers[:2], expected):
        torch.testing.assert_close(got, plain[-1:], rtol=1e-4, atol=1e-5)
    for number, group in enumerate(groups):
        expected = plain_answers(before, group, frozen, inputs, copy.deepcopy(samples))
        for got, plain in zip(students[2 * number : 2 * number + 2], expected):
            torch.testing.assert_close(got, plain, rtol=1e-4, atol=1e-5)
    assert [len(x) for x in students] == [1 if name == 'detr' else 2] * 4  # layers
    assert [x.shape[2] for x in students] == [7, 7, 5, 5]

    value.backward()
    learning = {key.partition('.')[0] for key, p in student.named_parameters() if has_gradient(p)}
    assert {'backbone', 'neck', 'encoder', 'decoder', 'bbox_head'} <= learning
    assert all(p.grad is None for p in frozen.parameters())
    build(ASKED[name]()).load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize(
    ('student', 'teacher'),
    [('two stages', 'dino'), ('dino', 'two stages'), ('dab', 'dino'), ('deformable', 'refined')],
)
def test_queries_between_families(student, teacher):
    model, _ = asked(student, teacher)
    with torch.autocast('cpu', torch.bfloat16):
        value = model(*batch(model), mode='loss')['distill.kd.loss']
    value.backward()
    assert value > 0 and value.isfinite() and value.dtype == torch.float32
    assert has_gradient(model.student.backbone.conv1.weight) or has_gradient(
        model.student.backbone.layer4[0].conv1.weight
    )


#: Models that classify masks.
MASKED = {
    'instances': stock_models.mask2former,
    'panoptic': partial(stock_models.mask2former, stuff=2),
    'MaskFormer': partial(stock_models.maskformer, stuff=2),
    'segmentor': stock_models.mask2former_segmentor,
    'MaskFormer segmentor': stock_models.maskformer_segmentor,
}


def asked_for_masks(student, teacher, **loss):
    """A student that is asked the seven queries of its teacher, four random ones and its own."""
    exact = dict(precision='fp32', fuse_conv_bn=False)
    config = MASKED[teacher](queries=7)
    loss = dict(type='mmkd_plugin.SharedMasksLoss', points=40, **loss)
    line = dict(queries=dict(random=4, student=True), loss=loss)
    teacher = dict(config=config, checkpoint=None, inference=exact)
    model = distiller(MASKED[student](), teacher, dict(kd=line))
    frozen = model.teachers['teacher'].model
    for part in (model, frozen):
        part.init_weights()
    return model.train(), frozen


def head_in(model):
    return getattr(model, 'panoptic_head', None) or model.decode_head


def plain_masks(model, numbers, inputs, samples):
    """What a model computes if it has learnt these numbers."""
    plain = copy.deepcopy(model).eval()
    for one, other in zip(plain.modules(), model.modules()):
        one.training = other.training and isinstance(one, torch.nn.BatchNorm2d)
    head = head_in(plain)
    names = [name for name in ('query_feat', 'query_embed') if hasattr(head, name)]
    for name, part in zip(names, numbers.chunk(len(names), -1)):
        setattr(head, name, torch.nn.Embedding.from_pretrained(part))
    with torch.no_grad():
        scores, masks = head(plain.extract_feat(inputs), samples)
    return [x if isinstance(x, torch.Tensor) else torch.stack(x) for x in (scores, masks)]


def numbers_of(model):
    head = head_in(model)
    parts = [getattr(head, n).weight for n in ('query_feat', 'query_embed') if hasattr(head, n)]
    return torch.cat(parts, -1).detach().clone()


@pytest.mark.parametrize('name', MASKED)
def test_masks_are_asked_as_if_the_queries_were_the_models_own(name, counters):
    model, frozen = asked_for_masks(name, name)
    student, (inputs, samples) = model.student, batch(model)
    given = []
    model.distill.kd.loss.register_forward_pre_hook(lambda _, args: given.append(args))
    before, random = copy.deepcopy(student), torch.get_rng_state()
    alone = copy.deepcopy(student)(inputs, copy.deepcopy(samples), mode='loss')
    state = torch.get_rng_state()
    torch.set_rng_state(random)
    losses = model(inputs, copy.deepcopy(samples), mode='loss')
    assert torch.equal(torch.get_rng_state(), state), 'the next points of its own loss are others'
    value = losses.pop('distill.kd.loss')
    assert losses.keys() == alone.keys()
    assert all(torch.equal(losses[key], alone[key]) for key in alone)

    ((students, teachers),) = given
    for numbers, place in ((numbers_of(frozen), 0), (numbers_of(before), 4)):
        for plain, asked, layers in ((before, students, slice(None)), (frozen, teachers, [-1])):
            expected = plain_masks(plain, numbers, inputs, copy.deepcopy(samples))
            for got, wanted in zip(asked[place : place + 2], expected):
                torch.testing.assert_close(got, wanted[layers], rtol=1e-4, atol=1e-5)
    assert [x.shape[2] for x in students] == [7, 7, 4, 4, 5, 5]

    value.backward()
    learning = {key for key, p in student.named_parameters() if has_gradient(p)}
    assert {key.partition('.')[0] for key in learning} >= {'backbone'}
    assert {part.split('.')[1] for part in learning if 'head' in part} >= {
        'pixel_decoder',
        'transformer_decoder',
        'cls_embed',
        'mask_embed',
    }
    assert not any('query_' in key for key in learning), 'its queries learn from the task alone'
    assert all(p.grad is None for p in frozen.parameters())
    build(MASKED[name]()).load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize('name', MASKED)
def test_masks_teach_the_student_and_leave_the_teacher(name):
    model, frozen = asked_for_masks(name, name)
    inputs, samples = batch(model)
    before = copy.deepcopy(frozen.state_dict())
    optimizer, values = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-3)), []
    for _ in range(5):  # the points of the iteration are the same: their seed is its number
        losses = model(inputs, copy.deepcopy(samples), mode='loss')
        values.append(losses['distill.kd.loss'].item())
        optimizer.update_params(losses['distill.kd.loss'])
    assert values[-1] < 0.9 * values[0]
    assert_same(dict(frozen.state_dict()), dict(before))


def test_masks_that_find_their_weight_under_mixed_precision_and_draw_points_again(counters):
    model, _ = asked_for_masks('instances', 'instances', loss_weight='auto')
    inputs, samples = batch(model)
    values = []
    for number in (0, 1, 1, 2):
        counters.update_info('iter', number)
        with torch.autocast('cpu', torch.bfloat16):
            losses = model(inputs, copy.deepcopy(samples), mode='loss')
        values.append((losses['distill.kd.loss'] / model.distill.kd.loss.loss_weight).item())
    assert values[1] == pytest.approx(values[2], rel=1e-6)
    assert abs(values[3] - values[1]) > 1e-4 * values[1]
    assert model.distill.kd.auto.weight > 0
    assert losses['distill.kd.loss'].dtype == torch.float32
    assert losses['distill.kd.loss'].isfinite()


def test_masks_that_cannot_be_asked():
    with pytest.raises(ValueError, match='takes 16 learnt numbers each, of MaskFormer, and the qu'):
        asked_for_masks('instances', 'MaskFormer')
    with pytest.raises(ValueError, match='classes differ: student 4, teacher 6; take a teacher of'):
        asked_for_masks('instances', 'panoptic')
    line = dict(queries=dict(), loss=dict(type='mmkd_plugin.SharedQueriesLoss'))
    with pytest.raises(ValueError, match=r'for masks take mmkd_plugin.SharedMasksLoss'):
        distiller(MASKED['instances'](), MASKED['instances'](), dict(kd=line))


@pytest.mark.parametrize('line', [dict(queries=dict(random=4)), dict(tap='class_scores')])
def test_a_maskformer_gets_the_size_of_a_batch_that_mmseg_does_not_note(line):
    loss = dict(type='mmkd_plugin.SharedMasksLoss', points=40) if 'queries' in line else cwd()
    model = distiller(
        MASKED['MaskFormer segmentor'](),
        MASKED['MaskFormer segmentor'](),
        dict(kd=dict(line, loss=loss)),
    ).train()
    inputs, samples = batch(model)
    for sample in samples:
        del sample.batch_input_shape
    assert model(inputs, samples, mode='loss')['distill.kd.loss'].isfinite()


def test_a_made_up_image_has_positions_for_all_queries_of_a_teacher():
    teacher = stock_models.dino(queries=400)
    line = dict(queries=dict(random=5), loss=dict(type='mmkd_plugin.SharedQueriesLoss'))
    student = ASKED['two stages']()
    assert distiller(student, teacher, dict(kd=line))._run_student.run.size == 128


def test_a_detector_that_selects_queries_in_another_way_is_refused():
    config = ASKED['dino']()
    config['type'] = 'DDQDETR'
    config['dqs_cfg'] = dict(type='nms', iou_threshold=0.8)
    config['bbox_head'].update(type='DDQDETRHead')
    line = dict(queries=dict(), loss=dict(type='mmkd_plugin.SharedQueriesLoss'))
    with pytest.raises(ValueError, match=r"teacher 'teacher' \(DDQDETR\) has no queries that both"):
        distiller(ASKED['dino'](), config, dict(kd=line))


def test_a_student_that_is_not_initialised_yet_can_be_tried():
    student = build(ASKED['dino']())
    student.level_embed.data.fill_(torch.nan)  # it is raw memory until `init_weights`
    loss = dict(type='mmkd_plugin.SharedQueriesLoss', loss_weight='auto')
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = Distiller(
            student,
            dict(config=ASKED['dino'](16), checkpoint=None),
            dict(kd=dict(queries=dict(random=5), loss=loss)),
        )
    assert model.distill.kd.auto is not None
