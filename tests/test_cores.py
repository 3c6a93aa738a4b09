"""Cores that other programs leave."""

from __future__ import annotations

import math
import os

import pytest

from mmkd_plugin.cores import Cores, free_cores, quota_in, threads_for, times_in

HZ = os.sysconf('SC_CLK_TCK')

STAT = f"""cpu  {900 * HZ} 0 0 {900 * HZ} 0 0 0 0 0 0
cpu0 {1 * HZ} {2 * HZ} {3 * HZ} {40 * HZ} {5 * HZ} {6 * HZ} {7 * HZ} {8 * HZ} {1 * HZ} 0
cpu1 {10 * HZ} 0 0 {90 * HZ} 0 0 0 0 0 0
cpu12 0 0 0 {100 * HZ} 0 0 0 0 0 0
intr 1 2 3
"""


@pytest.mark.parametrize(
    ('cores', 'busy', 'passed'),
    [
        ({0}, 27, 72),  # all but idle and waiting; the guest's time is in the user's
        ({1}, 10, 100),
        ({0, 12}, 27, 172),
        ({7}, 0, 0),
        (set(), 0, 0),
    ],
)
def test_the_times_of_some_cores(cores, busy, passed):
    assert times_in(STAT, cores) == (busy, passed)


@pytest.mark.parametrize(
    ('text', 'quota'), [('200000 100000\n', 2), ('max 100000\n', math.inf), ('', math.inf)]
)
def test_the_quota_of_a_container(text, quota):
    assert quota_in(text) == quota


def moments(count, busy, own, quota=math.inf, passed=10):
    """Two moments, ten seconds apart, with what all programs and this one did in between."""
    before = Cores(count, quota, busy=1000, passed=3000, own=7)
    return before, Cores(count, quota, 1000 + busy, 3000 + count * passed, 7 + own)


@pytest.mark.parametrize(
    ('between', 'free'),
    [
        (moments(count=2, busy=0, own=0), 2),
        (moments(count=2, busy=20, own=0), 0),
        (moments(count=2, busy=15, own=5), 1),
        (moments(count=2, busy=9, own=9.1), 2),  # the counters are not quite in step
        (moments(count=64, busy=300, own=0, quota=2), 2),
        (moments(count=4, busy=30, own=0, quota=2), 1),
        (moments(count=8, busy=0, own=3, passed=0), 8),  # the system does not tell
    ],
)
def test_free_cores(between, free):
    assert free_cores(*between) == pytest.approx(free)


@pytest.mark.parametrize(
    ('free', 'wanted', 'threads'),
    [(2, 2, 2), (1.8, 2, 2), (1.7, 2, 1), (1, 2, 1), (0, 2, 1), (63.5, 32, 32), (7, 8, 7)],
)
def test_threads_for_free_cores(free, wanted, threads):
    assert threads_for(free, wanted) == threads


def test_the_cores_of_this_machine():
    before, after = Cores.now(), Cores.now()
    assert 1 <= before.count <= os.cpu_count() and before.quota > 0
    assert before.busy <= after.busy <= after.passed and before.own <= after.own
