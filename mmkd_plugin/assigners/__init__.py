"""Assigners: what a detector's head finds while it computes its own loss: labels, boxes, RoIs.

This is the one folder that knows heads by name.
"""

from mmkd_plugin.assigners.heads import find_head
from mmkd_plugin.assigners.rois import Sampled, is_behind_proposals
from mmkd_plugin.assigners.watching import assigners_watched

__all__ = ['Sampled', 'assigners_watched', 'find_head', 'is_behind_proposals']
