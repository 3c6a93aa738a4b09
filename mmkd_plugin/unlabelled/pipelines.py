"""Pipelines: the train pipeline of labelled images, for images without labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from mmkd_plugin.cache.images import kind_of
from mmkd_plugin.checkpoint_errors import nearest_names
from mmkd_plugin.registry import DATASETS, TRANSFORMS
from mmkd_plugin.unlabelled.settings import Unlabelled

#: Settings with which stock transforms look at labels, and the values with which they do not.
OFF = dict(allow_negative_crop=True, cat_max_ratio=1.0)


@TRANSFORMS.register_module()
class WithoutLabels:
    """Takes the place of a transform that loads labels: there are none.

    Later transforms and models find empty labels: no boxes, and a label map in which all pixels
    are ignored. Labels that the data set knows are not read.

    Args:
        load (dict): Config of the transform whose place it takes.
        ignore_index (int): The label of ignored pixels. Defaults to 255.

    Examples:
        >>> import numpy as np
        >>> _ = __import__('mmcv.transforms')
        >>> without = WithoutLabels(dict(type='mmengine.LoadAnnotations'))  # mmcv's own
        >>> without(dict(img=np.zeros((2, 2, 3))))['gt_seg_map'].tolist()
        [[255, 255], [255, 255]]
    """

    def __init__(self, load: dict, ignore_index: int = 255) -> None:
        self.load = TRANSFORMS.build(load)
        self.ignore_index = ignore_index
        self.boxes = type(self.load).__module__.partition('.')[0] == 'mmdet'

    def __iter__(self) -> Iterator[Callable]:
        """Yields nothing: mmcv iterates over wrappers to share random parameters."""
        return iter(())

    def __call__(self, results: dict) -> dict:
        """Adds empty labels.

        Args:
            results (dict): The results of the transforms before it, with the image.

        Returns:
            dict: The same dict.
        """
        results.update(instances=[], seg_map_path=None)
        if self.boxes:
            return self.load(results)
        results['gt_seg_map'] = np.full(results['img'].shape[:2], self.ignore_index, np.uint8)
        results.setdefault('seg_fields', []).append('gt_seg_map')
        return results

    def __repr__(self) -> str:
        return f'WithoutLabels({type(self.load).__name__}, ignore_index={self.ignore_index})'


def without_labels(
    pipeline: Sequence[Any], scope: str | None = None, ignore_index: int = 255
) -> list[Any]:
    """Returns a pipeline that does the same to images, and reads no labels.

    Args:
        pipeline (Sequence[dict]): Configs of transforms.
        scope (str, optional): Scope of their names. Defaults to None: the default scope.
        ignore_index (int): The label of ignored pixels. Defaults to 255.

    Returns:
        list[dict]: Configs of transforms. Those that load labels are replaced, those that drop
        images without objects are left out, and crops do not look at labels.

    Examples:
        >>> pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
        >>> [step['type'] for step in without_labels(pipeline)]
        ['LoadImageFromFile', 'mmkd_plugin.WithoutLabels']
    """
    with TRANSFORMS.switch_scope_and_registry(scope) as registry:
        return [
            _without_labels(step, registry, ignore_index)
            for step in pipeline
            if kind_of(step) != 'FilterAnnotations'
        ]


def _without_labels(step: Any, registry: Any, ignore_index: int) -> Any:
    if isinstance(step, (list, tuple)):
        return [_without_labels(one, registry, ignore_index) for one in step]
    kind = kind_of(step)
    if kind == 'WithoutLabels':
        return step
    if kind.startswith('Load') and 'Annotation' in kind:
        load = dict(step)
        return dict(type='mmkd_plugin.WithoutLabels', load=load, ignore_index=ignore_index)
    if 'transforms' in step:
        inner = [_without_labels(one, registry, ignore_index) for one in step['transforms']]
        return {**step, 'transforms': inner}
    found = registry.get(step['type']) if isinstance(step['type'], str) else step['type']
    known = inspect.signature(found).parameters if found is not None else ()
    return {**step, **{key: value for key, value in OFF.items() if key in known}}


def complete(cfg: Config) -> None:
    """Gives the images without labels of a config their pipeline, in place.

    A folder becomes the config of a data set. If only these images are trained on, they become the
    training set. It does nothing if there are none, or if it was called before.

    Args:
        cfg (Config): Config of a run, with ``train_dataloader``.

    Raises:
        ValueError: If the settings cannot be used, or there is no such folder.
    """
    settings = Unlabelled.from_config(cfg.model.get('unlabelled'))
    if settings is None:
        return
    dataset, labelled = settings.dataset, cfg.train_dataloader['dataset']
    if isinstance(dataset, str):
        if not Path(dataset).is_dir():
            raise ValueError(
                f'unlabelled.dataset: there is no folder {dataset}{nearest_names(dataset)}'
            )
        metainfo = _metainfo(labelled, cfg.get('default_scope'))
        dataset = dict(type='mmkd_plugin.ImageFolder', data_root=dataset, metainfo=metainfo)
    scope, ignored = cfg.get('default_scope'), _ignore_index(cfg.model.get('student'))
    cfg.model.unlabelled.dataset = _like(labelled, dict(dataset), scope, ignored)
    if settings.only:
        cfg.train_dataloader.dataset = cfg.model.unlabelled.dataset
        cfg.train_dataloader.collate_fn = _said_in(cfg.train_dataloader.get('collate_fn'))


def _said_in(collate_fn: Any) -> dict:
    """The ``collate_fn`` of a data loader, whose batches say that they have no labels."""
    kind = 'mmkd_plugin.collate_without_labels'
    if collate_fn is None:
        return dict(type=kind)
    if isinstance(collate_fn, dict) and collate_fn.get('type') == kind:
        return collate_fn
    return dict(type=kind, collate_fn=collate_fn)


def _like(labelled: dict, dataset: dict, scope: str | None, ignored: int) -> dict:
    """A data set with the pipeline of another one, and in the wrapper that mixes its images."""
    if _inner(dataset) or 'pipeline' in dataset:
        made = dict(dataset)
        for key in ('dataset', 'datasets'):
            inner = dataset.get(key)
            if isinstance(inner, dict):
                made[key] = _like(labelled, dict(inner), scope, ignored)
            elif inner:
                made[key] = [_like(labelled, dict(one), scope, ignored) for one in inner]
        if 'pipeline' in dataset:
            made['pipeline'] = without_labels(dataset['pipeline'], scope, ignored)
        return made
    around = _inner(labelled)
    if not around:
        pipeline = without_labels(labelled.get('pipeline') or (), scope, ignored)
        return {**dataset, 'pipeline': pipeline}
    made = _like(around[0], dataset, scope, ignored)
    if not labelled.get('pipeline'):
        return made
    return {
        **labelled,
        'dataset': made,
        'pipeline': without_labels(labelled['pipeline'], scope, ignored),
    }


def _inner(dataset: dict) -> list[dict]:
    """The configs of the data sets in a wrapper."""
    return [*(dataset.get('datasets') or ()), *filter(None, [dataset.get('dataset')])]


def _metainfo(labelled: dict, scope: str | None) -> dict:
    """What a labelled data set says of its classes."""
    while _inner(labelled):
        labelled = _inner(labelled)[0]
    kind = labelled.get('type')
    with DATASETS.switch_scope_and_registry(scope) as registry:
        found = registry.get(kind) if isinstance(kind, str) else kind
    return {**(getattr(found, 'METAINFO', None) or {}), **(labelled.get('metainfo') or {})}


def _ignore_index(student: Any) -> int:
    """The label of pixels that the student ignores, as far as its config says it."""
    head = student.get('decode_head') if isinstance(student, dict) else None
    head = head[-1] if isinstance(head, (list, tuple)) and head else head
    return head.get('ignore_index', 255) if isinstance(head, dict) else 255
