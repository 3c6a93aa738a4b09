"""A loss of MMRazor and what it becomes have one value, computed by the files of both."""

from __future__ import annotations

import ast
import math
from typing import Any

import pytest
import torch

from benchmarks import mmrazor
from mmkd_plugin import losses as own
from mmkd_plugin.migrating import NotPossible
from mmkd_plugin.migrating.losses import ARGUMENTS, RULES, loss_of

#: The file of each loss with the config to try, and the shape of the maps.
MAPS = (2, 6, 4, 4)
SAME = [
    ('ab_loss', dict(type='ABLoss', loss_weight=2.0, margin=0.5), MAPS),
    ('at_loss', dict(type='ATLoss', loss_weight=3.0), MAPS),
    ('cwd', dict(type='ChannelWiseDivergence', tau=2, loss_weight=5), MAPS),
    ('cwd', dict(type='ChannelWiseDivergence'), MAPS),
    ('decoupled_kd', dict(type='DKDLoss', tau=2.0, beta=4.0, loss_weight=0.5), (5, 6)),
    ('dist_loss', dict(type='DISTLoss', tau=2, inter_loss_weight=3.0, loss_weight=2), (5, 6)),
    ('factor_transfer_loss', dict(type='FTLoss', loss_weight=4.0), MAPS),
    ('l1_loss', dict(type='L1Loss', loss_weight=2.0), MAPS),
    ('l2_loss', dict(type='L2Loss', normalize=False, div_element=True, loss_weight=2), MAPS),
    ('pkd_loss', dict(type='PKDLoss', loss_weight=6), MAPS),
    ('relational_kd', dict(type='AngleWiseRKD'), (5, 6)),
    ('relational_kd', dict(type='DistanceWiseRKD', with_l2_norm=False), (5, 6)),
]


def pair(shape: tuple[int, ...], far: bool) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(shape, generator=generator).double() for _ in range(2))
    return [student + (9 if far else 0), teacher]


def ours(config: dict[str, Any]) -> torch.nn.Module:
    found = loss_of(config)
    return getattr(own, found.type)(loss_weight=found.weight, **found.arguments)


@pytest.mark.parametrize(('file', 'config', 'shape'), SAME, ids=lambda x: str(x)[:40])
def test_the_value_stays(file: str, config: dict[str, Any], shape: tuple[int, ...]) -> None:
    try:
        theirs = mmrazor.loss(
            f'{file}.{config["type"]}', **{k: v for k, v in config.items() if k != 'type'}
        )
    except mmrazor.NotInstalled as error:
        pytest.skip(str(error))
    maps = pair(shape, far=config['type'] == 'L1Loss')
    extra = [torch.arange(shape[0]) % shape[1]] if config['type'] == 'DKDLoss' else []
    expected = theirs(*maps, *extra)
    value = ours(config)(*maps, *extra)
    offset = 0.5 * config['loss_weight'] if config['type'] == 'L1Loss' else 0  # a smooth L1
    assert math.isclose(float(value), float(expected) - offset, rel_tol=1e-6)


def test_a_weight_that_depends_on_the_map_is_told():
    found = loss_of(dict(type='KLDivergence', tau=3, loss_weight=2))
    assert (found.type, found.weight, found.arguments) == ('PixelWiseLoss', 2, dict(tau=3))
    assert 'multiply loss_weight by H·W' in found.notes[0]
    student, teacher = pair(MAPS, far=False)
    log, target = (student / 3).log_softmax(1), (teacher / 3).softmax(1)
    theirs = 2 * 9 * torch.nn.functional.kl_div(log, target, reduction='batchmean')
    value = own.PixelWiseLoss(tau=3, loss_weight=2 * 16)(student, teacher)
    assert math.isclose(float(value), float(theirs), rel_tol=1e-6)


def test_connectors():
    convolution = dict(type='ConvModuleConnector', in_channel=8, out_channel=16)
    cwd, pkd = dict(type='ChannelWiseDivergence'), dict(type='PKDLoss')
    found = loss_of(cwd, dict(student=dict(convolution, norm_cfg=dict(type='BN'))))
    assert found.connector == dict(
        type='mmkd_plugin.ConvConnector', bias=False, norm=True, act=True
    )
    plain = loss_of(pkd, dict(student=dict(convolution, act_cfg=None, kernel_size=3)))
    assert plain.connector == dict(type='mmkd_plugin.ConvConnector', kernel_size=3)
    mask = dict(type='MGDConnector', lambda_mgd=0.5, mask_on_channel=True)
    mgd = loss_of(dict(type='MGDLoss', alpha_mgd=1e-5), dict(student=mask))
    assert mgd.arguments == dict(mask_ratio=0.5, mask='channel') and mgd.weight == 1e-5
    block = dict(reduction=4, maxpool_stride=8)
    sides = {
        side: dict(type=f'FBKD{side.title()}Connector', **block) for side in ('student', 'teacher')
    }
    fbkd = loss_of(dict(type='FBKDLoss'), sides)
    assert fbkd.arguments == dict(reduction=4, pool=16) and fbkd.connector is None


@pytest.mark.parametrize(
    ('config', 'connectors', 'told'),
    [
        (dict(type='CRDLoss'), {}, 'the loss CRDLoss has no counterpart'),
        (dict(type='L2Loss'), {}, 'L2Loss of normalised features'),
        (dict(type='KLDivergence', reduction='sum'), {}, "reduction='sum'"),
        (dict(type='FBKDLoss', spatial_weight=1), {}, 'spatial_weight of its own'),
        (
            dict(type='PKDLoss'),
            dict(student=dict(type='NormConnector')),
            'connectors: NormConnector of the student',
        ),
        (
            dict(type='PKDLoss'),
            dict(teacher=dict(type='ConvModuleConnector')),
            'connectors: ConvModuleConnector of the teacher',
        ),
    ],
)
def test_what_has_no_counterpart(config: dict, connectors: dict, told: str) -> None:
    with pytest.raises(NotPossible, match=told):
        loss_of(config, connectors)


def test_each_rule_is_tried():
    tried = {config['type'] for _, config, _ in SAME}
    assert set(RULES) - tried == {'FBKDLoss', 'KLDivergence', 'MGDLoss', 'OFDLoss'}


def test_the_arguments_that_are_known_are_those_of_their_constructors():
    try:
        files = sorted(mmrazor.folder().glob('*.py'))
    except mmrazor.NotInstalled as error:
        pytest.skip(str(error))
    theirs = {}
    for node in (one for file in files for one in ast.parse(file.read_text()).body):
        for method in getattr(node, 'body', ()) if isinstance(node, ast.ClassDef) else ():
            if isinstance(method, ast.FunctionDef) and method.name == '__init__':
                theirs[node.name] = tuple(one.arg for one in method.args.args[1:])
    assert ARGUMENTS.keys() == RULES.keys()
    for kind, known in ARGUMENTS.items():
        assert known == theirs[kind], kind
