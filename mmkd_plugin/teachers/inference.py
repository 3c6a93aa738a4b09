"""Inference: the precision, the memory layout and the compilation of a frozen teacher."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mmkd_plugin.building import check_keys
from mmkd_plugin.taps import Maps, Tap, as_list
from mmkd_plugin.words import did_you_mean

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
Switch = bool | str

#: Largest relative distance of a map from that of the same teacher in fp32 as it was built, if its
#: batch norms are folded, and if it computes in half precision.
FOLDED_ERROR, HALF_ERROR = 1e-4, 5e-2

#: Forwards of batch norms that are folded into convolutions.
NORMS = (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward)

#: Smallest number of modules in a part that is compiled: a stage is, a single layer is not.
WORTH_COMPILING = 8

#: Flags of ``/proc/cpuinfo`` of CPUs that multiply in bf16.
BF16_FLAGS = {'avx512_bf16', 'amx_bf16'}


@dataclass(frozen=True)
class Inference:
    """Options of a frozen teacher's computation. ``'auto'`` is the fastest on the device.

    Args:
        precision (str): ``'fp32'``, ``'bf16'`` or ``'fp16'``: precision of convolutions and matrix
            products. Defaults to ``'auto'``.
        channels_last (bool | str): Whether maps lie in memory as ``(N, H, W, C)``. Their shape
            stays ``(N, C, H, W)``. Defaults to ``'auto'``.
        fuse_conv_bn (bool | str): Whether batch norms are folded into the convolutions before them.
            Defaults to ``'auto'``.
        compile (bool | str): Whether ``torch.compile`` compiles the parts between the taps.
            Defaults to ``'auto'``.

    Raises:
        ValueError: If an option has another value.

    Examples:
        >>> Inference(precision='fp32').precision
        'fp32'
    """

    precision: str = 'auto'
    channels_last: Switch = 'auto'
    fuse_conv_bn: Switch = 'auto'
    compile: Switch = 'auto'

    def __post_init__(self) -> None:
        if self.precision not in ('auto', *DTYPES):
            hint = did_you_mean(str(self.precision), DTYPES, "'{}'", cutoff=0.5)
            raise ValueError(
                f"precision must be 'auto' or one of {', '.join(map(repr, DTYPES))}, got "
                f'{self.precision!r}{hint}'
            )
        for name in ('channels_last', 'fuse_conv_bn', 'compile'):
            value = getattr(self, name)
            if not (isinstance(value, bool) or value == 'auto'):
                raise ValueError(f"{name} must be True, False or 'auto', got {value!r}")

    @classmethod
    def from_config(cls, config: dict | None) -> Inference:
        """Reads the ``inference`` of a teacher's config.

        Args:
            config (dict, optional): The options. None leaves all of them at ``'auto'``.

        Returns:
            Inference: The options.

        Raises:
            ValueError: If it is not a dict, or a key or a value is unknown.
        """
        if config is None:
            return cls()
        if not isinstance(config, dict):
            raise ValueError(f"expected dict(precision='fp32', ...), got {config!r}")
        check_keys('it', config, [field.name for field in fields(cls)])
        return cls(**config)

    def on(self, device: torch.device) -> tuple[Inference, str]:
        """Replaces each ``'auto'`` by the best value for a device.

        Args:
            device (torch.device): The device of the teacher.

        Returns:
            tuple[Inference, str]: The options, and the reason for the precision.
        """
        best, why = best_for(device)
        if self.precision != 'auto':
            best, why = _options(self.precision, device), 'as the config says'
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(best, **{key: x for key, x in given.items() if x != 'auto'}), why

    @property
    def where_differentiated(self) -> Inference:
        """The options for a forward pass with a backward pass; :meth:`on` comes after it."""
        precision = 'fp32' if self.precision == 'auto' else self.precision
        return replace(self, precision=precision, channels_last=False, compile=False)

    def context(self, device: torch.device) -> AbstractContextManager:
        """Returns the autocast of a forward pass, which replaces that of the run."""
        try:
            if self.precision == 'fp32':
                return torch.autocast(device.type, enabled=False)
            return torch.autocast(device.type, DTYPES[self.precision])
        except RuntimeError:  # a device without autocast
            return nullcontext()

    def laid_out(self, inputs: Tensor) -> Tensor:
        """Returns the images in the memory layout of the maps."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return inputs.contiguous(memory_format=layout)


def best_for(device: torch.device) -> tuple[Inference, str]:
    """Returns the fastest options on a device, and the reason for the precision.

    Args:
        device (torch.device): The device of the teacher.

    Returns:
        tuple[Inference, str]: The options without ``'auto'``, and the reason.
    """
    if device.type == 'cpu':
        if cpu_flags() & BF16_FLAGS and torch.backends.mkldnn.is_available():
            return _options('bf16', device), 'this CPU has bf16 arithmetic'
        return _options('fp32', device), 'this CPU has no bf16 arithmetic'
    if device.type == 'cuda':
        capability = torch.cuda.get_device_capability(device)
        if capability >= (8, 0):
            return _options('bf16', device), 'this GPU has bf16 arithmetic'
        if capability >= (7, 0):
            return _options('fp16', device), 'this GPU has fp16 arithmetic, and none in bf16'
    return _options(
        'fp32', device
    ), f'{device.type} has no half precision that is known to be faster'


def _options(precision: str, device: torch.device) -> Inference:
    channels_last = precision != 'fp32' or device.type == 'cpu'
    return Inference(precision, channels_last, fuse_conv_bn=True, compile=False)


def amp_is_on(device: torch.device) -> bool:
    """Returns whether automatic mixed precision is on at this moment."""
    try:
        return torch.is_autocast_enabled(device.type)
    except RuntimeError:  # a device without autocast
        return False
    except TypeError:  # torch before 2.4
        return torch.is_autocast_enabled() or torch.is_autocast_cpu_enabled()


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Returns the CPU's flags in ``/proc/cpuinfo``, an empty set on other systems than Linux."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith('flags')), '').split())


# Batch norms --------------------------------------------------------------------------------------


def foldable(
    model: nn.Module, forward: Callable[[], Sequence[Tensor]]
) -> list[tuple[nn.Conv2d, nn.Module]]:
    """Finds the convolutions of a model whose output goes into a batch norm and is not tapped.

    Args:
        model (nn.Module): A model in eval mode.
        forward (Callable): Runs the model and returns the tapped maps.

    Returns:
        list[tuple[nn.Conv2d, nn.Module]]: Pairs of convolution and batch norm. A module is in one
        pair only.
    """
    made: list[tuple[nn.Module, Tensor]] = []
    calls, links = Counter(), Counter()

    def after(conv: nn.Module, _: tuple, output: Tensor) -> None:
        made.append((conv, output))
        calls[conv] += 1

    def before(norm: nn.Module, args: tuple) -> None:
        calls[norm] += 1
        links.update((conv, norm) for conv, output in made if output is args[0])

    from mmcv.cnn.bricks.wrappers import Conv2d  # only now: the tools say if there is no mmcv

    handles = []
    for module in model.modules():
        hooked = module._forward_hooks or module._forward_pre_hooks
        if type(module) in (nn.Conv2d, Conv2d) and not hooked:
            handles.append(module.register_forward_hook(after))
        elif _computes_a_norm(module):
            handles.append(module.register_forward_pre_hook(before))
    try:
        with torch.no_grad():
            read = {id(tensor) for tensor in forward()}
    finally:
        for handle in handles:
            handle.remove()
    tapped = {conv for conv, output in made if id(output) in read}
    return [
        (conv, norm)
        for (conv, norm), count in links.items()
        if count == calls[conv] == calls[norm] and conv not in tapped
    ]


def _computes_a_norm(module: nn.Module) -> bool:
    known = type(module).forward in NORMS and module.running_mean is not None
    return known and 'forward' not in vars(module)  # `fold` sets a forward


def fold(pairs: Sequence[tuple[nn.Conv2d, nn.Module]]) -> Callable[[], None]:
    """Folds batch norms into the convolutions before them, in place.

    The batch norms keep their place and their parameters, and return their input.

    Args:
        pairs (Sequence[tuple[nn.Conv2d, nn.Module]]): The pairs that :func:`foldable` found.

    Returns:
        Callable: Undoes the folding.
    """
    before = [(conv, conv.weight, conv.bias) for conv, _ in pairs]
    for conv, norm in pairs:
        conv.weight, conv.bias = (
            nn.Parameter(x.detach(), requires_grad=False)
            for x in fuse_conv_bn_weights(
                conv.weight,
                conv.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
        )
        norm.forward = _as_it_is

    def undo() -> None:
        for conv, weight, bias in before:
            conv.weight, conv.bias = weight, bias
        for _, norm in pairs:
            del norm.forward

    return undo


def _as_it_is(x: Tensor) -> Tensor:
    return x


# Compilation --------------------------------------------------------------------------------------


def compile_between(
    model: nn.Module, taps: Collection[Tap], ran: Collection[str], device: torch.device
) -> dict[nn.Module, Callable]:
    """Compiles the largest parts of a model that contain no tap.

    Taps are hooks. Inside a compiled part they would break its graph or be traced into it.

    Args:
        model (nn.Module): A model in eval mode.
        taps (Collection[Tap]): The taps to read.
        ran (Collection[str]): Names of the modules that run.
        device (torch.device): The device of the model.

    Returns:
        dict[nn.Module, Callable]: Compiled forwards by module, for :func:`replaced_forwards`.
    """
    # Frozen weights are laid out for oneDNN once. Without that a CPU gains nothing.
    options = {'freezing': True} if device.type == 'cpu' else None
    names = {module: name for name, module in model.named_modules()}
    found, queue = {}, list(model.children())
    while queue:
        module = queue.pop()
        name = names[module]
        if any(tap.path.startswith(f'{name}.') for tap in taps) or name not in ran:
            queue += module.children()
        elif sum(1 for _ in module.modules()) >= WORTH_COMPILING:
            found[module] = torch.compile(_own_code(module.forward, name), options=options)
    return found


def _own_code(function: Callable, name: str) -> Callable:
    """Wraps a function in a code object of its own: torch limits recompilations of each object."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    forward.__code__ = forward.__code__.replace(co_name=f'forward of {name}')
    return forward


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Callable]) -> Iterator[None]:
    """Replaces the forwards of modules inside the block.

    Args:
        forwards (Mapping[nn.Module, Callable]): New forwards by module.
    """
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in forwards:
            del module.forward


def distance(maps: Mapping[Any, Maps], exact: Mapping[Any, Maps]) -> float:
    """Computes the largest relative distance ``|a - b| / |b|`` of a map.

    Args:
        maps (Mapping[Any, Tensor | list[Tensor]]): Maps by tap.
        exact (Mapping[Any, Tensor | list[Tensor]]): The same maps in full precision.

    Returns:
        float: The distance, infinite if a map is not finite.
    """
    gaps = []
    for tap, value in exact.items():
        for a, b in zip(as_list(maps[tap]), as_list(value)):
            a, b = a.detach().cpu().double(), b.detach().cpu().double()
            gap = (a - b).norm() / b.norm().clamp(min=1e-12)
            gaps.append(gap.item() if torch.isfinite(a).all() else float('inf'))
    return max(gaps, default=0.0)
