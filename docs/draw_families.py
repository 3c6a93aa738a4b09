#!/usr/bin/env python
"""Draw the pictures of ``docs/families/``: the same small scene, and each family's view of it.

    python docs/draw_families.py

It writes ``docs/images/families/*.png``. The scene is drawn here, and the maps of both models are
made from it: class scores from the true regions, features from colours and edges. The student's are
the teacher's, blurred and with noise. The values of losses are those of the package on these maps.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # from a clone that is not installed

import matplotlib

matplotlib.use('Agg')
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from torch import Tensor

from mmkd_plugin.losses import (
    AttentionLoss,
    ChannelWiseLoss,
    GramLoss,
    HintLoss,
    PearsonLoss,
    PixelWiseLoss,
)

OUT = Path(__file__).resolve().parent / 'images' / 'families'
SIDE, STRIDE = 96, 4
NAMES = ('ground', 'box', 'disc', 'bar')
COLOURS = np.array([[0.80, 0.82, 0.84], [0.85, 0.37, 0.10], [0.20, 0.45, 0.75], [0.35, 0.62, 0.30]])
BOXES = ((12, 14, 32, 30), (52, 20, 34, 34), (16, 64, 62, 12))
"""x, y, width and height of the box, the disc and the bar, in pixels."""
TEACHER, STUDENT = '#333333', '#c0504d'

plt.rcParams.update({'font.size': 9, 'axes.titlesize': 9, 'figure.dpi': 110})


def scene() -> tuple[np.ndarray, Tensor]:
    """The image (H, W, 3) and the class of each pixel (H, W)."""
    y, x = np.mgrid[:SIDE, :SIDE]
    labels = np.zeros((SIDE, SIDE), int)
    for number, (left, top, width, height) in enumerate(BOXES, 1):
        inside = (left <= x) & (x < left + width) & (top <= y) & (y < top + height)
        if number == 2:
            inside = np.hypot(x - left - width / 2, y - top - height / 2) < width / 2
        labels[inside] = number
    noise = np.random.default_rng(0).normal(0, 0.04, (SIDE, SIDE, 1))
    shade = 1 - 0.25 * (x + y)[..., None] / (2 * SIDE)
    return np.clip(COLOURS[labels] * shade + noise, 0, 1), torch.from_numpy(labels)


def blurred(maps: Tensor, size: int) -> Tensor:
    """A mean over squares of ``size`` positions."""
    return F.avg_pool2d(maps, size, 1, size // 2, count_include_pad=False)


def both(maps: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Maps of the teacher (1, C, h, w) at the stride, and a student's beside them."""
    torch.manual_seed(0)
    teacher = F.avg_pool2d(maps, STRIDE)
    student = blurred(teacher, 5) + noise * blurred(torch.randn_like(teacher), 3)
    return teacher, student


def class_scores(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of the four classes: (1, 4, h, w) each."""
    regions = F.one_hot(labels, 4).permute(2, 0, 1)[None].float()
    return both(blurred(6 * regions, 5), 1.2)


def features(image: np.ndarray) -> tuple[Tensor, Tensor]:
    """Eight channels of colours and edges: (1, 8, h, w) each."""
    colours = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    grey = colours.mean(1, keepdim=True)
    down = F.pad(grey[:, :, 1:] - grey[:, :, :-1], (0, 0, 0, 1))
    right = F.pad(grey[..., 1:] - grey[..., :-1], (0, 1))
    edges = blurred((down.square() + right.square()).sqrt(), 5)
    parts = [colours - 0.5, 4 * edges, 4 * blurred(down, 5), 4 * blurred(right, 5)]
    parts += [(colours[:, :1] - colours[:, 2:]).relu(), (colours[:, 2:] - colours[:, :1]).relu()]
    return both(torch.cat(parts, 1), 0.12)


def grid(columns: int, width: float = 1.75) -> tuple[plt.Figure, np.ndarray]:
    """Two rows of axes without ticks: the teacher above the student."""
    figure, axes = plt.subplots(2, columns, figsize=(width * columns, 3.7), layout='constrained')
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
    for ax, name in zip(axes[:, 0], ('teacher', 'student')):
        ax.set_ylabel(name, fontsize=10)
    return figure, axes


def show(ax: plt.Axes, values: Tensor | np.ndarray, title: str = '', **options: object) -> None:
    """Draws a map of one value for each position."""
    options.setdefault('cmap', 'viridis')
    ax.imshow(np.asarray(values), interpolation='nearest', **options)
    ax.set_title(title)


def save(figure: plt.Figure, name: str) -> None:
    """Writes a picture and says where."""
    OUT.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUT / f'{name}.png', metadata={'Software': None})
    plt.close(figure)
    print(OUT / f'{name}.png')


def draw_logits(image: np.ndarray, labels: Tensor) -> None:
    """Class scores: the distribution over classes at a position, and of a channel over places."""
    pair = class_scores(labels)
    row, column = 9, 9  # at the edge between box and disc
    figure, axes = grid(4)
    for axis, maps in zip(axes, pair):
        winner = maps[0].argmax(0)
        axis[0].imshow(COLOURS[winner.numpy()], interpolation='nearest')
        axis[0].plot(column, row, 'ko', mfc='w', ms=6)
        axis[1].bar(NAMES, maps[0, :, row, column].softmax(0), color=COLOURS, edgecolor='k', lw=0.5)
        axis[1].set_ylim(0, 1)
        axis[1].set_box_aspect(1)
        axis[1].set_xticks(range(4), NAMES, fontsize=6.5)
        for ax, channel in zip(axis[2:], (1, 2)):
            heat = (maps[0, channel] / 4).flatten().softmax(0).view(maps.shape[2:])
            show(ax, heat)
    axes[0, 0].set_title('class of each position')
    axes[0, 1].set_title('at ○: softmax over classes')
    axes[0, 2].set_title('channel "box":\nsoftmax over positions')
    axes[0, 3].set_title('channel "disc":\nsoftmax over positions')
    pixel, channel = (
        loss(pair[1], pair[0]).item() for loss in (PixelWiseLoss(), ChannelWiseLoss())
    )
    axes[1, 1].set_xlabel(f'PixelWiseLoss {pixel:.2f}')
    axes[1, 2].set_xlabel(f'ChannelWiseLoss {channel:.2f}')
    save(figure, 'logits')


def draw_features(image: np.ndarray, labels: Tensor) -> None:
    """Features: values, standardised channels, and a map with holes."""
    pair = features(image)
    figure, axes = grid(5)
    holes = torch.rand(pair[0].shape[2:], generator=torch.Generator().manual_seed(1)) < 0.65
    for axis, maps in zip(axes, pair):
        axis[0].imshow(image)
        show(axis[1], maps[0, 0], vmin=-0.5, vmax=0.5)
        show(axis[2], maps[0, 3], vmin=-0.5, vmax=0.5)
        channel = maps[0, 0]
        show(axis[3], (channel - channel.mean()) / channel.std(), vmin=-2.5, vmax=2.5)
    show(axes[0, 4], pair[0][0, 0], vmin=-0.5, vmax=0.5)
    show(axes[1, 4], pair[1][0, 0].masked_fill(holes, torch.nan), vmin=-0.5, vmax=0.5)
    for ax, title in zip(
        axes[0], ('image', 'values, channel 0', 'channel 3', 'standardised, 0', 'generated from')
    ):
        ax.set_title(title)
    hint, pearson = (loss(pair[1], pair[0]).item() for loss in (HintLoss(), PearsonLoss()))
    axes[1, 1].set_xlabel(f'HintLoss {hint:.3f}')
    axes[1, 3].set_xlabel(f'PearsonLoss {pearson:.2f}')
    axes[1, 4].set_xlabel('MaskedGenerationLoss')
    save(figure, 'features')


def draw_relations(image: np.ndarray, labels: Tensor) -> None:
    """Relations: the cosine of each pair of positions, and of one position to all."""
    pair = features(image)
    figure, axes = grid(4)
    chosen = [(8, 7), (9, 17)]  # in the box, in the disc
    for axis, maps in zip(axes, pair):
        axis[0].imshow(image, extent=(-0.5, 23.5, 23.5, -0.5))
        units = F.normalize(maps[0].flatten(1), dim=0)
        cosines = units.T @ units
        for number, (row, column) in enumerate(chosen):
            axis[0].plot(column, row, 'wo', mec='k', ms=7)
            axis[0].annotate('ab'[number], (column + 1, row), color='k')
            show(axis[1 + number], cosines[24 * row + column].view(24, 24), vmin=-1, vmax=1)
        few = units[:, ::8]
        show(axis[3], few.T @ few, vmin=-1, vmax=1)
    for ax, title in zip(
        axes[0], ('two positions', 'cosine to a', 'cosine to b', 'each pair (one in 8)')
    ):
        ax.set_title(title)
    axes[1, 3].set_xlabel(f'GramLoss {GramLoss()(pair[1], pair[0]).item():.3f}')
    save(figure, 'relations')


def grad_cam(maps: Tensor, scores: Tensor, channel: int) -> Tensor:
    """Grad-CAM of a class whose scores are a linear function of the maps, fitted here."""
    flat, target = maps[0].flatten(1).T, scores[0, channel].flatten()
    weight = torch.linalg.lstsq(flat, target[:, None]).solution[:, 0]
    return torch.einsum('c,chw->hw', weight, maps[0]).relu()


def draw_attention(image: np.ndarray, labels: Tensor) -> None:
    """Attention: where activations are strong; explanations: where a class has its evidence."""
    pair, scores = features(image), class_scores(labels)[0]
    figure, axes = grid(4)
    for axis, maps in zip(axes, pair):
        axis[0].imshow(image)
        strong = maps[0].square().mean(0)
        show(axis[1], strong / strong.norm(), cmap='magma')
        for ax, channel in zip(axis[2:], (1, 2)):
            show(ax, grad_cam(maps, scores, channel), cmap='magma')
    for ax, title in zip(
        axes[0], ('image', 'attention:\nmean of squares', 'why "box"', 'why "disc"')
    ):
        ax.set_title(title)
    axes[1, 1].set_xlabel(f'AttentionLoss {AttentionLoss()(pair[1], pair[0]).item():.1e}')
    axes[1, 2].set_xlabel('ExplanationLoss')
    save(figure, 'attention')


def draw_detection(image: np.ndarray, labels: Tensor) -> None:
    """Detection: scores of a class, the distribution of a side of a box, and where it counts."""
    pair = class_scores(labels)
    figure, axes = grid(4)
    bins = torch.arange(9.0)
    sides = (-((bins - 4.2) ** 2) / 1.0, -((bins - 4.9) ** 2) / 6.0)
    focus = torch.full((24, 24), 1 / (labels[::STRIDE, ::STRIDE] == 0).sum().item())
    for number, (_, _, width, height) in enumerate(BOXES, 1):
        area = width * height / STRIDE**2
        focus[labels[::STRIDE, ::STRIDE] == number] = 1 / area
    for axis, maps, logits, colour in zip(axes, pair, sides, (TEACHER, STUDENT)):
        axis[0].imshow(image)
        shift = 0 if colour == TEACHER else 3
        for left, top, width, height in BOXES:
            box = Rectangle((left + shift, top - shift), width, height, fill=False)
            box.set(edgecolor=colour, linewidth=1.8)
            axis[0].add_patch(box)
        show(axis[1], maps[0, 2].sigmoid(), vmin=0, vmax=1)
        axis[2].bar(bins, logits.softmax(0), color=colour)
        axis[2].set_ylim(0, 0.6)
        axis[2].set_box_aspect(1)
        axis[2].set_xticks([0, 4, 8])
    show(axes[0, 3], focus, cmap='magma')
    axes[1, 3].axis('off')
    for ax, title in zip(
        axes[0],
        ('boxes', 'score of "disc"', 'left side of a box:\nits distribution', 'weight of places'),
    ):
        ax.set_title(title)
    axes[1, 1].set_xlabel('ProtocolLoss, CrossHeadLoss')
    axes[1, 2].set_xlabel('BoxDistributionLoss')
    axes[1, 3].text(0.5, 0.95, 'FocalGlobalLoss', ha='center', va='top')
    save(figure, 'detection')


def part(ax: plt.Axes, x: float, y: float, text: str, colour: str, width: float = 1.5) -> None:
    """A box of a diagram, with its text."""
    ax.add_patch(
        FancyBboxPatch((x, y), width, 0.6, boxstyle='round,pad=0.05', fc=colour, ec='k', lw=0.8)
    )
    ax.text(x + width / 2, y + 0.3, text, ha='center', va='center', fontsize=8.5)


def arrow(ax: plt.Axes, start: tuple, end: tuple, **options: object) -> None:
    """An arrow of a diagram."""
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle='-|>', mutation_scale=11, **options))


def diagram(width: float, height: float) -> tuple[plt.Figure, plt.Axes]:
    """Empty axes for boxes and arrows."""
    figure, ax = plt.subplots(figsize=(width, height), layout='constrained')
    ax.set(xlim=(0, width * 1.25), ylim=(0, height * 1.25), aspect='equal')
    ax.axis('off')
    return figure, ax


def draw_self_teaching() -> None:
    """Self-teaching: the student's maps, the same refined, and what is compared."""
    figure, ax = diagram(8, 3.4)
    part(ax, 0.3, 2.9, 'image', 'white')
    part(ax, 2.5, 2.9, 'backbone: maps f', '#dce6f2', 2.2)
    part(ax, 5.7, 2.9, "student's head", '#dce6f2', 1.9)
    part(ax, 2.5, 0.7, 'self-teacher: maps T', '#f2dcdb', 2.2)
    part(ax, 5.7, 0.7, 'its own head', '#f2dcdb', 1.9)
    part(ax, 8.3, 1.8, 'labels', 'white', 1.2)
    for start, end in (
        ((1.85, 3.2), (2.45, 3.2)),
        ((4.75, 3.2), (5.65, 3.2)),
        ((3.2, 2.85), (3.2, 1.35)),
        ((4.75, 1.0), (5.65, 1.0)),
        ((7.65, 3.1), (8.7, 2.45)),
        ((7.65, 1.1), (8.7, 1.75)),
    ):
        arrow(ax, start, end, color='k', lw=1)
    for start, end, text in (
        ((4.1, 1.35), (4.1, 2.85), 'attention'),
        ((6.65, 1.35), (6.65, 2.85), 'softened scores'),
    ):
        arrow(ax, start, end, color=STUDENT, lw=1.8, linestyle='--')
        ax.text(start[0] + 0.12, 2.1, text, color=STUDENT, va='center')
    ax.text(8.9, 2.95, 'task loss', ha='center')
    ax.text(8.9, 1.2, 'task loss', ha='center')
    save(figure, 'self_teaching')


def draw_foundation(image: np.ndarray, labels: Tensor) -> None:
    """Foundation models: tokens of patches, and a map of a student behind its connector."""
    pair = features(image)
    teacher = F.avg_pool2d(pair[0], 2)
    figure, axes = grid(3, 2.1)
    centre = teacher[0].flatten(1).mean(1)
    basis = torch.linalg.svd(teacher[0].flatten(1).T - centre, full_matrices=False).Vh[:3]
    for axis, maps in zip(axes, (teacher, pair[1])):
        parts = torch.einsum('kc,chw->hwk', basis, maps[0] - centre[:, None, None])
        low, high = parts.amin((0, 1)), parts.amax((0, 1))
        axis[1].imshow(((parts - low) / (high - low)).numpy(), interpolation='nearest')
        query = maps[0, :, maps.shape[2] // 3, maps.shape[3] * 3 // 4]
        show(axis[2], F.cosine_similarity(maps[0], query[:, None, None], dim=0), vmin=-1, vmax=1)
        axis[0].imshow(image)
    for line in range(0, SIDE + 1, 8):
        axes[0, 0].axhline(line - 0.5, color='w', lw=0.5)
        axes[0, 0].axvline(line - 0.5, color='w', lw=0.5)
    for ax, title in zip(
        axes[0], ('patches of 8 pixels', 'vectors,\n3 main directions', 'cosine to the disc')
    ):
        ax.set_title(title)
    axes[1, 0].set_title('convolutions, stride 4')
    axes[1, 1].set_xlabel('CosineHintLoss')
    axes[1, 2].set_xlabel('TokenRelationLoss')
    save(figure, 'foundation')


def main() -> None:
    """Draws all pictures."""
    image, labels = scene()
    for draw in (draw_logits, draw_features, draw_relations, draw_attention, draw_detection):
        draw(image, labels)
    draw_self_teaching()
    draw_foundation(image, labels)


if __name__ == '__main__':
    main()
