"""Checkpoints: reading them safely, and loading all of one or saying which part does not fit."""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.fileio import get_local_path
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mmkd_plugin.checkpoint_errors import CheckpointError, existing_file, explain, nearest_names
from mmkd_plugin.checkpoint_fit import hint, load_fitting, prefix_hint, program
from mmkd_plugin.prefixes import behind, is_counter, parts, unwrapped
from mmkd_plugin.stack import UNPICKLING_ERRORS, safe_load, safe_loading
from mmkd_plugin.words import some

__all__ = [
    'METADATA_KEY',
    'STATE_VERSION',
    'CheckpointError',
    'check_records',
    'check_student_weights',
    'check_values',
    'checked_state',
    'distillation_state',
    'load_state',
    'load_weights',
    'meta_of',
    'nearest_names',
    'read_checkpoint',
    'read_data',
    'state_dict_of',
]

METADATA_KEY = 'mmkd'
"""A distilled state dict keeps everything but the student in ``_metadata[''][METADATA_KEY]``."""

_WEIGHTS_KEYS = ('state_dict', 'model')
_READ_ERRORS = (pickle.UnpicklingError, RuntimeError, ValueError, OSError, MemoryError)
STATE_VERSION = 1
"""Version of the entry :data:`METADATA_KEY`."""

_SLACK = 2**26
"""Bytes that tensors may take beyond what the file holds: views that repeat a value."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint to the CPU without running any code that it may hold.

    Args:
        path (str | Path): A file, or an address from which mmengine loads (``https://``,
            ``open-mmlab://``, ``s3://``, ...), in PyTorch's format or as ``.safetensors``.

    Returns:
        dict[str, Any]: The content of the file; :func:`state_dict_of` finds the weights in it.

    Raises:
        FileNotFoundError: If a local file is missing; the message names similar files.
        CheckpointError: If the file is damaged, is not a checkpoint, holds no weights, or holds
            something else than data.
    """
    path = str(path)
    checkpoint = read_data(path)
    _check_size(state_dict_of(checkpoint, path), path)
    return checkpoint


def read_data(path: str) -> Any:
    """Reads a file of any content as :func:`read_checkpoint` does, which need not be weights.

    Args:
        path (str): The file or address.

    Raises:
        FileNotFoundError: If a local file is missing; the message names similar files.
        CheckpointError: If the file is damaged, or holds something else than data.
    """
    if '://' not in path:
        path = str(existing_file(path))
    try:
        if path.endswith('.safetensors'):
            return _read_safetensors(path)
        if '://' in path:
            return _read_remote(path)
        check_records(path)
        return safe_load(path, map_location='cpu')
    except CheckpointError:
        raise
    except _READ_ERRORS as error:
        raise CheckpointError(explain(path, error)) from error


def state_dict_of(checkpoint: Any, name: str | Path = 'the checkpoint') -> OrderedDict[str, Tensor]:
    """Finds the weights in a checkpoint.

    Args:
        checkpoint (dict): As :func:`read_checkpoint` returns it: the weights under ``state_dict``
            or ``model``, or the weights themselves.
        name (str | Path): Name of the checkpoint in an error. Defaults to ``'the checkpoint'``.

    Returns:
        OrderedDict[str, Tensor]: The weights and their ``_metadata``, without the ``module.`` that
        a wrapper puts before every key.

    Raises:
        CheckpointError: If there are no weights.
    """
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(
            f'{name} holds a {type(checkpoint).__name__}, not a dict with the weights of a model'
        )
    weights: Any = checkpoint
    for key in _WEIGHTS_KEYS:
        if isinstance(checkpoint.get(key), Mapping):
            weights = checkpoint[key]
            break
    odd = [key for key in (*checkpoint, *weights) if not isinstance(key, str)]
    if odd:
        raise CheckpointError(
            f'{name} is damaged: a name in it is a {type(odd[0]).__name__}, not a text'
        )
    tensors = OrderedDict((k, v) for k, v in weights.items() if isinstance(v, Tensor))
    if not tensors:
        keys = some(map(repr, checkpoint)) or 'none at all'
        raise CheckpointError(
            f'{name} holds no weights: expected tensors under `state_dict`, under `model` or at '
            f'the top, found the keys {keys}'
        )
    for key, value in tensors.items():
        if value.layout != torch.strided or value.is_meta:
            raise CheckpointError(f'{name} is damaged: {key} in it is not an ordinary tensor')
    metadata = _metadata_of(weights, name)
    tensors._metadata = metadata
    return behind(tensors, 'module.') if all(k.startswith('module.') for k in tensors) else tensors


def meta_of(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a checkpoint says of itself under ``meta``; nothing if it says nothing.

    Args:
        checkpoint (Mapping[str, Any]): As :func:`read_checkpoint` returns it.

    Examples:
        >>> meta_of(dict(meta=dict(epoch=3))), meta_of(dict(meta=5))
        ({'epoch': 3}, {})
    """
    meta = checkpoint.get('meta')
    return meta if isinstance(meta, Mapping) else {}


def distillation_state(state_dict: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Returns the state that the Distiller keeps beside the student's weights.

    Args:
        state_dict (Mapping[str, Tensor]): A model's state dict.

    Returns:
        dict[str, Any] | None: The state, or None if a Distiller did not write the state dict.
    """
    metadata = getattr(state_dict, '_metadata', None) or {}
    return checked_state(metadata.get('', {}).get(METADATA_KEY))


def checked_state(saved: Any, name: str | Path = 'the checkpoint') -> dict[str, Any] | None:
    """What the Distiller keeps beside the student's weights, if it can be used.

    Args:
        saved (Any): The entry of the metadata, or None.
        name (str | Path): Name of the checkpoint in an error. Defaults to ``'the checkpoint'``.

    Raises:
        CheckpointError: If it was written by a later version of this package, or is damaged.
    """
    if saved is None:
        return None
    version = saved.get('version') if isinstance(saved, Mapping) else None
    if type(version) is int and version > STATE_VERSION:
        raise CheckpointError(
            f'{name} was written by a later version of this package: the state of its '
            f'distillation has version {version}, and this one reads version {STATE_VERSION}'
        )
    state = saved.get('state') if version == STATE_VERSION else None
    tensors = state.values() if isinstance(state, Mapping) else [None]
    if not all(isinstance(value, Tensor) for value in tensors):
        raise CheckpointError(f'{name} is damaged: the state of its distillation cannot be read')
    return saved


def load_weights(
    model: nn.Module,
    path: str | Path,
    strict: bool = True,
    name: str = 'teacher',
    lenient: str | None = '`strict=False`',
) -> dict[str, Any]:
    """Loads a checkpoint into a model and checks that it fits.

    The model's own ``load_state_dict`` loads the weights, so it converts checkpoints of older
    versions as usual.

    Args:
        model (nn.Module): The model that receives the weights.
        path (str | Path): The checkpoint, as for :func:`read_checkpoint`.
        strict (bool): Whether every weight of the model needs a value, and every tensor of the
            file a place in the model if the model has that component (``backbone``, ``neck``,
            ...). If False, the same facts are logged as a warning. Defaults to True.
        name (str): Name of the model in messages. Defaults to ``'teacher'``.
        lenient (str, optional): What users set for ``strict=False``, in messages; None if there is
            nothing. Defaults to that.

    Returns:
        dict[str, Any]: What the file holds.

    Raises:
        FileNotFoundError: If a local file is missing.
        ValueError: If the file cannot be read, if none of its tensors fits, or, with ``strict``, if
            one does not fit.
    """
    checkpoint = read_checkpoint(path)
    load_state(model, state_dict_of(checkpoint, path), path, strict, name, lenient)
    return checkpoint


def load_state(
    model: nn.Module,
    state_dict: OrderedDict[str, Tensor],
    path: str | Path,
    strict: bool = True,
    name: str = 'teacher',
    lenient: str | None = '`strict=False`',
) -> None:
    """Loads weights that are in memory, as :func:`load_weights` loads those of a file.

    Args:
        model (nn.Module): The model that receives the weights.
        state_dict (OrderedDict[str, Tensor]): The weights, as :func:`state_dict_of` returns them.
        path (str | Path): Origin of the weights in messages.
        strict (bool): As for :func:`load_weights`. Defaults to True.
        name (str): Name of the model in messages. Defaults to ``'teacher'``.
        lenient (str, optional): As for :func:`load_weights`.

    Raises:
        ValueError: If none of the tensors fits, or, with ``strict``, if one does not fit.
    """
    own = model.state_dict()
    state_dict, where = _part_for(own, state_dict, path, name)
    check_values(own, state_dict, path, name)
    fit = load_fitting(model, state_dict)
    brought = getattr(model, 'weights_from', None)
    if fit.matched == 0 and brought:
        raise CheckpointError(
            f'{path} has nothing in common with the {name}, whose weights are those at {brought} '
            'already: write checkpoint=None'
        )
    if fit.matched == 0:
        raise CheckpointError(
            f'{path} has nothing in common with the {name}: none of its {len(state_dict)} tensors '
            f'fits one of its {fit.expected}.\n{fit.describe(path)}'
            f'{hint(model, state_dict, fit, path)}'
        )
    if fit.is_complete:
        loaded = f'Loaded the {name} from {path}: all {fit.expected} tensors{where}.'
        if fit.other_components:
            loaded += f' The {name} has no {some(fit.other_components)}; left out.'
        print_log(loaded, logger='current')
        return
    report = f'{fit.describe(path)}{hint(model, state_dict, fit, path)}'
    if strict:
        advice = '' if lenient is None else f'\nIf that is intended, {lenient} accepts it.'
        raise CheckpointError(f'{path} does not fit the {name}.\n{report}{advice}')
    print_log(
        f'{path} does not fit the {name}; going on because of {lenient}.\n{report}',
        logger='current',
        level=logging.WARNING,
    )


def _part_for(
    own: Mapping[str, Tensor], state_dict: OrderedDict[str, Tensor], path: str | Path, name: str
) -> tuple[OrderedDict[str, Tensor], str]:
    """The part of a file that is a model, and words on where it was; all of it if none is."""
    expected = {key: value.shape for key, value in own.items()}
    state_dict = unwrapped(state_dict, expected)
    whole = [part.prefix for part in parts(expected, state_dict) if part.whole]
    if not whole or '' in whole:
        return state_dict, ''
    if len(whole) > 1:
        raise CheckpointError(
            f'{path} holds {len(whole)} models that fit the {name}, behind the prefixes '
            f'{some(f"`{prefix}`" for prefix in whole)}. Say which one it is by saving it alone: '
            f'{program(path, whole[0])}'
        )
    return behind(state_dict, whole[0]), f', behind the prefix `{whole[0]}`'


def check_student_weights(
    expected: Mapping[str, torch.Size], state_dict: Mapping[str, Tensor], distilled: bool
) -> None:
    """Refuses weights that are clearly not the student's.

    mmengine logs the differences and goes on, so a wrong ``load_from`` would show in the score
    alone. A part of the student (a backbone, a model with other classes) is accepted, except from a
    distilled checkpoint, which always holds a whole student.

    Args:
        expected (Mapping[str, torch.Size]): The student's keys and their shapes.
        state_dict (Mapping[str, Tensor]): The weights to load.
        distilled (bool): Whether they come from a distilled checkpoint.

    Raises:
        ValueError: If the weights cover less than a tenth of the student's tensors and some do not
            fit, or, with ``distilled``, if they cover less than half of the student's tensors or of
            the file's.
    """
    expected = {key: shape for key, shape in expected.items() if not is_counter(key)}
    given = {key: value.shape for key, value in state_dict.items() if not is_counter(key)}
    matched = sum(given.get(key) == shape for key, shape in expected.items())
    # A deep and a shallow sibling share most names of the shallow one, so both sides count.
    too_few = matched < max(len(expected), len(given)) / 2
    # A classifier of the same width fits many other models: a few matches among others count as
    # none. A few that are all there is are a part that somebody chose.
    nothing = matched < len(expected) / 10 and not 0 < matched == len(given)
    if not expected or not (nothing or (distilled and too_few)):
        return
    facts = (
        f"{matched} of the student's {len(expected)} tensors match one of the file's {len(given)} "
        f'in name and shape; the student has {some(expected, limit=5)}; '
        f'the file has {some(given, limit=5)}'
    )
    if distilled:
        raise CheckpointError(
            f'this looks like the distilled checkpoint of another student: {facts}'
        )
    advice = prefix_hint(expected, state_dict)
    raise CheckpointError(f'these are not the weights of the student: {facts}{advice}')


def check_values(
    expected: Mapping[str, Tensor],
    state_dict: Mapping[str, Tensor],
    path: str | Path = 'the checkpoint',
    name: str = 'student',
) -> None:
    """Refuses weights of another kind than the model's, and those that are not finite.

    Args:
        expected (Mapping[str, Tensor]): The model's own state dict, before it loads anything.
        state_dict (Mapping[str, Tensor]): The weights to load.
        path (str | Path): Origin of the weights in messages. Defaults to ``'the checkpoint'``.
        name (str): Name of the model in messages. Defaults to ``'student'``.

    Raises:
        CheckpointError: If there are such weights; the message names them.
    """
    kinds, values = [], []
    for key, own in expected.items():
        value = state_dict.get(key)
        if not isinstance(value, Tensor) or not own.is_floating_point():
            continue
        if not value.is_floating_point():
            kinds.append(f'{key} ({str(value.dtype).removeprefix("torch.")})')
        elif not _is_finite(value) and _is_finite(own):
            bad = value.numel() - int(torch.isfinite(value).sum())
            values += [f'{key} ({bad} of {value.numel()})'] if bad else []
    if kinds:
        raise CheckpointError(
            f'{path} does not hold the weights of the {name}: these are not floating-point '
            f'numbers in the file: {some(kinds, limit=5)}'
        )
    if values:
        raise CheckpointError(
            f'{path} holds weights of the {name} that are NaN or infinite: '
            f'{some(values, limit=5)}; take an earlier checkpoint of that training'
        )


def _is_finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value.double().sum()))


# What a file holds --------------------------------------------------------------------------------


def check_records(path: str | Path) -> None:
    """Compares the checksums in a file of ``torch.save`` with its content; torch does not.

    Args:
        path (str | Path): The file. One in torch's older format has no checksums.

    Raises:
        CheckpointError: If a record is damaged, or takes more memory than the file has bytes.
    """
    if not zipfile.is_zipfile(path):
        return
    name = ''
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            _check_sizes(records, path)
            if not any(record.CRC for record in records):
                return  # torch was told to compute none
            for record in records:
                name = record.filename
                with archive.open(record) as stream:
                    while stream.read(2**20):
                        pass
    except CheckpointError:
        raise
    except (*_READ_ERRORS, *UNPICKLING_ERRORS) as error:
        if not name:
            raise CheckpointError(explain(str(path), error)) from error
        raise CheckpointError(
            f'{path} is damaged: the checksum of {name} in it does not fit; copy or download it '
            'again'
        ) from error


def _check_sizes(records: Sequence[zipfile.ZipInfo], path: str | Path) -> None:
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise CheckpointError(
            f'{path} is compressed, as no file of `torch.save` is, and is not read: it may take '
            'any amount of memory'
        )
    if sum(record.file_size for record in records) > Path(path).stat().st_size:
        raise CheckpointError(f'{path} is damaged: its records are larger than the file')


def _check_size(state_dict: Mapping[str, Tensor], path: str) -> None:
    """Refuses tensors that take far more memory than the file has bytes."""
    for key, value in state_dict.items():
        size = value.numel() * value.element_size()
        if size > value.untyped_storage().nbytes() + _SLACK:
            raise CheckpointError(
                f'{path} is damaged: {key} in it is {tuple(value.shape)}, of which the file holds '
                f'{value.untyped_storage().nbytes()} bytes'
            )
    if '://' not in path:
        held = {
            v.untyped_storage().data_ptr(): v.untyped_storage().nbytes()
            for v in state_dict.values()
        }
        if sum(held.values()) > Path(path).stat().st_size + _SLACK:
            raise CheckpointError(f'{path} is damaged: its tensors are larger than the file')


def _metadata_of(weights: Mapping[str, Tensor], name: str | Path) -> OrderedDict[str, Any]:
    metadata = getattr(weights, '_metadata', None) or {}
    if not isinstance(metadata, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Mapping) for key, value in metadata.items()
    ):
        raise CheckpointError(f'{name} is damaged: the `_metadata` of its weights cannot be read')
    checked_state(metadata.get('', {}).get(METADATA_KEY), name)
    return OrderedDict(metadata)


# Files of other kinds -----------------------------------------------------------------------------


def _read_remote(path: str) -> Any:
    try:
        with safe_loading():
            return CheckpointLoader.load_checkpoint(path, map_location='cpu')
    except KeyError as error:
        raise CheckpointError(f'{path}: mmengine knows no such model ({error})') from error
    except UNPICKLING_ERRORS as error:
        raise CheckpointError(explain(path, error)) from error


def _read_safetensors(path: str) -> OrderedDict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(
            f'{path} needs the package safetensors: pip install safetensors'
        ) from error
    with get_local_path(path) as local:
        try:
            return OrderedDict(load_file(str(local), device='cpu'))
        except SafetensorError as error:
            raise CheckpointError(explain(path, error)) from error
