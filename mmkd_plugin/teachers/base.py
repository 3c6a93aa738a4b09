"""Teacher: the base class of all kinds of teachers, and the data that they exchange."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mmkd_plugin.assigners import Sampled
from mmkd_plugin.explanations import Chosen, Scores
from mmkd_plugin.queries import Group
from mmkd_plugin.taps import Maps, Tap, Taps
from mmkd_plugin.taps.class_scores import ClassScores
from mmkd_plugin.taps.dry_run import DryRun
from mmkd_plugin.teachers.classes import ClassOrder, Names
from mmkd_plugin.views import View

NOTHING: Mapping[Any, Any] = MappingProxyType({})


class Trial(NamedTuple):
    """The student at build time, as far as a teacher may know it.

    Args:
        config (dict, optional): Config of the student, None if it was given as a module.
        preprocessor (nn.Module): Data preprocessor of the student.
        run (DryRun): Results of a dry forward of the student: the maps at the ``student_taps`` of
            all teachers, the made-up data samples, and the size of the image.
        sync (bool): Whether the student has SyncBatchNorm. Defaults to False.
        sampled (Mapping[int, Sampled]): The RoIs that it sampled in a trial, by the number of the
            stage, if a view asks about them. Defaults to ``{}``.
        own (Group, optional): The queries of its decoder in a trial, if a view asks them. Defaults
            to None.

    Examples:
        >>> from mmengine.model import BaseDataPreprocessor
        >>> from mmkd_plugin import Trial
        >>> from mmkd_plugin.taps.dry_run import DryRun
        >>> Trial(config=None, preprocessor=BaseDataPreprocessor(), run=DryRun()).run.size
        128
    """

    config: dict | None
    preprocessor: nn.Module
    run: DryRun
    sync: bool = False
    sampled: Mapping[int, Sampled] = NOTHING
    own: Group | None = None


class Passage(NamedTuple):
    """A way through a part of a teacher, for maps of the student.

    The part is frozen: gradients flow through it to the maps, and none to its weights.

    Args:
        maps (Sequence[Tensor]): The teacher's own maps where the part begins, ``(N, C, H, W)``,
            without gradient.
        run (Callable): Takes as many maps of these shapes, with gradient. Returns the maps behind
            the part, as many as the teacher has there.

    Examples:
        >>> import torch
        >>> from mmkd_plugin import Passage
        >>> passage = Passage([torch.rand(2, 8, 4, 4)], lambda maps: [2 * x for x in maps])
        >>> [x.shape for x in passage.run([torch.rand(2, 8, 4, 4)])]
        [torch.Size([2, 8, 4, 4])]
    """

    maps: Sequence[Tensor]
    run: Callable[[Sequence[Tensor]], list[Tensor]]


class Preview(NamedTuple):
    """Tensors of a model for a made-up image, on the CPU.

    Args:
        maps (dict[Tap, Maps]): The maps at each tap, ``(1, C, H, W)``.
        shown (dict[View, Maps]): For each view, tensors with the shapes that a loss will get.
        scores (dict[View, Scores]): The kind of the class scores, for each view of explanations.
        size (int): Height and width of the image, pixels.
        classes (Mapping): Position of class scores in each map of a tap, None for other maps.
            Defaults to nothing.
        passages (Mapping[View, Passage]): For each view with an entrance the way from there, for
            maps of the made-up image. Defaults to ``{}``.
        queries (Mapping[View, list[Group]]): For each view of queries some of those that a batch
            is asked. Defaults to ``{}``.

    Examples:
        >>> import torch
        >>> from mmkd_plugin import Preview, Tap, Taps, View
        >>> maps = torch.rand(1, 8, 16, 16)
        >>> preview = Preview({Tap('neck'): maps}, {View(Taps.parse('neck')): maps}, {}, size=128)
        >>> [str(tap) for tap in preview.maps]
        ['neck']
    """

    maps: dict[Tap, Maps]
    shown: dict[View, Maps]
    scores: dict[View, Scores]
    size: int
    classes: Mapping[Tap, Sequence[ClassScores | None]] = NOTHING
    passages: Mapping[View, Passage] = NOTHING
    queries: Mapping[View, list[Group]] = NOTHING


class Batch(NamedTuple):
    """One batch in training.

    Args:
        inputs (Tensor): Images ``(N, C, H, W)``, normalised for the student.
        data_samples (list, optional): Their data samples.
        step (int): Number of the iteration. Defaults to 0.
        student (Mapping[Tap, Maps]): The student's maps, with gradient, for a teacher that runs
            after the student. Defaults to ``{}``.

    Examples:
        >>> import torch
        >>> from mmkd_plugin import Batch
        >>> Batch(torch.rand(2, 3, 32, 32), data_samples=None).step
        0
    """

    inputs: Tensor
    data_samples: list | None
    step: int = 0
    student: Mapping[Tap, Maps] = NOTHING


class Lesson(NamedTuple):
    """Tensors and losses of a teacher for a batch.

    Args:
        shown (Mapping[View, Maps]): For each view the tensors that a loss gets. They have no
            gradient to the teacher.
        chosen (Mapping[View, Chosen]): The classes to explain, for each view of explanations.
            Defaults to ``{}``.
        losses (Mapping[str, Any]): Losses of a teacher that is trained along. Defaults to ``{}``.
        passages (Mapping[View, Passage]): For each view with an entrance the way from there, for
            the student's maps of the batch. Defaults to ``{}``.
        queries (Mapping[View, list[Group]]): For each view of queries the groups that were asked.
            Defaults to ``{}``.
        on_rois (Callable, optional): Takes the RoIs that the student sampled, and gives what the
            views of RoIs compare. Defaults to None: there are no such views.
        on_own (Callable, optional): Takes the student's own queries, and gives the answers to them
            for the views that ask these too. Defaults to None: there are no such views.

    Examples:
        >>> import torch
        >>> from mmkd_plugin import Lesson, Taps, View
        >>> view = View(Taps.parse('neck'))
        >>> Lesson({view: torch.rand(2, 8, 4, 4)}).shown[view].shape
        torch.Size([2, 8, 4, 4])
    """

    shown: Mapping[View, Maps]
    chosen: Mapping[View, Chosen] = NOTHING
    losses: Mapping[str, Any] = NOTHING
    passages: Mapping[View, Passage] = NOTHING
    queries: Mapping[View, list[Group]] = NOTHING
    on_rois: Callable[[Mapping[int, Sampled]], dict[View, Maps]] | None = None
    on_own: Callable[[Group], dict[View, list[Tensor]]] | None = None

    def asked(self, sampled: Mapping[int, Sampled], own: Group | None) -> Lesson:
        """The lesson with the views of RoIs and of the student's queries, once it has run."""
        shown = dict(self.shown)
        if self.on_rois is not None:
            shown |= self.on_rois(sampled)
        if self.on_own is not None:
            shown |= {view: [*shown[view], *more] for view, more in self.on_own(own).items()}
        return self._replace(shown=shown, on_rois=None, on_own=None)


class Teacher(ABC):
    """Base of all kinds of teachers. A kind is a registered class in a file of its own.

    A config selects the kind by ``type``. The other keys are the arguments of its constructor,
    which has to take ``name``. A teacher that is trained along sets ``learns``, is an ``nn.Module``
    too, and has its state saved beside the student's. All other teachers lie outside the module
    tree, and copies of the student share them.

    Attributes:
        name (str): Name in the config and in messages.
        source (str): Origin of the teacher for the plan, such as the path of its config.
        student_taps (tuple[Tap, ...]): Taps at which it reads the student. If there are any, it
            runs after the student. Defaults to ``()``.
        class_names (tuple[str, ...], optional): Its classes in the order of its scores. Defaults to
            None: not known.
        reduces_zero (bool, optional): Whether its data set leaves out label 0, as its
            ``reduce_zero_label`` says. Defaults to None: not known.

    Examples:
        >>> import torch
        >>> from mmkd_plugin import Batch, Lesson, Preview, Taps, Teacher, View
        >>> class Zeros(Teacher):
        ...     name, source = 'zeros', 'constants'
        ...
        ...     def prepare(self, student, views, device):
        ...         shown = {view: torch.zeros(1, 8, 4, 4) for view in views}
        ...         return Preview({}, shown, {}, student.run.size)
        ...
        ...     def teach(self, batch, views):
        ...         shape = len(batch.inputs), 8, 4, 4
        ...         return Lesson({view: torch.zeros(shape) for view in views})
        ...
        ...     def work(self):
        ...         return f"teacher '{self.name}': computes nothing"
        >>> view = View(Taps.parse('neck'))
        >>> Zeros().teach(Batch(torch.rand(2, 3, 32, 32), None), [view]).shown[view].shape
        torch.Size([2, 8, 4, 4])
    """

    #: Whether it is trained along. Such a teacher is a module and takes part in each step.
    learns: ClassVar[bool] = False
    #: Whether its maps are stored on disk and come with the batch.
    stored: ClassVar[bool] = False
    #: Whether these maps are warped as a pipeline warped the images.
    warped: bool = False
    #: Hint in the message for a config that lacks a required key, by the key.
    missing: ClassVar[dict[str, str]] = {}
    #: Keys of another kind that a config may keep when its ``type`` is changed to this kind.
    unused: ClassVar[tuple[str, ...]] = ()

    name: str
    source: str
    student_taps: tuple[Tap, ...] = ()
    class_names: Names | None = None
    reduces_zero: bool | None = None

    @abstractmethod
    def prepare(self, student: Trial, views: Sequence[View], device: torch.device) -> Preview:
        """Gets ready to show views. It is called once, before training.

        Args:
            student (Trial): The student at build time.
            views (Sequence[View]): All views that :meth:`teach` may be asked for.
            device (torch.device): The device for a trial.

        Returns:
            Preview: Made-up maps for these views.

        Raises:
            ValueError: If it cannot show one of the views.
        """

    @abstractmethod
    def teach(self, batch: Batch, views: Sequence[View]) -> Lesson:
        """Shows views of a batch.

        Args:
            batch (Batch): The batch.
            views (Sequence[View]): Some of the views given to :meth:`prepare`.

        Returns:
            Lesson: The tensors of these views.
        """

    @abstractmethod
    def work(self) -> str:
        """Describes the teacher and its work.

        Returns:
            str: A line of the plan.
        """

    def norms(
        self, taps: Taps, names: Sequence[str] | None = None
    ) -> list[tuple[str, nn.Module | None]]:
        """Returns the batch norms that feed the maps of taps, in the order of the maps.

        Args:
            taps (Taps): Some of the taps of the views given to :meth:`prepare`.
            names (Sequence[str], optional): Names of the batch norms. Defaults to None: those that
                were found.

        Returns:
            list[tuple[str, nn.Module | None]]: Name and module of each batch norm, ``('', None)``
            if none was found. An object with ``weight`` and ``bias`` can replace the module.

        Raises:
            ValueError: If a named batch norm does not exist.
        """
        return [(name, None) for name in names or [''] * len(taps.taps)]

    def classes(self, tap: Tap) -> int | None:
        """Returns the number of classes of the head around a tap.

        Args:
            tap (Tap): A tap of the views given to :meth:`prepare`.

        Returns:
            int | None: The number, None if it is not known.
        """
        return None

    def arrange(self, orders: Mapping[Tap, ClassOrder]) -> None:  # noqa: B027 - named classes only
        """From now on shows the class scores of taps in the student's order.

        Asked only of a teacher with ``class_names``.

        Args:
            orders (Mapping[Tap, ClassOrder]): By the tap; scores of other taps stay as they are.
        """

    def weights_hash(self) -> str | None:
        """Returns a hash of the weights behind what it shows.

        Returns:
            str | None: The hash, None if there are no weights that stay as they are.
        """
        return None

    def config_hash(self) -> str | None:
        """Returns a hash of the model behind what it shows, as its config describes it.

        Returns:
            str | None: The hash, None if the config of the run says all of it.
        """
        return None

    def predictor(self) -> nn.Module | None:
        """Returns a model that predicts images by itself.

        Returns:
            nn.Module | None: The model, None if there is none.
        """
        return None

    def predict(self, batch: Batch) -> Tensor | list:
        """Predicts a batch, for labels of images that have none.

        Asked only of a teacher with a :meth:`predictor`.

        Args:
            batch (Batch): The batch.

        Returns:
            Tensor | list[InstanceData]: Of a segmentor the probabilities of the classes
            ``(N, C, H, W)`` at each pixel of the batch, of a detector the boxes in each image of
            it.
        """
        raise NotImplementedError(f"teacher '{self.name}' predicts nothing")

    def apply_to_tensors(  # noqa: B027 - most kinds have no tensors outside the module tree
        self, function: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> None:
        """Follows ``.to()``, ``.cuda()`` and ``.half()`` of the Distiller.

        A teacher that is a module does nothing here: the module tree contains its tensors.

        Args:
            function (Callable): Takes a tensor and returns its replacement.
            recurse (bool): Whether submodules are included. Defaults to True.
        """

    def __deepcopy__(self, memo: dict) -> Teacher:
        """Returns the teacher itself unless it learns, so copies of the student (EMA) share it."""
        if not self.learns:
            return self
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made
