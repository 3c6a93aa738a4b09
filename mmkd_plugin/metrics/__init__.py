"""Metrics of a student beside mIoU and mAP, one file each."""

from mmkd_plugin.metrics.explanation_localization import ExplanationLocalization
from mmkd_plugin.metrics.explanation_similarity import ExplanationSimilarity
from mmkd_plugin.metrics.teacher_agreement import TeacherAgreement

__all__ = ['ExplanationLocalization', 'ExplanationSimilarity', 'TeacherAgreement']
