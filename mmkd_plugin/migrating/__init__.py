"""Migrating: configs and checkpoints of other programs for distillation, written as ours."""

from mmkd_plugin.migrating.losses import NotPossible
from mmkd_plugin.migrating.mmrazor import refuse_theirs
from mmkd_plugin.migrating.reading import SUFFIXES, read_file
from mmkd_plugin.migrating.writing import config_text

__all__ = ['SUFFIXES', 'NotPossible', 'config_text', 'read_file', 'refuse_theirs']
