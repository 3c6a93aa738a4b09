"""Wiring: makes the train pipelines of a config load the maps of its cached teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config

from mmkd_plugin.assigners import is_behind_proposals
from mmkd_plugin.building import build_module
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
    pipelines = list(train_pipelines(cfg)) if cached else []
    loaders = [step for holder, key, _ in pipelines for step in holder[key] if _loads_maps(step)]
    if not cached or loaders:
        return
    holders = [holder for holder, key, _ in pipelines if key == 'pipeline']
    root = common_root(holders)
    added, hooks, ignore = [], [], []
    for teacher in cached:
        name = teacher.get('name', 'teacher')
        cache = TeacherCache(teacher['path'])
        names = names_of(cfg.model.get('distill') or {}, name)
        check_stored(cache, names, f"teacher '{name}'")
        _check_top_k(cache, cfg.model.get('distill') or {}, name)
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
                name=name,
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
    return type(step)({key: _unwired(value) for key, value in step.items()})


def _loads_maps(step: Any) -> bool:
    return isinstance(step, dict) and type_name(step.get('type')) == 'LoadTeacherMaps'


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


def _check_top_k(cache: TeacherCache, distill: Mapping[str, Any], teacher: str) -> None:
    for name, line in distill.items():
        if isinstance(line, dict) and line.get('explainer') is not None:
            continue  # it uses only the largest scores
        for tap in names_of({name: line}, teacher):
            k = cache.meta['taps'][tap].get('top_k')
            if k is None:
                continue
            loss = build_module(line['loss'], f'distill.{name}.loss')
            if not LossTraits.of(loss).compares_probabilities:
                raise ValueError(
                    f"distill.{name}: {cache.path} holds the {k} largest channels of '{tap}', and "
                    'this loss compares more than the probabilities of classes. Write a cache '
                    'without --top-k'
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
