"""Unlabelled: images without labels, from which a student learns beside the labelled ones."""

from mmkd_plugin.unlabelled.images import ImageFolder
from mmkd_plugin.unlabelled.pipelines import WithoutLabels
from mmkd_plugin.unlabelled.settings import Unlabelled

__all__ = ['ImageFolder', 'Unlabelled', 'WithoutLabels']
