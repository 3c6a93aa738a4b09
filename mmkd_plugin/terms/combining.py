"""Combining: the class scores of several teachers become those of one target."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_plugin.losses.numerics.checks import labels_at
from mmkd_plugin.taps import Maps, as_list
from mmkd_plugin.taps.class_scores import ClassScores
from mmkd_plugin.terms.connecting import at_size
from mmkd_plugin.words import did_you_mean, some

#: A teacher that is not sure at all keeps this confidence, so that weights are always defined.
LEAST = 1e-6


def combined_scores(
    scores: Sequence[Tensor],
    combine: str = 'mean',
    *,
    each: int,
    independent: bool = False,
    labels: Tensor | None = None,
) -> Tensor:
    """Class scores whose probabilities are a weighted mean of those of several teachers.

    Equal teachers give their own scores: with a softmax, the logarithm of the summed exponentials
    is averaged too. The weights by labels are those of Confidence-Aware Multi-Teacher Knowledge
    Distillation (CA-MKD), ICASSP 2022, https://arxiv.org/abs/2201.00007.

    Args:
        scores (Sequence[Tensor]): Scores of each teacher before softmax or sigmoid, all
            ``(N, A · each, H, W)``, with A anchors.
        combine (str): The weights. ``'mean'``: all the same. ``'confidence'``: at each position and
            anchor one minus the entropy, in parts of the largest one. ``'labels'``: CA-MKD's, by
            the cross entropy against the labels. Defaults to ``'mean'``.
        each (int): Scores of each anchor, that of a background included.
        independent (bool): Whether each score has a sigmoid of its own, and so a weight of its own.
            Defaults to False: a softmax over those of an anchor.
        labels (Tensor, optional): ``(N, h, w)``, integers, for ``'labels'``; teachers count the
            same where there is no such class. Defaults to None.

    Returns:
        Tensor: ``(N, A · each, H, W)``, float32.

    Examples:
        >>> sure, unsure = torch.tensor([4.0, 0.0]), torch.tensor([0.0, 0.1])
        >>> scores = [x.view(1, 2, 1, 1) for x in (sure, unsure)]
        >>> for how in ('mean', 'confidence'):
        ...     print(combined_scores(scores, how, each=2).softmax(1).flatten())
        tensor([0.7285, 0.2715])
        tensor([0.9810, 0.0190])
    """
    x = torch.stack([one.float() for one in scores]).unflatten(2, (-1, each))
    if independent:
        log_p = torch.stack([F.logsigmoid(x), F.logsigmoid(-x)], 4)  # yes and no
        mixed = _mixed(log_p, _WEIGHTS[combine](log_p, 4, labels))
        return (mixed.select(3, 0) - mixed.select(3, 1)).flatten(1, 2)
    log_p = F.log_softmax(x, 3)
    log_w = _WEIGHTS[combine](log_p, 3, labels)
    size = (log_w.exp() * x.logsumexp(3, keepdim=True)).sum(0)
    return (_mixed(log_p, log_w) + size).flatten(1, 2)


def _mixed(log_p: Tensor, log_w: Tensor) -> Tensor:
    return torch.logsumexp(log_p + log_w, 0)


def _mean(log_p: Tensor, dim: int, labels: None) -> Tensor:
    return log_p.new_full((len(log_p),) + (1,) * (log_p.ndim - 1), -math.log(len(log_p)))


def _confidence(log_p: Tensor, dim: int, labels: None) -> Tensor:
    entropy = torch.special.entr(log_p.exp()).sum(dim, keepdim=True)
    confidence = (1 - entropy / math.log(log_p.shape[dim])).clamp(min=LEAST)
    return confidence.log() - confidence.sum(0).log()


def _by_labels(log_p: Tensor, dim: int, labels: Tensor) -> Tensor:
    count, classes = len(log_p), log_p.shape[dim]
    at = labels_at(log_p[0, :, 0], labels)
    known = ((at >= 0) & (at < classes))[:, None, None]
    at = torch.where(known, at[:, None, None], 0).expand(count, -1, -1, -1, -1, -1)
    wrong = -log_p.gather(dim, at)  # the cross entropy of each teacher
    weights = ((1 - wrong.softmax(0)) / (count - 1)).clamp(min=LEAST)
    return torch.where(known, weights, 1 / count).log()


_WEIGHTS: dict[str, Callable[[Tensor, int, Tensor | None], Tensor]] = {
    'mean': _mean,
    'confidence': _confidence,
    'labels': _by_labels,
}

#: What the plan says of the ways to combine.
WORDS = {
    'mean': 'the mean of the class probabilities',
    'confidence': 'the mean of the class probabilities by confidence',
    'labels': 'the mean of the class probabilities by cross entropy against the labels',
}


class Combination:
    """How the teachers of a term become one target.

    Args:
        here (str): What messages call the term.
        teachers (Sequence[str]): Names of the teachers, two or more.
        combine (str): As in :func:`combined_scores`. Defaults to ``'mean'``.

    Raises:
        ValueError: If a name comes twice, or there is no such way.

    Examples:
        >>> Combination('distill.cwd', ['psp', 'mit']).describe()
        'target: the mean of the class probabilities of psp, mit'
    """

    def __init__(self, here: str, teachers: Sequence[str], combine: str = 'mean') -> None:
        twice = [name for name in teachers if list(teachers).count(name) > 1]
        if twice:
            raise ValueError(f"{here}.teacher names '{twice[0]}' twice")
        if not isinstance(combine, str) or combine not in WORDS:
            raise ValueError(
                f'{here}.combine must be one of {", ".join(map(repr, WORDS))}, got {combine!r}'
                + did_you_mean(str(combine), WORDS, "'{}'")
            )
        self.here, self.teachers, self.combine = here, tuple(teachers), combine
        self.needs = ('labels',) if combine == 'labels' else ()
        self._scores: list[tuple[int, bool]] = []
        self._resized: list[str] = []

    @classmethod
    def of(cls, here: str, teachers: Sequence[str], combine: str | None) -> Combination | None:
        """That of a term, None if it has one teacher.

        Args:
            here (str): What messages call the term.
            teachers (Sequence[str]): Names of its teachers.
            combine (str, optional): None is ``'mean'``.

        Raises:
            ValueError: As above, and for a way to combine a single teacher.
        """
        if len(teachers) > 1:
            return cls(here, teachers, 'mean' if combine is None else combine)
        if combine is not None:
            raise ValueError(
                f'{here}.combine is for several teachers, such as {here}.teacher=[..., ...], and '
                'this term has one; leave it out'
            )
        return None

    def connect(
        self,
        student: Sequence[ClassScores | None],
        teachers: Sequence[Sequence[ClassScores | None]],
        independent: bool,
    ) -> None:
        """Learns how the scores lie in the maps.

        Args:
            student (Sequence[ClassScores | None]): In each map of the student.
            teachers (Sequence[Sequence[ClassScores | None]]): In each map of each teacher.
            independent (bool): Whether the classes of the student have a sigmoid each.

        Raises:
            ValueError: If a map is none of class scores, or there are not as many.
        """
        for name, scores in zip(('the student', *self._names()), (student, *teachers)):
            if len(scores) != len(student):
                raise ValueError(
                    f'{self.here}: {name} gives {len(scores)} maps, and the student {len(student)}'
                )
            if any(one is None or not one.each or one.dim != 1 for one in scores):
                raise ValueError(
                    f'{self.here}: {name} gives no class scores (N, C, H, W) there, and several '
                    'teachers are combined by these alone. Give each teacher a term of its own'
                )
        self._scores = [(one.each, independent or one.each == 1) for one in student]
        if self.needs and any(alone for _, alone in self._scores):
            raise ValueError(
                f"{self.here}.combine: 'labels' is for segmentors, which have a softmax over the "
                "classes and a label for each position; take 'confidence'"
            )

    def __call__(self, shown: Sequence[Maps], labels: Tensor | None = None) -> Maps:
        """Combines what the teachers show.

        Args:
            shown (Sequence[Maps]): Of each teacher a map ``(N, C, H, W)`` or a list of them. Those
                of another size than the first teacher's are resized, bilinearly.
            labels (Tensor, optional): Labels of the batch, ``(N, h, w)``.

        Returns:
            Tensor | list[Tensor]: As the first teacher shows them.

        Raises:
            ValueError: If their channels differ.
        """
        maps, resized = [], set()
        for (each, independent), same in zip(self._scores, zip(*map(as_list, shown))):
            first = same[0]
            for name, x in zip(self.teachers, same):
                if x.shape[1] != first.shape[1]:
                    raise ValueError(
                        f"{self.here}: teachers '{self.teachers[0]}' and '{name}' give "
                        f'{first.shape[1]} and {x.shape[1]} channels; their class scores can be '
                        'combined only for the same classes and anchors'
                    )
                resized |= {name} if x.shape != first.shape else set()
            fitted = [x if x.shape == first.shape else at_size(x, first.shape[2:]) for x in same]
            made = combined_scores(
                fitted, self.combine, each=each, independent=independent, labels=labels
            )
            maps.append(made.to(first.dtype))
        self._resized = [name for name in self.teachers if name in resized]
        return maps[0] if isinstance(shown[0], Tensor) else maps

    def describe(self) -> str:
        """Describes it for the plan."""
        text = f'target: {WORDS[self.combine]} of {", ".join(self.teachers)}'
        if not self._resized:
            return text
        return f'{text}; {some(self._resized, limit=3)} resized to {self.teachers[0]}'

    def _names(self) -> list[str]:
        return [f"teacher '{name}'" for name in self.teachers]
