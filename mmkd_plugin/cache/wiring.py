"""Wiring: makes the train pipelines of a config load the maps of its cached teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config

from mmkd_plugin.assigners import is_behind_proposals
from mmkd_plugin.building import build_module
from mmkd_plugin.cache.drawn import check_drawn, innermost, parts_drawn
from mmkd_plugin.cache.images import common_root, kind_of, loading_part, plain, training_scale
from mmkd_plugin.cache.recording import record_training, train_pipelines
from mmkd_plugin.cache.store import TeacherCache, check_stored
from mmkd_plugin.losses.traits import LossTraits
from mmkd_plugin.registry import MODELS
from mmkd_plugin.taps import Taps
from mmkd_plugin.words import type_name

WIRING = (
    'train with tools/train.py of this package, or add to what builds the runner, before it does: '
    'from mmkd_plugin.cache.wiring import wire; wire(cfg)'
)

#: What a term is told that asks a teacher which is not there.
NO_WAY = (
    'It asks the teacher itself about the student, so the teacher has to run beside the student: '
    'give its `config` and `checkpoint` without `type`'
)


def is_cached(teacher: Any) -> bool:
    """Returns whether the dict of a teacher is of a kind whose maps are stored."""
    kind = teacher.get('type') if isinstance(teacher, dict) else None
    kind = MODELS.get(kind) if isinstance(kind, str) else kind
    return getattr(kind, 'stored', False)


def wire(cfg: Config) -> None:
    """Makes the train pipelines of a config load the maps of its cached teachers, in place.

    It does nothing if there are no cached teachers, or if the config is wired already.

    Args:
        cfg (Config): Config of a run.

    Raises:
        ValueError: If a cache does not fit the config, or a pipeline cannot be replayed.

    Examples:
        >>> from mmengine.config import Config
        >>> from mmkd_plugin import wire
        >>> wire(Config(dict(model=dict(type='EncoderDecoder'))))
    """
    teachers = cfg.model.get('teacher') or {}
    teachers = [teachers] if isinstance(teachers, dict) else teachers
    cached = [teacher for teacher in teachers if is_cached(teacher)]
    if not cached or _is_wired(cfg):
        return
    of_views = [one for one in cached if 'views' in _cache_of(one).meta]
    if of_views and len(of_views) < len(cached):
        raise ValueError(
            f'{of_views[0]["path"]} holds views, and another cache of this config whole images: '
            'the batches of a run follow one of them. Write both caches with --views, or none'
        )
    if of_views:
        _wire_views(cfg, of_views)
    else:
        _wire_whole(cfg, cached)


def _is_wired(cfg: Config) -> bool:
    if _adds_views(cfg.train_dataloader['dataset']):
        return True
    leaves = innermost(cfg.train_dataloader['dataset'])
    return any(_loads_maps(step) for leaf in leaves for step in leaf.get('pipeline') or ())


def _wire_views(cfg: Config, cached: Sequence[dict]) -> None:
    """Makes the data loader draw the views of caches, with their maps."""
    loader = cfg.train_dataloader
    caches, hooks, counts = [], [], []
    for teacher in cached:
        cache, names = _open(cfg, teacher)
        check_drawn(cache, cfg)
        if not names:
            continue
        there, count = cache.meta['views'], teacher.get('views')
        if count is not None and count < 1:
            raise ValueError(f'teacher.views must be a whole number from 1 on, got {count}')
        if count is not None and count > there:
            raise ValueError(
                f'teacher.views is {count}, and {cache.path} has {there} views of each image; for '
                f'more: tools/cache_teacher.py --views {count}'
            )
        counts.append(count or there)
        caches.append(dict(path=cache.path, taps=names, name=teacher.get('name', 'teacher')))
        hooks.append(dict(type='mmkd_plugin.CheckDrawnViews', path=cache.path))
    if not caches:
        return
    for prefix, dataset in parts_drawn(cfg).items():
        views = dict(
            type='mmkd_plugin.DrawnViews',
            dataset=dataset,
            caches=caches,
            root=common_root([*innermost(dataset)]),
        )
        if prefix:  # no sampler chooses these: they come beside the others
            cfg.model.unlabelled.dataset = dict(views, prefix=prefix, views=min(counts))
        else:
            loader['dataset'] = views
    loader['sampler'] = dict(
        type='mmkd_plugin.ViewsInTurn', sampler=loader['sampler'], views=min(counts)
    )
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or ()), *hooks]


def _cache_of(teacher: Mapping[str, Any]) -> TeacherCache:
    return TeacherCache(teacher['path'], f"teacher '{teacher.get('name', 'teacher')}'.path")


def _open(cfg: Config, teacher: Mapping[str, Any]) -> tuple[TeacherCache, list[str]]:
    """The cache of a teacher, and the records that the terms read there."""
    name, distill = teacher.get('name', 'teacher'), cfg.model.get('distill') or {}
    cache = _cache_of(teacher)
    names = names_of(distill, name)
    check_stored(cache, names, f"teacher '{name}'")
    _check_classes(cache, distill, name)
    return cache, names


def _wire_whole(cfg: Config, cached: Sequence[dict]) -> None:
    """Makes the train pipelines replay the maps of whole images."""
    pipelines = list(train_pipelines(cfg))
    holders = [holder for holder, key, _ in pipelines if key == 'pipeline']
    root = common_root(holders)
    added, hooks, ignore = [], [], []
    for teacher in cached:
        cache, names = _open(cfg, teacher)
        for holder in holders:
            _check_pipeline(cache, holder['pipeline'])
        if not names:
            continue
        added.append(
            dict(
                type='mmkd_plugin.LoadTeacherMaps',
                path=cache.path,
                taps=names,
                root=root,
                name=teacher.get('name', 'teacher'),
            )
        )
        hooks.append(dict(type='mmkd_plugin.CheckTeacherCache', path=cache.path, root=root))
        ignore += teacher.get('ignore', ())
    for holder, key, _ in pipelines:
        for step in holder[key]:  # the workers find the image in the cache by its path
            if kind_of(step).startswith('Pack') and 'meta_keys' in step:
                step['meta_keys'] = tuple(dict.fromkeys((*step['meta_keys'], 'img_path')))
    record_training(cfg, ignore)
    for holder, key, _ in train_pipelines(cfg):
        holder[key] = [*holder[key], *added]
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or ()), *hooks]


def unwire(cfg: Config) -> None:
    """Removes the transforms that :func:`wire` added to the train pipelines of a config, in place.

    Args:
        cfg (Config): A config, such as the copy that a run saves.
    """
    for key in ('train_dataloader', 'custom_hooks'):  # hooks may hold a pipeline to switch to
        if cfg.get(key):
            cfg[key] = _unwired(cfg[key])


def _unwired(step: Any) -> Any:
    if isinstance(step, (list, tuple)):
        return type(step)(_unwired(one) for one in step if not _loads_maps(one))
    if not isinstance(step, dict):
        return step
    if step.get('type') == 'mmkd_plugin.Recorded':
        return step['transform']
    if _adds_views(step):
        return step['dataset']
    if type_name(step.get('type')) == 'ViewsInTurn':
        return step['sampler']
    return type(step)({key: _unwired(value) for key, value in step.items()})


def _loads_maps(step: Any) -> bool:
    return isinstance(step, dict) and type_name(step.get('type')) == 'LoadTeacherMaps'


def _adds_views(dataset: Any) -> bool:
    return type_name(dataset.get('type')) == 'DrawnViews'


def names_of(distill: Mapping[str, Any], teacher: str) -> list[str]:
    """Lists the records that terms read in a cache.

    Lines with a mistake are skipped: the Distiller refuses them.

    Args:
        distill (Mapping[str, Any]): The ``distill`` of a config.
        teacher (str): Name of the cached teacher.

    Returns:
        list[str]: Names of records, each once.

    Raises:
        ValueError: If a term needs the teacher itself.
    """
    found = []
    for name, line in distill.items():
        if not isinstance(line, dict):
            continue
        named = line.get('teacher', teacher)
        if teacher not in (named if isinstance(named, (list, tuple)) else [named]):
            continue
        for key in ('through', 'queries'):
            if line.get(key) is not None:
                raise ValueError(f"distill.{name}.{key}: teacher '{teacher}' is a cache. {NO_WAY}")
        tap = line.get('teacher_tap', line.get('tap'))
        if tap is None:
            continue
        if line.get('explainer') is None and any(map(is_behind_proposals, Taps.parse(tap))):
            raise ValueError(f"distill.{name}: teacher '{teacher}' is a cache. {NO_WAY}")
        if line.get('explainer') is None:
            found += map(str, Taps.parse(tap))
        else:
            explainer = build_module(line['explainer'], f'distill.{name}.explainer')
            found += [*map(str, explainer.teacher_scores), explainer.stored_as(Taps.parse(tap))]
    return list(dict.fromkeys(found))


def _check_classes(cache: TeacherCache, distill: Mapping[str, Any], teacher: str) -> None:
    """Refuses losses that compare more than what is stored of class scores."""
    for name, line in distill.items():
        if isinstance(line, dict) and line.get('explainer') is not None:
            continue  # it uses only the largest scores
        for tap in names_of({name: line}, teacher):
            k, tau = (cache.meta['taps'][tap].get(key) for key in ('top_k', 'tau'))
            if k is None and tau is None:
                continue
            loss = line['loss']
            if isinstance(loss, dict) and 'loss_weight' in loss:
                loss = {**loss, 'loss_weight': 1.0}  # here 'auto' is no number
            traits = LossTraits.of(build_module(loss, f'distill.{name}.loss'))
            held = f'the {k} largest channels' if k is not None else 'the probabilities'
            if not traits.compares_probabilities:
                raise ValueError(
                    f"distill.{name}: {cache.path} holds {held} of '{tap}', and this loss compares "
                    'more than the probabilities of classes. Write a cache without '
                    f'{"--top-k" if k is not None else "--dtype " + cache.meta["dtype"]}'
                )
            if tau is not None and traits.tau > tau:
                raise ValueError(
                    f'distill.{name}.loss.tau is {traits.tau:g}, and {cache.path} holds '
                    f"probabilities of '{tap}' for a temperature up to {tau:g}. Write a cache with "
                    'this config: tools/cache_teacher.py with another --out'
                )


def _check_pipeline(cache: TeacherCache, pipeline: Sequence[dict]) -> None:
    meta = cache.meta
    asked = {'loading': plain(loading_part(pipeline))}
    if not meta['scale_given']:
        asked['scale'] = plain(training_scale(pipeline))
    phrases = dict(loading='loads images', scale='brings images to a scale')
    for key, value in asked.items():
        if value != meta[key]:
            raise ValueError(
                f'the train pipeline {phrases[key]} in another way than that of {cache.path}: '
                f'{value or "not at all"}; the cache has: {meta[key] or "not at all"}. Write a '
                'cache with this config: tools/cache_teacher.py'
            )
