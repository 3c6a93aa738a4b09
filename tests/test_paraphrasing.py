"""The stage before factor transfer, and the training of the student after it."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmkd_plugin.checkpoint import distillation_state
from mmkd_plugin.paraphrasing import stage_config
from tests import runs, stock_models
from tests.stock_models import batch, build, distiller

FACTORS = dict(
    tap='decode_head.bottleneck',
    connector=dict(type='mmkd_plugin.Translator'),
    teacher_connector=dict(type='mmkd_plugin.Paraphraser', checkpoint=None),
    loss=dict(type='mmkd_plugin.FactorTransferLoss', loss_weight=500),
)
LEVELS = dict(FACTORS, tap='neck')


def stage(terms, **kwargs):
    return distiller(stock_models.pspnet(), stock_models.pspnet(16), terms, **kwargs)


training = partial(distiller, type='mmkd_plugin.ParaphraserTraining')


def test_it_learns_to_reconstruct_the_teacher():
    model = training(
        stock_models.pspnet(),
        stock_models.pspnet(16),
        dict(ft=FACTORS, cwd=dict(tap='decode_head.conv_seg', loss=stock_models.cwd())),
    )
    assert list(model.paraphrasers) == ['ft']
    assert {name.split('.')[0] for name, _ in model.named_parameters()} == {'paraphrasers'}
    inputs, _ = batch(training_student())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(inputs, None, mode='loss')['ft.loss']
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    frozen = model.teachers['teacher'].model
    assert all(parameter.grad is None for parameter in frozen.parameters())


def training_student():
    return build(stock_models.pspnet())


def test_a_paraphraser_for_every_level():
    model = training(stock_models.retinanet(), stock_models.retinanet(16), dict(ft=LEVELS))
    assert len(model.paraphrasers.ft) == 5
    inputs, samples = batch(build(stock_models.retinanet()))
    model(inputs, samples, mode='loss')['ft.loss'].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_students_run_takes_it_over(tmp_path):
    model = training(stock_models.retinanet(), stock_models.retinanet(16), dict(ft=LEVELS), seed=3)
    path = tmp_path / 'paraphraser.pth'
    torch.save(dict(state_dict=model.paraphrasers.state_dict()), path)
    trained = dict(LEVELS['teacher_connector'], checkpoint=str(path))
    distilled = distiller(
        stock_models.retinanet(),
        stock_models.retinanet(16),
        dict(ft=dict(LEVELS, teacher_connector=trained)),
    ).train()
    term = distilled.distill.ft
    for ours, theirs in zip(term.teacher_connectors, model.paraphrasers.ft, strict=True):
        weights = theirs.encoder.state_dict()
        for key, value in ours.encoder.state_dict().items():
            assert torch.equal(value, weights[key])
    losses = distilled(*batch(distilled), mode='loss')
    losses['distill.ft.loss'].backward()
    assert all(p.grad is not None for p in term.connectors.parameters())
    for module in term.teacher_connectors:
        assert all(not p.requires_grad and p.grad is None for p in module.parameters())
    renamed = distiller(
        stock_models.retinanet(),
        stock_models.retinanet(16),
        dict(fa=dict(LEVELS, teacher_connector=trained)),
    )
    first = renamed.distill.fa.teacher_connectors[0].encoder.state_dict()
    assert all(
        torch.equal(v, first[k]) for k, v in term.teacher_connectors[0].encoder.state_dict().items()
    )


def test_it_is_no_part_of_the_student():
    model = stage(dict(ft=FACTORS))
    names = [name for name, _ in model.named_parameters()]
    assert not any('teacher' in name for name in names)
    assert sum('connectors' in name for name in names) == 6  # the translator
    state = distillation_state(model.state_dict())['state']
    assert not any('teacher' in key for key in state)
    twin = copy.deepcopy(model)
    assert twin.distill.ft.teacher_connectors is model.distill.ft.teacher_connectors
    model.double()
    assert next(model.distill.ft.teacher_connectors[0].parameters()).dtype == torch.float64
    assert 'Paraphraser (teacher)' in model.distill.ft.describe_connectors()


def test_the_decoder_is_dropped():
    assert stage(dict(ft=FACTORS)).distill.ft.teacher_connectors[0].decoder is None


def test_without_a_trained_paraphraser():
    untrained = dict(FACTORS, teacher_connector=dict(type='mmkd_plugin.Paraphraser'))
    with pytest.raises(
        ValueError, match=r'no `checkpoint`: .* tools/train.py CONFIG --paraphraser'
    ):
        stage(dict(ft=untrained))
    gone = dict(type='mmkd_plugin.Paraphraser', checkpoint='work_dirs/x/paraphraser.pth')
    with pytest.raises(FileNotFoundError, match=r'paraphraser\.pth.* Train it with tools/train'):
        stage(dict(ft=dict(FACTORS, teacher_connector=gone)))


@pytest.mark.parametrize('other', [dict(ratio=0.25), dict(tap='decode_head.conv_seg')])
def test_one_that_was_trained_for_something_else(other, tmp_path):
    model = training(stock_models.pspnet(), stock_models.pspnet(16), dict(ft=FACTORS))
    torch.save(dict(state_dict=model.paraphrasers.state_dict()), tmp_path / 'p.pth')
    connector = dict(type='mmkd_plugin.Paraphraser', checkpoint=str(tmp_path / 'p.pth'))
    connector |= {k: v for k, v in other.items() if k == 'ratio'}
    term = dict(FACTORS, teacher_connector=connector) | {
        k: v for k, v in other.items() if k == 'tap'
    }
    with pytest.raises(ValueError, match='trained for another teacher, tap or ratio') as error:
        stage(dict(ft=term))
    assert 'in the file and' in str(error.value)


def test_something_that_cannot_be_trained():
    conv = dict(type='mmkd_plugin.ConvConnector', out_channels=8)
    with pytest.raises(ValueError, match='ConvConnector has no `reconstruction_loss`'):
        training(
            stock_models.pspnet(),
            stock_models.pspnet(16),
            dict(ft=dict(FACTORS, teacher_connector=conv)),
        )
    with pytest.raises(ValueError, match='no term of `distill` has a `teacher_connector`'):
        training(
            stock_models.pspnet(),
            stock_models.pspnet(16),
            dict(cwd=dict(tap='decode_head.conv_seg', loss=stock_models.cwd())),
        )
    model = training(stock_models.pspnet(), stock_models.pspnet(16), dict(ft=FACTORS))
    with pytest.raises(ValueError, match="it has no mode='predict'"):
        model(torch.zeros(1, 3, 64, 64), mode='predict')


def test_the_stage_has_settings_of_its_own():
    cfg = Config(
        dict(
            model=dict(type='mmkd_plugin.Distiller', task=dict(weight=0.5), compile=True),
            work_dir='a',
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=80, val_interval=8),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
            val_cfg=dict(type='ValLoop'),
            val_dataloader=dict(),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', save_best='mIoU')),
            load_from='student.pth',
            paraphraser=dict(
                train_cfg=dict(max_iters=10), optim_wrapper=dict(optimizer=dict(lr=1))
            ),
        )
    )
    stage_config(cfg, 'a/paraphraser')
    assert cfg.model == dict(type='mmkd_plugin.ParaphraserTraining')
    assert cfg.train_cfg == dict(type='IterBasedTrainLoop', max_iters=10, val_interval=8)
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=1)
    assert cfg.val_cfg is cfg.val_dataloader is cfg.load_from is None
    assert 'save_best' not in cfg.default_hooks.checkpoint
    assert cfg.work_dir == 'a/paraphraser' and 'paraphraser' not in cfg


def test_a_run_of_the_stage(data: Path, tmp_path: Path):
    model = dict(
        _scope_='mmseg',
        type='mmkd_plugin.ParaphraserTraining',
        student=stock_models.pspnet(classes=3),
        teacher=dict(config=stock_models.pspnet(16, classes=3), checkpoint=None),
        distill=dict(ft=FACTORS),
    )
    record = runs.Record()
    runs.train(runs.config(model, data, tmp_path, 3), record)
    assert [set(losses) for losses in record.losses] == [{'loss', 'ft.loss'}] * 3
    saved = torch.load(tmp_path / 'iter_3.pth', weights_only=False)['state_dict']
    assert {key.split('.')[0] for key in saved} == {'paraphrasers'}
