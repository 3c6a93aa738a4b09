"""Counting bytes that are kept and bytes that live at once."""

from __future__ import annotations

import torch

from benchmarks import cases, losses, memory
from mmkd_plugin.losses.numerics.autograd import keeps_its_gradient

CPU = torch.device('cpu')


def test_what_is_kept_for_backward_counts_once():
    inputs = cases.Inputs(torch.randn(1000, requires_grad=True), torch.randn(1000))
    size = 4000
    assert memory.saved_bytes(lambda s, t: (s - t).sum(), inputs) == 0
    assert memory.saved_bytes(lambda s, t: (s * t).sum(), inputs) == size  # t, for s
    assert memory.saved_bytes(lambda s, t: (s * s + s.square()).sum(), inputs) == size
    assert memory.saved_bytes(lambda s, t: s.exp().exp().sum(), inputs) == 2 * size


def test_what_a_forward_keeps_for_itself_does_not_count():
    inputs = cases.Inputs(torch.randn(1000, requires_grad=True), torch.randn(1000))

    @keeps_its_gradient
    def loss(s, t):
        return (s.exp().exp() * t).sum()

    assert memory.saved_bytes(loss, inputs) == 4000  # the gradient


def test_the_peak_is_what_lives_at_once():
    def call():
        a = torch.zeros(10**6)
        b = a + 1
        del a
        return b * 2

    call()
    assert 8e6 <= memory.peak_bytes(call, CPU) < 8.1e6


def test_a_loss_may_keep_its_inputs_and_one_map():
    (case,) = (c for c in cases.pick(['AttentionLoss'], quick=True) if c.where == 'features')
    found = memory.of_loss(case, losses.Settings(CPU, 0, False, 2**30))
    assert found.allowed == 3 * 3 * 16 * 8 * 16 * 4
    assert set(found.saved) == set(found.peak) >= {'textbook', 'ours'}
    assert found.saved['textbook'] >= 3 * 16 * 8 * 16 * 4


def test_the_largest_layer_is_found():
    model = torch.nn.Sequential(torch.nn.Linear(4, 100), torch.nn.Linear(100, 2))
    assert memory.largest_layer(model, lambda: model(torch.zeros(3, 4))) == 4 * 3 * (4 + 100)
    assert not any(module._forward_hooks for module in model.modules())


def test_maps_that_numpy_holds_are_counted(monkeypatch):
    monkeypatch.setattr('mmkd_plugin.losses.numerics.one_pass.HUGE', 0)
    (case,) = (c for c in cases.pick(['HintLoss'], quick=True) if c.where == 'features')
    inputs = case.inputs()
    assert memory.peak_bytes(lambda: inputs.call(case.ours()), CPU) >= 3 * 16 * 8 * 16 * 4


def test_temporaries_of_several_threads_are_not_counted_for_one():
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found = []
        memory.peak_bytes(lambda: found.append(torch.get_num_threads()), CPU)
        assert found == [1] and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
