"""Choosing: taps and losses for a student and a teacher, by what both show of a made-up image.

:mod:`looking` tries the models, :mod:`methods` is the table of what suits which pair,
:mod:`choosing` picks, and :mod:`writing` makes the config.
"""

from mmkd_plugin.choosing.choosing import Choice, check_method, choose
from mmkd_plugin.choosing.looking import (
    HeadForm,
    Level,
    Look,
    QueryForm,
    ScoreMap,
    look_at_student,
    look_at_teacher,
)
from mmkd_plugin.choosing.methods import METHODS
from mmkd_plugin.choosing.writing import config_text

__all__ = [
    'METHODS',
    'Choice',
    'HeadForm',
    'Level',
    'Look',
    'QueryForm',
    'ScoreMap',
    'check_method',
    'choose',
    'config_text',
    'look_at_student',
    'look_at_teacher',
]
