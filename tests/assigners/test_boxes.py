"""Boxes of other kinds than upright rectangles, such as the rotated ones of mmrotate."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes, box_type
from torch import Tensor

from mmkd_plugin.assigners.boxes import upright


@pytest.fixture
def tilted() -> Iterator[type]:
    """Boxes with an angle, registered as a library of rotated detectors does."""

    class Tilted(HorizontalBoxes):
        box_dim = 5  # centre, width, height, angle

    def around(boxes: Tensor) -> Tensor:
        x, y, w, h, angle = boxes.unbind(-1)
        cos, sin = angle.cos().abs(), angle.sin().abs()
        half = torch.stack([w * cos + h * sin, w * sin + h * cos], -1) / 2
        centre = torch.stack([x, y], -1)
        return torch.cat([centre - half, centre + half], -1)

    box_type.register_box('tilted', Tilted)
    box_type.register_box_converter('tilted', 'hbox', around)
    yield Tilted
    box_type.box_types.pop('tilted')
    box_type._box_type_to_name.pop(Tilted)
    box_type.box_converters.pop('tilted2hbox')


def test_rotated_boxes_become_the_rectangles_around_them(tilted: type) -> None:
    boxes = tilted(torch.tensor([[10.0, 20.0, 8.0, 2.0, torch.pi / 2], [5.0, 5.0, 4.0, 2.0, 0.0]]))
    expected = torch.tensor([[9.0, 16.0, 11.0, 24.0], [3.0, 4.0, 7.0, 6.0]])
    torch.testing.assert_close(upright(boxes), expected)
    assert upright(tilted(torch.zeros(0, 5))).shape == (0, 4)


def test_upright_boxes_stay() -> None:
    corners = torch.tensor([[1.0, 2.0, 5.0, 7.0]])
    assert upright(corners) is corners
    assert torch.equal(upright(HorizontalBoxes(corners)), corners)
