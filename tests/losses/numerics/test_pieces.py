"""Pieces of maps, and the threads that share them."""

from __future__ import annotations

import os
import threading

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mmkd_plugin.losses import AttentionLoss, ChannelWiseLoss, LocalSimilarityLoss, RKDDistanceLoss
from mmkd_plugin.losses.numerics.pieces import KEPT, each_piece, pieces, scratch, threads_for

PIECE = 'mmkd_plugin.losses.numerics.pieces.PIECE'


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize('dim', [1, 2, 3])
@pytest.mark.parametrize('shape', [(5, 7, 6, 4), (1, 1, 9, 9), (3, 50, 1, 1), (0, 4, 4, 4), (6, 3)])
@pytest.mark.parametrize('room', [1, 10, 60, 10**6])
def test_pieces_cover_a_map_once(shape, dim, room):
    x = torch.zeros(shape)
    found = pieces(x, dim, room)
    for piece in found:
        x[piece] += 1
    assert (x == 1).all() and bool(found) == bool(len(x))
    if x.dim() > dim and room > 1 and len(x):  # a sample is cut into about as much as there is room
        sizes = [x[piece].numel() for piece in found]
        assert max(sizes) <= max(1.5 * room, x[0].numel() // x.shape[dim] * 2)


def test_only_what_is_on_a_cpu_is_cut():
    x = torch.zeros(2, 3, 4, 4, device='meta')
    assert pieces(x, 1, 1) == [(slice(None),)] and threads_for(x) == 1


def test_threads_share_the_pieces_in_order_and_run_operations_alone(monkeypatch, threads):
    monkeypatch.setattr(PIECE, 4)
    x, meet = torch.arange(100.0).view(100, 1), threading.Barrier(threads)

    def work(piece):
        if piece[0].start < 4 * threads:  # nobody takes a second piece before all have one
            meet.wait(60)
        value = x[piece].sum()
        return value.item(), threading.get_ident(), torch.get_num_threads(), value.requires_grad

    x.requires_grad_()
    with torch.no_grad():
        values, who, alone, recorded = zip(*each_piece(work, x, dim=1))
    assert values == tuple(sum(range(i, i + 4)) for i in range(0, 100, 4))
    assert len(set(who)) == threads and set(alone) == {1} and not any(recorded)
    assert (threading.get_ident() in who) == (threads == 1)
    assert torch.get_num_threads() == threads


def test_a_new_thread_has_as_many_threads_as_before(monkeypatch, threads):
    monkeypatch.setattr(PIECE, 4)
    each_piece(lambda piece: None, torch.zeros(100, 1), dim=1)
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [threads]


@pytest.mark.parametrize('shape', [(3, 1), (1, 100), (40, 100)])
def test_few_or_large_pieces_stay_in_this_thread(monkeypatch, threads, shape):
    monkeypatch.setattr(PIECE, 4)
    who = each_piece(lambda piece: threading.get_ident(), torch.zeros(shape), dim=2)
    assert set(who) == {threading.get_ident()}


def test_an_error_in_a_thread_is_raised_here(monkeypatch, threads):
    monkeypatch.setattr(PIECE, 4)

    def work(piece):
        if piece[0].start == 20:
            raise ValueError('piece 5')

    with pytest.raises(ValueError, match='piece 5'):
        each_piece(work, torch.zeros(100, 1), dim=1)
    assert each_piece(lambda piece: 1, torch.zeros(100, 1), dim=1) == [1] * 25


LOSSES = (
    AttentionLoss(),
    ChannelWiseLoss(),
    LocalSimilarityLoss(),
    LocalSimilarityLoss('cosine'),
    RKDDistanceLoss(),
)


@pytest.mark.parametrize('loss', LOSSES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_loss_does_not_depend_on_the_threads(monkeypatch, threads, loss, dtype):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(4, 6, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
        for _ in range(2)
    )

    def value_and_grad():
        x = student.clone().requires_grad_()
        value = loss(x, teacher)
        return value, *torch.autograd.grad(value, x)

    expected = value_and_grad()
    monkeypatch.setattr(PIECE, 64)
    for found, known in zip(value_and_grad(), expected):
        torch.testing.assert_close(found, known)
    with torch.inference_mode():
        torch.testing.assert_close(loss(student, teacher.clone()), expected[0])


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system does not fork')
def test_a_fork_has_threads_of_its_own(monkeypatch, threads):
    monkeypatch.setattr(PIECE, 4)
    x = torch.zeros(100, 1)
    each_piece(lambda piece: None, x, dim=1)
    child = os.fork()
    if not child:
        os._exit(sum(each_piece(lambda piece: 1, x, dim=1)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 25


def test_scratch_is_the_same_memory_in_each_call():
    x = torch.zeros(3, 5, 7)
    first = scratch(x)
    assert first.shape == x.shape and first.dtype == x.dtype and not first.requires_grad
    assert scratch(x[1:]).data_ptr() == first.data_ptr()
    assert scratch(x, dtype=torch.float64).dtype == torch.float64
    others = [scratch(x, 1), scratch(x, dtype=torch.float64)]
    assert len({out.data_ptr() for out in (first, *others)}) == 3
    found = []
    thread = threading.Thread(target=lambda: found.append(scratch(x)))
    thread.start()
    thread.join()
    assert found[0].data_ptr() != first.data_ptr()


def test_scratch_serves_inside_and_outside_of_inference_mode():
    x = torch.zeros(3, 5, dtype=torch.float64)
    with torch.inference_mode():
        scratch(x, 7).fill_(1)
    torch.add(x, 2, out=scratch(x, 7))
    assert (scratch(x, 7) == 2).all()


def test_no_tensor_without_values_is_kept():
    with FakeTensorMode():
        assert scratch(torch.zeros(3, 5), 9) is None
    assert scratch(torch.zeros(3, 5), 9).fill_(1).sum() == 15


@pytest.mark.parametrize(
    'x',
    [
        torch.zeros(2, 3, device='meta'),
        torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        torch.zeros(()),
        torch.zeros(1).expand(KEPT + 1),
    ],
    ids=['no CPU', 'other layout', 'scalar', 'large'],
)
def test_other_temporaries_are_allocated(x):
    assert scratch(x) is None
