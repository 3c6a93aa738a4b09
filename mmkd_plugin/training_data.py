"""Training data: looked at before training starts, and errors in it name the file."""

from __future__ import annotations

import copy
import json
import logging
import os
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import Compose
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from mmkd_plugin.annotations import fits
from mmkd_plugin.cache.images import all_transforms, leaves, wrappers_with_pipelines
from mmkd_plugin.cli import UsageError
from mmkd_plugin.distiller import Distiller
from mmkd_plugin.foreign import explained
from mmkd_plugin.registry import DATASETS, HOOKS
from mmkd_plugin.running.remembering import images_to_load, keeps_images
from mmkd_plugin.taps.example import library_of, random_state_kept
from mmkd_plugin.terms.without_labels import WIRING
from mmkd_plugin.unlabelled import Unlabelled
from mmkd_plugin.unlabelled.images import join, parts_of
from mmkd_plugin.words import did_you_mean, from_worker, short, some

#: Images whose files and boxes are looked up without loading them; of more, every n-th.
LISTED = 100_000
#: Transforms with a generator of their own, which nothing seeds for each image.
OWN_GENERATOR = ('Albu',)
#: Transforms of these packages leave the ids in label maps alone once the maps are loaded.
_STOCK = ('mmcv', 'mmdet', 'mmkd_plugin', 'mmseg')


class DataError(UsageError, ValueError):
    """A file of the data cannot be used; the message names it.

    A process that loads data hands its errors on as text. The message is taken out of it again.
    """

    def __init__(self, message: str) -> None:
        super().__init__(from_worker(message, type(self).__name__))


@dataclass(frozen=True)
class Expected:
    """What a model can learn from.

    Args:
        classes (int, optional): Labels are whole numbers from 0 to below this. Defaults to None:
            anything.
        ignored (int, optional): A further label, of pixels that do not count. Defaults to None.
        head (str): The module that says so. Defaults to nothing.
        label_map (bool): Whether each image needs a label map. Defaults to False.
    """

    classes: int | None = None
    ignored: int | None = None
    head: str = ''
    label_map: bool = False

    @classmethod
    def by(cls, model: nn.Module) -> Expected:
        """What a segmentor or a detector, or the student of a Distiller, expects."""
        learns = True
        if isinstance(model, Distiller):
            learns, model = model.task_weight > 0, model.student
        library = library_of(model)
        paths = ['decode_head'] if library == 'mmseg' else ['bbox_head', 'roi_head.bbox_head']
        for path in paths if library else ():
            head = _at(model, path)
            head = head[-1] if isinstance(head, nn.ModuleList) and len(head) else head
            classes = getattr(head, 'num_classes', None)
            if not isinstance(classes, int):
                continue
            if library == 'mmdet':
                return cls(classes, None, path)
            if getattr(head, 'out_channels', None) == 1:  # one score, for the second of two classes
                classes = max(classes, 2)
            labelled = learns and hasattr(head, 'loss_decode')
            return cls(classes, getattr(head, 'ignore_index', None), path, labelled)
        return cls()

    def without_labels(self) -> Expected:
        """What it expects of images without labels."""
        return Expected(head=self.head)

    def wrong(self, labels: np.ndarray) -> list[int]:
        """The ids among labels that the model does not know."""
        if self.classes is None or not labels.size:
            return []
        found = (labels >= self.classes) | (labels < 0)
        if self.ignored is not None:
            found &= labels != self.ignored
        return np.unique(labels[found]).tolist() if found.any() else []

    def told(self) -> str:
        """The labels that it knows, in words."""
        ignored = '' if self.ignored is None else f', and ignore_index={self.ignored}'
        return f'`{self.head}` knows 0 to {self.classes - 1} (num_classes={self.classes}{ignored})'


def _at(module: Any, path: str) -> Any:
    for part in path.split('.'):
        module = getattr(module, part, None)
    return module


class CheckedPipeline(Compose):
    """A pipeline whose errors name the file, and which refuses labels that the model cannot learn.

    Args:
        transforms (Sequence): Built transforms.
        expected (Expected): What the model can learn from.
        packs (bool): Whether its last step packs what the model is given; a wrapper of the data
            set does it elsewhere. Defaults to True.
        sizes (bool): Whether an image has to have the size that its annotations say. Defaults to
            False.

    Raises:
        DataError: When it is called, if a file is missing or cannot be used.
    """

    def __init__(
        self,
        transforms: Sequence[Any],
        expected: Expected,
        packs: bool = True,
        sizes: bool = False,
    ) -> None:
        self.transforms = transforms
        self.expected = expected
        self.packs = packs
        self.sizes = sizes

    def __call__(self, data: dict) -> dict | None:
        about = {key: data.get(key) for key in ('img_path', 'img_id', 'seg_map_path')}
        looked_at = False
        for transform in self.transforms:
            try:
                data = transform(data)
            except DataError:
                raise
            except Exception as error:
                raise DataError(_reason(error, transform, about)) from error
            if data is None:
                return None
            if not looked_at and _is_loaded(data):
                looked_at = True
                self._check_loaded(data, about)
        if self.packs:
            self.check_packed(data, about)
        return data

    def _check_loaded(self, data: dict, about: dict) -> None:
        """Compares an image with its labels as they were loaded."""
        shape, labels = data['img'].shape[:2], data.get('gt_seg_map')
        if min(shape) < 2:
            raise DataError(f'{_name(about)}: an image of {_size(shape)} pixels teaches nothing')
        said = data.get('height'), data.get('width')
        if self.sizes and all(said) and said != tuple(data.get('ori_shape', shape)[:2]):
            raise DataError(
                f'{_name(about)} has {_size(data.get("ori_shape", shape))} pixels (width×height), '
                f'and its annotations say {_size(said)}'
            )
        if labels is not None:
            where = about['seg_map_path'] or f'the label map of {_name(about)}'
            if labels.ndim != 2:
                raise DataError(
                    f'{where}: an array {labels.shape} is not a label map; it needs one channel '
                    'with the id of the class of each pixel'
                )
            if labels.shape not in (shape, tuple(data.get('ori_shape', shape)[:2])):
                raise DataError(
                    f'{where} has {_size(labels.shape)} pixels (width×height), and its image '
                    f'{about["img_path"]} has {_size(shape)}'
                )
            if all(type(t).__module__.partition('.')[0] in _STOCK for t in self.transforms):
                self._check_ids(labels, where)

    def check_packed(self, data: dict, about: dict) -> None:
        """Checks what the model is given.

        Args:
            data (dict): What the last step has made.
            about (dict): What the data set knows of the image.

        Raises:
            DataError: If the model cannot learn from it.
        """
        if self.expected.head and not (isinstance(data, dict) and 'inputs' in data):
            raise DataError(
                f'{_name(about)}: the pipeline gives no `inputs`; its last step packs them, such '
                "as dict(type='PackSegInputs') or dict(type='PackDetInputs')"
            )
        sample = data.get('data_samples') if isinstance(data, dict) else None
        if sample is None or isinstance(sample, (list, tuple)):
            return
        if 'gt_sem_seg' in sample and library_of_sample(sample) == 'mmseg':
            where = about['seg_map_path'] or f'the label map of {_name(about)}'
            self._check_ids(np.asarray(sample.gt_sem_seg.data), where)
        elif self.expected.label_map and not any(
            key.startswith('gt_') for key in sample.all_keys()
        ):
            raise DataError(
                f'{_name(about)}: it has no label map; the train pipeline needs a '
                "dict(type='LoadAnnotations') in front of what packs the inputs"
            )
        labels = getattr(sample.get('gt_instances'), 'labels', None)
        if labels is not None and library_of_sample(sample) == 'mmdet':
            self._check_ids(np.asarray(labels), f'{_name(about)}: the label of a box')

    def _check_ids(self, labels: np.ndarray, where: str) -> None:
        wrong = self.expected.wrong(labels)
        if wrong:
            ids = f'the id{"s" * (len(wrong) > 1)} {some(map(str, wrong), limit=5)}'
            raise DataError(f'{where} has {ids}, and {self.expected.told()}')


def library_of_sample(sample: Any) -> str:
    """The library of a data sample, ``'mmseg'`` or ``'mmdet'``."""
    return type(sample).__module__.partition('.')[0]


def _is_loaded(data: Any) -> bool:
    """Whether an image is there, with the labels that it will have."""
    labels = ('gt_seg_map', 'gt_bboxes', 'gt_bboxes_labels')
    shaped = isinstance(data, dict) and getattr(data.get('img'), 'ndim', 0) >= 2
    return shaped and any(key in data for key in labels)


def _name(about: dict) -> str:
    path = about.get('img_path')
    return str(path) if path is not None else f'image {about.get("img_id")}'


def _size(shape: Sequence[int]) -> str:
    return f'{shape[1]}×{shape[0]}'


def _reason(error: Exception, transform: Any, about: dict) -> str:
    """Why a transform failed, in one line that names a file."""
    kind, path, labels = type(transform).__name__, about['img_path'], about['seg_map_path']
    if type(error).__module__.startswith('mmkd_plugin') or _raised_here(error):
        return str(error)
    reads_labels = kind.startswith('LoadAnnotations')
    file = labels if reads_labels and labels else path
    if isinstance(error, KeyError) and error.args == ('seg_map_path',):
        return (
            f'{_name(about)}: it has no label map; the data set needs '
            'data_prefix=dict(seg_map_path=...)'
        )
    if isinstance(error, FileNotFoundError):
        return f'there is no {error.filename or file}, the file of {_name(about)}'
    if kind.startswith('Load') and isinstance(file, str) and Path(file).is_file():
        if Path(file).stat().st_size == 0:
            return f'{file}: the file is empty'
        if not reads_labels or labels:
            return f'{file}: the file cannot be read as an image ({_one_line(error)})'
    return f'{_name(about)}: {kind} failed: {_one_line(error)}'


def _raised_here(error: Exception) -> bool:
    """Whether an error was raised in this package, and so says what to do."""
    frames = list(traceback.walk_tb(error.__traceback__))
    module = frames[-1][0].f_globals.get('__name__', '') if frames else ''
    return isinstance(error, (OSError, ValueError)) and module.startswith('mmkd_plugin')


def _one_line(error: BaseException) -> str:
    text = ' '.join(str(error).split())
    return f'{type(error).__name__}: {text}' if text else type(error).__name__


# Before training ----------------------------------------------------------------------------------


def check_data(dataset: Any, expected: Expected, samples: int = 8, key: str = 'train') -> None:
    """Loads a few images of a data set, and looks up the files of all.

    The random state is kept, and so is that of the transforms.

    Args:
        dataset (BaseDataset): The data set, built, or a wrapper.
        expected (Expected): What the model can learn from.
        samples (int): How many images are loaded, spread over the data set. Defaults to 8.
        key (str): What the messages call the data, ``'train'``, ``'val'`` or ``'unlabelled'``.
            Defaults to ``'train'``.

    Raises:
        DataError: If there is no image, a file is missing or cannot be read, an image and its
            label map differ in size, or a label or a box cannot be learned from.
    """
    parts = [leaf for leaf in leaves(dataset) if hasattr(leaf, 'get_data_info')]
    for leaf in parts:
        if len(leaf) == 0:
            raise DataError(_without_images(leaf, key))
        _check_list(leaf, expected, key)
    around = list(wrappers_with_pipelines(dataset))
    inside = [leaf for wrapper in around for leaf in leaves(wrapper)]
    with random_state_kept():
        for leaf in parts:
            transforms = getattr(getattr(leaf, 'pipeline', None), 'transforms', None)
            if transforms is None:
                continue
            packs = leaf not in inside
            pipeline = CheckedPipeline(copy.deepcopy(transforms), expected, packs, sizes=True)
            for index in _spread(len(leaf), max(samples // len(parts), 1)):
                pipeline(leaf.get_data_info(index))
        for wrapper in around:
            _check_wrapper(wrapper, expected, max(samples // len(parts), 1))


def _check_wrapper(wrapper: Any, expected: Expected, samples: int) -> None:
    """Mixes a few images, and checks what the model would be given."""
    trial = copy.copy(wrapper)
    trial.pipeline = copy.deepcopy(wrapper.pipeline)
    checks = CheckedPipeline([], expected)
    for index in _spread(len(trial), samples):
        about = trial.get_data_info(index)
        try:
            mixed = trial[index]
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f'{_name(about)}: the pipeline of {type(wrapper).__name__} failed: '
                f'{_one_line(error)}'
            ) from error
        checks.check_packed(mixed, about)


def _check_switch(dataset: Any, expected: Expected, hook: Hook) -> None:
    """Tries the pipeline that a hook puts in place of that of the data set, late in training."""
    key, config = f'custom_hooks: {type(hook).__name__}.switch_pipeline', hook.switch_pipeline
    try:
        transforms = Compose(config).transforms
    except Exception as error:
        raise ValueError(explained(error, key, config)) from error
    pipeline = CheckedPipeline(transforms, expected)
    with random_state_kept():
        try:
            pipeline(next(leaves(dataset)).get_data_info(0))
        except DataError as error:
            raise DataError(f'{key}: {error}') from error


def warn_of_kept_state(dataset: Any) -> None:
    """Says of a resumed run which transforms have forgotten what they keep between images.

    Args:
        dataset (BaseDataset): The training data, built, or a wrapper.
    """
    forgets = images_to_load(dataset) is None
    names = dict.fromkeys(
        type(transform).__name__
        for transform in all_transforms(dataset)
        if (forgets and keeps_images(transform)) or type(transform).__name__ in OWN_GENERATOR
    )
    if names:
        print_log(
            f'--resume: {some(names)} of the pipeline kept images or random numbers of earlier '
            'iterations, and no checkpoint has them: the run goes on with other images than one '
            'that never ended. Mosaic and MixUp in a MultiImageMixDataset are resumed exactly',
            logger='current',
            level=logging.WARNING,
        )


def _spread(total: int, count: int) -> Iterator[int]:
    """Indices from the first to the last."""
    yield from dict.fromkeys(np.linspace(0, total - 1, min(count, total)).astype(int).tolist())


def _without_images(leaf: Any, key: str) -> str:
    prefix = getattr(leaf, 'data_prefix', None) or {}
    folder = prefix.get('img_path') or prefix.get('img') or getattr(leaf, 'data_root', None)
    file, suffix = getattr(leaf, 'ann_file', ''), getattr(leaf, 'img_suffix', None)
    if file:
        reason = f'{file} lists no image that is left after filtering'
    else:
        reason = f'no file in {folder}' + (f' ends with {suffix} (img_suffix)' if suffix else '')
    return f'{_place(key)} has no images: {reason}'


def _check_list(leaf: Any, expected: Expected, key: str) -> None:
    """Looks up what the data set knows of its images: their files, and their boxes."""
    classes = (getattr(leaf, 'metainfo', None) or {}).get('classes')
    if not fits(classes, list[str] | str | None):
        raise DataError(
            f'{_place(key)}.metainfo.classes must be the names of the classes, got {short(classes)}'
        )
    _check_categories(leaf, classes, key)
    transforms = getattr(getattr(leaf, 'pipeline', None), 'transforms', None) or ()
    fields = []
    if any(type(t).__name__ == 'LoadImageFromFile' and _is_local(t) for t in transforms):
        fields.append('img_path')
    if any(getattr(t, 'with_seg', False) and _is_local(t) for t in transforms):
        fields.append('seg_map_path')
    files = {field: [] for field in fields}
    boxes, listed = 0, range(0, len(leaf), -(-len(leaf) // LISTED))
    for index in listed:
        info = leaf.get_data_info(index)
        for field in fields:
            if isinstance(info.get(field), str):
                files[field].append(info[field])
        instances = info.get('instances')
        if instances is not None:
            boxes += len(instances)
            _check_boxes(instances, info, expected)
        else:
            boxes = max(boxes, 1)
    for field, paths in files.items():
        missing = _missing(paths)
        if missing:
            what = 'images' if field == 'img_path' else 'label maps'
            raise DataError(
                f'{_place(key)}: there is no {missing[0]}; {len(missing)} of '
                f'{len(paths)} {what} are missing'
            )
    if not boxes and key == 'train':
        raise DataError(
            f'{_place(key)}: none of its {len(leaf)} images has a box of a class that '
            f'is trained; does {getattr(leaf, "ann_file", "") or "its annotation file"} call the '
            f'classes {some(classes or (), limit=5)}, as `metainfo` does?'
        )


def _check_categories(leaf: Any, classes: Any, key: str) -> None:
    """Refuses names of classes of which a COCO file has some alone: mmdet would count labels anew.

    Of none, that is found by the boxes.
    """
    known = getattr(leaf, 'cat_ids', None)
    if not known or isinstance(classes, str) or len(known) >= len(classes or ()):
        return
    names = [one['name'] for one in json.loads(Path(leaf.ann_file).read_bytes())['categories']]
    missing = [name for name in classes if name not in names]
    raise DataError(
        f'{_place(key)}.metainfo.classes names {some(map(repr, missing), limit=5)}, and '
        f'{leaf.ann_file} has the categories {some(names, limit=5)}'
        f'{did_you_mean(missing[0], names)}'
    )


def _check_boxes(instances: Sequence[dict], info: dict, expected: Expected) -> None:
    name = _name(info)
    for one in instances:
        box, label = one.get('bbox'), one.get('bbox_label')
        if one.get('ignore_flag'):
            continue
        if isinstance(label, int) and expected.wrong(np.array([label])):
            raise DataError(f'{name}: a box has the label {label}, and {expected.told()}')
        if not isinstance(box, (list, tuple)) or len(box) != 4:
            continue  # rotated boxes and the like
        left, top, right, bottom = box
        if not (right > left and bottom > top):
            raise DataError(f'{name}: the box {list(box)} (x1, y1, x2, y2) has no area')
        width, height = info.get('width') or right, info.get('height') or bottom
        if left >= width or top >= height or right <= 0 or bottom <= 0:
            raise DataError(
                f'{name}: the box {list(box)} (x1, y1, x2, y2) lies outside the image of '
                f'{width}×{height} pixels'
            )


def _is_local(transform: Any) -> bool:
    """Whether a transform reads files of this machine and needs them all."""
    backend = getattr(transform, 'backend_args', None) or {}
    client = getattr(transform, 'file_client_args', None) or {}
    local = backend.get('backend', 'local') == client.get('backend', 'local') == 'local'
    return local and not getattr(transform, 'ignore_empty', False)


def _missing(paths: Sequence[str]) -> list[str]:
    """The paths where no file is; each folder is listed once."""
    folders = defaultdict(list)
    for path in paths:
        if '://' not in path:
            folders[os.path.dirname(path)].append(path)  # noqa: PTH120 (faster on many paths)
    missing = []
    for folder, inside in folders.items():
        try:
            names = {entry.name for entry in os.scandir(folder or '.')}
        except OSError:
            names = set()
        missing += [path for path in inside if os.path.basename(path) not in names]  # noqa: PTH119
    return missing


@HOOKS.register_module()
class CheckTrainingData(Hook):
    """Looks at the data before training starts: see :func:`check_data`.

    ``tools/train.py`` adds it. In a distributed run the first process looks.

    Args:
        samples (int): How many training images are loaded. Defaults to 8.

    Raises:
        ValueError: If ``samples`` is not above 0.

    Examples:
        >>> hook = CheckTrainingData(samples=4)
    """

    def __init__(self, samples: int = 8) -> None:
        if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
            raise ValueError(f'samples: expected a whole number above 0, got {samples!r}')
        self.samples = samples

    def before_train(self, runner: Runner) -> None:
        if not is_main_process():
            return
        model = _model_of(runner)
        expected, (dataset, *more) = Expected.by(model), parts_of(runner.train_dataloader.dataset)
        for one in more:
            check_data(one, expected.without_labels(), self.samples, 'unlabelled')
        if _learns_without_labels_only(model):
            check_data(dataset, expected.without_labels(), self.samples, 'unlabelled')
            expected = expected.without_labels()
        else:
            check_data(dataset, expected, self.samples)
        for hook in runner.hooks:
            if hasattr(hook, 'switch_pipeline'):
                _check_switch(dataset, expected, hook)
        if runner.val_loop is not None:
            check_data(runner.val_dataloader.dataset, Expected(), 1, 'val')


def _model_of(runner: Runner) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def watch_data(runner: Runner) -> None:
    """Builds the data of a run, and lets errors in it name the file: before training, and in it.

    Args:
        runner (Runner): A runner whose training has not started.

    Raises:
        DataError: If a data set cannot be built.
    """
    for key in ('train', 'val'):
        loader = getattr(runner, f'_{key}_dataloader', None)
        if isinstance(loader, dict):
            setattr(runner, f'_{key}_dataloader', _build(runner, loader, key))
    dataset = getattr(runner._train_dataloader, 'dataset', None)
    model, bare = _model_of(runner), None
    expected = Expected.by(model)
    more = getattr(model, 'unlabelled', None) if isinstance(model, Distiller) else None
    if _learns_without_labels_only(model):
        expected = expected.without_labels()
    elif more is not None:
        bare = _build_unlabelled(more)
        loader = runner._train_dataloader
        join(loader, bare, more.images(loader.batch_size), runner.seed)
    for one, kind in ((dataset, expected), (bare, expected.without_labels())):
        inside = [leaf for wrapper in wrappers_with_pipelines(one) for leaf in leaves(wrapper)]
        for leaf in leaves(one):
            pipeline = getattr(leaf, 'pipeline', None)
            if type(pipeline) is Compose:
                leaf.pipeline = CheckedPipeline(pipeline.transforms, kind, leaf not in inside)
    if not any(isinstance(hook, CheckTrainingData) for hook in runner.hooks):
        runner.register_hook(CheckTrainingData())


def watch_test_data(runner: Runner) -> None:
    """Builds the test data of a run, and lets errors in it name the file.

    Args:
        runner (Runner): A runner whose test has not started.

    Raises:
        DataError: If the data set cannot be built, or has no image.
    """
    if isinstance(runner._test_dataloader, dict):
        runner._test_dataloader = _build(runner, runner._test_dataloader, 'test')
    dataset = runner._test_dataloader.dataset
    for leaf in leaves(dataset):
        if len(leaf) == 0:
            raise DataError(_without_images(leaf, 'test'))
        pipeline = getattr(leaf, 'pipeline', None)
        if type(pipeline) is Compose:
            leaf.pipeline = CheckedPipeline(pipeline.transforms, Expected(), packs=False)


def _build(runner: Runner, loader: dict, key: str) -> Any:
    """Builds a data loader as the loop of the runner would."""
    different = runner._randomness_cfg.get('diff_rank_seed', False)
    with dataset_errors_named(key, loader):
        return runner.build_dataloader(loader, seed=runner.seed, diff_rank_seed=different)


@contextmanager
def dataset_errors_named(key: str, config: dict) -> Iterator[None]:
    """Names the data set, and the file, in errors of one that cannot be built.

    Args:
        key (str): What messages call the data, ``'train'``, ``'val'``, ``'test'`` or
            ``'unlabelled'``.
        config (dict): The config of the data loader, or of images without labels.

    Raises:
        DataError: In place of an error of a data set.
        ValueError: In place of an error of its config.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        dataset, place = _dataset_of(error), _place(key)
        if dataset is None:
            where = place if key == 'unlabelled' else f'{key}_dataloader'
            raise ValueError(explained(error, where, config)) from error
        here = f'{place} ({type(dataset).__name__})'
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise DataError(f'{here}: there is no {error.filename or error}') from error
        if getattr(dataset, 'data_list', None) == [] and type(error) is ValueError:
            raise DataError(_without_images(dataset, key)) from error
        file = getattr(dataset, 'ann_file', '')
        of = f' (of {file})' if file and str(file) not in str(error) else ''
        raise DataError(f'{here} cannot be built: {_one_line(error)}{of}') from error


def _place(key: str) -> str:
    """What messages call a data set."""
    return 'unlabelled.dataset' if key == 'unlabelled' else f'{key}_dataloader.dataset'


def _learns_without_labels_only(model: nn.Module) -> bool:
    settings = getattr(model, 'unlabelled', None) if isinstance(model, Distiller) else None
    return settings is not None and settings.only


def _build_unlabelled(settings: Unlabelled) -> Dataset:
    """Builds the data set of images without labels."""
    config = settings.dataset
    if not isinstance(config, dict):
        raise ValueError(WIRING)
    with dataset_errors_named('unlabelled', config):
        dataset = DATASETS.build(config)
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
    if len(dataset) == 0:
        raise DataError(_without_images(dataset, 'unlabelled'))
    return dataset


def _dataset_of(error: BaseException) -> Any:
    """The data set in whose code an error was raised, or None."""
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get('self')
        found = owner if isinstance(owner, Dataset) else found
    return found
