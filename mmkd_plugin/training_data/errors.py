"""Errors in data: they name the data set and the file."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import Dataset

from mmkd_plugin.beside import beside_a_config
from mmkd_plugin.cli import UsageError
from mmkd_plugin.foreign import built_by, explained
from mmkd_plugin.words import from_worker


class DataError(UsageError, ValueError):
    """A file of the data cannot be used; the message names it.

    A process that loads data hands its errors on as text. The message is taken out of it again.
    """

    def __init__(self, message: str) -> None:
        super().__init__(from_worker(message, type(self).__name__))


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
        dataset, place = _dataset_of(error), place_of(key)
        if dataset is None or _is_of_a_part(error):
            where = place if key == 'unlabelled' else f'{key}_dataloader'
            raise ValueError(explained(error, where, config)) from error
        here = f'{place} ({type(dataset).__name__})'
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            missing = str(error.filename or error)
            raise DataError(f'{here}: there is no {missing}{beside_a_config(missing)}') from error
        if _has_listed_nothing(dataset, error):
            raise DataError(without_images(dataset, key)) from error
        file = getattr(dataset, 'ann_file', '')
        of = f' (of {file})' if file and str(file) not in str(error) else ''
        raise DataError(f'{here} cannot be built: {one_line(error)}{of}') from error


def one_line(error: BaseException) -> str:
    """The kind of an error and its message, in one line."""
    text = ' '.join(str(error).split())
    return f'{type(error).__name__}: {text}' if text else type(error).__name__


def place_of(key: str) -> str:
    """What messages call a data set."""
    return 'unlabelled.dataset' if key == 'unlabelled' else f'{key}_dataloader.dataset'


def without_images(leaf: Any, key: str) -> str:
    prefix = getattr(leaf, 'data_prefix', None) or {}
    folder = prefix.get('img_path') or prefix.get('img') or getattr(leaf, 'data_root', None)
    file, suffix = getattr(leaf, 'ann_file', ''), getattr(leaf, 'img_suffix', None)
    if file:
        reason = f'{file} lists no image that is left after filtering'
    else:
        reason = f'no file in {folder}' + (f' ends with {suffix} (img_suffix)' if suffix else '')
    return f'{place_of(key)} has no images: {reason}'


def _is_of_a_part(error: BaseException) -> bool:
    """Whether a part of a data set could not be built, such as a transform, or could not be found.

    A file that a part lacks is none of its settings.
    """
    kinds = built_by(error)
    missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
    of_a_dataset = bool(kinds) and isinstance(kinds[-1], type) and issubclass(kinds[-1], Dataset)
    return bool(kinds) and not (of_a_dataset or missing)


def _has_listed_nothing(dataset: Any, error: BaseException) -> bool:
    """Whether mmengine could not store the list of images of a data set, which has none."""
    steps = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
    stored = 'full_init' in steps and 'load_data_list' not in steps
    return stored and getattr(dataset, 'data_list', None) == [] and type(error) is ValueError


def _dataset_of(error: BaseException) -> Any:
    """The data set in whose code an error was raised, or None."""
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get('self')
        found = owner if isinstance(owner, Dataset) else found
    return found
