"""The state dict of a Distiller: the student's keys in front, all other state in the metadata."""

from __future__ import annotations

import logging
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from mmkd_plugin.checkpoint import (
    METADATA_KEY,
    STATE_VERSION,
    check_student_weights,
    check_values,
    checked_state,
)

#: Parts of a Distiller whose state a checkpoint keeps in the metadata, beside the student.
BESIDE = ('distill', 'self_teachers')


def put_student_in_front(
    module: nn.Module, destination: dict, prefix: str, local_metadata: dict
) -> None:
    """Turns the state dict of a Distiller into the student's, as a state-dict hook.

    The student's keys lose their prefix. The state of terms and self-teachers moves to the
    metadata. All other keys are dropped.

    Args:
        module (nn.Module): The Distiller.
        destination (dict): The state dict, changed in place.
        prefix (str): Prefix of the Distiller's keys in a larger model.
        local_metadata (dict): The metadata of the Distiller, changed in place.
    """
    start, beside = f'{prefix}student.', {}
    for key in [key for key in destination if key.startswith(prefix)]:
        value = destination.pop(key)
        if key.startswith(start):
            destination[prefix + key[len(start) :]] = value
        elif key.startswith(tuple(f'{prefix}{part}.' for part in BESIDE)):
            beside[key[len(prefix) :]] = value.detach().cpu()
    metadata = getattr(destination, '_metadata', {})
    for key in [key for key in metadata if f'{key}.'.startswith(start)]:
        metadata[(prefix + key[len(start) :]).rstrip('.')] = metadata[key]
    local_metadata[METADATA_KEY] = dict(version=STATE_VERSION, state=beside)
    metadata[prefix[:-1]] = local_metadata


def take_student_from_front(
    module: nn.Module, state_dict: dict, prefix: str, local_metadata: dict
) -> None:
    """Turns the state dict of a student, and the state beside it, into that of a Distiller.

    Terms and self-teachers that the checkpoint has no state for keep theirs, and the log says so.

    Args:
        module (nn.Module): The Distiller.
        state_dict (dict): The state dict, changed in place.
        prefix (str): Prefix of the Distiller's keys in a larger model.
        local_metadata (dict): The metadata of the Distiller.

    Raises:
        ValueError: If the weights are not the student's.
    """
    expected = module.student.state_dict()
    given = {key[len(prefix) :]: key for key in state_dict if key.startswith(prefix)}
    # A hook that loads by the names of modules gives the parts beside the student too.
    found = {key: full for key, full in given.items() if key in expected or not _is_beside(key)}
    saved = checked_state(local_metadata.get(METADATA_KEY))
    if found or not given:
        held = {key: state_dict[full] for key, full in found.items()}
        shapes = {key: value.shape for key, value in expected.items()}
        check_student_weights(shapes, held, distilled=saved is not None)
        check_values(expected, held, 'the checkpoint of the student')
    for key, full in found.items():
        state_dict[f'{prefix}student.{key}'] = state_dict.pop(full)
    metadata = getattr(state_dict, '_metadata', None)
    if metadata is not None:  # the student's modules read their version there
        start = f'{prefix}student'
        for key in [key for key in metadata if f'{key}.'.startswith(prefix)]:
            if not key.startswith(start):
                metadata.setdefault(f'{start}.{key[len(prefix) :]}'.rstrip('.'), metadata[key])
    for key in module.data_preprocessor.state_dict():
        value = state_dict.get(f'{prefix}student.data_preprocessor.{key}')
        if value is not None:
            state_dict[f'{prefix}data_preprocessor.{key}'] = value
    _take_beside(module, state_dict, prefix, None if saved is None else saved['state'])


def _is_beside(key: str) -> bool:
    return key.startswith(tuple(f'{part}.' for part in BESIDE))


def name_as_the_student(module: nn.Module, incompatible: Any) -> None:
    """Hook after loading: messages name the student's keys as the file does.

    Args:
        module (nn.Module): The Distiller; it noted where it lies and the list of its errors.
        incompatible (Any): Its missing and unexpected keys, changed in place.
    """
    prefix, errors = module.__dict__.pop('_loading', ('', []))
    start = f'{prefix}student.'
    for keys in (incompatible.missing_keys, incompatible.unexpected_keys):
        named = [prefix + key[len(start) :] if key.startswith(start) else key for key in keys]
        keys[:] = dict.fromkeys(named)
    errors[:] = [error.replace(f' for {start}', f' for {prefix}') for error in errors]


def _take_beside(
    module: nn.Module, state_dict: dict, prefix: str, saved: dict[str, Tensor] | None
) -> None:
    """Adds the state of terms and self-teachers: the saved one where it fits, else their own."""
    own = {
        f'{part}.{key}': value
        for part in BESIDE
        for key, value in getattr(module, part).state_dict().items()
    }
    missing = []
    for key, value in own.items():
        if prefix + key in state_dict:
            continue
        if saved is not None:
            if key in saved and saved[key].shape == value.shape:
                value = saved[key]
            else:
                missing.append(key)
        state_dict[prefix + key] = value
    if missing:
        print_log(
            f'The checkpoint has no fitting state for {", ".join(missing)}: '
            'this part of the distillation starts afresh.',
            logger='current',
            level=logging.WARNING,
        )
