"""RTMDet of MMYOLO, as that of mmdetection.

MMYOLO 0.6 refuses the mmcv that mmdetection 3.3 needs. Its distillation configs are of MMRazor, and
their models exist in mmdetection too, where some modules have other names.
"""

from __future__ import annotations

import re
from dataclasses import replace

from mmkd_plugin.migrating.distillation import Distillation, Term
from mmkd_plugin.migrating.losses import NotPossible
from mmkd_plugin.migrating.names import weights_of

PREFIX = 'mmyolo::'

#: The detectors that both have.
RTMDET = re.compile(
    r'mmyolo::rtmdet/(rtmdet_(?:tiny|s|m|l|x))_syncbn_(?:fast_)?8xb32-300e_coco\.py'
)

#: The beginnings of modules, theirs and mmdetection's.
MODULES = {'neck.out_layers.': 'neck.out_convs.', 'backbone.': 'backbone.'}


def as_mmdet(found: Distillation) -> Distillation:
    """Puts mmdetection's models in the place of MMYOLO's.

    Args:
        found (Distillation): What a config of MMYOLO does.

    Returns:
        Distillation: The same with models, weights and taps of mmdetection.

    Raises:
        NotPossible: If a model or a tap has no counterpart there.
    """
    teacher = _config(found.teacher)
    note = (
        "MMYOLO's RTMDet is that of mmdetection here, which both stacks have: its data and run, "
        'and the published weights of its teacher'
    )
    return replace(
        found,
        student=_config(found.student),
        teacher=teacher,
        checkpoint=weights_of(teacher),
        terms={
            name: Term(term.losses, [*map(_tap, term.student)], [*map(_tap, term.teacher)])
            for name, term in found.terms.items()
        },
        notes=[*found.notes, note],
    )


def _config(theirs: object) -> str:
    match = RTMDET.fullmatch(str(theirs))
    if match is None:
        raise NotPossible(
            f'{theirs} is no RTMDet of mmdetection, and MMYOLO 0.6 refuses the mmcv of both stacks'
        )
    return f'mmdet::rtmdet/{match[1]}_8xb32-300e_coco.py'


def _tap(theirs: str) -> str:
    for old, new in MODULES.items():
        if theirs.startswith(old):
            return new + theirs.removeprefix(old)
    raise NotPossible(
        f"{theirs} of MMYOLO's RTMDet: mmdetection names its modules differently (docs/taps.md)"
    )
