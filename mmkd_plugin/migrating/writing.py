"""The config that is written: short, on the student's own config, with comments."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmkd_plugin.cli import UsageError, read_config
from mmkd_plugin.migrating.distillation import Distillation, Term
from mmkd_plugin.migrating.losses import Loss

#: Keys of a run. Others in a config are names that it uses for itself.
RUN = (
    'auto_scale_lr',
    'custom_hooks',
    'default_hooks',
    'load_from',
    'log_processor',
    'optim_wrapper',
    'param_scheduler',
    'randomness',
    'resume',
    'test_cfg',
    'test_dataloader',
    'test_evaluator',
    'train_cfg',
    'train_dataloader',
    'val_cfg',
    'val_dataloader',
    'val_evaluator',
    'vis_backends',
    'visualizer',
)

#: Loops and hooks of MMRazor that need its models; the stock ones, or a schedule, do the same here.
THEIRS = (
    'DistillationLossDetachHook',
    'RazorVisualizationHook',
    'SelfDistillValLoop',
    'SingleTeacherDistillValLoop',
    'StopDistillHook',
)


def config_text(
    cfg: Config, found: Distillation, source: str, bases: Sequence[str] = (), folder: Path = Path()
) -> str:
    """Writes a config of ours.

    Args:
        cfg (Config): The whole config that was read.
        found (Distillation): What it does.
        source (str): Its name, for the first line.
        bases (Sequence[str]): The ``_base_`` of its file. If the student is no path, the first of
            them that has a model of its type is what the new config builds on.
        folder (Path): Where the new config will be, since its base is found from there. Defaults to
            the folder that the run is started in.

    Returns:
        str: The text of a Python config file.

    Raises:
        UsageError: If the student's config is not there.
    """
    base, changes = _student(found.student, bases)
    stock = read_config(base)
    if '::' not in base and not Path(base).is_absolute():
        base = Path(os.path.relpath(base, folder)).as_posix()
    lines = [f'# From {source}.', *_wrapped(found.notes), f'_base_ = [{base!r}]', '']
    lines += [*_assignments('student', changes)]
    teacher = found.teacher
    if not isinstance(teacher, str):
        lines += [f'teacher = {_value(teacher)}', '']
        teacher = None
    lines += [
        'model = dict(',
        '    _delete_=True,',
        "    type='mmkd_plugin.Distiller',",
        f'    student={"student" if changes else "{{_base_.model}}"},',
        f'    teacher=dict(config={"teacher" if teacher is None else repr(teacher)},',
        f'                 checkpoint={found.checkpoint!r}),',
    ]
    if not found.task:
        lines.append('    task=dict(loss_weight=0),')
    if found.start:
        lines.append(f'    init_student_from_teacher={found.start!r},')
    lines.append('    distill=dict(')
    for name, term in found.terms.items():
        lines += _term(name, term, found.stop)
    lines.append('    ))')
    for key in RUN:
        value = _without(_plain(cfg.get(key)))
        if value not in (None, _plain(stock.get(key))) and not _is_theirs(cfg[key]):
            lines.append(f'{key} = {_value(_merged(_plain(stock.get(key)), value))}')
    return '\n'.join(lines) + '\n'


def _wrapped(notes: Sequence[str]) -> Iterator[str]:
    for note in notes:
        yield from textwrap.wrap(
            note, 98, initial_indent='# - ', subsequent_indent='#   ', break_long_words=False
        )


def _student(student: str | Mapping[str, Any], bases: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The config to build on, and what of its model is another value."""
    if isinstance(student, str):
        return student, {}
    for base in bases:
        model = read_config(base).get('model') if '::' in base else None
        if model is not None and model.get('type') == student.get('type'):
            return base, dict(_changes(_plain(model), _plain(student), ''))
    raise UsageError(
        'model.architecture is a model written out: name a config of the student instead, such as '
        "architecture=dict(cfg_path='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')"
    )


def _changes(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The values that differ, by their dotted path."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() <= new.keys():
        for key, value in new.items():
            if key not in old:
                yield f'{path}.{key}', value
            elif old[key] != value:
                yield from _changes(old[key], value, f'{path}.{key}')
    elif old != new:
        yield path, new


def _merged(old: Any, new: Any) -> Any:
    """What makes one value of another when configs are merged: of a dict what differs."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    if old.get('type') != new.get('type') or not old.keys() <= new.keys():
        return dict(_delete_=True, **new)
    return {k: _merged(old.get(k), v) for k, v in new.items() if k not in old or old[k] != v}


def _assignments(name: str, changes: Mapping[str, Any]) -> Iterator[str]:
    if changes:
        yield f'{name} = _base_.model'
        for path, value in changes.items():
            yield f'{name}{path} = {_value(value)}'
        yield ''


def _term(name: str, term: Term, stop: int | None) -> Iterator[str]:
    for note in dict.fromkeys(note for loss in term.losses for note in loss.notes):
        yield from textwrap.wrap(
            note, 90, initial_indent=' ' * 8 + '# ', subsequent_indent=' ' * 8 + '# '
        )
    yield f'        {name}=dict('
    if term.student == term.teacher:
        yield f'            tap={_taps(term.student)},'
    else:
        yield f'            student_tap={_taps(term.student)},'
        yield f'            teacher_tap={_taps(term.teacher)},'
    if term.losses[0].connector is not None:
        yield f'            connector={_call(term.losses[0].connector)},'
    end = ')' if stop is None else ''
    yield from textwrap.wrap(
        f'loss={_call(_loss(term.losses))}{end},',
        100,
        initial_indent=' ' * 12,
        subsequent_indent=' ' * 22,
        break_long_words=False,
        break_on_hyphens=False,
    )
    if stop is not None:
        yield f'            schedule=dict(stop={stop}, by_epoch=True)),'


def _taps(taps: Sequence[str]) -> str:
    """One tap, or a list of them; ``a.0.b``, ``a.1.b`` and so on are counted."""
    if len(taps) == 1:
        return repr(taps[0])
    for number in re.finditer(r'\d+', taps[0]):
        before, after = taps[0][: number.start()], taps[0][number.end() :]
        if list(taps) == [f'{before}{i}{after}' for i in range(len(taps))]:
            return f"[f'{before}{{i}}{after}' for i in range({len(taps)})]"
    return repr(list(taps))


def _loss(losses: Sequence[Loss]) -> dict[str, Any]:
    """The config of the loss of a term; what differs between the maps is a list."""
    first = losses[0]
    given = dict(type=f'mmkd_plugin.{first.type}')
    columns = {key: [loss.arguments[key] for loss in losses] for key in first.arguments}
    columns['loss_weight'] = [loss.weight for loss in losses]
    for key, values in columns.items():
        given[key] = values[0] if len(set(map(str, values))) == 1 else values
    return given


def _is_theirs(value: Any) -> bool:
    return isinstance(value, dict) and str(value.get('type', '')).rpartition('.')[2] in THEIRS


def _without(value: Any) -> Any:
    """A value without the parts of MMRazor."""
    if isinstance(value, dict):
        return {k: _without(v) for k, v in value.items() if not _is_theirs(v)}
    if isinstance(value, (list, tuple)):
        return type(value)(_without(v) for v in value if not _is_theirs(v))
    return value


def _plain(value: Any) -> Any:
    """A value as plain dicts and lists; mmengine notes where a part of a base comes from."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items() if key != '_scope_'}
    if isinstance(value, (list, tuple)):  # some transforms know a size by its being a tuple
        return type(value)(map(_plain, value))
    return value


def _value(value: Any) -> str:
    if isinstance(value, dict) and all(isinstance(k, str) and k.isidentifier() for k in value):
        return _call(value)
    if isinstance(value, list):
        return f'[{", ".join(map(_value, value))}]'
    if isinstance(value, tuple):
        return f'({"".join(f"{_value(one)}, " for one in value)})'
    return repr(value)


def _call(values: Mapping[str, Any]) -> str:
    return f'dict({", ".join(f"{key}={_value(value)}" for key, value in values.items())})'
