"""The types that losses are computed in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


@contextmanager
def full_precision(student: Tensor, teacher: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Hand out the pair in float32 or wider, the teacher detached, with autocast off.

    Args:
        student (Tensor): The student's map, of any floating-point type.
        teacher (Tensor): The teacher's map, of any floating-point type.

    Yields:
        tuple[Tensor, Tensor]: Both in one common type: float64 if either is, else float32.
    """
    dtype = common_type(student, teacher)
    with no_autocast(student.device.type):
        yield student.to(dtype), teacher.detach().to(dtype)


def common_type(student: Tensor, teacher: Tensor) -> torch.dtype:
    """The type to compare two tensors in: float64 if either is, else float32."""
    return torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)


def widest(x: Tensor) -> torch.dtype:
    """The type to add up differences of large sums in: float64, where the device has it."""
    return torch.float32 if x.device.type == 'mps' else torch.float64


def no_autocast(device_type: str) -> AbstractContextManager:
    """Autocast off, on devices that have it."""
    try:
        return torch.autocast(device_type, enabled=False)
    except RuntimeError:  # a device without autocast (meta, say) has none to switch off
        return nullcontext()


def runs_in_float16(device_type: str) -> bool:
    """Whether autocast has layers run in float16 at this moment."""
    try:
        on = torch.is_autocast_enabled(device_type)
        return on and torch.get_autocast_dtype(device_type) is torch.float16
    except RuntimeError:  # a device without autocast
        return False
    except TypeError:  # torch before 2.4
        cpu = device_type == 'cpu'
        on = torch.is_autocast_cpu_enabled() if cpu else torch.is_autocast_enabled()
        dtype = torch.get_autocast_cpu_dtype() if cpu else torch.get_autocast_gpu_dtype()
        return on and dtype is torch.float16
