"""Arguments of a config against type hints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import pytest

from mmkd_plugin.annotations import check_arguments, expected, fits


@pytest.mark.parametrize(
    ('hint', 'good', 'bad'),
    [
        (bool, [True, False], [0, 1, 'yes', None]),
        (int, [0, -3, 7], [True, 2.0, '2', None]),
        (float, [0, 2.5, -1], [True, math.nan, math.inf, 1e300, '2', None]),
        (str, ['a'], ['', ' ', 3, None, ['a']]),
        (int | None, [None, 3], [2.5, 'a']),
        (list[str], [['a'], ('a', 'b'), []], ['ab', [1], None]),
        (Sequence[float], [[1, 2.0]], [[math.nan], 3]),
        (tuple[int, ...], [(1, 2)], [(1.5,), 1]),
        (dict, [{}, dict(a=1)], [[], None, 'a']),
        (Literal['sum', 'max'], ['max'], ['min', None]),
        (Any, [None, 1, 'a'], []),
    ],
)
def test_values_of_a_kind(hint, good, bad):
    assert [value for value in good if not fits(value, hint)] == []
    assert [value for value in bad if fits(value, hint)] == []


@pytest.mark.parametrize(
    ('hint', 'text'),
    [
        (float, 'a finite number'),
        (int | None, 'a whole number or None'),
        (Literal['a', 'b'], "'a' or 'b'"),
        (list[int], 'a list of whole numbers'),
    ],
)
def test_hints_in_words(hint, text):
    assert expected(hint) == text


def test_an_argument_without_a_hint_passes():
    def call(free, bound: int): ...

    check_arguments(call, dict(free=object(), bound=1, other=2), 'here')
    with pytest.raises(ValueError, match=r"^here\.bound must be a whole number, got 'a'$"):
        check_arguments(call, dict(bound='a'), 'here')
