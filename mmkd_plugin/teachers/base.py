"""Teacher: what every kind of teacher can do, and what it exchanges with the Distiller."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mmkd_plugin.explanations import Chosen, Scores
from mmkd_plugin.taps import Maps, Tap, Taps
from mmkd_plugin.taps.class_scores import ClassScores
from mmkd_plugin.taps.dry_run import DryRun
from mmkd_plugin.teachers.classes import ClassOrder, Names
from mmkd_plugin.views import View

NOTHING: Mapping[Any, Any] = MappingProxyType({})


class Trial(NamedTuple):
    """What a teacher may know of the student at build time.

    Args:
        config (dict, optional): Its config; None for a student that was given as a module.
        preprocessor (nn.Module): Its data preprocessor.
        run (DryRun): What a dry forward showed: maps at the ``student_taps`` of all teachers, the
            made-up data samples, and the size of the image.
        sync (bool): Whether its batch norms work over all processes.
    """

    config: dict | None
    preprocessor: nn.Module
    run: DryRun
    sync: bool = False


class Preview(NamedTuple):
    """What a model showed of a made-up image, on the CPU.

    Args:
        maps (dict[Tap, Maps]): What lies at each tap.
        shown (dict[View, Maps]): What a loss is going to get for each view.
        scores (dict[View, Scores]): For views of explanations, the kind of the class scores.
        size (int): Height and width of the image, pixels.
        classes (Mapping): How class scores lie in each map of a tap, None for other maps.
            Defaults to nothing that is known.
    """

    maps: dict[Tap, Maps]
    shown: dict[View, Maps]
    scores: dict[View, Scores]
    size: int
    classes: Mapping[Tap, Sequence[ClassScores | None]] = NOTHING


class Batch(NamedTuple):
    """One batch in training.

    Args:
        inputs (Tensor): Images ``(N, C, H, W)``, normalised for the student.
        data_samples (list, optional): Their data samples.
        step (int): Number of the iteration.
        student (Mapping[Tap, Maps]): What the student showed at the ``student_taps`` of a teacher
            that runs after it, with gradient.
    """

    inputs: Tensor
    data_samples: list | None
    step: int = 0
    student: Mapping[Tap, Maps] = NOTHING


class Lesson(NamedTuple):
    """What a teacher made of a batch.

    Args:
        shown (Mapping[View, Maps]): What losses get for each view, without gradient to the teacher.
        chosen (Mapping[View, Chosen]): For views of explanations, which classes it explains where.
        losses (Mapping[str, Any]): Its own, of a teacher that is trained along.
    """

    shown: Mapping[View, Maps]
    chosen: Mapping[View, Chosen] = NOTHING
    losses: Mapping[str, Any] = NOTHING


class Teacher(ABC):
    """One kind of teacher: a registered class in a file of its own.

    A config names it by ``type``; its other keys are the arguments of the constructor, which has to
    take ``name``. One that is trained along is an ``nn.Module`` too and sets ``learns``; its state
    lies beside the student's. Any other lies outside of the module tree, and copies of the student
    share it.

    Attributes:
        name (str): What terms and messages call it.
        source (str): Where it comes from, in a few words.
        student_taps (tuple[Tap, ...]): What it reads in the student; if anything, it runs after the
            student.
        class_names (tuple[str, ...], optional): Its classes in the order of its scores, if known.
    """

    #: Whether it is trained along: it takes part in each step, and is a module.
    learns: ClassVar[bool] = False
    #: Whether its maps lie in a store and come with the batch.
    stored: ClassVar[bool] = False
    #: What a config without one of the required keys is told, by the key.
    missing: ClassVar[dict[str, str]] = {}
    #: Keys of another kind that a config may keep when only its ``type`` is changed to this one.
    unused: ClassVar[tuple[str, ...]] = ()

    name: str
    source: str
    student_taps: tuple[Tap, ...] = ()
    class_names: Names | None = None

    @abstractmethod
    def prepare(self, student: Trial, views: Sequence[View], device: torch.device) -> Preview:
        """Gets ready to show views; called once, before training.

        Args:
            student (Trial): The student that is going to learn from it.
            views (Sequence[View]): All that will ever be asked for.
            device (torch.device): Where to try it.

        Raises:
            ValueError: If it cannot show one of them.
        """

    @abstractmethod
    def teach(self, batch: Batch, views: Sequence[View]) -> Lesson:
        """Shows views of a batch.

        Args:
            batch (Batch): The batch.
            views (Sequence[View]): A part of those given to :meth:`prepare`.
        """

    @abstractmethod
    def work(self) -> str:
        """What it is and what it computes, as a line of the plan."""

    def norms(
        self, taps: Taps, names: Sequence[str] | None = None
    ) -> list[tuple[str, nn.Module | None]]:
        """The batch norms that feed the maps of taps, in the order of the maps.

        Args:
            taps (Taps): Some of those given to :meth:`prepare`.
            names (Sequence[str], optional): Their names. Defaults to None: those that were found.

        Returns:
            list[tuple]: Name and module (or anything with ``weight`` and ``bias``) of each,
            ``('', None)`` where none was found.

        Raises:
            ValueError: If there is none of a name.
        """
        return [(name, None) for name in names or [''] * len(taps.taps)]

    def classes(self, tap: Tap) -> int | None:
        """The number of classes of the head around a tap, None if that is not known."""
        return None

    def arrange(self, orders: Mapping[Tap, ClassOrder]) -> None:  # noqa: B027 - named classes only
        """From now on shows the class scores of taps in the student's order.

        Asked only of a teacher with ``class_names``.

        Args:
            orders (Mapping[Tap, ClassOrder]): By the tap; scores of other taps stay as they are.
        """

    def predictor(self) -> nn.Module | None:
        """The model that predicts images by itself, None if there is none."""
        return None

    def apply_to_tensors(  # noqa: B027 - most kinds have no tensors outside of the tree
        self, function: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> None:
        """Follows ``.to()``, ``.cuda()``, ``.half()`` of the Distiller, unless it is a module."""

    def __deepcopy__(self, memo: dict) -> Teacher:
        """A copy of the student (EMA keeps one) shares a teacher that does not learn."""
        if not self.learns:
            return self
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made
