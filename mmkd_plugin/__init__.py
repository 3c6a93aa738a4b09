"""Knowledge distillation for dense prediction inside OpenMMLab."""

from mmkd_plugin.version import __version__

__all__ = ['__version__']
