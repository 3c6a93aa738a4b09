"""SafeCheckpoints: checkpoints that are whole; and all that a run needs to be resumed exactly."""

from __future__ import annotations

from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from mmkd_plugin.registry import HOOKS
from mmkd_plugin.running.accumulating import KeepGradients
from mmkd_plugin.running.augmenting import KeepAugments
from mmkd_plugin.running.checkpointing import save_whole
from mmkd_plugin.running.identity import SameRun
from mmkd_plugin.running.not_finite import check_weights
from mmkd_plugin.running.randomness import SeedIterations, seed_batches


@HOOKS.register_module()
class SafeCheckpoints(Hook):
    """Makes every CheckpointHook of a run save whole files, and no weights that are not finite.

    ``tools/train.py`` adds it to each run. For other programs it is a line of ``custom_hooks``.

    Examples:
        >>> custom_hooks = [dict(type='mmkd_plugin.SafeCheckpoints')]
    """

    priority = 'LOWEST'  # after mmengine's CheckpointHook

    def before_train(self, runner: Runner) -> None:
        gradients = [hook for hook in runner.hooks if isinstance(hook, KeepGradients)]

        def collect() -> None:
            check_weights(runner)
            for hook in gradients:
                hook.collect(runner)

        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook):
                save_whole(hook, runner, collect)


def make_resumable(runner: Runner, allow_changes: bool = False) -> None:
    """Has a run save whole checkpoints, and go on from one as if it had never ended.

    A resumed run that is another run is refused.

    ``tools/train.py`` calls it. Other programs do so between building a runner and training.

    Args:
        runner (Runner): A runner whose training has not started; its training data are built here.
        allow_changes (bool): Whether another run is warned about only, as with ``--allow-changes``.
            Defaults to False.
    """
    if not any(isinstance(hook, SafeCheckpoints) for hook in runner.hooks):
        runner.register_hook(SafeCheckpoints())
    if not any(isinstance(hook, SeedIterations) for hook in runner.hooks):
        different = runner._randomness_cfg.get('diff_rank_seed', False)
        loader = runner.build_dataloader(
            runner._train_dataloader, seed=runner.seed, diff_rank_seed=different
        )
        runner._train_dataloader = loader
        runner.register_hook(SeedIterations(seed_batches(loader, runner.seed)))
        runner.register_hook(KeepAugments())
        runner.register_hook(KeepGradients())
        runner.register_hook(SameRun(runner, allow_changes))
