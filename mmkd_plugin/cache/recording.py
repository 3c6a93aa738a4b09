"""Recording: stock transforms that record how they warp an image.

:func:`recorded` makes a stock pipeline record a :class:`Geometry` in each data sample.
:func:`~mmkd_plugin.cache.geometry.replay` warps stored maps by it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import Registry

from mmkd_plugin.cache.geometry import Geometry
from mmkd_plugin.registry import TRANSFORMS
from mmkd_plugin.words import as_written, did_you_mean, type_name

#: Key of the :class:`Geometry` in results and in the metainfo of data samples.
KEY = 'mmkd_geometry'

#: The effect of a step: a matrix, and the area that it may fill with the image, None for all.
Step = tuple[np.ndarray, 'Sequence[float] | None']


def _shape(results: dict) -> tuple[int, int]:
    return tuple(results['img'].shape[:2])


def _matrix(scale: Sequence[float] = (1, 1), shift: Sequence[float] = (0, 0)) -> np.ndarray:
    """Returns the matrix of a scaling and a shift, which are both given as (y, x)."""
    return np.array([[scale[1], 0, shift[1]], [0, scale[0], shift[0]], [0, 0, 1]], np.float64)


def _scaling(before: Sequence[int], after: Sequence[int]) -> np.ndarray:
    return _matrix(scale=(after[0] / before[0], after[1] / before[1]))


@contextmanager
def _watched(owner: Any, name: str) -> Iterator[list[tuple]]:
    """Records arguments and result of each call of a method inside the block."""
    method, calls = getattr(owner, name), []
    before = vars(owner).get(name)

    def watched(*args: Any) -> Any:
        calls.append((*args, method(*args)))
        return calls[-1][-1]

    setattr(owner, name, watched)
    try:
        yield calls
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _resize(transform: Callable, results: dict) -> tuple[dict, Step]:
    before = _shape(results)
    results = transform(results)
    return results, (_scaling(before, _shape(results)), None)


def _resize_and_pad(transform: Callable, results: dict) -> tuple[dict, Step]:
    if not transform.keep_ratio:
        return _resize(transform, results)
    from mmcv import rescale_size

    height, width = _shape(results)
    results = transform(results)
    after = rescale_size((width, height), results['scale'])[::-1]  # the size before padding
    return results, (_scaling((height, width), after), None)


def _flip(transform: Callable, results: dict) -> tuple[dict, Step]:
    results = transform(results)
    height, width = _shape(results)
    direction = results['flip_direction'] if results['flip'] else None
    down = direction in ('vertical', 'diagonal')
    across = direction in ('horizontal', 'diagonal')
    scale, shift = (1 - 2 * down, 1 - 2 * across), (height * down, width * across)
    return results, (_matrix(scale, shift), None)


def _pad(transform: Callable, results: dict) -> tuple[dict, Step]:
    return transform(results), (_matrix(), None)  # to the right and below


def _pack(transform: Callable, results: dict) -> tuple[dict, None]:
    return transform(results), None


def _cut(transform: Callable, results: dict) -> tuple[dict | None, Step | None]:
    """Runs a crop or a shift on an image of numbers, which show the pixels that it took.

    These transforms look at labels, not at pixels. 0 marks pixels that they filled.
    """
    image = results['img']
    height, width = image.shape[:2]
    numbers = np.arange(1, height * width + 1, dtype=np.int32)
    results['img'] = numbers.reshape(height, width, *(1,) * (image.ndim - 2))
    results = transform(results)
    if results is None:
        return None, None
    numbers = results['img'].reshape(_shape(results))
    to_y, to_x = divmod(int((numbers > 0).argmax()), numbers.shape[1])
    from_y, from_x = divmod(int(numbers[to_y, to_x]) - 1, width)
    rows, cols = int((numbers[:, to_x] > 0).sum()), int((numbers[to_y] > 0).sum())
    part = image[from_y : from_y + rows, from_x : from_x + cols]
    if (rows, cols) == numbers.shape:
        results['img'] = part
    else:
        results['img'] = np.zeros((*numbers.shape, *image.shape[2:]), image.dtype)
        results['img'][to_y : to_y + rows, to_x : to_x + cols] = part
    return results, (_matrix(shift=(to_y - from_y, to_x - from_x)), None)


def _center_crop(transform: Callable, results: dict) -> tuple[dict, Step]:
    before = _shape(results)
    results = transform(results)
    # half of the cut lies before the crop; a side that is too short is padded at its end
    shift = [-max(0, round((b - a) / 2)) for b, a in zip(before, _shape(results))]
    return results, (_matrix(shift=shift), None)


def _expand(transform: Callable, results: dict) -> tuple[dict, Step]:
    with _watched(transform, '_random_left_top') as calls:
        results = transform(results)
    left, top = calls[-1][-1] if calls else (0, 0)
    return results, (_matrix(shift=(top, left)), None)


def _center_crop_and_pad(transform: Callable, results: dict) -> tuple[dict, Step]:
    with _watched(transform, '_crop_image_and_paste') as calls:
        results = transform(results)
    _, centre, size, (_, (top, bottom, left, right), _) = calls[-1]
    shift = [length // 2 - middle for length, middle in zip(size, centre)]
    return results, (_matrix(shift=shift), (top, left, bottom, right))


#: Functions that run a stock transform and record its step, by the name of the transform.
REPLAYED: dict[str, Callable] = {
    'CenterCrop': _center_crop,
    'Expand': _expand,
    'FixScaleResize': _resize,
    'FixShapeResize': _resize_and_pad,
    'MinIoURandomCrop': _cut,
    'PackDetInputs': _pack,
    'PackSegInputs': _pack,
    'Pad': _pad,
    'RandomCenterCropPad': _center_crop_and_pad,
    'RandomChoiceResize': _resize,
    'RandomCrop': _cut,
    'RandomFlip': _flip,
    'RandomFlip_GLIP': _flip,
    'RandomResize': _resize,
    'RandomShift': _cut,
    'Resize': _resize,
    'ResizeShortestEdge': _resize,
    'ResizeToMultiple': _resize,
}

#: Stock transforms that leave each pixel in its place. Stored maps do not show their changes, such
#: as colours and painted patches.
IGNORED = {
    'AdjustGamma', 'AutoContrast', 'Brightness', 'CLAHE', 'Color', 'ColorTransform', 'Contrast',
    'CutOut', 'Equalize', 'FilterAnnotations', 'GTBoxSubOne_GLIP', 'GenerateEdge', 'Invert',
    'LoadAnnotations', 'LoadDepthAnnotation', 'LoadEmptyAnnotations', 'LoadImageFromFile',
    'LoadImageFromNDArray', 'LoadImageFromNpyFile', 'LoadMultiChannelImageFromFiles',
    'LoadPanopticAnnotations', 'LoadProposals', 'LoadSingleRSImageFromFile', 'LoadTextAnnotations',
    'Normalize', 'PhotoMetricDistortion', 'Posterize', 'RGB2Gray', 'RandomCutOut', 'RandomDepthMix',
    'RandomErasing', 'RandomGrayscale', 'RandomSamplingNegPos', 'Rerange', 'SegRescale',
    'Sharpness', 'Solarize', 'SolarizeAdd', 'YOLOXHSVRandomAug',
}  # fmt: skip

#: Stock transforms that contain others, and the argument that contains them.
WRAPPERS = {
    'AutoAugment': 'policies',
    'Compose': 'transforms',
    'ProposalBroadcaster': 'transforms',
    'RandAugment': 'aug_space',
    'RandomApply': 'transforms',
    'RandomChoice': 'transforms',
    'RandomOrder': 'transforms',
}

#: Why some stock transforms cannot be replayed.
REFUSED = {
    name: reason
    for reason, names in {
        'it mixes several images': (
            'CachedMixUp', 'CachedMosaic', 'CopyPaste', 'MixUp', 'Mosaic', 'RandomMosaic',
        ),
        'it moves objects inside the image': ('InstaBoost',),
        'it turns, shears or moves images by parts of a pixel': (
            'RandomAffine', 'RandomRotFlip', 'RandomRotate', 'Rotate', 'ShearX', 'ShearY',
            'TranslateX', 'TranslateY',
        ),
        'what it holds does not find the image where other transforms do': (
            'KeyMapper', 'MultiBranch', 'TransformBroadcaster',
        ),
        'it is for volumes': (
            'BioMedical3DPad', 'BioMedical3DRandomCrop', 'BioMedical3DRandomFlip',
        ),
    }.items()
    for name in names
}  # fmt: skip


#: Transforms whose images, whole at one scale, show the teacher what it saw for a cache.
FOLLOWED = {
    'FilterAnnotations', 'FixScaleResize', 'FixShapeResize', 'GTBoxSubOne_GLIP', 'GenerateEdge',
    'LoadAnnotations', 'LoadDepthAnnotation', 'LoadEmptyAnnotations', 'LoadImageFromFile',
    'LoadImageFromNDArray', 'LoadImageFromNpyFile', 'LoadMultiChannelImageFromFiles',
    'LoadPanopticAnnotations', 'LoadProposals', 'LoadSingleRSImageFromFile', 'LoadTextAnnotations',
    'PackDetInputs', 'PackSegInputs', 'Pad', 'Resize', 'ResizeShortestEdge', 'ResizeToMultiple',
    'SegRescale', 'WithoutLabels',
}  # fmt: skip


def not_followed(pipeline: Sequence[dict]) -> list[str]:
    """Lists the transforms whose images the teacher did not see when it saw each image whole.

    Maps of whole images, and of mirrored ones, are exactly the teacher's if there are none.

    Args:
        pipeline (Sequence[dict]): Configs of transforms.

    Returns:
        list[str]: Their types, each once.

    Examples:
        >>> steps = [dict(type='Resize', scale=(64, 64)), dict(type='RandomFlip', prob=0.5)]
        >>> not_followed(steps), not_followed([dict(type='RandomCrop'), *steps])
        ([], ['RandomCrop'])
    """
    found = []
    for step in pipeline:
        name = type_name(step['type'])
        across = name == 'RandomFlip' and step.get('direction', 'horizontal') == 'horizontal'
        if not across and name not in FOLLOWED:
            found.append(name)
    return list(dict.fromkeys(found))


@TRANSFORMS.register_module()
class Recorded:
    """Wraps a stock transform and records its step in ``results['mmkd_geometry']``.

    Results and random numbers are those of the transform. A transform that packs the inputs adds
    the :class:`Geometry` to the metainfo. :func:`recorded` adds this wrapper to a pipeline.

    Args:
        transform (dict): Config of a transform in :data:`REPLAYED`.

    Raises:
        ValueError: When it is called, if a transform before it changed the size of the image
            without recording it.

    Examples:
        >>> _ = __import__('mmcv.transforms')
        >>> crop = Recorded(dict(type='CenterCrop', crop_size=(4, 2)))
        >>> results = crop(dict(img=np.zeros((6, 6, 3))))
        >>> results['mmkd_geometry'].matrix[:2, 2]
        array([-1., -2.])
    """

    def __init__(self, transform: dict) -> None:
        self.transform = TRANSFORMS.build(transform)
        self.name = type(self.transform).__name__
        if REPLAYED[self.name] is _pack:
            self.transform.meta_keys = (*self.transform.meta_keys, KEY)

    def __iter__(self) -> Iterator[Callable]:
        """Yields the transform: mmcv iterates over wrappers to share random parameters."""
        return iter((self.transform,))

    def __call__(self, results: dict) -> dict | None:
        """Runs the transform and records its step.

        Args:
            results (dict): The results of the transforms before it.

        Returns:
            dict | None: The results of the transform, None if it drops the image.
        """
        geometry = results.setdefault(KEY, Geometry.of(_shape(results)))
        if _shape(results) != geometry.packed:
            raise ValueError(
                f'`{self.name}` got an image of {_shape(results)} (height, width), not the '
                f'{geometry.packed} that the replayed transforms before it gave: one between them '
                'that is ignored changes the size of images'
            )
        results, step = REPLAYED[self.name](self.transform, results)
        if step is not None:
            matrix, area = step
            results[KEY] = geometry.then(matrix, _shape(results), area)
        return results

    def __repr__(self) -> str:
        return f'Recorded({self.transform!r})'


def recorded(
    pipeline: Sequence[dict],
    scope: str | None,
    ignore: Sequence[str] = (),
    place: str = 'pipeline',
) -> list[dict]:
    """Returns a pipeline that does the same and records how it warps images.

    Each data sample gets a :class:`Geometry` in ``metainfo['mmkd_geometry']``. All other results
    and the random numbers stay the same.

    Args:
        pipeline (Sequence[dict]): Configs of transforms of mmcv, mmseg and mmdet.
        scope (str, optional): Scope of their names, ``'mmseg'`` or ``'mmdet'``. None is the default
            scope.
        ignore (Sequence[str]): Types of other transforms, as in the config, that leave each pixel
            in its place. Defaults to ``()``.
        place (str): Name of the pipeline in messages. Defaults to ``'pipeline'``.

    Returns:
        list[dict]: Configs of the transforms, some of them wrapped in :class:`Recorded`.

    Raises:
        ValueError: If a transform is unknown, or its effect on an image cannot be replayed.

    Examples:
        >>> _ = __import__('mmcv.transforms')
        >>> steps = recorded([dict(type='LoadImageFromFile'), dict(type='Pad', size=(8, 8))], None)
        >>> [step['type'] for step in steps]
        ['LoadImageFromFile', 'mmkd_plugin.Recorded']
    """
    with TRANSFORMS.switch_scope_and_registry(scope) as registry:
        return _recorded(list(pipeline), place, ignore, registry)


def _recorded(step: Any, place: str, ignore: Sequence[str], registry: Registry) -> Any:
    if isinstance(step, (list, tuple)):
        return [_recorded(s, f'{place}[{i}]', ignore, registry) for i, s in enumerate(step)]
    kind = step['type']
    found = registry.get(kind) if isinstance(kind, str) else kind
    name = as_written(kind)
    if getattr(found, '__module__', '').startswith('mmkd_plugin.'):
        return step  # the dumped config of a run has wrappers already
    known = _stock_name(found)
    if known in WRAPPERS:
        key = WRAPPERS[known]
        held = step[key] if key in step else inspect.signature(found).parameters[key].default
        return {**step, key: _recorded(held, f'{place}.{key}', ignore, registry)}
    if known in REPLAYED:
        if 'resize_type' in step:
            _check_resize(step['resize_type'], f'{place}.resize_type', registry)
        return dict(type='mmkd_plugin.Recorded', transform=step)
    if known in IGNORED or name in ignore:
        return step
    if known in REFUSED:
        raise ValueError(
            f'{place}: `{name}` cannot be replayed on stored maps: {REFUSED[known]}. {_REMEDY}'
        )
    if found is None:
        hint = did_you_mean(name, [*REPLAYED, *IGNORED, *WRAPPERS])
        raise ValueError(f'{place}: no transform `{name}` is registered{hint}')
    raise ValueError(
        f'{place}: what `{name}` does to an image is not known, so it cannot be replayed on stored '
        f"maps. If it leaves each pixel in its place, say ignore=('{name}',). {_REMEDY}"
    )


def _stock_name(found: type | None) -> str | None:
    stock = found is not None and found.__module__.split('.')[0] in ('mmcv', 'mmseg', 'mmdet')
    return found.__name__ if stock else None


def _check_resize(kind: Any, place: str, registry: Registry) -> None:
    found = registry.get(kind) if isinstance(kind, str) else kind
    if REPLAYED.get(_stock_name(found)) is not _resize:
        raise ValueError(f'{place}: `{kind}` is not a resize that can be replayed. {_REMEDY}')


_REMEDY = (
    'Else take it out of the training pipeline, or train with the teacher itself in place of its '
    'stored maps'
)


def record_training(cfg: Config, ignore: Sequence[str] = ()) -> None:
    """Makes all train pipelines of a config record how they warp images, in place.

    These are the pipelines of the data sets in ``train_dataloader``, that of the images without
    labels, and those that hooks switch to.

    Args:
        cfg (Config): A config with ``train_dataloader``.
        ignore (Sequence[str]): As for :func:`recorded`. Defaults to ``()``.

    Raises:
        ValueError: If one of them cannot be replayed, a data set mixes images, or the data
            preprocessor changes batches.
    """
    check_batch_augments(cfg)
    for holder, key, place in train_pipelines(cfg):
        holder[key] = recorded(holder[key], cfg.get('default_scope'), ignore, place)


def train_pipelines(cfg: Config) -> Iterator[tuple[dict, str, str]]:
    """Yields the train pipelines of a config.

    Args:
        cfg (Config): A config with ``train_dataloader``.

    Yields:
        tuple[dict, str, str]: The dict that has a pipeline, its key there, and its place in the
        config for messages.

    Raises:
        ValueError: If a wrapper of data sets has a pipeline of its own, which mixes images.
    """
    yield from _pipelines_of(cfg.train_dataloader['dataset'], 'train_dataloader.dataset')
    more = (cfg.get('model') or {}).get('unlabelled') or {}
    if isinstance(more.get('dataset'), dict) and not more.get('only'):
        yield from _pipelines_of(more['dataset'], 'unlabelled.dataset')
    for i, hook in enumerate(cfg.get('custom_hooks') or ()):
        if 'switch_pipeline' in hook:
            yield hook, 'switch_pipeline', f'custom_hooks[{i}].switch_pipeline'


def _pipelines_of(dataset: dict, place: str) -> Iterator[tuple[dict, str, str]]:
    inner = [(dataset['dataset'], f'{place}.dataset')] if 'dataset' in dataset else []
    for i, part in enumerate(dataset.get('datasets', ())):
        inner.append((part, f'{place}.datasets[{i}]'))
    if inner and dataset.get('pipeline'):
        raise ValueError(
            f'{place}: `{as_written(dataset["type"])}` has a pipeline around another data set, to '
            f'mix several images; that cannot be replayed on stored maps. {_REMEDY}'
        )
    for part in inner:
        yield from _pipelines_of(*part)
    if dataset.get('pipeline'):
        yield dataset, 'pipeline', f'{place}.pipeline'


def check_batch_augments(cfg: Config) -> None:
    """Refuses data preprocessors that change whole batches, which stored maps cannot follow.

    Raises:
        ValueError: If there is one.
    """
    model = cfg.get('model') or {}
    holders = {'': cfg, 'model.': model, 'model.student.': model.get('student') or {}}
    for place, holder in holders.items():
        augments = (holder.get('data_preprocessor') or {}).get('batch_augments') or ()
        for augment in [augments] if isinstance(augments, dict) else augments:
            if type_name(augment['type']) != 'BatchFixedSizePad':
                raise ValueError(
                    f'{place}data_preprocessor.batch_augments: `{as_written(augment["type"])}` '
                    f'changes whole batches, which cannot be replayed on stored maps. {_REMEDY}'
                )
