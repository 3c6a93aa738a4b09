"""Mistakes in the config of a segmentation run: what is changed, and what the refusal says."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from tests.attacks.runs import DELETED, Renamed

NAN, INF = math.nan, math.inf


class Attack(NamedTuple):
    """A change of a config.

    Args:
        changes (dict[str, Any]): Values by dotted paths.
        words (tuple[str, ...] | None): What the line says; None if the config stays valid.
    """

    changes: dict[str, Any]
    words: tuple[str, ...] | None


CWD, HINT, TEACHER = 'model.distill.cwd', 'model.distill.hint', 'model.teacher'

#: Values that one key cannot have. The message has the path, from ``model.`` on.
VALUES: dict[str, list[Any]] = {
    # the terms
    f'{CWD}': [None, 5, 'neck', [1], {}],
    f'{CWD}.loss': [None, 5, 'ReLU', [], [1], {}, DELETED, Renamed('los'), dict(type=None)],
    f'{CWD}.loss.type': [
        None,
        5,
        [1],
        {},
        '',
        'ReLU',
        'ChannelWise',
        'mmkd_plugin.ChanelWiseLoss',
        'os.system',
        'mmkd_plugin.ConvConnector',
        'mmkd_plugin.Distiller',
        'FCNHead',
        'torch.nn.Conv2d',
        Renamed('tpye'),
    ],
    f'{CWD}.loss.tau': [
        None,
        'a',
        '4',
        True,
        [4],
        {},
        0,
        -1,
        NAN,
        INF,
        -INF,
        1e300,
        1e-300,
        Renamed('temperature'),
    ],
    f'{CWD}.loss.loss_weight': [None, 'a', True, [], {}, 0, -1, NAN, INF, 1e300, [1, 2], ['a']],
    f'{CWD}.tap': [
        None,
        5,
        True,
        '',
        ' ',
        [],
        {},
        [5],
        [None],
        [''],
        'decode_hed.conv_seg',
        'backbone[9]',
        'backbone[-7]',
        'backbone[',
        'backbone]0[',
        'backbone[a]',
        'backbone..conv1',
        '.',
        ['backbone.conv1', 'backbone.conv1'],
        'data_preprocessor',
        'decode_head.loss_decode',
        'student.backbone',
        'backbone.conv1.weight',
        '*',
        'backbone.*',
        DELETED,
        Renamed('tapp'),
    ],
    f'{CWD}.student_tap': [5, None],
    f'{CWD}.teacher': ['nobody', 5, None, [], ['nobody'], ''],
    f'{CWD}.schedule': [0, False, [], 'x', 5, 1.5, [1, 2], dict(strat=1), dict(begin=1)],
    f'{HINT}.schedule.start': ['a', None, 0.5, -1, NAN, INF, True, [0], 99, 10**15, {}],
    f'{HINT}.schedule.stop': ['a', 0.5, -1, NAN, INF, True, [0], 0, {}],
    f'{HINT}.schedule.ramp': ['a', None, 0.5, -1, NAN, INF, True, [0], {}],
    f'{HINT}.schedule.curve': ['a', None, 5, ['linear'], '', {}],
    f'{HINT}.schedule.by_epoch': ['no', None, 0, 1, [], 'True'],
    f'{HINT}.connector': [5, 'x', [], [1], {}, False, 'ConvConnector'],
    f'{HINT}.connector.type': [
        None,
        5,
        [1],
        '',
        'ConvConector',
        'mmkd_plugin.HintLoss',
        'mmkd_plugin.GradCAM',
        'mmkd_plugin.Paraphraser',
        'FPN',
        'os.system',
    ],
    f'{HINT}.connector.kernel_size': [None, 'a', 0, -1, 1.5, NAN, True, [1], 2, 10**9],
    f'{HINT}.connector.norm': ['BN', None, 5, [], dict(type='BN')],
    f'{HINT}.connector.bias': ['no', None, 0, []],
    f'{HINT}.connector.in_channels': [5, 'a', 0, -1, None],
    f'{HINT}.connector.out_channels': [5, 'a', 0, -1],
    f'{HINT}.teacher_connector': [5, 'x', [], dict(type='mmkd_plugin.HintLoss')],
    f'{HINT}.explainer': [5, 'x', [], {}, dict(type='mmkd_plugin.HintLoss')],
    f'{HINT}.norm': ['nope', 5, [], {}, True, 'backbone.conv1'],
    f'{HINT}.compile': ['yes', 1, None, []],
    f'{HINT}.through': [5, 'x', [], {}, dict(tap=5), dict(align=True), 'backbone'],
    f'{HINT}.queries': [5, 'x', [], {}, dict(random='a')],
    'model.init_student_from_teacher': [5, 'x', [], {}, [5], [''], ['nope'], dict(x=['backbone'])],
    f'{CWD}.unknown': [1],
    'model.distill': [None, 5, 'x', [], {}, [1], DELETED, Renamed('distil')],
    'model.task': [5, 'x', [], False, [1], dict(weight=1)],
    'model.task.loss_weight': ['a', None, True, -1, NAN, INF, 1e308, [], {}],
    'model.task.schedule': [0, 'x', [], dict(start=99), dict(start='a')],
    'model.compile': ['yes', 1, None, 0, []],
    # the teacher
    'model.teacher': [None, 5, 'teacher.py', [], [None], [5], True, DELETED, Renamed('techer')],
    f'{TEACHER}.config': [
        None,
        5,
        {},
        '',
        ' ',
        [],
        [1],
        True,
        'x.png',
        'nowhere.py',
        '/',
        '.',
        'mmseg::nowhere.py',
        'nolib::x.py',
        'mmseg::',
        '::',
        'config.py/x.py',
        DELETED,
        Renamed('cfg'),
    ],
    f'{TEACHER}.config.type': [
        None,
        5,
        'EncoderDecodr',
        '',
        'FCNHead',
        'CrossEntropyLoss',
        DELETED,
    ],
    f'{TEACHER}.config.backbone': [None, 5, {}, 'ResNet', []],
    f'{TEACHER}.checkpoint': [
        5,
        '',
        ' ',
        [],
        {},
        True,
        'nowhere.pth',
        '/',
        '.',
        'config.py',
        DELETED,
        Renamed('ckpt'),
        'ftp://nowhere/x.pth',
        'nowhere/x.pth',
        '\0',
    ],
    f'{TEACHER}.strict': ['yes', None, 1, []],
    f'{TEACHER}.inference': ['x', 5, [], 'fp8', dict(dtype='fp8'), dict(x=1)],
    f'{TEACHER}.name': ['', ' ', 5, None, [], {}],
    f'{TEACHER}.type': ['SelfTeacher', 'mmkd_plugin.HintLoss', 'x', 5, None, 'mmkd_plugin.Teacher'],
    f'{TEACHER}.unknown': [1],
    # the student and the model
    'model': [None, 5, 'x', [], {}, DELETED],
    'model.type': [
        None,
        5,
        [],
        '',
        'Distiller',
        'mmkd_plugin.Distillr',
        'nolib.Distiller',
        DELETED,
    ],
    'model.student': [None, 'x', [1], {}, 5, DELETED, Renamed('studnet'), Renamed('model')],
    'model.student.type': [None, 5, '', 'EncoderDecodr', 'FCNHead', 'ReLU', DELETED, 'os.system'],
    'model.student.data_preprocessor': [5, 'x', {}, dict(type='Nothing'), dict(type='ReLU')],
    'model.student.data_preprocessor.mean': ['a', 5, [NAN, 1.0, 1.0]],
    'model.student.data_preprocessor.std': [[0.0, 1.0, 1.0], 'a', None],
    'model.student.backbone': [None, 5, 'ResNet', {}, [], DELETED],
    'model.student.backbone.type': ['ResNt', 'FCNHead', 'ReLU', None, 5],
    'model.student.backbone.width': ['a', None, 0, -1, 2.5, NAN],
    'model.student.backbone.unknown': [1],
    'model.student.decode_head.num_classes': ['a', None, 0, -1, 2.5],
    'model.student.decode_head.in_channels': ['a', None, 0, 3, [4, 8]],
    'model.student.decode_head.in_index': [9, 'a', [0, 1]],
    'model.student.decode_head.channels': [0, 'a', -1, None],
    'model.student.decode_head.loss_decode': [5, {}, dict(type='Nothing'), dict(type='ReLU')],
    'model.student.decode_head.loss_decode.loss_weight': ['a', NAN, INF],
    'model.student.decode_head.norm_cfg': [5, 'BN', dict(type='Nothing')],
    'model.student.init_cfg': [
        5,
        dict(type='Nothing'),
        dict(type='Pretrained', checkpoint='no.pth'),
    ],
    'model.tau': [4],
    'model.architecture': [{}],
    # the run
    'train_cfg': [None, 5, 'x', [], {}, DELETED, dict(by_epoch=True, max_epochs=1)],
    'val_cfg': [dict(type='ValLoop')],
    'test_evaluator': [dict(type='IoUMetric')],
    'train_cfg.type': ['Nothing', 5, 'ValLoop', ''],
    'train_cfg.max_iters': [
        0,
        -1,
        2.5,
        'a',
        True,
        NAN,
        INF,
        None,
        [],
        DELETED,
        Renamed('max_iter'),
    ],
    'train_cfg.val_interval': [0, -1, 'a', 2.5, None, []],
    'train_cfg.unknown': [1],
    'optim_wrapper': [None, 5, 'x', [], {}, DELETED],
    'optim_wrapper.type': ['Nothing', 5, 'AmpOptimWrapper', '', None, 'SGD'],
    'optim_wrapper.optimizer': [None, 5, 'SGD', {}, [], DELETED],
    'optim_wrapper.optimizer.type': ['SDG', None, 5, '', 'OptimWrapper', DELETED, []],
    'optim_wrapper.optimizer.lr': ['a', None, -1, NAN, INF, [], {}, True, Renamed('learning_rate')],
    'optim_wrapper.optimizer.momentum': ['a', -1, NAN, None, []],
    'optim_wrapper.optimizer.weight_decay': ['a', -1, NAN, None],
    'optim_wrapper.clip_grad': [5, 'x', [], dict(max_norm='a'), dict(norm=1), dict(max_norm=NAN)],
    'optim_wrapper.accumulative_counts': [0, -1, 'a', 1.5, None],
    'optim_wrapper.paramwise_cfg': [5, 'x', dict(custom_keys=5), dict(unknown=1)],
    'optim_wrapper.constructor': ['Nothing', 5],
    'optim_wrapper.unknown': [1],
    'param_scheduler': [5, 'x', [5], [None], [{}], {}],
    'param_scheduler.0.type': ['PolyLRR', None, 5, DELETED],
    'param_scheduler.0.begin': [-1, 'a', 99, None, NAN],
    'param_scheduler.0.end': [-1, 0, 'a', None],
    'param_scheduler.0.power': ['a', None],
    'param_scheduler.0.unknown': [1],
    'default_hooks': [5, 'x', [1]],
    'default_hooks.checkpoint': [5, 'x', dict(type='Nothing')],
    'default_hooks.checkpoint.interval': [-2, 'a', 1.5, NAN, []],
    'default_hooks.checkpoint.unknown': [1],
    'default_hooks.checkpoint.max_keep_ckpts': ['a', 1.5],
    'default_hooks.checkpoint.save_best': [5, {}],
    'default_hooks.logger.interval': [0, 'a', -1],
    'default_hooks.logger.type': ['Nothing', None, 5],
    'custom_hooks': [5, 'x', [5], [dict(type='Nothing')], [{}], [None]],
    'default_scope': [5, 'nolib', '', []],
    'randomness': [5, 'x', dict(seed='a'), dict(sede=1), dict(seed=-1), dict(seed=1.5), []],
    'work_dir': [5, '', ' ', [], {}, 'config.py', 'config.py/run', '/proc/run'],
    'load_from': [5, 'nowhere.pth', '', [], {}],
    'resume': ['yes', 5, []],
    'log_processor': [5, 'x', dict(type='Nothing'), dict(window_size='a'), dict(unknown=1)],
    'visualizer': [5, 'x', dict(type='Nothing')],
    'env_cfg': [5, 'x', dict(mp_cfg=5), dict(dist_cfg=5)],
    'auto_scale_lr': [5, 'x', dict(enable=True), dict(enable=True, base_batch_size=0)],
    # the data
    'train_dataloader': [None, 5, 'x', [], {}, DELETED],
    'train_dataloader.batch_size': [0, -1, 'a', 1.5, None, True, NAN],
    'train_dataloader.num_workers': [-1, 'a', 1.5, None],
    'train_dataloader.persistent_workers': ['a', True],
    'train_dataloader.unknown': [1],
    'train_dataloader.sampler': [5, 'x', {}, dict(type='Nothing'), dict(type='ReLU')],
    'train_dataloader.sampler.shuffle': ['no', None, 5],
    'train_dataloader.collate_fn': [5, dict(type='Nothing')],
    'train_dataloader.dataset': [None, 5, 'x', {}, [], DELETED],
    'train_dataloader.dataset.type': ['Nothing', '', None, 5, 'ReLU', DELETED, 'CocoDataset'],
    'train_dataloader.dataset.data_root': ['nowhere', 5, [], '', {}],
    'train_dataloader.dataset.data_prefix': [
        5,
        'x',
        dict(img_path='nowhere'),
        dict(img='images'),
        {},
        dict(img_path=5),
        dict(img_path='images'),
        dict(img_path='images', seg_map_path='nowhere'),
        dict(img_path='masks', seg_map_path='images'),
    ],
    'train_dataloader.dataset.img_suffix': ['.jpg', 5, None, []],
    'train_dataloader.dataset.seg_map_suffix': ['.jpg', 5, '_mask.png'],
    'train_dataloader.dataset.ann_file': ['nowhere.txt', 5, []],
    'train_dataloader.dataset.metainfo': [5, 'x', [], dict(classes=5), dict(classes=[1, 2])],
    'train_dataloader.dataset.indices': [0, 'a', [99]],
    'train_dataloader.dataset.unknown': [1],
    'train_dataloader.dataset.pipeline': [
        None,
        5,
        'x',
        [5],
        [None],
        [dict(type='Nothing')],
        [{}],
        [dict(type='LoadImageFromFile')],
        [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')],
        [dict(type='LoadAnnotations'), dict(type='PackSegInputs')],
        [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],
        [dict(type='PackSegInputs')],
        [
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='RandomCrop', crop_size=(0, 0)),
            dict(type='PackSegInputs'),
        ],
        [
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='RandomFlip', prob=5),
            dict(type='PackSegInputs'),
        ],
        [
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='RandomFlip', probability=1),
            dict(type='PackSegInputs'),
        ],
    ],
}


#: Changes that leave a valid config.
VALID: dict[str, list[Any]] = {
    f'{CWD}.student_tap': ['decode_head.conv_seg'],
    f'{CWD}.teacher': [['teacher']],  # a list of one
    'train_dataloader.batch_size': [DELETED, 3],
    'train_dataloader.num_workers': [DELETED],
    'train_dataloader.dataset.indices': [-9, 4],
    'launcher': ['nothing', 5],
    'resume': [False],
    'optim_wrapper.optimizer.lr': [1, 0.5],
    'default_hooks.checkpoint.interval': [-1, 1],
    'default_hooks.checkpoint.max_keep_ckpts': [-1, 2],
    'model.task': [None, {}],
    f'{HINT}.schedule': [None, {}],
    f'{HINT}.connector': ['auto'],
    f'{TEACHER}.checkpoint': [None],
    'param_scheduler': [None, []],
    'visualizer': [None],
}


def place_of(path: str, value: Any) -> str:
    """The least that a refusal says: which part of the config it is about."""
    names = path.split('.')
    if names[0] == 'load_from' and isinstance(value, str):
        return value
    if names[0] == 'train_dataloader':
        return 'train_dataloader|.png: '  # what is wrong with the data names a file
    if names[0] != 'model':
        return '.'.join(names[:1])
    if names[1:2] == ['teacher'] and names[2:3] in (['config'], ['checkpoint']):
        escaped = repr(value)[1:-1]  # as messages have what cannot be printed
        return 'teacher' if not isinstance(value, str) or len(names) > 3 else escaped
    if names[1:] in ([], ['type']) or 'init_cfg' in names:
        return 'model'
    return '.'.join(names[1:3] if names[1] == 'distill' else names[1:2])


def attacks() -> list[Attack]:
    """All of them."""
    wrong = [
        Attack({path: value}, (place_of(path, value),))
        for path, values in VALUES.items()
        for value in values
    ]
    valid = [Attack({path: value}, None) for path, values in VALID.items() for value in values]
    return wrong + valid
