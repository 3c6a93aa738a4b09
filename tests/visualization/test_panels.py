"""The arrays of the panels against independent computations in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmkd_plugin.visualization.attention import attention, attention_grid, cosine
from mmkd_plugin.visualization.channels import channel_distribution, channels_grid, most_active
from mmkd_plugin.visualization.explanations import explanations_grid, relevance
from mmkd_plugin.visualization.predictions import (
    DIFFERS,
    FALSE,
    IGNORED,
    MATCHED,
    MISSED,
    WRONG,
    detection_grid,
    differing_pixels,
    error_picture,
    match,
    mean_iou,
    numbers,
    painted,
    segmentation_grid,
    share,
    wrong_pixels,
)
from mmkd_plugin.visualization.scene import Boxes, Meta

IMAGE = np.full((6, 8, 3), 200, np.uint8)
SIZE, COVERS = (8, 6), (8.0, 6.0)
META = Meta(['ground', 'box', 'disc'], [[0, 0, 0], [0, 255, 0], [0, 0, 255]])


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rgb(color: str) -> list[int]:
    return [int(color[n : n + 2], 16) for n in (1, 3, 5)]


def test_attention_is_the_mean_square_as_a_multiple_of_its_mean():
    x = maps(1, 5, 3, 4)
    squares = [
        [np.mean([float(x[0, c, i, j]) ** 2 for c in range(5)]) for j in range(4)] for i in range(3)
    ]
    found = attention(x)
    assert np.allclose(found, np.array(squares) / np.mean(squares), rtol=1e-12)
    assert found.mean() == pytest.approx(1)
    assert np.array_equal(attention(x * 0), np.zeros((3, 4)))


def test_attention_of_models_of_other_widths_and_sizes_has_one_scale():
    rows = [
        ('teacher', {'neck': maps(1, 8, 6, 8), 'tiny': maps(1, 2, 2, 2)}),
        ('student', {'neck': maps(1, 3, 6, 8, seed=1), 'tiny': maps(1, 2, 2, 2)}),
        ('baseline', {'neck': maps(1, 3, 12, 16, seed=2), 'other': maps(1, 3, 6, 8)}),
    ]
    grid = attention_grid(SIZE, IMAGE, COVERS, rows, 'teacher')
    assert grid.columns == ['neck', 'other']  # four positions show nothing
    lines = dict(grid.rows)
    like = cosine(attention(rows[0][1]['neck']), attention(rows[1][1]['neck']))
    assert lines['teacher'][0].caption == '6×8' and lines['teacher'][1] is None
    assert lines['student'][0].caption == f'6×8, cosine {like:.2f}'
    assert lines['baseline'][0].caption == '12×16'
    values = np.concatenate([attention(row['neck']).ravel() for _, row in rows])
    assert grid.scales[0].high == pytest.approx(np.percentile(values, 99.5))
    assert attention_grid(SIZE, IMAGE, COVERS, [('a', {'x': maps(1, 2, 1, 1)})]) is None


def test_cosine():
    one, other = np.array([[1.0, 0.0]]), np.array([[3.0, 4.0]])
    assert cosine(one, other) == pytest.approx(0.6)
    assert cosine(one, np.zeros((1, 2))) is None and cosine(one, other.T) is None


@pytest.mark.parametrize('tau', [1.0, 4.0])
def test_channels_are_softmaxed_over_their_positions(tau: float) -> None:
    x = maps(1, 4, 3, 5)
    powers = np.exp(x[0].double().numpy() / tau)
    expected = powers / powers.sum((1, 2), keepdims=True)
    assert np.allclose(channel_distribution(x, tau).numpy(), expected, rtol=1e-12)
    entropy = -(expected * np.log(expected)).sum((1, 2))
    assert most_active(x, 4, tau) == np.argsort(entropy).tolist()


def test_huge_activations_give_finite_channels():
    x = torch.zeros(1, 2, 2, 2)
    x[0, 1, 0, 0] = 1e8
    assert torch.isfinite(channel_distribution(x)).all() and most_active(x, 2) == [1, 0]


def test_channels_of_equal_models_are_those_of_the_first():
    teacher, student = maps(1, 6, 4, 4), maps(1, 6, 4, 4, seed=1)
    grid = channels_grid(SIZE, IMAGE, COVERS, [('teacher', teacher), ('student', student)], 3)
    chosen = most_active(teacher, 3)
    assert grid.columns == [f'channel {c}' for c in chosen]
    for name, x in (('teacher', teacher), ('student', student)):
        for cell, channel in zip(dict(grid.rows)[name], chosen, strict=True):
            expected = channel_distribution(x)[channel].numpy() * 16
            assert np.allclose(cell.heat, expected) and cell.heat.mean() == pytest.approx(1)
    named = channels_grid(
        SIZE, IMAGE, COVERS, [('teacher', teacher)], 2, names=list('abcdef'), first=[4]
    )
    assert named.columns[0] == 'e' and len(named.columns) == 2


@pytest.mark.parametrize('widths', [(6, 2), (2, 6)])
def test_channels_of_unequal_models_are_their_own(widths: tuple[int, int]) -> None:
    rows = [(f'model {n}', maps(1, n, 4, 4)) for n in widths]
    grid = channels_grid(SIZE, IMAGE, COVERS, rows, 4)
    for (name, x), (_, line) in zip(rows, grid.rows, strict=True):
        own = [f'channel {c}' for c in most_active(x, 4)][: len(grid.columns)]
        assert [cell.caption for cell in line if cell] == own, name
        assert len(line) == len(grid.columns) == len(grid.scales)


def test_relevance():
    x = torch.tensor([[[-1.0, 2.0], [4.0, 0.0]]])
    assert relevance(x).tolist() == [[0, 0.5], [1, 0]]
    assert relevance(torch.tensor([[[3.0]], [[4.0]]])).tolist() == [[1]]
    assert not relevance(x * 0).any()


def test_explanations_say_how_alike_they_are():
    a, b = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0, 1.0]]])
    rows = [('teacher', [a, a * 0]), ('student', [b, b])]
    grid = explanations_grid((2, 1), IMAGE[:1, :2], (2, 1), rows, ['box', 'disc'], 'teacher')
    assert grid.columns == ['class box', 'class disc']
    captions = {name: [cell.caption for cell in line] for name, line in grid.rows}
    assert captions == {'teacher': ['', 'zero everywhere'], 'student': ['cosine 0.71', '']}


def labels() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    prediction, teacher, truth = rng.integers(0, 3, (3, 6, 8))
    truth[0, :3] = 255
    return prediction, teacher, truth


def test_errors_are_counted_where_there_is_a_label():
    prediction, teacher, truth = labels()
    wrong = sum(
        prediction[i, j] != truth[i, j] for i in range(6) for j in range(8) if truth[i, j] != 255
    )
    errors = wrong_pixels(prediction, truth)
    assert (errors == 1).sum() == wrong and (errors == -1).sum() == 3
    assert share(errors) == pytest.approx(wrong / 45)
    differ = differing_pixels(prediction, teacher, truth)
    assert (differ == 1).sum() == ((prediction != teacher) & (truth != 255)).sum()
    assert (differing_pixels(prediction, teacher, None) == 1).sum() == (prediction != teacher).sum()
    assert np.isnan(share(wrong_pixels(prediction, np.full((6, 8), 255))))


def test_miou_is_over_the_classes_of_either():
    prediction, truth = np.array([[0, 0, 1, 5]]), np.array([[0, 1, 1, 255]])
    assert mean_iou(prediction, truth) == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert mean_iou(np.array([[2]]), np.array([[1]])) == 0
    assert np.isnan(mean_iou(prediction, np.full((1, 4), 255)))


def test_label_maps_and_errors_have_the_colours_of_the_legend():
    prediction, teacher, truth = labels()
    pixels = painted(truth, META)
    for i, j in np.ndindex(6, 8):
        color = rgb(IGNORED) if truth[i, j] == 255 else META.palette[truth[i, j]]
        assert pixels[i, j].tolist() == list(color)
    errors = wrong_pixels(prediction, truth)
    picture = error_picture(errors, IMAGE, WRONG)
    assert (picture == rgb(WRONG)).all(2).sum() == (errors == 1).sum()
    assert (picture == rgb(IGNORED)).all(2).sum() == 3
    assert error_picture(errors, IMAGE[:3, :4], WRONG).shape == (6, 8, 3)

    rows = [('teacher', teacher), ('student', prediction)]
    grid = segmentation_grid(SIZE, IMAGE, truth, rows, META, 'teacher')
    assert grid.columns == ['prediction', 'errors', 'differs from teacher']
    (_, first), (_, second) = grid.rows
    assert first[2] is None and second[1].caption == f'{share(errors):.1%} wrong'
    assert second[0].caption == f'mIoU {mean_iou(prediction, truth):.1%}'
    assert second[2].caption == f'{share(differing_pixels(prediction, teacher, truth)):.1%} differ'
    assert (second[2].image == rgb(DIFFERS)).all(2).sum() == (
        differing_pixels(prediction, teacher, truth) == 1
    ).sum()
    assert [[name for name, _ in group] for group in grid.legend] == [
        ['ground', 'box', 'disc'],
        ['wrong', 'ignored', 'differs from teacher'],
    ]


def test_segmentation_without_truth_or_teacher_and_with_one_class():
    zeros = np.zeros((6, 8), int)
    grid = segmentation_grid(SIZE, IMAGE, None, [('student', zeros)], Meta(['all'], [[9, 9, 9]]))
    assert grid.columns == ['prediction'] and len(grid.side) == 1
    assert [name for group in grid.legend for name, _ in group] == ['all']
    scores = numbers(zeros, np.full((6, 8), 255), zeros, META)
    assert scores == {'mIoU': '–', 'pixels right': '–', 'pixels as the teacher': '–'}


TRUTH = Boxes(
    np.array([[0, 0, 2, 2], [4, 0, 8, 4], [0, 4, 2, 6.0]]),
    np.array([0, 1, 2]),
    ignored=np.array([[5, 5, 8, 6.0]]),
)
FOUND = Boxes(
    np.array([[0, 0, 2, 2], [0, 0, 2, 1.9], [4, 0, 8, 2.5], [0, 4, 2, 6], [5, 5, 7, 6.0]]),
    np.array([0, 0, 1, 1, 0]),
    np.array([0.5, 0.9, 0.8, 0.7, 0.6]),
)


def test_boxes_match_one_to_one_the_most_confident_first():
    matches, taken = match(FOUND, TRUTH)
    # the second box is more confident, the third overlaps by 0.625, the fourth has another class
    assert matches.tolist() == [-1, 0, 1, -1, -2] and taken.tolist() == [True, True, False]
    empty = Boxes(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    assert match(empty, TRUTH)[1].sum() == 0 and match(FOUND, empty)[0].tolist() == [-1] * 5
    assert match(empty, empty)[0].size == 0


def test_boxes_have_the_colours_of_the_legend():
    rows = [('teacher', FOUND.over(0.75)), ('student', FOUND)]
    grid = detection_grid(SIZE, IMAGE, TRUTH, rows, META, 'teacher')
    assert grid.columns == ['prediction', 'against ground truth', 'against teacher']
    student = grid.rows[1][1]
    assert [box.label for box in student[0].boxes][:2] == ['ground 0.50', 'ground 0.90']
    assert student[0].boxes[2].color == (0, 1, 0)
    colors = [box.color for box in student[1].boxes]
    assert colors == [MISSED, FALSE, MATCHED, MATCHED, FALSE, IGNORED]
    assert student[1].caption == '2 matched, 2 false, 1 missed'
    assert student[2].caption == '2 matched, 3 false, 0 missed'
    names = [name for name, _ in grid.legend[0]]
    assert names == ['matched', 'false', 'missed (dashed)', 'ignored']
    assert len(grid.side[1].boxes) == 4
    alone = detection_grid(SIZE, IMAGE, None, rows[1:], META)
    assert alone.columns == ['prediction'] and alone.legend == [[]]


def test_numbers_of_boxes():
    scores = numbers(FOUND, TRUTH, FOUND.over(0.75), META)
    assert scores == {
        'objects found': '2 of 3',
        'false boxes': '2',
        "teacher's boxes found": '2 of 2',
    }
