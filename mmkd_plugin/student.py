"""The student in training: one forward pass, and the tensors that the terms compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmkd_plugin.assigners import Sampled, assigners_watched, find_head
from mmkd_plugin.assigners.rois import (
    check_once,
    check_roi_head,
    compared_of_student,
    rois_watched,
)
from mmkd_plugin.explanations import Chosen, Scores
from mmkd_plugin.losses.numerics.assigned import Assigned
from mmkd_plugin.queries import Asked, Group, decoder_watched, made_up
from mmkd_plugin.taps import Maps, Tap, TapReader, as_list
from mmkd_plugin.taps.dry_run import DryRun, dry_run_student, trial_copy
from mmkd_plugin.taps.example import example_batch, random_state_kept
from mmkd_plugin.taps.tap import map_tensors
from mmkd_plugin.taps.task_gradient import (
    once_only,
    scaled_losses,
    task_gradients,
    twice_differentiable,
)
from mmkd_plugin.teachers.base import Preview
from mmkd_plugin.views import View, of_kind, taps_of, try_explaining


class Seen(NamedTuple):
    """Results of one training forward of a student.

    Args:
        losses (dict[str, Any]): The student's own losses, weighted.
        maps (dict[Tap, Maps]): The maps at each tap, with gradient.
        shown (dict[View, Maps]): Maps, gradients or explanations for each view, with gradient.
        assigned (dict[View, Assigned]): What its assigner found, for each view that asks for it.
        sampled (dict[int, Sampled]): The RoIs that it sampled, by the number of the stage, if a
            view asks about them.
        own (Group, optional): The queries of its decoder, if a view asks them.
    """

    losses: dict[str, Any]
    maps: dict[Tap, Maps]
    shown: dict[View, Maps]
    assigned: dict[View, Assigned]
    sampled: dict[int, Sampled]
    own: Group | None


class StudentForward:
    """Runs the student's own training forward and reads the tensors that the terms compare.

    It does not keep the student, so a copy of the Distiller runs its own: each call takes the
    student as an argument.

    Args:
        student (nn.Module): The model. A copy of it is tried once.
        views (Sequence[View]): All views that later calls may ask for.
        taps (Sequence[Tap]): Further taps that later calls may read.
        device (torch.device): The device for the trial.

    Raises:
        ValueError: If a tap names a module that the student does not have or does not run, or a
            view asks for an assigner that the student does not have.

    Attributes:
        run (DryRun): Results of the trial.
        sampled (dict[int, Sampled]): The RoIs that the student sampled in a trial, on the CPU.
        own (Group, optional): The queries of its decoder in a trial, on the CPU, if a view asks
            them.
    """

    def __init__(
        self,
        student: nn.Module,
        views: Sequence[View],
        taps: Sequence[Tap],
        device: torch.device,
    ) -> None:
        for view in views:
            view.check_model(student, 'the student')
        self.run: DryRun = dry_run_student(student, [*taps_of(views), *taps], device)
        self._heads = {
            view: find_head(student, view.taps, _asking(view), 'the student')
            for view in views
            if view.assigned
        }
        self._scores: dict[View, Scores] = {}
        self._checked = False
        self.sampled: dict[int, Sampled] = {}
        self._on_rois: dict[Tap, Maps] = {}
        if of_kind(views, 'rois'):
            self._try_rois(student, taps_of(views, 'rois'), device)
        self.own: Group | None = None
        own = _asking_own(views)
        if own:
            asked = self._try_asking(own[0], self._copy(student, device), device)
            self.own = asked.own().to('cpu')

    def _try_rois(self, student: nn.Module, taps: Sequence[Tap], device: torch.device) -> None:
        """Lets a copy sample RoIs on a made-up image, and reads taps in its RoI head."""
        check_roi_head(student, taps, 'the student')
        if self.run.problem is not None:
            raise ValueError(
                f"the student: '{taps[0]}' is read for RoIs that it samples in its training "
                f'forward, which could not be tried on a made-up image: {self.run.problem}'
            )
        check_once(self.run.calls, taps)
        copy, inputs = self._example(student, device)
        reader = self._reader(copy, taps, (), stop=False)
        with torch.no_grad(), rois_watched(copy) as sampled, reader:
            copy(inputs, self.run.samples, mode='loss')
        maps = compared_of_student({tap: reader.read(tap) for tap in taps}, taps, sampled)
        self._on_rois = {tap: map_tensors(value, Tensor.cpu) for tap, value in maps.items()}
        self.sampled = {stage: one.to(torch.device('cpu')) for stage, one in sampled.items()}

    def _example(self, student: nn.Module, device: torch.device) -> tuple[nn.Module, Tensor]:
        """A copy of the student, and a made-up image for the labels of the trial."""
        size = self.run.channels, self.run.size, self.run.size
        return self._copy(student, device), torch.rand(1, *size, device=device)

    def preview(
        self,
        student: nn.Module,
        views: Sequence[View],
        device: torch.device,
        queries: Mapping[View, Sequence[Group]] | None = None,
    ) -> Preview:
        """Returns the results of the trial for views; tries explanations in a copy of the student.

        Args:
            student (nn.Module): The model.
            views (Sequence[View]): Some of the views given to the constructor.
            device (torch.device): The device for the explanations.
            queries (Mapping[View, Sequence[Group]], optional): The queries to try, for each view of
                queries. Defaults to None.

        Returns:
            Preview: Maps at the taps, and made-up tensors for each view.

        Raises:
            ValueError: If the student's class scores cannot be explained, or its decoder cannot be
                asked.
        """
        values = {**self.run.values, **self._on_rois}
        shown = {view: view.of(values) for view in of_kind(views, 'maps', 'gradients', 'rois')}
        for view in of_kind(views, 'queries'):
            asked = self._try_asking(view, self._copy(student, device), device)
            groups = [group.to(device) for group in queries[view]]
            if view.queries.student:
                groups.append(self.own.first(3).to(device))
            shown[view] = made_up(asked.answers(groups), seed=0)
        for view in of_kind(views, 'explanations'):
            copy = self._copy(student, device)
            tried = try_explaining(view, copy, device, 'the student', self.run.size)
            self._scores[view], shown[view] = tried
        return Preview(values, shown, self._scores, self.run.size, self.run.scores)

    def _copy(self, student: nn.Module, device: torch.device) -> nn.Module:
        """Returns a copy of the student for a further trial."""
        return trial_copy(student, device, self.run.initialised)

    @torch.no_grad()
    def _try_asking(self, view: View, model: nn.Module, device: torch.device) -> Asked:
        """Runs a copy on a made-up image, as far as its decoder."""
        with random_state_kept():
            inputs, samples = example_batch(model, device, self.run.size)
        with _watched(model, [view], stop=True) as asked:
            model(inputs, samples, mode='loss')
        return asked

    def assigned(self, student: nn.Module, device: torch.device) -> dict[View, Assigned]:
        """Returns what the student's assigner found in a trial, for each view that asks for it.

        Args:
            student (nn.Module): The model. A copy of it computes its loss.
            device (torch.device): The device for the trial.

        Returns:
            dict[View, Assigned]: The results, for maps on the CPU.

        Raises:
            ValueError: If the student's training forward does not run, or a head does not ask its
                assigner.
        """
        if not self._heads:
            return {}
        if self.run.problem is not None:
            raise ValueError(
                f'{_asking(next(iter(self._heads)))}, and the training forward of the student '
                f'could not be tried on a made-up image: {self.run.problem}'
            )
        copy, inputs = self._example(student, device)
        with torch.no_grad(), assigners_watched(copy, set(self._heads.values())) as found:
            copy(inputs, self.run.samples, mode='loss')
        return self._by_view(copy, {head: one.on_cpu() for head, one in found.items()}, self._heads)

    def _by_view(
        self, student: nn.Module, found: Mapping[str, Assigned], views: Iterable[View]
    ) -> dict[View, Assigned]:
        heads = {view: self._heads[view] for view in views if view.assigned}
        for view, head in heads.items():
            if head not in found:
                kind = type(student.get_submodule(head)).__name__
                raise ValueError(
                    f"{_asking(view)}, and {kind} ('{head}') of the student did not ask one while "
                    'it computed its loss'
                )
        return {view: found[head] for view, head in heads.items()}

    def forget(self) -> None:
        """Drops the maps and the data samples of the trial."""
        self.run = self.run.without_maps()
        self._on_rois = {}

    def __call__(
        self,
        student: nn.Module,
        inputs: Tensor,
        data_samples: list | None,
        views: Sequence[View],
        taps: Sequence[Tap] = (),
        task: float = 1.0,
        chosen: Mapping[View, Chosen] | None = None,
        queries: Mapping[View, Sequence[Group]] | None = None,
    ) -> Seen:
        """Runs the student once. With ``task=0`` the student stops after its last tap, unless a
        view asks for what the assigner found.

        Args:
            student (nn.Module): The model.
            inputs (Tensor): Images ``(N, C, H, W)`` from its data preprocessor.
            data_samples (list, optional): Their data samples.
            views (Sequence[View]): Some of the views given to the constructor.
            taps (Sequence[Tap]): Further taps to read, some of those given to the constructor.
                Defaults to ``()``.
            task (float): Factor on the student's own losses. Defaults to 1.0.
            chosen (Mapping[View, Chosen], optional): The classes to explain, for each view of
                explanations. Defaults to None.
            queries (Mapping[View, Sequence[Group]], optional): The queries to ask, for each view of
                queries. Defaults to None.

        Returns:
            Seen: The losses, the maps, and the tensors of each view.

        Raises:
            ValueError: If a view needs a second derivative that does not exist, or a head did not
                ask its assigner.
        """
        gradients, explaining = of_kind(views, 'gradients'), of_kind(views, 'explanations')
        asking, gradient_taps = of_kind(views, 'queries'), taps_of(gradients)
        every = [*taps_of(views, 'maps', 'explanations', 'queries', 'rois'), *taps]
        every = list(dict.fromkeys(every))
        heads = {self._heads[view] for view in views if view.assigned}
        stop = task == 0 and not (heads or asking)
        reader = self._reader(student, every, [*gradients, *explaining], stop)
        losses, slopes, shown, learning = {}, {}, {}, torch.is_grad_enabled()
        with ExitStack() as stack:
            if gradients or explaining:
                stack.enter_context(torch.enable_grad())
            if gradients:
                stack.enter_context(twice_differentiable(student))
            for view in explaining:
                stack.enter_context(view.context(student))
            if asking:
                asked = stack.enter_context(_watched(student, asking))
            found = stack.enter_context(assigners_watched(student, heads))
            sampled = stack.enter_context(rois_watched(student, bool(of_kind(views, 'rois'))))
            with reader:  # which may end the forward early: then there are no losses
                losses = dict(student(inputs, data_samples, mode='loss'))
            read = {tap: reader.read(tap) for tap in [*every, *gradient_taps]}
            if gradients:
                loss = student.parse_losses(losses)[0]
                compared = {tap: read[tap] for tap in gradient_taps}
                self._check_once(loss, compared)
                slopes = task_gradients(loss, compared, create_graph=learning)
            for view in explaining:
                self._check_once(view.scores.of(read), {tap: read[tap] for tap in view.taps})
                kind, size = self._scores[view], inputs.shape[2:]
                shown[view] = view.explain(read, chosen[view], kind, size, learning).pairs()
        self._checked = self._checked or bool(gradients or explaining)
        own = asked.own() if _asking_own(asking) else None
        for view in asking:
            shown[view] = asked.answers([*queries[view], *[own] * view.queries.student])
        shown |= {view: view.of(read) for view in of_kind(views, 'maps')}
        shown |= {view: view.of(slopes) for view in gradients}
        for view in of_kind(views, 'rois'):
            shown[view] = view.of(compared_of_student(read, view.taps, sampled))
        if task != 1:
            losses = scaled_losses(losses, task) if task else {}
        return Seen(losses, read, shown, self._by_view(student, found, views), sampled, own)

    def _reader(
        self, student: nn.Module, taps: Sequence[Tap], differentiated: Sequence[View], stop: bool
    ) -> TapReader:
        """Returns a reader of taps and differentiated views, which may stop after the last tap."""
        gradient_taps = taps_of(differentiated, 'gradients')
        return TapReader(
            student,
            [*taps, *gradient_taps],
            clone=self.run.in_place,
            stop_after=self.run.calls if stop and not gradient_taps else None,
            places=self.run.places,
            on_path=[tap for view in differentiated for tap in view.on_path()],
        )

    def _check_once(self, outputs: Maps, maps: Mapping[Tap, Maps]) -> None:
        """Refuses outputs that cannot be differentiated twice; later calls check nothing."""
        if self._checked:
            return
        tensors = [tensor for value in maps.values() for tensor in as_list(value)]
        for output in as_list(outputs):
            culprit = once_only(output, tensors)
            if culprit is not None:
                raise ValueError(
                    f"the student's task loss cannot be differentiated twice: {culprit} lies "
                    f'between {", ".join(map(str, maps))} and the loss. Tap behind it, or take a '
                    'PyTorch counterpart of it in the student (BN for SyncBN, say)'
                )


def _watched(
    student: nn.Module, views: Sequence[View], stop: bool = False
) -> AbstractContextManager[Asked]:
    return decoder_watched(student, f'{views[0].term}.queries: the student', stop)


def _asking_own(views: Sequence[View]) -> list[View]:
    """The views that ask the student's own queries."""
    return [view for view in of_kind(views, 'queries') if view.queries.student]


def _asking(view: View) -> str:
    return f"{view.term}: {view.loss} needs what the student's assigner found (`assigned`)"


def check_head_losses(student: nn.Module) -> None:
    """Refuses losses that the decode heads of a segmentor could not call in the first batch.

    Args:
        student (nn.Module): The student. Heads that compute their losses in a way of their own
            pass.

    Raises:
        ValueError: If one of them is no loss of a decode head.
    """
    for name, module in student.named_modules():
        method = getattr(type(module), 'loss_by_feat', None)
        if getattr(method, '__module__', '') != 'mmseg.models.decode_heads.decode_head':
            continue
        losses = module.loss_decode
        for loss in losses if isinstance(losses, nn.ModuleList) else [losses]:
            if not hasattr(loss, 'loss_name'):
                raise ValueError(
                    f'student.{name}.loss_decode: {type(loss).__name__} is no loss of a decode '
                    'head, which has a `loss_name`, such as CrossEntropyLoss'
                )
