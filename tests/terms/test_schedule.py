"""Schedules: the factor at every point of a run."""

import pytest

from mmkd_plugin.terms.schedule import CURVES, Schedule, check_meet


def test_always():
    assert [Schedule().factor(n) for n in (0, 1, 10**6)] == [1.0] * 3
    assert str(Schedule()) == 'always'


def test_start_and_stop():
    schedule = Schedule(start=2, stop=4)
    assert [schedule.factor(n) for n in range(6)] == [0, 0, 1, 1, 0, 0]


def test_linear_ramp():
    schedule = Schedule(start=10, ramp=4, stop=20)
    assert [schedule.factor(n) for n in (9, 10, 11, 12, 13, 14, 19, 20)] == [
        0, 0, 0.25, 0.5, 0.75, 1, 1, 0
    ]  # fmt: skip


def test_cosine_ramp():
    schedule = Schedule(ramp=4, curve='cosine')
    values = [schedule.factor(n) for n in range(5)]
    assert values == pytest.approx([0, 0.1464466, 0.5, 0.8535534, 1])


def test_exp_ramp():
    schedule = Schedule(start=40, ramp=20, curve='exp', by_epoch=True)
    values = [schedule.factor(n) for n in (0, 39, 40, 45, 50, 55, 59, 60, 1000)]
    # exp(-5), exp(-45/16), exp(-5/4), exp(-5/16), exp(-1/80)
    expected = [0, 0, 0.0067379470, 0.0600546679, 0.2865047969, 0.7316156289, 0.9875778005, 1, 1]
    assert values == pytest.approx(expected, abs=1e-10)
    assert str(schedule) == 'from epoch 40, exp ramp over 20'


@pytest.mark.parametrize('curve', CURVES)
def test_curves_rise_to_one(curve):
    schedule = Schedule(start=3, ramp=7, stop=20, curve=curve)
    values = [schedule.factor(n) for n in range(3, 11)]
    assert values == sorted(values) and len(set(values)) == 8
    assert 0 <= values[0] < 0.01 and values[-1] == 1
    assert schedule.factor(2) == schedule.factor(20) == 0 and schedule.factor(19) == 1
    assert Schedule(start=3, curve=curve).factor(3) == 1  # without a ramp, no curve


def test_never_on():
    assert Schedule(start=10).never_on(10)
    assert not Schedule(start=10).never_on(11)


def test_text():
    schedule = Schedule(start=3, stop=9, ramp=2, curve='cosine', by_epoch=True)
    assert str(schedule) == 'from epoch 3 to 9, cosine ramp over 2'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(start=-1), 'cannot be negative'),
        (dict(ramp=-1), 'cannot be negative'),
        (dict(start=5, stop=5), r'stop \(5\) must come after start \(5\)'),
        (dict(curve='step'), "curve must be one of linear, cosine, exp, got 'step'"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**arguments)


def test_over_is_off_for_good():
    schedule = Schedule(start=2, stop=5)
    assert [schedule.is_over(n) for n in (0, 3, 4, 5, 9)] == [False, False, False, True, True]
    assert not Schedule(start=2).is_over(10**9)


def meet(length: int | None = 100, **schedules: Schedule) -> None:
    check_meet(schedules, dict(max_iters=length, max_epochs=length))


@pytest.mark.parametrize('by_epoch', [False, True])
def test_a_gap_between_schedules(by_epoch):
    first, second = Schedule(stop=5, by_epoch=by_epoch), Schedule(start=8, by_epoch=by_epoch)
    unit = 'epoch' if by_epoch else 'iteration'
    with pytest.raises(ValueError, match=f'^nothing is learnt in {unit} 5: the schedule of a is'):
        meet(a=first, b=second)
    meet(5, a=first)  # the run ends before
    meet(a=first, b=Schedule(start=5, by_epoch=by_epoch))
    meet(a=first, b=second, c=Schedule(start=2, stop=9, by_epoch=by_epoch))


def test_a_gap_at_the_beginning_or_in_a_run_of_unknown_length():
    with pytest.raises(
        ValueError, match='in iteration 0: the schedule of a is "from iteration 3"; let them'
    ):
        meet(a=Schedule(start=3))
    with pytest.raises(
        ValueError, match='in iteration 0: the schedule of a is "from iteration 0, linear'
    ):
        meet(a=Schedule(ramp=3))
    with pytest.raises(ValueError, match='in iteration 9'):
        meet(100, a=Schedule(stop=9))
    meet(None, a=Schedule(stop=9))  # the run may end before
    with pytest.raises(ValueError, match='in iteration 9'):
        meet(None, a=Schedule(stop=9), b=Schedule(start=20))


def test_iterations_are_not_compared_with_epochs():
    with pytest.raises(ValueError, match='in iteration 5'):
        meet(a=Schedule(stop=5), b=Schedule(start=8))
    meet(a=Schedule(stop=5), b=Schedule(start=8, by_epoch=True))
