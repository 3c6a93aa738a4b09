"""Terms: the lines of the ``distill`` config, from taps to a weighted loss.

Public: :class:`Term` and :class:`Schedule`.
"""

from mmkd_plugin.terms.schedule import Schedule
from mmkd_plugin.terms.term import Term

__all__ = ['Schedule', 'Term']
