"""Queries: detectors with a decoder, asked once more with queries that two models share.

:mod:`queries` is what a term asks, :mod:`kinds` what a query is in each family of detectors, and
:mod:`asking` repeats a call of a decoder.
"""

from mmkd_plugin.queries.asking import (
    BEFORE_DECODER,
    DECODER,
    ENCODER,
    Asked,
    decoder_watched,
    has_decoder,
    made_up,
)
from mmkd_plugin.queries.kinds import Group, without_queries
from mmkd_plugin.queries.queries import Queries

__all__ = [
    'BEFORE_DECODER',
    'DECODER',
    'ENCODER',
    'Asked',
    'Group',
    'Queries',
    'decoder_watched',
    'has_decoder',
    'made_up',
    'without_queries',
]
