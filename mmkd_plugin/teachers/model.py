"""The model of a teacher: builds it from its config, and hashes config and weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmkd_plugin import stack
from mmkd_plugin.checkpoint import nearest_names, read_checkpoint, state_dict_of
from mmkd_plugin.registry import MODELS
from mmkd_plugin.teachers.classes import Names, classes_of_config

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
        ValueError: If the config has no model.
        FileNotFoundError: If the file does not exist.
    """
    if isinstance(config, str):
        cfg = _read_config(config, name)
        if 'model' not in cfg:
            raise ValueError(f"teacher '{name}': {config} has no `model`")
        model, scope = cfg.model, cfg.get('default_scope')
        if cfg.get('data_preprocessor') is not None:
            model.setdefault('data_preprocessor', cfg.data_preprocessor)
    else:
        model, scope = Config(dict(model=config)).model, None
    if str(model.get('type')).endswith('Distiller'):  # the student of that run teaches here
        model = model.student
    model = without_pretraining(model)
    scope = model.pop('_scope_', scope)
    return model, scope


def classes_in_config(config: str | dict, name: str) -> Names | None:
    """The classes of the data set in the config of a teacher; None of a model dict."""
    return classes_of_config(_read_config(config, name)) if isinstance(config, str) else None


def build_model(config: str | dict, name: str) -> nn.Module:
    """Builds the model of a teacher.

    Args:
        config (str | dict): As for :func:`model_config`.
        name (str): Name of the teacher in messages.

    Returns:
        nn.Module: The model, with its initial weights.

    Raises:
        ValueError: If the config has no model, or the model is not an mmengine ``BaseModel``.
        FileNotFoundError: If the file does not exist.
    """
    model, scope = model_config(config, name)
    with DefaultScope.overwrite_default_scope(scope):
        built = MODELS.build(model)
    if not hasattr(built, 'data_preprocessor'):
        raise ValueError(f"teacher '{name}': {type(built).__name__} is not an mmengine BaseModel")
    return built


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
            f"teacher '{name}': no config at {path}{nearest_names(file, ['.py'])}. Expected a path "
            "from the folder you are in, or one in an installed library, 'mmseg::pspnet/....py'"
        )
    return Config.fromfile(file)


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
