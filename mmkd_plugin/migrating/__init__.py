"""Migrating: configs and checkpoints of other programs for distillation, written as ours."""

from mmkd_plugin.migrating.losses import NotPossible
from mmkd_plugin.migrating.mmrazor import read_distillation
from mmkd_plugin.migrating.writing import config_text

__all__ = ['NotPossible', 'config_text', 'read_distillation']
