"""KeepGradients: gradients that wait for their step travel with a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmkd_plugin.running.sharding import part_like, whole

#: Where a checkpoint keeps them, by the name of the parameter.
KEPT = 'mmkd_gradients'


class KeepGradients(Hook):
    """Saves accumulated gradients of a checkpoint between two steps, and restores them on resume.

    With ``optim_wrapper.accumulative_counts`` an iteration may end without a step of the optimizer.
    mmengine forgets its gradients. Of several processes the mean is kept, and each of them goes on
    with it, so that a resumed run is the run that never ended. The step is the same to rounding.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def collect(self, runner: Runner) -> None:
        """Reads the gradients; every process calls it before a checkpoint is written."""
        self._kept = {}
        if all(one.should_update() for one in _wrappers(runner.optim_wrapper)):
            return
        for name, value in _parameters(runner):
            if value.grad is not None:
                gradient = whole(value.grad)
                if get_world_size() > 1 and gradient is value.grad:
                    all_reduce(gradient, op='mean')
                self._kept[name] = gradient.detach().clone().cpu()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self._kept:
            checkpoint[KEPT], self._kept = self._kept, {}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if not runner._resume:
            return
        kept, restored = checkpoint.get(KEPT, {}), False
        for name, value in _parameters(runner):
            gradient = kept.get(name)
            if isinstance(gradient, Tensor) and gradient.shape == value.shape:
                gradient = gradient.to(value.device, value.dtype, copy=True)
                value.grad = part_like(gradient, value)
                restored = True
        if restored:  # mmengine does not know of it, and is about to warn
            print_log(
                '--resume: the gradients that wait for a step of the optimizer are back: none is '
                'lost, whatever the warning of mmengine says.',
                logger='current',
            )


def _wrappers(wrapper: Any) -> list[Any]:
    """The optim wrappers: one, or several by their names."""
    return list(wrapper.values()) if hasattr(wrapper, 'values') else [wrapper]


def _parameters(runner: Runner) -> Iterator[tuple[str, nn.Parameter]]:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return model.named_parameters()
