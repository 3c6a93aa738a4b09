"""The dry forward: what it tries, what it reports, and that it leaves no trace."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from mmkd_plugin.taps import Tap
from mmkd_plugin.taps.dry_run import UntriedError, dry_run_student, never_ran, read_once
from mmkd_plugin.taps.example import (
    EXAMPLE_SIZES,
    example_batch,
    image_channels,
    library_of,
    random_state_kept,
)
from tests import stock_models
from tests.runs import needs_ops
from tests.stock_models import build, cwd, distiller

CPU = torch.device('cpu')
SIZE = EXAMPLE_SIZES[0]
FAMILIES = [
    *(('mmseg', name) for name in ('pspnet', 'fcn', 'segformer')),
    *(('mmdet', name) for name in ('retinanet', 'fcos', 'gfl', 'faster_rcnn')),
    *(
        pytest.param('mmdet', name, marks=needs_ops)
        for name in ('mask_rcnn', 'detr', 'dino', 'mask2former')
    ),
]


def run(model, *taps):
    taps = [Tap.parse(tap) for tap in taps]
    return dry_run_student(model, taps, CPU), taps


# Made-up images and labels ------------------------------------------------------------------------


@pytest.mark.parametrize(('library', 'name'), FAMILIES)
def test_the_training_forward_of_every_family_can_be_tried(library, name):
    torch.manual_seed(0)
    model = build(getattr(stock_models, name)())
    assert library_of(model) == library
    inputs, samples = example_batch(model, CPU)
    assert inputs.shape == (1, 3, SIZE, SIZE)
    assert len(samples) == 1 and samples[0].img_shape == inputs.shape[2:]
    seen, (tap,) = run(model, 'backbone')
    assert seen.problem is None
    maps = seen.values[tap]
    assert all(not level.requires_grad and level.device == CPU for level in maps)
    assert seen.calls == {tap: 1} and seen.ran[-1] != 'backbone'


def test_labels_of_a_segmentor():
    _, (sample,) = example_batch(build(stock_models.pspnet()), CPU)
    labels = sample.gt_sem_seg.data
    assert labels.shape == (1, SIZE, SIZE) and labels.dtype == torch.long
    assert not labels.any()
    assert sample.gt_edge_map.data.shape == labels.shape


def test_labels_of_a_detector():
    _, (sample,) = example_batch(build(stock_models.retinanet()), CPU)
    instances = sample.gt_instances
    assert instances.bboxes.tolist() == [[16, 16, 112, 112]] and instances.labels.tolist() == [0]
    mask = instances.masks.to_tensor(torch.bool, CPU)[0]
    rows, columns = torch.nonzero(mask, as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (16, 111, 16, 111)
    assert len(sample.ignored_instances.bboxes) == 0


@pytest.mark.parametrize(
    ('channels', 'preprocessor'),
    [
        (1, dict(mean=[0.0], std=[1.0], bgr_to_rgb=False)),
        (3, {}),
        (4, dict(mean=None, std=None, bgr_to_rgb=False)),  # the pipeline normalises
        (12, dict(mean=None, std=None)),
    ],
)
def test_images_have_the_channels_that_a_model_takes(channels, preprocessor):
    config = stock_models.fcn(**preprocessor)
    config['backbone']['in_channels'] = channels
    seen, (tap,) = run(build(config), 'backbone[3]')
    assert seen.channels == channels
    assert seen.values[tap].shape == (1, 64, 4, 4) and seen.problem is None


def test_a_mean_for_each_channel_says_how_many_there_are():
    model = build(stock_models.fcn())
    model.data_preprocessor.mean = torch.zeros(4, 1, 1)  # one of another library
    assert image_channels(model) == 4


def test_a_teacher_for_other_images_is_refused():
    student = stock_models.fcn(mean=None, std=None)
    student['backbone']['in_channels'] = 4
    term = dict(tap='decode_head.conv_seg', loss=cwd())
    with pytest.raises(ValueError, match=r'takes images of 3 channels.* student have 4'):
        distiller(student, stock_models.fcn(), dict(cwd=term))
    distiller(student, student, dict(cwd=term))


def test_channels_behind_a_rearrangement_are_not_those_of_the_image():
    config = stock_models.retinanet()
    config['backbone'] = dict(type='CSPDarknet', widen_factor=0.125, deepen_factor=0.33)
    config['neck'] = dict(type='FPN', in_channels=[32, 64, 128], out_channels=16, num_outs=5)
    config['data_preprocessor'].update(mean=None, std=None)
    model = build(config)  # its first convolution takes 12 channels
    assert run(model, 'neck')[0].channels == 3


def test_one_mean_for_three_channels():
    model = build(stock_models.fcn(mean=[120.0], std=[60.0]))
    assert example_batch(model, CPU)[0].shape[1] == 3


def test_the_library_of_a_subclass_and_of_a_stranger():
    class Own(type(build(stock_models.fcn()))):
        pass

    assert library_of(build(dict(stock_models.fcn(), type=Own))) == 'mmseg'
    assert library_of(Picky()) == ''
    inputs, samples = example_batch(Picky(), CPU)
    assert inputs.shape == (1, 3, SIZE, SIZE) and inputs.is_floating_point() and samples is None


# What it shows ------------------------------------------------------------------------------------


def test_what_runs_in_training():
    seen, (logits, stage) = run(
        build(stock_models.pspnet()), 'decode_head.conv_seg', 'backbone.layer1'
    )
    assert seen.values[logits].shape == (1, 5, 16, 16)
    assert seen.values[stage].shape == (1, 8, 32, 32)
    assert 'decode_head' not in seen.ran, 'its parent calls its methods'
    assert seen.ran.index('backbone.layer1') < seen.ran.index('decode_head.conv_seg')
    assert len(seen.ran) == len(set(seen.ran))
    assert seen.in_place == frozenset()


def test_a_module_that_runs_once_per_level():
    seen, (tap,) = run(build(stock_models.retinanet()), 'bbox_head.retina_cls')
    assert seen.calls[tap] == 5
    assert [tuple(level.shape[2:]) for level in seen.values[tap]] == [
        (size, size) for size in (16, 8, 4, 2, 1)
    ]


def test_tensors_that_are_overwritten_are_noted_and_still_shown():
    seen, (norm, other) = run(build(stock_models.fcn()), 'backbone.layer1.0.bn1', 'backbone.layer1')
    assert seen.in_place == {norm}
    assert seen.values[norm].shape == seen.values[other].shape == (1, 8, 32, 32)


def test_a_transformer_that_takes_its_own_size_alone():
    seen, (tap,) = run(build(stock_models.beit(side=80)), 'backbone[0]')
    assert seen.problem is None and seen.size == 80
    assert seen.values[tap].shape == (1, 16, 5, 5)
    with pytest.raises(ValueError, match=r'could not be tried on a made-up image.*size of tensor'):
        run(build(stock_models.beit(side=80, size=None, size_divisor=16)), 'backbone[0]')


@needs_ops
@pytest.mark.parametrize('value', [float('nan'), float('inf'), -1e30])
def test_parameters_that_are_raw_memory_until_they_are_initialised(value):
    model = build(stock_models.dino())
    model.level_embed.data.fill_(value)
    seen, _ = run(model, 'neck')
    assert seen.problem is None
    kept = model.level_embed.detach()
    torch.testing.assert_close(kept, torch.full_like(kept, value), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(('student', 'teacher'), [('beit', 'fcn'), ('fcn', 'beit')])
def test_it_learns_and_teaches_at_that_size(student, teacher):
    distill = dict(cwd=dict(student_tap='backbone[2]', teacher_tap='backbone[2]', loss=cwd()))
    model = distiller(
        getattr(stock_models, student)(), getattr(stock_models, teacher)(16), distill
    ).train()
    _, samples = example_batch(model.student, CPU, 64)
    losses = model(torch.rand(1, 3, 64, 64), samples, mode='loss')
    assert losses['distill.cwd.loss'] > 0


def test_a_teacher_of_another_size_says_which_one_it_takes():
    teacher = stock_models.beit(16, side=80, size=(80, 80))
    distill = dict(cwd=dict(tap='backbone[0]', loss=cwd()))
    with pytest.raises(ValueError, match='takes images of 80x80 pixels alone'):
        distiller(stock_models.fcn(), teacher, distill)


@pytest.mark.parametrize(
    ('taps', 'owner'),
    [(('backbone[9]', 'backbone[0]'), 'the student'), (('backbone', 'backbone[9]'), "teacher 't'")],
)
def test_an_element_that_does_not_exist(taps, owner):
    distill = dict(c=dict(zip(('student_tap', 'teacher_tap'), taps, strict=True), loss=cwd()))
    teacher = [dict(name='t', config=stock_models.fcn(), checkpoint=None)]
    with pytest.raises(ValueError, match='has no element') as error:
        distiller(stock_models.fcn(), teacher, distill)
    said = f"distill.c: {owner}: tap 'backbone[9]' has no element [9]: it gives 4 elements"
    assert str(error.value) == said


class Picky(BaseModel):
    """Has a training forward that our labels do not suit, and a head that only it uses."""

    def __init__(self, modes=('tensor',)):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.head = nn.Conv2d(4, 2, 1)
        self.modes = modes

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if mode not in self.modes:
            raise KeyError(f'no points for {mode}')
        return self.body(inputs)


def test_a_student_that_does_not_run():
    class Asserting(Picky):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            raise AssertionError

    with pytest.raises(UntriedError) as error:
        run(Asserting(), 'body')
    assert str(error.value).count('(AssertionError: raise AssertionError)') == 2
    assert str(error.value).endswith(
        '; expected a model that trains by itself: train it without distillation first, and look '
        'at lists whose lengths belong together, such as `in_channels`'
    )


def test_labels_that_do_not_suit():
    seen, (tap,) = run(Picky(), 'body')
    assert seen.problem == "KeyError: 'no points for loss'"
    assert seen.values[tap].shape == (1, 4, SIZE - 2, SIZE - 2)
    with pytest.raises(ValueError) as error:
        run(Picky(), 'body', 'head')
    text = str(error.value)
    assert "the student has a module 'head', but nothing can be read there, it never runs" in text
    assert 'Among those that run: body. (The training forward could not be tried' in text
    assert text.endswith("What it said: KeyError: 'no points for loss')")


def test_a_model_that_runs_in_no_way():
    with pytest.raises(ValueError, match=r'no points for loss.*no points for tensor'):
        run(Picky(modes=()), 'body')


def test_never_ran_names_what_runs_inside():
    model = build(stock_models.pspnet())
    seen, _ = run(model, 'backbone')
    inside = never_ran(model, Tap('decode_head'), seen, 'the student')
    assert inside.startswith(
        "the student has a module 'decode_head', but nothing can be read there: its parent calls "
        'its methods instead of the module itself'
    )
    parts = ('conv_seg', 'bottleneck', 'psp_modules')
    assert inside.endswith(
        f'Inside it these run: {", ".join(f"decode_head.{part}" for part in parts)}.'
    )
    outside = never_ran(model, Tap('backbone.nothing'), seen, "teacher 't'")
    assert outside.startswith(
        "teacher 't' has a module 'backbone.nothing', but nothing can be read there, it never runs "
        'in a forward up to its scores. Among those that run: decode_head.loss_decode, '
    )


# No trace -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('training', [True, False])
def test_the_model_stays_as_it_was(training):
    model = build(stock_models.retinanet()).train(training)
    model.backbone.layer1.eval()
    flags = {name: module.training for name, module in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    run(model, 'neck', 'backbone.layer1.0.bn1@input')
    assert {name: module.training for name, module in model.named_modules()} == flags
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_go_when_the_forward_fails():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    with pytest.raises(ZeroDivisionError):
        read_once(model, [Tap('0')], lambda: 1 / 0)
    assert not any(module._forward_hooks for module in model.modules())


def test_random_numbers_go_on_as_if_nothing_had_happened():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    def seed():
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    seed()
    expected = draw()
    seed()
    with random_state_kept():
        draw()
    assert draw() == expected
    seed()
    with pytest.raises(ValueError), random_state_kept():
        draw()
        raise ValueError
    assert draw() == expected


@needs_ops
def test_a_tap_of_scores_that_are_no_maps_says_which_modules_give_maps():
    config = stock_models.mask2former()
    term = dict(tap='panoptic_head.cls_embed', loss=cwd())
    with pytest.raises(ValueError, match=r"Inside 'panoptic_head' these give maps.*pixel_decoder"):
        distiller(config, config, dict(cwd=term))


def test_a_tap_inside_a_backbone_that_gives_several_maps_says_their_numbers():
    model = stock_models.segformer()
    with pytest.raises(ValueError, match=r"'backbone' gives 4 maps: 'backbone\[0\]' to 'backb"):
        distiller(model, model, dict(cwd=dict(tap='backbone.layers.3', loss=cwd())))


class Tokens(nn.Module):
    """A head that computes with tokens, and makes maps of them in its own forward."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        return self.norm(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)


def test_where_no_module_inside_gives_maps_the_part_before_it_is_named():
    model = nn.ModuleDict(dict(backbone=nn.Conv2d(3, 4, 1), head=Tokens()))
    x, tap = torch.rand(1, 3, 8, 8), Tap.parse('head')
    seen = read_once(model, [tap], lambda: model['head'].forward(model['backbone'](x)))
    assert seen.maps == dict(backbone=1)
    message = never_ran(model, tap, seen, 'the student')
    assert "Nothing inside 'head' gives a map (N, C, H, W); tap what comes before it: backbone" in (
        message
    )


class Boxes(BaseModel):
    """Learns boxes, which are boxes once its weights are initialised."""

    def __init__(self):
        super().__init__(init_cfg=dict(type='Pretrained', checkpoint='nowhere.pth'))
        self.body = nn.Conv2d(3, 4, 3)
        self.widths = nn.Parameter(-torch.ones(2))

    def init_weights(self):
        super().init_weights()
        self.widths.data.fill_(1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if self.widths.min() < 0:
            raise ValueError('a box of negative width')
        loss = self.body(inputs).mean()
        return dict(loss=loss) if mode == 'loss' else loss


def test_a_model_that_runs_with_initialised_weights_alone():
    model = Boxes()
    seen, (tap,) = run(model, 'body')
    assert seen.initialised and seen.problem is None
    assert seen.values[tap].shape == (1, 4, 126, 126)
    assert model.widths.max() < 0 and not model.is_init  # the run does it
