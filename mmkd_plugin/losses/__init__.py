"""The losses: one file per paper, with the formula as a plain function and a thin class around it.

What makes them fast and exact lies in :mod:`mmkd_plugin.losses.numerics`.

A loss takes the maps of the student and of the teacher, and knows nothing of models. By attributes
or properties it may declare ``needs``, ``compares``, ``needs_same_channels``, ``needs_same_size``,
``needs_raw_maps`` and ``compares_probabilities``: the term reads them, see
:class:`mmkd_plugin.losses.traits.LossTraits`. A loss with weights of its own may have
``setup(student_channels, teacher_channels)``: the term calls it once, when the channel counts are
known.

To write a loss there are :func:`sum_over_maps`, :func:`check_shapes`, :func:`loss_weights` and
:func:`full_precision`.
"""

from mmkd_plugin.losses.activation_boundary import ActivationBoundaryLoss
from mmkd_plugin.losses.attention import AttentionLoss
from mmkd_plugin.losses.attention_guided import AttentionGuidedLoss
from mmkd_plugin.losses.box_distribution import BoxDistributionLoss
from mmkd_plugin.losses.channel_wise import ChannelWiseLoss
from mmkd_plugin.losses.class_correlation import ClassCorrelationLoss
from mmkd_plugin.losses.cosine_hint import CosineHintLoss
from mmkd_plugin.losses.cross_head import CrossHeadLoss
from mmkd_plugin.losses.cross_image import CrossImageLoss
from mmkd_plugin.losses.decoupled import DecoupledLoss
from mmkd_plugin.losses.dense_contrast import DenseContrastLoss
from mmkd_plugin.losses.explanation import ExplanationLoss
from mmkd_plugin.losses.factor_transfer import FactorTransferLoss
from mmkd_plugin.losses.focal_global import FocalGlobalLoss
from mmkd_plugin.losses.fsp import FSPLoss
from mmkd_plugin.losses.gradient_attention import GradientAttentionLoss
from mmkd_plugin.losses.gram import GramLoss
from mmkd_plugin.losses.hint import HintLoss
from mmkd_plugin.losses.intra_class_variation import IntraClassVariationLoss
from mmkd_plugin.losses.jaccard import JaccardLoss
from mmkd_plugin.losses.local_similarity import LocalSimilarityLoss
from mmkd_plugin.losses.masked_generation import MaskedGenerationLoss
from mmkd_plugin.losses.memory_contrast import MemoryContrastLoss
from mmkd_plugin.losses.neuron_selectivity import NeuronSelectivityLoss
from mmkd_plugin.losses.normalized_target import NormalizedTargetLoss
from mmkd_plugin.losses.numerics.checks import check_shapes, loss_weights
from mmkd_plugin.losses.numerics.maps import sum_over_maps
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.losses.overhaul import OverhaulLoss
from mmkd_plugin.losses.pair_wise import PairWiseLoss
from mmkd_plugin.losses.pearson import PearsonLoss
from mmkd_plugin.losses.pixel_wise import PixelWiseLoss
from mmkd_plugin.losses.protocol import ProtocolLoss
from mmkd_plugin.losses.relational import RKDAngleLoss, RKDDistanceLoss
from mmkd_plugin.losses.review import ReviewLoss
from mmkd_plugin.losses.shared_masks import SharedMasksLoss
from mmkd_plugin.losses.shared_queries import SharedQueriesLoss
from mmkd_plugin.losses.soft_target import SoftTargetLoss
from mmkd_plugin.losses.token_relation import TokenRelationLoss

__all__ = [
    'ActivationBoundaryLoss',
    'AttentionGuidedLoss',
    'AttentionLoss',
    'BoxDistributionLoss',
    'ChannelWiseLoss',
    'ClassCorrelationLoss',
    'CosineHintLoss',
    'CrossHeadLoss',
    'CrossImageLoss',
    'DecoupledLoss',
    'DenseContrastLoss',
    'ExplanationLoss',
    'FSPLoss',
    'FactorTransferLoss',
    'FocalGlobalLoss',
    'GradientAttentionLoss',
    'GramLoss',
    'HintLoss',
    'IntraClassVariationLoss',
    'JaccardLoss',
    'LocalSimilarityLoss',
    'MaskedGenerationLoss',
    'MemoryContrastLoss',
    'NeuronSelectivityLoss',
    'NormalizedTargetLoss',
    'OverhaulLoss',
    'PairWiseLoss',
    'PearsonLoss',
    'PixelWiseLoss',
    'ProtocolLoss',
    'RKDAngleLoss',
    'RKDDistanceLoss',
    'ReviewLoss',
    'SharedMasksLoss',
    'SharedQueriesLoss',
    'SoftTargetLoss',
    'TokenRelationLoss',
    'check_shapes',
    'full_precision',
    'loss_weights',
    'sum_over_maps',
]
