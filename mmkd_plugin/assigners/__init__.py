"""Assigners: what the assigner of a detector's head finds while the head computes its own loss.

This is the one folder that knows heads by name.
"""

from mmkd_plugin.assigners.heads import find_head
from mmkd_plugin.assigners.watching import assigners_watched

__all__ = ['assigners_watched', 'find_head']
