"""FrozenForward: reads taps of a frozen model, in the fastest way that keeps its maps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmkd_plugin.taps import Maps, Tap, TapError, TapReader, as_list
from mmkd_plugin.taps.dry_run import DryRun, check_ran, read_once
from mmkd_plugin.taps.example import crop_size, example_batch
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

#: As the teacher was built.
EXACT = Inference('fp32', False, False, False)


class FrozenForward:
    """Reads taps of a frozen model, no further than the last one that is asked for.

    Each option of ``asked`` is tried on a made-up image and given up where it would change the
    maps.

    Args:
        model (nn.Module): A model in eval mode whose weights get no gradient.
        taps (Sequence[Tap]): All taps that will ever be read.
        asked (Inference): How it is to compute.
        preprocessor (nn.Module): The student's data preprocessor, for the size of its crops.
        device (torch.device): Where the model is.
        size (int): Size of the image to try it on, pixels; where that does not suit the model, the
            size of the student's training crops is tried.
        owner (str): What messages call the model.

    Raises:
        ValueError: If a tap does not run, or a precision was asked for and does not run.

    Attributes:
        run (DryRun): What the trial showed.
        inference (Inference): How it computes.
        how (str): The same in words.
        compiled (dict[nn.Module, Callable]): Compiled forwards, by the module.
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
    ) -> None:
        self.model = model
        self.taps = list(taps)
        self._asked = asked
        self._owner = owner
        self._heads = heads_of(model, taps, owner)
        self.compiled: dict[nn.Module, Callable] = {}
        self.run, example = self._try_sizes(preprocessor, device, size)
        check_ran(model, self.run, taps, owner)
        with torch.no_grad():
            self._settle(*example)

    def _try_sizes(
        self, preprocessor: nn.Module, device: torch.device, size: int
    ) -> tuple[DryRun, tuple[Tensor, list | None]]:
        try:
            return self._try(device, size)
        except TapError as error:
            raise TapError(f'{self._owner}: {error}') from None
        except Exception:  # a transformer that takes images of its own training size alone
            crop = crop_size(preprocessor)
            if crop in ((), (size,)):
                raise
            return self._try(device, *crop)

    def _try(self, device: torch.device, size: int) -> tuple[DryRun, tuple[Tensor, list | None]]:
        example = example_batch(self.model, device, size)
        run = read_once(
            self.model, self.taps, lambda: dense_forward(self.model, *example, self._heads)
        )
        return replace(run, size=size), example

    def _settle(self, inputs: Tensor, data_samples: list | None) -> None:
        """Chooses how to compute, and tries it on the image that the model was tried on."""
        device = inputs.device
        self.inference, why = self._asked.on(device)
        exact = self._maps(inputs, data_samples, self.taps, EXACT)

        def gap(inference: Inference) -> float:
            return distance(self._maps(inputs, data_samples, self.taps, inference), exact)

        also = []
        if self.inference.fuse_conv_bn:
            also.append(self._fuse(lambda: gap(EXACT), inputs, data_samples))
        if self.inference.precision != 'fp32':
            why = self._try_half(gap, device) or why
        if self.inference.compile:
            also.append(self._compile(gap, device))
        if self.inference.channels_last:
            also.insert(0, 'channels_last')
            if device.type == 'cuda':  # a CPU arranges weights anew in any case
                self.model.to(memory_format=torch.channels_last)
        self.how = ', '.join(filter(None, [f'in {self.inference.precision} ({why})', *also]))

    def _fuse(self, gap: Callable[[], float], inputs: Tensor, data_samples: list | None) -> str:
        """Fuses convolutions and batch norms, and says how many."""

        def read() -> list[Tensor]:
            maps = self._maps(inputs, data_samples, self.taps, EXACT)
            return [tensor for value in maps.values() for tensor in as_list(value)]

        pairs = foldable(self.model, read)
        undo = fold(pairs)
        if gap() > FOLDED_ERROR:
            undo()
            return 'batch norms not fused, which would change its maps'
        return f'{len(pairs)} batch norms fused into their convolutions' if pairs else ''

    def _try_half(self, gap: Callable[[Inference], float], device: torch.device) -> str:
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
            raise ValueError(f"{self._owner} does not run with precision='{half}': {said}")
        if asked or error <= HALF_ERROR:
            return ''
        self.inference, _ = replace(self._asked, precision='fp32').on(device)
        return f'not in {half}: {said or f"its maps would change by {error:.0%}"}'

    def _compile(self, gap: Callable[[Inference], float], device: torch.device) -> str:
        """Compiles what lies between the taps, if that works, and says how much."""
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
        """Reads taps in images that are normalised for the model.

        Args:
            inputs (Tensor): Images ``(N, C, H, W)``.
            data_samples (list, optional): Their data samples.
            taps (Sequence[Tap]): A part of those given at the start.
            on_path (Sequence[Tap]): A part of ``taps`` from which there is to be a graph to those
                behind it; none for the weights. Defaults to ``()``.

        Returns:
            dict[Tap, Maps]: A tensor or a list of tensors for each tap, contiguous, and in float32
            unless the run itself uses automatic mixed precision.
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
        run, heads = self.run, self._heads
        if heads is not None:
            heads = [head for head in heads if any(tap.path.split('.')[0] == head for tap in taps)]
        reader = TapReader(self.model, taps, run.in_place, run.calls, run.places, on_path=on_path)
        inputs = inference.laid_out(inputs)
        compiled = replaced_forwards(self.compiled if inference.compile else {})
        grad = torch.set_grad_enabled(bool(on_path))
        with grad, inference.context(inputs.device), compiled, reader:
            dense_forward(self.model, inputs, data_samples, heads)
        return {tap: reader.read(tap) for tap in taps}

    def work(self) -> str:
        """Which parts of the model run, and how, in words."""
        last = max(self.run.ran.index(tap.path) for tap in self.taps)
        roots = {name.split('.')[0] for name in self.run.ran[: last + 1]}
        parts = [name for name, _ in self.model.named_children() if name in roots]
        return f'runs {", ".join(parts)}; stops after {self.run.ran[last]}; {self.how}'


def _plain(tensor: Tensor, widen: bool) -> Tensor:
    """A contiguous tensor, in float32 if it is to be widened and is in half precision."""
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    dtype = torch.float32 if widen and half else tensor.dtype
    return tensor.to(dtype, memory_format=torch.contiguous_format)
