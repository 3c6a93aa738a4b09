"""The table of MMRazor's losses: complete, and measured where it says so."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from benchmarks import cases, losses, mmrazor, pages, versus
from mmkd_plugin import losses as own


def folder() -> Path:
    try:
        return mmrazor.folder()
    except mmrazor.NotInstalled as error:
        pytest.skip(str(error))


def test_each_loss_of_mmrazor_has_a_row():
    tree = ast.parse((folder() / '__init__.py').read_text(encoding='utf-8'))
    imported = [
        a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names
    ]
    assert {row.theirs for row in versus.ROWS} == set(imported)


def test_each_connector_and_way_to_distill_stands_on_the_page():
    page = pages.DOCS.joinpath('performance.md').read_text(encoding='utf-8')
    models, names = folder().parent, []
    for place in ('architectures/connectors', 'algorithms/distill', 'distillers'):
        for file in models.joinpath(place).rglob('*.py'):
            kinds = ast.walk(ast.parse(file.read_text(encoding='utf-8')))
            kinds = (node for node in kinds if isinstance(node, ast.ClassDef))
            names += [k.name for k in kinds if 'register_module' in text_of(k.decorator_list)]
    assert len(names) > 20 and not [name for name in names if f'`{name}`' not in page]


def text_of(decorators: list[ast.expr]) -> str:
    return ' '.join(map(ast.unparse, decorators))


def test_what_is_called_the_same_is_compared_by_a_test():
    compared = {case.loss for case in cases.cases(quick=True) if case.razor}
    assert {row.group for row in versus.ROWS if row.group} == compared


@pytest.mark.parametrize(
    ('ours', 'theirs', 'options'),
    [
        (own.RKDDistanceLoss(normalize=True), 'relational_kd.DistanceWiseRKD', dict(loss_weight=1)),
        (own.RKDAngleLoss(normalize=True), 'relational_kd.AngleWiseRKD', dict(loss_weight=1)),
        (own.ClassCorrelationLoss(4, 2, 3), 'dist_loss.DISTLoss', dict(tau=4, inter_loss_weight=2)),
        (own.PearsonLoss('teacher'), 'pkd_loss.PKDLoss', dict(resize_stu=False)),
    ],
)
def test_options_that_both_have(ours, theirs, options):
    folder()
    if theirs.startswith('dist'):
        options = dict(options, intra_loss_weight=3)
    shapes = ((4, 5, 6, 6), (4, 5, 3, 3)) if theirs.startswith('pkd') else ((8, 5),) * 2
    torch.manual_seed(0)
    student, teacher = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    inputs = cases.Inputs(student.requires_grad_(), teacher)
    forms = ours, mmrazor.loss(theirs, **options)
    results = [losses.value_and_gradients(form, inputs) for form in forms]
    assert losses.difference(*results) < 1e-6
