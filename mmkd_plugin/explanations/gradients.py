"""Gradients of class scores with respect to feature maps, of all classes in one pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_plugin.explanations.choosing import Chosen, Scores
from mmkd_plugin.taps import Maps, as_list


def score_gradients(
    scores: Maps, features: Maps, chosen: Chosen, kind: Scores, create_graph: bool
) -> list[Tensor]:
    """The gradient of the score of each chosen class with respect to feature maps.

    The score of a class is the sum of its scores over its positions. Row k holds the k-th class of
    every image. All rows go through the model in one batched backward pass; if an operation on the
    way cannot be batched, each row takes a pass of its own.

    Args:
        scores (Maps): Class scores with a graph from ``features``.
        features (Maps): Feature maps ``(N, C, H, W)``.
        chosen (Chosen): The classes to explain.
        kind (Scores): The kind of the scores.
        create_graph (bool): Whether the gradients can be differentiated again.

    Returns:
        list[Tensor]: For each feature map ``(K, N, C, H, W)``, zero where there is no class.

    Raises:
        ValueError: If the scores do not depend on a feature map, or have another kind than the
            scores from which the classes were chosen.
    """
    outputs, inputs = as_list(scores), as_list(features)
    rows = [_selection(x, at, chosen.classes, kind) for x, at in zip(outputs, chosen.positions)]

    def gradients(row: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        found = torch.autograd.grad(
            outputs, inputs, row, create_graph=create_graph, retain_graph=True, allow_unused=True
        )
        if any(x is None for x in found):
            raise ValueError('the class scores do not depend on the map that is to explain them')
        return found

    singly = [tuple(row[k] for row in rows) for k in range(len(rows[0]))]
    if len(singly) > 1:
        try:
            return list(torch.func.vmap(gradients, randomness='same')(tuple(rows)))
        except RuntimeError:  # some operations cannot be batched, such as a frozen BN under AMP
            pass
    return [torch.stack(found) for found in zip(*map(gradients, singly))]


def _selection(scores: Tensor, positions: Tensor, classes: Tensor, kind: Scores) -> Tensor:
    """1 at the positions of the class of each row, ``(K, *scores.shape)``."""
    size = scores.shape[2:] or (1, 1)
    if positions.shape[3:] != size:  # another stride
        positions = F.interpolate(positions.flatten(1, 2).float(), size).unflatten(
            1, positions.shape[1:3]
        )
    one_hot = F.one_hot(classes.clamp(min=0), kind.classes) * (classes >= 0)[..., None]
    rows = positions[:, :, :, None] * one_hot[:, :, None, :, None, None]  # (N, K, A, C, H, W)
    if scores.ndim == 4 and scores.shape[1] == 1 and kind.classes == 2:
        rows = rows[:, :, :, 1:] - rows[:, :, :, :1]
    rows = rows.flatten(2, 3).transpose(0, 1).to(scores.dtype)
    if rows.shape[1:] != (*scores.shape[:2], *size):
        raise ValueError(
            f'student and teacher have class scores of different kinds: {tuple(scores.shape)} '
            f'where {tuple(rows.shape[1:])} was expected'
        )
    return rows.reshape(-1, *scores.shape)
