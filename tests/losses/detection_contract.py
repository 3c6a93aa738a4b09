"""The contract for losses on the scores and boxes of a detector's head, and made-up assignments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from loss_contract import LOW_PRECISION, LossContract, random_pair
from torch import Tensor

from mmkd_plugin.losses.numerics.assigned import SAME_HEADS, Assigned, rows

STRIDE = 8
N_POS = 3.5


def assigned_for(scores: Sequence[Tensor], each: int = 1, seed: int = 0) -> Assigned:
    """Labels, weights and anchors for the scores of some levels, with ``each`` anchors a position.

    They depend on the shape of a level alone. A quarter of the places are positives, a quarter are
    ignored. Boxes are decoded from distributions, or from as many numbers as a box has sides.
    """
    labels, weights, priors = [], [], []
    classes = scores[0].shape[1] // each
    for x in scores:
        batch, _, height, width = x.shape
        places = height * width * each
        drawn = torch.Generator().manual_seed(100 * height + width + seed)
        kind = torch.randint(4, (batch, places), generator=drawn)
        kind[:, :1] = 0  # each level has a positive, and one place that counts
        label = torch.randint(classes, (batch, places), generator=drawn)
        labels.append(torch.where(kind == 0, label, classes))
        weight = torch.rand((batch, places), generator=drawn, dtype=torch.float64) + 0.5
        weights.append(torch.where(kind == 1, 0.0, weight))
        y, x0 = (
            v.flatten()
            for v in torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
        )
        centre = torch.stack([x0, y], 1).repeat_interleave(each, 0).double() * STRIDE
        shift = torch.rand((batch, places, 2), generator=drawn, dtype=torch.float64)
        centre = centre + shift  # so that no two are equally far from anything
        priors.append(torch.cat([centre - 2 * STRIDE, centre + 2 * STRIDE], 2))

    def decode(level: int, boxes: Tensor, of_teacher: bool) -> Tensor:
        values = rows(boxes, labels[level].shape[1]).unflatten(2, (4, -1))
        middle = (priors[level][..., :2] + priors[level][..., 2:]) / 2
        bins = torch.arange(values.shape[3], dtype=values.dtype) + 1
        sides = (values.softmax(3) * bins).sum(3) * STRIDE
        middle = middle.to(values.dtype)
        return torch.cat([middle - sides[..., :2], middle + sides[..., 2:]], 2)

    n_pos = torch.tensor(N_POS)
    return Assigned(labels, weights, priors, n_pos, classes, decode, lambda level: priors[level])


def sides_of(x: Any) -> Any:
    """A map of boxes from a map of scores: twice as many bins, and each side differs."""
    if not isinstance(x, Tensor) or x.dim() != 4:
        return x
    with torch.autocast('cpu', enabled=False):  # it has no `cat` of float16
        x = torch.cat([x, x.flip(1) / 2], 1)
        return torch.cat([x, x.flip(1), -x, -x.flip(1) / 2], 1)


def head_maps(x: Any) -> Any:
    """The maps of a head, scores and boxes, made from one map or several."""
    if isinstance(x, Tensor):
        return [x, sides_of(x)]
    return [*x, *map(sides_of, x)] if isinstance(x, (list, tuple)) else x


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


class DetectionContract(LossContract):
    """The contract of :class:`LossContract`: boxes are made from the scores of their level.

    A subclass says by ``given`` what else the loss takes.
    """

    has_fast_form = False
    saved_maps = 9.5  # of the scores, and of boxes that are eight times as large
    #: Options for which no weight depends on the map that is differentiated.
    differentiable: tuple[dict[str, Any], ...]

    def given(self, scores: list[Tensor]) -> dict[str, Any]:
        """Further arguments of the loss by name."""
        return dict(assigned=assigned_for(scores))

    def call(self, loss: Any, student: Any, teacher: Any) -> Tensor:
        first = list(student) if isinstance(student, (list, tuple)) else [student]
        fit = [
            x if isinstance(x, Tensor) and x.dim() == 4 else torch.ones(1, 1, 1, 1) for x in first
        ]
        return loss(
            head_maps(student), head_maps(teacher), **self.given(fit or [torch.ones(1, 1, 1, 1)])
        )

    def test_gradcheck(self):
        for options in self.differentiable:
            loss = self.build(**options)
            for seed, shapes in enumerate(self.pairs[-2:]):
                student, teacher = random_pair(shapes, seed=seed)
                fixed = torch.randn(shapes[0], dtype=torch.float64)
                given = self.given([fixed])

                def of_boxes(x, loss=loss, fixed=fixed, teacher=teacher, given=given):
                    return loss([fixed, sides_of(x)], [fixed / 2, sides_of(teacher)], **given)

                def of_scores(x, loss=loss, fixed=fixed, teacher=teacher, given=given):
                    boxes = [sides_of(fixed)] * 2
                    return loss([x, boxes[0]], [teacher, boxes[1]], **given)

                assert torch.autograd.gradcheck(of_boxes, student)
                assert torch.autograd.gradcheck(of_scores, student)

    @pytest.mark.parametrize('dtype', LOW_PRECISION)
    def test_low_precision_inputs_are_compared_in_float32(self, dtype):
        for loss in self.losses:
            for shapes in self.pairs:
                student, teacher = random_pair(shapes, dtype, scale=2.0)
                given = self.given([student])
                results = []
                for kind in (dtype, torch.float64):
                    leaves = [x.detach().to(kind).requires_grad_() for x in head_maps(student)]
                    value = loss(leaves, [x.to(kind) for x in head_maps(teacher)], **given)
                    results.append((value, torch.autograd.grad(value, leaves)))
                (value, grads), (expected, slopes) = results
                assert value.dtype == torch.float32
                assert value.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-7)
                for grad, slope in zip(grads, slopes):
                    assert grad.dtype == dtype
                    torch.testing.assert_close(grad.double(), slope, rtol=1e-2, atol=1e-6)

    def test_one_graph_for_all_sizes(self):
        self.variants = self.variants[:1]  # they differ in numbers alone
        super().test_one_graph_for_all_sizes()

    def test_channel_counts(self):
        with pytest.raises(ValueError, match='channel counts differ') as error:
            self.call(self.build(), *random_pair(((2, 3, 4, 4), (2, 5, 4, 4))))
        assert str(error.value).endswith(f'teacher (2, 5, 4, 4); {SAME_HEADS}')

    def test_sizes_must_agree(self):
        with pytest.raises(ValueError, match='map sizes differ') as error:
            self.call(self.build(), torch.ones(2, 3, 1, 4), torch.ones(2, 3, 4, 4))
        assert str(error.value).endswith(f'teacher (2, 3, 4, 4); {SAME_HEADS}')

    def test_sequences_must_be_equally_long(self):
        x = torch.ones(1, 2, 3, 3)
        with pytest.raises(ValueError, match='numbers of maps differ: student 6, teacher 10'):
            self.call(self.build(), [x] * 3, [x] * 5)
        with pytest.raises(ValueError, match='no maps'):
            self.call(self.build(), [], [])

    def test_only_tensors_are_compared(self):
        x = torch.ones(1, 2, 3, 3)
        with pytest.raises(TypeError, match=r'student must be a tensor.* got dict'):
            self.call(self.build(), {'out': x}, x)
        with pytest.raises(TypeError, match=r"teacher must be .* got list of \['list'"):
            self.call(self.build(), [x], [[x]])

    def test_it_declares_that_maps_are_raw(self):
        loss = self.build()
        assert loss.needs_raw_maps and loss.needs_same_channels and 'assigned' in loss.needs

    def test_scores_and_boxes_of_all_levels(self):
        x = torch.ones(1, 2, 3, 3)
        given = self.given([x, x])
        with pytest.raises(ValueError, match='expected the scores of 2 levels and then their boxe'):
            self.build()([x] * 6, [x] * 6, **given)

    @pytest.mark.parametrize('wrong', ['boxes first', 'a background', 'other places', 'images'])
    def test_maps_that_do_not_fit_the_assigner(self, wrong):
        x = torch.ones(2, 3, 4, 4)
        maps, given = head_maps(x), self.given([x])
        if wrong == 'boxes first':
            maps = maps[::-1]
        elif wrong == 'a background':
            maps[0] = torch.ones(2, 4, 4, 4)
        elif wrong == 'other places':
            maps = [m[:, :, :2] for m in maps]
        else:
            maps = [m[:1] for m in maps]
            given = {k: v[:1] if isinstance(v, Tensor) else v for k, v in given.items()}
        with pytest.raises(ValueError, match='do not fit 2 images with 16 places of 3 classes'):
            self.build()(maps, [m.clone() for m in maps], **given)
