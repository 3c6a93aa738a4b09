"""SafeCheckpoints: checkpoints that are whole."""

from __future__ import annotations

from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from mmkd_plugin.registry import HOOKS
from mmkd_plugin.running.checkpointing import save_whole


@HOOKS.register_module()
class SafeCheckpoints(Hook):
    """Makes every CheckpointHook of a run save whole files.

    ``tools/train.py`` adds it to each run. For other programs it is a line of ``custom_hooks``.

    Examples:
        >>> custom_hooks = [dict(type='mmkd_plugin.SafeCheckpoints')]
    """

    priority = 'LOWEST'  # after mmengine's CheckpointHook

    def before_train(self, runner: Runner) -> None:
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook):
                save_whole(hook, runner, lambda: None)
