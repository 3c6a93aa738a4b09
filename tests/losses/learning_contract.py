"""The contract for losses with modules of their own: the weights are the same in every call."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any
from zlib import crc32

import pytest
import torch
from loss_contract import LOW_PRECISION, LossContract, random_pair
from memory import saved_bytes
from torch import Tensor, nn

from mmkd_plugin.terms.compiled import compiled

SEED = torch.tensor(3)


def fill(module: nn.Module) -> None:
    """Give weights that depend on their names and shapes alone; all maps have the same ones."""
    for name, parameter in module.named_parameters():
        key = f'{re.sub(r"[.][0-9]+", "", name, count=1)} {tuple(parameter.shape)}'
        generator = torch.Generator().manual_seed(crc32(key.encode()))
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            parameter.copy_(values / max(1, parameter[0].numel()) ** 0.5)


def set_up(loss: nn.Module, student: Any, teacher: Any) -> nn.Module:
    """Build the modules of a loss for maps of these channels, in their type."""
    channels = []
    for maps in (student, teacher):
        maps = maps if isinstance(maps, (list, tuple)) else [maps]
        tensors = [x if isinstance(x, Tensor) and x.dim() > 1 else torch.ones(1, 1) for x in maps]
        channels.append([x.shape[1] for x in tensors])
        dtypes = [x.dtype for x in tensors]
    loss.setup(*channels)
    fill(loss)
    double = torch.float64 in dtypes
    return loss.double() if double else loss


class LearningContract(LossContract):
    """The contract of :class:`LossContract`, for a loss that has ``setup``.

    A subclass says by ``given`` what else the loss takes.
    """

    identical_is_zero = False
    zeros_cost_nothing = False
    has_fast_form = False
    float16_at_1e4 = False

    def given(self, student: Tensor) -> dict[str, Any]:
        """Further arguments of the loss by name."""
        return {}

    def call(self, loss: nn.Module, student: Any, teacher: Any) -> Tensor:
        if isinstance(loss, nn.Module):
            set_up(loss, student, teacher)
        first = student[0] if isinstance(student, Sequence) and len(student) else student
        return loss(student, teacher, **self.given(first))

    def test_gradcheck(self):
        for loss in self.losses:
            for seed, shapes in enumerate(self.pairs):
                self.gradcheck(loss, *random_pair(shapes, seed=seed))

    def gradcheck(self, loss: nn.Module, student: Tensor, teacher: Tensor, **more: float) -> None:
        """Checks the gradient of one map; the modules are built once."""
        set_up(loss, student, teacher)
        compute = partial(loss, teacher=teacher, **self.given(student))
        assert torch.autograd.gradcheck(lambda x: compute(x), student, **more)

    def test_teacher_gets_no_gradient(self):
        for loss in self.losses:
            student, teacher = random_pair(self.pairs[0])
            teacher.requires_grad_()
            self.call(loss, student, teacher).backward()
            assert student.grad.any() and teacher.grad is None

    @pytest.mark.parametrize('dtype', LOW_PRECISION)
    def test_autocast_changes_nothing(self, dtype):
        """Its layers run in half precision; sums do not."""
        for loss in self.losses:
            student, teacher = random_pair(self.pairs[0], torch.float32)
            value, grad = self.value_and_grad(loss, student, teacher)
            with torch.autocast('cpu', dtype):
                inside = self.call(loss, student, teacher)
            inside.backward()
            assert inside.dtype == torch.float32
            torch.testing.assert_close(inside, value, rtol=5e-2, atol=1e-4)
            assert (student.grad - grad).norm() < 0.05 * grad.norm() + 1e-4

    def test_one_graph_for_all_sizes(self):
        graphs = []

        def backend(graph, _):
            graphs.append(graph)
            return graph

        for options in self.variants[:4]:
            torch._dynamo.reset()
            del graphs[:]
            loss = self.build(**options)
            channels = 4, 4 if self.same_channels else 3
            set_up(loss, *(torch.ones(1, c, dtype=torch.float64) for c in channels))
            call = compiled(loss, backend)
            for n, *size in ((2, 16, 16), (3, 20, 24), (2, 12, 32), (4, 16, 20)):
                pair = random_pair(tuple((n, c, *size) for c in channels))
                value, grad = self.value_and_grad(call, *pair)
                expected, slope = self.value_and_grad(loss, *pair)
                torch.testing.assert_close(value, expected)
                torch.testing.assert_close(grad, slope)
            assert len(graphs) == 1, options

    @pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
    def test_what_is_saved_for_the_backward_pass(self, dtype):
        shape = (2, 64, 16, 16)
        for loss in self.losses:
            student, teacher = random_pair((shape, shape), dtype)
            set_up(loss, student, teacher)
            there = student, teacher, *loss.parameters()
            saved = saved_bytes(lambda: loss(student, teacher, **self.given(student)), *there)  # noqa: B023
            weights = sum(p.numel() for p in loss.parameters())  # their gradients are kept too
            assert saved <= 4 * (self.saved_maps * student.numel() + weights)

    def test_its_modules_learn(self):
        for loss in self.losses:
            pair = random_pair(self.pairs[0])
            self.call(loss, *pair).backward()
            slopes = {name: p.grad for name, p in loss.named_parameters()}
            assert slopes and all(slope is not None and slope.any() for slope in slopes.values())
            assert all(p.requires_grad for p in loss.parameters())

    def test_gradcheck_of_its_modules(self):
        for loss in self.losses:
            student, teacher = random_pair(self.pairs[0])
            set_up(loss, student, teacher)
            names, weights = zip(*loss.named_parameters())

            def compute(*values, loss=loss, names=names, student=student, teacher=teacher):
                given = self.given(student)
                return torch.func.functional_call(
                    loss, dict(zip(names, values)), (student.detach(), teacher), given
                )

            assert torch.autograd.gradcheck(compute, weights)

    def test_it_has_to_be_set_up(self):
        x = torch.ones(2, 3, 4, 4)
        with pytest.raises(ValueError, match=r'call setup\(student_channels, teacher_channels\)'):
            self.build()(x, x, **self.given(x))
