"""Images: folders of images without labels, and a data set of two parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.dist import get_rank, get_world_size
from torch.utils.data import DataLoader, Dataset

from mmkd_plugin.cache.drawn import DrawnViews
from mmkd_plugin.registry import DATASETS, FUNCTIONS

#: What tells the order of these images from other random numbers of a run.
ORDER = 3

#: Ends of the names of images.
SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


@DATASETS.register_module()
class ImageFolder(BaseDataset):
    """The images of a folder and of the folders in it, without labels.

    Args:
        data_root (str): The folder.
        ann_file (str): A text file with the name of an image in each line, from the folder on.
            Defaults to ``''``: all images that are there.
        **kwargs: Arguments of mmengine's ``BaseDataset``, such as ``pipeline``.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If there is no image.

    Examples:
        >>> train_dataloader = dict(
        ...     dataset=dict(type='mmkd_plugin.ImageFolder', data_root='data/more', pipeline=[]))
    """

    def __init__(self, data_root: str, ann_file: str = '', **kwargs: Any) -> None:
        super().__init__(ann_file=ann_file, data_root=data_root, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Lists the images in the order of their names."""
        root = Path(self.data_root)
        if not root.is_dir():
            raise FileNotFoundError(2, 'there is no such folder', str(root))
        if self.ann_file:
            lines = Path(self.ann_file).read_text(encoding='utf-8').splitlines()
            files = [root / line.strip() for line in lines if line.strip()]
        else:
            files = [file for file in root.rglob('*') if file.suffix.lower() in SUFFIXES]
        return [
            dict(img_path=str(file), img_id=number, seg_fields=[], instances=[])
            for number, file in enumerate(sorted(files))
        ]

    def get_data_info(self, idx: int) -> dict:
        """What is known of an image, with the size that samplers by aspect ratio ask for."""
        info = super().get_data_info(idx)
        return {**info, **size_of(info['img_path'])}


def size_of(file: str) -> dict[str, int]:
    """Width and height of an image, from the head of its file; nothing if it says none."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            return dict(width=image.width, height=image.height)
    except OSError:
        return {}


class Order:
    """The images that come with each batch: all once in random order, then all again.

    It is a function of the number of the batch, so a resumed run goes on with the same images.
    View ``v`` of image ``i`` has the number ``i + total · v``; each pass takes another view.

    Args:
        total (int): Number of images.
        count (int): Images for a batch, in each process.
        seed (int): Seed of the run.
        views (int): Number of views of each image. Defaults to 1.

    Examples:
        >>> order = Order(total=4, count=2, seed=0)
        >>> sorted(order(0) + order(1))
        [0, 1, 2, 3]
    """

    def __init__(self, total: int, count: int, seed: int, views: int = 1) -> None:
        self.total, self.count, self._key = total, count, (seed, ORDER)
        self.views = views
        self._first = np.random.default_rng((seed, ORDER)).integers(views, size=total)
        self._passes: dict[int, np.ndarray] = {}

    def __call__(self, number: int) -> list[int]:
        """The images of this process for a batch.

        Args:
            number (int): Number of the batch in the run.
        """
        start = (number * get_world_size() + get_rank()) * self.count
        return [self._at(position) for position in range(start, start + self.count)]

    def _at(self, position: int) -> int:
        turn, place = divmod(position, self.total)
        if turn not in self._passes:
            generator = np.random.default_rng(np.random.SeedSequence((*self._key, turn)))
            kept = {turn - 1: self._passes[turn - 1]} if turn - 1 in self._passes else {}
            self._passes = {**kept, turn: generator.permutation(self.total)}
        image = int(self._passes[turn][place])
        return image + self.total * ((int(self._first[image]) + turn) % self.views)


class Bare(dict):
    """What a pipeline made of an image without labels."""


class Joined(Dataset):
    """Labelled images, and behind them those without labels.

    Those without have the indices -1, -2 and on. In everything else it is the data set of the
    labelled images.

    Args:
        labelled (Dataset): The labelled images.
        unlabelled (Dataset): The others.
        order (Callable): The indices of those that come with a batch, by its number.
    """

    def __init__(
        self, labelled: Dataset, unlabelled: Dataset, order: Callable[[int], Sequence[int]]
    ) -> None:
        self.__dict__.update(labelled=labelled, unlabelled=unlabelled, order=order)

    @property
    def datasets(self) -> list[Dataset]:
        """The two parts."""
        return [self.labelled, self.unlabelled]

    def beside(self, number: int) -> list[int]:
        """Indices, in this data set, of the images without labels for a batch."""
        return [-1 - index for index in self.order(number)]

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, index: int) -> Any:
        return self.labelled[index] if index >= 0 else Bare(self.unlabelled[-1 - index])

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or 'labelled' not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__['labelled'], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.labelled, name, value)  # hooks switch pipelines so

    def update_skip_type_keys(self, keys: Sequence[str]) -> None:
        """Leaves transforms out from now on, as mmdet's ``MultiImageMixDataset`` does."""
        for dataset in self.datasets:
            if hasattr(dataset, 'update_skip_type_keys'):
                dataset.update_skip_type_keys(keys)


class Collate:
    """Makes a batch of the labelled images, with one of the others in it.

    Args:
        collate (Callable): Makes a batch.
    """

    def __init__(self, collate: Callable[[Sequence[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: Sequence[Any]) -> dict[str, Any]:
        batch = self.collate([item for item in items if not isinstance(item, Bare)])
        others = self.collate([dict(item) for item in items if isinstance(item, Bare)])
        return {**batch, 'unlabelled': others}


@FUNCTIONS.register_module()
def collate_without_labels(
    items: Sequence[Any], collate_fn: dict | Callable | None = None
) -> dict[str, Any]:
    """Makes a batch of images without labels alone, and says so in it.

    Args:
        items (Sequence): What a pipeline made of the images.
        collate_fn (dict | Callable, optional): Makes the batch, as the key of a data loader in
            mmengine. Defaults to None: mmengine's ``pseudo_collate``.

    Examples:
        >>> collate_without_labels([dict(inputs=1), dict(inputs=2)])
        {'inputs': [1, 2], 'unlabelled': True}
    """
    if isinstance(collate_fn, dict):
        rest = dict(collate_fn)
        kind = rest.pop('type')
        collate_fn = partial(FUNCTIONS.get(kind) if isinstance(kind, str) else kind, **rest)
    return {**(collate_fn or pseudo_collate)(items), 'unlabelled': True}


def join(loader: DataLoader, unlabelled: Dataset, count: int, seed: int) -> None:
    """Has each batch of a data loader carry images without labels.

    Which ones is decided by :class:`~mmkd_plugin.running.randomness.SeededBatches`.

    Args:
        loader (DataLoader): The loader of the labelled images, changed in place; nothing was loaded
            yet.
        unlabelled (Dataset): The other images.
        count (int): How many of them come with a batch.
        seed (int): Seed of the run.
    """
    views = unlabelled.views if isinstance(unlabelled, DrawnViews) else 1
    order = Order(len(unlabelled), count, seed, views)
    # a DataLoader refuses plain assignments
    object.__setattr__(loader, 'dataset', Joined(loader.dataset, unlabelled, order))
    loader.collate_fn = Collate(loader.collate_fn)


def parts_of(dataset: Any) -> list[Any]:
    """A data set, or the labelled images and the others if it is :class:`Joined`."""
    return dataset.datasets if isinstance(dataset, Joined) else [dataset]
