"""Losses of MMRazor 1.x, and ours that compute the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from mmkd_plugin.words import did_you_mean

Arguments = Mapping[str, Any]

#: Makes ours of the arguments of their loss, and of the connectors before it.
Rule = Callable[[dict[str, Any], Mapping[str, Arguments]], 'Loss']


class Loss(NamedTuple):
    """One of our losses, as a config names it.

    Args:
        name (str): Name of the method, for the term.
        type (str): Name of the class.
        weight (float): Its ``loss_weight``.
        arguments (dict[str, Any]): Its other arguments. An argument that differs between the maps
            of a term may be a list.
        notes (tuple[str, ...]): What the user has to know, such as a factor that depends on the
            maps.
        connector (dict[str, Any], optional): What comes between the student's map and the loss.
    """

    name: str
    type: str
    weight: float = 1.0
    arguments: Mapping[str, Any] = {}
    notes: tuple[str, ...] = ()
    connector: Mapping[str, Any] | None = None


class NotPossible(ValueError):
    """Something has no counterpart here; the message says what, and what to take instead."""


def loss_of(config: Arguments, connectors: Mapping[str, Arguments] = MappingProxyType({})) -> Loss:
    """Finds our loss for one of theirs.

    Args:
        config (dict): The config of their loss.
        connectors (dict[str, dict]): Configs of the connectors between the maps of ``'student'`` or
            ``'teacher'`` and their loss. Defaults to none.

    Returns:
        Loss: Ours.

    Raises:
        NotPossible: If there is none.

    Examples:
        >>> found = loss_of(dict(type='ChannelWiseDivergence', tau=1, loss_weight=5))
        >>> found.type, found.weight, dict(found.arguments)
        ('ChannelWiseLoss', 5, {'tau': 1})
    """
    config = {k: v for k, v in config.items() if k != '_scope_'}
    kind = str(config.pop('type')).rpartition('.')[2]
    if kind not in RULES:
        close = did_you_mean(kind, RULES, cutoff=0.8)
        raise NotPossible(
            f'the loss {kind} has no counterpart here (docs/performance.md has a table){close}'
        )
    unknown = next((key for key in config if key not in ARGUMENTS[kind]), None)
    if unknown is not None:
        raise NotPossible(
            f'{kind} has no argument `{unknown}`'
            f'{did_you_mean(unknown, ARGUMENTS[kind], cutoff=0.5)} '
            f'(known: {", ".join(ARGUMENTS[kind])})'
        )
    loss = RULES[kind](config, connectors)
    if loss.type in STANDARDIZED and _standardizes(connectors):
        loss = loss._replace(arguments={**loss.arguments, **STANDARDIZED[loss.type]})
        connectors = dict(student={**connectors['student'], 'norm_cfg': None, 'bias': False})
    owned = OWNED.get(loss.type, ())
    rest = {side: one for side, one in connectors.items() if _kind(one) not in owned}
    return loss if not rest else loss._replace(connector=_convolution(rest))


def _standardizes(connectors: Mapping[str, Arguments]) -> bool:
    """Whether both maps go through batch norms without anything learnt or remembered."""
    kinds = {side: _kind(one) for side, one in connectors.items()}
    norms = [one.get('norm_cfg') or {} for one in connectors.values()]
    return kinds == dict(student='ConvModuleConnector', teacher='NormConnector') and all(
        norm.get('affine') is False and norm.get('track_running_stats') is False for norm in norms
    )


def _convolution(connectors: Mapping[str, Arguments]) -> dict[str, Any]:
    """Our connector for a convolution behind the student's map."""
    given = connectors.get('student', {})
    if len(connectors) > 1 or not given or _kind(given) != 'ConvModuleConnector':
        found = ', '.join(f'{_kind(one)} of the {side}' for side, one in connectors.items())
        raise NotPossible(f'connectors: {found} (docs/distiller.md lists those that are here)')
    connector: dict[str, Any] = dict(type='mmkd_plugin.ConvConnector')
    if given.get('kernel_size', 1) != 1:
        connector['kernel_size'] = given['kernel_size']
    if given.get('norm_cfg'):
        connector |= dict(bias=False, norm=True)
    elif given.get('bias') is False:
        connector['bias'] = False
    if given.get('act_cfg', dict(type='ReLU')):
        connector['act'] = True
    return connector


def _kind(config: Arguments) -> str:
    return str(config['type']).rpartition('.')[2]


def _plain(name: str, ours: str, **names: str) -> Rule:
    """A rule for a loss with the same weight, whose arguments at most have other names."""

    def rule(config: dict[str, Any], connectors: Mapping[str, Arguments]) -> Loss:
        kept = {names[k]: v for k, v in config.items() if k in names}
        return Loss(name, ours, config.get('loss_weight', 1.0), kept)

    return rule


def _cwd(config: dict[str, Any], connectors: Mapping[str, Arguments]) -> Loss:
    tau = config.get('tau', 1.0)
    return Loss('cwd', 'ChannelWiseLoss', config.get('loss_weight', 1.0), dict(tau=tau))


def _kl(config: dict[str, Any], connectors: Mapping[str, Arguments]) -> Loss:
    if config.get('reduction', 'batchmean') != 'batchmean':
        raise NotPossible(f"KLDivergence with reduction='{config['reduction']}'; ours is a mean")
    note = 'theirs divides by the images alone: multiply loss_weight by H·W of the map'
    tau = config.get('tau', 1.0)
    return Loss('pi', 'PixelWiseLoss', config.get('loss_weight', 1.0), dict(tau=tau), (note,))


def _l2(config: dict[str, Any], connectors: Mapping[str, Arguments]) -> Loss:
    if config.get('dist') or config.get('normalize', True):
        raise NotPossible(
            'L2Loss of normalised features or as a norm; HintLoss is the mean of squares, '
            'CosineHintLoss compares directions'
        )
    notes = (
        ()
        if config.get('div_element')
        else ('theirs divides by the images alone: multiply loss_weight by C·H·W of the map',)
    )
    return Loss('hint', 'HintLoss', config.get('loss_weight', 1.0), notes=notes)


def _l1(config: dict[str, Any], connectors: Mapping[str, Arguments]) -> Loss:
    if config.get('reduction', 'mean') != 'mean':
        raise NotPossible(f"L1Loss with reduction='{config['reduction']}'; ours is a mean")
    note = 'a smooth L1: it differs where student and teacher are closer than 1'
    weight = config.get('loss_weight', 1.0)
    return Loss('l1', 'CosineHintLoss', weight, dict(cos=0, l1=1), (note,))


def _ab(config: dict[str, Any], connectors: Mapping[str, Arguments]) -> Loss:
    weight = config.get('loss_weight', 1.0) * 3 / 1000
    kept = {k: v for k, v in config.items() if k == 'margin'}
    return Loss('ab', 'ActivationBoundaryLoss', weight, kept)


def _overhaul(config: dict[str, Any], connectors: Mapping[str, Arguments]) -> Loss:
    weight = config.get('loss_weight', 1.0) / config.get('mul_factor', 1000)
    return Loss('overhaul', 'OverhaulLoss', weight)


def _rkd(ours: str, weight: float) -> Rule:
    def rule(config: dict[str, Any], connectors: Mapping[str, Arguments]) -> Loss:
        normalize = dict(normalize=config.get('with_l2_norm', True))
        return Loss('rkd', ours, config.get('loss_weight', weight), normalize)

    return rule


def _pkd(config: dict[str, Any], connectors: Mapping[str, Arguments]) -> Loss:
    kept = {} if config.get('resize_stu', True) else dict(resize='teacher')
    return Loss('pkd', 'PearsonLoss', config.get('loss_weight', 1.0), kept)


def _dkd(config: dict[str, Any], connectors: Mapping[str, Arguments]) -> Loss:
    if config.get('reduction', 'batchmean') != 'batchmean':
        raise NotPossible(f"DKDLoss with reduction='{config['reduction']}'; ours is a mean")
    kept = {name: config.get(name, 1.0) for name in ('alpha', 'beta', 'tau')}
    return Loss('dkd', 'DecoupledLoss', config.get('loss_weight', 1.0), kept)


def _mgd(config: dict[str, Any], connectors: Mapping[str, Arguments]) -> Loss:
    of = next(
        (one for one in connectors.values() if _kind(one) in OWNED['MaskedGenerationLoss']), {}
    )
    kept = dict(mask_ratio=of.get('lambda_mgd', 0.65))
    if of.get('mask_on_channel'):
        kept['mask'] = 'channel'
    return Loss('mgd', 'MaskedGenerationLoss', config.get('alpha_mgd', 2e-5), kept)


def _fbkd(config: dict[str, Any], connectors: Mapping[str, Arguments]) -> Loss:
    usual = dict(
        mask_l2_weight=7e-5, channel_weight=4e-3, spatial_weight=4e-3, nonloacl_weight=7e-5
    )
    other = [k for k, v in usual.items() if config.get(k, v) != v]
    if other:
        raise NotPossible(
            f'FBKDLoss with {", ".join(other)} of its own; ours has those of the paper'
        )
    of = next(
        (one for one in connectors.values() if _kind(one) in OWNED['AttentionGuidedLoss']), {}
    )
    kept = dict(reduction=of.get('reduction', 2), pool=2 * of.get('maxpool_stride', 2))
    return Loss('fbkd', 'AttentionGuidedLoss', config.get('loss_weight', 1.0), kept)


#: What of our loss stands for such batch norms before it; PKD standardizes by itself.
STANDARDIZED: dict[str, dict[str, Any]] = {
    'ChannelWiseLoss': dict(standardize=True),
    'PearsonLoss': {},
}

#: Their connectors that are a part of our loss.
OWNED = {
    'MaskedGenerationLoss': ('MGDConnector',),
    'AttentionGuidedLoss': ('FBKDStudentConnector', 'FBKDTeacherConnector'),
    'OverhaulLoss': ('OFDTeacherConnector',),
}

RULES: dict[str, Rule] = {
    'ABLoss': _ab,
    'ATLoss': _plain('at', 'AttentionLoss'),
    'AngleWiseRKD': _rkd('RKDAngleLoss', 50.0),
    'ChannelWiseDivergence': _cwd,
    'DISTLoss': _plain(
        'dist',
        'ClassCorrelationLoss',
        tau='tau',
        inter_loss_weight='inter',
        intra_loss_weight='intra',
    ),
    'DKDLoss': _dkd,
    'DistanceWiseRKD': _rkd('RKDDistanceLoss', 25.0),
    'FBKDLoss': _fbkd,
    'FTLoss': _plain('ft', 'FactorTransferLoss'),
    'KLDivergence': _kl,
    'L1Loss': _l1,
    'L2Loss': _l2,
    'MGDLoss': _mgd,
    'OFDLoss': _overhaul,
    'PKDLoss': _pkd,
}

#: What their losses can be given.
ARGUMENTS: dict[str, tuple[str, ...]] = {
    'ABLoss': ('loss_weight', 'margin'),
    'ATLoss': ('loss_weight',),
    'AngleWiseRKD': ('loss_weight', 'with_l2_norm'),
    'ChannelWiseDivergence': ('tau', 'loss_weight'),
    'DISTLoss': ('inter_loss_weight', 'intra_loss_weight', 'tau', 'loss_weight', 'teacher_detach'),
    'DKDLoss': ('tau', 'alpha', 'beta', 'reduction', 'loss_weight'),
    'DistanceWiseRKD': ('loss_weight', 'with_l2_norm'),
    'FBKDLoss': (
        *('mask_l2_weight', 'channel_weight', 'spatial_weight', 'nonloacl_weight'),
        'loss_weight',
    ),
    'FTLoss': ('loss_weight',),
    'KLDivergence': ('tau', 'reduction', 'loss_weight', 'teacher_detach'),
    'L1Loss': ('loss_weight', 'size_average', 'reduce', 'reduction'),
    'L2Loss': ('loss_weight', 'normalize', 'mult', 'div_element', 'dist'),
    'MGDLoss': ('alpha_mgd',),
    'OFDLoss': ('loss_weight', 'mul_factor'),
    'PKDLoss': ('loss_weight', 'resize_stu'),
}
