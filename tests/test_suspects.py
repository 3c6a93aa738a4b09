"""What a message says of the arguments of a class that failed: those that look wrong, or all."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmkd_plugin.run_config import check_run
from tests.fuzz import models
from tests.runs import config, needs_ops
from tests.stock_models import batch, build

HEAD = r'student\.decode_head: FCNHead: '


def changed(key: str, value: Any, make: Callable[[], dict] = models.of_a_segmentor) -> dict:
    """A Distiller whose student has another value in a place."""
    model = copy.deepcopy(make())
    *parents, last = key.split('.')
    holder = model['student']
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
        ('data_preprocessor.std', [1.0, 2.0], '.*`std` should have 1 or 3 values'),
        ('data_preprocessor.size', [[64, 64]] * 2, 'student.*size must be a height and a width'),
        (
            'data_preprocessor.size',
            None,
            'student.* needs one of `size` and `size_divisor`, .* none',
        ),
        ('decode_head', [['a']], r'student\.decode_head\[0\]: expected dict\(type=...\), got'),
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


def test_a_student_that_fails_in_its_first_step_names_what_looks_wrong() -> None:
    model = build(changed('decode_head.align_corners', 'x')).train()
    told = "cannot run, as its trial .*; `student.decode_head.align_corners` is 'x', expected True"
    with pytest.raises(ValueError, match=told):
        model(*batch(model), mode='loss')
