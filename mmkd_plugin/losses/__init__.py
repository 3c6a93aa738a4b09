"""The losses: one file per paper, with the formula as a plain function and a thin class around it.

What makes them fast and exact lies in :mod:`mmkd_plugin.losses.numerics`.

A loss takes the maps of the student and of the teacher, and knows nothing of models. It may declare
what else it wants, by attributes or properties; the term that holds it reads them in one place:

- ``needs``: what ``forward`` takes besides the maps, such as ``('labels',)``. Default: ``()``.
- ``compares``: ``'maps'``, ``'gradients'`` of the task losses with respect to the maps, or
  ``'explanations'``. Default: ``'maps'``.
- ``needs_same_channels``, ``needs_same_size``: whether a connector has to make the channel counts,
  or the heights and widths, of the two maps equal. Default: True.
- ``compares_probabilities``: whether it compares the probabilities of classes alone, so that the
  top-k scores of a teacher are enough. Default: False.
- ``setup(student_channels, teacher_channels)``: called once, when the channel counts are known,
  by a loss that has weights of its own.
"""

from mmkd_plugin.losses.activation_boundary import ActivationBoundaryLoss
from mmkd_plugin.losses.attention import AttentionLoss
from mmkd_plugin.losses.channel_wise import ChannelWiseLoss
from mmkd_plugin.losses.explanation import ExplanationLoss
from mmkd_plugin.losses.factor_transfer import FactorTransferLoss
from mmkd_plugin.losses.fsp import FSPLoss
from mmkd_plugin.losses.gradient_attention import GradientAttentionLoss
from mmkd_plugin.losses.hint import HintLoss
from mmkd_plugin.losses.intra_class_variation import IntraClassVariationLoss
from mmkd_plugin.losses.local_similarity import LocalSimilarityLoss
from mmkd_plugin.losses.neuron_selectivity import NeuronSelectivityLoss
from mmkd_plugin.losses.overhaul import OverhaulLoss
from mmkd_plugin.losses.pair_wise import PairWiseLoss
from mmkd_plugin.losses.pixel_wise import PixelWiseLoss
from mmkd_plugin.losses.relational import RKDAngleLoss, RKDDistanceLoss
from mmkd_plugin.losses.soft_target import SoftTargetLoss

__all__ = [
    'ActivationBoundaryLoss',
    'AttentionLoss',
    'ChannelWiseLoss',
    'ExplanationLoss',
    'FSPLoss',
    'FactorTransferLoss',
    'GradientAttentionLoss',
    'HintLoss',
    'IntraClassVariationLoss',
    'LocalSimilarityLoss',
    'NeuronSelectivityLoss',
    'OverhaulLoss',
    'PairWiseLoss',
    'PixelWiseLoss',
    'RKDAngleLoss',
    'RKDDistanceLoss',
    'SoftTargetLoss',
]
