"""Loading: reads stored maps in the workers of a data loader and warps them as their images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor

from mmkd_plugin.cache.geometry import Geometry, inside, replay
from mmkd_plugin.cache.images import image_name, images_of
from mmkd_plugin.cache.recording import KEY
from mmkd_plugin.cache.store import Record, TeacherCache, mirrored
from mmkd_plugin.registry import HOOKS, TRANSFORMS
from mmkd_plugin.taps import Tap


def field_of(teacher: str) -> str:
    """Returns the name of the field of a data sample that carries a teacher's maps."""
    return f'mmkd_{teacher}'


def map_key(tap: Tap | str, number: int) -> str:
    """Returns the name of a map of a tap in that field."""
    return f'{tap}#{number}'


def warp(
    record: Record,
    strides: Sequence[Sequence[int]],
    fills: Sequence[Tensor],
    geometry: Geometry,
) -> list[Tensor]:
    """Warps stored maps as a pipeline warped their image.

    Args:
        record (Record): The stored maps of the image.
        strides (Sequence[Sequence[int]]): Strides of each map in height and width, pixels.
        fills (Sequence[Tensor]): ``(C,)`` for each map: its values in padding.
        geometry (Geometry): How the image was warped.

    Returns:
        list[Tensor]: Maps ``(C, H, W)`` in the size that the teacher returns for the warped image.
    """
    warped = []
    for maps, stride, fill in zip(record.maps, strides, fills):
        size = [-(-side // s) for side, s in zip(geometry.packed, stride)]
        canvas = [count * s for count, s in zip(size, stride)]
        # in pixels of the image as loaded; the teacher may have seen it in another size
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

    It is the last transform of a train pipeline, and :func:`wire` adds it. The maps are in a field
    of their own, which only a :class:`CachedTeacher` reads.

    Args:
        path (str): Folder of the cache.
        taps (list[str]): Names of the records to read.
        root (str): The folder to which the names of images in the cache are relative.
        name (str): Name of the teacher. Defaults to ``'teacher'``.

    Raises:
        ValueError: When it is called, if the cache has no maps of the image, a record is damaged,
            or the image has changed.

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
        """Adds the maps to ``results['data_samples']``.

        Args:
            results (dict): The results of a transform that packs the inputs.

        Returns:
            dict: The same dict.
        """
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
    """Checks before training that a cache has all training images.

    Args:
        path (str): Folder of the cache.
        root (str): The folder to which the names of images in the cache are relative.

    Raises:
        ValueError: Before training, if the cache lacks an image.

    Examples:
        >>> hook = CheckTeacherCache('work_dirs/cache', root='data/coco')
    """

    def __init__(self, path: str, root: str) -> None:
        self.cache = TeacherCache(path)
        self.root = root

    def before_train(self, runner: Runner) -> None:
        """Compares the training images with the cache.

        Args:
            runner (Runner): The runner of the training process.
        """
        images = images_of(runner.train_dataloader.dataset, self.root)
        missing = self.cache.missing(images)
        if missing:
            more = ', ...' if len(missing) > 3 else ''
            raise ValueError(
                f'{self.cache.path} lacks {len(missing)} of {len(images)} training images: '
                f'{", ".join(missing[:3])}{more}. Run tools/cache_teacher.py again as before, '
                'which adds what is missing; or is this another data set, or another `data_root`?'
            )
