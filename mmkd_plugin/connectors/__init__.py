"""Connectors: the modules between a map and its loss."""

from mmkd_plugin.connectors.conv import ConvConnector
from mmkd_plugin.connectors.factor_transfer import Paraphraser, Translator
from mmkd_plugin.connectors.normalizing import ChannelNormalizer
from mmkd_plugin.connectors.phis import PHISNormalizer
from mmkd_plugin.connectors.review import ReviewFusion

__all__ = [
    'ChannelNormalizer',
    'ConvConnector',
    'PHISNormalizer',
    'Paraphraser',
    'ReviewFusion',
    'Translator',
]
