"""Classifiers: the modules of a model that give its class scores, whatever the model calls them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

#: What a tap calls the class scores of a model, and behind an ``@`` those of a head.
CLASS_SCORES = 'class_scores'

#: The heads that classify positions. The stages of a list of them refine one result.
HEADS = ('decode_head', 'panoptic_head')

#: The least share of a class in the semantic map of a mask classifier: its logarithm is finite.
FLOOR = 1e-6


def heads_that_classify(model: nn.Module, path: str | None = None) -> list[str]:
    """Finds the heads that give class scores for each position.

    Of a cascade this is the last stage that classifies whole maps: a stage that refines single
    points has no classifier of its own for maps.

    Args:
        model (nn.Module): The model.
        path (str, optional): Name of a head, or of a list of heads, that the model has. Defaults to
            None: that of the model's result.

    Returns:
        list[str]: Names of modules; empty if there are none.
    """
    if path is None:
        path = next((one for one in HEADS if isinstance(getattr(model, one, None), nn.Module)), '')
        if not path:
            return []
    module = model.get_submodule(path)
    if not isinstance(module, nn.ModuleList):
        return [path] if _knows_classes(module) else []
    stages = [f'{path}.{i}' for i, one in enumerate(module) if _knows_classes(one)]
    if path not in HEADS:
        return stages
    whole = [one for one in stages if classifier_in(model.get_submodule(one)) is not None]
    return (whole or stages)[-1:]


def _knows_classes(head: nn.Module) -> bool:
    return isinstance(getattr(head, 'num_classes', None), int)


def classifier_in(head: nn.Module) -> str | None:
    """Returns the name of a head's last convolution, or None if it computes scores in another way.

    Args:
        head (nn.Module): A head.
    """
    return 'conv_seg' if isinstance(getattr(head, 'conv_seg', None), nn.Module) else None


def taken_by(head: nn.Module) -> str:
    """Returns the name of the module in a head that takes its last features first.

    Args:
        head (nn.Module): A head with a classifier.
    """
    dropout = getattr(head, 'dropout', None)
    return 'dropout' if isinstance(dropout, nn.Module) else classifier_in(head)


def map_of(output: Any) -> tuple[Tensor | None, Any]:
    """Returns the class scores of each position in what a head gives.

    Args:
        output (Any): Scores ``(N, C, H, W)``, a list of them by the stage, or for a mask classifier
            two sequences by the layer of its decoder: class logits ``(N, Q, C + 1)`` and mask
            logits ``(N, Q, H, W)``.

    Returns:
        tuple[Tensor | None, Any]: ``(N, C, H, W)`` of the last stage or layer, for a mask
        classifier those of :func:`semantic_scores`; None if the head gives something else. And the
        output for the model to go on with: of tensors that hold all layers in one, a copy through
        which gradients reach the last layer alone.

    Examples:
        >>> map_of(([torch.rand(2, 5, 4)], [torch.rand(2, 5, 8, 8)]))[0].shape
        torch.Size([2, 3, 8, 8])
    """
    if isinstance(output, Tensor):
        return (output if output.ndim == 4 else None), output
    if not isinstance(output, (list, tuple)) or not output:
        return None, output
    layers = [_layers(part) for part in output] if len(output) == 2 else []
    pair = sorted((part[-1] for part in layers if part), key=lambda x: x.ndim)
    if [x.ndim for x in pair] == [3, 4] and pair[0].shape[:2] == pair[1].shape[:2]:
        again = (torch.stack(x) if isinstance(y, Tensor) else y for x, y in zip(layers, output))
        return semantic_scores(*pair), type(output)(again)
    last = output[-1]
    return (last if isinstance(last, Tensor) and last.ndim == 4 else None), output


def _layers(part: Any) -> list[Tensor]:
    """The tensors of each layer, ``[]`` for something else."""
    layers = list(part) if isinstance(part, (list, tuple, Tensor)) else []
    return layers if all(isinstance(x, Tensor) for x in layers) else []


def semantic_scores(classes: Tensor, masks: Tensor) -> Tensor:
    """Returns the class scores of each position that queries with a class and a mask stand for.

    The semantic map of MaskFormer is the sum over the queries of the probability of a class, "no
    object" left out, times the probability that a position lies in the mask. Its logarithm is
    returned: a softmax of it over the classes gives their shares at a position, one over the
    positions the distribution of a class over the image.

    The model goes on with the logits and not with the map. So its ``made_of`` has the mask logits,
    at which the gradient of the task loss can be measured.

    Args:
        classes (Tensor): Class logits ``(N, Q, C + 1)``, "no object" last.
        masks (Tensor): Mask logits ``(N, Q, H, W)``.

    Returns:
        Tensor: ``(N, C, H, W)``, computed and returned in float32 or more.
    """
    dtype = torch.promote_types(torch.promote_types(classes.dtype, masks.dtype), torch.float32)
    with torch.autocast(masks.device.type, enabled=False):
        shares = classes.to(dtype).softmax(-1)[..., :-1]
        inside = masks.to(dtype).sigmoid()
        scores = (torch.einsum('bqc,bqhw->bchw', shares, inside) + FLOOR).log()
    scores.made_of = masks
    return scores


def made_of(scores: Tensor) -> Tensor:
    """Returns the tensor of a model that a map is made of: the map itself if a module gave it."""
    return getattr(scores, 'made_of', scores)


class ForwardHook:
    """Sees what a module gives, also where its parent calls ``forward`` and not the module.

    Args:
        module (nn.Module): The module.
        after (Callable): Takes the output, and returns what takes its place.
    """

    def __init__(self, module: nn.Module, after: Callable[[Any], Any]) -> None:
        self._module, self._before = module, vars(module).get('forward')
        forward = module.forward

        @functools.wraps(forward)  # a head may be called by its signature
        def watched(*args: Any, **kwargs: Any) -> Any:
            return after(forward(*args, **kwargs))

        module.forward = watched

    def remove(self) -> None:
        """Lets the module go on as before."""
        if self._before is None:
            del self._module.forward
        else:
            self._module.forward = self._before
