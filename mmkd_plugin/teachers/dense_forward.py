"""Dense forward: runs a model's features and dense heads, without losses, assigners and NMS."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from torch import Tensor, nn

from mmkd_plugin.taps import Tap, find_module, places_of

#: The modules that run for the features alone.
FEATURES = {'backbone', 'neck'}


def heads_of(model: nn.Module, taps: Sequence[Tap], owner: str) -> list[str] | None:
    """Finds the heads to call on the features for some taps.

    Args:
        model (nn.Module): The model.
        taps (Sequence[Tap]): The taps to read.
        owner (str): Name of the model in the error.

    Returns:
        list[str] | None: Names of the heads. Of a cascade it is the last stage to run, such as
        ``'decode_head.1'``. None if the model has to run as a whole in ``mode='tensor'``.

    Raises:
        ValueError: If a tap lies in the second stage of a detector.
    """
    if not hasattr(model, 'extract_feat'):
        return None
    if not hasattr(model, 'backbone') and hasattr(model, 'encode_decode'):
        return None  # SAN: its head takes the image and the embeddings of the classes too
    taps = [place for tap in taps for place in places_of(model, tap, owner)]
    roots = {tap.path.partition('.')[0] for tap in taps}
    if hasattr(model, 'forward_transformer') and not roots <= FEATURES:
        return None
    heads: dict[str, set[int]] = {}
    for tap in taps:
        name, _, inside = tap.path.partition('.')
        if name == 'roi_head':
            raise ValueError(
                f"{owner}: '{tap}' needs proposals of its own and their non-maximum suppression; "
                'explanations and `through` reach features and dense logits only. Tap '
                "'neck', or 'rpn_head'"
            )
        if name.endswith('head'):
            stages = heads.setdefault(name, set())
            if isinstance(getattr(model, name), nn.ModuleList) and inside:
                stages.add(int(inside.partition('.')[0]))
    names = []
    for name, stages in heads.items():
        if not stages:
            names.append(name)
        elif name == 'decode_head':
            names.append(f'{name}.{max(stages)}')
        else:
            names += [f'{name}.{number}' for number in sorted(stages)]
    return names


def dense_forward(
    model: nn.Module, inputs: Tensor, data_samples: list | None, heads: list[str] | None
) -> None:
    """Runs the features of a model and then some heads; hooks read the maps.

    Args:
        model (nn.Module): The model.
        inputs (Tensor): Images ``(N, C, H, W)``, normalised for the model.
        data_samples (list, optional): Their data samples.
        heads (list[str], optional): The heads, as :func:`heads_of` returns them. None runs the
            model as a whole: in ``mode='tensor'``, or up to its scores if it has no backbone.
    """
    if heads is None:
        if not hasattr(model, 'backbone') and hasattr(model, 'encode_decode'):
            model.encode_decode(inputs, [sample.metainfo for sample in data_samples])
            return
        model(inputs, data_samples, mode='tensor')
        return
    features = model.extract_feat(inputs)
    for name in heads:
        root, _, number = name.partition('.')
        head = find_module(model, Tap(name), 'the model')
        if root == 'decode_head' and number:  # each stage refines what the one before it gave
            output: tuple = ()
            for stage in getattr(model, root)[: int(number) + 1]:
                output = (stage(features, *output),)
        elif not isinstance(head, nn.ModuleList):  # a list gives nothing itself
            if _needs_samples(head):
                head(features, _with_size(data_samples, inputs))
            else:
                head(features)


def _with_size(data_samples: list | None, inputs: Tensor) -> list | None:
    """Data samples that know the size of the batch, as those of mmdet do; mmseg leaves it out."""
    size = tuple(inputs.shape[-2:])
    samples = data_samples or []
    if all('batch_input_shape' in sample for sample in samples):
        return data_samples
    samples = [sample.clone() for sample in samples]  # the student has its own
    for sample in samples:
        sample.set_metainfo(dict(batch_input_shape=size))
    return samples


def _needs_samples(head: nn.Module) -> bool:
    """Whether a head requires the data samples: mask heads read the shapes of the images there."""
    needed = [
        parameter
        for parameter in inspect.signature(head.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return len(needed) > 1
