"""The methods for each kind of pair: one table, best first."""

from __future__ import annotations

from typing import Any, NamedTuple


class Method(NamedTuple):
    """What is compared in which way.

    Args:
        loss (dict[str, Any]): The config of the loss, without its weight.
        why (str): The reason, as the tool prints it.
    """

    loss: dict[str, Any]
    why: str


def _loss(name: str, **arguments: Any) -> dict[str, Any]:
    return dict(type=f'mmkd_plugin.{name}', **arguments)


CWD = 'the distribution of each channel over the image (CWD)'
PKD = 'patterns of features, whatever their scale (PKD)'
AT = 'where activations are strong, whatever the channels mean (AT)'
PI = 'the distribution over the classes at each position (PI)'
KD_DETR = 'class scores and boxes (KD-DETR)'
MASKS = 'classes and masks (shared queries)'
BCKD = 'each class as a yes or no, and the boxes where these differ (BCKD)'
DKD = 'the certainty about the labelled class, and apart from it all others (DKD)'
KD = 'the distribution over the classes (soft targets)'

#: What a pair shows, best first, and the methods for it. The first one is taken unless the user
#: names another. Change it here when a table of results says something else.
METHODS: dict[str, dict[str, Method]] = {
    # class scores before upsampling, of the same classes
    'scores': {
        'cwd': Method(_loss('ChannelWiseLoss', tau=4), CWD),
        'pixel_wise': Method(_loss('PixelWiseLoss'), PI),
    },
    # the last map before the classifier
    'features': {
        'cwd': Method(_loss('ChannelWiseLoss', tau=4), CWD),
        'pkd': Method(_loss('PearsonLoss'), PKD),
        'at': Method(_loss('AttentionLoss'), AT),
    },
    # levels of two necks with the same channels
    'neck': {
        'cwd': Method(_loss('ChannelWiseLoss', tau=1), CWD),
        'pkd': Method(_loss('PearsonLoss'), PKD),
        'at': Method(_loss('AttentionLoss'), AT),
    },
    # levels of two necks with different channels
    'other neck': {
        'pkd': Method(_loss('PearsonLoss'), PKD),
        'cwd': Method(_loss('ChannelWiseLoss', tau=1), CWD),
        'at': Method(_loss('AttentionLoss'), AT),
    },
    # decoders that can be asked with the same queries, for the same classes
    'queries': {
        'kd_detr': Method(_loss('SharedQueriesLoss', tau=10), KD_DETR),
    },
    # the same of models that classify masks
    'mask queries': {
        'shared_masks': Method(_loss('SharedMasksLoss'), MASKS),
    },
    # maps of two backbones
    'backbone': {
        'pkd': Method(_loss('PearsonLoss'), PKD),
        'at': Method(_loss('AttentionLoss'), AT),
        'cwd': Method(_loss('ChannelWiseLoss', tau=1), CWD),
    },
    # the last of these maps, beside class scores
    'last stage': {
        'pkd': Method(_loss('PearsonLoss'), PKD),
    },
    # stages of a backbone whose branches lie along the batch later
    'stages': {
        'pkd': Method(_loss('PearsonLoss'), PKD),
        'at': Method(_loss('AttentionLoss'), AT),
        'cwd': Method(_loss('ChannelWiseLoss', tau=1), CWD),
    },
    # scores and boxes of two heads of a kind, in one-stage detectors
    'head': {
        'bckd': Method(_loss('ProtocolLoss'), BCKD),
    },
    # class scores of RoI heads, of the same classes
    'rois': {
        'dkd': Method(_loss('DecoupledLoss', beta=0.25, tau=1), DKD),
        'soft_target': Method(_loss('SoftTargetLoss', tau=1), KD),
    },
}

#: What comes beside the first method of a kind, if the user names none: the first that fits. On
#: each of the small data sets two terms together have the best row.
BESIDE: dict[str, tuple[tuple[str, str], ...]] = {
    'scores': (('neck', 'pkd'), ('other neck', 'pkd'), ('last stage', 'pkd')),
    'neck': (('head', 'bckd'),),
    'other neck': (('head', 'bckd'),),
}

#: Kinds and methods whose gain docs/choosing.md has.
MEASURED = {
    ('scores', 'cwd'), ('scores', 'pixel_wise'), ('features', 'cwd'), ('other neck', 'pkd'),
    ('other neck', 'cwd'), ('other neck', 'at'), ('head', 'bckd'),
}  # fmt: skip

#: What each kind of pair is called when it is told.
NAMES = {
    'scores': 'class scores before upsampling',
    'features': 'the last map before the classifier',
    'neck': 'levels of the neck',
    'other neck': 'levels of the neck',
    'queries': 'answers of both decoders to the same queries',
    'mask queries': 'answers of both decoders to the same queries',
    'backbone': 'maps of the backbone',
    'last stage': 'the last stage of the backbone',
    'stages': 'stages of the backbone, before its branches',
    'head': 'scores and boxes of the head',
    'rois': "class scores of the student's RoIs",
}
