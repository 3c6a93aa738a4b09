"""Losses on a GPU, against one read of the maps and one write of the gradient."""

from __future__ import annotations

import pytest
import torch

from benchmarks import cases, losses, targets
from benchmarks.measure import describe_machine, usable_bytes
from benchmarks.report import Report

#: Losses that read large maps once: the smallest part of those that the target is for.
LARGE = [
    case
    for case in cases.pick(['ChannelWiseLoss', 'HintLoss', 'AttentionLoss', 'OverhaulLoss'], False)
    if case.where == 'features'
]


@pytest.mark.parametrize('case', LARGE, ids=lambda case: case.name)
def test_within_twice_the_floor(case: cases.Case, gpu: torch.device) -> None:
    settings = losses.Settings(gpu, 1, True, usable_bytes(gpu))
    report = Report('losses', 'cuda', describe_machine(gpu), {})
    report.rounds = [losses.measure(case, settings)]
    found = [one for one in targets.verdicts(report) if 'of the floor' in one.target]
    print(*found, sep='\n')
    assert found and all(one.verdict == 'PASS' for one in found)


@pytest.mark.parametrize('case', cases.pick([], True), ids=lambda case: f'{case.name} {case.where}')
def test_the_same_as_on_a_cpu(case: cases.Case, gpu: torch.device) -> None:
    """Small maps of each kind: value and gradient of both devices are close."""
    expected = losses.value_and_gradients(case.ours('cpu'), case.inputs('cpu'))
    found = losses.value_and_gradients(case.ours(gpu), case.inputs(gpu))
    assert losses.difference([x.cpu() for x in found], expected) < 1e-3
