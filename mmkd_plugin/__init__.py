"""Knowledge distillation for dense prediction inside OpenMMLab.

The public names are those of ``__all__``, and those that the pages under ``docs/`` import. They are
loaded when they are first used, so importing this package loads neither mmsegmentation nor
mmdetection. All other names are internal, as is :mod:`mmkd_plugin.losses.numerics`.

Examples:
    >>> import mmkd_plugin
    >>> mmkd_plugin.ChannelWiseLoss(tau=4)
    ChannelWiseLoss(tau=4, loss_weight=1.0)
"""

from importlib import import_module
from typing import Any

from mmkd_plugin.version import __version__, python_problem

if python_problem():
    raise ImportError(python_problem())

_PUBLIC = {
    'cache.store': ['TeacherCache'],
    'cache.wiring': ['wire'],
    'connectors': [
        'ChannelNormalizer',
        'ConvConnector',
        'PHISNormalizer',
        'Paraphraser',
        'ReviewFusion',
        'Translator',
    ],
    'distiller': ['Distiller'],
    'explanations': ['BcosWeights', 'Explainer', 'GradCAM', 'GradientAttention'],
    'losses': [
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
    ],
    'metrics': ['ExplanationLocalization', 'ExplanationSimilarity', 'TeacherAgreement'],
    'models.backbones': ['BcosResNet'],
    'models.batch_augments': ['CutMix', 'Mixup'],
    'models.foundation': ['FoundationModel'],
    'models.necks': ['BiFPN', 'BiFPNClassifier', 'BiFPNSegSelfTeacher', 'BiFPNSelfTeacher'],
    'running.hook': ['SafeCheckpoints'],
    'running.sharding': ['ShardedRunner'],
    'registry': ['DATASETS', 'HOOKS', 'METRICS', 'MODELS', 'TRANSFORMS'],
    'taps': ['Tap', 'TapReader', 'Taps'],
    'teachers': [
        'Batch',
        'CachedTeacher',
        'Lesson',
        'OnlineTeacher',
        'Passage',
        'Preview',
        'SelfTeacher',
        'Teacher',
        'Trial',
    ],
    'terms': ['Schedule', 'Term'],
    'training_data': ['CheckTrainingData'],
    'unlabelled': ['ImageFolder'],
    'views': ['View'],
    'visualization': ['DistillVisualizationHook'],
}
_HOMES = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ['__version__', *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    """Loads a public name on its first use."""
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(import_module(f'{__name__}.{_HOMES[name]}'), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
