"""The hook draws while a student learns, and does not change what it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.runner import Runner

from mmkd_plugin.registry import HOOKS
from mmkd_plugin.visualization import DistillVisualizationHook, hook
from tests import stock_models
from tests.runs import (
    DET_CLASSES,
    SEG_CLASSES,
    Record,
    assert_same,
    config,
    needs_ops,
    train,
    validated,
)

ACCUMULATE = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9),
    accumulative_counts=2,  # there are gradients between two iterations
)


pytestmark = pytest.mark.usefixtures('own_globals')


def distilled(scope: str) -> dict:
    make = stock_models.pspnet if scope == 'mmseg' else stock_models.retinanet
    classes = len(SEG_CLASSES if scope == 'mmseg' else DET_CLASSES)
    student = make(8, classes)
    student['backbone']['frozen_stages'] = 1
    if scope == 'mmseg':
        student['decode_head']['dropout_ratio'] = 0.5
    return dict(
        _scope_=scope,
        type='mmkd_plugin.Distiller',
        student=student,
        teacher=dict(config=make(12, classes), checkpoint=None),
        distill=dict(
            cwd=dict(
                tap='decode_head.conv_seg' if scope == 'mmseg' else 'neck',
                loss=stock_models.cwd(tau=2, loss_weight=5),
            )
        ),
    )


def settings(scope: str, data: Path, work_dir: Path, length: int = 4, **changes: Any) -> Any:
    cfg = config(
        distilled(scope), data, work_dir, length, augment=True, optim_wrapper=ACCUMULATE, **changes
    )
    return validated(cfg, data)


@pytest.mark.parametrize('scope', ['mmseg', pytest.param('mmdet', marks=needs_ops)])
def test_the_student_learns_bit_for_bit_as_without(scope: str, data: Path, tmp_path: Path) -> None:
    def run(folder: str, **changes: Any) -> tuple[Runner, Record, torch.Tensor]:
        record = Record()
        runner = train(settings(scope, data, tmp_path / folder, 3, **changes), record)
        return runner, record, torch.get_rng_state(), np.random.get_state()[1]

    drawing = dict(type='mmkd_plugin.DistillVisualizationHook', interval=1, images=1)
    with_it, seen, *state = run('with', custom_hooks=[drawing])
    without, expected, *expected_state = run('without')
    assert_same(seen.inputs, expected.inputs)
    assert_same(seen.losses, expected.losses)
    assert torch.equal(state[0], expected_state[0]) and (state[1] == expected_state[1]).all()
    for one, other in (
        (with_it.model, without.model),
        (with_it.model.teachers['teacher'].model, without.model.teachers['teacher'].model),
    ):
        assert_same(dict(one.named_parameters()), dict(other.named_parameters()))
        assert_same(dict(one.named_buffers()), dict(other.named_buffers()))
        ours, theirs = ({n: m.training for n, m in x.named_modules()} for x in (one, other))
        assert ours == theirs
        ours, theirs = ({n: p.requires_grad for n, p in x.named_parameters()} for x in (one, other))
        assert ours == theirs
    assert_same(with_it.optim_wrapper.state_dict(), without.optim_wrapper.state_dict())

    folder = Path(with_it.log_dir, 'vis_data', 'vis_image')
    names = sorted(file.name for file in folder.iterdir())
    assert {name.rpartition('_')[2] for name in names} == {'1.png', '2.png', '3.png'}
    panels = {name.split('-')[1] for name in names}
    assert {'predictions', 'attention', 'channels', 'explanations'} <= panels
    for name in names:
        assert cv2.imread(str(folder / name)).std() > 5
    changed = [cv2.imread(str(folder / n)) for n in names if 'attention-backbone' in n]
    assert not np.array_equal(changed[0], changed[-1])  # the student of now


def test_every_n_iterations_and_only_what_is_asked_for(data: Path, tmp_path: Path) -> None:
    drawing = dict(
        type='mmkd_plugin.DistillVisualizationHook', interval=2, images=3, panels=['predictions']
    )
    cfg = settings('mmseg', data, tmp_path, custom_hooks=[drawing])
    cfg.visualizer = dict(
        type='Visualizer',
        vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')],
    )
    runner = train(cfg)
    folder = Path(runner.log_dir, 'vis_data')
    names = sorted(file.name for file in (folder / 'vis_image').iterdir())
    assert names == [
        f'distill-predictions-{n}-{name}_{step}.png'
        for n, name in enumerate(['0', '2', '5'])
        for step in (2, 4)
    ]
    (events,) = folder.glob('events.out.tfevents.*')
    assert b'distill-predictions-0-0' in events.read_bytes()


def test_other_processes_do_not_draw(data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(hook, 'is_main_process', lambda: False)
    drawing = dict(type='mmkd_plugin.DistillVisualizationHook', interval=1)
    runner = train(settings('mmseg', data, tmp_path, 1, custom_hooks=[drawing]))
    assert not Path(runner.log_dir, 'vis_data', 'vis_image').exists()


def test_what_it_cannot_draw(data: Path, tmp_path: Path) -> None:
    drawing = dict(type='mmkd_plugin.DistillVisualizationHook')
    cfg = settings('mmseg', data, tmp_path / 'a', custom_hooks=[drawing])
    alone = dict(cfg.model.student, _scope_='mmseg')
    with pytest.raises(ValueError, match=r'EncoderDecoder; it draws a mmkd_plugin.Distiller'):
        train(config(alone, data, tmp_path / 'b', 1, custom_hooks=[drawing]))
    with pytest.raises(ValueError, match='this config has no `val_dataloader`'):
        train(config(distilled('mmseg'), data, tmp_path / 'c', 1, custom_hooks=[drawing]))
    cfg.visualizer = dict(type='Visualizer', vis_backends=None)
    with pytest.raises(ValueError, match='no backend to write pictures'):
        train(cfg)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(interval=0), 'interval: expected a whole number above 0, got 0'),
        (dict(images=1.5), 'images: expected a whole number above 0, got 1.5'),
        (dict(panels=['predictoins']), "no panel 'predictoins'; did you mean 'predictions'"),
    ],
)
def test_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HOOKS.build(dict(type='mmkd_plugin.DistillVisualizationHook', **arguments))
    assert DistillVisualizationHook().interval == 500
