"""Queries: models with a decoder, asked once more with queries that two models share.

:mod:`queries` is what a term asks, and :mod:`asking` repeats a call of a decoder. :mod:`detectors`
and :mod:`masks` say what a query is in each family, and :mod:`kinds` what they have in common.
"""

from mmkd_plugin.queries.asking import (
    BEFORE_DECODER,
    DECODER,
    MEMORY,
    Asked,
    decoder_watched,
    has_decoder,
    made_up,
    without_queries,
)
from mmkd_plugin.queries.kinds import Group
from mmkd_plugin.queries.queries import Queries

__all__ = [
    'BEFORE_DECODER',
    'DECODER',
    'MEMORY',
    'Asked',
    'Group',
    'Queries',
    'decoder_watched',
    'has_decoder',
    'made_up',
    'without_queries',
]
