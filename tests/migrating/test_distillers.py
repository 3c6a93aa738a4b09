"""Configs in the layout of mmdetection-distiller, FGD and MGD."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from mmkd_plugin.cli import UsageError
from mmkd_plugin.migrating import NotPossible, read_file
from tests.migrating.made import TOOL, model_file, step
from tests.runs import needs_ops
from tests.stock_models import fcn, pspnet, retinanet

FGD = 'temp=0.8, alpha_fgd=0.0016, beta_fgd=0.0008, gamma_fgd=0.0004, lambda_fgd=8e-6'
LEVELS = """
_base_ = ['../../_base_/datasets/coco_detection.py']
share = {share}
distiller = dict(
    type='DetectionDistiller', teacher_pretrained='teacher.pth', init_student={init},
    distill_cfg=[dict(
        student_module='neck.fpn_convs.%d.conv' % i, teacher_module='neck.fpn_convs.%d.conv' % i,
        output_hook=True, methods=[dict(
            type='{kind}', name='loss_%d' % i, student_channels=8, teacher_channels=8,
            {arguments})]) for i in (1, 0)])
student_cfg = 'configs/retinanet/retinanet_r50_fpn_2x_coco.py'
teacher_cfg = 'configs/retinanet/retinanet_x101_64x4d_fpn_1x_coco.py'
{rest}
"""
SEGMENTOR = """
_base_ = ['../../pspnet/pspnet_r18-d8_512x512_40k_cityscapes.py']
distiller = dict(
    type='SegmentationDistiller', teacher_pretrained='teacher.pth', use_logit={logits},
    distill_cfg=[dict(methods=[dict(
        type='FeatureLoss', name='loss_mgd_fea', student_channels=64, teacher_channels=64,
        alpha_mgd=2e-5, lambda_mgd=0.75)])])
student_cfg = 'configs/pspnet/pspnet_r18-d8_512x1024_80k_cityscapes.py'
teacher_cfg = 'configs/pspnet/pspnet_r101-d8_512x1024_40k_cityscapes.py'
"""


def levels(folder: Path, kind: str, arguments: str, init: bool = False, rest: str = '') -> Path:
    file = folder / 'theirs.py'
    file.write_text(
        LEVELS.format(kind=kind, arguments=arguments, init=init, rest=rest, share='1 / 2')
    )
    return file


@needs_ops
@pytest.mark.usefixtures('counters')
@pytest.mark.parametrize(
    ('kind', 'arguments', 'expected'),
    [
        (
            'ChannelWiseDivergence',
            'tau=2.0, weight=5.0',
            dict(type='mmkd_plugin.ChannelWiseLoss', tau=2.0, loss_weight=5.0),
        ),
        (
            'FeatureLoss',
            FGD,
            dict(
                type='mmkd_plugin.FocalGlobalLoss',
                temperature=0.8,
                alpha=0.0016,
                beta=0.0008,
                gamma=0.0004,
                lam=8e-6,
                loss_weight=1.0,
            ),
        ),
        (
            'FeatureLoss',
            'alpha_mgd=0.00002, lambda_mgd=0.45',
            dict(type='mmkd_plugin.MaskedGenerationLoss', mask_ratio=0.45, loss_weight=2e-5),
        ),
    ],
    ids=['mmdetection-distiller', 'FGD', 'MGD'],
)
def test_a_detector(kind: str, arguments: str, expected: dict, tmp_path: Path) -> None:
    theirs = levels(tmp_path, kind, arguments, init=True)
    models = [model_file(tmp_path, name, retinanet()) for name in ('student', 'teacher')]
    text = TOOL.converted(str(theirs), *models)
    assert "tap=[f'neck.fpn_convs.{i}.conv' for i in range(2)]" in text
    lines = text.replace(str(tmp_path), '').splitlines()[6:]
    assert max(map(len, lines)) <= 100
    step(text, tmp_path)
    cfg = Config.fromfile(tmp_path / 'ours.py')
    ((term,),) = [[*cfg.model.distill.values()]]
    assert term.loss == expected
    assert set(cfg.model.init_student_from_teacher) == {'neck', 'bbox_head'}
    assert ('cross entropy' in text) == (kind == 'ChannelWiseDivergence')


@pytest.mark.usefixtures('counters')
def test_a_segmentor(tmp_path: Path) -> None:
    (tmp_path / 'theirs.py').write_text(SEGMENTOR.format(logits=True))
    models = [model_file(tmp_path, *one) for one in (('student', fcn()), ('teacher', pspnet()))]
    text = TOOL.converted(str(tmp_path / 'theirs.py'), models[0], models[0])
    logs = step(text, tmp_path)
    assert {'distill.mgd.loss', 'distill.logits.loss'} <= logs.keys()
    (tmp_path / 'theirs.py').write_text(SEGMENTOR.format(logits=False))
    found, _ = read_file(tmp_path / 'theirs.py', *models)
    assert list(found.terms) == ['mgd'] and found.terms['mgd'].student == ['backbone[-1]']


@needs_ops
def test_names_weights_and_settings_of_today(tmp_path: Path) -> None:
    rest = """
optimizer = dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001)
optimizer_config = dict(_delete_=True, grad_clip=dict(max_norm=35, norm_type=2))
data = dict(samples_per_gpu=4, workers_per_gpu=2)
lr_config = dict(step=[8, 11])
runner = dict(type='EpochBasedRunner', max_epochs=12)
fp16 = dict(loss_scale=512.)
"""
    text = TOOL.converted(str(levels(tmp_path, 'FeatureLoss', FGD, rest=rest)))
    (tmp_path / 'ours.py').write_text(text)
    cfg = Config.fromfile(tmp_path / 'ours.py')
    assert "_base_ = ['mmdet::retinanet/retinanet_r50_fpn_2x_coco.py']" in text
    assert cfg.model.teacher.config == 'mmdet::retinanet/retinanet_x101-64x4d_fpn_1x_coco.py'
    assert '# - fp16 is a setting of mmcv 1.x' in text and 'init_student' not in text
    assert cfg.optim_wrapper.optimizer.lr == 0.02 and cfg.optim_wrapper.clip_grad.max_norm == 35
    assert (cfg.train_dataloader.batch_size, cfg.train_cfg.max_epochs) == (4, 12)
    assert (cfg.param_scheduler[1].milestones, cfg.param_scheduler[1].end) == ([8, 11], 12)


@needs_ops
@pytest.mark.parametrize(
    ('changes', 'error', 'told'),
    [
        ({'DetectionDistiller': 'Other'}, UsageError, "distiller.type='Other': expected Detection"),
        ({'FeatureLoss': 'NewLoss', 'alpha_': 'a_'}, NotPossible, 'the loss NewLoss has no count'),
        ({"student_module='neck": "other_module='neck"}, NotPossible, 'a place has no student_mod'),
        ({'(1, 0)': '()'}, NotPossible, 'distill_cfg has no methods'),
        (
            {'retinanet_r50_fpn_2x': 'retinanet_r5_fpn_2x'},
            UsageError,
            'name one with --student; in .* there is retinanet_r50_fpn_2x_coco.py',
        ),
        ({'1 / 2': '_base_.share'}, UsageError, 'cannot be read by itself'),
    ],
)
def test_what_cannot_be_done_is_one_line(
    changes: dict, error: type, told: str, tmp_path: Path
) -> None:
    file = levels(tmp_path, 'FeatureLoss', FGD)
    text = file.read_text()
    for old, new in changes.items():
        text = text.replace(old, new)
    file.write_text(text)
    with pytest.raises(error, match=told) as found:
        read_file(file)
    assert '\n' not in str(found.value)
