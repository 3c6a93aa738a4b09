"""Whether torch.compile traces."""

from __future__ import annotations

__all__ = ['is_compiling']

try:
    from torch.compiler import is_compiling
except ImportError:  # torch 2.0
    from torch._dynamo import is_compiling
