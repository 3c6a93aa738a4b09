"""RoI heads of mmdet: the RoIs that a student samples, and a teacher's RoI head asked on them."""

from __future__ import annotations

import functools
import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmkd_plugin.taps import Maps, Tap, TapReader, as_list, find_module

ROI_HEAD = 'roi_head'

#: The classes whose way to run a RoI head, and to train it, is known.
KINDS = ('StandardRoIHead', 'CascadeRoIHead', 'DoubleHeadRoIHead', 'DynamicRoIHead')

_FORM = re.compile(rf'{ROI_HEAD}\.(?P<part>[a-z_]+)(\.(?P<stage>\d+))?(\.(?P<inside>[\w.]+))?')

#: The modules that run for all RoIs, and those that run for the positive ones.
PARTS = ('bbox_roi_extractor', 'shared_head', 'bbox_head'), ('mask_roi_extractor', 'mask_head')


class Sampled(NamedTuple):
    """The RoIs that one stage of a RoI head samples in a training step.

    Args:
        rois (Tensor): ``(R, 5)``: number of the image, then x1, y1, x2, y2 in pixels.
        positive (Tensor): The rows with an object, int64 ``(P,)``.
        labels (Tensor): The class of each RoI, int64 ``(R,)``; ``classes`` is the background.
        classes (int): Number of classes.
        coder (Any): How the head of this stage encodes boxes.
    """

    rois: Tensor
    positive: Tensor
    labels: Tensor
    classes: int
    coder: Any

    def to(self, device: torch.device) -> Sampled:
        """The same on another device."""
        tensors = (x.to(device) for x in self[:3])
        return Sampled(*tensors, self.classes, self.coder)


class Spot(NamedTuple):
    """Where a tap lies in a RoI head.

    Args:
        stage (int): Number of the stage, 0 if there is only one.
        masks (bool): Whether it lies in the branch of masks, which runs for positive RoIs alone.
        each (tuple[str, ...]): ``'scores'``, ``'boxes'`` or ``'masks'`` for each tensor of the tap;
            empty for features.
    """

    stage: int
    masks: bool
    each: tuple[str, ...]

    @classmethod
    def of(cls, tap: Tap) -> Spot:
        """Reads the name of a tap.

        Raises:
            ValueError: If the RoI head cannot be asked there.

        Examples:
            >>> Spot.of(Tap('roi_head.bbox_head.1.fc_reg'))
            Spot(stage=1, masks=False, each=('boxes',))
        """
        match = _FORM.fullmatch(tap.path)
        part = match['part'] if match else ''
        if part not in (*PARTS[0], *PARTS[1]) or tap.where == 'pre_relu':
            known = ', '.join(f'{ROI_HEAD}.{one}' for group in PARTS for one in group)
            raise ValueError(
                f"'{tap}' cannot be read for the RoIs of a student; tap the output or the input of "
                f'{known} or of a module inside one of them'
            )
        inside, each = match['inside'], ()
        if tap.where == 'output' and part == 'bbox_head':
            each = dict(fc_cls=('scores',), fc_reg=('boxes',)).get(inside, ())
            if inside is None:
                each = ('scores', 'boxes')[tap.index[0] :][:1] if tap.index else ('scores', 'boxes')
        elif tap.where == 'output' and part == 'mask_head' and inside in (None, 'conv_logits'):
            each = ('masks',)
        return cls(int(match['stage'] or 0), part in PARTS[1], each)


def is_behind_proposals(tap: Tap) -> bool:
    """Whether a tap lies in a RoI head.

    Examples:
        >>> is_behind_proposals(Tap('roi_head.bbox_head.fc_cls')), is_behind_proposals(Tap('neck'))
        (True, False)
    """
    return tap.path.partition('.')[0] == ROI_HEAD


def features_of(model: nn.Module) -> Tap:
    """The tap of the maps that the RoI head of a detector reads."""
    return Tap('neck' if getattr(model, 'with_neck', False) else 'backbone')


def roi_parts(model: nn.Module, taps: Iterable[Tap]) -> nn.ModuleList:
    """The heads of boxes and of masks that run for taps in a RoI head."""
    head = getattr(model, ROI_HEAD)
    spots = {(spot.stage, spot.masks) for spot in map(Spot.of, taps)}
    return nn.ModuleList(
        _of_stage(head.mask_head if masks else head.bbox_head, stage) for stage, masks in spots
    )


def score_taps(model: nn.Module) -> dict[str, int]:
    """The class scores of a detector's RoI head, stage by stage: the number of classes by the tap.

    Args:
        model (nn.Module): Any model.

    Returns:
        dict[str, int]: Empty if it has no RoI head of a known kind.
    """
    heads = getattr(getattr(model, ROI_HEAD, None), 'bbox_head', None)
    name = f'{ROI_HEAD}.bbox_head'
    stages = {name: heads}
    if isinstance(heads, nn.ModuleList):
        stages = {f'{name}.{number}': head for number, head in enumerate(heads)}
    found = {
        f'{name}.fc_cls': head.num_classes
        for name, head in stages.items()
        if isinstance(getattr(head, 'fc_cls', None), nn.Linear)
    }
    try:
        check_roi_head(model, map(Tap, found), 'the model')
    except ValueError:
        return {}
    return found


def check_roi_head(model: nn.Module, taps: Iterable[Tap], owner: str) -> None:
    """Refuses taps in a RoI head that is of no known kind, or does not have them.

    Args:
        model (nn.Module): The detector.
        taps (Iterable[Tap]): Taps in its RoI head.
        owner (str): Name of the model in messages.

    Raises:
        ValueError: If so.
    """
    for tap in taps:
        find_module(model, tap, owner)
        try:
            Spot.of(tap)
        except ValueError as error:
            raise ValueError(f'{owner}: {error}') from None
        head = getattr(model, ROI_HEAD)
        methods = ('loss', 'bbox_loss', '_bbox_forward', '_mask_forward')
        if not all(_known(head, method) for method in methods):
            raise ValueError(
                f"{owner}: '{tap}' lies in a {type(head).__name__}, which runs in a way of its "
                f'own. RoIs of a student can be asked of {", ".join(KINDS)}'
            )


def _known(head: nn.Module, method: str) -> bool:
    owner = next((base for base in type(head).__mro__ if method in vars(base)), None)
    return owner is not None and owner.__name__ in KINDS


def check_once(calls: Mapping[Tap, int], taps: Iterable[Tap]) -> None:
    """Refuses taps of a student that run more than once for each stage.

    Raises:
        ValueError: If so.
    """
    for tap in taps:
        if calls[tap] != 1:
            raise ValueError(
                f"the student: '{tap}' runs {calls[tap]} times in a training step, as with a "
                'sampler that asks the RoI head (OHEM): it cannot be told which RoIs belong to '
                'which run. Take the RandomSampler'
            )


@contextmanager
def rois_watched(model: nn.Module, watch: bool = True) -> Iterator[dict[int, Sampled]]:
    """Notes the RoIs that a detector samples while the block runs; nothing is sampled twice.

    Args:
        model (nn.Module): The detector that is going to compute its loss.
        watch (bool): Whether anything is noted. Defaults to True.

    Yields:
        dict[int, Sampled]: The RoIs by the number of the stage, filled while the model runs.
    """
    found: dict[int, Sampled] = {}
    if not watch:
        yield found
        return
    head = getattr(model, ROI_HEAD)
    before = vars(head).get('bbox_loss')
    head.bbox_loss = _noting(head, head.bbox_loss, found)
    try:
        yield found
    finally:
        if before is None:
            del head.bbox_loss
        else:
            head.bbox_loss = before


def _noting(
    head: nn.Module, method: Callable[..., Any], found: dict[int, Sampled]
) -> Callable[..., Any]:
    signature = inspect.signature(method)

    @functools.wraps(method)
    def noting(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        stage = given.get('stage', 0)
        found[stage] = _sampled(given['sampling_results'], _of_stage(head.bbox_head, stage))
        return method(*args, **kwargs)

    return noting


def _of_stage(modules: nn.Module, stage: int) -> nn.Module:
    return modules[stage] if isinstance(modules, nn.ModuleList) else modules


@torch.no_grad()
def _sampled(results: Sequence[Any], head: nn.Module) -> Sampled:
    """What the results of a sampler say; of each image the positive RoIs come first."""
    from mmdet.structures.bbox import bbox2roi

    rois = bbox2roi([result.priors for result in results])
    labels, positive, start = [], [], 0
    for result in results:
        n_pos, n_neg = len(result.pos_priors), len(result.neg_priors)
        labels += [result.pos_gt_labels, result.pos_gt_labels.new_full((n_neg,), head.num_classes)]
        positive.append(torch.arange(start, start + n_pos, device=rois.device))
        start += n_pos + n_neg
    coder = getattr(head, 'bbox_coder', None)
    return Sampled(rois, torch.cat(positive), torch.cat(labels), head.num_classes, coder)


def labels_of(taps: Iterable[Tap], sampled: Mapping[int, Sampled]) -> Tensor | list[Tensor]:
    """The classes of the RoIs at taps of a student, ``(R,)`` or ``(P,)``; one for each tensor."""
    found = []
    for spot in map(Spot.of, taps):
        one = sampled[spot.stage]
        for kind in spot.each or ('features',):
            few = spot.masks or kind == 'boxes'
            found.append(one.labels[one.positive] if few else one.labels)
    return found[0] if len(found) == 1 else found


def shapes_of(taps: Iterable[Tap], maps: Maps) -> str:
    """The shapes of what is compared at taps in a RoI head, with R for RoIs and P for positives.

    Examples:
        >>> shapes_of([Tap('roi_head.bbox_head.fc_reg')], torch.rand(3, 4))
        '(P, 4)'
    """
    rows = []
    for spot in map(Spot.of, taps):
        rows += ['P' if spot.masks or kind == 'boxes' else 'R' for kind in spot.each or ('all',)]
    if len(rows) != len(as_list(maps)):  # a tap of features gave several
        rows = [rows[0]] * len(as_list(maps))
    sizes = [(row, *map(str, x.shape[1:])) for row, x in zip(rows, as_list(maps))]
    return ', '.join(f'({", ".join(size)})' for size in sizes)


def compared_of_student(
    read: Mapping[Tap, Maps], taps: Iterable[Tap], sampled: Mapping[int, Sampled]
) -> dict[Tap, Maps]:
    """What is compared of a student's taps in its RoI head.

    Class scores and features belong to all RoIs. Of boxes and masks, only those of positive RoIs
    for the class of their label are trained, so these are compared.

    Args:
        read (Mapping[Tap, Maps]): What was read at the taps.
        taps (Iterable[Tap]): Taps in the RoI head.
        sampled (Mapping[int, Sampled]): The RoIs of the same forward.

    Returns:
        dict[Tap, Maps]: Scores ``(R, C + 1)``, boxes ``(P, 4)``, masks ``(P, 1, h, w)``.
    """
    return {tap: _own_class(tap, read[tap], sampled[Spot.of(tap).stage]) for tap in taps}


def _own_class(tap: Tap, maps: Maps, sampled: Sampled, owner: str = 'the student') -> Maps:
    each = Spot.of(tap).each
    if not {'boxes', 'masks'} & set(each):
        return maps
    if len(each) != len(as_list(maps)):
        raise ValueError(f"{owner}: '{tap}' gives something else than one tensor of boxes or masks")

    def of_class(kind: str, values: Tensor) -> Tensor:
        if kind == 'boxes':
            values = values[sampled.positive].unflatten(1, (-1, 4))
        if values.shape[1] not in (1, sampled.classes):
            raise ValueError(
                f"{owner}: '{tap}' gives {kind} of {values.shape[1]} classes, and the student has "
                f"{sampled.classes}: take a teacher of the student's dataset"
            )
        if values.shape[1] > 1:
            labels = sampled.labels[sampled.positive]
            values = values[torch.arange(len(labels), device=labels.device), labels][:, None]
        return values[:, 0] if kind == 'boxes' else values

    return _each(each, maps, of_class)


def _each(each: Sequence[str], maps: Maps, function: Callable[[str, Tensor], Tensor]) -> Maps:
    """Applies a function to boxes and masks, and leaves scores as they are."""
    made = [x if kind == 'scores' else function(kind, x) for kind, x in zip(each, as_list(maps))]
    return made[0] if isinstance(maps, Tensor) else made


class Wish(NamedTuple):
    """One tap of a teacher, and the student's tap whose RoIs it is read for."""

    tap: Tap
    student: Tap


@torch.no_grad()
def ask(
    model: nn.Module,
    features: Maps,
    wishes: Iterable[Wish],
    sampled: Mapping[int, Sampled],
    owner: str,
) -> dict[Wish, Maps]:
    """Runs the RoI head of a frozen detector on the RoIs of a student.

    Args:
        model (nn.Module): The detector.
        features (Maps): What :func:`features_of` gives for the student's images, ``(N, C, H, W)``.
        wishes (Iterable[Wish]): What is read.
        sampled (Mapping[int, Sampled]): The student's RoIs, by the number of its stage.
        owner (str): Name of the model in messages.

    Returns:
        dict[Wish, Maps]: As :func:`compared_of_student`; boxes are encoded as the student's.

    Raises:
        ValueError: If boxes or masks cannot be compared with the student's.
    """
    runs: dict[tuple[int, bool, int], list[Wish]] = defaultdict(list)
    for wish in wishes:
        spot = Spot.of(wish.tap)
        runs[spot.stage, spot.masks, Spot.of(wish.student).stage].append(wish)
    head, found = getattr(model, ROI_HEAD), {}
    dtype = next(head.parameters()).dtype
    maps = tuple(x.to(dtype) for x in as_list(features))
    for (stage, masks, of_student), those in runs.items():
        one = sampled[of_student]
        rois = (one.rois[one.positive] if masks else one.rois).to(dtype)
        taps = list(dict.fromkeys(wish.tap for wish in those))
        forward = head._mask_forward if masks else head._bbox_forward
        numbers = (stage,) if isinstance(head.bbox_head, nn.ModuleList) else ()
        with TapReader(model, taps, clone=taps, stop_after=dict.fromkeys(taps, 1)) as reader:
            forward(*numbers, maps, rois)
        coder = getattr(_of_stage(head.bbox_head, stage), 'bbox_coder', None)
        for wish in those:
            values = _own_class(wish.tap, reader.read(wish.tap), one, owner)
            found[wish] = _encoded(wish.tap, values, coder, one.coder, owner)
    return found


def _encoded(tap: Tap, maps: Maps, theirs: Any, ours: Any, owner: str) -> Maps:
    """Brings the boxes of a tap from the coding of a teacher to that of the student."""
    each = Spot.of(tap).each
    if 'boxes' not in each:
        return maps
    for one in (theirs, ours):
        if type(one).__name__ != 'DeltaXYWHBBoxCoder':
            raise ValueError(
                f"{owner}: '{tap}' gives boxes, which can be compared if both models encode them "
                f'by a DeltaXYWHBBoxCoder, and one is a {type(one).__name__}; compare scores alone'
            )
    if all(tuple(getattr(theirs, key)) == tuple(getattr(ours, key)) for key in ('means', 'stds')):
        return maps
    return _each(each, maps, lambda _, x: _recoded(x, theirs, ours))


def _recoded(boxes: Tensor, theirs: Any, ours: Any) -> Tensor:
    """``((x * std_T + mean_T) - mean_S) / std_S``: the same boxes of the same RoIs."""
    values = (theirs.stds, theirs.means, ours.means, ours.stds)
    std_t, mean_t, mean_s, std_s = (boxes.new_tensor(value) for value in values)
    return (boxes * std_t + mean_t - mean_s) / std_s
