"""The registry behind ``type='mmkd_plugin.X'``.

mmengine imports ``<scope>.registry`` when it meets a scope for the first time, so configs need no
``custom_imports``. The modules that register something are imported on the first look-up.
"""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope='mmkd_plugin',
    locations=[
        'mmkd_plugin.losses',
        'mmkd_plugin.connectors',
        'mmkd_plugin.necks',
        'mmkd_plugin.heads',
        'mmkd_plugin.explanations',
        'mmkd_plugin.distiller',
        'mmkd_plugin.paraphrasing',
        'mmkd_plugin.batch_augments',
        'mmkd_plugin.bcos',
        'mmkd_plugin.backbones',
    ],
)

TRANSFORMS = Registry(
    'transform',
    parent=MMENGINE_TRANSFORMS,
    scope='mmkd_plugin',
    locations=['mmkd_plugin.geometry', 'mmkd_plugin.cached_teacher'],
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
        'mmkd_plugin.cached_teacher',
        'mmkd_plugin.visualization.hook',
    ],
)
