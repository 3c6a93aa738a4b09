"""OnlineTeacher: a frozen model outside the module tree, fed as it was trained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import ClassVar

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmkd_plugin.checkpoint import load_weights
from mmkd_plugin.explanations import Scores
from mmkd_plugin.registry import MODELS
from mmkd_plugin.taps import (
    Maps,
    Tap,
    TapError,
    TapReader,
    Taps,
    as_list,
    classes_around,
    find_module,
)
from mmkd_plugin.taps.dry_run import DryRun, first_that_works, never_ran, read_once
from mmkd_plugin.taps.example import crop_size, example_batch
from mmkd_plugin.taps.task_gradient import task_gradients
from mmkd_plugin.teachers.base import Batch, Lesson, Preview, Teacher, Trial
from mmkd_plugin.teachers.dense_forward import dense_forward, heads_of
from mmkd_plugin.teachers.inference import (
    FOLDED_ERROR,
    HALF_ERROR,
    Inference,
    amp_is_on,
    compile_between,
    distance,
    fold,
    foldable,
    replaced_forwards,
)
from mmkd_plugin.teachers.model import build_model
from mmkd_plugin.teachers.preprocessing import InputConverter
from mmkd_plugin.views import View, of_kind, taps_of, try_explaining
from mmkd_plugin.words import first_line

#: As the teacher was built.
EXACT = Inference('fp32', False, False, False)


@MODELS.register_module()
class OnlineTeacher(Teacher):
    """A frozen, pretrained model that runs beside the student.

    Not an ``nn.Module``: it takes no part in ``parameters()``, ``state_dict()``, DDP or EMA. It is
    always in eval mode, runs without gradients, and no further than the last tap.

    Args:
        config (str | dict): Path of a config file, a ``pkg::`` path, or a model dict.
        checkpoint (str, optional): Weights, in any form that mmengine reads. None leaves the
            weights random, for tests.
        strict (bool): Whether the checkpoint has to cover all weights. Defaults to True.
        name (str): What terms and messages call it. Defaults to ``'teacher'``.
        inference (dict, optional): ``precision``, ``channels_last``, ``fuse_conv_bn`` and
            ``compile`` of an :class:`Inference`. Defaults to None: the fastest for the device.

    Raises:
        ValueError: If the config, the checkpoint or ``inference`` is not usable.
        FileNotFoundError: If one of them does not exist.
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
    ) -> None:
        self.name = name
        try:
            self._asked = Inference.from_config(inference)
        except ValueError as error:
            raise ValueError(f"teacher '{name}': inference: {error}") from None
        self.source = config if isinstance(config, str) else config.get('type', 'model dict')
        self.checkpoint = checkpoint
        self.model = build_model(config, name)
        if checkpoint is None:
            print_log(
                f"Teacher '{name}' has no checkpoint: its weights are random.",
                logger='current',
                level=logging.WARNING,
            )
        else:
            label = name if name == 'teacher' else f"teacher '{name}'"
            load_weights(self.model, checkpoint, strict=strict, name=label)
        self.model.requires_grad_(False).eval()
        self._convert: InputConverter | None = None
        self._heads: list[str] | None = None
        self._run: DryRun | None = None
        self._loss_run: DryRun | None = None
        self.inference, self._how = EXACT, 'in fp32'
        self._compiled: dict[nn.Module, Callable] = {}
        self._taps: list[Tap] = []
        self._scores: dict[View, Scores] = {}

    def prepare(self, student: Trial, views: Sequence[View], device: torch.device) -> Preview:
        """Gets ready to show views of batches made by the student's preprocessor.

        A forward on a made-up image of the size that suits the student is tried; where that does
        not suit the teacher, the size of the student's training crops is.

        Raises:
            ValueError: If a tap names no module, or one that does not run, or the class scores
                cannot be explained.
        """
        owner = f"teacher '{self.name}'"
        taps = taps_of(views, 'maps', 'explanations')
        gradient_taps = taps_of(views, 'gradients')
        every = list(dict.fromkeys([*taps, *gradient_taps]))
        for tap in every:
            find_module(self.model, tap, owner)
        self._taps = taps
        self._convert = InputConverter.between(student.preprocessor, self.model.data_preprocessor)
        home = next(self.model.parameters()).device
        self.model.to(device)
        if taps:
            self._heads = heads_of(self.model, taps, owner)
            size = student.run.size
            self._run, example = self._prepare_maps(student.preprocessor, taps, device, size, owner)
            _check_ran(self.model, self._run, taps, owner)
            with torch.no_grad():
                self._settle(taps, *example, owner)
        if gradient_taps:
            self._loss_run = first_that_works(self.model, every, device, 'loss', owner)
            if self._loss_run.problem is not None:
                raise ValueError(
                    f'{owner}: a loss on gradients needs its task loss, which could not be tried '
                    f'on a made-up label. What it said: {self._loss_run.problem}'
                )
            _check_ran(self.model, self._loss_run, every, owner)
        self.model.to(home)
        run = self._loss_run or self._run
        shown = {view: view.of(run.values) for view in of_kind(views, 'maps', 'gradients')}
        for view in of_kind(views, 'explanations'):
            tried = try_explaining(view, self.model, device, 'the teacher', run.size)
            self._scores[view], shown[view] = tried
        self._run = self._run and self._run.without_maps()
        self._loss_run = self._loss_run and self._loss_run.without_maps()
        return Preview(run.values, shown, self._scores, run.size)

    def _prepare_maps(
        self,
        preprocessor: nn.Module,
        taps: Sequence[Tap],
        device: torch.device,
        size: int,
        owner: str,
    ) -> tuple[DryRun, tuple[Tensor, list | None]]:
        try:
            return self._try(taps, device, size)
        except TapError as error:
            raise TapError(f'{owner}: {error}') from None
        except Exception:  # a transformer that takes images of its own training size alone
            crop = crop_size(preprocessor)
            if crop in ((), (size,)):
                raise
            return self._try(taps, device, *crop)

    def _try(
        self, taps: Sequence[Tap], device: torch.device, size: int
    ) -> tuple[DryRun, tuple[Tensor, list | None]]:
        example = example_batch(self.model, device, size)
        run = read_once(self.model, taps, lambda: dense_forward(self.model, *example, self._heads))
        return replace(run, size=size), example

    def _settle(
        self, taps: Sequence[Tap], inputs: Tensor, data_samples: list | None, owner: str
    ) -> None:
        """Chooses how to compute, and tries it on the image that the teacher was tried on."""
        device = inputs.device
        self.inference, why = self._asked.on(device)
        exact = self._maps(inputs, data_samples, taps, EXACT)

        def gap(inference: Inference) -> float:
            return distance(self._maps(inputs, data_samples, taps, inference), exact)

        also = []
        if self.inference.fuse_conv_bn:
            also.append(self._fuse(lambda: gap(EXACT), taps, inputs, data_samples))
        if self.inference.precision != 'fp32':
            why = self._try_half(gap, device, owner) or why
        if self.inference.compile:
            also.append(self._compile(gap, taps, device, owner))
        if self.inference.channels_last:
            also.insert(0, 'channels_last')
            if device.type == 'cuda':  # a CPU arranges weights anew in any case
                self.model.to(memory_format=torch.channels_last)
        how = f'in {self.inference.precision} ({why})'
        self._how = ', '.join(filter(None, [how, *also]))

    def _fuse(
        self,
        gap: Callable[[], float],
        taps: Sequence[Tap],
        inputs: Tensor,
        data_samples: list | None,
    ) -> str:
        """Fuses convolutions and batch norms, and says how many."""

        def read() -> list[Tensor]:
            maps = self._maps(inputs, data_samples, taps, EXACT)
            return [tensor for value in maps.values() for tensor in as_list(value)]

        pairs = foldable(self.model, read)
        undo = fold(pairs)
        if gap() > FOLDED_ERROR:
            undo()
            return 'batch norms not fused, which would change its maps'
        return f'{len(pairs)} batch norms fused into their convolutions' if pairs else ''

    def _try_half(self, gap: Callable[[Inference], float], device: torch.device, owner: str) -> str:
        """Goes back to fp32 where half precision does not do, and says why.

        Raises:
            ValueError: If it was asked for and does not run.
        """
        half, error = self.inference.precision, float('inf')
        try:
            error = gap(replace(self.inference, compile=False))
            said = 'its maps are not finite' if error == float('inf') else ''
        except Exception as caught:  # an operation of a foreign model that takes no such type
            said = first_line(caught)
        asked = self._asked.precision != 'auto'
        if said and asked:
            raise ValueError(f"{owner} does not run with precision='{half}': {said}")
        if asked or error <= HALF_ERROR:
            return ''
        self.inference, _ = replace(self._asked, precision='fp32').on(device)
        return f'not in {half}: {said or f"its maps would change by {error:.0%}"}'

    def _compile(
        self,
        gap: Callable[[Inference], float],
        taps: Sequence[Tap],
        device: torch.device,
        owner: str,
    ) -> str:
        """Compiles what lies between the taps, if that works, and says how much."""
        places = [place for tap in taps for place in self._run.places.get(tap, (tap,))]
        self._compiled = compile_between(self.model, places, self._run.ran, device)
        try:
            problem = 'its maps would change' if gap(self.inference) > HALF_ERROR else ''
        except Exception as caught:  # no compiler, or a part that cannot be compiled
            problem = first_line(caught)
        if not problem:
            return f'{len(self._compiled)} parts compiled'
        self.inference = replace(self.inference, compile=False)
        print_log(f'{owner} is not compiled: {problem}', logger='current', level=logging.WARNING)
        return 'not compiled'

    def teach(self, batch: Batch, views: Sequence[View]) -> Lesson:
        """Runs the model no further than the last tap; for gradients, its task loss."""
        gradients, explaining = of_kind(views, 'gradients'), of_kind(views, 'explanations')
        read, slopes, left = {}, {}, views
        if gradients:  # the backward pass of the task loss uses its graph up
            read, slopes = self._with_gradients(batch, taps_of(views, 'maps'), gradients)
            left = explaining
        chosen, shown = {}, {}
        with ExitStack() as stack:
            if left:
                on_path = [tap for view in explaining for tap in view.on_path()]
                for view in explaining:
                    stack.enter_context(view.context(self.model))
                read |= self.read(batch.inputs, batch.data_samples, taps_of(left), on_path)
            for view in explaining:
                kind, size = self._scores[view], batch.inputs.shape[2:]
                chosen[view] = view.choose(read, kind, batch.step)
                shown[view] = view.explain(read, chosen[view], kind, size, False).pairs()
        read = {tap: _detached(maps) for tap, maps in read.items()}  # no graph is needed any more
        shown |= {view: view.of(read) for view in of_kind(views, 'maps')}
        shown |= {view: view.of(slopes) for view in gradients}
        return Lesson(shown, chosen)

    @torch.no_grad()
    def read(
        self,
        inputs: Tensor,
        data_samples: list | None,
        taps: Sequence[Tap],
        on_path: Sequence[Tap] = (),
    ) -> dict[Tap, Maps]:
        """Reads taps for a batch that the student's preprocessor made.

        Args:
            inputs (Tensor): Images ``(N, C, H, W)``, normalised for the student.
            data_samples (list, optional): Their data samples; tells padding from picture.
            taps (Sequence[Tap]): A part of those that the views given to :meth:`prepare` read.
            on_path (Sequence[Tap]): A part of ``taps`` from which there is to be a graph to those
                behind it; none for the weights. Defaults to ``()``.

        Returns:
            dict[Tap, Maps]: A tensor or a list of tensors for each tap, contiguous, and in float32
            unless the run itself uses automatic mixed precision.
        """
        inputs = self._convert(inputs, data_samples)
        if on_path:
            inference, _ = self._asked.where_differentiated.on(inputs.device)
            return self._maps(inputs, data_samples, taps, inference, on_path)
        values = self._maps(inputs, data_samples, taps, self.inference)
        widen = self.inference.precision != 'fp32' and not amp_is_on(inputs.device)
        return {
            tap: _plain(x, widen) if isinstance(x, Tensor) else [_plain(y, widen) for y in x]
            for tap, x in values.items()
        }

    def _maps(
        self,
        inputs: Tensor,
        data_samples: list | None,
        taps: Sequence[Tap],
        inference: Inference,
        on_path: Sequence[Tap] = (),
    ) -> dict[Tap, Maps]:
        """What taps read in images that are normalised for the teacher."""
        run, heads = self._run, self._heads
        if heads is not None:
            heads = [head for head in heads if any(tap.path.split('.')[0] == head for tap in taps)]
        reader = TapReader(self.model, taps, run.in_place, run.calls, run.places, on_path=on_path)
        inputs = inference.laid_out(inputs)
        compiled = replaced_forwards(self._compiled if inference.compile else {})
        grad = torch.set_grad_enabled(bool(on_path))
        with grad, inference.context(inputs.device), compiled, reader:
            dense_forward(self.model, inputs, data_samples, heads)
        return {tap: reader.read(tap) for tap in taps}

    @torch.no_grad()
    def _with_gradients(
        self, batch: Batch, taps: Sequence[Tap], views: Sequence[View]
    ) -> tuple[dict[Tap, Maps], dict[Tap, Maps]]:
        """The maps of taps, and the gradients of the task loss for views, in one run of the loss.

        There is a graph from the first of the views' taps on, and none for the weights.
        """
        gradient_taps = taps_of(views, 'gradients')
        inputs, run = self._convert(batch.inputs, batch.data_samples), self._loss_run
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
        """The batch norms that feed the maps of taps; see :meth:`Teacher.norms`."""
        owner = f"teacher '{self.name}'"
        if names is None:
            run = self._run if self._run is not None else self._loss_run
            names = [name for tap in taps for name in run.norms[tap]]
        return [(n, find_module(self.model, Tap(n), owner) if n else None) for n in names]

    def classes(self, tap: Tap) -> int | None:
        """The number of classes of the head around a tap."""
        return classes_around(self.model, tap)

    def predictor(self) -> nn.Module:
        """The model itself."""
        return self.model

    def apply_to_tensors(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> None:
        """Follows ``.to()``, ``.cuda()``, ``.half()`` of the model that it teaches."""
        self.model._apply(function, recurse)

    def work(self) -> str:
        """What the model computes for the taps that are read, in words."""
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        text = f"teacher '{self.name}' ({self.source}): {type(self.model).__name__}, "
        text += f'{millions:.1f} M parameters'
        if self._loss_run is not None:
            text += ', runs its task loss and the gradient of it while a loss on gradients is on'
        if self._run is None:
            return text
        run = self._run
        last = max(run.ran.index(tap.path) for tap in self._taps)
        roots = {name.split('.')[0] for name in run.ran[: last + 1]}
        parts = [name for name, _ in self.model.named_children() if name in roots]
        other = ', else' if self._loss_run is not None else ','
        text += f'{other} runs {", ".join(parts)}; stops after {run.ran[last]}; {self._how}'
        return text


def _detached(maps: Maps) -> Maps:
    return maps.detach() if isinstance(maps, Tensor) else [x.detach() for x in maps]


def _plain(tensor: Tensor, widen: bool) -> Tensor:
    """A contiguous tensor, in float32 if it is to be widened and is in half precision."""
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    dtype = torch.float32 if widen and half else tensor.dtype
    return tensor.to(dtype, memory_format=torch.contiguous_format)


def _check_ran(model: nn.Module, run: DryRun, taps: Sequence[Tap], owner: str) -> None:
    for tap in taps:
        if not run.calls[tap]:
            raise ValueError(never_ran(model, tap, run, owner))
