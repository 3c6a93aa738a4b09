"""Teachers: one file for each kind."""

from mmkd_plugin.teachers.cached import CachedTeacher
from mmkd_plugin.teachers.online import Teacher
from mmkd_plugin.teachers.self_teacher import SelfTeacher

__all__ = ['CachedTeacher', 'SelfTeacher', 'Teacher']
