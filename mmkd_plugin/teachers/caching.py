"""Caching: runs a teacher on whole images for a cache, and describes it there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmkd_plugin.cache.drawn import picture_of
from mmkd_plugin.cache.store import Record
from mmkd_plugin.explanations import Chosen, Scores, choose_classes
from mmkd_plugin.taps import Maps, Tap, Taps, as_list, describe, find_module
from mmkd_plugin.taps.example import example_batch, library_of
from mmkd_plugin.teachers.base import Preview
from mmkd_plugin.teachers.cached import stored_as, stored_taps
from mmkd_plugin.teachers.model import config_hash
from mmkd_plugin.teachers.online import OnlineTeacher
from mmkd_plugin.teachers.preprocessing import Normalization
from mmkd_plugin.views import View, of_kind


def description(
    teacher: OnlineTeacher,
    config: dict,
    preview: Preview,
    views: Sequence[View],
    norms: Sequence[str],
) -> dict[str, Any]:
    """Describes a teacher and its maps for the metadata of a cache.

    Args:
        teacher (OnlineTeacher): The teacher, prepared.
        config (dict): The teacher's dict in the config.
        preview (Preview): The result of preparing it.
        views (Sequence[View]): The views to store.
        norms (Sequence[str]): Names of further batch norms that terms ask for.

    Returns:
        dict[str, Any]: Entries of ``TeacherCache.meta``.

    Raises:
        ValueError: If a tap does not return maps ``(N, C, H, W)``.
    """
    about = {str(tap): _about_tap(teacher, tap, preview) for tap in stored_taps(views)}
    about |= {
        stored_as(view): _about_explanations(view, preview)
        for view in of_kind(views, 'explanations')
    }
    return dict(
        source=str(teacher.source),
        classes=list(teacher.class_names or ()) or None,
        checkpoint=str(teacher.weights_from or 'random weights'),
        config=config_hash(config['config'], teacher.name),
        weights=teacher.weights_hash(),
        taps=about,
        norms=_norms(teacher, {*norms, *(n for one in about.values() for n in one['norms'] if n)}),
    )


def _about_tap(teacher: OnlineTeacher, tap: Tap, preview: Preview) -> dict[str, Any]:
    maps = preview.maps[tap]
    if any(x.ndim != 4 for x in as_list(maps)):
        raise ValueError(
            f"teacher '{teacher.name}': '{tap}' gives {describe(maps)}; only maps (N, C, H, W) "
            'can be stored'
        )
    return dict(
        maps=[_shape(x, preview.size) for x in as_list(maps)],
        several=not isinstance(maps, Tensor),
        classes=teacher.classes(tap),
        class_scores=[one and list(one) for one in preview.classes.get(tap, ())],
        norms=[name for name, _ in teacher.norms(Taps((tap,)))],
    )


def _about_explanations(view: View, preview: Preview) -> dict[str, Any]:
    kind, features = preview.scores[view], as_list(view.of(preview.maps))
    shapes = [_shape(x, preview.size) for x in features]
    explained = [view.explainer.explain(x, x[None])[0, 0] for x in features]
    return dict(
        maps=[[kind.classes * len(x), *shape[1:]] for x, shape in zip(explained, shapes)],
        several=True,
        classes=kind.classes,
        norms=[],
        scores=list(kind),
        features=shapes,
        counts=[
            0 if isinstance(preview.maps[tap], Tensor) else len(preview.maps[tap])
            for tap in view.taps
        ],
        fill=[[0.0] * (kind.classes * len(x)) for x in explained],
    )


def _norms(teacher: OnlineTeacher, names: set[str]) -> dict[str, list[list[float]]]:
    """Returns weight and bias of the batch norms that have both, by name."""
    modules = {name: find_module(teacher.model, Tap(name), 'the teacher') for name in sorted(names)}
    return {
        name: [module.weight.tolist(), module.bias.tolist()]
        for name, module in modules.items()
        if getattr(module, 'weight', None) is not None and module.bias is not None
    }


def _shape(maps: Tensor, size: int) -> list[int]:
    """Returns channels and strides of a map, ``[C, h, w]``."""
    return [maps.shape[1], *(-(-size // side) for side in maps.shape[2:])]


def whole_picture(
    teacher: OnlineTeacher,
    preprocessor: nn.Module,
    image: Tensor,
    loaded: tuple[int, int],
    about: Mapping[str, Any],
    views: Sequence[View],
) -> dict[str, Record]:
    """Runs a teacher on one image.

    Args:
        teacher (OnlineTeacher): The teacher, prepared.
        preprocessor (nn.Module): The student's data preprocessor.
        image (Tensor): ``(C, H, W)``, pixel values.
        loaded (tuple[int, int]): Height and width of the image before it was scaled, pixels.
        about (Mapping): The ``taps`` of :func:`description`.
        views (Sequence[View]): The views to store.

    Returns:
        dict[str, Record]: The maps of each tap and the explanations, by their name in the cache.

    Raises:
        ValueError: If a map is not finite, or its size does not follow that of the image.
    """
    seen = tuple(image.shape[1:])
    sample = _sample(teacher.model)
    sample.set_metainfo(
        dict(img_shape=seen, pad_shape=seen, ori_shape=loaded, batch_input_shape=seen)
    )
    data = preprocessor(dict(inputs=[image], data_samples=[sample]), False)
    (found,) = _read_all(teacher, data, about, views)
    return {name: Record(maps, loaded, seen) for name, maps in found.items()}


def drawn_pictures(
    teacher: OnlineTeacher,
    preprocessor: nn.Module,
    items: Sequence[Mapping[str, Any]],
    about: Mapping[str, Any],
    views: Sequence[View],
) -> list[dict[str, Record]]:
    """Runs a teacher on images that a train pipeline drew, as it runs beside a student.

    Args:
        teacher (OnlineTeacher): The teacher, prepared.
        preprocessor (nn.Module): The student's data preprocessor.
        items (Sequence[dict]): What the data set gives, images of one size; one of them if the
            views have explanations.
        about (Mapping): The ``taps`` of :func:`description`.
        views (Sequence[View]): The views to store.

    Returns:
        list[dict[str, Record]]: For each image the maps of each tap and the explanations, by their
        name in the cache.

    Raises:
        ValueError: If a map is not finite, or its size does not follow that of the image.
    """
    pictures = [picture_of(item['inputs']) for item in items]
    size = tuple(items[0]['inputs'].shape[1:])
    data = preprocessor(pseudo_collate(list(items)), True)
    return [
        {name: Record(maps, size, size, picture) for name, maps in found.items()}
        for found, picture in zip(_read_all(teacher, data, about, views), pictures)
    ]


def _read_all(
    teacher: OnlineTeacher,
    data: Mapping[str, Any],
    about: Mapping[str, Any],
    views: Sequence[View],
) -> list[dict[str, list[np.ndarray]]]:
    """Runs a teacher on a batch; returns for each image its maps by their name in the cache."""
    inputs, taps = data['inputs'], stored_taps(views)
    explaining = of_kind(views, 'explanations')
    on_path = [tap for view in explaining for tap in view.on_path()]
    with ExitStack() as stack:
        for view in explaining:
            stack.enter_context(view.context(teacher.model))
        every = list(dict.fromkeys([*taps, *on_path]))
        read = teacher.read(inputs, data['data_samples'], every, on_path)
        found = {str(tap): as_list(read[tap]) for tap in taps}
        for view in explaining:
            kind = Scores(*about[stored_as(view)]['scores'])
            found[stored_as(view)] = explain_all(view, read, kind)
    checked = {
        name: _checked(teacher, name, maps, about[name], inputs.shape[2:])
        for name, maps in found.items()
    }
    return [
        {name: [x[number] for x in maps] for name, maps in checked.items()}
        for number in range(len(inputs))
    ]


def _checked(
    teacher: OnlineTeacher,
    name: str,
    maps: Sequence[Tensor],
    about: Mapping[str, Any],
    size: Sequence[int],
) -> list[np.ndarray]:
    """Returns maps as arrays, if their size follows that of the images."""
    maps = [x.detach().float().cpu() for x in maps]
    for x, (_, *strides) in zip(maps, about['maps']):
        expected = [-(-side // stride) for side, stride in zip(size, strides)]
        if list(x.shape[2:]) != expected:
            raise ValueError(
                f"teacher '{teacher.name}': '{name}' gives {tuple(x.shape[2:])} positions for "
                f'{tuple(size)} pixels, not {tuple(expected)} as a stride of '
                f'{strides} would: the size of its maps does not follow that of the image, so '
                'crops of them mean nothing'
            )
        if not torch.isfinite(x).all():
            raise ValueError(f"teacher '{teacher.name}': '{name}' is not finite")
    return [x.numpy() for x in maps]


def explain_all(view: View, read: Mapping[Tap, Maps], kind: Scores) -> list[Tensor]:
    """Explains every class that a teacher sees in one image.

    Args:
        view (View): A view of explanations.
        read (Mapping[Tap, Maps]): The maps at the teacher's taps, with an autograd graph.
        kind (Scores): How to read the class scores.

    Returns:
        list[Tensor]: ``(1, classes · C, h, w)`` for each tapped map, 0 for absent classes.
    """
    scores = view.scores.of(read)
    every = choose_classes(scores, kind, kind.classes, view.explainer.score_thr)
    maps: list[Tensor] = []
    for row, number in enumerate(every.classes[0].tolist()):
        one = Chosen(
            every.classes[:, row : row + 1], [x[:, row : row + 1] for x in every.positions]
        )
        if number < 0 and maps:
            break  # absent classes come last
        explained = view.explain(read, one, kind, None, False).maps
        maps = maps or [x.new_zeros(1, kind.classes, *x.shape[2:]) for x in explained]
        for whole, x in zip(maps, explained):
            if number >= 0:
                whole[:, number] = x[:, 0]
    return [x.flatten(1, 2) for x in maps]


def padding_values(
    teacher: OnlineTeacher, preprocessor: nn.Module, views: Sequence[View], size: int
) -> dict[str, list[list[float]]]:
    """Measures the values of a teacher's maps in padding: runs it on an image of padding alone.

    Args:
        teacher (OnlineTeacher): The teacher, prepared.
        preprocessor (nn.Module): The student's data preprocessor.
        views (Sequence[View]): The views to store.
        size (int): Height and width of the image, pixels.

    Returns:
        dict[str, list[list[float]]]: For each tap, for each of its maps, a value for each channel.
    """
    device = next(teacher.model.parameters()).device
    images, _ = example_batch(teacher.model, device, size)
    images = torch.full_like(images, Normalization.of(preprocessor).pad_value)
    sample = _sample(teacher.model)
    sample.set_metainfo(
        dict(img_shape=(0, 0), pad_shape=(size, size), batch_input_shape=(size, size))
    )
    read = teacher.read(images, [sample], stored_taps(views))
    return {
        str(tap): [
            x[0, :, x.shape[2] // 2, x.shape[3] // 2].float().tolist() for x in as_list(maps)
        ]
        for tap, maps in read.items()
    }


def _sample(model: nn.Module) -> BaseDataElement:
    """Returns an empty data sample of the library that a model comes from."""
    library = library_of(model)
    if library == 'mmdet':
        from mmdet.structures import DetDataSample

        return DetDataSample()
    if library == 'mmseg':
        from mmseg.structures import SegDataSample

        return SegDataSample()
    return BaseDataElement()
