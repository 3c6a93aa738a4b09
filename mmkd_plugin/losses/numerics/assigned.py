"""What the assigner of a dense detector found, and the maps of its head level by level."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from mmkd_plugin.losses.numerics.checks import check_shapes
from mmkd_plugin.losses.numerics.maps import Maps, as_pairs

#: The advice where shapes differ: no layer between the head and the loss keeps a box a box.
SAME_HEADS = 'take a teacher with a head of the same classes, strides and kind of boxes'


class Assigned(NamedTuple):
    """The results of an assigner for a batch, a list entry for each level of the pyramid.

    P are the places of a level: ``H * W * A`` with A anchors at a position, in the order of
    :func:`rows`.

    Args:
        labels (list[Tensor]): The assigned class of each place, int64 (N, P). Places that are no
            positives have a number outside of ``0 ... classes - 1``.
        weights (list[Tensor]): Weights of the labels, (N, P); 0 for places that are ignored.
        priors (list[Tensor]): The anchors, (N, P, 4): x1, y1, x2, y2 in pixels. A point is a box
            without area.
        n_pos (Tensor): The number by which the head divides its class loss, of shape (): the
            positives for most heads, at least 1.
        classes (int): Number of classes.
        decode (Callable): ``decode(level, boxes, of_teacher)`` gives the boxes (N, P, 4), in
            pixels, that a map of boxes stands for.
        target_boxes (Callable): ``target_boxes(level)`` gives the assigned boxes (N, P, 4), in
            pixels; those of places that are no positives mean nothing.
        finish (Callable): ``finish(level, values)`` gives a map of boxes as a trained head shows
            it, from what its last module gives. Defaults to the values themselves.
        centerness (Tensor, optional): The sum of the centerness that the positives of a head are
            taught, of shape (), averaged over the processes. Defaults to None: the head has none.
    """

    labels: list[Tensor]
    weights: list[Tensor]
    priors: list[Tensor]
    n_pos: Tensor
    classes: int
    decode: Callable[[int, Tensor, bool], Tensor]
    target_boxes: Callable[[int], Tensor]
    finish: Callable[[int, Tensor], Tensor] = lambda level, values: values
    centerness: Tensor | None = None

    def positive(self, level: int) -> Tensor:
        """Where an object is assigned.

        Args:
            level (int): Number of the level.

        Returns:
            Tensor: Booleans, (N, P).
        """
        labels = self.labels[level]
        return (labels >= 0) & (labels < self.classes)

    def on_cpu(self) -> Assigned:
        """Returns the same for maps on the CPU; boxes are still decoded where the head lies."""

        def decode(level: int, boxes: Tensor, of_teacher: bool) -> Tensor:
            return self.decode(level, boxes.to(self.n_pos.device), of_teacher).cpu()

        return self._replace(
            labels=[x.cpu() for x in self.labels],
            weights=[x.cpu() for x in self.weights],
            priors=[x.cpu() for x in self.priors],
            n_pos=self.n_pos.cpu(),
            decode=decode,
            target_boxes=lambda level: self.target_boxes(level).cpu(),
            centerness=None if self.centerness is None else self.centerness.cpu(),
        )


class Level(NamedTuple):
    """The maps of one level, of student and teacher.

    Args:
        scores (tuple[Tensor, Tensor]): Logits of the classes, (N, A*C, H, W).
        boxes (tuple[Tensor, Tensor]): Maps of boxes, (N, A*B, H, W).
        centerness (tuple[Tensor, Tensor], optional): Logits of the centerness, (N, A, H, W).
            Defaults to None.
    """

    scores: tuple[Tensor, Tensor]
    boxes: tuple[Tensor, Tensor]
    centerness: tuple[Tensor, Tensor] | None = None


def levels_of(
    student: Maps, teacher: Maps, assigned: Assigned, centerness: bool = False
) -> list[Level]:
    """Sorts the maps of a head into levels: first the scores of all levels, then their boxes.

    Args:
        student (Sequence[Tensor]): Maps of the student.
        teacher (Sequence[Tensor]): Maps of the teacher.
        assigned (Assigned): The results of the assigner.
        centerness (bool): Whether the centerness of all levels comes third. Defaults to False.

    Returns:
        list[Level]: One for each level.

    Raises:
        TypeError: If something other than tensors is given.
        ValueError: If the maps are not those of a head with such results, or shapes differ.
    """
    pairs = list(zip(*as_pairs(student, teacher)))
    count = len(assigned.labels)
    if len(pairs) != (3 if centerness else 2) * count:
        third = ' and then their centerness' if centerness else ''
        every = "tap all three of the head: tap='bbox_head'"
        both = "tap both of the head: tap=['bbox_head[0]', 'bbox_head[1]']"
        raise ValueError(
            f'expected the scores of {count} levels and then their boxes{third}, got {len(pairs)} '
            f'maps; {every if centerness else both}'
        )
    for pair in pairs:
        check_shapes(*pair, channels_hint=SAME_HEADS, size_hint=SAME_HEADS)
    kinds = [pairs[at : at + count] for at in range(0, len(pairs), count)]
    levels = [Level(*maps) for maps in zip(*kinds)]
    for level, labels in zip(levels, assigned.labels):
        scores, boxes, *third = (x[0].shape for x in level if x is not None)
        places = labels.shape[1]
        positions = scores[2] * scores[3]
        fits = scores[1] * positions == places * assigned.classes and scores[2:] == boxes[2:]
        fits &= all(x[1] * positions == places and x[2:] == scores[2:] for x in third)
        if scores[0] != labels.shape[0] or not fits or boxes[1] * positions % (4 * places):
            also = f', centerness {tuple(third[0])}' if third else ''
            raise ValueError(
                f'scores {tuple(scores)}{also} and boxes {tuple(boxes)} do not fit '
                f'{labels.shape[0]} images with {places} places of {assigned.classes} classes; tap '
                'the scores of a head with a sigmoid for each class first, and then its boxes'
            )
    return levels


def rows(x: Tensor, places: int) -> Tensor:
    """The values of each place of a map.

    Args:
        x (Tensor): (N, A*C, H, W).
        places (int): Number of places, ``H * W * A``.

    Returns:
        Tensor: (N, places, C), the anchors of a position one after the other.
    """
    each = x.shape[1] * x.shape[2] * x.shape[3] // places
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], places, each)
