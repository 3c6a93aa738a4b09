"""Necks: the self-teachers of FRSKD, and the student's neck of its segmentation form."""

from mmkd_plugin.models.necks.frskd import BiFPN, BiFPNSegSelfTeacher, BiFPNSelfTeacher
from mmkd_plugin.models.necks.frskd_classifier import BiFPNClassifier, frskd_losses

__all__ = ['BiFPN', 'BiFPNClassifier', 'BiFPNSegSelfTeacher', 'BiFPNSelfTeacher', 'frskd_losses']
