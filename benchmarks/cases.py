"""What is measured of each loss: shapes of the papers, and other forms of the same formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from benchmarks import competitors, mmrazor
from mmkd_plugin import losses as own
from mmkd_plugin.losses.masked_generation import kept
from mmkd_plugin.losses.numerics.assigned import Assigned, rows
from mmkd_plugin.losses.numerics.compiling import formulas_as_written
from mmkd_plugin.losses.numerics.maps import sum_over_maps
from mmkd_plugin.losses.numerics.own_modules import run
from mmkd_plugin.registry import MODELS

Shape = tuple[int, ...]
#: Takes the student's and the teacher's maps, and what else the loss needs; gives a scalar.
Loss = Callable[..., Tensor]

#: By name: the papers' shapes, (N, C, H, W) or (N, D), and smaller ones for ``--quick``.
SHAPES: dict[str, list[Shape]] = {
    'logits': [(8, 19, 64, 128)],
    'logits at image size': [(2, 19, 512, 1024)],
    'features': [(8, 512, 64, 128)],
    'one image': [(1, 128, 64, 128)],
    'level': [(2, 256, 50, 84)],
    'pyramid': [(2, 256, h, w) for h, w in ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11))],
    'head': [
        (2, channels, h, w)
        for channels in (80, 68)
        for h, w in ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11))
    ],
    'two stages': [(8, 128, 64, 128), (8, 256, 64, 128)],
    'embeddings': [(128, 512)],
    'classifier': [(256, 1000)],
    'cifar': [(128, 64, 8, 8)],
    'tokens': [(2, 512, 64, 128)],
    'queries': [(1, 2, 600, 80), (1, 2, 600, 4)],
    'masks': [(1, 2, 100, 81), (1, 2, 100, 128, 128)],
    'explanations': [(32, 1, 512, 1024)],
}
QUICK: dict[str, list[Shape]] = {
    'logits': [(2, 5, 8, 16)],
    'logits at image size': [(1, 5, 32, 64)],
    'features': [(3, 16, 8, 16)],
    'one image': [(1, 8, 8, 16)],
    'level': [(1, 8, 12, 16)],
    'pyramid': [(1, 8, 12, 16), (1, 8, 6, 8), (1, 8, 3, 4)],
    'head': [(1, channels, h, w) for channels in (5, 16) for h, w in ((12, 16), (6, 8))],
    'two stages': [(2, 6, 8, 16), (2, 8, 8, 16)],
    'embeddings': [(8, 12)],
    'classifier': [(8, 10)],
    'cifar': [(4, 6, 4, 4)],
    'tokens': [(1, 16, 16, 32)],
    'queries': [(1, 2, 20, 5), (1, 2, 20, 4)],
    'masks': [(1, 2, 8, 5), (1, 2, 8, 8, 8)],
    'explanations': [(3, 1, 16, 32)],
}
CLASSES = 19


@dataclass(frozen=True)
class Inputs:
    """What one call of a loss gets."""

    student: Tensor | list[Tensor]
    teacher: Tensor | list[Tensor]
    others: tuple[Any, ...] = ()

    @property
    def students(self) -> list[Tensor]:
        return [self.student] if isinstance(self.student, Tensor) else self.student

    def call(self, loss: Loss) -> list[Tensor]:
        """One forward and one backward, to the layers of the loss too; the maps' gradients."""
        loss(self.student, self.teacher, *self.others).backward()
        found = [x.grad for x in self.students]
        for x in self.students:
            x.grad = None
        return found


@dataclass(frozen=True)
class Case:
    """One loss at one size.

    Args:
        loss (str): The name under which it is registered.
        where (str): A key of :data:`SHAPES`.
        shapes (Sequence[Shape]): Those of the student's maps and of the teacher's.
        options (dict): Arguments of the loss.
        razor (Callable, optional): Builds MMRazor's form. Defaults to None: it has none.
        competitor (Loss, optional): Stands in for the formula in the loss's file.
        others (str, optional): What the loss takes besides maps, ``'labels'``, ``'margin'``,
            ``'boxes'``, ``'assigned'``, ``'assigned and boxes'`` or ``'seed'``.
        variant (str): Tells cases of one loss with other arguments apart.
        classes (int): How many classes made-up labels have. Defaults to 19.
        boxes (int): How many boxes a made-up image has. Defaults to 20.
        middle (Shape, optional): The middle of its sweeps, see :mod:`benchmarks.scaling`. Defaults
            to None: that of all.
    """

    loss: str
    where: str
    shapes: Sequence[Shape]
    options: dict[str, Any]
    razor: Callable[[], Loss] | None = None
    competitor: Loss | None = None
    others: str | None = None
    variant: str = ''
    classes: int = CLASSES
    boxes: int = 20
    middle: Shape | None = None

    @property
    def name(self) -> str:
        """What tables call it."""
        return ' '.join(filter(None, (self.loss, self.variant)))

    @property
    def size(self) -> str:
        """The shapes, in words."""
        first, *rest = ('×'.join(map(str, shape)) for shape in self.shapes)
        many = f' and {len(rest)} more' if len(rest) > 1 else f' and {rest[0]}' if rest else ''
        return first + many

    def ours(self, device: torch.device | str = 'cpu') -> nn.Module:
        """The loss of this package, with its modules for the shapes."""
        loss = getattr(own, self.loss)(**self.options)
        if hasattr(loss, 'setup'):
            channels = [shape[1] for shape in self.shapes]
            torch.manual_seed(0)  # each form has the same weights
            loss.setup(channels, channels)
        return loss.eval().to(device)  # without what it remembers of each call

    def textbook(self, device: torch.device | str = 'cpu') -> Loss:
        """The formula as the file of the loss states it, or what stands in for it here."""
        if self.competitor is not None:
            return self.competitor
        loss = self.ours(device)

        def as_written(*inputs: Tensor | Sequence[Tensor]) -> Tensor:
            with formulas_as_written():
                return loss(*inputs)

        return as_written

    def inputs(self, device: torch.device | str = 'cpu', dtype: Any = torch.float32) -> Inputs:
        """Made-up maps, the same ones each time."""
        generator = torch.Generator().manual_seed(0)

        def maps(learning: bool) -> list[Tensor]:
            return [
                torch.randn(shape, generator=generator, dtype=dtype)
                .to(device)
                .requires_grad_(learning)
                for shape in self.shapes
            ]

        student, teacher, others = maps(True), maps(False), ()
        count, channels, *side = self.shapes[0]
        if self.others == 'labels' and not side:
            labels = torch.randint(0, self.classes, (count,), generator=generator)
            others = (labels.to(device),)
        elif self.others == 'labels':  # blocks of one class, some of them to ignore
            blocks = torch.randint(
                0, self.classes + 2, (count, *(max(1, s // 4) for s in side)), generator=generator
            )
            blocks[blocks >= self.classes] = 255
            labels = blocks.repeat_interleave(32, 1).repeat_interleave(32, 2)
            others = (labels.to(device),)
        elif self.others == 'margin':
            others = ((-torch.rand(channels, generator=generator, dtype=dtype)).to(device),)
        elif self.others == 'boxes':
            corners = torch.rand(count, self.boxes, 4, generator=generator, dtype=dtype).to(device)
            others = (
                torch.cat([corners[..., :2], corners[..., :2] + corners[..., 2:]], -1),
                (2, 2),
            )
        elif self.others and self.others.startswith('assigned'):
            found = made_up_assignment(self.shapes[: len(self.shapes) // 2], device)
            priors = found.priors[0]
            step = max(1, priors.shape[1] // self.boxes)
            others = (found, priors[:, ::step][:, : self.boxes] + 3)
            others = others if 'boxes' in self.others else others[:1]
        elif self.others == 'seed':
            others = (torch.tensor(0, device=device),)
        if self.loss == 'MemoryContrastLoss':  # the same draw in all forms
            others = (*others, torch.tensor(0, device=device))
        if len(self.shapes) == 1:
            return Inputs(student[0], teacher[0], others)
        return Inputs(student, teacher, others)


def made_up_assignment(shapes: Sequence[Shape], device: torch.device | str) -> Assigned:
    """What an assigner could have found for a head with distributions, one anchor a position."""
    generator = torch.Generator().manual_seed(0)
    labels, weights, priors, classes = [], [], [], shapes[0][1]
    for count, _, *size in shapes:
        stride = 8 * shapes[0][2] / size[0]
        grid = torch.meshgrid(*(torch.arange(n) * stride for n in size), indexing='ij')
        centres = torch.stack([x.flatten() for x in grid[::-1]], 1)
        sides = torch.cat([centres - 4 * stride, centres + 4 * stride], 1)
        drawn = torch.randint(classes, (count, len(sides)), generator=generator)
        drawn[torch.rand(drawn.shape, generator=generator) > 0.02] = classes
        drawn[:, 0] = 0
        labels.append(drawn.to(device))
        weights.append(torch.ones(drawn.shape, device=device))
        priors.append(sides.expand(count, -1, -1).to(device))

    def decode(level: int, boxes: Tensor, of_teacher: bool) -> Tensor:
        values = rows(boxes, labels[level].shape[1]).unflatten(2, (4, -1)).softmax(3)
        distances = (values * torch.arange(values.shape[3], device=values.device)).sum(3)
        corners = priors[level].unflatten(2, (2, 2)).mean(2).repeat(1, 1, 2)
        return corners + distances * torch.tensor([-8.0, -8, 8, 8], device=values.device)

    n_pos = torch.tensor(100.0, device=device)
    return Assigned(labels, weights, priors, n_pos, classes, decode, priors.__getitem__)


def razor(name: str, **options: float) -> Callable[[], Loss]:
    """MMRazor's form, for one map or for several."""
    return lambda: partial(sum_over_maps, mmrazor.loss(name, **options))


def razor_of_rows(name: str, **options: float) -> Callable[[], Loss]:
    """MMRazor's form of a loss of classifiers, with the positions of a map as its images."""

    def build() -> Loss:
        loss = mmrazor.loss(name, **options)

        def call(s: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
            if labels is None:
                return loss(competitors.rows(s), competitors.rows(t))
            return loss(*competitors.with_labels(s, t, labels))

        return call

    return build


def razor_generation(shapes: Sequence[Shape]) -> Callable[[], Loss]:
    """MMRazor's loss behind the network and the masks of ours, which are those of its connector."""

    def build() -> Loss:
        loss, ours = mmrazor.loss('mgd_loss.MGDLoss', alpha_mgd=1), own.MaskedGenerationLoss()
        torch.manual_seed(0)  # as in Case.ours
        ours.setup(*2 * [[shape[1] for shape in shapes]])

        def call(student: list[Tensor], teacher: list[Tensor], seed: Tensor) -> Tensor:
            if not student[0].is_meta:
                ours.to(student[0].device)
            found = 0
            for number, (s, t) in enumerate(zip(student, teacher)):
                seen = kept(s, seed, ours.mask_ratio, stream=number)
                made = run(ours.generators[number], s * seen)
                found = found + loss(made.to(t.dtype), t)  # torch 2.1 mixes no types
            return found

        return call

    return build


def razor_attention_guided(shape: Shape) -> Callable[[], Loss]:
    """MMRazor's loss behind its connectors, with the weights of ours.

    Theirs pool by 2 first and then by their ``maxpool_stride``. Their last convolution of a block
    has no bias; the mean that its norm takes off holds ours.
    """

    def build() -> Loss:
        loss, ours = mmrazor.loss('fbkd_loss.FBKDLoss'), own.AttentionGuidedLoss()
        torch.manual_seed(0)  # as in Case.ours
        ours.setup([shape[1]], [shape[1]])
        of_student, of_teacher = _razor_connectors(ours.adaptions[0])

        def call(student: Tensor, teacher: Tensor) -> Tensor:
            if not student.is_meta:
                for module in (of_student, of_teacher):
                    module.to(student.device, student.dtype)
            return loss(of_student(student), of_teacher(teacher))

        return call

    return build


def _razor_connectors(layers: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Their connectors of student and teacher with the weights of our layers."""
    channels, pool = layers.channels.out_features, layers.of_teacher.pool
    options = dict(in_channels=channels, reduction=4, sub_sample=True, maxpool_stride=pool // 2)
    of_student, of_teacher = (
        mmrazor.connector(f'fbkd_connector.FBKD{side}Connector', **options)
        for side in ('Student', 'Teacher')
    )
    own_layers = (layers.channels, layers.positions, layers.values, layers.relations)
    theirs = (
        of_student.channel_wise_adaptation,
        of_student.spatial_wise_adaptation,
        of_student.adaptation_layers,
        of_student.non_local_adaptation,
    )
    for ours, other in zip(own_layers, theirs):
        other.load_state_dict(ours.state_dict())
    blocks = (
        (layers.of_student, of_student.student_non_local),
        (
            layers.of_teacher,
            of_teacher.teacher_non_local,
        ),
    )
    for ours, other in blocks:
        for name in ('theta', 'phi', 'g'):
            part = getattr(other, name)  # with pooling behind phi and g
            while isinstance(part, nn.Sequential):
                part = part[0]
            part.conv.load_state_dict(getattr(ours, name).state_dict())
        other.conv_out.bn.load_state_dict(ours.norm.state_dict())
        other.conv_out.conv.weight.data.copy_(ours.w.weight.data)
        other.conv_out.bn.running_mean.sub_(ours.w.bias.data)
        other.eval()
    return of_student, of_teacher


def razor_overhaul() -> Loss:
    """Its connector raises the teacher's map to the margin before its loss sees it."""
    loss = mmrazor.loss('ofd_loss.OFDLoss', mul_factor=1)
    return lambda s, t, margin: loss(s, torch.max(t, margin.view(1, -1, 1, 1)))


def cases(quick: bool = False) -> list[Case]:
    """Every case, with the papers' shapes or with small ones."""
    shapes = QUICK if quick else SHAPES
    rows = (*_of_distributions(shapes), *_of_positions(), *_of_values(shapes), *_of_samples())
    return [
        Case(loss, where, shapes[where], **{'options': {}, **more})
        for loss, wheres, more in rows
        for where in wheres
    ]


#: The middle of the sweeps of losses that would take minutes there.
SMALL: Shape = (4, 64, 32, 32)

#: A loss, where it is measured, and what else :class:`Case` takes.
Row = tuple[str, list[str], dict[str, Any]]


def _of_distributions(shapes: dict[str, list[Shape]]) -> Iterator[Row]:
    def kl(where: str, tau: float) -> dict[str, Any]:
        # It divides by N alone; the weight makes the mean over the positions of it.
        weight = 1 / math.prod(shapes[where][0][2:])
        return dict(razor=razor('kl_divergence.KLDivergence', tau=tau, loss_weight=weight))

    logits = ['logits', 'logits at image size']
    yield (
        'ChannelWiseLoss',
        ['features', *logits, 'pyramid'],
        dict(razor=razor('cwd.ChannelWiseDivergence', tau=4), options=dict(tau=4)),
    )
    for where in logits:
        yield 'PixelWiseLoss', [where], kl(where, 1)
    yield 'SoftTargetLoss', ['classifier'], kl('classifier', 4)
    correlation = dict(competitor=competitors.class_correlation)
    correlation['razor'] = razor_of_rows('dist_loss.DISTLoss')
    yield 'ClassCorrelationLoss', ['logits', 'logits at image size', 'classifier'], correlation
    for where in ('logits', 'classifier'):
        labels = dict(others='labels', classes=shapes[where][0][1])
        decoupled = razor_of_rows('decoupled_kd.DKDLoss', tau=4, alpha=1, beta=8)
        labels['competitor'] = competitors.decoupled
        yield 'DecoupledLoss', [where], dict(labels, razor=decoupled)
        labels['competitor'] = competitors.normalized_target
        yield 'NormalizedTargetLoss', [where], labels
    yield 'JaccardLoss', ['logits', 'logits at image size'], {}
    standard = dict(options=dict(tau=2, standardize=True), variant='standardize')
    yield 'SoftTargetLoss', ['classifier'], standard
    yield 'PixelWiseLoss', ['logits at image size'], standard


def _of_positions() -> Iterator[Row]:
    yield 'AttentionLoss', ['features', 'pyramid'], dict(razor=razor('at_loss.ATLoss'))
    yield 'GradientAttentionLoss', ['features'], {}
    for pool, wheres in ((None, ['one image', 'features']), (2, ['features']), (0.5, ['features'])):
        variant = 'all positions' if pool is None else f'pool={pool}'
        yield 'PairWiseLoss', wheres, dict(options=dict(pool=pool), variant=variant)
    yield (
        'IntraClassVariationLoss',
        ['features'],
        dict(
            competitor=competitors.ClassByClass(CLASSES),
            others='labels',
            variant=f'{CLASSES} classes',
        ),
    )
    across, within = (
        partial(competitors.relations, tau=tau, across=across)
        for tau, across in ((0.1, True), (0.07, False))
    )
    pairs = dict(middle=SMALL)  # they grow with the square of the positions
    yield 'CrossImageLoss', ['one image'], dict(pairs, competitor=across)
    yield 'GramLoss', ['one image'], dict(pairs, competitor=competitors.gram)
    pairs['options'] = dict(queue=0)
    yield 'TokenRelationLoss', ['one image'], dict(pairs, competitor=within)
    yield 'NeuronSelectivityLoss', ['features'], {}
    yield (
        'NeuronSelectivityLoss',
        ['cifar'],
        dict(competitor=competitors.neuron_selectivity_broadcast),
    )
    for similarity, wheres in (('distance', ['logits', 'features']), ('cosine', ['logits'])):
        options = dict(similarity=similarity)
        yield 'LocalSimilarityLoss', wheres, dict(options=options, variant=similarity)


def _of_values(shapes: dict[str, list[Shape]]) -> Iterator[Row]:
    mean_squares = razor('l2_loss.L2Loss', normalize=False, div_element=True)
    yield 'HintLoss', ['features', 'pyramid'], dict(razor=mean_squares)
    for scope in ('sample', 'token'):
        hints = partial(sum_over_maps, partial(competitors.cosine_hint, scope=scope))
        hints = dict(options=dict(scope=scope), variant=scope, competitor=hints)
        yield 'CosineHintLoss', ['features', 'pyramid'], hints
    boundaries = razor('ab_loss.ABLoss', loss_weight=1000 / 3)
    yield 'ActivationBoundaryLoss', ['features'], dict(razor=boundaries)
    yield 'OverhaulLoss', ['features'], dict(razor=razor_overhaul, others='margin')
    yield 'FactorTransferLoss', ['features'], dict(razor=razor('factor_transfer_loss.FTLoss'))
    yield 'FSPLoss', ['two stages'], {}
    pearson = dict(competitor=partial(sum_over_maps, competitors.pearson))
    yield 'PearsonLoss', ['features', 'pyramid'], dict(pearson, razor=razor('pkd_loss.PKDLoss'))
    yield 'ReviewLoss', ['pyramid'], {}
    yield 'DenseContrastLoss', ['tokens'], dict(others='seed', middle=SMALL)
    memory = dict(options=dict(classes=CLASSES, pixels=2000, regions=200), middle=SMALL)
    yield 'MemoryContrastLoss', ['one image'], dict(memory, others='labels')
    yield 'FocalGlobalLoss', ['pyramid'], dict(others='boxes')
    yield 'AttentionGuidedLoss', ['pyramid'], dict(middle=SMALL)
    # Their pooling does not take the smallest maps of a pyramid.
    yield 'AttentionGuidedLoss', ['level'], dict(razor=razor_attention_guided(*shapes['level']))
    generation = dict(others='seed', razor=razor_generation(shapes['pyramid']), middle=SMALL)
    yield 'MaskedGenerationLoss', ['pyramid'], generation
    yield 'BoxDistributionLoss', ['head'], dict(others='assigned and boxes')
    yield 'ProtocolLoss', ['head'], dict(others='assigned')
    yield 'CrossHeadLoss', ['head'], dict(others='assigned')
    yield 'SharedQueriesLoss', ['queries'], {}
    yield 'SharedMasksLoss', ['masks'], dict(others='seed')


def _of_samples() -> Iterator[Row]:
    distances, angles = (
        razor(f'relational_kd.{kind}', loss_weight=1, with_l2_norm=False)
        for kind in ('DistanceWiseRKD', 'AngleWiseRKD')
    )
    yield (
        'RKDDistanceLoss',
        ['embeddings', 'features'],
        dict(razor=distances, competitor=competitors.rkd_distance_by_products),
    )
    yield 'RKDAngleLoss', ['embeddings', 'features'], dict(razor=angles)
    yield 'ExplanationLoss', ['explanations'], {}


def pick(names: Sequence[str], quick: bool = False) -> list[Case]:
    """The cases of some losses, or all.

    Raises:
        ValueError: If there is no loss of a name; with the nearest one.
    """
    every = cases(quick)
    known = dict.fromkeys(case.loss for case in every)
    for name in names:
        check_name('loss', name, known)
    return [case for case in every if not names or case.loss in names]


Pair = TypeVar('Pair')


def pick_pairs(names: Sequence[str], pairs: Mapping[str, Pair]) -> list[Pair]:
    """Some pairs of a student and a teacher, or all.

    Raises:
        ValueError: If there is none of a name; with the nearest one.
    """
    for name in names:
        check_name('pair', name, pairs)
    return [pair for name, pair in pairs.items() if not names or name in names]


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Raises a ValueError that names the nearest known one if a name is not known."""
    known = list(known)
    if name not in known:
        close = get_close_matches(name.lower(), [one.lower() for one in known], n=1, cutoff=0.4)
        near = next((one for one in known if [one.lower()] == close), None)
        hint = f'; did you mean {near}?' if near else ''
        raise ValueError(f'there is no {what} {name!r}{hint} (known: {", ".join(known)})')


def registered_losses() -> list[str]:
    """The names of all losses that configs can use."""
    MODELS.import_from_location()
    home = own.__name__
    return sorted(n for n, kind in MODELS.module_dict.items() if kind.__module__.startswith(home))
