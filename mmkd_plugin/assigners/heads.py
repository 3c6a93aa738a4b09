"""Heads of mmdet: how each of them hands over the results of its assigner, and decodes boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn

from mmkd_plugin.losses.numerics.assigned import Assigned, rows
from mmkd_plugin.taps import Tap, find_module

#: Makes :class:`Assigned` of a head, the arguments of its ``get_targets`` and the result of it.
Reader = Callable[[nn.Module, Mapping[str, Any], Sequence], Assigned]

#: Turns the values (N, P, B) of places into boxes. It takes a head, the priors (N, P, 4), the
#: values, the stride of the level in pixels, and whether they are a teacher's.
Decoder = Callable[[nn.Module, Tensor, Tensor, float, bool], Tensor]


def find_head(model: nn.Module, taps: Iterable[Tap], here: str, owner: str) -> str:
    """Finds the head whose assigner a loss asks for: the one around its taps, or the only one.

    Args:
        model (nn.Module): The model.
        taps (Iterable[Tap]): The taps of the term.
        here (str): Name of term and loss in messages.
        owner (str): Name of the model in messages.

    Returns:
        str: Name of the head in the model.

    Raises:
        ValueError: If there is none of a known kind.
    """
    others = {}
    for tap in taps:
        parts = tap.path.split('.')
        for end in range(len(parts), 0, -1):
            name = '.'.join(parts[:end])
            module = find_module(model, Tap(name), owner)
            if reader_of(module) is not None:
                return name
            if isinstance(getattr(module, 'num_classes', None), int):
                others[name] = module
    known = [name for name, module in model.named_modules() if reader_of(module) is not None]
    if len(known) == 1 and not others:
        return known[0]
    if len(known) > 1:
        raise ValueError(f'{here}; tap inside one of {owner}: {", ".join(known)}')
    others = others or {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, 'num_classes', None), int)
    }
    raise ValueError(unknown_head(here, owner, others))


def head_form(model: nn.Module) -> tuple[str | list[str], tuple] | None:
    """Finds the only head of a model that hands over what its assigner found.

    Args:
        model (nn.Module): The model.

    Returns:
        tuple[str | list[str], tuple] | None: Where its class scores and boxes are read, and what
        they mean: two heads of the same form can be compared place by place. None if there is none,
        or several, or its classes are no sigmoids.
    """
    heads = [(name, one) for name, one in model.named_modules() if reader_of(one) is not None]
    if len(heads) != 1 or not getattr(heads[0][1], 'use_sigmoid_cls', False):
        return None
    ((name, head),) = heads
    kind = next(one for one, reader in READERS.items() if reader is reader_of(head))
    settings = ('num_classes', 'num_base_priors', 'reg_max', 'norm_on_bbox', 'reg_decoded_bbox')
    coder = vars(head.bbox_coder)
    return [f'{name}[0]', f'{name}[1]'] if kind in GIVE_MORE else name, (
        kind,
        *(getattr(head, setting, None) for setting in settings),
        tuple(map(tuple, head.prior_generator.strides)),
        tuple((key, str(value)) for key, value in coder.items() if not key.startswith('_')),
    )


def unknown_head(here: str, owner: str, heads: Mapping[str, nn.Module]) -> str:
    """Returns the message for heads that do not hand over what their assigner found.

    Args:
        here (str): Name of term and loss in messages.
        owner (str): Name of the model.
        heads (Mapping[str, nn.Module]): The heads by their names in the model.
    """
    names = ' and '.join(f"{type(head).__name__} ('{name}')" for name, head in heads.items())
    who = f'{names} of {owner} does not give it' if names else f'{owner} has no head'
    known = ', '.join(READERS)
    return f'{here}; {who}. These heads do: {known}, and those that assign as one of them'


def reader_of(head: nn.Module) -> Reader | None:
    """Returns the reader for a head, None if it is of no known kind.

    A subclass that assigns in its own way is of no known kind, nor is one of boxes that are no
    upright rectangles.
    """
    if getattr(getattr(head, 'bbox_coder', None), 'encode_size', 4) != 4:
        return None
    bases = type(head).__mro__
    kinds = {base.__name__ for base in bases if base.__module__.startswith('mmdet.')}
    assigns = {
        next((base.__name__ for base in bases if method in vars(base)), '')
        for method in ('get_targets', '_get_targets_single')
    }
    for name, reader in READERS.items():
        if name in kinds and assigns == {ASSIGNS.get(name, name)}:
            return reader
    return None


def _anchored(
    head: nn.Module, _: Mapping[str, Any], result: Sequence, decode: Decoder, encoded: bool
) -> Assigned:
    """Of a head that gives its anchors back, and averages its positives over the processes."""
    priors, labels, weights, targets, _, count = result[:6]
    n_pos = _mean(labels[0].new_tensor(count, dtype=torch.float32))
    encoded = encoded and not head.reg_decoded_bbox
    return _assigned(head, (labels, weights, priors, targets), n_pos, decode, encoded)


def _retina(head: nn.Module, given: Mapping[str, Any], result: Sequence) -> Assigned:
    """Of a head that divides by the positives of its own process."""
    labels, weights, targets, _, count = result[:5]
    anchors = [getattr(x, 'tensor', x) for x in given['anchor_list'][0]]
    priors = [x.expand(len(labels[0]), -1, -1) for x in anchors]
    n_pos = labels[0].new_tensor(count, dtype=torch.float32)
    found = labels, weights, priors, targets
    return _assigned(head, found, n_pos, _deltas, not head.reg_decoded_bbox)


def _fcos(head: nn.Module, given: Mapping[str, Any], result: Sequence) -> Assigned:
    """Of a head with points, which gives the places of all images in one row."""
    images = len(given['batch_gt_instances'])
    labels, targets = ([x.unflatten(0, (images, -1)) for x in one] for one in result)
    weights = [torch.ones_like(x, dtype=torch.float32) for x in labels]
    priors = [torch.cat([x, x], 1).expand(images, -1, -1) for x in given['points']]
    positive = [(x >= 0) & (x < head.num_classes) for x in labels]
    n_pos = _mean(sum(x.sum() for x in positive).float())
    found = _assigned(head, (labels, weights, priors, targets), n_pos, _distances, True)
    taught = [head.centerness_target(x[there]).sum() for x, there in zip(targets, positive)]

    def finish(level: int, values: Tensor) -> Tensor:
        """What the head does without a module, as at inference."""
        if head.norm_on_bbox:
            return values.clamp(min=0) * head.strides[level]
        return values.exp()

    return found._replace(finish=finish, centerness=_mean(sum(taught).float()))


def _rtmdet(head: nn.Module, _: Mapping[str, Any], result: Sequence) -> Assigned:
    """Of a head that divides by the sum of the qualities of its positives."""
    points, labels, weights, targets, qualities = result[:5]
    priors = [x[..., [0, 1, 0, 1]] for x in points]
    n_pos = _mean(sum(x.sum() for x in qualities).float())
    return _assigned(head, (labels, weights, priors, targets), n_pos, _distances, False)


def _assigned(
    head: nn.Module,
    found: tuple[Sequence[Tensor], ...],
    n_pos: Tensor,
    decode: Decoder,
    encoded: bool,
) -> Assigned:
    """Puts labels, weights, priors and targets together; the targets may be as the maps are."""
    labels, weights, priors, targets = map(list, found)
    strides = [float(stride[0]) for stride in head.prior_generator.strides]

    def of_map(level: int, boxes: Tensor, of_teacher: bool) -> Tensor:
        values = rows(boxes, priors[level].shape[1])
        return decode(head, priors[level], values, strides[level], of_teacher)

    def of_targets(level: int) -> Tensor:
        if not encoded:
            return targets[level]
        return decode(head, priors[level], targets[level], strides[level], False)

    n_pos = n_pos.clamp(min=1)
    return Assigned(labels, weights, priors, n_pos, head.num_classes, of_map, of_targets)


def _mean(count: Tensor) -> Tensor:
    """The mean over all processes."""
    all_reduce(count, op='mean')
    return count


def _distributions(
    head: nn.Module, priors: Tensor, values: Tensor, stride: float, of_teacher: bool
) -> Tensor:
    """Distributions over the distance of each side from the centre, in strides."""
    sides = head.integral(values.flatten(0, 1)) * stride
    centres = head.anchor_center(priors.flatten(0, 1))
    return head.bbox_coder.decode(centres, sides).view_as(priors)


def _deltas(
    head: nn.Module, priors: Tensor, values: Tensor, stride: float, of_teacher: bool
) -> Tensor:
    """Shifts and scales of anchors."""
    boxes = head.bbox_coder.decode(priors.flatten(0, 1), values.flatten(0, 1))
    return getattr(boxes, 'tensor', boxes).view_as(priors)


def _distances(
    head: nn.Module, priors: Tensor, values: Tensor, stride: float, of_teacher: bool
) -> Tensor:
    """Distances of the sides from a point, in pixels; a head may train on them in strides."""
    if getattr(head, 'norm_on_bbox', False) and not of_teacher:  # which runs as at inference
        values = values * stride
    points = priors[..., :2].flatten(0, 1)
    return head.bbox_coder.decode(points, values.flatten(0, 1)).view_as(priors)


#: The readers by the head that assigns so.
READERS: dict[str, Reader] = {
    'GFLHead': partial(_anchored, decode=_distributions, encoded=False),
    'ATSSHead': partial(_anchored, decode=_deltas, encoded=True),
    'RetinaHead': _retina,
    'FCOSHead': _fcos,
    'RTMDetHead': _rtmdet,
}

#: Heads that give centreness beside class scores and boxes.
GIVE_MORE = 'ATSSHead', 'FCOSHead'

#: Heads that inherit how they assign, and the class that they have it from.
ASSIGNS = {'RetinaHead': 'AnchorHead'}
