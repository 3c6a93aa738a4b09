"""Valid runs that attacks change: a dict of settings for each kind of run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

from tests.fuzz import models
from tests.runs import config, save_weights
from tests.stock_models import cwd


class _Deleted:
    def __repr__(self) -> str:
        return 'DELETED'


DELETED = _Deleted()


class Renamed(NamedTuple):
    """A key with another name."""

    name: str


def settings(model: dict, data: Path, length: int = 2, **changes: Any) -> dict:
    """The settings of a run, as plain dicts and lists."""
    run = config(model, data, Path('unused'), length, **changes).to_dict()
    run['optim_wrapper']['clip_grad'] = dict(max_norm=100.0)
    del run['work_dir'], run['experiment_name']
    return run


def segmentation(data: Path, weights: Path) -> dict:
    """Two terms, one of them with a connector and a schedule."""
    teacher = models.segmentor(8)
    checkpoint = save_weights(teacher, weights) if not weights.exists() else str(weights)
    distill = dict(
        cwd=dict(tap='decode_head.conv_seg', loss=cwd(tau=4.0, loss_weight=3.0)),
        hint=dict(
            tap='backbone.conv2',
            connector=models.own('ConvConnector', kernel_size=1),
            loss=models.own('HintLoss', loss_weight=1.0),
            schedule=dict(start=0, ramp=1),
        ),
    )
    return settings(
        models.distiller(
            models.segmentor(4),
            dict(config=teacher, checkpoint=checkpoint),
            distill,
            task=dict(loss_weight=1.0),
        ),
        data,
    )


def changed(run: dict, changes: dict[str, Any]) -> dict:
    """A copy of settings with some of them changed, by their dotted paths."""
    run = copy.deepcopy(run)
    for path, value in changes.items():
        *parents, last = path.split('.')
        holder = run
        for key in parents:
            holder = holder[int(key) if isinstance(holder, list) else key]
        last = int(last) if isinstance(holder, list) else last
        if value is DELETED:
            del holder[last]
        elif isinstance(value, Renamed):
            holder[value.name] = holder.pop(last)
        else:
            holder[last] = value
    return run


def written(run: dict, file: Path) -> Path:
    """Writes settings as a config in Python."""
    file.write_text(''.join(f'{key} = {_text(value)}\n' for key, value in run.items()))
    return file


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return '{' + ', '.join(f'{k!r}: {_text(v)}' for k, v in value.items()) + '}'
    if isinstance(value, (list, tuple)):
        inner = ', '.join(map(_text, value))
        return f'[{inner}]' if isinstance(value, list) else f'({inner},)'
    return f'float({str(value)!r})' if isinstance(value, float) else repr(value)
