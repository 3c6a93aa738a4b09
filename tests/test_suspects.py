"""What a message says of the arguments of a class that failed: those that look wrong, or all."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from mmkd_plugin.run_config import check_run
from mmkd_plugin.suspects import told_of_arguments, told_of_parts
from tests import stock_models
from tests.fuzz import models
from tests.runs import config, needs_ops
from tests.stock_models import batch, build

HEAD = r'student\.decode_head: FCNHead: '


def changed(
    key: str,
    value: Any,
    make: Callable[[], dict] = models.of_a_segmentor,
    of: Callable[[dict], dict] = itemgetter('student'),
) -> dict:
    """A Distiller whose student, or another model of it, has another value in a place."""
    model = copy.deepcopy(make())
    *parents, last = key.split('.')
    holder = of(model)
    for parent in parents:
        holder = holder[parent]
    holder[last] = value
    return model


@pytest.mark.parametrize(
    ('key', 'value', 'told'),
    [
        ('decode_head.num_classes', -3, HEAD + '.*; `num_classes` is -3, expected a number from 0'),
        ('decode_head.dropout_ratio', 'x', HEAD + ".*; `dropout_ratio` is 'x', expected "),
        (
            'decode_head.norm_cfg',
            dict(type=0),
            HEAD + r'.*; `norm_cfg\.type` is 0, expected the name',
        ),
        ('decode_head.channels', [8], HEAD + '.*; look at its arguments: .*channels=\\[8\\]'),
        ('data_preprocessor.mean', [1.0, None, 2.0], '.*`mean` is \\[1.0, None, 2.0\\], expected '),
        (
            'data_preprocessor.std',
            [1.0, 2.0],
            '.*std`? (should have 1 or 3 values|.*has 3, got 2$)',
        ),
        ('data_preprocessor.size', [[64, 64]] * 2, 'student.*size must be a height and a width'),
        (
            'data_preprocessor.size',
            None,
            'student.* needs one of `size` and `size_divisor`, .* none',
        ),
        ('decode_head', [['a']], r'student\.decode_head\[0\]: expected dict\(type=...\), got'),
        (
            'decode_head.loss_decode',
            ['x'],
            r'student\.decode_head\.loss_decode\[0\]: expected dict',
        ),
        (
            'decode_head.loss_decode',
            [1],
            r'student\.decode_head: expected dict\(type=...\), got 1, which stands at '
            r'decode_head\.loss_decode\[0\], decode_head\.in_index, decode_head\.num_convs$',
        ),
        (
            'decode_head.nonsense',
            1,
            HEAD[:-2] + r' has no argument `nonsense` \(known: num_convs, .*',
        ),
    ],
)
def test_what_looks_wrong_is_named(key: str, value: Any, told: str) -> None:
    with pytest.raises(ValueError, match='^' + told):
        build(changed(key, value))


@pytest.mark.parametrize(
    ('key', 'value', 'told'),
    [
        ('data_preprocessor.mean', [1.0, math.inf, 2.0], r'mean\[1\] must be finite, got inf'),
        ('decode_head.channels', math.nan, r'decode_head\.channels must not be NaN'),
        ('_scope_', 7, "_scope_ must be the name of a library, such as 'mmseg', got 7"),
    ],
)
def test_what_no_model_takes_is_refused_first(
    key: str, value: Any, told: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r'^student\..*' + told):
        check_run(config(changed(key, value), data, tmp_path, 2))


@pytest.mark.parametrize(
    'name', ['segformer', 'beit', 'ocrnet', 'retinanet', 'gfl', 'detr', 'dino', 'faster_rcnn']
)
def test_nothing_looks_wrong_in_a_model_that_is_right(name: str) -> None:
    model = getattr(stock_models, name)()
    assert told_of_parts(model, model['_scope_'], 'student') == ''


def test_what_hardly_any_class_means_looks_wrong_in_one_that_was_built() -> None:
    model = stock_models.fcn()
    model['backbone'].update(norm_eval=7, frozen_stages=math.inf)
    assert told_of_parts(model, model['_scope_'], 'student') == (
        '; `student.backbone.norm_eval` is 7, expected True or False; '
        '`student.backbone.frozen_stages` is inf, expected a finite number'
    )


@needs_ops
@pytest.mark.parametrize(
    ('key', 'value', 'told'),
    [
        (
            'data_preprocessor.pad_size_divisor',
            [32, 32],
            r"mode='tensor' \([^;]*\); `student\.data_preprocessor\.pad_size_divisor` is \[32, 32\]"
            ', expected a whole number$',
        ),
        (
            'neck.in_channels',
            [8],
            r'assert len\(inputs\) == len\(self.in_channels\).*; expected a model that trains',
        ),
    ],
)
def test_a_student_that_does_not_run_names_what_looks_wrong(
    key: str, value: Any, told: str
) -> None:
    with pytest.raises(ValueError, match='^the student could not be tried on a .*' + told):
        build(changed(key, value, models.of_a_detector))


@needs_ops
@pytest.mark.parametrize(
    ('key', 'value', 'told'),
    [
        (
            'data_preprocessor.pad_size_divisor',
            None,
            r"; `teacher 'teacher'\.config\.data_preprocessor\.pad_size_divisor` is None, expected",
        ),
        (
            'neck.in_channels',
            [16],
            r'assert len\(inputs\) == len\(self.in_channels\); expected a model that runs by itself'
            ': test it without distillation first',
        ),
    ],
)
def test_a_teacher_that_does_not_run_names_what_looks_wrong(
    key: str, value: Any, told: str
) -> None:
    model = changed(key, value, models.of_a_detector, lambda model: model['teacher']['config'])
    told = "^teacher 'teacher' could not be tried on a made-up image: .*" + told
    with pytest.raises(ValueError, match=told):
        build(model)


@pytest.mark.usefixtures('counters')
def test_a_student_that_fails_in_its_first_step_names_what_looks_wrong() -> None:
    model = build(changed('decode_head.align_corners', 'x')).train()
    told = "cannot run, as its trial .*; `student.decode_head.align_corners` is 'x', expected True"
    with pytest.raises(ValueError, match=told):
        model(*batch(model), mode='loss')


class Needy(nn.Module):
    """Needs a library that is not there, and says so as some classes of mmdet do."""

    def __init__(self, error: type[Exception], width: int) -> None:
        super().__init__()
        raise error('lap is not installed, please install it by: pip install lap')


@pytest.mark.parametrize('error', [ImportError, RuntimeError])
def test_no_argument_is_to_blame_for_a_library_that_is_not_installed(error: type) -> None:
    told = rf'^student\.decode_head: Needy: {error.__name__}: lap is not .*: pip install lap$'
    with pytest.raises(ValueError, match=told):
        build(changed('decode_head', dict(type=Needy, error=error, width=3)))


@pytest.mark.parametrize('border', [0, [0, 0]])
def test_what_a_class_says_that_it_takes_is_not_to_blame(border: Any) -> None:
    head = dict(
        type='VPDDepthHead',
        in_channels=[8, 16, 32, 64],
        embed_dim=16,
        feature_dim=16,
        num_deconv_filters=(16, 16, 16),
        fmap_border=border,
    )
    told = r'^student\.decode_head: VPDDepthHead: .*num_groups \(16\); look at its arguments: '
    with pytest.raises(ValueError, match=told):
        build(changed('decode_head', head))


class Odd:
    """Has defaults that look wrong."""

    def __init__(self, size=None, scale=(None, 2)) -> None: ...


def test_a_default_is_not_to_blame() -> None:
    assert 'look at its arguments' in told_of_arguments(Odd, dict(size=None, scale=[None, 2]), 'x')
    assert '`scale` is [None, 3]' in told_of_arguments(Odd, dict(scale=[None, 3]), 'x')
