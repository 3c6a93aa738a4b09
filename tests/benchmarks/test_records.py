"""``python -m benchmarks.records``: sizes of class scores in a cache, and their errors."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import records
from mmkd_plugin.cache.costs import softmax


def scores(seed: int) -> np.ndarray:
    """Scores of 5 classes that change slowly from place to place."""
    y, x = np.mgrid[:24, :32] / 8
    phases = np.random.default_rng(seed).uniform(0, 6, (5, 1, 1))
    return (4 * np.sin(x + phases) * np.cos(y + 2 * phases)).astype(np.float32)


def test_fewer_bytes_cost_more():
    maps = [scores(seed) for seed in range(2)]
    costs = {name: records.cost_of(maps, *way, 1.0) for name, way in records.WAYS.items()}
    shares = {name: np.mean(one.stored) / np.mean(one.half) for name, one in costs.items()}
    errors = {name: np.mean(one.errors) for name, one in costs.items()}
    assert shares['smallest'] < shares['compact'] < shares['uint8'] < 0.6
    assert errors['uint8'] < errors['compact'] < errors['smallest'] < 0.03
    assert errors['--top-k 3'] > errors['uint8']


def test_the_error_is_that_of_the_probabilities():
    exact = scores(0)
    cost = records.cost_of([exact], 'uint8', None, 2.0)
    steps = (np.ptp(exact, axis=(1, 2)) / 255).max()  # a score is off by half a step at most
    assert 0 < cost.largest[0] < steps / 2 / 2 * softmax(exact / 2).max()


def test_a_missing_file_is_told(monkeypatch):
    monkeypatch.setattr('sys.argv', ['records', 'nowhere.py', 'weights.pth'])
    with pytest.raises(SystemExit, match='no config at nowhere'):
        records.main()
