"""Necks: the self-teachers of FRSKD, and the student's neck that goes with one of them."""

from mmkd_plugin.necks.frskd import BiFPN, BiFPNSegSelfTeacher, BiFPNSelfTeacher

__all__ = ['BiFPN', 'BiFPNSegSelfTeacher', 'BiFPNSelfTeacher']
