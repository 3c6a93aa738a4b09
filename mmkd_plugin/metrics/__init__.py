"""Measures of a student beside mIoU and mAP: metrics of mmengine, one file each."""

from mmkd_plugin.metrics.teacher_agreement import TeacherAgreement

__all__ = ['TeacherAgreement']
