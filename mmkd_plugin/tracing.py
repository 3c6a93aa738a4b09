"""Whether torch.compile traces the code that asks."""

from __future__ import annotations

try:
    from torch.compiler import is_compiling
except ImportError:  # torch 2.2 and older
    from torch._dynamo import is_compiling

__all__ = ['is_compiling']
