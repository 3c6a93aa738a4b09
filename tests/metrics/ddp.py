"""What one process of a distributed test does, for ``test_distributed.py``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.runner import Runner


def worker(rank: int, settings: dict, port: int, file: str) -> None:
    """Tests in a group of two processes on the CPU; the first writes the numbers."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2')
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.cuda.set_device = lambda *_: None  # mmengine calls it, accelerator or not
    torch.set_num_threads(1)
    result = Runner.from_cfg(Config(settings)).test()
    if rank == 0:
        Path(file).write_text(json.dumps(result))
    dist.destroy_process_group()
