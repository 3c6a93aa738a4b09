"""KeepAugments: what batch augmentations keep between iterations travels with a checkpoint."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

#: Where `meta` of a checkpoint keeps it, by the name of the module in the data preprocessor.
KEPT = 'mmkd_batch_augments'

#: Attributes that every module has.
_OF_MODULES = frozenset(vars(nn.Module()))


class KeepAugments(Hook):
    """Saves what batch augmentations have changed in themselves, and restores it on resume.

    ``BatchSyncRandomResize`` of mmdet, for one, keeps a size for some iterations. Settings stay as
    the config says: only attributes that differ from those before the run are saved.
    """

    def before_run(self, runner: Runner) -> None:
        self._start = _plain_state(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        changed = {
            name: changes
            for name, state in _plain_state(runner).items()
            if (changes := {k: v for k, v in state.items() if v != self._start[name].get(k)})
        }
        if changed:
            checkpoint['meta'][KEPT] = changed

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if not runner._resume:
            return
        modules, now = _modules(runner), _plain_state(runner)
        for name, state in checkpoint['meta'].get(KEPT, {}).items():
            for key, value in state.items():
                if key in now.get(name, {}) and _is_plain(value):
                    setattr(modules[name], key, value)


def _modules(runner: Runner) -> dict[str, nn.Module]:
    """The parts of the data preprocessor by name."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    preprocessor = getattr(model, 'data_preprocessor', None)
    return dict(preprocessor.named_modules()) if isinstance(preprocessor, nn.Module) else {}


def _plain_state(runner: Runner) -> dict[str, dict[str, Any]]:
    """The attributes of these parts that are plain values."""
    return {
        name: {k: v for k, v in vars(module).items() if k not in _OF_MODULES and _is_plain(v)}
        for name, module in _modules(runner).items()
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
