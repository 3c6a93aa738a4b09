"""Without labels: what a student learns from images that have none, beside the labelled ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from mmkd_plugin.teachers.base import Batch, Teacher
from mmkd_plugin.teachers.classes import check_same_classes
from mmkd_plugin.terms.term import Term
from mmkd_plugin.unlabelled import Unlabelled
from mmkd_plugin.unlabelled.pseudo import HERE, Labeller
from mmkd_plugin.words import some

WIRING = (
    'unlabelled: the batch carries no images without labels; train with tools/train.py or '
    'tools/distill.py of this package, which load them'
)


class UnlabelledStep:
    """The part of a step with images that have no labels.

    Args:
        settings (Unlabelled): The settings.
        student (nn.Module): The student.
        terms (Iterable[Term]): All terms.
        teachers (Mapping[str, Teacher]): All teachers by name.

    Raises:
        ValueError: If nothing can learn from these images, or there are to be pseudo-labels and
            cannot be.

    Attributes:
        names (frozenset[str]): The terms that learn from them.
    """

    def __init__(
        self,
        settings: Unlabelled,
        student: nn.Module,
        terms: Iterable[Term],
        teachers: Mapping[str, Teacher],
    ) -> None:
        self.settings = settings
        reasons = {term.name: _why_not(term, teachers) for term in terms}
        self.names = frozenset(name for name, reason in reasons.items() if reason is None)
        self._off = {name: reason for name, reason in reasons.items() if reason is not None}
        if settings.only:
            self._off |= {
                f"teacher '{name}'": 'it is trained with labels'
                for name, one in teachers.items()
                if one.learns
            }
        if settings.only and self._off:
            raise ValueError(
                f'unlabelled.only: there are no labels, and {self._said()}. Leave that out, or '
                'train on labelled images too'
            )
        if not self.names and settings.pseudo is None:
            raise ValueError(
                f'unlabelled: no term can learn from images without labels: {self._said()}. Add '
                'one that compares maps alone, such as mmkd_plugin.ChannelWiseLoss'
            )
        self._teacher: Teacher | None = None
        self._labeller: Labeller | None = None
        if settings.pseudo is not None:
            self._teacher = _teacher(settings.pseudo.teacher, teachers)
            check_same_classes(HERE, self._teacher.class_names, self._teacher.name)
            model = self._teacher.predictor()
            self._labeller = Labeller(student, model, settings.pseudo.threshold)

    def _said(self) -> str:
        places = {n: n if n.startswith('teacher ') else f'distill.{n}' for n in self._off}
        return some((f'{places[n]}: {why}' for n, why in self._off.items()), separator='; ')

    def batch(self, data: dict | bool | None, images: Batch) -> Batch:
        """The batch of these images.

        Args:
            data (dict | bool, optional): What came of them beside other images; True if nothing
                did, because all images of the step are without labels.
            images (Batch): The images of the step.

        Raises:
            ValueError: If none came.
        """
        if self.settings.only and data is True:
            return images
        if self.settings.only or not isinstance(data, Mapping):
            raise ValueError(WIRING)
        return Batch(data['inputs'], data['data_samples'], images.step)

    def labelled(self, batch: Batch, task: float) -> tuple[Batch, float, dict[str, Tensor]]:
        """Gives a batch pseudo-labels, if there are any.

        Args:
            batch (Batch): Images without labels.
            task (float): Factor on the student's own losses.

        Returns:
            tuple[Batch, float, dict[str, Tensor]]: The batch, the factor on the student's own
            losses on it, and entries of the log.
        """
        if self._labeller is None or task == 0:
            return batch, 0.0, {}
        samples, counts = self._labeller(self._teacher.predict(batch), batch.data_samples)
        logged = {
            f'pseudo_labels.{name}': value.to(batch.inputs.device) for name, value in counts.items()
        }
        return (
            batch._replace(data_samples=samples),
            task * self.settings.pseudo.loss_weight,
            logged,
        )

    def __str__(self) -> str:
        """Describes the images and what they are for, in lines of the plan."""
        settings, dataset = self.settings, self.settings.dataset
        while isinstance(dataset, dict) and 'data_root' not in dataset and 'dataset' in dataset:
            dataset = dataset['dataset']
        place = dataset if isinstance(dataset, str) else dataset.get('data_root') or dataset['type']
        many = 'no labelled ones' if settings.only else f'{settings.ratio:g} for each labelled one'
        on = ', '.join(sorted(self.names)) or 'no term'
        lines = [f'images without labels ({place}), {many}: on for {on}']
        lines += [f'off there: {name}, because {why}' for name, why in self._off.items()]
        if settings.pseudo is not None:
            lines.append(
                f"pseudo-labels of teacher '{self._teacher.name}' there: confidence "
                f'{settings.pseudo.threshold:g} or more, weight {settings.pseudo.loss_weight:g}'
            )
        return '\n'.join(lines)


def _why_not(term: Term, teachers: Mapping[str, Teacher]) -> str | None:
    """Why a term cannot learn from images without labels; None if it can."""
    for name in term.teachers:
        if teachers[name].learns:
            return f"teacher '{name}' is trained with labels"
    return term.needs_labels


def _teacher(name: str | None, teachers: Mapping[str, Teacher]) -> Teacher:
    """The teacher that gives pseudo-labels."""
    frozen = [one for one, teacher in teachers.items() if not teacher.learns]
    if name is None and len(frozen) == 1:
        (name,) = frozen
    if name not in teachers:
        said = 'does not say which teacher' if name is None else f"has teacher='{name}'"
        raise ValueError(
            f'{HERE} {said}; the teachers are: {", ".join(teachers)}; write '
            f"teacher='{next(iter(teachers))}', say"
        )
    return teachers[name]


def together(
    labelled: Mapping[str, Any], others: Mapping[str, Any], images: int, more: int
) -> dict[str, Any]:
    """The losses of a step: of each the mean over all images that have it.

    So a weight means the same with images without labels and without them.

    Args:
        labelled (Mapping[str, Any]): Losses of labelled images, as a model gives them.
        others (Mapping[str, Any]): Losses of the other images.
        images (int): How many have labels.
        more (int): How many have none.

    Returns:
        dict[str, Any]: The losses; ``distill.<term>.unlabelled`` is that of the images without
        labels alone, for the log. What is no loss is that of the labelled images, if they have it.

    Examples:
        >>> import torch
        >>> one, two = ({'distill.cwd.loss': torch.tensor(x)} for x in (1.0, 4.0))
        >>> {key: x.item() for key, x in together(one, two, images=2, more=1).items()}
        {'distill.cwd.loss': 2.0, 'distill.cwd.unlabelled': 4.0}
    """
    losses, share = dict(labelled), more / (images + more)
    for key, value in others.items():
        if 'loss' not in key:
            losses.setdefault(key, value)
            continue
        theirs = _summed(value)
        ours = _summed(labelled[key]) * (1 - share) if key in labelled else 0.0
        losses[key] = ours + theirs * share
        name = key.removesuffix('.loss') + '.unlabelled'
        if key.startswith('distill.') and 'loss' not in name:  # a runner adds up what has 'loss'
            losses[name] = theirs.detach()
    return losses


def _summed(value: Any) -> Tensor:
    """A loss as a scalar, as mmengine adds it up."""
    return value.mean() if isinstance(value, Tensor) else sum(_summed(one) for one in value)


def carry_unlabelled(preprocessor: nn.Module) -> None:
    """Has a data preprocessor process the images without labels that a batch carries.

    They are a batch of their own: they have their own padding, and batch augmentations do not mix
    them with labelled images. True, of a batch that has no others, stays.

    Args:
        preprocessor (nn.Module): The data preprocessor, changed in place.
    """
    preprocessor.register_forward_hook(_process_unlabelled, with_kwargs=True)


def _process_unlabelled(
    preprocessor: nn.Module, args: tuple, kwargs: dict[str, Any], processed: Any
) -> Any:
    data = args[0] if args else kwargs.get('data')
    more = data.get('unlabelled') if isinstance(data, Mapping) else None
    if more is None:
        return processed
    if more is True:
        return {**processed, 'unlabelled': True}
    rest = {key: value for key, value in kwargs.items() if key != 'data'}
    return {**processed, 'unlabelled': preprocessor(more, *args[1:], **rest)}
