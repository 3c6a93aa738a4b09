"""Drawn views: an image as its train pipeline drew it, drawn again from a number.

A view is a seed: that of the image's name and the number of the view. The pipeline gives the same
image, labels and boxes from the same seed, whatever its transforms are, so a cache needs neither
pixels nor notes on crops. :class:`DrawnViews` draws a view and adds the maps that the teacher gave
for it; :class:`ViewsInTurn` says which view of an image comes next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS as ALL_SAMPLERS
from mmengine.registry import DATASETS as ALL_DATASETS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from mmkd_plugin.cache.images import image_name, kind_of, plain
from mmkd_plugin.cache.loading import field_of, map_key
from mmkd_plugin.cache.recording import check_batch_augments
from mmkd_plugin.cache.store import CacheError, TeacherCache, drawn_differences, of_view
from mmkd_plugin.registry import DATA_SAMPLERS, DATASETS, HOOKS
from mmkd_plugin.seeds import seeded
from mmkd_plugin.words import as_written, short

#: First word of the seeds of views.
VIEW = 0x76696577

#: What to type if a cache does not fit.
ANEW = 'Write another one: python tools/cache_teacher.py CONFIG --views 8 --out ANOTHER_FOLDER'

#: What of the config of a data set decides what it draws.
DRAWS = ('type', 'pipeline', 'skip_type_keys', 'max_refetch')

#: Stock transforms that mix in images of earlier calls, and those to take in place of them.
REMEMBERS = dict(CachedMosaic='Mosaic', CachedMixUp='MixUp')

#: Keys and types of hooks that change a pipeline during training.
SWITCHING = ('switch_pipeline', 'skip_type_keys')
SWITCHES = ('YOLOXModeSwitchHook',)

#: Begins the names of images without labels: the same image with labels is drawn in another way.
WITHOUT_LABELS = 'unlabelled:'

#: How far the same image may be off on another machine, relative to its brightest square.
ALIKE = 0.02


def draw(dataset: Any, index: int, name: str, view: int) -> Any:
    """Draws a view of an image. The random numbers of the caller stay as they are.

    Args:
        dataset (BaseDataset): A built data set with its train pipeline, or a wrapper.
        index (int): Index of the image.
        name (str): Its name in caches.
        view (int): Number of the view, from 0.

    Returns:
        Any: What the data set gives for the image.
    """
    number = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), 'big')
    with seeded(VIEW, number, view):
        return dataset[index]


def picture_of(image: Tensor) -> list[float]:
    """Returns a few numbers by which an image is known again: means of squares and channels.

    Args:
        image (Tensor): ``(C, H, W)``.

    Examples:
        >>> import torch
        >>> picture_of(torch.full((1, 6, 6), 80))
        [80.0, 80.0, 80.0, 80.0, 80.0, 80.0, 80.0, 80.0, 80.0, 80.0]
    """
    return [float(f'{number:.3g}') for number in _means(image).tolist()]


def is_pictured(image: Tensor, picture: Sequence[float]) -> bool:
    """Returns whether an image is the one that :func:`picture_of` has seen.

    Processors round colours in their own ways, so a small difference is none.
    """
    found = _means(image)
    if len(found) != len(picture):
        return False
    off = np.abs(found - picture).max()
    return bool(off <= ALIKE * np.abs(picture).max() + 1e-6)


def _means(image: Tensor) -> np.ndarray:
    """The means of nine squares of an image ``(C, H, W)``, then those of its channels."""
    rows, cols = (max(side // 64, 1) for side in image.shape[1:])
    few = image[:, ::rows, ::cols].float()
    high, wide = (_thirds(side) for side in few.shape[1:])
    found = (high @ few @ wide.T).numpy()
    return np.concatenate([found[:, :3, :3].mean(0).ravel(), found[:, 3, 3]])


@lru_cache
def _thirds(side: int) -> Tensor:
    """Takes the means of the thirds of a side, and of the whole: ``(4, side)``."""
    ends = [(third * side // 3, -(-(third + 1) * side // 3)) for third in range(3)] + [(0, side)]
    rows = torch.zeros(len(ends), side)
    for row, (start, end) in zip(rows, ends):
        row[start:end] = 1 / (end - start)
    return rows


@DATASETS.register_module()
class DrawnViews(Dataset):
    """A data set whose images are drawn as a teacher has seen them, with the maps that it gave.

    ``len()`` is the number of images. Index ``i + len · v`` is view ``v`` of image ``i``.
    :func:`wire` puts it around the data set of a config.

    Args:
        dataset (dict | Dataset): The data set, or its config.
        caches (Sequence[dict]): For each cached teacher its ``path``, ``taps`` and ``name``.
            Defaults to none: nothing is added.
        root (str): The folder to which the names of images in the caches are relative. Defaults to
            none.
        prefix (str): What their names begin with. Defaults to nothing.
        views (int): How many views of each image are shown, where no sampler of views decides it.
            Defaults to 1.

    Raises:
        ValueError: When an item is read, if a cache has no maps of the view, a record is damaged,
            or the view is drawn otherwise than for the teacher.

    Examples:
        >>> from torch.utils.data import TensorDataset
        >>> len(DrawnViews(TensorDataset(__import__('torch').rand(3, 2))))
        3
    """

    def __init__(
        self,
        dataset: Any,
        caches: Sequence[dict] = (),
        root: str = '',
        prefix: str = '',
        views: int = 1,
    ) -> None:
        self.dataset = ALL_DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.caches = [(TeacherCache(c['path']), list(c['taps']), c['name']) for c in caches]
        self.root, self.prefix, self.views = root, prefix, views
        self._names: dict[int, str] = {}  # to look one up unpickles what is known of the image

    @property
    def metainfo(self) -> dict:
        """That of the data set."""
        return self.dataset.metainfo

    def full_init(self) -> None:
        """Loads the annotations of the data set."""
        self.dataset.full_init()

    def get_data_info(self, index: int) -> dict:
        """What the data set knows of an image."""
        return self.dataset.get_data_info(index % len(self))

    def name_of(self, index: int) -> str:
        """The name of an image in caches."""
        if index not in self._names:
            name = image_name(self.dataset.get_data_info(index), self.root)
            self._names[index] = self.prefix + name
        return self._names[index]

    def names(self) -> list[str]:
        """The names of all images, by their indices."""
        return [self.name_of(index) for index in range(len(self))]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        view, index = divmod(int(index), len(self))
        name = self.name_of(index)
        data, known = draw(self.dataset, index, name, view), None
        for cache, taps, teacher in self.caches:
            element = BaseDataElement()
            for tap in taps:
                record = cache.read(name, of_view(tap, view))
                if record.picture != known and not is_pictured(data['inputs'], record.picture):
                    raise CacheError(
                        f'view {view} of {name} is another image than the one that the teacher saw '
                        f'for {cache.path}: the file has changed, or a transform of your own, or a '
                        f'library that transforms use. {ANEW}'
                    )
                known = record.picture
                for number, maps in enumerate(record.maps):
                    element.set_field(torch.from_numpy(maps), map_key(tap, number))
            data['data_samples'].set_field(element, field_of(teacher))
        return data


@DATA_SAMPLERS.register_module()
class ViewsInTurn(Sampler):
    """A sampler that shows each image in another of its views in each pass over the data.

    It takes the order of the images from another sampler. View ``(first + pass) mod views`` is
    shown, where ``first`` is drawn for each image. So a view comes back after ``views`` passes.

    Args:
        dataset (DrawnViews): The data set.
        sampler (dict): Config of the other sampler.
        views (int): Number of views of each image.
        seed (int, optional): Seed of both. Defaults to None: drawn, the same in all processes.

    Examples:
        >>> from mmkd_plugin.cache.drawn import ViewsInTurn
        >>> inner = dict(type='DefaultSampler', shuffle=False)
        >>> turns = ViewsInTurn(range(3), inner, views=2, seed=0)
        >>> sorted(index % 3 for index in turns)
        [0, 1, 2]
    """

    def __init__(self, dataset: Any, sampler: dict, views: int, seed: int | None = None) -> None:
        seed = sync_random_seed() if seed is None else seed
        self.dataset, self.views = dataset, views
        self.sampler = ALL_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=seed))
        self.first = np.random.default_rng(seed).integers(views, size=len(dataset))
        self.epoch = self.done = 0
        if hasattr(self.sampler, 'skip'):  # mmengine skips with it if it is there
            self.skip = self._skip

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        size, (rank, processes) = len(self.dataset), get_dist_info()
        for done, index in enumerate(self.sampler, self.done):
            turn = self.epoch + (done * processes + rank) // size
            yield index + size * ((int(self.first[index]) + turn) % self.views)

    def set_epoch(self, epoch: int) -> None:
        """Begins an epoch, for samplers that end."""
        self.sampler.set_epoch(epoch)
        self.epoch = epoch

    def _skip(self, samples: int) -> None:
        """Begins behind so many images of this process."""
        self.sampler.skip(samples)
        self.done = samples


@HOOKS.register_module()
class CheckDrawnViews(Hook):
    """Checks before training that a cache has all views of these images, in this order.

    Args:
        path (str): Folder of the cache.

    Raises:
        ValueError: Before training, if the images are others, or the cache lacks a view.

    Examples:
        >>> hook = CheckDrawnViews('work_dirs/cache')
    """

    def __init__(self, path: str) -> None:
        self.cache = TeacherCache(path)

    def before_train(self, runner: Runner) -> None:
        """Compares the training images with the cache.

        Args:
            runner (Runner): The runner of the training process.
        """
        dataset = runner.train_dataloader.dataset  # behind the images with labels those without
        parts = [dataset] if isinstance(dataset, DrawnViews) else dataset.datasets
        names = [name for part in parts for name in part.names()]
        if digest_of(names) != self.cache.meta['drawn']['images']:
            raise ValueError(
                f'{self.cache.path} was written for other training images, or for another order of '
                f'them: here are {len(names)}, such as {names[0]}. {ANEW}'
            )
        missing = self.cache.missing(dict.fromkeys(names))
        if missing:
            raise ValueError(
                f'{self.cache.path} lacks views of {len(missing)} of {len(names)} training images, '
                f'such as {missing[0]}. Run tools/cache_teacher.py again as before'
            )


def digest_of(names: Iterable[str]) -> str:
    """A digest of names in their order."""
    return blake2b('\0'.join(names).encode(), digest_size=8).hexdigest()


# Configs ------------------------------------------------------------------------------------------


def innermost(dataset: dict) -> Iterator[dict]:
    """Yields the configs of the data sets inside wrappers."""
    inside = [dataset['dataset']] if 'dataset' in dataset else dataset.get('datasets', ())
    if not inside:
        yield dataset
    for one in inside:
        yield from innermost(one)


def parts_drawn(cfg: Config) -> dict[str, dict]:
    """The configs of the data sets that are drawn, by what the names of their images begin with.

    Args:
        cfg (Config): A config with ``train_dataloader``.

    Raises:
        ValueError: If its images without labels have no pipeline yet.
    """
    parts = {'': cfg.train_dataloader['dataset']}
    more = (cfg.get('model') or {}).get('unlabelled')
    if more is not None and not more.get('only'):
        if not isinstance(more['dataset'], Mapping):
            raise ValueError(
                'unlabelled.dataset has no pipeline yet: call complete(cfg) of '
                'mmkd_plugin.unlabelled.pipelines before wire(cfg)'
            )
        parts[WITHOUT_LABELS] = more['dataset']
    return parts


def drawn_from(cfg: Config) -> dict[str, Any]:
    """Returns what decides which views a config draws, but for the images, to compare two.

    Args:
        cfg (Config): A config with ``train_dataloader``.

    Returns:
        dict[str, Any]: ``dataset``, the pipelines with their wrappers; ``preprocessor``; and
        ``unlabelled``, the pipelines of images without labels, if there are any.

    Raises:
        ValueError: If the views of this config cannot be drawn again.
    """
    parts = parts_drawn(cfg)
    check_batch_augments(cfg)
    for i, hook in enumerate(cfg.get('custom_hooks') or ()):
        if kind_of(hook) in SWITCHES or any(key in hook for key in SWITCHING):
            raise ValueError(
                f'custom_hooks[{i}]: `{as_written(hook["type"])}` changes the pipeline during '
                'training, and the views of a cache are drawn from one pipeline. Take the hook out'
            )
    for prefix, dataset in parts.items():
        _check_transforms(dataset, 'unlabelled.dataset' if prefix else 'train_dataloader.dataset')
    found = dict(dataset=_outline(parts['']), preprocessor=plain(preprocessor_of(cfg)))
    if WITHOUT_LABELS in parts:
        found['unlabelled'] = _outline(parts[WITHOUT_LABELS])
    return found


def _check_transforms(dataset: Mapping, place: str) -> None:
    """Refuses transforms whose views cannot be drawn again."""
    for step, here in _transforms(dataset, place):
        if kind_of(step) in REMEMBERS:
            raise ValueError(
                f'{here}: `{as_written(step["type"])}` mixes in images of earlier calls, so its '
                f'views cannot be drawn again; take `{REMEMBERS[kind_of(step)]}` in a '
                '`MultiImageMixDataset`'
            )


def preprocessor_of(cfg: Config) -> dict | None:
    """Returns the config of the data preprocessor of a student."""
    model = cfg.get('model') or {}
    student = model.get('student') or {}
    own = student.get('data_preprocessor') or model.get('data_preprocessor')
    return own or cfg.get('data_preprocessor')


def _check_kind(config: Mapping, here: str) -> None:
    if 'type' not in config:
        raise CacheError(f"{here} has no `type`: expected dict(type='...')")
    kind = config['type']
    if not (callable(kind) or (isinstance(kind, str) and kind.strip())):
        raise CacheError(f'{here}.type must be the name of a class, got {short(kind)}')


def _outline(dataset: dict) -> dict[str, Any]:
    found = plain({key: dataset[key] for key in DRAWS if key in dataset})
    if 'dataset' in dataset:
        found['dataset'] = _outline(dataset['dataset'])
    if 'datasets' in dataset:
        found['datasets'] = [_outline(one) for one in dataset['datasets']]
    return found


def _transforms(config: Any, place: str) -> Iterator[tuple[dict, str]]:
    """Yields the dicts with a type inside a config, and their places."""
    if isinstance(config, Mapping):
        if 'type' in config:
            yield config, place
        for key, value in config.items():
            yield from _transforms(value, f'{place}.{key}')
    elif isinstance(config, (list, tuple)):
        for i, value in enumerate(config):
            yield from _transforms(value, f'{place}[{i}]')


def check_drawn(cache: TeacherCache, cfg: Config) -> None:
    """Checks that a config draws the views that a cache has.

    Args:
        cache (TeacherCache): A cache of views.
        cfg (Config): The config of a run, not wired yet.

    Raises:
        CacheError: If it draws others, with the first difference; or if it cannot draw.
    """
    preprocessor = preprocessor_of(cfg)
    if isinstance(preprocessor, Mapping):
        _check_kind(preprocessor, 'student.data_preprocessor')
    different = drawn_differences(cache.meta['drawn'], drawn_from(cfg))
    if different:
        raise CacheError(
            f'{cache.path} holds views of another train pipeline: {different[0]}. {ANEW}'
        )
