"""One config, in this process: the shrunken student alone, then distilled, then loaded again."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, save_checkpoint

from benchmarks.zoo.configs import without_paths
from benchmarks.zoo.data import predict, tame  # which registers what the configs name, too
from benchmarks.zoo.shrinking import RUNGS, Rung, classes_of, shrunken, side_of
from mmkd_plugin.checkpoint import read_checkpoint, state_dict_of
from mmkd_plugin.cli import read_config
from mmkd_plugin.words import first_line, some, type_name

#: The teachers that all students of a library share.
TEACHERS = {
    'mmseg': 'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
    'mmdet': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
}
#: The teacher of a config that is the config itself, shrunken less where that can be built.
SIBLING = 'sibling'

WORKS, TRAINS, FAILS, NOT_OURS = 'works', 'trains', 'fails', 'not ours'
#: Those of configs that train alone.
TRAIN_ALONE = WORKS, TRAINS, FAILS

#: Hooks that change the data set of a config, which our images replace.
OF_THE_DATA = 'PipelineSwitchHook', 'YOLOXModeSwitchHook'

#: Characters of a reason.
LONGEST = 400


@dataclass
class Outcome:
    """What came out of an attempt.

    Args:
        outcome (str): ``'works'``; ``'trains'`` if all works but the prediction, which the student
            alone does not manage either; ``'fails'``; or ``'not ours'`` if the student alone does
            not train.
        stage (str): Where it ended: ``'alone'``, ``'predict'``, ``'distill'`` or ``'load'``.
            Defaults to nothing.
        reason (str): Why. Defaults to nothing.
        rung (str): How far the model was shrunken. Defaults to nothing.
        compared (str): What is compared, in the words of the tool. Defaults to nothing.
    """

    outcome: str
    stage: str = ''
    reason: str = ''
    rung: str = ''
    compared: str = ''


@dataclass
class Work:
    """An attempt, and what is needed for it.

    Args:
        config (str): The student, such as ``'mmseg::fcn/....py'``.
        teacher (str): One of :data:`TEACHERS`, or :data:`SIBLING`.
        folder (Path): A folder of its own.
        told (Callable): Is told each stage when it begins. Defaults to a function that does
            nothing.
    """

    config: str
    teacher: str
    folder: Path
    told: Callable[[str], None] = field(default=lambda stage: None)

    @property
    def library(self) -> str:
        """``'mmseg'`` or ``'mmdet'``."""
        return self.config.partition('::')[0]


@dataclass
class Alone:
    """A student that has trained without a teacher.

    Args:
        settings (dict[str, Any]): Its config.
        rung (Rung): How far it is shrunken.
        keys (set[str]): Those of its state.
        reason (str): Why it does not predict. Defaults to nothing: it does.
    """

    settings: dict[str, Any]
    rung: Rung
    keys: set[str]
    reason: str = ''


def attempt(work: Work, distill: ModuleType) -> Outcome:
    """Trains a student for a step, alone and distilled, and loads the checkpoint again.

    Args:
        work (Work): What to do.
        distill (ModuleType): ``tools/distill.py``.

    Returns:
        Outcome: What came out of it.
    """
    student = first_alone(work)
    if isinstance(student, Outcome):
        return student
    rung = student.rung.name
    work.told(f'distill, {rung}')
    try:
        with quick():
            compared = distilled(student, work, distill)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return Outcome(FAILS, 'distill', reason_of(error), rung)
    work.told(f'load, {rung}')
    try:
        loaded(student.settings, work.folder / 'run' / 'iter_1.pth', student.keys)
    except Exception as error:
        traceback.print_exc()
        return Outcome(FAILS, 'load', reason_of(error), rung, compared)
    if student.reason:
        return Outcome(TRAINS, 'predict', student.reason, rung, compared)
    return Outcome(WORKS, '', '', rung, compared)


def first_alone(work: Work) -> Alone | Outcome:
    """The student as small as it trains and predicts; or only trains; or why it does not train."""
    trained, failed = None, None
    for rung in RUNGS:
        work.told(f'{"predict" if trained else "alone"}, {rung.name}')
        try:
            settings = settings_of(read_config(work.config), work.library, rung)
            with quick():
                student = alone(settings, rung, work.folder / 'alone')
        except Exception as error:  # a model may raise anything
            traceback.print_exc()
            failed = Outcome(NOT_OURS, 'alone', reason_of(error), rung.name)
            if is_missing(error):
                break
            continue
        if not student.reason:
            return student
        trained = trained or student
    return trained or failed


def settings_of(cfg: Config, library: str, rung: Rung) -> dict[str, Any]:
    """The config of a step of the shrunken model: its own optimizer and hooks, our images.

    Args:
        cfg (Config): A config of a wheel.
        library (str): ``'mmseg'`` or ``'mmdet'``.
        rung (Rung): How far it is shrunken.
    """
    model, whole = shrunken(cfg, library, rung), cfg.to_dict()
    classes = classes_of(model)
    steps = {type_name(one['type']): one for one in _with_types(whole.get('train_dataloader'))}
    images = dict(
        type='MadeUpImages',
        library=library,
        side=side_of(model, rung),
        classes=classes,
        channels=len((model.get('data_preprocessor') or {}).get('mean') or (0, 0, 0)),
        label_scale=steps.get('SegRescale', {}).get('scale_factor', 1.0),
        proposals='LoadProposals' in steps,
        masks=any(loads_masks(one) for one in steps.values()),
    )
    return dict(
        default_scope=library,
        model=model,
        train_dataloader=dict(
            batch_size=2, num_workers=0, dataset=images, sampler=dict(type='InfiniteSampler')
        ),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=1),
        optim_wrapper=_optimizer(whole.get('optim_wrapper')),
        custom_hooks=[
            *(one for one in whole.get('custom_hooks') or () if one['type'] not in OF_THE_DATA),
            dict(type='Tame'),
        ],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1)),
        log_level='WARNING',
        randomness=dict(seed=0),
    )


def loads_masks(step: Mapping[str, Any]) -> bool:
    """Whether a step of a pipeline gives the masks of objects: some detectors refuse them."""
    panoptic = type_name(step['type']) == 'LoadPanopticAnnotations'
    return step.get('with_mask', panoptic)


def _with_types(value: Any) -> Iterator[dict[str, Any]]:
    """All dicts with a ``type`` below a value, such as the steps of a pipeline."""
    if isinstance(value, Mapping):
        if isinstance(value.get('type'), str):
            yield value
        for inner in value.values():
            yield from _with_types(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _with_types(inner)


def _optimizer(wrapper: dict[str, Any] | None) -> dict[str, Any]:
    """An optimizer without mixed precision, which needs an accelerator."""
    wrapper = dict(wrapper or dict(optimizer=dict(type='SGD', lr=0.01)))
    if type_name(wrapper.get('type', '')) == 'AmpOptimWrapper':
        wrapper['type'] = 'OptimWrapper'
    for key in ('loss_scale', 'dtype', 'use_fp16', 'accumulative_counts'):
        wrapper.pop(key, None)
    return wrapper


def alone(settings: dict[str, Any], rung: Rung, folder: Path) -> Alone:
    """A step of the student alone, with the runner of mmengine, and a prediction."""
    hooks = dict(checkpoint=None)
    cfg = Config(dict(settings, work_dir=str(folder), experiment_name='alone', default_hooks=hooks))
    torch.manual_seed(0)
    runner = Runner.from_cfg(cfg)
    keys = set(runner.train().state_dict())
    try:
        predict(runner)
    except Exception as error:
        traceback.print_exc()
        return Alone(settings, rung, keys, reason_of(error))
    return Alone(settings, rung, keys)


def distilled(one: Alone, work: Work, distill: ModuleType) -> str:
    """A step with ``tools/distill.py``; returns what is compared.

    Args:
        one (Alone): The student; if it predicts alone, it has to predict here, too.
        work (Work): What to do.
        distill (ModuleType): The tool.
    """
    folder = work.folder
    student, teacher, checkpoint = (
        folder / name for name in ('student.py', 'teacher.py', 'teacher.pth')
    )
    hooks = one.settings['custom_hooks'] + [dict(type='PredictAtTheEnd')] * (not one.reason)
    write_config(student, dict(one.settings, custom_hooks=hooks, experiment_name='distilled'))
    for model in teachers_of(one.settings, work, one.rung):
        write_config(teacher, dict(default_scope=work.library, model=model))
        try:
            save_weights(teacher, checkpoint)
            break
        except Exception:  # some widths go with no others
            traceback.print_exc()
    else:
        raise RuntimeError('the teacher cannot be built')
    words = ['distill.py', str(student), str(teacher), str(checkpoint)]
    before, sys.argv = sys.argv, [*words, '--work-dir', str(folder / 'run')]
    try:
        distill.main()
    finally:
        sys.argv = before
    return compared_in((folder / 'run' / 'student_distilled.py').read_text(encoding='utf-8'))


def compared_in(text: str) -> str:
    """What is compared, in the words of the comment above a config that the tool has written.

    Examples:
        >>> compared_in("# Compares levels of the neck: the\\n# distribution.\\n_base_ = []")
        'levels of the neck: the distribution'
    """
    lines = takewhile(lambda line: line.startswith('#'), text.splitlines())
    said = ' '.join(line.removeprefix('#').strip() for line in lines)
    return said.removeprefix('Compares ').rstrip('.')


def teachers_of(settings: dict[str, Any], work: Work, rung: Rung) -> Iterator[dict[str, Any]]:
    """The models that may be the teacher; the first that can be built is."""
    if work.teacher != SIBLING:
        yield shrunken(read_config(work.teacher), work.library, RUNGS[0])
        return
    if rung.width > 1:
        wider = rung._replace(width=rung.width // 2)
        yield shrunken(read_config(work.config), work.library, wider)
    yield settings['model']


def save_weights(config: Path, checkpoint: Path) -> None:
    """Saves random weights of the model of a config."""
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(1)
    model = MODELS.build(cfg.model)
    model.init_weights()
    tame(model)
    save_checkpoint(dict(state_dict=model.state_dict(), meta={}), str(checkpoint))


def loaded(settings: dict[str, Any], checkpoint: Path, keys: set[str]) -> None:
    """Loads a checkpoint into the stock model.

    Args:
        settings (dict[str, Any]): The config of the student.
        checkpoint (Path): The checkpoint of the distilled student.
        keys (set[str]): Those that the student has after training alone. A few models get
            further ones then, which their own constructor does not make.

    Raises:
        RuntimeError: If a key is missing or unexpected.
    """
    weights = state_dict_of(read_checkpoint(checkpoint))
    if missing := sorted(keys - set(weights)):
        raise RuntimeError(f'missing in the checkpoint: {some(missing, 3)}')
    if unexpected := sorted(set(weights) - keys):
        raise RuntimeError(f'unexpected in the checkpoint: {some(unexpected, 3)}')
    init_default_scope(settings['default_scope'])
    model = MODELS.build(Config(settings).model)
    model.load_state_dict(weights, strict=keys == set(model.state_dict()))


def write_config(file: Path, settings: Mapping[str, Any]) -> None:
    """Writes a config as it is, without the time that a formatter takes."""
    lines = [f'{key} = {value!r}\n' for key, value in settings.items()]
    file.write_text(''.join(lines), encoding='utf-8')


@contextmanager
def quick() -> Iterator[None]:
    """Leaves out what costs a runner seconds and no step needs: the environment, formatted code."""
    from mmengine.runner import runner

    environment, text = runner.collect_env, Config.pretty_text
    runner.collect_env = dict
    Config.pretty_text = property(lambda cfg: _plain_text(cfg))
    try:
        yield
    finally:
        runner.collect_env, Config.pretty_text = environment, text


def _plain_text(cfg: Config) -> str:
    return ''.join(f'{key} = {value!r}\n' for key, value in cfg.to_dict().items())


def is_missing(error: Exception) -> bool:
    """Whether a library or an operation is not there, so that shrinking less does not help."""
    chain = error
    while chain is not None:
        if isinstance(chain, ImportError):
            return True
        chain = chain.__cause__ or chain.__context__
    text = str(error)
    return 'for device cpu not found' in text or ('is not in the' in text and 'registry' in text)


def reason_of(error: BaseException) -> str:
    """An error in a line, without what differs from run to run."""
    text = first_line(error) if isinstance(error, Exception) else str(error).split('\n')[0]
    text = without_paths(text).removeprefix('distill.py: error: ')
    return text if len(text) <= LONGEST else f'{text[:LONGEST]}...'
