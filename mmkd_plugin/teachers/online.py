"""OnlineTeacher: a frozen model outside the module tree, with its own normalisation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmkd_plugin.assigners.rois import (
    Sampled,
    Spot,
    Wish,
    ask,
    check_roi_head,
    features_of,
    roi_parts,
)
from mmkd_plugin.checkpoint import load_weights
from mmkd_plugin.explanations import Scores
from mmkd_plugin.foreign import is_ours
from mmkd_plugin.queries import Asked, Group, decoder_watched, made_up
from mmkd_plugin.registry import MODELS
from mmkd_plugin.seeds import seed_of_iteration
from mmkd_plugin.suspects import told_of_parts
from mmkd_plugin.taps import Maps, Tap, TapReader, Taps, as_list, classes_around, find_module
from mmkd_plugin.taps.chain import names_in
from mmkd_plugin.taps.class_scores import class_scores, heads_watched
from mmkd_plugin.taps.dry_run import DryRun, UntriedError, advice_alone, check_ran, first_that_works
from mmkd_plugin.taps.example import example_batch, image_channels, library_of
from mmkd_plugin.taps.tap import map_tensors
from mmkd_plugin.taps.task_gradient import task_gradients
from mmkd_plugin.teachers.base import Batch, Lesson, Passage, Preview, Teacher, Trial
from mmkd_plugin.teachers.classes import (
    ClassOrder,
    ScoresOfTaps,
    arranged,
    arranged_kind,
    check_names,
    check_same_classes,
    classes_of_checkpoint,
)
from mmkd_plugin.teachers.frozen_forward import EXACT, FrozenForward
from mmkd_plugin.teachers.inference import Inference
from mmkd_plugin.teachers.model import (
    build_model,
    checkpoint_hash,
    config_hash,
    data_in_config,
    model_config,
    state_hash,
)
from mmkd_plugin.teachers.preprocessing import InputConverter, Padding
from mmkd_plugin.views import View, of_kind, taps_of, try_explaining
from mmkd_plugin.words import as_written, first_line, some


@MODELS.register_module()
class OnlineTeacher(Teacher):
    """A frozen, pretrained model that runs beside the student.

    It is not an ``nn.Module``, so it is left out of ``parameters()``, ``state_dict()``, DDP and
    EMA. The model is always in eval mode, its weights get no gradients, and it stops after the last
    tap.

    Args:
        config (str | dict): Path of a config file, a ``pkg::`` path, or a model dict.
        checkpoint (str, optional): File or URL of the weights, in each form that mmengine reads.
            None leaves the weights random, for tests.
        strict (bool): Whether the checkpoint has to cover all weights. Defaults to True.
        name (str): Name in the config and in messages. Defaults to ``'teacher'``.
        inference (dict, optional): ``precision``, ``channels_last``, ``fuse_conv_bn`` and
            ``compile`` of an :class:`Inference`. Defaults to None: the fastest for the device.
        classes (Sequence[str], optional): The names of its classes, in the order of its scores.
            Defaults to None: those that its checkpoint, or else its config, says.

    Raises:
        ValueError: If the config, the checkpoint or ``inference`` cannot be used.
        FileNotFoundError: If the config or the checkpoint does not exist.

    Attributes:
        model (nn.Module): The model.
        forward (FrozenForward, optional): Reads maps. None before :meth:`prepare`, and if the views
            ask only for gradients.

    Examples:
        >>> import torch
        >>> from mmkd_plugin import Batch, OnlineTeacher, Taps, Trial, View
        >>> from mmkd_plugin.taps.dry_run import DryRun
        >>> head = dict(type='FCNHead', in_channels=64, in_index=3, channels=8, num_classes=5)
        >>> config = dict(
        ...     _scope_='mmseg',
        ...     type='EncoderDecoder',
        ...     data_preprocessor=dict(type='SegDataPreProcessor'),
        ...     backbone=dict(type='ResNet', depth=18, stem_channels=8, base_channels=8),
        ...     decode_head=head)
        >>> teacher = OnlineTeacher(config, checkpoint=None)
        >>> view = View(Taps.parse('decode_head.conv_seg'))
        >>> trial = Trial(config, teacher.model.data_preprocessor, DryRun())
        >>> preview = teacher.prepare(trial, [view], torch.device('cpu'))
        >>> lesson = teacher.teach(Batch(torch.rand(2, 3, 64, 64), None), [view])
        >>> lesson.shown[view].shape
        torch.Size([2, 5, 2, 2])
    """

    missing: ClassVar[dict[str, str]] = dict(
        config="a path, 'mmseg::...' or a model dict",
        checkpoint='a file or URL of its trained weights (checkpoint=None is a teacher with random '
        'weights)',
    )

    def __init__(
        self,
        config: str | dict,
        checkpoint: str | None,
        strict: bool = True,
        name: str = 'teacher',
        inference: dict | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.name = name
        self.class_names = check_names(classes, name)
        try:
            self._asked = Inference.from_config(inference)
        except ValueError as error:
            raise ValueError(f"teacher '{name}': inference: {error}") from None
        self.source = (
            config if isinstance(config, str) else as_written(config.get('type', 'model dict'))
        )
        self.config = config
        self.checkpoint = checkpoint
        self.model = build_model(config, name)
        #: Where its weights come from; None if they are random. Some models load them themselves.
        self.weights_from: str | None = checkpoint or getattr(self.model, 'weights_from', None)
        if self.weights_from is None:
            print_log(
                f"Teacher '{name}' has no checkpoint: its weights are random.",
                logger='current',
                level=logging.WARNING,
            )
        elif checkpoint is None:
            self.source = self.weights_from
        else:
            label = name if name == 'teacher' else f"teacher '{name}'"
            loaded = load_weights(self.model, checkpoint, strict=strict, name=label)
            if self.class_names is None:
                said = classes_of_checkpoint(loaded)
                self.class_names, self.reduces_zero = data_in_config(config, name, said)
        self.model.requires_grad_(False)
        self.model.eval()
        self._predicts = False  # it has, once
        self.forward: FrozenForward | None = None
        self._convert: InputConverter | None = None
        self._padding = Padding(1, 0)
        self._loss_run: DryRun | None = None
        self._counts: dict[View, list[int]] = {}  # of queries, by group
        self._roi_views: list[View] = []
        self._roi_scores: ScoresOfTaps = {}
        self._scores: dict[View, Scores] = {}
        self._class_scores: ScoresOfTaps = {}
        self._orders: Mapping[Tap, ClassOrder] = {}

    def prepare(self, student: Trial, views: Sequence[View], device: torch.device) -> Preview:
        """Gets ready to show views of batches from the student's data preprocessor.

        The model runs on a made-up image of the size that the student took. If it does not take
        this size, the size of the student's training crops is tried.

        Args:
            student (Trial): The student at build time.
            views (Sequence[View]): All views that :meth:`teach` may be asked for.
            device (torch.device): The device for the trial. The model is moved there and back.

        Returns:
            Preview: The results of the trial.

        Raises:
            ValueError: If a tap names a module that the model does not have or does not run, or the
                class scores cannot be explained.
        """
        owner = f"teacher '{self.name}'"
        self._roi_views = self._checked_rois(of_kind(views, 'rois'), owner)
        taps = self._taps_before(views)
        gradient_taps = taps_of(views, 'gradients')
        every = list(dict.fromkeys([*taps, *gradient_taps]))
        for view in views:
            view.check_model(self.model, owner)
        for tap in every:
            find_module(self.model, tap, owner)
        self._check_channels(student.run.channels)
        self._convert = InputConverter.between(student.preprocessor, self.model.data_preprocessor)
        home = next(self.model.parameters()).device
        self.model.to(device)
        run = None
        if taps:
            with self._parts_named():
                self.forward = FrozenForward(
                    self.model,
                    taps,
                    self._asked,
                    preprocessor=student.preprocessor,
                    device=device,
                    size=student.run.size,
                    owner=owner,
                    parts=[(view.entrance, view.taps) for view in views if view.entrance],
                )
            run = self.forward.run
            self.forward.run = run.without_maps()
            self._padding = self._needed_padding(device, run.size)
        asking = of_kind(views, 'queries')
        tried, queries = {}, {}
        if asking:
            tried, queries = self._try_asking(asking, device, run.size, student.own)
        of_rois = self._try_rois(run, student.sampled, device) if self._roi_views else {}
        if gradient_taps:
            run = self._try_loss(every, device, owner)
            self._loss_run = run.without_maps()
        if self._roi_views:
            tried |= {view: _of_wishes(view, of_rois) for view in self._roi_views}
            values = {wish.tap: maps for wish, maps in of_rois.items()}
            run = replace(run, values={**run.values, **values})
        self.model.to(home)
        shown = {view: view.of(run.values) for view in of_kind(views, 'maps', 'gradients')} | tried
        for view in of_kind(views, 'explanations'):
            tried = try_explaining(view, self.model, device, 'the teacher', run.size)
            self._scores[view], shown[view] = tried
        self._class_scores = {**run.scores, **self._roi_scores}
        passages = self._passages(views, run.values)
        shows = run.values, shown, self._scores, run.size, self._class_scores
        return Preview(*shows, passages, queries)

    @contextmanager
    def _parts_named(self) -> Iterator[None]:
        """Adds to the error of a model that does not run what looks wrong in its config."""
        try:
            yield
        except UntriedError as error:
            odd = self._odd_parts()
            if not odd:
                raise
            raise ValueError(f'{error.said}{odd}') from error

    def _odd_parts(self) -> str:
        model, scope = model_config(self.config, self.name)
        return told_of_parts(model, scope, f"teacher '{self.name}'.config")

    def _passages(self, views: Sequence[View], read: Mapping[Tap, Maps]) -> dict[View, Passage]:
        """Returns the ways through parts of the model for views with an entrance."""

        def way(view: View) -> Passage:
            several = {tap: not isinstance(read[tap], Tensor) for tap in view.taps}
            counts = {tap: len(as_list(read[tap])) for tap in view.taps}

            def run(maps: Sequence[Tensor]) -> list[Tensor]:
                given = iter(self.forward.through((view.entrance, view.taps), maps))
                made = {tap: [next(given) for _ in range(counts[tap])] for tap in view.taps}
                made = {tap: x if several[tap] else x[0] for tap, x in made.items()}
                return as_list(view.of(self._arranged(made)))

            return Passage(as_list(view.entrance.of(read)), run)

        return {view: way(view) for view in views if view.entrance}

    def _check_channels(self, student: int | None) -> None:
        """Refuses a model for images with other channels than the student's."""
        own = image_channels(self.model)
        if student not in (None, own):
            raise ValueError(
                f"teacher '{self.name}' takes images of {own} channels, and those of the student "
                f'have {student}: both see the same images, so take a teacher for such images'
            )

    def arrange(self, orders: Mapping[Tap, ClassOrder]) -> None:
        """From now on shows class scores in the student's order."""
        self._orders = dict(orders)

    def _arranged(self, read: Mapping[Tap, Maps]) -> dict[Tap, Maps]:
        return arranged(read, self._orders, self._class_scores)

    def _needed_padding(self, device: torch.device, size: int) -> Padding:
        """Returns the padding of its own preprocessor if it does not take images without it."""
        divisor = Padding.of(self.model.data_preprocessor)
        value = self._convert.target.pad_value
        # sizes between two multiples, which halvings that round up or down bring to odd ones
        sides = {size - part - 1 for part in (0, divisor // 4, divisor // 2)}
        if divisor == 1 or all(self.forward.takes(side, device) for side in sides if side > 0):
            return Padding(1, value)
        return Padding(divisor, value)

    def _try_loss(self, taps: Sequence[Tap], device: torch.device, owner: str) -> DryRun:
        run = first_that_works(self.model, taps, device, 'loss', owner)
        if run.problem is not None:
            raise ValueError(
                f'{owner}: a loss on gradients needs its task loss, which could not be tried '
                f'on a made-up label. What it said: {run.problem}'
            )
        check_ran(self.model, run, taps, owner)
        return run

    def teach(self, batch: Batch, views: Sequence[View]) -> Lesson:
        """Runs the model up to the last tap; for views of gradients it runs the task loss.

        Args:
            batch (Batch): The batch.
            views (Sequence[View]): Some of the views given to :meth:`prepare`.

        Returns:
            Lesson: The tensors of these views.
        """
        gradients, explaining = of_kind(views, 'gradients'), of_kind(views, 'explanations')
        asking, rois = of_kind(views, 'queries'), of_kind(views, 'rois')
        read, slopes, left = {}, {}, views
        if gradients:  # the backward pass frees the graph, so explanations need another run
            read, slopes = self._with_gradients(batch, taps_of(views, 'maps'), gradients)
            left = [*explaining, *asking, *rois]
        chosen, shown, queries = {}, {}, {}
        with ExitStack() as stack:
            if asking:
                asked = stack.enter_context(decoder_watched(self.model, self._asked_for(asking)))
            if left:
                on_path = [tap for view in explaining for tap in view.on_path()]
                for view in explaining:
                    stack.enter_context(view.context(self.model))
                taps = self._taps_before(left)
                read |= self.read(batch.inputs, batch.data_samples, taps, on_path)
            read = self._arranged(read)
            for view in explaining:
                kind = arranged_kind(self._scores[view], view.scores, self._orders)
                size = batch.inputs.shape[2:]
                chosen[view] = view.choose(read, kind, batch.step)
                shown[view] = view.explain(read, chosen[view], kind, size, False).pairs()
        for view in asking:
            device = batch.inputs.device
            queries[view] = self._groups(asked, view, seed_of_iteration(view.term, device))
            shown[view] = self._answers(asked, queries[view], batch.inputs)
        read = {tap: _detached(maps) for tap, maps in read.items()}  # the graph has been used
        shown |= {view: view.of(read) for view in of_kind(views, 'maps')}
        shown |= {view: view.of(slopes) for view in gradients}
        passages = self._passages(views, read)
        features = read.get(features_of(self.model))
        on_rois = partial(self._on_rois, rois, features) if rois else None
        own = [view for view in asking if view.queries.student]
        on_own = partial(self._on_own, own, asked, batch.inputs) if own else None
        after = dict(on_rois=on_rois, on_own=on_own)
        return Lesson(shown, chosen, passages=passages, queries=queries, **after)

    def _taps_before(self, views: Sequence[View]) -> list[Tap]:
        """The taps that a forward without losses reads for views; a RoI head runs after it."""
        taps = taps_of(views, 'maps', 'explanations', 'queries')
        features = [features_of(self.model)] if of_kind(views, 'rois') else []
        return list(dict.fromkeys([*taps, *features]))

    def _checked_rois(self, views: Sequence[View], owner: str) -> list[View]:
        """Refuses views that the RoI head cannot show."""
        for view in views:
            check_roi_head(self.model, view.taps, owner)
            if any({'boxes', 'masks'} & set(Spot.of(tap).each) for tap in view.taps):
                check_same_classes(view.term, self.class_names, self.name)
        return list(views)

    def _ask_rois(
        self, views: Sequence[View], features: Maps, sampled: Mapping[int, Sampled]
    ) -> dict[Wish, Maps]:
        """Asks the RoI head, in float32, about the RoIs of the student."""
        wishes = [wish for view in views for wish in map(Wish, view.taps, view.rois)]
        with EXACT.context(as_list(features)[0].device):
            return ask(self.model, features, wishes, sampled, f"teacher '{self.name}'")

    def _on_rois(
        self, views: Sequence[View], features: Maps, sampled: Mapping[int, Sampled]
    ) -> dict[View, Maps]:
        found = self._ask_rois(views, features, sampled)
        found = {wish: self._arranged({wish.tap: maps})[wish.tap] for wish, maps in found.items()}
        return {view: _of_wishes(view, found) for view in views}

    def _try_rois(
        self, run: DryRun, sampled: Mapping[int, Sampled], device: torch.device
    ) -> dict[Wish, Maps]:
        """Asks the RoI head in a trial, and notes how its class scores lie."""
        features = map_tensors(run.values[features_of(self.model)], lambda x: x.to(device))
        on_device = {stage: one.to(device) for stage, one in sampled.items()}
        with heads_watched(self.model, taps_of(self._roi_views)) as given:
            found = self._ask_rois(self._roi_views, features, on_device)
        self._roi_scores = {
            wish.tap: (None,) * len(as_list(maps))
            if Spot.of(wish.tap).masks
            else class_scores(self.model, wish.tap, maps, given)
            for wish, maps in found.items()
        }
        return {wish: map_tensors(maps, Tensor.cpu) for wish, maps in found.items()}

    def _asked_for(self, views: Sequence[View]) -> str:
        return f"{views[0].term}.queries: teacher '{self.name}'"

    def _groups(self, asked: Asked, view: View, seed: Tensor) -> list[Group]:
        """Returns the queries that both models are asked, in float32."""
        with EXACT.context(seed.device):
            return asked.groups(view.queries, seed)

    @torch.no_grad()
    def _answers(
        self,
        asked: Asked,
        groups: Sequence[Group],
        inputs: Tensor,
        whose: str = 'teacher',
    ) -> list[Tensor]:
        """Returns what the last layer of the decoder answers about images, in float32."""
        dtype = next(self.model.parameters()).dtype
        with EXACT.context(inputs.device):
            answers = [x[-1:] for x in asked.answers(groups, dtype, whose)]
        size, missing = inputs.shape[-2:], self._padding.missing(inputs)
        padded = tuple(a + b for a, b in zip(size, missing))
        # masks (1, N, Q, H, W) have a place in the image, boxes (1, N, Q, 4) are numbers
        return [self._padding.cut(x, size, padded) if x.ndim == 5 else x for x in answers]

    def _on_own(
        self, views: Sequence[View], asked: Asked, inputs: Tensor, own: Group
    ) -> dict[View, list[Tensor]]:
        """Answers to the student's queries, the same for all views."""
        return dict.fromkeys(views, self._answers(asked, [own], inputs, 'student'))

    def _try_asking(
        self, views: Sequence[View], device: torch.device, size: int, own: Group | None
    ) -> tuple[dict[View, list[Tensor]], dict[View, list[Group]]]:
        """Asks the decoder three queries of each group about a made-up image; with the queries."""
        inputs, samples = example_batch(self.model, device, size)
        with decoder_watched(self.model, self._asked_for(views)) as asked:
            self.forward(inputs, samples, taps_of(views))
        shown, queries = {}, {}
        for view in views:
            seed = torch.zeros((), dtype=torch.int64, device=device)
            groups = self._groups(asked, view, seed)
            self._counts[view] = [group.count for group in groups]
            groups = [group.first(3) for group in groups]
            answers = self._answers(asked, groups, inputs)
            if view.queries.student:
                self._counts[view].append(own.count)
                answers += self._answers(asked, [own.first(3).to(device)], inputs, 'student')
            shown[view] = made_up(answers, seed=1)
            queries[view] = [group.to('cpu') for group in groups]
        return shown, queries

    def read(
        self,
        inputs: Tensor,
        data_samples: list | None,
        taps: Sequence[Tap],
        on_path: Sequence[Tap] = (),
    ) -> dict[Tap, Maps]:
        """Runs the model on a batch from the student's data preprocessor and reads taps.

        Args:
            inputs (Tensor): Images ``(N, C, H, W)``, normalised for the student.
            data_samples (list, optional): Their data samples, which know the size without padding.
            taps (Sequence[Tap]): Some of the taps of the views given to :meth:`prepare`.
            on_path (Sequence[Tap]): Some of ``taps``. There is an autograd graph from them to later
                taps. Defaults to ``()``.

        Returns:
            dict[Tap, Tensor | list[Tensor]]: The maps, as :class:`FrozenForward` returns them.
        """
        with torch.no_grad():
            inputs = self._convert(inputs, data_samples)
            images, data_samples = self._padding(inputs, data_samples)
        if images is inputs:
            return self.forward(inputs, data_samples, taps, on_path)
        if on_path:
            self._check_size(inputs, 'explanations')
        read = self.forward(images, data_samples, taps)
        size, padded = tuple(inputs.shape[-2:]), tuple(images.shape[-2:])
        return {tap: self._padding.cut(maps, size, padded) for tap, maps in read.items()}

    def _check_size(self, inputs: Tensor, what: str) -> None:
        """Refuses a batch that would have to be padded where maps cannot be cut back."""
        if any(self._padding.missing(inputs)):
            divisor, (height, width) = self._padding.divisor, inputs.shape[-2:]
            raise ValueError(
                f"teacher '{self.name}' needs images padded to multiples of {divisor}, and those "
                f'of this batch have {height}×{width} pixels: for {what}, let the data '
                f'preprocessor of the student pad to {divisor} too'
            )

    @torch.no_grad()
    def _with_gradients(
        self, batch: Batch, taps: Sequence[Tap], views: Sequence[View]
    ) -> tuple[dict[Tap, Maps], dict[Tap, Maps]]:
        """Runs the task loss once; returns the maps at taps and the gradients of views.

        There is an autograd graph from the first tap of the views on, but not from the weights.
        """
        gradient_taps = taps_of(views, 'gradients')
        inputs, run = self._convert(batch.inputs, batch.data_samples), self._loss_run
        self._check_size(inputs, 'a loss on gradients')
        inference, _ = self._asked.where_differentiated.on(inputs.device)
        every = [*taps, *gradient_taps]
        reader = TapReader(
            self.model, every, run.in_place, places=run.places, on_path=gradient_taps
        )
        with torch.enable_grad(), inference.context(inputs.device), reader:
            losses = self.model(inputs, batch.data_samples, mode='loss')
            loss = self.model.parse_losses(losses)[0]
            gradients = task_gradients(
                loss, {tap: reader.read(tap) for tap in gradient_taps}, create_graph=False
            )
        return {tap: reader.read(tap) for tap in taps}, gradients

    def norms(
        self, taps: Taps, names: Sequence[str] | None = None
    ) -> list[tuple[str, nn.Module | None]]:
        """Returns the batch norms that feed the maps of taps; see :meth:`Teacher.norms`."""
        owner = f"teacher '{self.name}'"
        if names is None:
            run = self._loss_run if self.forward is None else self.forward.run
            names = [name for tap in taps for name in run.norms[tap]]
        return [(n, find_module(self.model, Tap(n), owner) if n else None) for n in names]

    def classes(self, tap: Tap) -> int | None:
        """Returns the number of classes of the head around a tap, None if it is not known."""
        if tap in self._orders:  # the student's
            return len(self._orders[tap].numbers)
        return classes_around(self.model, tap)

    def weights_hash(self) -> str:
        """Returns a hash of the weights in the checkpoint, or of the random ones."""
        if self.checkpoint:
            return checkpoint_hash(self.checkpoint)
        return state_hash(self.model.state_dict())

    def config_hash(self) -> str:
        """Returns a hash of the model in its config."""
        return config_hash(self.config, self.name)

    def predictor(self) -> nn.Module:
        """Returns the model."""
        return self.model

    @torch.no_grad()
    def predict(self, batch: Batch) -> Tensor | list:
        """Predicts a batch with the whole model, in float32; see :meth:`Teacher.predict`.

        Raises:
            ValueError: If the model cannot predict the first batch.
        """
        try:
            found = self._predicted(batch)
        except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError) as e:
            if self._predicts or is_ours(e) or isinstance(e, torch.cuda.OutOfMemoryError):
                raise
            raise ValueError(
                f"teacher '{self.name}' cannot predict: {first_line(e)}"
                f'{self._odd_parts() or advice_alone("predicts", "test")}'
            ) from e
        self._predicts = True
        return found

    def _predicted(self, batch: Batch) -> Tensor | list:
        inputs = self._convert(batch.inputs, batch.data_samples)
        images, samples = self._padding(inputs, batch.data_samples)
        (height, width), size = inputs.shape[-2:], tuple(images.shape[-2:])
        with EXACT.context(images.device):
            if library_of(self.model) == 'mmseg':
                about = dict(img_shape=size, ori_shape=size, pad_shape=size)
                scores = self.model.encode_decode(images.float(), [about] * len(images))
                scores = scores[..., :height, :width]
                return scores.sigmoid() if scores.shape[1] == 1 else scores.softmax(1)
            samples = [sample.new() for sample in samples]
            found = self.model.predict(images.float(), samples, rescale=False)
        return [sample.pred_instances for sample in found]

    def apply_to_tensors(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> None:
        """Follows ``.to()``, ``.cuda()`` and ``.half()`` of the Distiller."""
        self.model._apply(function, recurse)

    def work(self) -> str:
        """Describes the model and its work in a line of the plan."""
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        text = f"teacher '{self.name}' ({self.source}): {type(self.model).__name__}, "
        text += f'{millions:.1f} M parameters'
        if self._loss_run is not None:
            text += ', runs its task loss and the gradient of it while a loss on gradients is on'
        if self.forward is not None:
            text += f'{", else" if self._loss_run is not None else ","} {self.forward.work()}'
            text += self._second_runs()
        if self._counts:
            groups = some(
                f'{view.queries} ({" + ".join(map(str, counts))})'
                for view, counts in self._counts.items()
            )
            text += f'; its decoder, and the one of the student, are asked again: {groups}'
        if self._roi_views:
            parts = roi_parts(self.model, taps_of(self._roi_views))
            millions = sum(p.numel() for p in parts.parameters()) / 1e6
            text += f'; runs its roi_head on the RoIs of the student ({millions:.2f} M parameters)'
        return text

    def _second_runs(self) -> str:
        """Describes the parts that run again on maps of the student."""
        names = names_in([c for chains in self.forward.chains.values() for c in chains])
        if not names:
            return ''
        parts = nn.ModuleList({find_module(self.model, Tap(name), self.name) for name in names})
        millions = sum(p.numel() for p in parts.parameters()) / 1e6
        return (
            f'; runs {some(names)} again on maps of the student, forward and backward '
            f'({millions:.2f} M parameters)'
        )


def _of_wishes(view: View, found: Mapping[Wish, Maps]) -> Maps:
    """The maps of a view of RoIs, as :meth:`Taps.of` gives those of others."""
    each = [found[wish] for wish in map(Wish, view.taps, view.rois)]
    return each[0] if len(each) == 1 else [x for maps in each for x in as_list(maps)]


def _detached(maps: Maps) -> Maps:
    return maps.detach() if isinstance(maps, Tensor) else [x.detach() for x in maps]
