"""Runs in two processes on the CPU, and what each of them sees and sends."""

from __future__ import annotations

import os
import socket
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from tests.imports import import_all
from tests.leaving import leave
from tests.runs import Record, train

#: What tells a run that it is one of several on the CPU.
DISTRIBUTED = dict(
    launcher='pytorch',
    env_cfg=dict(dist_cfg=dict(backend='gloo')),
    model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None),
)


class Traffic(TorchDispatchMode, Hook):
    """Counts the bytes of all tensors that processes exchange: at the start, and in iterations."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Counter[str]] = [Counter()]

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function.namespace == 'c10d':
            tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
            self.sent[-1][function.overloadpacket.__name__] += sum(x.nbytes for x in tensors)
        return function(*args, **(kwargs or {}))

    def before_train_iter(self, *_: Any, **__: Any) -> None:
        self.sent.append(Counter())


class Buckets(Hook):
    """Notes which parameters DDP exchanges gradients of, and how many bytes in each iteration."""

    def __init__(self) -> None:
        self.pointers: set[int] = set()
        self.sent: list[int] = []

    def before_train(self, runner: Runner) -> None:
        def exchange(_, bucket):
            self.pointers |= {parameter.data_ptr() for parameter in bucket.parameters()}
            self.sent[-1] += bucket.buffer().nbytes
            return allreduce_hook(None, bucket)

        runner.model.register_comm_hook(None, exchange)

    def before_train_iter(self, *_, **__) -> None:
        self.sent.append(0)


def train_and_note(rank: int, cfg: Config) -> None:
    """Trains, and saves what this process saw as ``rank<rank>.pt`` in the run's work dir."""
    record, buckets, traffic = Record(), Buckets(), Traffic()
    with traffic:
        model = train(cfg, record, buckets, traffic).model.module
    names = {parameter.data_ptr(): name for name, parameter in model.named_parameters()}
    seen = dict(
        parameters=dict(model.named_parameters()),
        parameter_bytes={name: x.nbytes for name, x in model.named_parameters()},
        buffer_bytes={name: x.nbytes for name, x in model.named_buffers()},
        teacher=model.teachers['teacher'].model.state_dict(),
        exchanged=sorted(names.get(pointer, 'something else') for pointer in buckets.pointers),
        sent=buckets.sent,
        traffic=traffic.sent,
        losses=record.losses,
        inputs=record.inputs,
    )
    torch.save(seen, Path(cfg.work_dir, f'rank{rank}.pt'))


def in_two_processes(work: Callable[[int, Config], None], cfg: Config) -> None:
    """Calls ``work(rank, cfg)`` in each of two processes on the CPU, and waits for both.

    Args:
        work (Callable): What each process does.
        cfg (Config): What to run; it is told here that it is distributed.
    """
    settings = {**cfg.to_dict(), **DISTRIBUTED}
    if 'runner_type' in cfg:  # a runner that wraps the model by itself
        del settings['model_wrapper_cfg']

    def process(rank: int, port: int) -> None:
        os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), CUDA_VISIBLE_DEVICES='')
        torch.cuda.set_device = lambda *_: None  # mmengine calls it, accelerator or not
        torch.set_num_threads(1)
        work(rank, Config(settings))

    assert _fork_twice(process) == [0, 0], 'the output above says why'


def forked(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """Calls ``work(rank)`` in two forks of this process that know each other; returns both results.

    Args:
        work (Callable): Returns what ``torch.save`` can write.
        folder (Path): Where the results go.
    """

    def process(rank: int, port: int) -> None:
        meet(rank, port)
        torch.save(work(rank), folder / f'fork{rank}.pt')

    assert _fork_twice(process) == [0, 0], 'the output above says why'
    return [torch.load(folder / f'fork{rank}.pt', weights_only=True) for rank in (0, 1)]


def endings(work: Callable[[int], Any]) -> list[int]:
    """Calls ``work(rank)`` as :func:`forked` does; returns how each process ended.

    Args:
        work (Callable): What each process does.
    """

    def process(rank: int, port: int) -> None:
        meet(rank, port)
        work(rank)

    return _fork_twice(process)


def meet(rank: int, port: int) -> None:
    """Makes this process one of a group of two."""
    torch.distributed.init_process_group(
        'gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2
    )


def _fork_twice(process: Callable[[int, int], None]) -> list[int]:
    """Calls ``process(rank, port)`` in two forks, which make a group at that port.

    Returns:
        list[int]: 0 for each that ended well, 1 for an error, or a signal as a negative number.
    """
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    import_all()
    children = []
    for rank in (0, 1):
        child = os.fork()
        if child == 0:
            try:
                os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2')
                process(rank, port)
                leave()
            except BaseException:
                os.write(2, traceback.format_exc().encode())  # past what a test captures in memory
            finally:
                os._exit(1)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
