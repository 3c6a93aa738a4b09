"""Teachers: one file for each kind."""

from mmkd_plugin.teachers.base import Batch, Lesson, Passage, Preview, Teacher, Trial
from mmkd_plugin.teachers.cached import CachedTeacher
from mmkd_plugin.teachers.online import OnlineTeacher
from mmkd_plugin.teachers.self_teacher import SelfTeacher

__all__ = [
    'Batch',
    'CachedTeacher',
    'Lesson',
    'OnlineTeacher',
    'Passage',
    'Preview',
    'SelfTeacher',
    'Teacher',
    'Trial',
]
