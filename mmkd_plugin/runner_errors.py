"""Errors of the parts of a run that the runner builds, as one line that names the key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmengine.registry import OPTIMIZERS

from mmkd_plugin.foreign import explained, frames_of, is_ours
from mmkd_plugin.words import did_you_mean, short

#: Keys of a config by the methods of mmengine that build what stands there.
BUILDERS = dict(
    _check_scheduler_cfg='param_scheduler',
    _clip_grad='optim_wrapper',
    _init_model_weights='model: init_cfg',
    build_log_processor='log_processor',
    build_model='model',
    build_optim_wrapper='optim_wrapper',
    build_param_scheduler='param_scheduler',
    build_test_loop='test_cfg',
    build_train_loop='train_cfg',
    build_val_loop='val_cfg',
    build_visualizer='visualizer',
    initialize_count_status='optim_wrapper',
    register_custom_hooks='custom_hooks',
    register_default_hooks='default_hooks',
    scale_lr='auto_scale_lr',
    set_randomness='randomness',
    setup_env='env_cfg',
    wrap_model='model_wrapper_cfg',
)

#: The same by the modules of mmengine whose code does nothing but what stands there.
MODULES = {
    'mmengine.optim.scheduler.param_scheduler': 'param_scheduler',
    'mmengine.runner.log_processor': 'log_processor',
}

#: What a loop builds for itself.
OF_A_LOOP = dict(build_dataloader='dataloader', build_evaluator='evaluator')


@contextmanager
def runner_errors_named(config: Mapping[str, Any]) -> Iterator[None]:
    """Turns errors in the parts that a runner builds into a ValueError that begins with the key.

    Errors of the training itself, of the disk and of processes that find each other pass.

    Args:
        config (Mapping[str, Any]): The config of the run.

    Raises:
        ValueError: In place of an error of a part.

    Examples:
        >>> from mmengine.config import Config
        >>> from mmengine.runner import Runner
        >>> config = Config(dict(log_processor=dict(type='LogProcesor')))
        >>> with runner_errors_named(config):
        ...     Runner.build_log_processor(None, config.log_processor)
        Traceback (most recent call last):
        ValueError: log_processor.type: there is no 'LogProcesor'; did you mean 'LogProcessor'...
    """
    try:
        yield
    except Exception as error:
        before = error.__cause__ or error.__context__  # the fork hides it
        if type(before) is type(error) and str(error).startswith(str(before)):
            error = before  # raised anew, with the hook in its text
        key = None if is_ours(error) else _key_of(error)
        if key is None:
            raise
        part = config.get(key.partition(':')[0])
        reason = _unknown_optimizer(part) if key == 'optim_wrapper' else None
        raise ValueError(reason or explained(error, key, part)) from error


def _key_of(error: Exception) -> str | None:
    """The key of the part in whose code an error was raised."""
    key, loop = None, 'train'
    for frame in frames_of(error):
        module, name = frame.f_globals.get('__name__', ''), frame.f_code.co_name
        if not module.startswith('mmengine.'):
            continue
        if name in ('init_dist', 'run_iter', 'load_or_resume'):
            key = None
        if name == 'before_run' and module.startswith('mmengine.hooks.'):
            key = 'custom_hooks'
        if name in BUILDERS:
            key = BUILDERS[name]
            loop = name.split('_')[1] if name.endswith('_loop') else loop
        elif name in OF_A_LOOP:
            key = f'{loop}_{OF_A_LOOP[name]}'
        elif module in MODULES:
            key = MODULES[module]
    return key


def _unknown_optimizer(wrapper: Any) -> str | None:
    """What is said of an optimizer that does not exist; mmengine calls None then."""
    optimizer = wrapper.get('optimizer') if isinstance(wrapper, dict) else None
    kind = optimizer.get('type') if isinstance(optimizer, dict) else None
    if isinstance(optimizer, dict) and (not isinstance(kind, str) or not kind):
        if isinstance(kind, type):
            return None
        return f"optim_wrapper.optimizer needs a `type`, such as 'SGD', got {short(kind)}"
    if kind is None or OPTIMIZERS.get(kind) is not None:
        return None
    hint = did_you_mean(kind, OPTIMIZERS.module_dict, "'{}'")
    return f'optim_wrapper.optimizer.type: there is no {kind!r}{hint}'
