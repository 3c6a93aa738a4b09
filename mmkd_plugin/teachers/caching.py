"""Caching: one run of a teacher over whole pictures, and what a cache says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmkd_plugin.cache.store import Record
from mmkd_plugin.explanations import Chosen, Scores, choose_classes, scores_of
from mmkd_plugin.taps import Maps, Tap, as_list, describe, find_module
from mmkd_plugin.taps.dry_run import DryRun
from mmkd_plugin.taps.example import example_batch, library_of
from mmkd_plugin.teachers.model import checkpoint_hash, config_hash, state_hash
from mmkd_plugin.teachers.online import Teacher
from mmkd_plugin.teachers.preprocessing import Normalization
from mmkd_plugin.terms.term import Term


def description(
    teacher: Teacher,
    config: dict,
    run: DryRun,
    taps: Sequence[Tap],
    norms: Sequence[str],
    explaining: Sequence[Term] = (),
) -> dict[str, Any]:
    """What a cache says of its teacher.

    Args:
        teacher (Teacher): The teacher, prepared.
        config (dict): Its config.
        run (DryRun): What the taps gave when it was prepared.
        taps (Sequence[Tap]): What is stored.
        norms (Sequence[str]): Names of further batch norms that terms ask for.
        explaining (Sequence[Term]): Terms of which explanations are stored. Defaults to ``()``.

    Raises:
        ValueError: If a tap gives something else than maps.
    """
    about = {}
    for tap in taps:
        maps = run.values[tap]
        tensors = as_list(maps)
        if any(x.ndim != 4 for x in tensors):
            raise ValueError(
                f"teacher '{teacher.name}': '{tap}' gives {describe(maps)}; only maps (N, C, H, W) "
                'can be stored'
            )
        about[str(tap)] = dict(
            maps=[_shape(x, run.size) for x in tensors],
            several=not isinstance(maps, Tensor),
            classes=classes_around(teacher.model, tap),
            norms=run.norms[tap],
        )
    for term in explaining:
        kind = scores_of(teacher.model, term.scores('teacher'), f"teacher '{teacher.name}'")
        features = as_list(term.teacher_tap.of(run.values))
        shapes = [_shape(x, run.size) for x in features]
        explained = [term.explainer.explain(x, x[None])[0, 0] for x in features]
        about[term.explainer.stored_as(term.teacher_tap)] = dict(
            maps=[[kind.classes * len(x), *shape[1:]] for x, shape in zip(explained, shapes)],
            several=True,
            classes=kind.classes,
            norms=[],
            scores=list(kind),
            features=shapes,
            counts=[
                0 if isinstance(run.values[tap], Tensor) else len(run.values[tap])
                for tap in term.teacher_tap
            ],
            fill=[[0.0] * (kind.classes * len(x)) for x in explained],
        )
    named = {*norms, *(name for one in about.values() for name in one['norms'] if name)}
    modules = {name: find_module(teacher.model, Tap(name), 'the teacher') for name in sorted(named)}
    checkpoint = teacher.checkpoint
    return dict(
        source=str(teacher.source),
        checkpoint=str(checkpoint or 'random weights'),
        config=config_hash(config['config'], teacher.name),
        weights=checkpoint_hash(checkpoint)
        if checkpoint
        else state_hash(teacher.model.state_dict()),
        taps=about,
        norms={
            name: [module.weight.tolist(), module.bias.tolist()]
            for name, module in modules.items()
            if getattr(module, 'weight', None) is not None and module.bias is not None
        },
    )


def _shape(maps: Tensor, size: int) -> list[int]:
    """Channels and strides of a map, ``[C, h, w]``."""
    return [maps.shape[1], *(-(-size // side) for side in maps.shape[2:])]


def whole_picture(
    teacher: Teacher,
    preprocessor: nn.Module,
    image: Tensor,
    loaded: tuple[int, int],
    about: Mapping[str, Any],
    explaining: Sequence[Term] = (),
) -> dict[str, Record]:
    """Runs a teacher on one image.

    Args:
        teacher (Teacher): The teacher, prepared.
        preprocessor (nn.Module): The student's data preprocessor.
        image (Tensor): ``(C, H, W)``, pixel values.
        loaded (tuple[int, int]): Its height and width before it was scaled.
        about (Mapping): What :func:`description` says of the taps.
        explaining (Sequence[Term]): Terms of which explanations are stored. Defaults to ``()``.

    Returns:
        dict[str, Record]: What each tap gave, and the explanations.

    Raises:
        ValueError: If a map is not finite, or its size does not follow that of the image.
    """
    seen = tuple(image.shape[1:])
    sample = _sample(teacher.model)
    sample.set_metainfo(
        dict(img_shape=seen, pad_shape=seen, ori_shape=loaded, batch_input_shape=seen)
    )
    data = preprocessor(dict(inputs=[image], data_samples=[sample]), False)
    inputs = data['inputs']
    stored = {name: Tap.parse(name) for name, one in about.items() if 'scores' not in one}
    on_path = [tap for term in explaining for tap in term.teacher_tap]
    taps = list(dict.fromkeys([*stored.values(), *on_path]))
    with ExitStack() as stack:
        for term in explaining:
            stack.enter_context(term.explainer.context(teacher.model))
        values = teacher(inputs, data['data_samples'], taps, on_path)
        found = {name: as_list(values[tap]) for name, tap in stored.items()}
        for term in explaining:
            name = term.explainer.stored_as(term.teacher_tap)
            found[name] = explain_all(term, values, Scores(*about[name]['scores']))
    records = {}
    for name, one in about.items():
        maps = [x[0].detach().float().cpu() for x in found[name]]
        for x, (_, *strides) in zip(maps, one['maps']):
            expected = [-(-side // stride) for side, stride in zip(inputs.shape[2:], strides)]
            if list(x.shape[1:]) != expected:
                raise ValueError(
                    f"teacher '{teacher.name}': '{name}' gives {tuple(x.shape[1:])} positions for "
                    f'{tuple(inputs.shape[2:])} pixels, not {tuple(expected)} as a stride of '
                    f'{strides} would: the size of its maps does not follow that of the image, so '
                    'crops of them mean nothing'
                )
            if not torch.isfinite(x).all():
                raise ValueError(f"teacher '{teacher.name}': '{name}' is not finite")
        records[name] = Record([x.numpy() for x in maps], loaded, seen)
    return records


def explain_all(term: Term, values: Mapping[Tap, Maps], kind: Scores) -> list[Tensor]:
    """A teacher's explanations of every class that it sees in one image.

    Args:
        term (Term): What compares them.
        values (Mapping): What the teacher's taps gave, with a graph.
        kind (Scores): How its class scores are to be read.

    Returns:
        list[Tensor]: ``(1, classes · C, h, w)`` for each map that explains, 0 for absent classes.
    """
    features, scores = term.teacher_tap.of(values), term.scores('teacher').of(values)
    every = choose_classes(scores, kind, kind.classes, term.explainer.score_thr)
    maps: list[Tensor] = []
    for row, number in enumerate(every.classes[0].tolist()):
        one = Chosen(
            every.classes[:, row : row + 1], [x[:, row : row + 1] for x in every.positions]
        )
        if number < 0 and maps:
            break  # those that follow are absent too
        explained = term.explainer(features, scores, one, kind, None).maps
        maps = maps or [x.new_zeros(1, kind.classes, *x.shape[2:]) for x in explained]
        for whole, x in zip(maps, explained):
            if number >= 0:
                whole[:, number] = x[:, 0]
    return [x.flatten(1, 2) for x in maps]


def padding_values(
    teacher: Teacher, preprocessor: nn.Module, about: Mapping[str, Any], size: int
) -> dict[str, list[list[float]]]:
    """What each channel of each map holds where the teacher sees nothing but padding.

    Args:
        teacher (Teacher): The teacher, prepared.
        preprocessor (nn.Module): The student's data preprocessor.
        about (Mapping): What :func:`description` says of the taps.
        size (int): Height and width of the image to try, pixels.
    """
    device = next(teacher.model.parameters()).device
    images, _ = example_batch(teacher.model, device, size)
    images = torch.full_like(images, Normalization.of(preprocessor).pad_value)
    sample = _sample(teacher.model)
    sample.set_metainfo(
        dict(img_shape=(0, 0), pad_shape=(size, size), batch_input_shape=(size, size))
    )
    stored = {name: Tap.parse(name) for name, one in about.items() if 'scores' not in one}
    values = teacher(images, [sample], list(stored.values()))
    return {
        name: [
            x[0, :, x.shape[2] // 2, x.shape[3] // 2].float().tolist() for x in as_list(values[tap])
        ]
        for name, tap in stored.items()
    }


def _sample(model: nn.Module) -> BaseDataElement:
    """An empty data sample of the library that a model is of."""
    library = library_of(model)
    if library == 'mmdet':
        from mmdet.structures import DetDataSample

        return DetDataSample()
    if library == 'mmseg':
        from mmseg.structures import SegDataSample

        return SegDataSample()
    return BaseDataElement()


def classes_around(model: nn.Module, tap: Tap) -> int | None:
    """``num_classes`` of the innermost module around a tap that has one."""
    parts = tap.path.split('.')
    for end in range(len(parts), 0, -1):
        module = find_module(model, Tap('.'.join(parts[:end])), 'the model')
        classes = getattr(module, 'num_classes', None)
        if isinstance(classes, int):
            return classes
    return None
