"""Explanations: the parts of an image that speak for a class (Grad-CAM, gradients, B-cos).

An explanation is of one class score of a dense model: the sum of the class's scores over the
positions where the teacher sees the class. One pass takes the gradients of all classes of all
images, so a loss on explanations costs one more backward pass and one double backward for any
number of classes.
"""

from mmkd_plugin.explanations.choosing import Chosen, Scores, choose_classes, scores_of
from mmkd_plugin.explanations.explainers import (
    BcosWeights,
    Explainer,
    Explanation,
    GradCAM,
    GradientAttention,
    grad_cam,
    gradient_attention_map,
    resized,
)
from mmkd_plugin.explanations.explaining import evaluating, explain
from mmkd_plugin.explanations.gradients import score_gradients

__all__ = [
    'BcosWeights',
    'Chosen',
    'Explainer',
    'Explanation',
    'GradCAM',
    'GradientAttention',
    'Scores',
    'choose_classes',
    'evaluating',
    'explain',
    'grad_cam',
    'gradient_attention_map',
    'resized',
    'score_gradients',
    'scores_of',
]
