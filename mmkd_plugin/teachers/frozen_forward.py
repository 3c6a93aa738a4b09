"""FrozenForward: reads taps of a frozen model, as fast as its maps allow."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmkd_plugin.taps import Maps, Tap, TapError, TapReader, Taps, as_list, find_module
from mmkd_plugin.taps.chain import Chain, chains_between, check_chains, run_chains
from mmkd_plugin.taps.dry_run import DryRun, UntriedError, advice_alone, check_ran, read_once
from mmkd_plugin.taps.example import EXAMPLE_SIZES, crop_size, example_batch
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
from mmkd_plugin.words import first_line

#: The model computes as it was built.
EXACT = Inference('fp32', channels_last=False, fuse_conv_bn=False, compile=False)


class FrozenForward:
    """Reads taps of a frozen model, which stops after the last tap.

    Each option of ``asked`` is tried on a made-up image and switched off if it changes the maps.

    Args:
        model (nn.Module): A model in eval mode whose weights get no gradient.
        taps (Sequence[Tap]): All taps that later calls may read.
        asked (Inference): Options of the computation.
        preprocessor (nn.Module): The student's data preprocessor, which knows the size of crops.
        device (torch.device): The device of the model.
        size (int): Height and width of the made-up image, pixels. If the model does not take it,
            the size of the student's training crops is tried, and a larger one.
        owner (str): Name of the model in messages.
        parts (Iterable[tuple[Taps, Taps]]): Where each part begins and ends that later calls may
            run on maps of another model. Defaults to ``()``.

    Raises:
        ValueError: If a tap does not run, the model does not run in the precision that the config
            asks for, or modules alone do not lead from one end of a part to the other.

    Attributes:
        run (DryRun): Results of the trial.
        inference (Inference): The options in use.
        how (str): The options in use, for the plan.
        compiled (dict[nn.Module, Callable]): Compiled forwards by module.
        chains (dict[tuple[Taps, Taps], list[Chain]]): The modules of each part, for each map.
    """

    def __init__(
        self,
        model: nn.Module,
        taps: Sequence[Tap],
        asked: Inference,
        preprocessor: nn.Module,
        device: torch.device,
        size: int,
        owner: str,
        parts: Iterable[tuple[Taps, Taps]] = (),
    ) -> None:
        self.model = model
        self.taps = list(taps)
        self._asked = asked
        self._owner = owner
        self._whole = heads_of(model, taps, owner) is None
        self.compiled: dict[nn.Module, Callable] = {}
        self.run, example = self._try_sizes(preprocessor, device, size)
        check_ran(model, self.run, taps, owner)
        with torch.no_grad():
            self._settle(*example)
        self.chains = {part: self._chains(*part, *example) for part in dict.fromkeys(parts)}

    def _try_sizes(
        self, preprocessor: nn.Module, device: torch.device, size: int
    ) -> tuple[DryRun, tuple[Tensor, list | None]]:
        problem: Exception | None = None
        example: tuple[Tensor, list | None] | None = None
        # Some transformers take only images of their training size, and some want more positions
        # than they have queries.
        larger = [side for side in EXAMPLE_SIZES if side > size]
        for side in dict.fromkeys((size, *crop_size(preprocessor), *larger)):
            try:
                example = example_batch(self.model, device, side)
                run = read_once(
                    self.model,
                    self.taps,
                    lambda: dense_forward(self.model, *example, self._heads(self.taps)),  # noqa: B023
                )
            except TapError as error:
                raise TapError(f'{self._owner}: {error}') from None
            except Exception as error:  # a model may raise anything
                problem = problem or error
            else:
                return replace(run, size=side, channels=example[0].shape[1]), example
        raise self._cannot_run(problem, example) from problem

    def _chains(
        self, start: Taps, end: Taps, inputs: Tensor, data_samples: list | None
    ) -> list[Chain]:
        """Finds the modules from some taps to others, and tries them on the model's own maps."""
        heads = self._heads(self.taps)

        def forward() -> None:
            with EXACT.context(inputs.device):
                dense_forward(self.model, inputs, data_samples, heads)

        chains = chains_between(self.model, start, end, forward, self.run.places, self._owner)
        read = self._maps(inputs, data_samples, self.taps, EXACT)
        maps = as_list(start.of(read)), as_list(end.of(read))
        with EXACT.context(inputs.device):
            check_chains(self.model, chains, *maps, start, end, self._owner)
        return chains

    def through(self, part: tuple[Taps, Taps], maps: Sequence[Tensor]) -> list[Tensor]:
        """Runs a part of the model on maps of another one, with an autograd graph to them.

        Args:
            part (tuple[Taps, Taps]): One of the parts given to the constructor.
            maps (Sequence[Tensor]): Maps in the shapes of the model's own where the part begins.

        Returns:
            list[Tensor]: The maps behind the part.
        """
        inference, _ = self._asked.where_differentiated.on(maps[0].device)
        dtype = next(self.model.parameters()).dtype
        with inference.context(maps[0].device):
            return run_chains(self.model, self.chains[part], [x.to(dtype) for x in maps])

    def _heads(self, taps: Sequence[Tap]) -> list[str] | None:
        """The heads to run for some taps, None for the whole model."""
        return None if self._whole else heads_of(self.model, taps, self._owner)

    def _cannot_run(
        self, problem: Exception, example: tuple[Tensor, list | None] | None
    ) -> UntriedError:
        """Says which part of the model did not run on a made-up image, None if there was none."""
        tried = f'could not be tried on a made-up image: {first_line(problem)}'
        whole = UntriedError(f'{self._owner} {tried}', advice_alone('runs', 'test'))
        if example is None:
            return whole
        head = next(
            (one for one in self._heads(self.taps) or () if not self._runs(one, example)), ''
        )
        if not head or not self._runs(None, example):
            own = crop_size(self.model.data_preprocessor)
            device = example[0].device
            if own and self._runs(None, example_batch(self.model, device, *own)):
                return UntriedError(
                    f'{self._owner} takes images of {own[0]}x{own[0]} pixels alone, the size of '
                    'its training, and the student is trained with another one: crop its images '
                    f'to that size, and set `size=({own[0]}, {own[0]})` in its data preprocessor'
                )
            return whole
        kind = type(find_module(self.model, Tap(head), self._owner)).__name__
        return UntriedError(
            f"{self._owner}: its '{head}' ({kind}) {tried}. A teacher's heads are called on the "
            'features alone, which this one does not take, so nothing inside it can be read; tap '
            'what comes before it'
        )

    def takes(self, side: int, device: torch.device) -> bool:
        """Whether the model runs on an image of this height and width, pixels."""
        try:
            inputs, samples = example_batch(self.model, device, side)
            for sample in samples or ():
                sample.set_metainfo(dict(batch_input_shape=(side, side), pad_shape=(side, side)))
            self(inputs[..., :side, :side], samples, self.taps)  # without its own padding
        except Exception:  # a model may raise anything
            return False
        return True

    def _runs(self, head: str | None, example: tuple[Tensor, list | None]) -> bool:
        """Whether the features of the model, or one of its heads on them, can be computed."""
        try:
            with torch.no_grad():
                dense_forward(self.model, *example, [] if head is None else [head])
        except Exception:  # a model may raise anything
            return False
        return True

    def _settle(self, inputs: Tensor, data_samples: list | None) -> None:
        """Chooses the options and tries them on a made-up image."""
        device = inputs.device
        self.inference, why = self._asked.on(device)
        inputs, data_samples, exact = self._of_two(inputs, data_samples)

        def gap(inference: Inference) -> float:
            return distance(self._maps(inputs, data_samples, self.taps, inference), exact)

        also = []
        if self.inference.fuse_conv_bn:
            also.append(self._fuse(lambda: gap(EXACT), inputs, data_samples))
        if self.inference.channels_last:
            also.insert(0, self._try_channels_last(gap, device))
        if self.inference.precision != 'fp32':
            why = self._try_half(gap, device) or why
        if self.inference.compile:
            also.append(self._compile(gap, device))
        if self.inference.channels_last and device.type == 'cuda':
            # CPU kernels reorder the weights themselves
            nn.Module.to(self.model, memory_format=torch.channels_last)
        elif not self.inference.channels_last and also[:1] == ['channels_last']:
            del also[0]  # fp32 after all, which gains nothing from it here
        self.how = ', '.join(filter(None, [f'in {self.inference.precision} ({why})', *also]))

    def _of_two(
        self, inputs: Tensor, data_samples: list | None
    ) -> tuple[Tensor, list | None, dict[Tap, Maps]]:
        """A batch of two images, if the model takes one, and its exact maps.

        With a single image, maps of any layout can be reshaped.
        """
        twice = torch.cat([inputs, inputs.flip(-1)])
        samples = data_samples and [*data_samples, *copy.deepcopy(data_samples)]
        try:
            return twice, samples, self._maps(twice, samples, self.taps, EXACT)
        except Exception:  # a model may raise anything
            return inputs, data_samples, self._maps(inputs, data_samples, self.taps, EXACT)

    def _fuse(self, gap: Callable[[], float], inputs: Tensor, data_samples: list | None) -> str:
        """Fuses batch norms into convolutions and describes the result."""

        def read() -> list[Tensor]:
            maps = self._maps(inputs, data_samples, self.taps, EXACT)
            return [tensor for value in maps.values() for tensor in as_list(value)]

        pairs = foldable(self.model, read)
        undo = fold(pairs)
        if gap() > FOLDED_ERROR:
            undo()
            return 'batch norms not fused, which would change its maps'
        return f'{len(pairs)} batch norms fused into their convolutions' if pairs else ''

    def _try_channels_last(self, gap: Callable[[Inference], float], device: torch.device) -> str:
        """Gives the layout up if an operation does not take it, and describes the result.

        Raises:
            ValueError: If the config asks for it and the model does not run in it.
        """
        try:
            wrong = gap(replace(EXACT, channels_last=True)) > HALF_ERROR
            said = 'its maps would change' if wrong else ''
        except Exception as caught:  # some operations want contiguous tensors
            said = first_line(caught)
        if not said:
            return 'channels_last'
        if self._asked.channels_last is True:
            raise ValueError(f'{self._owner} does not run with channels_last=True: {said}')
        self._asked = replace(self._asked, channels_last=False)
        self.inference, _ = self._asked.on(device)
        return f'not channels_last: {said}'

    def _try_half(self, gap: Callable[[Inference], float], device: torch.device) -> str:
        """Goes back to fp32 if half precision fails, and returns the reason.

        Raises:
            ValueError: If the config asks for half precision and the model does not run in it.
        """
        half, error = self.inference.precision, float('inf')
        try:
            error = gap(replace(self.inference, compile=False))
            said = 'its maps are not finite' if error == float('inf') else ''
        except Exception as caught:  # some operations do not take this type
            said = first_line(caught)
        asked = self._asked.precision != 'auto'
        if said and asked:
            raise ValueError(f"{self._owner} does not run with precision='{half}': {said}")
        if error <= HALF_ERROR:
            return ''
        if asked:
            changed = f'its maps change by {error:.0%}'
            print_log(
                f"{self._owner} has precision='{half}', and {changed}; leave it out for the best "
                'one here',
                logger='current',
                level=logging.WARNING,
            )
            return f'as the config says; {changed}'
        self.inference, _ = replace(self._asked, precision='fp32').on(device)
        return f'not in {half}: {said or f"its maps would change by {error:.0%}"}'

    def _compile(self, gap: Callable[[Inference], float], device: torch.device) -> str:
        """Compiles the parts between the taps if that works, and describes the result."""
        places = [place for tap in self.taps for place in self.run.places.get(tap, (tap,))]
        self.compiled = compile_between(self.model, places, self.run.ran, device)
        try:
            problem = 'its maps would change' if gap(self.inference) > HALF_ERROR else ''
        except Exception as caught:  # no compiler, or a part that cannot be compiled
            problem = first_line(caught)
        if not problem:
            return f'{len(self.compiled)} parts compiled'
        self.inference = replace(self.inference, compile=False)
        print_log(
            f'{self._owner} is not compiled: {problem}', logger='current', level=logging.WARNING
        )
        return 'not compiled'

    @torch.no_grad()
    def __call__(
        self,
        inputs: Tensor,
        data_samples: list | None,
        taps: Sequence[Tap],
        on_path: Sequence[Tap] = (),
    ) -> dict[Tap, Maps]:
        """Runs the model and reads taps.

        Args:
            inputs (Tensor): Images ``(N, C, H, W)``, normalised for the model.
            data_samples (list, optional): Their data samples.
            taps (Sequence[Tap]): Some of the taps given to the constructor.
            on_path (Sequence[Tap]): Some of ``taps``. There is an autograd graph from them to later
                taps, but not from the weights. Defaults to ``()``.

        Returns:
            dict[Tap, Tensor | list[Tensor]]: The maps at each tap. Without ``on_path`` they are
            contiguous, and in float32 unless the run itself uses automatic mixed precision.
        """
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
        run, heads = self.run, self._heads(taps)
        reader = TapReader(self.model, taps, run.in_place, run.calls, run.places, on_path=on_path)
        inputs = inference.laid_out(inputs)
        compiled = replaced_forwards(self.compiled if inference.compile else {})
        grad = torch.set_grad_enabled(bool(on_path))
        with grad, inference.context(inputs.device), compiled, reader:
            dense_forward(self.model, inputs, data_samples, heads)
        return {tap: reader.read(tap) for tap in taps}

    def work(self) -> str:
        """Describes the parts of the model that run, and the options, for the plan."""
        places = [place for tap in self.taps for place in self.run.places.get(tap, (tap,))]
        inside = [(place.path, f'{place.path}.') for place in places]
        last = max(
            number
            for number, name in enumerate(self.run.ran)
            if any(name == path or name.startswith(within) for path, within in inside)
        )
        roots = {name.split('.')[0] for name in self.run.ran[: last + 1]}
        parts = [name for name, _ in self.model.named_children() if name in roots]
        return f'runs {", ".join(parts)}; stops after {self.run.ran[last]}; {self.how}'


def _plain(tensor: Tensor, widen: bool) -> Tensor:
    """Returns a contiguous tensor; ``widen`` converts half precision to float32."""
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    dtype = torch.float32 if widen and half else tensor.dtype
    return tensor.to(dtype, memory_format=torch.contiguous_format)
