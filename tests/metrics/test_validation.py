"""Metrics while a Distiller trains: the hook gives them its student, and training goes on."""

from __future__ import annotations

from mmengine.runner import Runner

from tests import stock_models
from tests.metrics.runs import config_of, segmentor, weighted
from tests.runs import config

SCALARS = ('agreement/pixel', 'localization/epg', 'explanation/cosine')


def test_while_training(data, tmp_path):
    teacher = weighted(segmentor(), tmp_path)
    explained = dict(
        explainer=dict(type='mmkd_plugin.GradientAttention', scores='decode_head.conv_seg'),
        tap='backbone.layer4',
    )
    metrics = [
        dict(type='mmkd_plugin.TeacherAgreement', teacher=teacher),
        dict(type='mmkd_plugin.ExplanationLocalization', **explained),
        dict(type='mmkd_plugin.ExplanationSimilarity', teacher=teacher, **explained),
    ]
    tested = config_of(teacher, data, tmp_path, *metrics, indices=2)
    model = dict(
        _scope_='mmseg',
        type='mmkd_plugin.Distiller',
        student=segmentor(),
        teacher=teacher,
        distill=dict(cwd=dict(tap='decode_head.conv_seg', loss=stock_models.cwd())),
    )
    cfg = config(model, data, tmp_path, 2)
    cfg.train_cfg.val_interval = 1
    cfg.val_dataloader, cfg.val_cfg = tested.test_dataloader, dict(type='ValLoop')
    cfg.val_evaluator, cfg.custom_hooks = tested.test_evaluator, tested.custom_hooks
    runner = Runner.from_cfg(cfg)
    runner.train()
    student = runner.model.student
    assert runner.val_evaluator.metrics[1].model is student
    assert all(parameter.requires_grad for parameter in student.parameters())
    scalars = runner.message_hub.log_scalars
    assert all(len(scalars[f'val/{name}'].data[0]) == 2 for name in SCALARS)
