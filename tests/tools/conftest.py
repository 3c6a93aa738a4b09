"""Tiny data sets, configs that train on them in seconds, and one finished distillation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tools.tool_runs import load_tool, run_tool, save_random_weights, start_tool

SEGMENTOR = """
_base_ = ['mmseg::_base_/default_runtime.py']

data_root = {root!r}
norm = dict(type='SyncBN', requires_grad=True)
head = dict(type='FCNHead', channels=8, num_convs=1, num_classes=3, norm_cfg=norm,
            loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True))
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[120.] * 3, std=[60.] * 3,
                           bgr_to_rgb=True, pad_val=0, seg_pad_val=255, size=(64, 64)),
    backbone=dict(type='ResNetV1c', depth={depth}, base_channels=8, stem_channels=8, norm_cfg=norm,
                  strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True),
    decode_head=dict(in_channels=64, **head),
    auxiliary_head=dict(in_channels=32, in_index=2, **head),
    train_cfg=None,
    test_cfg=dict(mode='whole'))
dataset = dict(type='BaseSegDataset', data_root=data_root, img_suffix='.png',
               data_prefix=dict(img_path='images', seg_map_path='masks'),
               metainfo=dict(classes=['ground', 'box', 'disc'],
                             palette=[[0, 0, 0], [0, 255, 0], [0, 0, 255]]))
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
                 dict(type='PackSegInputs')]
train_pipeline = [*test_pipeline[:2], dict(type='RandomFlip', prob=0.5), test_pipeline[2]]
train_dataloader = dict(batch_size=2, num_workers=0,
                        dataset=dict(pipeline=train_pipeline, **dataset),
                        sampler=dict(type='InfiniteSampler', shuffle=True))
val_dataloader = dict(batch_size=1, num_workers=0, dataset=dict(pipeline=test_pipeline, **dataset),
                      sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
train_cfg = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=4)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9))
param_scheduler = [dict(type='PolyLR', power=0.9, begin=0, end=6, by_epoch=False)]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2, save_best='mIoU'),
    visualization=dict(type='SegVisualizationHook'))
tta_pipeline = [dict(type='LoadImageFromFile'),
                dict(type='TestTimeAug', transforms=[
                    [dict(type='RandomFlip', prob=0.), dict(type='RandomFlip', prob=1.)],
                    [dict(type='LoadAnnotations')], [dict(type='PackSegInputs')]])]
tta_model = dict(type='SegTTAModel')
"""

DISTILLED = """
_base_ = ['student.py']

model = dict(
    _delete_=True,
    type='mmkd_plugin.Distiller',
    student={{{{_base_.model}}}},
    teacher=dict(config={teacher!r}, checkpoint={checkpoint!r}),
    distill=dict(
        cwd=dict(tap={tap!r}, loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=1, loss_weight=1))))
custom_hooks = [dict(type='EMAHook', momentum=0.1)]
"""

DETECTOR = """
_base_ = ['mmdet::_base_/default_runtime.py']

data_root = {root!r}
model = dict(
    type='RetinaNet',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[120.] * 3, std=[60.] * 3,
                           bgr_to_rgb=True, pad_size_divisor=32),
    backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8,
                  norm_cfg=dict(type='BN')),
    neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, start_level=1,
              add_extra_convs='on_input', num_outs=5),
    bbox_head=dict(
        type='RetinaHead', num_classes=2, in_channels=16, stacked_convs=1, feat_channels=16,
        anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=3,
                              ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64, 128]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0)),
    train_cfg=dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0,
                      ignore_iof_thr=-1),
        sampler=dict(type='PseudoSampler'), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.0, max_per_img=5,
                  nms=dict(type='nms', iou_threshold=0.5)))
dataset = dict(type='CocoDataset', data_root=data_root, ann_file='boxes.json',
               data_prefix=dict(img='images/'), metainfo=dict(classes=('box', 'disc')))
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', scale=(64, 64), keep_ratio=True)]
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(pipeline=[*load, dict(type='PackDetInputs')], **dataset))
test_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(test_mode=True, **dataset, pipeline=[*load, dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]))
test_evaluator = dict(type='CocoMetric', ann_file=data_root + '/boxes.json', metric='bbox')
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
"""


@pytest.fixture
def call_tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Runs a tool as a user does, but in this process; returns what it printed."""

    def call(name: str, *args: object) -> str:
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, args)])
        monkeypatch.setenv('LOCAL_RANK', '0')
        load_tool(name).main()
        return capsys.readouterr().out

    return call


@pytest.fixture
def fails(call_tool: Callable[..., str]) -> Callable[..., str]:
    """Runs a tool with arguments that are wrong; returns the one line with which it ends."""

    def call(name: str, *args: object) -> str:
        with pytest.raises(SystemExit) as caught:
            call_tool(name, *args)
        message = str(caught.value)
        assert message.startswith(f'{Path(name).name}.py: error: ')
        return message

    return call


@pytest.fixture(scope='session')
def segmentation(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``student.py``, ``teacher.py`` and ``distilled.py`` of a segmentor."""
    folder = tmp_path_factory.mktemp('segmentation')
    (folder / 'student.py').write_text(SEGMENTOR.format(root=str(data), depth=18))
    (folder / 'teacher.py').write_text(SEGMENTOR.format(root=str(data), depth=34))
    weights = folder / 'teacher.pth'
    save_random_weights(folder / 'teacher.py', weights)
    (folder / 'distilled.py').write_text(
        DISTILLED.format(
            teacher=str(folder / 'teacher.py'), checkpoint=str(weights), tap='decode_head.conv_seg'
        )
    )
    return folder


@pytest.fixture(scope='session')
def detection(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``student.py`` and ``distilled.py`` of a detector."""
    folder = tmp_path_factory.mktemp('detection')
    (folder / 'student.py').write_text(DETECTOR.format(root=str(data)))
    weights = folder / 'teacher.pth'
    save_random_weights(folder / 'student.py', weights)
    (folder / 'distilled.py').write_text(
        DISTILLED.format(teacher=str(folder / 'student.py'), checkpoint=str(weights), tap='neck')
    )
    return folder


@pytest.fixture(scope='session')
def trained(segmentation: Path) -> Path:
    """The work dir of a segmentor distilled for four iterations, with averaged weights."""
    work_dir = segmentation / 'run'
    log = start_tool('train', 'distilled.py', '--work-dir', work_dir, cwd=segmentation)
    (work_dir / 'log.txt').write_text(log)
    return work_dir


@pytest.fixture(scope='session')
def trained_detector(detection: Path) -> Path:
    """The work dir of a detector distilled for one epoch."""
    log = run_tool('train', 'distilled.py', cwd=detection)
    work_dir = detection / 'work_dirs' / 'distilled'
    (work_dir / 'log.txt').write_text(log)
    return work_dir


@pytest.fixture(scope='session')
def factors(segmentation: Path) -> Path:
    """A config of factor transfer, whose paraphraser is not trained yet."""
    text = (segmentation / 'distilled.py').read_text()
    start = text.index('    distill=dict(')
    config = segmentation / 'factors.py'
    config.write_text(
        text[:start]
        + """    distill=dict(
        ft=dict(
            tap='decode_head.convs',
            connector=dict(type='mmkd_plugin.Translator'),
            teacher_connector=dict(type='mmkd_plugin.Paraphraser'),
            loss=dict(type='mmkd_plugin.FactorTransferLoss', loss_weight=500))))
paraphraser = dict(train_cfg=dict(max_iters=3))
"""
    )
    return config
