"""What every loss has to keep, as a base class: a loss's test file inherits it and adds its own.

A subclass names the loss and gives the formula once more, in float64 numpy and plain loops.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import inspect
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from allocations import Allocations
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory import saved_bytes
from torch import Tensor, nn

import mmkd_plugin.losses
from mmkd_plugin.losses.numerics.compiling import formulas_as_written
from mmkd_plugin.registry import MODELS
from mmkd_plugin.terms.compiled import compiled

Shape = tuple[int, ...]
LOW_PRECISION = (torch.bfloat16, torch.float16)
#: How many variants of each loss are traced for torch.compile; `make losses` traces all.
TRACED = None if os.environ.get('LOSSES') == 'all' else 2


def alike(*shapes: Shape) -> tuple[tuple[Shape, Shape], ...]:
    """Pairs of (student, teacher) shapes for a loss that wants both the same."""
    return tuple((shape, shape) for shape in shapes)


def random_pair(
    shapes: tuple[Shape, Shape],
    dtype: torch.dtype = torch.float64,
    scale: float = 1.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """A student that wants its gradient and a teacher, both standard normal times ``scale``."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)
        for shape in shapes
    )
    return student.requires_grad_(), teacher


def with_zeros(pair: tuple[Tensor, Tensor], zero: str) -> tuple[Tensor, Tensor]:
    """The pair without gradients, and with zeros in place of what is named."""
    student, teacher = (x.detach().clone() for x in pair)
    if zero in ('student', 'both'):
        student.zero_()
    if zero in ('teacher', 'both'):
        teacher.zero_()
    if zero == 'first sample':
        student[0].zero_()
    return student, teacher


def value_and_grad(
    loss: Callable[..., Tensor], student: Tensor, teacher: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss of a fresh leaf with the student's values and memory format, and its gradient."""
    leaf = student.detach().requires_grad_()
    value = loss(leaf, teacher)
    value.backward()
    return value.detach(), leaf.grad


class LossContract:
    """The common tests; see the module docstring.

    Attributes:
        name: Registered name, without the scope.
        variants: Options to test the loss with.
        pairs: Shapes of (student, teacher): odd sizes, one image, one position among them.
        same_channels: Whether channel counts have to agree.
        same_size: Whether heights and widths have to agree.
        identical_is_zero: Whether a student equal to its teacher costs nothing.
        zeros_cost_nothing: Whether two all-zero maps do.
        float16_at_1e4: Whether gradients at inputs of 1e4 fit into float16.
        least: How small all numbers may be; below, the gradient may be out of the range of float32.
        base: What its class inherits from.
        has_fast_form: Whether something else than the formula runs in eager code.
        saved_maps: How many maps in float32 it may save on top of the inputs; a part of one is left
            for what does not grow with the channels.
    """

    name: ClassVar[str]
    variants: ClassVar[tuple[dict[str, Any], ...]]
    pairs: ClassVar[tuple[tuple[Shape, Shape], ...]]
    same_channels: ClassVar[bool] = True
    same_size: ClassVar[bool] = True
    identical_is_zero: ClassVar[bool] = True
    zeros_cost_nothing: ClassVar[bool] = True
    float16_at_1e4: ClassVar[bool] = True
    least: ClassVar[float] = 0
    base: ClassVar[type] = nn.Module
    has_fast_form: ClassVar[bool] = True
    saved_maps: ClassVar[float] = 1.25

    @staticmethod
    def reference(student: np.ndarray, teacher: np.ndarray, **options: Any) -> float:
        """The formula in plain loops."""
        raise NotImplementedError

    def build(self, **options: Any) -> nn.Module:
        return getattr(mmkd_plugin.losses, self.name)(**options)

    def call(self, loss: nn.Module, student: Any, teacher: Any) -> Tensor:
        """Calls a loss; to be replaced where it takes more than the maps."""
        return loss(student, teacher)

    def value_and_grad(self, loss: nn.Module, *pair: Tensor) -> tuple[Tensor, Tensor]:
        return value_and_grad(partial(self.call, loss), *pair)

    @property
    def losses(self) -> list[nn.Module]:
        return [self.build(**options) for options in self.variants]

    def test_value(self):
        for options in self.variants:
            loss = self.build(**options)
            for seed, shapes in enumerate(self.pairs):
                student, teacher = random_pair(shapes, scale=2.0, seed=seed)
                expected = self.reference(student.detach().numpy(), teacher.numpy(), **options)
                value = self.call(loss, student, teacher)
                assert value.shape == () and value.dtype == torch.float64
                assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-15)
                value = self.call(loss, student.float(), teacher.float())
                assert value.dtype == torch.float32
                assert value.item() == pytest.approx(expected, rel=1e-4, abs=1e-7)

    @pytest.mark.parametrize('zero', ['nothing', 'student', 'teacher', 'both', 'first sample'])
    def test_the_fast_form_is_the_formula(self, zero):
        if not self.has_fast_form:
            return
        for loss in self.losses:
            for seed, shapes in enumerate(self.pairs):
                student, teacher = with_zeros(random_pair(shapes, scale=2.0, seed=seed), zero)
                value, grad = self.value_and_grad(loss, student, teacher)
                with formulas_as_written():
                    expected, slope = self.value_and_grad(loss, student, teacher)
                torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-13)
                torch.testing.assert_close(grad, slope, rtol=1e-7, atol=1e-11)

    @pytest.mark.parametrize('dtype', (*LOW_PRECISION, torch.float32))
    @pytest.mark.parametrize('zero', ['nothing', 'student', 'teacher', 'both', 'first sample'])
    @pytest.mark.parametrize('scale', [1e-4, 1e4])
    def test_the_formula_is_finite_and_in_float32(self, scale, zero, dtype):
        if dtype is torch.float16 and not self.float16_at_1e4:
            dtype = torch.float32
        for loss in self.losses:
            for shapes in self.pairs:
                pair = with_zeros(random_pair(shapes, dtype, scale), zero)
                with formulas_as_written(), torch.autocast('cpu', torch.bfloat16):
                    value, grad = self.value_and_grad(loss, *pair)
                assert value.dtype == torch.float32 and grad.dtype == dtype
                assert value.isfinite() and grad.isfinite().all() and value > -1e-5

    def test_the_formula_of_an_empty_batch_is_zero(self):
        for loss in self.losses:
            for student, teacher in self.pairs:
                pair = random_pair(((0, *student[1:]), (0, *teacher[1:])))
                with formulas_as_written():
                    value, grad = self.value_and_grad(loss, *pair)
                assert value.item() == 0 and grad.shape == pair[0].shape

    def test_gradcheck(self):
        for loss in self.losses:
            for seed, shapes in enumerate(self.pairs):
                student, teacher = random_pair(shapes, seed=seed)
                assert torch.autograd.gradcheck(partial(self.call, loss), (student, teacher))

    @pytest.mark.parametrize('dtype', LOW_PRECISION)
    def test_low_precision_inputs_are_compared_in_float32(self, dtype):
        for loss in self.losses:
            for shapes in self.pairs:
                student, teacher = random_pair(shapes, dtype, scale=2.0)
                value, grad = self.value_and_grad(loss, student, teacher)
                expected, slope = self.value_and_grad(loss, student.double(), teacher.double())
                assert value.dtype == torch.float32 and grad.dtype == dtype
                assert value.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-7)
                # what is lost is only the rounding of the gradient to the type of the input
                torch.testing.assert_close(grad.double(), slope, rtol=1e-2, atol=1e-6)

    def test_student_and_teacher_of_different_types(self):
        for loss in self.losses:
            student, teacher = random_pair(self.pairs[0], torch.bfloat16)
            expected = self.call(loss, student.double(), teacher.double()).item()
            assert self.call(loss, student.float(), teacher).item() == pytest.approx(
                expected, rel=1e-4
            )
            assert self.call(loss, student, teacher.double()).dtype == torch.float64

    @pytest.mark.parametrize('dtype', LOW_PRECISION)
    def test_autocast_changes_nothing(self, dtype):
        for loss in self.losses:
            for shapes in self.pairs:
                student, teacher = random_pair(shapes, torch.float32)
                value, grad = self.value_and_grad(loss, student, teacher)
                with torch.autocast('cpu', dtype):
                    inside = self.call(loss, student, teacher)
                    assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == dtype  # on again
                inside.backward()
                assert inside.dtype == torch.float32
                assert torch.equal(inside, value) and torch.equal(student.grad, grad)

    @pytest.mark.parametrize('dtype', (*LOW_PRECISION, torch.float32))
    @pytest.mark.parametrize('scale', [20, 40, 100, 300, 1e4])  # a softmax underflows in between
    def test_large_magnitudes_are_finite(self, scale, dtype):
        if dtype is torch.float16 and not self.float16_at_1e4:
            dtype = torch.float32  # the exact gradient is out of the range of float16
        for loss in self.losses:
            for shapes in self.pairs:
                value, grad = self.value_and_grad(loss, *random_pair(shapes, dtype, scale))
                assert value.isfinite() and grad.isfinite().all()

    @pytest.mark.parametrize('dtype', (*LOW_PRECISION, torch.float32, torch.float64))
    @pytest.mark.parametrize('zero', ['student', 'teacher', 'both', 'first sample'])
    def test_all_zero_maps_are_finite(self, zero, dtype):
        for loss in self.losses:
            for shapes in self.pairs:
                student, teacher = with_zeros(random_pair(shapes, dtype), zero)
                value, grad = self.value_and_grad(loss, student, teacher)
                assert value.isfinite() and grad.isfinite().all()
                if zero == 'both' and self.zeros_cost_nothing:
                    assert value.item() == 0 and grad.abs().max() < 1e-6

    @pytest.mark.parametrize('scale', [1e-12, 1e-18, 1e-21, 1e-24, 1e-30, 1e-38, 1e-44])
    @pytest.mark.parametrize('tiny', ['student', 'teacher', 'both'])
    def test_numbers_whose_squares_underflow_are_finite(self, tiny, scale):
        for loss in self.losses if scale >= self.least else []:
            for shapes in self.pairs:
                student, teacher = (x.detach() for x in random_pair(shapes, torch.float32))
                student = student * scale if tiny != 'teacher' else student
                teacher = teacher * scale if tiny != 'student' else teacher
                for form in (contextlib.nullcontext(), formulas_as_written()):
                    with form:
                        value, grad = self.value_and_grad(loss, student, teacher)
                    assert value.isfinite() and grad.isfinite().all()

    def test_memory_layout_changes_nothing(self):
        for loss in self.losses:
            for shapes in self.pairs:
                student, teacher = random_pair(shapes)
                value, grad = self.value_and_grad(loss, student, teacher)
                for layout in (self.channels_last, self.transposed, self.strided):
                    other, slope = self.value_and_grad(loss, layout(student), layout(teacher))
                    torch.testing.assert_close(other, value)
                    torch.testing.assert_close(slope, grad)

    @staticmethod
    def channels_last(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    @staticmethod
    def transposed(x: Tensor) -> Tensor:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)

    @staticmethod
    def strided(x: Tensor) -> Tensor:
        return torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0]

    @pytest.mark.parametrize('kind', [list, tuple])
    def test_sequence_is_the_sum_over_its_pairs(self, kind):
        for loss in self.losses:
            students, teachers = zip(*(random_pair(shapes) for shapes in self.pairs))
            value = self.call(loss, kind(students), kind(teachers))
            expected = sum(self.call(loss, *pair) for pair in zip(students, teachers))
            torch.testing.assert_close(value, expected)
            value.backward()
            for student, pair in zip(students, zip(students, teachers)):
                torch.testing.assert_close(student.grad, self.value_and_grad(loss, *pair)[1])

    def test_identical_maps_cost_nothing(self):
        if not self.identical_is_zero:
            return
        for loss in self.losses:
            for shape, _ in self.pairs:
                student, _ = random_pair((shape, shape), torch.float32)
                value, grad = self.value_and_grad(loss, student, student.detach().clone())
                assert value.item() == pytest.approx(0, abs=1e-6)
                assert grad.abs().max() < 1e-6

    def test_teacher_gets_no_gradient(self):
        for loss in self.losses:
            student, teacher = random_pair(self.pairs[0])
            teacher.requires_grad_()
            self.call(loss, student, teacher).backward()
            assert student.grad.any() and teacher.grad is None
            with torch.no_grad():
                assert not self.call(loss, student, teacher).requires_grad

    def test_inputs_are_left_alone(self):
        for loss in self.losses:
            student, teacher = random_pair(self.pairs[0])
            copies = student.detach().clone(), teacher.clone()
            self.call(loss, student, teacher).backward()
            assert torch.equal(student, copies[0]) and torch.equal(teacher, copies[1])

    def test_loss_weight_is_one_and_scales(self):
        for options in self.variants:
            student, teacher = random_pair(self.pairs[0])
            plain = self.call(self.build(**options), student, teacher)
            for weight in (0, 1, 2.5):
                weighted = self.call(self.build(**options, loss_weight=weight), student, teacher)
                torch.testing.assert_close(weighted, weight * plain)

    def test_loss_weight_for_each_map(self):
        for options in self.variants:
            students, teachers = zip(*(random_pair(shapes) for shapes in self.pairs))
            weights = [2.0**n for n in range(len(self.pairs))]
            value = self.call(self.build(**options, loss_weight=weights), students, teachers)
            parts = (self.call(self.build(**options), *pair) for pair in zip(students, teachers))
            torch.testing.assert_close(value, sum(w * part for w, part in zip(weights, parts)))
            loss = self.build(**options, loss_weight=[1.0, 2.0, 3.0])
            with pytest.raises(ValueError, match='loss_weight has 3 entries for 1 comparisons'):
                self.call(loss, students[0], teachers[0])

    @pytest.mark.parametrize(
        'weight', ['1', None, True, float('nan'), float('inf'), [], ['1'], [1, float('nan')]]
    )
    def test_loss_weight_is_checked(self, weight):
        with pytest.raises((TypeError, ValueError), match='loss_weight must be'):
            self.build(loss_weight=weight)

    def test_built_from_config(self):
        for options in self.variants:
            config = dict(type=f'mmkd_plugin.{self.name}', loss_weight=3, **options)
            loss = MODELS.build(config)
            assert type(loss) is type(self.build())
            for key, value in {**options, 'loss_weight': 3}.items():
                assert getattr(loss, key) == value
                assert f'{key}={value}' in repr(loss)

    def test_holds_no_state(self):
        for loss in self.losses:
            assert not list(loss.parameters()) and not loss.state_dict()

    def test_examples_and_docstring(self):
        kind = type(self.build())
        assert kind.__bases__ == (self.base,) and issubclass(self.base, nn.Module)
        results = doctest.testmod(importlib.import_module(kind.__module__))
        assert results.attempted >= 5 and results.failed == 0
        for part in ('paper: http', 'code: ', 'Args:', 'Shape:', 'Raises:', 'Examples:'):
            assert part in kind.__doc__
        for argument in inspect.signature(kind).parameters:
            assert f'        {argument} (' in inspect.getdoc(kind).replace('\n', '\n    ')

    def test_has_a_row_in_the_docs(self):
        page = Path(__file__).parents[2].joinpath('docs', 'losses.md').read_text(encoding='utf-8')
        assert any(line.startswith('|') and f'`{self.name}`' in line for line in page.splitlines())
        assert f"type='mmkd_plugin.{self.name}'" in page

    def test_empty_batch_costs_nothing(self):
        for loss in self.losses:
            for student, teacher in self.pairs:
                pair = random_pair(((0, *student[1:]), (0, *teacher[1:])))
                value, grad = self.value_and_grad(loss, *pair)
                assert value.item() == 0 and grad.shape == pair[0].shape

    def test_batch_sizes_must_agree(self):
        with pytest.raises(ValueError, match='batch sizes differ') as error:
            self.call(self.build(), torch.ones(2, 3, 4, 4), torch.ones(1, 3, 4, 4))
        assert 'student (2, 3, 4, 4), teacher (1, 3, 4, 4)' in str(error.value)

    def test_channel_counts(self):
        loss = self.build()
        assert loss.needs_same_channels is self.same_channels
        pair = random_pair(((2, 3, 4, 4), (2, 5, 4, 4)))
        if not self.same_channels:
            assert self.call(loss, *pair).isfinite()
            return
        with pytest.raises(ValueError, match='channel counts differ') as error:
            self.call(loss, *pair)
        assert str(error.value) == (
            'channel counts differ: student (2, 3, 4, 4), teacher (2, 5, 4, 4); '
            'leave `connector` out so that a 1x1 conv is added, or name one'
        )

    def test_sizes_must_agree(self):
        loss = self.build()
        assert loss.needs_same_size is self.same_size
        if not self.same_size:
            pair = random_pair(((2, 3, 6, 4), (2, 3, 4, 4)))
            assert self.call(loss, *pair).isfinite()
            return
        with pytest.raises(ValueError, match='map sizes differ') as error:
            self.call(loss, torch.ones(2, 3, 1, 4), torch.ones(2, 3, 4, 4))  # would broadcast
        assert 'student (2, 3, 1, 4), teacher (2, 3, 4, 4); leave `connector` out' in str(
            error.value
        )
        assert 'bilinear resize' in str(error.value)

    def test_form_is_checked(self):
        for shape in ((2, 3, 4), (2, 3, 4, 4, 4), (3,)):
            with pytest.raises(ValueError, match=r'expected two tensors .*\(N, C, H, W\)') as error:
                self.call(self.build(), torch.ones(shape), torch.ones(2, 3, 4, 4))
            assert f'student {shape}, teacher (2, 3, 4, 4)' in str(error.value)

    def test_empty_maps_are_refused(self):
        with pytest.raises(ValueError, match=r'nothing to compare: student \(2, 3, 0, 4\)'):
            self.call(self.build(), torch.ones(2, 3, 0, 4), torch.ones(2, 3, 0, 4))

    def test_sequences_must_be_equally_long(self):
        x = torch.ones(1, 2, 3, 3)
        for student, teacher, counts in (
            ([x] * 3, [x] * 5, 'student 3, teacher 5'),
            (x, [x] * 5, 'student 1, teacher 5'),
        ):
            with pytest.raises(ValueError, match='numbers of maps differ') as error:
                self.call(self.build(), student, teacher)
            assert counts in str(error.value) and "'neck[2]'" in str(error.value)
        with pytest.raises(ValueError, match='no maps'):
            self.call(self.build(), [], [])

    def test_only_tensors_are_compared(self):
        x = torch.ones(1, 2, 3, 3)
        with pytest.raises(TypeError, match=r'student must be a tensor.* got dict'):
            self.call(self.build(), {'out': x}, x)
        with pytest.raises(TypeError, match=r"teacher must be .* got list of \['list'\]"):
            self.call(self.build(), [x], [[x]])

    @pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
    def test_what_is_saved_for_the_backward_pass(self, dtype):
        shape = (2, 256, 16, 16)
        for loss in self.losses:
            student, teacher = random_pair((shape, shape), dtype)
            saved = saved_bytes(lambda: self.call(loss, student, teacher), student, teacher)  # noqa: B023
            assert saved <= self.saved_maps * 4 * student.numel()

    def test_a_second_backward_pass_and_a_second_derivative_are_right_or_refused(self):
        for loss in self.losses:
            student, teacher = random_pair(self.pairs[0])
            value = self.call(loss, student, teacher)
            first, second = (
                torch.autograd.grad(value, student, retain_graph=True)[0] for _ in range(2)
            )
            assert torch.equal(first, second) and first.any()
            try:
                (slope,) = torch.autograd.grad(value, student, create_graph=True)
            except RuntimeError as error:
                assert 'no second derivative' in str(error)
            else:
                assert slope.requires_grad

    def test_no_loop_over_images_or_channels(self):
        for loss in self.losses:
            calls = []
            for images, channels in ((5, 8), (2, 4), (5, 8)):  # the first one gets memory
                pair = random_pair(((images, channels, 8, 8),) * 2, torch.float32)
                with Allocations() as made:
                    self.value_and_grad(loss, *pair)
                calls.append(made.calls)
            assert calls[2] <= calls[1]

    def test_one_graph_for_all_sizes(self):
        graphs = []

        def backend(graph: torch.fx.GraphModule, _: Any) -> Callable:
            graphs.append(graph)
            return graph

        for options in self.variants[:TRACED]:
            torch._dynamo.reset()
            del graphs[:]
            loss = self.build(**options)
            call = compiled(loss, backend)
            for n, *size in ((2, 16, 16), (3, 20, 17), (2, 12, 30), (4, 15, 21)):
                pair = random_pair(((n, 3, *size), (n, 3 if self.same_channels else 2, *size)))
                torch.manual_seed(0)
                value, grad = self.value_and_grad(call, *pair)
                torch.manual_seed(0)
                expected, slope = self.value_and_grad(loss, *pair)
                torch.testing.assert_close(value, expected)
                torch.testing.assert_close(grad, slope)
            assert len(graphs) == 1, options

    @settings(
        max_examples=40,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.differing_executors],
    )
    @given(data=st.data())
    def test_never_negative_and_finite(self, data):
        sizes = st.integers(1, 7)
        batch, channels, other, height, width = (data.draw(sizes) for _ in range(5))
        loss = self.build(**data.draw(st.sampled_from(self.variants)))
        shape = (batch, channels, height, width)
        shapes = (shape, shape if self.same_channels else (batch, other, height, width))
        if not self.same_size and data.draw(st.booleans()):
            shapes = (shape, (*shapes[1][:2], data.draw(sizes), data.draw(sizes)))
        scale = 10 ** data.draw(st.floats(-6, 4))
        student, teacher = random_pair(shapes, torch.float32, scale, data.draw(st.integers(0, 99)))
        teacher = teacher * data.draw(st.sampled_from([1e-3, 1, 1e3]))
        value, grad = self.value_and_grad(loss, student, teacher)
        assert value.item() >= -1e-5  # rounding of a divergence of zero, times tau^2
        assert value.isfinite() and grad.isfinite().all()
