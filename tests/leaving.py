"""The end of a process that belongs to a group of processes."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import torch.distributed as dist


def leave() -> NoReturn:
    """Ends this process, once all of its group have come here, without taking the group apart.

    There torch may wait for ever: gloo's thread for Python, and Python for gloo's thread.
    """
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
