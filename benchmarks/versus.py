"""MMRazor 1.0's losses one by one: what is the same here, with which options, and how fast."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.losses import EAGER, RAZOR, TEXTBOOK
from benchmarks.report import Grid, Report, spread, times

#: Two threads and wall time; one thread and its CPU time.
RESULTS = Path(__file__).parent / 'results'
FILES = (RESULTS / 'losses-cpu.json', RESULTS / 'one_thread' / 'losses-cpu.json')


class Row(NamedTuple):
    """One of their losses: the group of its case in the benchmark, and what to write here for it.

    ``note`` says with which options both are the same or, if there is no group, why it is left out.
    """

    theirs: str
    group: str | None
    note: str


ROWS = (
    Row('ChannelWiseDivergence', 'ChannelWiseLoss', 'the same `tau`'),
    Row('KLDivergence', 'PixelWiseLoss', 'maps; theirs divides by N alone: their weight × H·W'),
    Row('KLDivergence', 'SoftTargetLoss', 'logits of images; the same `tau`'),
    Row(
        'L2Loss',
        'HintLoss',
        'theirs with `normalize=False, div_element=True`; `FactorTransferLoss(p=2)` is that of '
        'normalised features, as a mean',
    ),
    Row('ATLoss', 'AttentionLoss', 'the defaults'),
    Row('ABLoss', 'ActivationBoundaryLoss', 'their weight × 3/1000; the same `margin`'),
    Row('OFDLoss', 'OverhaulLoss', 'their weight / 1000 (`mul_factor`), with their connector'),
    Row('FTLoss', 'FactorTransferLoss', 'the defaults'),
    Row('DistanceWiseRKD', 'RKDDistanceLoss', '`normalize=True` is `with_l2_norm=True`'),
    Row('AngleWiseRKD', 'RKDAngleLoss', '`normalize=True` is `with_l2_norm=True`'),
    Row('PKDLoss', 'PearsonLoss', '`resize` is `resize_stu`'),
    Row('DISTLoss', 'ClassCorrelationLoss', '`inter`, `intra`, `tau`; maps as rows of positions'),
    Row('DKDLoss', 'DecoupledLoss', 'the same `alpha`, `beta`, `tau`; theirs takes (N, C) alone'),
    Row(
        'MGDLoss', 'MaskedGenerationLoss', 'with the same masks; network and masks are of the loss'
    ),
    Row(
        'FBKDLoss',
        'AttentionGuidedLoss',
        'its layers are connectors, with half the `pool`',
    ),
    Row('L1Loss', None, '`HintLoss`, or `CosineHintLoss(cos=0, l1=1)`, which is smooth at 0'),
    Row(
        'CrossEntropyLoss',
        None,
        'the class that the teacher predicts, as a label; `SoftTargetLoss` takes all of them',
    ),
    Row('KDSoftCELoss', None, '`SoftTargetLoss` has the same gradient'),
    Row('WSLD', None, 'for classifiers'),
    Row('CRDLoss', None, 'for classifiers: a memory of 50,000 images by their number'),
    Row('ActivationLoss', None, 'distillation without data (DAFL): for classifiers'),
    Row('OnehotLikeLoss', None, 'DAFL, as above'),
    Row('InformationEntropyLoss', None, 'DAFL, as above'),
)


def table(reports: Sequence[Report]) -> Grid:
    """Their losses, ours, and the ratio of the times, from the least to the greatest of the maps.

    Args:
        reports (Sequence[Report]): Of ``losses``.
    """
    rows = []
    for one in ROWS:
        found = [
            ratio.median
            for report in reports
            for rounds in report.rounds
            if one.group == rounds.group and (ratio := rounds.ratio(RAZOR, EAGER))
        ]
        ends = dict.fromkeys(times(value) for value in (min(found), max(found))) if found else ()
        ours = f'[`{one.group}`](losses.md#{one.group.lower()})' if one.group else 'left out'
        rows.append([f'`{one.theirs}`', ours, one.note, ' to '.join(ends)])
    return Grid('Against MMRazor 1.0', ['MMRazor', 'ours', 'the same with', 'faster'], rows, 3)


def ratios(report: Report) -> Grid:
    """How many times as fast ours is as the textbook's form and as MMRazor's, case by case."""
    rows = [
        [f'`{name}`{variant and ", "}{variant}', one.case, *(spread(x) for x in found)]
        for one in report.rounds
        for name, _, variant in (one.group.partition(' '),)
        for found in ([one.ratio(slow, EAGER) for slow in (TEXTBOOK, RAZOR)],)
    ]
    return Grid('Ratios', ['loss', 'maps', TEXTBOOK, RAZOR], rows, 2)
