"""Configs of runs that are refused before anything is built."""

from __future__ import annotations

import copy
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from mmkd_plugin.cli import UsageError, read_config
from mmkd_plugin.old_keys import warn_of_old
from mmkd_plugin.run_config import check_run, warn_of_custom_keys, warn_of_unknown
from tests.runs import dataset_of
from tests.stock_models import cwd, mask_rcnn

MODEL = dict(
    type='mmkd_plugin.Distiller',
    student=dict(type='EncoderDecoder'),
    teacher=dict(config='teacher.py', checkpoint=None),
    distill=dict(cwd=dict(tap='neck', loss=cwd(tau=4))),
)


def run(work_dir, train_cfg=None, **model) -> Config:
    changed = {k: v for k, v in {**copy.deepcopy(MODEL), **model}.items() if v != 'left out'}
    return Config(dict(model=changed, train_cfg=train_cfg, work_dir=str(work_dir)))


def line(**changes) -> dict:
    return dict(distill=dict(cwd={**MODEL['distill']['cwd'], **changes}))


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (dict(type='left out'), r'model has no `type`'),
        (dict(student='left out'), r'model has no `student`: the model that trains'),
        (dict(teacher='left out'), r'model has no `teacher`: what it learns from'),
        (dict(distill='left out'), r'model has no `distill`: the terms'),
        (dict(techer=1), r'model has an unknown key `techer`; did you mean `teacher`\?'),
        (dict(architecture=1), r'model has an unknown key `architecture`; did you mean `student`'),
        (dict(teacher='t.py'), r"teacher: expected dict\(config='t.py', checkpoint=\.\.\.\)"),
        (dict(teacher=[None]), r'teacher\[0\]: expected dict\(config='),
        (dict(teacher=dict(config='t.py', ckpt='x')), r'key `ckpt`; did you mean `checkpoint`'),
        (
            dict(teacher=dict(config='t.py', checkpoint=None, strict=1)),
            r'teacher\.strict must be True or False',
        ),
        (dict(distill=[1]), r'distill is a dict of named terms, got a list: write distill=dict'),
        (dict(distill=[]), r'distill has no term'),
        (
            dict(backbone=dict(type='MiT'), pretrained=None),
            r'keys of another model beside its own \(backbone, pretrained\): .* Add _delete_=True',
        ),
        (
            dict(student=dict(type='A', backbone=dict()), backbone=dict(depth=34)),
            r'unknown key `backbone`; did you mean `model\.student\.backbone`\?',
        ),
        (
            dict(student=dict(type='mmkd_plugin.Distiller')),
            r'student is a Distiller: .* student={{_base_\.model\.student}}',
        ),
        (dict(student=dict(model=dict(type='A'))), r'write student={{_base_\.model}}'),
        (dict(distill={'class': 1}), r"distill\.class.*'class' "),
        (line(schedule=0), r'distill\.cwd\.schedule: expected dict'),
        (line(schedule=dict(start=0.5)), r'distill\.cwd\.schedule\.start must be a whole number'),
        (line(schedule=dict(stop='a')), r'distill\.cwd\.schedule\.stop must be a whole number or'),
        (line(schedule=dict(by_epoch='no')), r'distill\.cwd\.schedule\.by_epoch must be True'),
        (
            line(schedule=dict(start=100)),
            r'distill\.cwd never comes on: .* 100 iters; `start` must be below 100',
        ),
        (line(tap=['neck', 'neck']), r"distill\.cwd compares 'neck' of the student .* twice"),
        (line(student_tap='a', teacher_tap='b'), r'distill\.cwd has `tap` beside `student_tap`'),
        (line(norm=5), r'distill\.cwd\.norm must be the name of a batch norm'),
        (dict(task=dict(loss_weight=1e308)), r'task\.loss_weight must be at most 1e\+12'),
        (dict(task=dict(loss_weight=float('nan'))), r'task\.loss_weight'),
    ],
)
def test_mistakes_in_a_model(model, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        check_run(run(tmp_path / 'run', dict(max_iters=100), **model))


@pytest.mark.parametrize('distilled', [True, False])
def test_a_segmentor_that_cannot_be_validated(distilled, tmp_path):
    cfg = run(tmp_path)
    cfg.default_scope, cfg.val_dataloader = 'mmseg', dict(dataset=dict(type='CityscapesDataset'))
    cfg.model = cfg.model if distilled else cfg.model.student
    student = cfg.model.student if distilled else cfg.model
    place = r'model\.student' if distilled else 'model'
    with pytest.raises(ValueError, match=rf'^{place} has no `test_cfg`, which validation needs'):
        check_run(cfg)
    student.test_cfg = dict(mode='whole')
    check_run(cfg)
    student.test_cfg, cfg.val_dataloader = None, None
    check_run(cfg)


@pytest.mark.parametrize('key', ['max_iters', 'max_epochs'])
@pytest.mark.parametrize('value', [0, -1, 2.5, 'a', True])
def test_lengths_of_a_run(key, value, tmp_path):
    with pytest.raises(ValueError, match=rf'^train_cfg\.{key} must be a whole number from 1 on'):
        check_run(run(tmp_path, {key: value}))


@pytest.mark.parametrize(
    ('model', 'train_cfg'),
    [
        ({}, dict(max_iters=100)),
        ({}, None),
        (line(schedule=dict(start=99, ramp=50)), dict(max_iters=100)),
        (line(schedule=dict(start=3, by_epoch=True)), dict(by_epoch=True, max_epochs=4)),
    ],
)
def test_correct_configs_pass(model, train_cfg, tmp_path):
    check_run(run(tmp_path / 'new' / 'run', train_cfg, **model))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(report='no'), r'^report must be True or False, got '),
        (dict(randomness=dict(seed='a')), r"^randomness\.seed must be a whole number.*'a'"),
        (dict(randomness=dict(seed=1.5)), r'^randomness\.seed must be a whole number'),
        (
            dict(custom_hooks=[dict(type='A'), dict(type='EMAHook', interval=0)]),
            r'^custom_hooks\[1\]\.interval must be a whole number of 1 or more, got 0',
        ),
        (dict(compile='yes'), r"^compile must be .*, got 'yes'"),
        (
            dict(runner_type='FlexibleRunner'),
            r"^runner_type='FlexibleRunner': only a `Runner` of .*=mmkd_plugin\.ShardedRunner$",
        ),
        (dict(runner_type='Runer'), r"^runner_type='Runer': "),
        (dict(strategy=dict(type='FSDPStrategy')), r'^strategy: FSDP, .* need a runner of another'),
        (
            dict(model_wrapper_cfg=dict(type='MMFullyShardedDataParallel')),
            r"^model_wrapper_cfg\.type='MMFullyShardedDataParallel': a student cannot be saved",
        ),
        (
            dict(
                train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=2),
                train_dataloader=dict(dataset={}, sampler=dict(type='InfiniteSampler')),
            ),
            r'^train_dataloader\.sampler: InfiniteSampler never ends, .*EpochBasedTrainLoop would '
            r"not.*sampler=dict\(type='DefaultSampler'.*'IterBasedTrainLoop', max_iters=",
        ),
        (
            dict(
                train_cfg=dict(by_epoch=True, max_epochs=2),
                train_dataloader=dict(
                    dataset={}, sampler=dict(type='mmdet.MultiSourceSampler', shuffle=True)
                ),
            ),
            r'^train_dataloader\.sampler: MultiSourceSampler never ends',
        ),
        (dict(default_scope='mmsegg'), r"^default_scope='mmsegg': no library .*mean `mmseg`\?"),
    ],
)
def test_mistakes_beside_the_model(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        check_run(Config({**run(tmp_path).to_dict(), **changes}))


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            "_base_ = ['a.py', 'b.py']",
            r'several files of its `_base_` have the keys lr, model; keep one of these files there',
        ),
        (
            "_base_ = ['a.py']\nmodel = dict(student={{_base_}})",
            r"unhashable type: .*; if it has '{{_base_}}', write {{_base_\.model}}",
        ),
    ],
)
def test_bases_that_cannot_be_read(text, message, tmp_path):
    for name in 'ab':
        (tmp_path / f'{name}.py').write_text("lr = 1\nmodel = dict(type='A')\n")
    (tmp_path / 'run.py').write_text(text)
    with pytest.raises(UsageError, match=message):
        read_config(str(tmp_path / 'run.py'))


@pytest.mark.parametrize(
    ('train_cfg', 'sampler'),
    [
        (dict(type='EpochBasedTrainLoop', max_epochs=2), 'DefaultSampler'),
        (dict(type='EpochBasedTrainLoop', max_epochs=2), 'mmdet.ClassAwareSampler'),
        (dict(type='IterBasedTrainLoop', max_iters=2), 'InfiniteSampler'),
        (dict(by_epoch=False, max_iters=2), 'InfiniteSampler'),
    ],
)
def test_samplers_that_end_where_they_have_to(train_cfg, sampler, tmp_path):
    loader = dict(dataset={}, sampler=dict(type=sampler))
    check_run(Config({**run(tmp_path, train_cfg).to_dict(), 'train_dataloader': loader}))


def with_heads(distilled: bool = True, **heads: Any) -> dict:
    """A run of a Mask R-CNN on a data set of two classes, some of whose heads are changed."""
    student = mask_rcnn(classes=2)
    for key, changes in heads.items():
        several = isinstance(changes, list)
        made = [{**student['roi_head'][key], **one} for one in (changes if several else [changes])]
        student['roi_head'][key] = made if several else made[0]
    model = dict(copy.deepcopy(MODEL), student=student) if distilled else student
    return dict(model=model, train_dataloader=dict(dataset=dataset_of('mmdet')))


@pytest.mark.parametrize('distilled', [True, False])
@pytest.mark.parametrize(
    ('heads', 'named'),
    [
        (dict(bbox_head=dict(num_classes=80)), 'bbox_head.num_classes=80, and the data set names'),
        (dict(mask_head=dict(num_classes=80)), 'mask_head.num_classes=80, and the data set names'),
        (dict(bbox_head=[{}, dict(num_classes=3)]), 'bbox_head[1].num_classes=3, and the data set'),
        (dict(mask_head=dict(num_classes=1)), 'mask_head.num_classes=1, and the data set names'),
        (dict(bbox_head=dict(num_classes=1)), 'bbox_head.num_classes=1, and the data set names'),
    ],
)
def test_a_head_of_rois_with_other_classes_than_the_data_set(heads, named, distilled, tmp_path):
    with pytest.raises(ValueError, match=rf'^roi_head\.{re.escape(named)}.*write num_classes=2$'):
        check_run(Config({**run(tmp_path).to_dict(), **with_heads(distilled, **heads)}))


def test_heads_of_rois_with_fewer_classes_than_names_have_as_many_as_each_other(tmp_path):
    changes = with_heads(mask_head=dict(num_classes=1))
    classes = changes['train_dataloader']['dataset']['metainfo']['classes']
    changes['train_dataloader']['dataset']['metainfo']['classes'] = (*classes, 'sky')
    text = 'mask_head.num_classes=1, and roi_head.bbox_head.num_classes=2; write num_classes=2'
    with pytest.raises(ValueError, match=rf'^roi_head\.{re.escape(text)}$'):
        check_run(Config({**run(tmp_path).to_dict(), **changes}))


@pytest.mark.parametrize(
    ('heads', 'dataset'),
    [
        ({}, {}),
        ({}, dict(metainfo=dict(classes=('box', 'disc', 'sky')))),
        (dict(mask_head=dict(num_classes=80, class_agnostic=True)), {}),
        (dict(bbox_head=[{}, {}], mask_head=[{}, {}]), {}),
        (dict(mask_head=dict(num_classes=80)), dict(metainfo=dict(classes='names.txt'))),
        (dict(mask_head=dict(num_classes=80)), dict(type='MyOwn', metainfo=dict())),
    ],
)
def test_heads_of_rois_that_may_be_right(heads, dataset, tmp_path):
    changes = with_heads(**heads)
    changes['train_dataloader']['dataset'].update(dataset)
    check_run(Config({**run(tmp_path).to_dict(), **changes}))


NAMES = ['backbone.layer1.0.conv1.weight', 'decode_head.conv_seg.weight', 'neck.0.bias']


@pytest.mark.parametrize(
    ('key', 'said'),
    [
        ('backbone', None),
        ('conv', None),
        ('student.backbone', '`student.backbone` in its name, so .*; did you mean `backbone`'),
        ('module.backbone.layer1', 'did you mean `backbone.layer1`'),
        ('bakbone', 'did you mean `backbone`'),
        ('decode_heads', 'did you mean `decode_head`'),
        ('backbone.layer7', 'did you mean `backbone.layer1`'),
        ('backbone.layer1.5.conv1', 'no parameter has `backbone.layer1.5.conv1` in its name, so'),
        ('absolute_pos_embed', 'no parameter has `absolute_pos_embed` in its name, so'),
    ],
)
def test_keys_of_parameters_that_are_not_there(key, said, log):
    optim = dict(paramwise_cfg=dict(custom_keys={key: dict(lr_mult=0.1), 'head': dict()}))
    warn_of_custom_keys(optim, NAMES)
    assert len(log.messages) == (said is not None)
    assert said is None or re.search(said, log.messages[0])
    assert log.warnings == [text for text in log.messages if 'did you mean' in text]
    log.records.clear()
    optim['constructor'] = 'LayerDecayOptimizerConstructor'  # goes by keys of its own
    warn_of_custom_keys(optim, NAMES)
    assert not log.messages


@pytest.mark.parametrize(
    ('key', 'meant'),
    [
        ('trian_cfg', 'train_cfg'),
        ('val_evalutor', 'val_evaluator'),
        ('custom_hook', 'custom_hooks'),
        ('norm_cfg', None),
        ('crop_size', None),
        ('checkpoint_file', None),
        ('train_pipeline', None),
        ('val_dataset', None),
    ],
)
def test_misspelt_keys_at_the_top(key, meant, log):
    warn_of_unknown(Config({key: dict(max_iters=1)}))
    said = [f'The config has a key `{key}` that nothing reads; did you mean `{meant}`?']
    assert log.warnings == (said if meant else [])


def stock_configs() -> list[str]:
    """One config of each folder of both libraries, and what is unusual in others."""
    found = [
        'mmdet::v3det/dino-4scale_r50_8xb2_sample1e-3_v3det_36e.py',  # intervals of max_iters / 5
        'mmseg::knet/knet-s3_swin-l_upernet_8xb2-adamw-80k_ade20k-640x640.py',  # an unused variable
    ]
    for library in ('mmdet', 'mmseg'):
        root = Path(find_spec(library).origin).parent / '.mim/configs'
        folders = [path for path in sorted(root.iterdir()) if path.name not in ('_base_', 'common')]
        for files in (sorted(folder.glob('*.py')) for folder in folders):
            found += [f'{library}::{files[-1].relative_to(root)}'] if files else []
    return found


def test_stock_configs_pass(tmp_path, monkeypatch):
    said = []
    for place in ('run_config', 'old_keys'):
        monkeypatch.setattr(f'mmkd_plugin.{place}.print_log', lambda text, **_: said.append(text))
    checked = 0
    for name in stock_configs():
        try:
            cfg = read_config(name)
        except UsageError:
            continue  # it needs a package that is not there, or a file that no wheel has
        if {'model', 'train_dataloader', 'optim_wrapper'} <= cfg.keys() and cfg.optim_wrapper:
            cfg.model = dict(copy.deepcopy(MODEL), student=cfg.model)
            cfg.work_dir = str(tmp_path)
            check_run(cfg)
            warn_of_unknown(cfg)
            warn_of_old(cfg)
            assert not said, name
            checked += 1
    assert checked > 100


def test_a_scope_that_a_config_registers_itself_passes(tmp_path):
    own = dict(default_scope='my_own', custom_imports=dict(imports=['os']))
    check_run(Config({**run(tmp_path).to_dict(), **own}))
