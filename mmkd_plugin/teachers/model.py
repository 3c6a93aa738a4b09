"""The model of a teacher: builds it from its config, and hashes config and weights."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmkd_plugin import stack
from mmkd_plugin.checkpoint import nearest_names, read_checkpoint, state_dict_of
from mmkd_plugin.foreign import errors_named
from mmkd_plugin.libraries import import_reason, scope_problem
from mmkd_plugin.registry import MODELS, named
from mmkd_plugin.taps.example import library_of
from mmkd_plugin.teachers.classes import (
    Names,
    classes_as_numbered,
    classes_of_config,
    reduces_zero_label,
)
from mmkd_plugin.words import path_text, type_name

stack.prepare()  # `mmseg::` paths work with both stacks of OpenMMLab


def model_config(config: str | dict, name: str) -> tuple[dict, str | None]:
    """Reads the model dict in the config of a teacher.

    Args:
        config (str | dict): Path of a config file, a ``pkg::`` path, or a model dict.
        name (str): Name of the teacher in messages.

    Returns:
        tuple[dict, str | None]: The model dict, without pretrained weights, and the scope in which
        it is built. The model of a distilled run is its student.

    Raises:
        ValueError: If the config has no model, or its library cannot be imported.
        FileNotFoundError: If the file does not exist.
    """
    if isinstance(config, str):
        cfg = _read_config(config, name)
        if 'model' not in cfg:
            raise ValueError(f"teacher '{name}': {config} has no `model`")
        if problem := scope_problem(cfg):
            raise ValueError(f"teacher '{name}': {problem}")
        model, scope = cfg.model, cfg.get('default_scope')
        if cfg.get('data_preprocessor') is not None:
            model.setdefault('data_preprocessor', cfg.data_preprocessor)
    else:
        model, scope = Config(dict(model=config)).model, None
    if type_name(model.get('type')).endswith('Distiller'):  # the student of that run teaches here
        model = model.student
    model = without_pretraining(model)
    scope = model.pop('_scope_', scope)
    return model, scope


def data_in_config(
    config: str | dict, name: str, said: Names | None
) -> tuple[Names | None, bool | None]:
    """What the config of a teacher says of its data; nothing is known of a model dict.

    Args:
        config (str | dict): As for :func:`model_config`.
        name (str): Name of the teacher in messages.
        said (tuple[str, ...], optional): The classes that its checkpoint says.

    Returns:
        tuple: The classes in the order of its scores, and ``reduce_zero_label`` of its data set;
        None where it is not known.
    """
    if not isinstance(config, str):
        return said, None
    cfg = _read_config(config, name)
    names = classes_as_numbered(cfg, said or classes_of_config(cfg), f"teacher '{name}'", config)
    return names, reduces_zero_label(cfg)


#: What prepares the images of a library's models.
PREPROCESSORS = dict(mmseg='SegDataPreProcessor', mmdet='DetDataPreprocessor')


def build_model(config: str | dict, name: str) -> nn.Module:
    """Builds the model of a teacher.

    Args:
        config (str | dict): As for :func:`model_config`.
        name (str): Name of the teacher in messages.

    Returns:
        nn.Module: The model, with its initial weights.

    Raises:
        ValueError: If the config has no model, the model is not an mmengine ``BaseModel``, or one
            of a library does not say how its images are normalised.
        FileNotFoundError: If the file does not exist.
    """
    model, scope = model_config(config, name)
    with DefaultScope.overwrite_default_scope(scope):
        built = MODELS.build(without_its_teacher(model, name))
    if not hasattr(built, 'data_preprocessor'):
        raise ValueError(f"teacher '{name}': {type(built).__name__} is not an mmengine BaseModel")
    kind = PREPROCESSORS.get(library_of(built))
    if kind and not model.get('data_preprocessor'):
        raise ValueError(
            f"teacher '{name}'.config has no `data_preprocessor`: add "
            f"data_preprocessor=dict(type='{kind}', mean=..., std=..., ...)"
        )
    check_std(built, f"teacher '{name}'.config")
    return built


def check_std(model: nn.Module, here: str) -> None:
    """Refuses a model that divides its images by 0, or by other numbers of channels.

    Args:
        model (nn.Module): The model.
        here (str): What messages call its place in the config.

    Raises:
        ValueError: If so.
    """
    mean, std = (getattr(model.data_preprocessor, name, None) for name in ('mean', 'std'))
    if not isinstance(std, Tensor):
        return
    if not bool((std > 0).all()):
        raise ValueError(f'{here}.data_preprocessor.std must be above 0 in all channels')
    counts = [len(mean), len(std)] if isinstance(mean, Tensor) else [len(std)]
    if 1 not in counts and len(set(counts)) > 1:
        raise ValueError(
            f'{here}.data_preprocessor.std must have one value for each channel, as `mean` has '
            f'{len(mean)}, got {len(std)}'
        )


def without_its_teacher(model: dict, name: str) -> dict:
    """The dict of a model without a teacher of its own: what it learnt with teaches alone here.

    Args:
        model (dict): A model dict. One of a class whose constructor takes ``teacher_...`` becomes
            that of the nearest base that does not.
        name (str): Name of the teacher in messages.
    """
    kind: Any = model.get('type')
    if isinstance(kind, str):
        with errors_named(f"teacher '{name}'"), MODELS.switch_scope_and_registry(None) as registry:
            kind = named(registry, kind)
    if not inspect.isclass(kind) or not _teachers_of(kind):
        return model
    base = next(one for one in kind.__mro__ if not _teachers_of(one))
    known = inspect.signature(base).parameters
    print_log(
        f"Teacher '{name}': a {kind.__name__} has a teacher of its own, which is left out; its "
        f'student, a {base.__name__}, teaches.',
        logger='current',
    )
    kept = {key: value for key, value in model.items() if key in known}
    return type(model)({**kept, 'type': base})


def _teachers_of(kind: type) -> list[str]:
    """The arguments of a class for a teacher of its own."""
    try:
        names = inspect.signature(kind).parameters
    except (TypeError, ValueError):  # some that are written in C say nothing
        return []
    return [one for one in names if one.startswith('teacher_')]


def without_pretraining(model: dict) -> dict:
    """Copies a model dict without ``pretrained`` and ``init_cfg``: a checkpoint has the weights."""
    if isinstance(model, dict):
        return type(model)(
            {
                key: None if key in ('pretrained', 'init_cfg') else without_pretraining(value)
                for key, value in model.items()
            }
        )
    if isinstance(model, (list, tuple)):
        return type(model)(without_pretraining(item) for item in model)
    return model


def _read_config(path: str, name: str) -> Config:
    file = stack.shipped_config(path) if '::' in path else Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"teacher '{name}': no config at {path_text(path)}{nearest_names(file, ['.py'])}. "
            'Expected a path from the folder you are in, or one in an installed library, '
            "'mmseg::pspnet/....py'"
        )
    try:
        return Config.fromfile(file)
    except ImportError as error:
        raise ValueError(
            f"teacher '{name}': {path} cannot be read: {import_reason(error)}"
        ) from error


def config_hash(config: str | dict, name: str) -> str:
    """Returns a hash of the model in the config of a teacher."""
    model, _ = model_config(config, name)
    return hashlib.sha256(json.dumps(model, sort_keys=True, default=str).encode()).hexdigest()


def checkpoint_hash(checkpoint: str) -> str:
    """Returns a hash of the weights in a checkpoint."""
    return state_hash(state_dict_of(read_checkpoint(checkpoint), checkpoint))


def state_hash(state: Mapping[str, Tensor]) -> str:
    """Returns a hash of the names, types, shapes and values of weights."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        value = value.detach().cpu().contiguous()
        digest.update(f'{name} {value.dtype} {tuple(value.shape)}'.encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
