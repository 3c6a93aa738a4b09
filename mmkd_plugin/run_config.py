"""The config of a training run, checked before anything is built."""

from __future__ import annotations

import inspect
import keyword
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS, LOOPS, MODELS, RUNNERS, Registry
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmkd_plugin.annotations import expected, fits
from mmkd_plugin.building import check_keys
from mmkd_plugin.config_text import is_used
from mmkd_plugin.distiller import MISSING, Distiller
from mmkd_plugin.ingredients import check_distill, check_student, task_of
from mmkd_plugin.libraries import scope_problem
from mmkd_plugin.teachers.classes import classes_of_config
from mmkd_plugin.teachers.configs import teacher_configs
from mmkd_plugin.terms.lines import check_line
from mmkd_plugin.terms.schedule import Schedule, check_come_on
from mmkd_plugin.unlabelled import Unlabelled
from mmkd_plugin.words import did_you_mean, short, some, type_name

#: Keys at the top of a config that a runner reads; a config may have variables beside them.
KNOWN = (
    *list(inspect.signature(Runner.__init__).parameters)[1:],
    'custom_imports',
    'paraphraser',
    'report',
    'runner_type',
    'tta_model',
    'tta_pipeline',
)
#: Variables of stock configs, which a config that inherits them may no longer use.
USUAL = ('train_pipeline', 'val_pipeline', 'test_pipeline')

#: What is there in place of mmengine's other runners and wrappers.
SEVERAL_GPUS = (
    'several GPUs train with DDP, or with FSDP2 by '
    '--cfg-options runner_type=mmkd_plugin.ShardedRunner'
)

MISSES = object()

#: The method of samplers that draw indices without end.
ENDLESS = '_infinite_indices'

#: What stands at keys that every run has: the type hint, and the least number that makes sense.
SETTINGS: dict[str, tuple[Any, float | None]] = {
    **{
        f'{holder}data_preprocessor': (dict | None, None)
        for holder in ('', 'model.', 'model.student.')
    },
    'train_cfg': (dict | None, None),
    'train_cfg.val_interval': (int, 1),
    'optim_wrapper': (dict, None),
    'optim_wrapper.clip_grad': (dict | None, None),
    'optim_wrapper.accumulative_counts': (int, 1),
    'optim_wrapper.optimizer': (dict, None),
    'optim_wrapper.optimizer.lr': (float, 0),
    'optim_wrapper.paramwise_cfg': (dict | None, None),
    'param_scheduler': (dict | list | None, None),
    'default_hooks': (dict | None, None),
    'default_hooks.checkpoint': (dict | None, None),
    'default_hooks.checkpoint.interval': (int, -1),
    'default_hooks.checkpoint.max_keep_ckpts': (int, -1),
    'default_hooks.logger': (dict | None, None),
    'custom_hooks': (list | None, None),
    'default_scope': (str | None, None),
    'report': (bool, None),
    'load_from': (str | None, None),
    'resume': (bool, None),
    'randomness': (dict, None),
    'randomness.seed': (int | None, 0),
    'env_cfg': (dict, None),
    'env_cfg.dist_cfg': (dict, None),
    'env_cfg.mp_cfg': (dict, None),
    'log_processor': (dict, None),
    'log_processor.window_size': (int, 1),
    'visualizer': (dict | None, None),
    'auto_scale_lr': (dict | None, None),
    'compile': (bool | dict | None, None),
    **{
        f'{loader}.{key}'.rstrip('.'): check
        for loader in ('train_dataloader', 'val_dataloader')
        for key, check in {
            '': (dict | None, None),
            'batch_size': (int, 1),
            'num_workers': (int, 0),
            'persistent_workers': (bool, None),
            'sampler': (dict | None, None),
            'sampler.shuffle': (bool, None),
            'dataset': (dict, None),
        }.items()
    },
}

#: Keys of `paramwise_cfg` that mmengine's own constructor of optimizers reads.
PARAMWISE = (
    'custom_keys',
    'bias_lr_mult',
    'bias_decay_mult',
    'norm_decay_mult',
    'flat_decay_mult',
    'dwconv_decay_mult',
    'dcn_offset_lr_mult',
    'bypass_duplicate',
)

#: Where a model subtracts from its images, and divides them.
MEANS = re.compile(r'data_preprocessor\.(mean|std)\b')

#: Heads in a `roi_head` that number the classes of the data set; all but the first are of masks.
ROI_HEADS = ('bbox_head', 'mask_head', 'mask_iou_head', 'point_head')

#: How close a key has to be to a known one to be taken for a misspelt one.
CLOSE = 0.85


def check_run(cfg: Config) -> None:
    """Refuses a config that cannot be trained.

    Args:
        cfg (Config): The config of a run, with ``work_dir``.

    Raises:
        ValueError: If something is missing, of a wrong kind, or has no effect. The message begins
            with the key.
    """
    if not isinstance(cfg.get('model'), dict):
        raise ValueError(f'model: expected dict(type=..., ...), got {short(cfg.get("model"))}')
    if 'type' not in cfg.model:
        raise ValueError("model has no `type`, such as 'mmkd_plugin.Distiller'")
    for path, key, value in places(cfg.to_dict()):
        if keyword.iskeyword(key):
            raise ValueError(f"{path}: '{key}' is a word of Python; take another name")
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f'{path.removeprefix("model.")} must not be NaN')
        if isinstance(value, float) and math.isinf(value) and MEANS.search(path):
            raise ValueError(f'{path.removeprefix("model.")} must be finite, got {value}')
        if key == '_scope_' and not (isinstance(value, str) and value.isidentifier()):
            raise ValueError(
                f"{path.removeprefix('model.')} must be the name of a library, such as 'mmseg', "
                f'got {short(value)}'
            )
    _check_settings(cfg)
    if problem := scope_problem(cfg):
        raise ValueError(problem)
    _check_runner(cfg)
    _check_epochs_end(cfg)
    _check_roi_heads(cfg)
    _check_test_cfg(cfg)
    lengths = _lengths(cfg.get('train_cfg'))
    if cfg.get('unlabelled') is not None and cfg.model.get('unlabelled') is None:
        raise ValueError('unlabelled is a key of `model`: model=dict(unlabelled=dict(dataset=...))')
    if type_name(cfg.model.get('type')) == 'Distiller':
        check_model(cfg.model, lengths)
        more = Unlabelled.from_config(cfg.model.get('unlabelled'))
        if more is not None and not more.only and 'train_dataloader' in cfg:
            more.images(cfg.train_dataloader.get('batch_size', 1))


def pretrained_files(model: dict) -> Iterator[tuple[str, str]]:
    """The files of this machine that parts of the model which trains start with.

    Args:
        model (dict): The ``model`` of a config.

    Yields:
        tuple[str, str]: The place of its name in the config, and the name.
    """
    for path, key, value in places(model, 'model'):
        named = key == 'init_cfg' and isinstance(value, dict) and value.get('type') == 'Pretrained'
        file = value.get('checkpoint') if named else None
        if isinstance(file, str) and '://' not in file and not path.startswith('model.teacher'):
            yield f'{path}.checkpoint', file


def check_model(model: dict, lengths: dict[str, int] | None = None) -> None:
    """Checks the keys of a Distiller, its teachers and its terms, as far as no model is needed.

    Args:
        model (dict): The config of a Distiller.
        lengths (dict[str, int], optional): The length of the run, ``max_iters`` and
            ``max_epochs``. Defaults to None: not known.

    Raises:
        ValueError: If the Distiller would refuse it.
    """
    arguments = {key: value for key, value in model.items() if key not in ('type', '_scope_')}
    known = list(inspect.signature(Distiller).parameters)
    _check_whose_keys(arguments, known)
    check_keys('model', arguments, known)
    for key, words in MISSING.items():
        if key not in arguments:
            raise ValueError(f'model has no `{key}`: {words}')
    check_student(model['student'])
    teacher_configs(model['teacher'])
    check_distill(model['distill'])
    schedules = {}
    for name, line in model['distill'].items():
        here = f'distill.{name}'
        check_line(here, name, line)
        schedules[here] = Schedule.from_config(f'{here}.schedule', line.get('schedule'))
    _, schedules['task'] = task_of(model.get('task'))
    check_come_on(schedules, lengths or {})


def _check_whose_keys(model: dict, known: list[str]) -> None:
    """Refuses the keys of a student beside those of a Distiller, and says how they came there."""
    student = model.get('student')
    if isinstance(student, dict) and type_name(student.get('type')) == 'Distiller':
        raise ValueError(
            'student is a Distiller: write the config of the model that it teaches, such as '
            'student={{_base_.model.student}}'
        )
    if isinstance(student, dict) and 'type' not in student and 'model' in student:
        raise ValueError(
            'student is a whole config, with keys such as `model`: write student={{_base_.model}}'
        )
    theirs = [key for key in model if key not in known]
    parts = [key for key in theirs if isinstance(model[key], dict) and 'type' in model[key]]
    if parts and len(theirs) > 1:
        raise ValueError(
            f'model has the keys of another model beside its own ({some(theirs, 4)}): that of '
            '`_base_` was merged into it. Add _delete_=True: '
            "model=dict(_delete_=True, type='mmkd_plugin.Distiller', student={{_base_.model}}, ...)"
        )
    for key in theirs:
        if isinstance(student, dict) and key in student:
            raise ValueError(
                f'model has an unknown key `{key}`; did you mean `model.student.{key}`? '
                f'(known: {", ".join(known)})'
            )


def _lengths(train_cfg: Any) -> dict[str, int]:
    """The length of a run in iterations and epochs, as far as its config says it."""
    lengths = {}
    if not isinstance(train_cfg, dict):
        return lengths
    for key in ('max_iters', 'max_epochs'):
        value = train_cfg.get(key)
        if value is None:
            continue
        whole = isinstance(value, Real) and not isinstance(value, bool) and value % 1 == 0
        if not whole or value < 1:
            raise ValueError(
                f'train_cfg.{key} must be a whole number from 1 on, got {short(value)}'
            )
        lengths[key] = int(value)
    if lengths.keys() == {'max_iters'}:
        lengths['max_epochs'] = 1  # a run by iterations
    return lengths


def _check_settings(cfg: Config) -> None:
    """Compares what stands at the keys that every run has with the kinds and limits of them."""
    settings = cfg.to_dict()
    for path, (hint, low) in SETTINGS.items():
        value = settings
        for key in path.split('.'):
            value = value.get(key, MISSES) if isinstance(value, dict) else MISSES
        if value is MISSES:
            continue
        if path.endswith('interval') and isinstance(value, float) and value.is_integer():
            value = int(value)  # stock configs have max_iters / 5
        below = low is not None and fits(value, float) and value < low
        if below or not fits(value, hint):
            limit = f' of {low} or more' if low is not None else ''
            raise ValueError(f'{path} must be {expected(hint)}{limit}, got {short(value)}')
    for number, one in enumerate(cfg.get('custom_hooks') or []):
        if isinstance(one, dict) and 'type' not in one:
            raise ValueError(f"custom_hooks[{number}] has no `type`, such as 'EMAHook'")
        if isinstance(one, dict) and type_name(one['type']) == 'EMAHook':
            interval = one.get('interval', 1)
            if not fits(interval, int) or interval < 1:
                raise ValueError(
                    f'custom_hooks[{number}].interval must be {expected(int)} of 1 or more, got '
                    f'{short(interval)}'
                )
    wrapper = cfg.get('optim_wrapper')
    if (
        wrapper is not None
        and not {'constructor', 'optimizer'} & wrapper.keys()
        and (wrapper.get('type', 'OptimWrapper') in ('AmpOptimWrapper', 'OptimWrapper'))
    ):
        raise ValueError(
            "optim_wrapper has no `optimizer`: add optimizer=dict(type='SGD', lr=0.01), say"
        )
    if wrapper is not None and 'constructor' not in wrapper:
        check_keys('optim_wrapper.paramwise_cfg', wrapper.get('paramwise_cfg') or {}, PARAMWISE)
    randomness = list(inspect.signature(Runner.set_randomness).parameters)[1:]
    check_keys('randomness', cfg.get('randomness') or {}, randomness)
    schedulers = cfg.get('param_scheduler') or []
    for number, one in enumerate(schedulers if isinstance(schedulers, list) else [schedulers]):
        begin = one.get('begin', 0) if isinstance(one, dict) else 0
        if fits(begin, float) and begin < 0:
            raise ValueError(f'param_scheduler[{number}].begin cannot be negative, got {begin}')
    for key in ('train_dataloader', 'val_dataloader'):
        if isinstance(cfg.get(key), dict) and 'dataset' not in cfg[key]:
            raise ValueError(f'{key} has no `dataset`')
    _check_checkpoint_hook((cfg.get('default_hooks') or {}).get('checkpoint'))
    _check_auto_scale_lr(cfg.get('auto_scale_lr'))


def _check_runner(cfg: Config) -> None:
    """Refuses runners and wrappers under which no checkpoint of a student can be written."""
    kind = cfg.get('runner_type')
    found = RUNNERS.get(kind) if isinstance(kind, str) else kind
    if kind is not None and not (isinstance(found, type) and issubclass(found, Runner)):
        raise ValueError(
            f'runner_type={type_name(kind)!r}: only a `Runner` of mmengine can be resumed exactly. '
            f'Leave `runner_type` out, and `strategy` too; {SEVERAL_GPUS}'
        )
    if cfg.get('strategy') is not None:
        raise ValueError(
            'strategy: FSDP, DeepSpeed and ColossalAI need a runner of another kind. Leave it out; '
            f'{SEVERAL_GPUS}'
        )
    wrapper = type_name((cfg.get('model_wrapper_cfg') or {}).get('type', ''))
    if wrapper == 'MMFullyShardedDataParallel':
        raise ValueError(
            f"model_wrapper_cfg.type='{wrapper}': a student cannot be saved out of it. Leave "
            f'`model_wrapper_cfg` out; {SEVERAL_GPUS}'
        )


def _check_epochs_end(cfg: Config) -> None:
    """Refuses a loop over epochs whose sampler never ends the first of them."""
    loop, sampler = cfg.get('train_cfg'), (cfg.get('train_dataloader') or {}).get('sampler')
    if not isinstance(loop, dict) or not isinstance(sampler, dict):
        return
    usual = EpochBasedTrainLoop if loop.get('by_epoch') else None
    kind = _found(LOOPS, loop['type'], cfg) if 'type' in loop else usual
    by_epoch = getattr(kind, 'run_epoch', None) is EpochBasedTrainLoop.run_epoch
    endless = _found(DATA_SAMPLERS, sampler.get('type'), cfg)
    if by_epoch and hasattr(endless, ENDLESS):
        raise ValueError(
            f'train_dataloader.sampler: {endless.__name__} never ends, so the first epoch of '
            f"{kind.__name__} would not either. Write sampler=dict(type='DefaultSampler', "
            "shuffle=True), or train_cfg=dict(type='IterBasedTrainLoop', max_iters=...)"
        )


def _check_roi_heads(cfg: Config) -> None:
    """Refuses a head with other classes than the data set names, before it is compared with any."""
    model, data = cfg.model.to_dict(), cfg.get('train_dataloader')
    student = model.get('student') if type_name(model['type']) == 'Distiller' else model
    roi_head = student.get('roi_head') if isinstance(student, dict) else None
    if not isinstance(roi_head, dict) or not isinstance(data, dict):
        return
    names = classes_of_config(dict(train_dataloader=data, default_scope=cfg.get('default_scope')))
    in_a_file = any(key == 'classes' and isinstance(one, str) for _, key, one in places(data))
    if not names or in_a_file:
        return
    counts = {
        f'roi_head.{key}{f"[{number}]" * isinstance(heads, list)}.num_classes': count
        for key, heads in ((key, roi_head.get(key)) for key in ROI_HEADS)
        for number, head in enumerate(heads if isinstance(heads, list) else [heads])
        if isinstance(head, dict) and not head.get('class_agnostic')
        if fits(count := head.get('num_classes'), int)
    }
    named = len(names) in counts.values()
    first, things = next(iter(counts.items()), ('', 0))  # fewer than names, if others are stuff
    for key, count in counts.items():
        if count > len(names) or (named and count < len(names)):
            raise ValueError(
                f'{key}={count}, and the data set names {len(names)} '
                f'class{"es" * (len(names) > 1)}; write num_classes={len(names)}'
            )
        if count != things:
            raise ValueError(f'{key}={count}, and {first}={things}; write num_classes={things}')


def _check_test_cfg(cfg: Config) -> None:
    """Refuses a segmentor that cannot be validated, which would fail only then."""
    model, place = cfg.model, 'model'
    if type_name(model['type']) == 'Distiller':
        model, place = model.get('student'), 'model.student'
    if cfg.get('val_dataloader') is None or not isinstance(model, dict) or model.get('test_cfg'):
        return
    kind = _found(MODELS, model.get('type'), cfg)
    if hasattr(kind, 'whole_inference') and 'test_cfg' in inspect.signature(kind).parameters:
        raise ValueError(
            f"{place} has no `test_cfg`, which validation needs: write test_cfg=dict(mode='whole')"
        )


def _found(registry: Registry, kind: Any, cfg: Config) -> Any:
    """The class of a name, None if there is none or its library is not there."""
    if not isinstance(kind, str):
        return kind
    try:
        with registry.switch_scope_and_registry(cfg.get('default_scope')) as known:
            return known.get(kind)
    except (ImportError, KeyError, RuntimeError):  # the runner says it
        return None


def _check_checkpoint_hook(hook: Any) -> None:
    """Refuses keys that the hook would hand on, and that nothing takes when it first saves."""
    if not isinstance(hook, dict) or hook.get('type', 'CheckpointHook') != 'CheckpointHook':
        return
    known = [
        name
        for taker in (CheckpointHook.__init__, Runner.save_checkpoint)
        for name, one in list(inspect.signature(taker).parameters.items())[1:]
        if one.kind is not one.VAR_KEYWORD
    ]
    check_keys('default_hooks.checkpoint', hook, ['type', 'priority', *known])


def _check_auto_scale_lr(setting: Any) -> None:
    if isinstance(setting, dict) and setting.get('enable'):
        size = setting.get('base_batch_size')
        if not fits(size, int) or size < 1:
            raise ValueError(
                f'auto_scale_lr.base_batch_size must be a whole number from 1 on, got {short(size)}'
            )


def places(value: Any, path: str = '') -> Iterator[tuple[str, str, Any]]:
    """All places of nested dicts and lists: their paths, keys and what stands there.

    Args:
        value (Any): The outermost dict or list.
        path (str): Its own place. Defaults to ``''``.

    Examples:
        >>> [(where, found) for where, _, found in places(dict(heads=[dict(type='FCNHead')]))][-1]
        ('heads[0].type', 'FCNHead')
    """
    if isinstance(value, dict):
        items = [(f'{path}.{key}' if path else str(key), key, v) for key, v in value.items()]
    elif isinstance(value, (list, tuple)):
        items = [(f'{path}[{number}]', '', v) for number, v in enumerate(value)]
    else:
        return
    for here, key, inner in items:
        yield here, key if isinstance(key, str) else '', inner
        yield from places(inner, here)


def warn_of_unknown(cfg: Config) -> None:
    """Names the keys at the top that are close to a known one and that nothing reads.

    Args:
        cfg (Config): The config of a run.
    """
    for key, value in cfg.items():
        hint = '' if key in (*KNOWN, *USUAL) else did_you_mean(key, KNOWN, cutoff=CLOSE)
        if hint and not is_used(value, {k: v for k, v in cfg.items() if k != key}):
            print_log(
                f'The config has a key `{key}` that nothing reads{hint}',
                logger='current',
                level=logging.WARNING,
            )


def warn_of_custom_keys(wrapper: Mapping[str, Any], parameters: Sequence[str]) -> None:
    """Names `custom_keys` that are in the name of no parameter.

    Configs of a library have such keys for parts that some models lack. So this is a warning only
    if a near name is known.

    Args:
        wrapper (Mapping): The ``optim_wrapper`` of a config.
        parameters (Sequence[str]): The names of the parameters.
    """
    keys = (wrapper.get('paramwise_cfg') or {}).get('custom_keys')
    if not isinstance(keys, Mapping) or 'constructor' in wrapper:
        return
    for key in (one for one in keys if not any(one in name for name in parameters)):
        _, dot, rest = key.partition('.')
        if dot and rest and any(rest in name for name in parameters):
            hint = f'; did you mean `{rest}`?'
        elif any(_unnumbered(key) in _unnumbered(name) for name in parameters):
            hint = ''  # a model with fewer blocks
        else:
            hint = did_you_mean(key, _parts_as_long(key, parameters), cutoff=CLOSE)
        text = f'optim_wrapper.paramwise_cfg.custom_keys: no parameter has `{key}` in its name'
        print_log(
            f'{text}, so it changes nothing{hint}',
            logger='current',
            level=logging.WARNING if hint else logging.INFO,
        )


def _unnumbered(name: str) -> str:
    """A name without the numbers of the children of lists."""
    return re.sub(r'(?<=\.)\d+(?=\.|$)', '', name)


def _parts_as_long(key: str, parameters: Iterable[str]) -> set[str]:
    """The parts of names with as many steps as a key."""
    steps, names = key.count('.') + 1, (one.split('.') for one in parameters)
    return {
        '.'.join(name[start : start + steps])
        for name in names
        for start in range(len(name) - steps + 1)
    }
