"""Work dirs as a training leaves them, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmengine.config import Config

STUDENT = dict(type='EncoderDecoder', backbone=dict(type='ResNet', depth=18))


def distilled(checkpoint: str = 'teacher.pth') -> dict[str, Any]:
    return dict(
        type='mmkd_plugin.Distiller',
        student=dict(STUDENT, init_cfg=None),
        teacher=dict(config='teacher.py', checkpoint=checkpoint),
        distill=dict(cwd=dict(tap='neck', loss=dict(type='mmkd_plugin.ChannelWiseLoss'))),
    )


def row(iteration: int, **values: float) -> dict[str, float]:
    base = {'loss': 10 / iteration, 'time': 0.2, 'data_time': 0.01}
    return base | values | {'iter': iteration, 'step': iteration}


def scored(step: int, score: float) -> dict[str, float]:
    return {'aAcc': 90.0, 'mIoU': score, 'data_time': 0.1, 'time': 0.2, 'step': step}


def session(
    work_dir: Path,
    rows: list[dict[str, float]],
    model: dict[str, Any] | None = None,
    name: str = '20260101_000000',
    log: str = '',
    facts: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Writes one session of a run; returns the work dir."""
    folder = work_dir / name
    (folder / 'vis_data').mkdir(parents=True)
    lines = ''.join(f'{json.dumps(one)}\n' for one in rows)
    (folder / 'vis_data/scalars.json').write_text(lines)
    Config(dict(model=model or STUDENT, **config)).dump(folder / 'vis_data/config.py')
    (folder / f'{name}.log').write_text(log)
    if facts is not None:
        (folder / 'run.json').write_text(json.dumps(facts))
    return work_dir
