"""Targets: met, missed, or not measured."""

from __future__ import annotations

import pytest

from benchmarks.measure import Footprint, Rounds, Spread
from benchmarks.report import Report
from benchmarks.targets import Verdict, verdicts


def report(command: str, *rounds: Rounds, device: str = 'cpu', bf16: str = 'none') -> Report:
    return Report(command, device, {'bf16 arithmetic': bf16}, {}, list(rounds))


def verdict(found: list[Verdict], words: str) -> str:
    (one,) = (v for v in found if words in v.target)
    return one.verdict


def loss(group: str, **seconds: float) -> Rounds:
    names = dict(razor='MMRazor', eager='ours', compiled='ours, compiled')
    return Rounds(group, 'features', {names.get(k, k): [v, v, v] for k, v in seconds.items()})


def test_ratios_are_of_each_round():
    rounds = Rounds('', '', dict(a=[2, 40, 6, 8, 10], b=[1, 10, 2, 4, 5]))
    assert rounds.ratio('a', 'b') == Spread(2, 2, 3)
    assert rounds.ratio('a', 'c') is None
    assert rounds.fastest(('a', 'b', 'c')) == 'b'


def test_a_loss_is_compared_with_mmrazor_by_its_fastest_form():
    met = loss('ChannelWiseLoss', textbook=9, razor=5, eager=2, compiled=1)
    assert verdict(verdicts(report('losses', met)), '5× as fast as MMRazor') == 'PASS'
    missed = loss('ChannelWiseLoss', textbook=9, razor=3.1, eager=1, compiled=2)
    assert verdict(verdicts(report('losses', missed)), 'as fast as MMRazor') == '3.10× of 5×'


def test_a_loss_that_mmrazor_lacks_is_compared_with_the_textbook():
    met = loss('IntraClassVariationLoss 19 classes', textbook=8, eager=1)
    assert verdict(verdicts(report('losses', met)), '8× as fast as textbook') == 'PASS'


def test_what_could_not_run_is_not_a_miss():
    one = loss('PairWiseLoss all positions', eager=1)
    one.notes['textbook'] = 'not run: needs 9 GiB, allowed are 8'
    (found,) = (v for v in verdicts(report('losses', one)) if 'PairWise' in v.target)
    assert found[1:] == ('not run: needs 9 GiB, allowed are 8', 'not measured')


def test_slower_is_where_most_rounds_say_so():
    slower = loss('HintLoss', textbook=1, eager=2)
    either = Rounds('FSPLoss', 'features', {'textbook': [1, 1, 1, 1], 'ours': [0.9, 0.9, 1.1, 1.2]})
    found = verdict(verdicts(report('losses', slower, either)), 'ours: nowhere slower')
    assert found == 'slower in 1 of 2: HintLoss, features 0.50×'
    assert verdict(verdicts(report('losses', either)), 'ours: nowhere slower') == 'PASS'


def test_the_floor_is_a_target_of_gpus_and_of_losses_bound_by_memory():
    bound = loss('PairWiseLoss all positions', textbook=90, eager=9, floor=1)
    one = loss('HintLoss', textbook=9, eager=2.5, compiled=2.4, floor=1)
    found = verdicts(report('losses', one, bound, device='cuda'))
    assert verdict(found, 'of the floor') == '2.40× of at most 2×'
    assert verdict(verdicts(report('losses', one)), 'of the floor') == 'not measured'


def test_losses_must_compile_in_one_piece():
    whole, failed = (loss(name, eager=1, compiled=1) for name in 'ab')
    assert verdict(verdicts(report('losses', whole)), 'compiles') == 'PASS'
    failed.notes['ours, compiled'] = 'failed: no compiler'
    found = verdict(verdicts(report('losses', whole, failed)), 'compiles')
    assert found == 'not in 1: b, features'


@pytest.mark.parametrize(
    ('device', 'bf16', 'wanted'), [('cpu', 'none', 1.15), ('cpu', 'AMX', 1.4), ('cuda', 'AMX', 2)]
)
def test_what_a_step_must_reach_depends_on_the_machine(device, bf16, wanted):
    step = Rounds('PSPNet', '', {'student': [1], 'MMRazor': [2 * wanted], 'ours': [2]})
    found = verdicts(report('step', step, device=device, bf16=bf16))
    assert verdict(found, f"{wanted:g}× as fast as MMRazor's") == 'PASS'
    step.seconds['ours'] = [2.1]
    found = verdicts(report('step', step, device=device, bf16=bf16))
    assert verdict(found, 'online:') == f'{2 * wanted / 2.1:.2f}× of {wanted:g}×'


def test_a_teacher_in_fp32_is_judged_as_on_a_cpu_without_bf16():
    step = Rounds('PSPNet', '', {'student': [1], 'MMRazor': [2.2], 'ours': [1], 'ours, fp32': [2]})
    assert verdict(verdicts(report('step', step, bf16='AMX')), 'fp32') == '1.10× of 1.15×'
    for other in (report('step', step), report('step', step, device='cuda', bf16='AMX')):
        assert not [one for one in verdicts(other) if 'fp32' in one.target]


def test_cached_views_may_cost_a_thirtieth_with_their_loading():
    epoch = Rounds('FPN', '', {'student': [1], 'ours, cached views': [1.02]})
    assert verdict(verdicts(report('epoch', epoch)), 'cached views') == 'PASS'
    epoch.seconds['ours, cached views'] = [1.25]
    assert verdict(verdicts(report('epoch', epoch)), 'cached views') == '1.25× of at most 1.03×'


def test_cached_targets_may_cost_a_tenth():
    step = Rounds('PSPNet', '', {'student': [1], 'ours, cached': [1.1]})
    assert verdict(verdicts(report('step', step)), 'cached') == 'PASS'
    step.seconds['ours, cached'] = [1.25]
    assert verdict(verdicts(report('step', step)), 'cached') == '1.25× of at most 1.1×'


def test_a_loss_that_keeps_more_than_it_may_is_named():
    found = report('memory')
    found.footprints = [
        Footprint(name, 'features', allowed=100, saved=dict(ours=size))
        for name, size in (('HintLoss', 90), ('FSPLoss', 150), ('RKDAngleLoss', 210))
    ]
    expected = 'more in 2 of 3: FSPLoss, features 1.50× of it; RKDAngleLoss, features 2.10× of it'
    assert verdict(verdicts(found), 'saves for backward') == expected
