"""Configs of mmdetection-distiller, FGD and MGD: a ``distiller`` around models of mmcv 1.x."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmkd_plugin.checkpoint import nearest_names
from mmkd_plugin.cli import UsageError, read_config
from mmkd_plugin.migrating.distillation import Distillation, Term, add_to, sort_taps
from mmkd_plugin.migrating.losses import Loss, NotPossible
from mmkd_plugin.migrating.names import current_name
from mmkd_plugin.stack import shipped_config
from mmkd_plugin.words import first_line

#: Their distillers, and the library of the models.
LIBRARIES = {'DetectionDistiller': 'mmdet', 'SegmentationDistiller': 'mmseg'}

#: Settings of mmcv 1.x that have no place in the new config.
LEFT = ('checkpoint_config', 'evaluation', 'fp16', 'load_from', 'log_config', 'resume_from')

#: What is no head or neck in a model's config.
NO_PART = ('backbone', 'data_preprocessor', 'test_cfg', 'train_cfg', 'type')


def read_own_values(file: Path) -> dict[str, Any] | None:
    """The values that a config file of this kind sets itself.

    Its bases are configs of mmcv 1.x, in whose place the student's config of today comes.

    Args:
        file (Path): The file.

    Returns:
        dict[str, Any] | None: The values by their names; None if there is no ``student_cfg``.

    Raises:
        UsageError: If it needs its bases, or is no Python.
    """
    try:
        tree = ast.parse(file.read_text(encoding='utf-8'))
        names = {ast.unparse(one.targets[0]) for one in tree.body if isinstance(one, ast.Assign)}
        if not {'distiller', 'student_cfg', 'teacher_cfg'} <= names:
            return None
        tree.body = [one for one in tree.body if not ast.unparse(one).startswith('_base_')]
        return dict(Config.fromstring(ast.unparse(tree), '.py'))
    except (AttributeError, NameError, SyntaxError, TypeError, ValueError) as error:
        raise UsageError(f'{file} cannot be read by itself: {first_line(error)}') from error


def read_distiller(
    given: Mapping[str, Any], student: str | None = None, teacher: str | None = None
) -> tuple[Distillation, Config]:
    """Reads a config.

    Args:
        given (Mapping[str, Any]): What :func:`read_own_values` found.
        student (str, optional): The config of the student; None takes today's name of theirs.
        teacher (str, optional): The same of the teacher.

    Returns:
        tuple[Distillation, Config]: What it does, and the config of the run.

    Raises:
        UsageError: If it names no shipped config.
        NotPossible: If a part of it has no counterpart here.
    """
    distiller = given['distiller']
    library = LIBRARIES.get(distiller.get('type'))
    if library is None:
        raise UsageError(
            f"distiller.type='{distiller.get('type')}': expected {' or '.join(LIBRARIES)}"
        )
    student = student or _shipped(given['student_cfg'], library, '--student')
    teacher = teacher or _shipped(given['teacher_cfg'], library, '--teacher')
    run = read_config(student)
    start = _parts(run, read_config(teacher)) if distiller.get('init_student') else []
    found = Distillation(
        student,
        teacher,
        distiller.get('teacher_pretrained'),
        _terms(distiller, library),
        notes=[f'{key} is a setting of mmcv 1.x; it is left out' for key in LEFT if given.get(key)],
        start=start,
    )
    _change(run, given)
    return found, run


def _shipped(path: str, library: str, option: str) -> str:
    """Today's name of a config of mmdetection 2 or mmsegmentation 0."""
    name = current_name(f'{library}::{path.partition("configs/")[2] or path}')
    file = shipped_config(name)
    if not file.is_file():
        raise UsageError(
            f'{library} has no config {path} under an old or a new name; name one with {option}'
            f'{nearest_names(file, [".py"])}'
        )
    return name


def _parts(student: Config, teacher: Config) -> list[str]:
    """Necks and heads that both models have."""
    return [
        key
        for key, part in student.model.items()
        if key not in NO_PART and isinstance(part, (dict, list)) and teacher.model.get(key)
    ]


def _terms(distiller: Mapping[str, Any], library: str) -> dict[str, Term]:
    found: dict[str, Term] = {}
    for place in distiller.get('distill_cfg') or []:
        # Their segmentor compares the last map of the backbone, and names no module.
        usual = 'backbone[-1]' if library == 'mmseg' else None
        taps = [place.get(f'{side}_module', usual) for side in ('student', 'teacher')]
        if None in taps:
            raise NotPossible('distiller.distill_cfg: a place has no student_module')
        for method in place.get('methods') or []:
            add_to(found, _loss(method), *taps)
    if distiller.get('use_logit', library == 'mmseg') and library == 'mmseg':
        logits = Loss('logits', 'ChannelWiseLoss', 3, dict(tau=4))
        add_to(found, logits, 'decode_head.conv_seg', 'decode_head.conv_seg')
    if not found:
        raise NotPossible('distiller.distill_cfg has no methods, so it compares nothing')
    sort_taps(found)
    return found


def _loss(method: Mapping[str, Any]) -> Loss:
    """Our loss for one of theirs, which have the same name in FGD and MGD."""
    keys, kind = {*method}, str(method['type'])
    if 'alpha_fgd' in keys or kind == 'FGDLoss':
        names = dict(temp='temperature', alpha_fgd='alpha', beta_fgd='beta', lambda_fgd='lam')
        values = {ours: method[name] for name, ours in names.items() if name in method}
        return Loss(
            'fgd', 'FocalGlobalLoss', arguments={**values, 'gamma': method.get('gamma_fgd', 1e-3)}
        )
    if 'alpha_mgd' in keys or kind == 'MGDLoss':
        kept = {'mask_ratio': method['lambda_mgd']} if 'lambda_mgd' in keys else {}
        return Loss('mgd', 'MaskedGenerationLoss', method.get('alpha_mgd', 2e-5), kept)
    if kind == 'ChannelWiseDivergence':
        note = "theirs logs the cross entropy, which is larger by the teacher's own entropy"
        tau = method.get('tau', 1.0)
        return Loss('cwd', 'ChannelWiseLoss', method.get('weight', 1.0), dict(tau=tau), (note,))
    raise NotPossible(
        f'distiller.distill_cfg: the loss {kind} has no counterpart here (docs/losses.md lists '
        'what there is)'
    )


def _change(run: Config, given: Mapping[str, Any]) -> None:
    """Carries the settings of mmcv 1.x over to the config of the run, in place."""
    if given.get('optimizer'):
        run.optim_wrapper.optimizer = given['optimizer']
    clip = (given.get('optimizer_config') or {}).get('grad_clip')
    if clip:
        run.optim_wrapper.clip_grad = clip
    data = given.get('data') or {}
    for theirs, ours in dict(samples_per_gpu='batch_size', workers_per_gpu='num_workers').items():
        if theirs in data:
            run.train_dataloader[ours] = data[theirs]
    epochs = (given.get('runner') or {}).get('max_epochs', given.get('total_epochs'))
    if epochs is not None and 'max_epochs' in run.train_cfg:
        run.train_cfg.max_epochs = epochs
    _change_milestones(run, (given.get('lr_config') or {}).get('step'), epochs)


def _change_milestones(run: Config, steps: Sequence[int] | None, epochs: int | None) -> None:
    for scheduler in run.param_scheduler:
        if scheduler.get('milestones') and steps:
            scheduler.milestones = list(steps)
            if epochs is not None and 'end' in scheduler:
                scheduler.end = epochs
