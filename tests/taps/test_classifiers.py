"""Class scores by one name: where they lie in each kind of model, and that both sides agree."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mmkd_plugin.taps import Tap, TapReader, find_module, places_of
from mmkd_plugin.taps.classifiers import FLOOR, made_of, map_of, semantic_scores
from mmkd_plugin.taps.dry_run import dry_run_student, read_once
from mmkd_plugin.taps.example import example_batch
from mmkd_plugin.teachers.dense_forward import dense_forward, heads_of
from tests import stock_models
from tests.runs import needs_ops
from tests.stock_models import batch, build, cwd, distiller, has_gradient

CPU = torch.device('cpu')
NAMED = Tap.parse('class_scores')
MASKS = 'mask2former_segmentor', 'maskformer_segmentor', 'mask2former'

PLACES = {
    'pspnet': 'decode_head.conv_seg',
    'ocrnet': 'decode_head.1.conv_seg',
    'pointrend': 'decode_head.0.conv_seg',
    'pidnet': 'decode_head.conv_seg',
    'ddrnet': 'decode_head.conv_seg',
    'san': 'decode_head@class_scores',
    'mask2former_segmentor': 'decode_head@class_scores',
    'maskformer_segmentor': 'decode_head@class_scores',
    'mask2former': 'panoptic_head@class_scores',
}


def model_of(name: str, width: int = 8) -> nn.Module:
    """A model with weights of which none is raw memory."""
    torch.manual_seed(0)
    model = build(getattr(stock_models, name)(width))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def with_auxiliary_heads(count: int = 2) -> dict:
    """FCN with further heads on earlier maps of the backbone."""
    model = stock_models.fcn()
    heads = [
        dict(model['decode_head'], in_channels=8 * 2**index, in_index=index)
        for index in range(count)
    ]
    return dict(model, auxiliary_head=heads if count > 1 else heads[0])


def by_hand(classes: Tensor, masks: Tensor) -> Tensor:
    """The semantic map, a query at a time."""
    found = 0
    for query in range(classes.shape[1]):
        shares = classes[:, query].exp() / classes[:, query].exp().sum(1, keepdim=True)
        inside = 1 / (1 + (-masks[:, query]).exp())
        found = found + shares[:, :-1, None, None] * inside[:, None]
    return found


# Where they lie -----------------------------------------------------------------------------------


@pytest.mark.parametrize('name', PLACES)
def test_where_they_lie_in_student_and_teacher(name):
    if name in MASKS or name == 'san':
        pytest.importorskip('mmcv.ops')
    model = model_of(name)
    (place,) = places_of(model, NAMED)
    assert str(place) == PLACES[name]
    run = dry_run_student(model, [NAMED], CPU)
    student = run.values[NAMED]
    assert run.scores[NAMED][0] == (1, 4 if name == 'mask2former' else 5, student.shape[1])
    inputs, samples = example_batch(model.eval(), CPU, run.size)
    heads = heads_of(model, [NAMED], 'the teacher')
    teacher = read_once(model, [NAMED], lambda: dense_forward(model, inputs, samples, heads))
    assert teacher.values[NAMED].shape == student.shape


def test_heads_beside_the_main_one():
    model = build(with_auxiliary_heads())
    tap = Tap.parse('auxiliary_head@class_scores')
    places = ['auxiliary_head.0.conv_seg', 'auxiliary_head.1.conv_seg']
    assert list(map(str, places_of(model, tap))) == places
    maps = dry_run_student(model, [tap], CPU).values[tap]
    assert [tuple(x.shape[2:]) for x in maps] == [(32, 32), (16, 16)]
    alone = build(with_auxiliary_heads(1))
    assert str(places_of(alone, tap)[0]) == 'auxiliary_head.conv_seg'
    assert str(places_of(alone, NAMED)[0]) == 'decode_head.conv_seg'


def test_a_stage_that_runs_twice_in_training_gives_one_map():
    model, tap = build(stock_models.ocrnet()), Tap.parse('decode_head.0@class_scores')
    assert dry_run_student(model, [tap], CPU).values[tap].shape == (1, 5, 4, 4)


@pytest.mark.parametrize('name', ['ocrnet', 'pidnet'])
def test_the_map_that_the_classifier_takes_is_read_before_dropout(name):
    model, taken = model_of(name), Tap.parse('class_scores@input')
    head = find_module(model, Tap(PLACES[name].rpartition('.')[0]), 'the model')
    head.dropout = nn.Dropout2d(0.5)
    (place,) = places_of(model, taken)
    assert str(place) == f'{PLACES[name].rpartition(".")[0]}.dropout@input'
    given, (inputs, samples) = [], example_batch(model, CPU)
    head.dropout.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    with TapReader(model, [taken]) as reader:
        model(torch.cat([inputs, inputs]), samples * 2, mode='loss')
    assert reader.read(taken) is given[0]


def test_a_module_of_that_name_is_read_itself():
    model = nn.Sequential()
    model.add_module('class_scores', nn.Conv2d(3, 5, 1))
    assert places_of(model, NAMED) == (NAMED,)
    assert find_module(model, NAMED, 'the model') is model.class_scores


# The semantic map of a mask classifier ------------------------------------------------------------


def test_the_semantic_map_query_by_query():
    torch.manual_seed(0)
    classes, masks = torch.randn(2, 6, 4).double() * 3, torch.randn(2, 6, 5, 7).double() * 3
    found = semantic_scores(classes, masks)
    assert found.dtype == torch.float64 and made_of(found) is masks
    torch.testing.assert_close(found, (by_hand(classes, masks) + FLOOR).log())
    half = semantic_scores(classes.half(), masks.half())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, found.float(), atol=1e-2, rtol=1e-2)


def test_logits_that_leave_nothing_of_a_class_stay_finite():
    classes = torch.tensor([[[-2e4, 0.0, 2e4]]], requires_grad=True)
    masks = torch.full((1, 1, 2, 2), -2e4, requires_grad=True)
    found = semantic_scores(classes, masks)
    found.sum().backward()
    assert found.isfinite().all() and classes.grad.isfinite().all() and masks.grad.isfinite().all()


@pytest.mark.parametrize(
    'output',
    [dict(a=1), [], (torch.rand(1, 3), torch.rand(1, 3)), [torch.rand(1, 2, 3)], torch.rand(1, 2)],
)
def test_other_outputs_have_no_class_scores(output):
    assert map_of(output)[0] is None


@pytest.mark.parametrize('stacked', [False, True])
def test_of_all_layers_the_last_one_counts(stacked):
    classes, masks = torch.randn(3, 2, 6, 5), torch.randn(3, 2, 6, 4, 4, requires_grad=True)
    output = (classes, masks) if stacked else (list(classes), list(masks))
    for given in (output, output[::-1]):
        scores, again = map_of(given)
        torch.testing.assert_close(scores, (by_hand(classes[-1], masks[-1]) + FLOOR).log())
        assert all(torch.equal(x, y) for a, b in zip(given, again) for x, y in zip(a, b))
        behind = sum(x.sum() for part in again for x in part)
        (slope,) = torch.autograd.grad(behind, made_of(scores))
        assert torch.equal(slope, torch.ones(2, 6, 4, 4))


@needs_ops
@pytest.mark.parametrize('name', MASKS)
def test_the_student_trains_as_it_would_alone(name):
    config = getattr(stock_models, name)()
    model = distiller(config, config, dict(cwd=dict(tap='class_scores', loss=cwd())))
    inputs, samples = batch(model)
    alone = copy.deepcopy(model.student).train()
    torch.manual_seed(3)
    expected = alone(inputs, copy.deepcopy(samples), mode='loss')
    torch.manual_seed(3)
    losses = model.train()(inputs, samples, mode='loss')
    for key, value in expected.items():
        assert torch.equal(torch.as_tensor(losses[key]), torch.as_tensor(value)), key


@needs_ops
@pytest.mark.parametrize(
    ('student', 'teacher'),
    [
        ('mask2former_segmentor', 'maskformer_segmentor'),
        ('fcn', 'mask2former_segmentor'),
        ('maskformer_segmentor', 'pspnet'),
        ('pidnet', 'ocrnet'),
        ('pointrend', 'ddrnet'),
        ('san', 'pspnet'),
    ],
)
def test_they_teach_and_learn_with_an_automatic_weight(student, teacher):
    loss = dict(type='mmkd_plugin.PixelWiseLoss', loss_weight='auto')
    configs = getattr(stock_models, student)(8), getattr(stock_models, teacher)(16)
    torch.manual_seed(0)
    model = distiller(*configs, dict(pi=dict(tap='class_scores', loss=loss)))
    for parameter in model.student.parameters():
        nn.init.normal_(parameter, std=0.1)
    with torch.autocast('cpu', torch.bfloat16, enabled=student != 'pointrend'):
        losses = model.train()(*batch(model), mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    assert losses['distill.pi.loss'] > 0 and total.isfinite()
    assert model.distill.pi.auto.weight > 0
    root = model.student.image_encoder if student == 'san' else model.student.backbone
    assert any(p.grad is not None and p.grad.any() for p in root.parameters())


@needs_ops
@pytest.mark.parametrize('name', ['ddrnet', 'pidnet'])
def test_one_name_for_the_features_of_models_that_give_others_in_training(name):
    make = getattr(stock_models, name)
    terms = dict(
        features=dict(tap='class_scores@input', loss=dict(type='mmkd_plugin.PearsonLoss')),
        scores=dict(tap='class_scores', loss=cwd()),
    )
    model = distiller(make(8), make(16), terms).train()
    losses = model(*batch(model), mode='loss')
    for term in terms:
        losses[f'distill.{term}.loss'].backward(retain_graph=True)
        reached = [has_gradient(p) for p in model.student.backbone.parameters()]
        assert any(reached), term
        model.zero_grad()


def test_auxiliary_heads_teach_auxiliary_heads_by_one_name():
    model = distiller(
        with_auxiliary_heads(),
        with_auxiliary_heads(),
        dict(cwd=dict(tap='auxiliary_head@class_scores', loss=cwd())),
    ).train()
    model(*batch(model), mode='loss')['distill.cwd.loss'].backward()
    for head in model.student.auxiliary_head:
        assert has_gradient(head.conv_seg.weight)
    assert not has_gradient(model.student.decode_head.conv_seg.weight)


def test_a_head_that_takes_more_than_features_teaches(tmp_path):
    teacher = model_of('san')
    torch.save(dict(state_dict=teacher.state_dict()), tmp_path / 'san.pth')
    source = dict(config=stock_models.san(), checkpoint=str(tmp_path / 'san.pth'))
    loss = dict(type='mmkd_plugin.PixelWiseLoss')
    term = dict(pi=dict(tap='class_scores', loss=loss))
    model = distiller(stock_models.fcn(), source, term).train()
    inputs, samples = batch(model)
    (shown,) = model.teachers['teacher'].read(inputs, samples, [NAMED]).values()
    seen = []
    teacher.eval().decode_head.predict_by_feat = lambda given, _: seen.append(given)
    teacher.encode_decode(inputs, [sample.metainfo for sample in samples])
    masks, classes = seen[0]
    expected = (by_hand(classes, masks) + FLOOR).log()
    torch.testing.assert_close(shown, expected, rtol=0.05, atol=0.05)
    assert model(inputs, samples, mode='loss')['distill.pi.loss'].isfinite()


@needs_ops
def test_a_share_is_measured_at_the_masks():
    config = stock_models.mask2former_segmentor()
    loss = dict(type='mmkd_plugin.PixelWiseLoss', loss_weight=dict(auto=0.5))
    model = distiller(config, config, dict(pi=dict(tap='class_scores', loss=loss))).train()
    model.init_weights()
    model.student.decode_head.pixel_decoder.mask_feature.weight.data.mul_(2)
    seen = []
    model.student.decode_head.register_forward_hook(lambda *call: seen.append(call[2][1][-1]))
    losses = model(*batch(model), mode='loss')
    task, _ = model.parse_losses({k: v for k, v in losses.items() if 'distill' not in k})
    sizes = [
        torch.autograd.grad(value, seen[0], retain_graph=True)[0].norm()
        for value in (losses['distill.pi.loss'], task)
    ]
    torch.testing.assert_close(sizes[0], 0.5 * sizes[1])


# What is refused ----------------------------------------------------------------------------------

REFUSED = {
    'no classes of positions': (
        'retinanet',
        'class_scores',
        "the student has no 'class_scores': no head of a segmentor .* docs/taps.md lists those",
    ),
    'a slip': ('fcn', 'class_score', "has no module 'class_score'. Closest: class_scores"),
    'an element': ('fcn', 'class_scores[0]', "class scores have no elements; write 'class_scores'"),
    'a head without classes': (
        'fcn',
        'backbone@class_scores',
        "the student has no 'backbone@class_scores': no head in 'backbone'",
    ),
    'no such head': ('fcn', 'auxiliary_head@class_scores', "has no module 'auxiliary_head'"),
    'no last convolution': (
        'san',
        'class_scores@input',
        "nothing can be read at 'class_scores@input': SideAdapterCLIPHead",
    ),
    'a head of another kind': (
        'retinanet',
        'bbox_head@class_scores',
        r"class scores of 'bbox_head' cannot be read: RetinaHead gives tuple of",
    ),
}


@pytest.mark.parametrize(('name', 'tap', 'message'), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read(name, tap, message):
    config = getattr(stock_models, name)()
    with pytest.raises(ValueError, match=f'distill.cwd: .*{message}') as caught:
        distiller(config, stock_models.fcn(), dict(cwd=dict(tap=tap, loss=cwd())))
    assert '\n' not in str(caught.value)


@needs_ops
def test_nothing_of_the_model_follows_a_semantic_map():
    config = stock_models.mask2former_segmentor()
    loss = dict(type='mmkd_plugin.GradientAttentionLoss')
    with pytest.raises(ValueError, match=r"'class_scores' is computed .* takes gradients there"):
        distiller(config, config, dict(jacobian=dict(tap='class_scores', loss=loss)))
    place, hint = 'backbone.layer4', dict(type='mmkd_plugin.HintLoss')
    line = dict(student_tap=place, through=place, teacher_tap='class_scores', loss=hint)
    with pytest.raises(ValueError, match=r"no modules lead from 'backbone.layer4' to 'class_sc"):
        distiller(stock_models.fcn(), config, dict(hint=line))
