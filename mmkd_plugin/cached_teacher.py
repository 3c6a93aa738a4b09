"""CachedTeacher: a teacher that ran before, whose maps are read from disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmkd_plugin.checkpoint import read_checkpoint, state_dict_of
from mmkd_plugin.dry_run import EXAMPLE_SIZES, DryRun, example_batch, library_of
from mmkd_plugin.explanations import (
    Chosen,
    Explanation,
    Scores,
    choose_classes,
    resized,
    scores_of,
)
from mmkd_plugin.geometry import KEY, inside, record_training, replay, train_pipelines
from mmkd_plugin.preprocessing import Normalization
from mmkd_plugin.registry import HOOKS, TRANSFORMS
from mmkd_plugin.taps import Maps, Tap, Taps, as_list, describe, find_module
from mmkd_plugin.teacher import Teacher, model_config
from mmkd_plugin.teacher_cache import Record, TeacherCache, human_size, mirrored
from mmkd_plugin.term import Term, build_module
from mmkd_plugin.training_images import (
    common_root,
    image_name,
    images_of,
    kind_of,
    loading_part,
    plain,
    training_scale,
)

#: The types that a config may write.
TYPES = ('mmkd_plugin.CachedTeacher', 'CachedTeacher')

WIRING = (
    'train with tools/train.py of this package, or add to what builds the runner, before it does: '
    'from mmkd_plugin.cached_teacher import wire; wire(cfg)'
)


class CachedTeacher:
    """A teacher whose maps ``tools/cache_teacher.py`` stored: it takes no memory and does not run.

    It stands in for a :class:`Teacher` in a config. The workers of the data loader read the maps
    and do to them what the pipeline did to the image (:class:`LoadTeacherMaps`, which :func:`wire`
    adds); here they are put together for the batch.

    Args:
        path (str): The cache.
        config (str | dict, optional): That of the teacher; the cache has to be of it. Defaults to
            None: not checked.
        checkpoint (str, optional): That of the teacher; the cache has to be of it. Defaults to
            None: not checked.
        strict (bool): As of a :class:`Teacher`, so that the same dict does for both; not used.
        inference (dict, optional): The same. Defaults to None.
        ignore (Sequence[str]): Types of transforms of your own in the train pipeline that leave
            each pixel in its place. Defaults to ``()``.
        name (str): What terms and messages call it. Defaults to ``'teacher'``.

    Raises:
        ValueError: If there is no such cache, it is not finished, or it is of another teacher.
    """

    def __init__(
        self,
        path: str,
        config: str | dict | None = None,
        checkpoint: str | None = None,
        strict: bool = True,
        inference: dict | None = None,
        ignore: Sequence[str] = (),
        name: str = 'teacher',
    ) -> None:
        self.name = name
        self.cache = TeacherCache(path)
        meta = self.cache.meta
        self.source = meta['source']
        self.checkpoint = meta['checkpoint']
        for what, key, given, hashed in (
            ('config', 'config', config, lambda: config_hash(config, name)),
            ('checkpoint', 'weights', checkpoint, lambda: checkpoint_hash(checkpoint)),
        ):
            if given is not None and hashed() != meta[key]:
                was = meta['source' if what == 'config' else 'checkpoint']
                now = given if isinstance(given, str) else 'this model dict'
                raise ValueError(
                    f"teacher '{name}': {path} was written by a teacher of another {what}: {was}, "
                    f'which is not the same as {now} now. Write a cache of this one with '
                    f'tools/cache_teacher.py, or leave `{what}` out'
                )

    def prepare(
        self,
        preprocessor: nn.Module,
        taps: Sequence[Tap],
        device: torch.device,
        size: int = EXAMPLE_SIZES[0],
        gradient_taps: Sequence[Tap] = (),
    ) -> DryRun:
        """Checks that it has the maps of ``taps``; see :meth:`Teacher.prepare`.

        Returns:
            DryRun: Made-up maps of the right shapes.

        Raises:
            ValueError: If it has not, if gradients are asked for, or the preprocessor mixes images.
        """
        owner = f"teacher '{self.name}'"
        if gradient_taps:
            raise ValueError(
                f'{owner} is a cache, and {", ".join(map(str, gradient_taps))} is asked for the '
                'gradient of its task loss, which needs the teacher itself: give `config` and '
                '`checkpoint` without `type`'
            )
        check_stored(self.cache, list(map(str, taps)), owner)
        for augment in _batch_augments(preprocessor):
            if type(augment).__name__ != 'BatchFixedSizePad':
                raise ValueError(
                    f'{owner} is a cache, and {type(augment).__name__} in `batch_augments` changes '
                    'images after their maps were read; take it out, or train with the teacher '
                    'itself'
                )
        values: dict[Tap, Maps] = {}
        for tap in taps:
            about = self.cache.meta['taps'][str(tap)]
            maps = [_made_up(one, size) for one in about['maps']]
            values[tap] = maps if about['several'] else maps[0]
        return DryRun(values=values, size=size)

    def prepare_explanations(self, terms: Sequence[Term], run: DryRun) -> None:
        """Checks that it has the explanations that terms compare.

        Args:
            terms (Sequence[Term]): The terms that learn from it.
            run (DryRun): What :meth:`prepare` gave; made-up maps that explain are added to it.

        Raises:
            ValueError: If it has not.
        """
        for term in terms:
            if term.explainer is not None:
                name = term.explainer.stored_as(term.teacher_tap)
                check_stored(self.cache, [name], f"teacher '{self.name}'")
                features = iter(self.cache.meta['taps'][name]['features'])
                for tap, count in zip(term.teacher_tap, self.cache.meta['taps'][name]['counts']):
                    maps = [_made_up(next(features), run.size) for _ in range(count or 1)]
                    run.values[tap] = maps if count else maps[0]

    def example_of(self, term: Term) -> tuple[Scores, list[Tensor]]:
        """The kind of its class scores, and a corner of made-up explanations for a term."""
        about = self.cache.meta['taps'][term.explainer.stored_as(term.teacher_tap)]
        kind = Scores(*about['scores'])
        maps = [torch.rand(1, channels // kind.classes, 8, 8) for channels, *_ in about['maps']]
        return kind, maps

    def explanation(
        self, inputs: Tensor, data_samples: list, term: Term, chosen: Chosen
    ) -> Explanation:
        """The stored explanations of the chosen classes, cut out as the images were.

        Args:
            inputs (Tensor): Images ``(N, C, H, W)``.
            data_samples (list): Their data samples, which carry the explanations.
            term (Term): What compares them.
            chosen (Chosen): The classes.
        """
        name = term.explainer.stored_as(term.teacher_tap)
        classes = chosen.classes.clamp(min=0)[:, :, None, None, None]
        maps = []
        for x in self._carried(name, inputs, data_samples):
            x = x.unflatten(1, (term.score_kind.classes, -1))
            picked = x.gather(1, classes.expand(-1, -1, *x.shape[2:]))
            maps.append(resized(picked, inputs.shape[2:]))
        return Explanation(chosen, maps)

    def __call__(
        self,
        inputs: Tensor,
        data_samples: list | None,
        taps: Sequence[Tap],
        on_path: Sequence[Tap] = (),
    ) -> dict[Tap, Maps]:
        """Puts together what the data samples carry; see :meth:`Teacher.__call__`.

        Raises:
            ValueError: If they carry nothing.
        """
        values: dict[Tap, Maps] = {}
        for tap in taps:
            maps = self._carried(str(tap), inputs, data_samples)
            values[tap] = maps if self.cache.meta['taps'][str(tap)]['several'] else maps[0]
        return values

    def _carried(self, name: str, inputs: Tensor, data_samples: list | None) -> list[Tensor]:
        """The maps of a tap that data samples carry, on the canvas of the batch."""
        field = field_of(self.name)
        if not data_samples or any(field not in sample for sample in data_samples):
            raise ValueError(
                f"teacher '{self.name}' is a cache, and the batch carries no maps of it: {WIRING}"
            )
        carried = [sample.get(field) for sample in data_samples]
        about, maps = self.cache.meta['taps'][name], []
        for number, ((_, *strides), fill) in enumerate(zip(about['maps'], about['fill'])):
            size = [-(-side // stride) for side, stride in zip(inputs.shape[2:], strides)]
            out = torch.tensor(fill, device=inputs.device).view(1, -1, 1, 1)
            out = out.repeat(len(inputs), 1, *size)
            for one, element in zip(out, carried):
                found = element.get(map_key(name, number))
                one[:, : found.shape[1], : found.shape[2]] = found
            maps.append(out)
        return maps

    def classes(self, tap: Tap) -> int | None:
        """The number of classes of the teacher's head around a tap, None if there is none."""
        return self.cache.meta['taps'][str(tap)]['classes']

    def norms(
        self, taps: Taps, names: Sequence[str] | None = None
    ) -> list[tuple[str, SimpleNamespace | None]]:
        """Weight and bias of the batch norms that feed maps; see :meth:`Teacher.norms`.

        Raises:
            ValueError: If one that is named is not in the cache.
        """
        meta = self.cache.meta
        if names is None:
            names = [name for tap in taps for name in meta['taps'][str(tap)]['norms']]
        for name in names:
            if name and name not in meta['norms']:
                raise ValueError(
                    f"teacher '{self.name}': {self.cache.path} holds no batch norm '{name}' (it "
                    f'has: {", ".join(meta["norms"]) or "none"}). Write the cache with this '
                    'config, which asks for it'
                )
        return [(name, _norm(meta['norms'][name]) if name else None) for name in names]

    def apply_to_tensors(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> None:
        """Has no tensors; see :meth:`Teacher.apply_to_tensors`."""

    def __deepcopy__(self, memo: dict) -> CachedTeacher:
        """A copy of the student shares it."""
        return self

    def work(self, taps: Sequence[Tap]) -> str:
        """What it does for these taps, in words."""
        size = human_size(Path(self.cache.path, 'data.mdb').stat().st_size)
        return f'cached in {self.cache.path} ({size}), not in memory; reads {_listed(taps)}'


def _listed(taps: Sequence[Tap]) -> str:
    return ', '.join(map(str, taps))


def _norm(values: Sequence[Sequence[float]]) -> SimpleNamespace:
    weight, bias = map(torch.tensor, values)
    return SimpleNamespace(weight=weight, bias=bias)


def _batch_augments(preprocessor: nn.Module) -> list:
    """What a data preprocessor does to whole batches."""
    augments = getattr(preprocessor, 'batch_augments', None) or ()
    augments = getattr(augments, 'augments', augments)  # our own, which holds several
    return list(augments) if isinstance(augments, (Sequence, nn.ModuleList)) else [augments]


def field_of(teacher: str) -> str:
    """The field of a data sample that carries the maps of a teacher."""
    return f'mmkd_{teacher}'


def map_key(tap: Tap | str, number: int) -> str:
    """What a map of a tap is called in that field."""
    return f'{tap}#{number}'


def _made_up(about: Sequence[int], size: int) -> Tensor:
    """A map of channels and strides ``[C, h, w]`` for an image of ``size`` pixels."""
    channels, *strides = about
    return torch.randn(1, channels, *(-(-size // stride) for stride in strides))


def check_stored(cache: TeacherCache, names: Sequence[str], owner: str) -> None:
    """Raises a ValueError if a cache has not all the maps and explanations of these names."""
    there = cache.meta['taps']
    lacking = [name for name in names if name not in there]
    if lacking:
        raise ValueError(
            f'{owner}: {cache.path} holds no maps of {", ".join(lacking)}; it has: '
            f'{", ".join(there)}. Write a cache with this config: tools/cache_teacher.py'
        )


# In the workers of the data loader ----------------------------------------------------------------


def warp(record: Record, strides: Sequence[Sequence[int]], fills: Sequence, geometry: Any) -> list:
    """Does to maps what was done to the image.

    Args:
        record (Record): What the teacher gave for the image.
        strides (Sequence): Pixels per position of each map, in height and in width.
        fills (Sequence[Tensor]): ``(C,)``, what each map holds where there is padding.
        geometry (Geometry): What was done to the image.

    Returns:
        list[Tensor]: ``(C, H, W)`` each, in the size that the teacher would have given.
    """
    warped = []
    for maps, stride, fill in zip(record.maps, strides, fills):
        size = [-(-side // s) for side, s in zip(geometry.packed, stride)]
        canvas = [count * s for count, s in zip(size, stride)]
        # pixels of the image as loaded; the teacher saw it in another size
        covers = [
            count * s * loaded / seen
            for count, s, loaded, seen in zip(maps.shape[1:], stride, geometry.loaded, record.seen)
        ]
        out = replay(torch.from_numpy(maps), geometry, size, canvas, covers=covers)
        picture = inside(geometry, size, canvas)
        warped.append(torch.where(picture, out, fill[:, None, None]))
    return warped


@TRANSFORMS.register_module()
class LoadTeacherMaps:
    """Adds the maps of a cached teacher to a data sample, warped as its image was.

    The last transform of a train pipeline; :func:`wire` adds it. The maps lie in a field of their
    own, which nothing but a :class:`CachedTeacher` reads.

    Args:
        path (str): The cache.
        taps (list[str]): Which maps.
        root (str): The folder to which the names of images in the cache are relative.
        name (str): Name of the teacher. Defaults to ``'teacher'``.

    Raises:
        ValueError: If the cache holds no maps of an image, or a record is damaged.

    Examples:
        >>> LoadTeacherMaps('work_dirs/cache', ['neck'], root='data/coco')
        LoadTeacherMaps(path='work_dirs/cache', taps=['neck'])
    """

    def __init__(self, path: str, taps: Sequence[str], root: str, name: str = 'teacher') -> None:
        self.cache = TeacherCache(path)
        self.taps = list(taps)
        self.root = root
        self.name = name

    def __call__(self, results: dict) -> dict:
        sample = results['data_samples']
        image, geometry = image_name(sample.metainfo, self.root), sample.metainfo[KEY]
        element = BaseDataElement()
        stored = mirrored if self.cache.meta['mirrored'] and geometry.mirrors else str
        if stored is mirrored:
            geometry = geometry.of_mirrored()
        for tap in self.taps:
            record = self.cache.read(image, stored(tap))
            if record.loaded != tuple(geometry.loaded):
                raise ValueError(
                    f'{image} has changed since {self.cache.path} was written: it had '
                    f'{record.loaded} pixels (height, width), and has {geometry.loaded}'
                )
            about = self.cache.meta['taps'][tap]
            strides = [strides for _, *strides in about['maps']]
            fills = [torch.tensor(fill) for fill in about['fill']]
            for number, maps in enumerate(warp(record, strides, fills, geometry)):
                element.set_field(maps, map_key(tap, number))
        sample.set_field(element, field_of(self.name))
        return results

    def __repr__(self) -> str:
        return f'LoadTeacherMaps(path={self.cache.path!r}, taps={self.taps})'


@HOOKS.register_module()
class CheckTeacherCache(Hook):
    """Compares the list of training images with a cache, before training starts.

    Args:
        path (str): The cache.
        root (str): The folder to which the names of images in the cache are relative.

    Raises:
        ValueError: If an image is missing.

    Examples:
        >>> hook = CheckTeacherCache('work_dirs/cache', root='data/coco')
    """

    def __init__(self, path: str, root: str) -> None:
        self.cache = TeacherCache(path)
        self.root = root

    def before_train(self, runner: Runner) -> None:
        images = images_of(runner.train_dataloader.dataset, self.root)
        missing = self.cache.missing(images)
        if missing:
            more = ', ...' if len(missing) > 3 else ''
            raise ValueError(
                f'{self.cache.path} lacks {len(missing)} of {len(images)} training images: '
                f'{", ".join(missing[:3])}{more}. Run tools/cache_teacher.py again as before, '
                'which adds what is missing; or is this another data set, or another `data_root`?'
            )


# The config ---------------------------------------------------------------------------------------


def is_cached(teacher: Any) -> bool:
    """Whether the config of a teacher is that of a :class:`CachedTeacher`."""
    return isinstance(teacher, dict) and teacher.get('type') in (*TYPES, CachedTeacher)


def wire(cfg: Config) -> None:
    """Makes the train pipelines of a config load the maps of its cached teachers, in place.

    Does nothing where there are none, or if it was done before.

    Args:
        cfg (Config): That of a distilled run.

    Raises:
        ValueError: If a cache does not fit the config, or a pipeline cannot be replayed.

    Examples:
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
    """Takes out of the train pipelines of a config what :func:`wire` put into them, in place.

    Args:
        cfg (Config): A config, such as the copy of the wired one that a run leaves behind.
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
    return isinstance(step, dict) and str(step.get('type')).endswith('LoadTeacherMaps')


def names_of(distill: Mapping[str, Any], teacher: str) -> list[str]:
    """What terms read in a cache; mistakes in them are left to the Distiller."""
    found = []
    for name, line in distill.items():
        tap = line.get('teacher_tap', line.get('tap')) if isinstance(line, dict) else None
        if tap is None or line.get('teacher', teacher) != teacher:
            continue
        if line.get('explainer') is None:
            found += map(str, Taps.parse(tap))
        else:
            explainer = build_module(line['explainer'], f'distill.{name}.explainer')
            found += [*map(str, explainer.teacher_scores), explainer.stored_as(Taps.parse(tap))]
    return list(dict.fromkeys(found))


def _check_top_k(cache: TeacherCache, distill: Mapping[str, Any], teacher: str) -> None:
    for name, line in distill.items():
        if isinstance(line, dict) and line.get('explainer') is not None:
            continue  # of the scores it takes the largest alone
        for tap in names_of({name: line}, teacher):
            k = cache.meta['taps'][tap].get('top_k')
            if k is not None and not keeps_probabilities(line['loss']):
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
    words = dict(loading='loads images', scale='brings images to a scale')
    for key, value in asked.items():
        if value != meta[key]:
            raise ValueError(
                f'the train pipeline {words[key]} in another way than that of {cache.path}: '
                f'{value or "not at all"}; the cache has: {meta[key] or "not at all"}. Write a '
                'cache with this config: tools/cache_teacher.py'
            )


# What a cache says of its teacher -----------------------------------------------------------------


def config_hash(config: str | dict, name: str) -> str:
    """A hash of the model in the config of a teacher."""
    model, _ = model_config(config, name)
    return hashlib.sha256(json.dumps(model, sort_keys=True, default=str).encode()).hexdigest()


def checkpoint_hash(checkpoint: str) -> str:
    """A hash of the weights in a checkpoint."""
    return state_hash(state_dict_of(read_checkpoint(checkpoint), checkpoint))


def state_hash(state: Mapping[str, Tensor]) -> str:
    """A hash of names, types, shapes and values of weights."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        value = value.detach().cpu().contiguous()
        digest.update(f'{name} {value.dtype} {tuple(value.shape)}'.encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


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


def keeps_probabilities(loss: Any) -> bool:
    """Whether a loss in a config compares the probabilities of classes, and these alone."""
    kind = loss.get('type') if isinstance(loss, dict) else type(loss)
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    sigmoid = loss.get('sigmoid') if isinstance(loss, dict) else getattr(loss, 'sigmoid', False)
    return name.rpartition('.')[2] in ('PixelWiseLoss', 'SoftTargetLoss') and not sigmoid


def classes_around(model: nn.Module, tap: Tap) -> int | None:
    """``num_classes`` of the innermost module around a tap that has one."""
    parts = tap.path.split('.')
    for end in range(len(parts), 0, -1):
        module = find_module(model, Tap('.'.join(parts[:end])), 'the model')
        classes = getattr(module, 'num_classes', None)
        if isinstance(classes, int):
            return classes
    return None
