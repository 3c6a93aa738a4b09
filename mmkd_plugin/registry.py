"""The registry behind ``type='mmkd_plugin.X'``.

mmengine imports ``<scope>.registry`` when it meets a scope for the first time, so configs need no
``custom_imports``. The modules that register something are imported on the first look-up.
"""

from __future__ import annotations

from typing import Any

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope='mmkd_plugin',
    locations=[
        'mmkd_plugin.losses',
        'mmkd_plugin.connectors',
        'mmkd_plugin.models',
        'mmkd_plugin.explanations',
        'mmkd_plugin.teachers',
        'mmkd_plugin.distiller',
        'mmkd_plugin.paraphrasing',
    ],
)

TRANSFORMS = Registry(
    'transform',
    parent=MMENGINE_TRANSFORMS,
    scope='mmkd_plugin',
    locations=[
        'mmkd_plugin.cache.recording',
        'mmkd_plugin.cache.loading',
        'mmkd_plugin.unlabelled.pipelines',
    ],
)

DATASETS = Registry(
    'dataset',
    parent=MMENGINE_DATASETS,
    scope='mmkd_plugin',
    locations=['mmkd_plugin.cache.drawn', 'mmkd_plugin.unlabelled.images'],
)

DATA_SAMPLERS = Registry(
    'data sampler',
    parent=MMENGINE_DATA_SAMPLERS,
    scope='mmkd_plugin',
    locations=['mmkd_plugin.cache.drawn'],
)

FUNCTIONS = Registry(
    'function',
    parent=MMENGINE_FUNCTIONS,
    scope='mmkd_plugin',
    locations=['mmkd_plugin.unlabelled.images'],
)

METRICS = Registry(
    'metric', parent=MMENGINE_METRICS, scope='mmkd_plugin', locations=['mmkd_plugin.metrics']
)

HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope='mmkd_plugin',
    locations=[
        'mmkd_plugin.metrics',
        'mmkd_plugin.cache.drawn',
        'mmkd_plugin.cache.loading',
        'mmkd_plugin.report.hook',
        'mmkd_plugin.running.hook',
        'mmkd_plugin.training_data',
        'mmkd_plugin.visualization.hook',
    ],
)

RUNNERS = Registry(
    'runner',
    parent=MMENGINE_RUNNERS,
    scope='mmkd_plugin',
    locations=['mmkd_plugin.running.sharding'],
)


def named(registry: Registry, name: str) -> Any:
    """The class, or the function, of a name; None if there is none.

    A registry itself raises an error for a name that cannot be one, such as ``''``.

    Args:
        registry (Registry): Where it is looked up first.
        name (str): The name.

    Examples:
        >>> named(MODELS, '') is named(MODELS, 'mmkd_plugin.Nothing') is None
        True
    """
    try:
        return registry.get(name)
    except RuntimeError as error:
        if is_no_name(error):
            return None
        raise


def is_no_name(error: BaseException) -> bool:
    """Whether a registry was asked for a name that cannot be one."""
    return isinstance(error, RuntimeError) and str(error).startswith('Failed to get')
