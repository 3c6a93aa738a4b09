"""Distillation configs of MMRazor 1.x, read as what they compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config

from mmkd_plugin.building import check_keys
from mmkd_plugin.cli import UsageError
from mmkd_plugin.migrating.distillation import Distillation, Term, add_to
from mmkd_plugin.migrating.losses import NotPossible, loss_of
from mmkd_plugin.migrating.mmyolo import PREFIX, as_mmdet
from mmkd_plugin.migrating.names import current_name
from mmkd_plugin.words import did_you_mean

ALGORITHMS = ('SingleTeacherDistill', 'FpnTeacherDistill')

#: Their recorders, by what is read of a module.
RECORDERS = {'ModuleOutputs': '', 'ModuleInputs': '@input'}

#: What they call the map of a model in a loss.
SIDES = dict(
    preds_S='student',
    preds_T='teacher',
    s_feature='student',
    t_feature='teacher',
    s_input='student',
    t_input='teacher',
    logits_S='student',
    logits_T='teacher',
)

#: Keys of their algorithms and of their distiller.
KEYS = (
    *('type', 'architecture', 'data_preprocessor', 'init_cfg', 'module_inplace', 'distiller'),
    *('teacher', 'teacher_ckpt', 'teacher_trainable', 'teacher_norm_eval', 'student_trainable'),
    *('calculate_student_loss', 'teacher_module_inplace'),
)
DISTILLER = (
    *('type', 'student_recorders', 'teacher_recorders', 'distill_deliveries', 'connectors'),
    *('student_deliveries', 'teacher_deliveries', 'distill_losses', 'loss_forward_mappings'),
    'init_cfg',
)

#: Their hooks that end the distillation, with the key of the epoch.
STOPS = {'StopDistillHook': 'stop_epoch', 'DistillationLossDetachHook': 'detach_epoch'}


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
    if kind == 'SelfDistill':
        raise NotPossible(
            "model.type='SelfDistill' compares maps of one model with each other; here a student "
            "learns from itself through a neck: teacher=dict(type='mmkd_plugin.SelfTeacher', ...), "
            'docs/frskd.md'
        )
    if kind not in ALGORITHMS:
        raise UsageError(
            f"model.type='{model.get('type')}': expected {' or '.join(ALGORITHMS)} of MMRazor 1.x"
        )
    distiller = model.get('distiller') or {}
    check_keys('model', model, KEYS)
    check_keys('model.distiller', distiller, DISTILLER)
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
        stop=_stop(cfg.get('custom_hooks') or []),
    )
    if isinstance(student, str) and student.startswith(PREFIX):
        found = as_mmdet(found)
    if not model.get('student_trainable', True):
        notes.append('student_trainable=False has no counterpart: here the student is trained')
    if model.get('teacher_trainable', False):
        notes.append('teacher_trainable=True has no counterpart: here a teacher is frozen')
    if not model.get('teacher_norm_eval', True):
        notes.append(
            'teacher_norm_eval=False has no counterpart: here the batch norms of a teacher use '
            'their running statistics'
        )
    if found.checkpoint is None:
        notes.append('the teacher had no teacher_ckpt: write the file of its weights')
    return found


def refuse_theirs(cfg: Config, name: str) -> None:
    """Refuses to train a config of MMRazor as it is, and says how it becomes one of ours.

    Args:
        cfg (Config): The config of a run.
        name (str): Its path.

    Raises:
        UsageError: If its model is an algorithm of MMRazor.
    """
    kind = str(cfg.model.get('type')) if isinstance(cfg.get('model'), dict) else ''
    if kind.rpartition('.')[2] in ALGORITHMS and 'distiller' in cfg.model:
        raise UsageError(
            f"model.type='{kind}' is an algorithm of MMRazor; `mmkd from-mmrazor {name} ours.py` "
            'writes this config as one of ours, which can be trained'
        )


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
    path = config['cfg_path']
    return path if path.startswith(PREFIX) else current_name(path)


def _stop(hooks: Sequence[Mapping[str, Any]]) -> int | None:
    """The epoch from which on nothing is distilled."""
    for hook in hooks:
        key = STOPS.get(str(hook.get('type')).rpartition('.')[2])
        if key is not None and hook.get(key) is not None:
            return hook[key]
    return None


def _terms(distiller: Mapping[str, Any]) -> dict[str, Term]:
    """The terms, those of one loss together."""
    losses = distiller.get('distill_losses') or {}
    if not losses:
        raise NotPossible('model.distiller has no distill_losses, so it compares nothing')
    mappings = distiller.get('loss_forward_mappings') or {}
    found: dict[str, Term] = {}
    for key, config in losses.items():
        if key not in mappings:
            raise UsageError(
                f'model.distiller.loss_forward_mappings has no `{key}`, which says what '
                f'distill_losses.{key} compares{did_you_mean(key, mappings)}'
            )
        sides, connectors = _sides(key, mappings[key] or {}, distiller)
        try:
            loss = loss_of(config, connectors)
        except NotPossible as error:
            raise NotPossible(f'model.distiller.distill_losses.{key}: {error}') from error
        add_to(found, loss, sides['student'], sides['teacher'])
    return found


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
    for argument, given in mapping.items():
        side = SIDES.get(argument)
        if side is not None and (side == 'student') != bool(given.get('from_student')):
            raise NotPossible(
                f'{where}.{argument} does not come from the {side}, and ours compares the other '
                f'way round: write from_student={side == "student"}'
            )
    return sides, connectors


def _tap(recorder: Mapping[str, Any], given: Mapping[str, Any], where: str) -> str:
    """Our name of what a recorder keeps."""
    kind = str(recorder['type']).rpartition('.')[2]
    if kind not in RECORDERS:
        raise NotPossible(
            f'model.distiller.{where}: {kind} keeps what is no input or output of a module '
            f'(docs/taps.md says what can be read){did_you_mean(kind, RECORDERS, cutoff=0.9)}'
        )
    index = given.get('data_idx')
    if index is None and given.get('record_idx'):
        index = given['record_idx']
    return f'{recorder["source"]}{"" if index is None else f"[{index}]"}{RECORDERS[kind]}'
