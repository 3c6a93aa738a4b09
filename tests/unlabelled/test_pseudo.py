"""Pseudo-labels: pixels and boxes that a teacher is sure of."""

from __future__ import annotations

import pytest
import torch
from mmengine.structures import InstanceData

from mmkd_plugin.unlabelled.pseudo import Labeller, label_maps, sure_boxes
from tests.runs import needs_ops
from tests.stock_models import build, faster_rcnn, fcn, retinanet


def test_a_pixel_has_a_label_where_the_teacher_is_sure():
    probabilities = torch.tensor([[0.9, 0.5, 0.2], [0.1, 0.5, 0.8]]).view(1, 2, 1, 3)
    assert label_maps(probabilities, 0.8, 255).tolist() == [[[0, 255, 1]]]
    assert label_maps(probabilities[:, 1:], 0.8, 9).tolist() == [[[0, 9, 1]]]  # one score for two


def test_a_box_is_an_object_where_the_teacher_is_sure():
    boxes = torch.tensor([[0.0, 0, 4, 4], [1, 1, 5, 5], [2, 2, 2, 6]])
    found = InstanceData(
        bboxes=boxes, labels=torch.tensor([1, 0, 1]), scores=torch.tensor([0.9, 0.3, 0.9])
    )
    sure, unsure = sure_boxes(found, 0.5)
    assert sure.bboxes.tolist() == boxes[:1].tolist() and sure.labels.tolist() == [1]
    assert unsure.bboxes.tolist() == boxes[1:2].tolist()  # the third has no area


@needs_ops
@pytest.mark.parametrize(
    ('student', 'teacher', 'message'),
    [
        (fcn(classes=3), None, 'the teacher predicts nothing by itself'),
        (fcn(classes=3), fcn(classes=4), 'num_classes=3.*cannot learn.*num_classes=4'),
        (fcn(classes=2), retinanet(classes=2), 'take a teacher of its own task and classes'),
        (faster_rcnn(), faster_rcnn(), r'the student \(FasterRCNN\) is neither a segmentor'),
    ],
)
def test_models_that_do_not_go_together(student, teacher, message):
    with pytest.raises(ValueError, match=f'unlabelled.pseudo_labels: .*{message}'):
        Labeller(build(student), None if teacher is None else build(teacher), 0.5)
