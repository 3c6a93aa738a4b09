from __future__ import annotations

import pytest
import torch

from mmkd_plugin.losses.numerics.compiling import formulas_as_written, with_fast_form


def loss(traced=False):
    """A formula, and a fast form that can be told from it by the value."""

    def fast(x):
        return x.sum() + 100

    @with_fast_form(fast, traced=traced)
    def formula(x):
        """What the paper says."""
        return x.sum()

    return formula


def test_the_fast_form_runs_in_eager_code_and_the_formula_where_it_is_asked_for():
    formula, x = loss(), torch.ones(3)
    assert formula(x).item() == 103
    with formulas_as_written():
        assert formula(x).item() == 3
    with pytest.raises(ValueError, match='later'), formulas_as_written():
        raise ValueError('fast again later')
    assert formula(x).item() == 103
    assert formula.__name__ == 'formula' and formula.__doc__ == 'What the paper says.'


@pytest.mark.parametrize(('traced', 'expected'), [(False, 3), (True, 103)])
def test_what_is_traced(traced, expected):
    torch._dynamo.reset()
    compiled = torch.compile(loss(traced), backend='eager', fullgraph=True)
    assert compiled(torch.ones(3)).item() == expected
