"""The forms of each loss that the benchmark compares: all there, and all the same formula."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from benchmarks import cases, losses, mmrazor
from mmkd_plugin.registry import MODELS

QUICK = cases.cases(quick=True)


def name_of(case: cases.Case) -> str:
    return f'{case.name}, {case.where}'


@pytest.fixture
def razor():
    try:
        mmrazor.folder()
    except mmrazor.NotInstalled as error:
        pytest.skip(str(error))


def uncovered() -> set[str]:
    return set(cases.registered_losses()) - {case.loss for case in cases.cases()}


def test_each_registered_loss_has_a_case():
    assert len(cases.registered_losses()) >= 17
    assert not uncovered()


def test_a_new_loss_without_a_case_is_noticed():
    class NewLoss(nn.Module):
        __module__ = 'mmkd_plugin.losses.new'

    MODELS.register_module(module=NewLoss)
    try:
        assert uncovered() == {'NewLoss'}
    finally:
        del MODELS.module_dict['NewLoss']


def test_quick_cases_are_the_same_with_smaller_maps():
    full = cases.cases()
    assert [name_of(case) for case in full] == [name_of(case) for case in QUICK]
    assert [case.options for case in full] == [case.options for case in QUICK]
    assert set(cases.SHAPES) == set(cases.QUICK)


@pytest.mark.parametrize('case', QUICK, ids=name_of)
def test_the_textbook_agrees(case: cases.Case):
    inputs = case.inputs(dtype=torch.float64)
    ours = losses.value_and_gradients(case.ours(), inputs)
    assert ours[0] > 0 and all(gradient.any() for gradient in ours[1:])
    assert losses.difference(losses.value_and_gradients(case.textbook(), inputs), ours) < 1e-6


#: The number of centres is the largest label plus one, which only the labels tell.
READS_LABELS = {'IntraClassVariationLoss'}


def test_no_loss_waits_for_the_device():
    """On the meta device there are no values to wait for: no `.item()`, no `nonzero`."""
    for case in {case.name: case for case in QUICK if case.loss not in READS_LABELS}.values():
        gradients = case.inputs('meta').call(case.ours('meta').train())
        assert [x.shape for x in gradients] == [torch.Size(shape) for shape in case.shapes]


@pytest.mark.parametrize('case', [case for case in QUICK if case.razor], ids=name_of)
def test_mmrazor_agrees(case: cases.Case, razor):
    inputs = case.inputs(dtype=torch.float64)
    ours = losses.value_and_gradients(case.ours(), inputs)
    assert losses.difference(losses.value_and_gradients(case.razor(), inputs), ours) < 1e-6


def test_mmrazor_is_run_from_its_files_alone(razor):
    loss = mmrazor.loss('cwd.ChannelWiseDivergence', tau=4)
    assert type(loss).__name__ == 'ChannelWiseDivergence' and loss.tau == 4
    assert not [name for name in sys.modules if name.partition('.')[0] == 'mmrazor']


def test_without_mmrazor_its_form_is_said_to_be_missing(monkeypatch):
    def missing(name):
        raise mmrazor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(mmrazor.metadata, 'distribution', missing)
    settings = losses.Settings(torch.device('cpu'), 0, compiled=False, memory=2**30)
    found = losses.measure(QUICK[0], settings)
    assert losses.RAZOR not in found.seconds
    assert found.notes[losses.RAZOR].startswith('MMRazor is not installed: pip install')


@pytest.mark.parametrize(
    ('name', 'near'), [('ChannelWiseLos', 'ChannelWiseLoss'), ('hintloss', 'HintLoss')]
)
def test_an_unknown_loss_is_named_with_the_nearest_one(name, near):
    with pytest.raises(ValueError, match=f"no loss '{name}'; did you mean {near}"):
        cases.pick([name])
    assert {case.loss for case in cases.pick([near])} == {near}
