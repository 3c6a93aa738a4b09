"""Whether torch.compile traces the code that asks."""

from __future__ import annotations

try:
    from torch.compiler import is_compiling
except ImportError:  # an old torch, such as 2.1
    from torch._dynamo import is_compiling

__all__ = ['is_compiling']
