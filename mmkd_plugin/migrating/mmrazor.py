"""Distillation configs of MMRazor 1.x, read as what they compare."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmengine.config import Config

from mmkd_plugin.cli import UsageError
from mmkd_plugin.migrating.losses import Loss, NotPossible, loss_of
from mmkd_plugin.stack import shipped_config
from mmkd_plugin.words import did_you_mean

ALGORITHMS = ('SingleTeacherDistill', 'FpnTeacherDistill')

#: Their recorders, by what is read of a module.
RECORDERS = {'ModuleOutputs': '', 'ModuleInputs': '@input'}


@dataclass
class Term:
    """A term of ours: one loss on one or several pairs of maps.

    Args:
        losses (list[Loss]): The loss of each pair; they differ in numbers alone.
        student (list[str]): Taps of the student.
        teacher (list[str]): Taps of the teacher.
    """

    losses: list[Loss]
    student: list[str]
    teacher: list[str]


@dataclass
class Distillation:
    """What a config of MMRazor does.

    Args:
        student (str | dict): Path of the student's config, or the config of its model.
        teacher (str | dict): The same of the teacher.
        checkpoint (str, optional): The teacher's weights.
        terms (dict[str, Term]): Terms by their names.
        task (bool): Whether the student's own losses count.
        notes (list[str]): What the user has to know.
    """

    student: str | Mapping[str, Any]
    teacher: str | Mapping[str, Any]
    checkpoint: str | None
    terms: dict[str, Term]
    task: bool = True
    notes: list[str] = field(default_factory=list)


def read_distillation(cfg: Config) -> Distillation:
    """Reads a config.

    Args:
        cfg (Config): A config of MMRazor.

    Returns:
        Distillation: What it does.

    Raises:
        UsageError: If it is no config of a distillation with one teacher.
        NotPossible: If a part of it has no counterpart here.
    """
    model = cfg.model
    kind = str(model.get('type', '')).rpartition('.')[2]
    if kind not in ALGORITHMS:
        raise UsageError(
            f"model.type='{model.get('type')}': expected {' or '.join(ALGORITHMS)} of MMRazor 1.x"
        )
    distiller = model.get('distiller') or {}
    for key in ('distill_deliveries', 'student_deliveries', 'teacher_deliveries'):
        if distiller.get(key):
            raise NotPossible(
                f'model.distiller.{key} replaces results inside the models; here a teacher gives '
                'maps (docs/taps.md), queries or what RoI heads say (docs/distiller.md)'
            )
    notes: list[str] = []
    student = _model_of(model.architecture, 'model.architecture', notes, starts=True)
    found = Distillation(
        student,
        _model_of(model.teacher, 'model.teacher', notes),
        model.get('teacher_ckpt'),
        _terms(distiller),
        bool(model.get('calculate_student_loss', True)),
        notes,
    )
    if not model.get('student_trainable', True):
        notes.append('student_trainable=False has no counterpart: here the student is trained')
    if model.get('teacher_trainable', False):
        notes.append('teacher_trainable=True has no counterpart: here a teacher is frozen')
    if found.checkpoint is None:
        notes.append('the teacher had no teacher_ckpt: write the file of its weights')
    return found


def _model_of(
    config: Mapping[str, Any], key: str, notes: list[str], starts: bool = False
) -> str | Mapping[str, Any]:
    """The path of a model's config, or the config itself."""
    if 'cfg_path' not in config:
        return config
    if starts and config.get('pretrained'):
        notes.append(
            f'{key}.pretrained=True: MMRazor starts the student from its published weights; name '
            'their file as load_from, or leave it out'
        )
    return current_name(config['cfg_path'])


def current_name(path: str) -> str:
    """The name that a shipped config has today: hyphens have taken the place of underscores.

    Args:
        path (str): Such as ``'mmdet::faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py'``.

    Returns:
        str: The name of a file that exists, or the path as it is.
    """
    if '::' not in path:
        return path
    file = shipped_config(path)
    if file.is_file() or not file.parent.is_dir():
        return path
    same = [one for one in sorted(file.parent.glob('*.py')) if _core(one.name) == _core(file.name)]
    return f'{path.rpartition("/")[0]}/{same[0].name}' if same else path


def _core(name: str) -> str:
    return re.sub('[-_]', '', name)


def _terms(distiller: Mapping[str, Any]) -> dict[str, Term]:
    """The terms, those of one loss together."""
    losses = distiller.get('distill_losses') or {}
    if not losses:
        raise NotPossible('model.distiller has no distill_losses, so it compares nothing')
    mappings = distiller.get('loss_forward_mappings') or {}
    found: dict[str, Term] = {}
    for key, config in losses.items():
        sides, connectors = _sides(key, mappings.get(key) or {}, distiller)
        try:
            loss = loss_of(config, connectors)
        except NotPossible as error:
            raise NotPossible(f'model.distiller.distill_losses.{key}: {error}') from error
        term = next((one for one in found.values() if _together(one.losses[0], loss)), None)
        if term is None:
            term = Term([], [], [])
            same = sum(name.rstrip('0123456789') == loss.name for name in found)
            found[loss.name if not same else f'{loss.name}{same + 1}'] = term
        term.losses.append(loss)
        term.student.append(sides['student'])
        term.teacher.append(sides['teacher'])
    return found


def _together(one: Loss, other: Loss) -> bool:
    """Whether two losses are one term, whose weights may differ between the maps."""
    if (one.type, one.connector) != (other.type, other.connector):
        return False
    return one.arguments == other.arguments or one.type in LISTS


#: Losses that take lists for their arguments, a value for each map.
LISTS = ('AttentionGuidedLoss',)


def _sides(
    key: str, mapping: Mapping[str, Any], distiller: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, Mapping[str, Any]]]:
    """The taps of student and teacher that a loss gets, and the connectors behind them."""
    where = f'model.distiller.loss_forward_mappings.{key}'
    sides: dict[str, str] = {}
    connectors: dict[str, Mapping[str, Any]] = {}
    for argument, given in mapping.items():
        if 'recorder' not in given:
            raise NotPossible(f'{where}.{argument} is read from no recorder')
        side = 'student' if given.get('from_student') else 'teacher'
        if side in sides:
            raise NotPossible(f'{where} reads two maps of one model; a loss here gets one of each')
        recorders = distiller.get(f'{side}_recorders') or {}
        if given.recorder not in recorders:
            raise UsageError(
                f"{where}.{argument}: there is no {side}_recorders['{given.recorder}']"
                f'{did_you_mean(given.recorder, recorders)}'
            )
        sides[side] = _tap(recorders[given.recorder], given, f'{side}_recorders.{given.recorder}')
        if given.get('connector'):
            known = distiller.get('connectors') or {}
            if given.connector not in known:
                raise UsageError(
                    f"{where}.{argument}: there is no connectors['{given.connector}']"
                    f'{did_you_mean(given.connector, known)}'
                )
            connectors[side] = known[given.connector]
    if sides.keys() != {'student', 'teacher'}:
        raise NotPossible(
            f'{where}: a loss here compares a map of the student with one of the teacher'
        )
    return sides, connectors


def _tap(recorder: Mapping[str, Any], given: Mapping[str, Any], where: str) -> str:
    """Our name of what a recorder keeps."""
    kind = str(recorder['type']).rpartition('.')[2]
    if kind not in RECORDERS:
        raise NotPossible(
            f'model.distiller.{where}: {kind} keeps what is no input or output of a module '
            '(docs/taps.md says what can be read)'
        )
    index = given.get('data_idx')
    if index is None and given.get('record_idx'):
        index = given['record_idx']
    return f'{recorder["source"]}{"" if index is None else f"[{index}]"}{RECORDERS[kind]}'
