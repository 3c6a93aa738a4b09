"""Batch augmentations in a preprocessor, and in runs with a teacher."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.models import SegDataPreProcessor as Stock
from mmseg.structures import SegDataSample
from torch import Tensor

from mmkd_plugin.models.batch_augments import (
    CutMix,
    use_stock_preprocessor,
)
from mmkd_plugin.registry import MODELS
from mmkd_plugin.teachers.preprocessing import InputConverter
from tests import stock_models
from tests.runs import SEG_CLASSES, config, save_weights, train

CUTMIX = dict(type='mmkd_plugin.CutMix', prob=1.0)


def build(augments: Any, **changes: Any) -> Stock:
    own = {'type': 'mmkd_plugin.SegDataPreProcessor', 'size': (64, 64), **changes}
    if augments is not None:
        own['batch_augments'] = augments
    return stock_models.build(dict(_scope_='mmseg', **own))


def padded_batch() -> dict:
    """Raw images of three sizes, each with one colour and one class."""
    images, samples = [], []
    for n, (height, width) in enumerate([(64, 40), (50, 64), (64, 64), (45, 52)]):
        images.append(torch.full((3, height, width), 50 * n + 20, dtype=torch.uint8))
        labels = PixelData(data=torch.full((1, height, width), n))
        samples.append(SegDataSample(gt_sem_seg=labels))
    return dict(inputs=images, data_samples=samples)


def test_it_is_the_stock_preprocessor():
    torch.manual_seed(0)
    mean = dict(
        mean=stock_models.MEAN,
        std=stock_models.STD,
        bgr_to_rgb=True,
        test_cfg=dict(size_divisor=32),
    )
    plain = stock_models.build(
        dict(_scope_='mmseg', type='SegDataPreProcessor', size=(64, 64), **mean)
    )
    for augments in (None, [], [CUTMIX], CUTMIX, CutMix()):
        ours = build(augments, **mean)
        assert type(ours) is Stock and not ours.state_dict()
        assert (ours.batch_augments is None) == (not augments)
        assert repr(ours) == repr(plain)
        one = dict(inputs=[torch.rand(3, 40, 50)], data_samples=[SegDataSample()])
        given, expected = ours(copy.deepcopy(one), False), plain(one, False)
        assert torch.equal(given['inputs'], expected['inputs'])
    mixed = []
    for one in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.manual_seed(0)
        mixed.append(one(padded_batch(), True)['inputs'])
    assert torch.equal(mixed[0], mixed[1]) and torch.equal(mixed[0], mixed[2])
    assert not torch.equal(mixed[0], plain(padded_batch(), True)['inputs'])


def test_augmentations_follow_one_another(monkeypatch):
    calls = []

    class Note:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, inputs: Tensor, samples: list) -> tuple[Tensor, list]:
            calls.append(self.name)
            return inputs + 1, samples

    monkeypatch.setitem(MODELS.module_dict, 'Note', Note)
    by_name = dict(type='mmkd_plugin.Note', name='second')
    preprocessor = build([Note('first'), dict(CUTMIX, prob=0.0), by_name])
    out = preprocessor(padded_batch(), True)['inputs']
    assert calls == ['first', 'second'] and out[2].unique().tolist() == [122]
    preprocessor({key: value[2:3] for key, value in padded_batch().items()}, False)
    assert calls == ['first', 'second']  # in training only


def test_label_maps_cannot_be_blended():
    with pytest.raises(ValueError, match='label maps of a segmentation'):
        build([dict(type='mmkd_plugin.Mixup')])


def test_padding_stays_where_it_is():
    torch.manual_seed(0)
    preprocessor = build([CUTMIX], pad_val=-7)
    mixed = 0
    for _ in range(40):
        out = preprocessor(padded_batch(), True)
        for n, (image, sample) in enumerate(zip(out['inputs'], out['data_samples'], strict=True)):
            labels, (height, width) = sample.gt_sem_seg.data[0], sample.img_shape
            inside = torch.zeros(64, 64, dtype=torch.bool)
            inside[:height, :width] = True
            assert torch.equal(labels == 255, ~inside) and torch.equal(image[0] == -7, ~inside)
            assert torch.equal(image[0][inside], (50 * labels + 20)[inside].float())
            mixed += int((labels[inside] != n).any())
    assert mixed > 100


@pytest.mark.parametrize('augments', [[CUTMIX], [CUTMIX, CUTMIX]])
def test_a_teacher_gets_what_its_own_preprocessor_would_have_mixed(augments):
    student = build(augments, mean=stock_models.MEAN, std=stock_models.STD, bgr_to_rgb=True)
    teacher = build(augments, mean=[100.0] * 3, std=[50.0] * 3, pad_val=3)
    convert = InputConverter.between(student, teacher)
    for seed in range(10):
        torch.manual_seed(seed)
        out = student(padded_batch(), True)
        torch.manual_seed(seed)
        expected = teacher(padded_batch(), True)['inputs']
        converted = convert(out['inputs'], out['data_samples'])
        torch.testing.assert_close(converted, expected, rtol=1e-5, atol=1e-4)


def test_the_plugin_needs_no_mmseg():
    code = (
        'import sys; sys.modules["mmseg"] = None\n'
        'from mmkd_plugin.registry import MODELS\n'
        'MODELS.build(dict(type="mmkd_plugin.CutMix"))\n'
        'try:\n    MODELS.build(dict(type="mmkd_plugin.SegDataPreProcessor"))\n'
        'except ImportError as error:\n    print("mmseg" in str(error))\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith('True\n'), done.stderr


def test_back_to_stock():
    own = dict(type='mmkd_plugin.SegDataPreProcessor', mean=[1.0], batch_augments=[CUTMIX])
    other = dict(type='mmkd_plugin.Other', batch_augments=[1])
    stock = dict(type='SegDataPreProcessor', mean=[1.0])
    cfg = dict(a=[dict(own), (dict(own),)], b=dict(c=dict(own), type=int), d=dict(other), e='x')
    cfg['f'] = dict(own, type=type(build(None)))
    use_stock_preprocessor(cfg)
    assert cfg['a'] == [stock, (stock,)] and cfg['b'] == dict(c=stock, type=int)
    assert cfg['d'] == other and cfg['f']['batch_augments'] == [CUTMIX]


# Real runs ----------------------------------------------------------------------------------------


class Fed(Hook):
    """Notes what the backbones of student and teacher got in each iteration, and the labels."""

    def __init__(self) -> None:
        self.student: list[Tensor] = []
        self.teacher: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.losses: list[dict] = []

    def before_train(self, runner: Runner) -> None:
        model = runner.model
        model.data_preprocessor.register_forward_hook(
            lambda _, __, out: self.labels.append(
                torch.cat([sample.gt_sem_seg.data for sample in out['data_samples']])
            )
        )
        model.backbone.register_forward_pre_hook(
            lambda _, args: self.student.append(args[0].clone())
        )
        if hasattr(model, 'teachers'):
            model.teachers['teacher'].model.backbone.register_forward_pre_hook(
                lambda _, args: self.teacher.append(args[0].clone())
            )

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.losses.append(outputs)


def student(augments: list | None) -> dict:
    model = stock_models.pspnet(classes=len(SEG_CLASSES))
    if augments:
        model['data_preprocessor'].update(
            type='mmkd_plugin.SegDataPreProcessor', batch_augments=augments
        )
    return model


def classes_seen(images: Tensor) -> Tensor:
    """The classes that the colours of the tiny data set show."""
    pixels = images * torch.tensor(stock_models.STD).view(3, 1, 1) + torch.tensor(
        stock_models.MEAN
    ).view(3, 1, 1)
    colours = torch.tensor([[40, 40, 40], [60, 200, 60], [60, 60, 200]]) + 15.0  # RGB, mid-noise
    return (
        torch.cdist(pixels.permute(0, 2, 3, 1).reshape(-1, 3), colours)
        .argmin(1)
        .view(pixels[:, 0].shape)
    )


def test_real_runs_plain_and_distilled(own_globals, data, tmp_path):
    teacher = stock_models.pspnet(16, len(SEG_CLASSES), mean=[110.0] * 3, std=[64.0] * 3)
    checkpoint = save_weights(teacher, tmp_path / 'teacher.pth')
    mixed = student([dict(type='mmkd_plugin.CutMix', prob=0.8)])
    distilled = dict(
        _scope_='mmseg',
        type='mmkd_plugin.Distiller',
        student=copy.deepcopy(mixed),
        teacher=dict(config=teacher, checkpoint=checkpoint),
        distill=dict(cwd=dict(tap='decode_head.conv_seg', loss=stock_models.cwd(tau=2))),
    )
    runs = {}
    for name, model in dict(stock=student(None), mixed=mixed, distilled=distilled).items():
        runs[name] = fed = Fed()
        runner = train(config(model, data, tmp_path / name, 6), fed)
    assert {len(fed.student) for fed in runs.values()} == {6}
    stock, plain, taught = runs.values()

    # Distilling draws no random numbers.
    for one, other in zip(plain.student, taught.student, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(plain.labels, taught.labels, strict=True):
        assert torch.equal(one, other)
    changed = [
        not torch.equal(one, other) for one, other in zip(plain.student, stock.student, strict=True)
    ]
    assert 2 <= sum(changed) <= 6
    for fed in runs.values():  # pixels and labels agree
        for images, labels in zip(fed.student, fed.labels, strict=True):
            assert torch.equal(classes_seen(images), labels)
    assert len(taught.teacher) == 6
    student_mean, student_std = (
        torch.tensor(v).view(3, 1, 1) for v in (stock_models.MEAN, stock_models.STD)
    )
    # The teacher sees the same pixels.
    for ours, theirs in zip(taught.student, taught.teacher, strict=True):
        pixels = ours * student_std + student_mean
        torch.testing.assert_close(theirs, (pixels - 110) / 64, rtol=1e-4, atol=1e-4)
    for losses in taught.losses:
        assert losses['loss'].isfinite() and losses['distill.cwd.loss'].isfinite()

    weights = torch.load(tmp_path / 'distilled' / 'iter_6.pth', weights_only=False)['state_dict']
    stock_models.build(student(None)).load_state_dict(weights)  # strict: stock keys, all of them
    assert type(runner.model.data_preprocessor) is Stock
