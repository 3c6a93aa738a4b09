"""Assignment: how a dense detector's own loss used each location of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn

from mmkd_plugin.taps.tap import Tap


class Assignment(NamedTuple):
    """The result of a head's assigner for a batch.

    Args:
        label_weights (list[Tensor]): Weight of the class of each location and anchor in the head's
            own loss, 0 where it is ignored: ``(N, H*W*A)`` for each level.
        positives (Tensor): What the head divides its own loss by: the number of locations with an
            object in this process, a scalar.
    """

    label_weights: list[Tensor]
    positives: Tensor

    def on_cpu(self) -> Assignment:
        """Returns a copy on the CPU."""
        return Assignment([x.cpu() for x in self.label_weights], self.positives.cpu())

    def reduced(self) -> Assignment:
        """Returns it with the mean of ``positives`` over all processes, at least 1."""
        mean = self.positives.clone()
        all_reduce(mean, 'mean')
        return self._replace(positives=mean.clamp(min=1))


#: Results by the name of the head.
Assignments = Mapping[str, Assignment]


@contextmanager
def assignments_watched(model: nn.Module) -> Iterator[dict[str, Assignment]]:
    """Notes the targets that dense heads of mmdet compute for their losses while the block runs.

    Args:
        model (nn.Module): The model that is going to run its loss.

    Yields:
        dict[str, Assignment]: By the name of the head; filled while the model runs.
    """
    found: dict[str, Assignment] = {}
    heads = {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, 'get_targets') and hasattr(module, 'loss_by_feat')
    }
    before = {head: vars(head).get('get_targets') for head in heads.values()}
    for name, head in heads.items():
        head.get_targets = _watched(name, head, head.get_targets, found)
    try:
        yield found
    finally:
        for head, method in before.items():
            if method is None:
                del head.get_targets
            else:
                head.get_targets = method


def _watched(name: str, head: nn.Module, method: Any, found: dict[str, Assignment]) -> Any:
    def get_targets(*args: Any, **kwargs: Any) -> Any:
        targets = method(*args, **kwargs)
        made = _assignment(head, targets)
        if made is not None:
            found[name] = made
        return targets

    return get_targets


def _assignment(head: nn.Module, targets: Any) -> Assignment | None:
    """The assignment in the targets of a head: integer labels of all levels, and their weights."""
    classes = getattr(head, 'num_classes', None)
    if not isinstance(targets, tuple) or classes is None:
        return None
    place = next((i for i, one in enumerate(targets) if _are(one, torch.int64)), None)
    if place is None:
        return None
    labels, weights = targets[place], targets[place + 1 : place + 2]
    if not (weights and _are(weights[0]) and _alike(weights[0], labels)):
        weights = ([torch.ones_like(x, dtype=torch.float32) for x in labels],)
    divisor = next((x for x in targets[place + 1 :] if isinstance(x, (int, float))), None)
    if divisor is None:
        divisor = sum(((x >= 0) & (x < classes)).sum() for x in labels)
    positives = torch.as_tensor(divisor, dtype=torch.float32, device=labels[0].device)
    return Assignment([x.detach() for x in weights[0]], positives)


def _are(value: Any, dtype: torch.dtype | None = None) -> bool:
    listed = isinstance(value, (list, tuple)) and len(value) > 0
    return listed and all(isinstance(x, Tensor) and dtype in (None, x.dtype) for x in value)


def _alike(weights: Sequence[Tensor], labels: Sequence[Tensor]) -> bool:
    return [x.shape for x in weights] == [x.shape for x in labels]


def around(found: Assignments, tap: Tap) -> Assignment | None:
    """Returns the assignment of the head that a tap lies in.

    Args:
        found (Mapping[str, Assignment]): The assignments of a model, by head.
        tap (Tap): A tap in the same model.

    Returns:
        Assignment | None: None if the tap lies in no such head. A tap outside of all heads, such as
        the neck, gets that of the only one.
    """
    inside = [name for name in found if f'{tap.path}.'.startswith(f'{name}.')]
    if inside:
        return found[max(inside, key=len)]
    return next(iter(found.values())) if len(found) == 1 else None
